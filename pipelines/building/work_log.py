"""The energy log of a worker: a process is metered as a whole while it builds shards, since it works on two at a time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from joulecache.pipelines.building.metering import Metering, ProcessLog, this_process
from joulecache.pipelines.building.work_folder import energy_log_name
from joulecache.pipelines.core import codec
from joulecache.pipelines.energy import Energy
from joulecache.pipelines.energy.hosts import Span
from joulecache.pipelines.energy.machine import machine_id

Save = Callable[[str, str], None]
"""Writes a file of the work folder, given its name and text."""

_SHORT_S = 1.0


class WorkLog:
    """Meters this process from the start of its first shard to the end of its last, without counting overlapping shards twice."""

    def __init__(self, metering: Metering) -> None:
        """Prepare to meter like the launcher."""
        self._meter, self._build = metering.meter(), metering.build
        self._metered_by = metering.metered_by()
        self._name = energy_log_name()
        self._lock = threading.Lock()
        self._shards: list[int] = []
        self._spans: list[Span] = []
        self._unreported: list[Span] = []
        self._open = ExitStack()
        self._lap: Callable[[], Energy] | None = None
        self._start_s = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether no shard is being built."""
        return not self._shards

    def begin(self, shard: int, save: Save) -> None:
        """Begin a shard."""
        with self._lock:
            if self._lap is None:
                self._start_s = time.monotonic()
                self._lap = self._open.enter_context(self._meter.laps())
            else:
                self._add(self._lap())
            self._shards.append(shard)
            save(self._name, codec.dumps(self._log(self._spans)))

    def finish(self, shard: int, save: Save) -> ProcessLog:
        """Finish a shard; return what this process used since it last finished one."""
        with self._lock:
            self._end(shard, save)
            used = replace(self._log(self._unreported), is_complete=True, shards=(shard,))
            self._unreported = []
            return used

    def abandon(self, shard: int, save: Save) -> None:
        """End a shard that failed. What it used is reported with the next one."""
        with self._lock:
            self._end(shard, save)

    def _end(self, shard: int, save: Save) -> None:
        assert self._lap is not None
        self._add(self._lap())
        self._shards.remove(shard)
        if not self._shards:
            self._open.close()
            self._lap = None
        save(self._name, codec.dumps(self._log(self._spans)))

    def _add(self, energy: Energy) -> None:
        now_s = time.monotonic()
        span = Span(self._start_s, now_s, energy)
        self._start_s = now_s
        for spans in (self._spans, self._unreported):
            _append(spans, span)

    def _log(self, spans: Sequence[Span]) -> ProcessLog:
        return ProcessLog(
            process=this_process(),
            build=self._build,
            machine=machine_id(),
            metered_by=self._metered_by,
            is_complete=not self._shards,
            shards=tuple(sorted(self._shards)),
            spans=tuple(spans),
        )


def _append(spans: list[Span], new: Span) -> None:
    """Append a span; extend the last one if there is only a short gap, as between two bundles."""
    last = spans[-1] if spans else None
    if last and last.is_counted == new.is_counted and new.start_s - last.end_s <= _SHORT_S:
        spans[-1] = Span(last.start_s, new.end_s, last.energy + new.energy)
    else:
        spans.append(new)


_LOGS: dict[tuple[int, str, str, str], WorkLog] = {}
_LOGS_LOCK = threading.Lock()


def begin_shard(cache: str, work: str, shard: int, metering: Metering, save: Save) -> WorkLog:
    """Begin a shard in this process's log of a build, which two shards at a time share."""
    key = os.getpid(), metering.build, cache, work
    with _LOGS_LOCK:
        if key not in _LOGS:
            for other in [other for other, log in _LOGS.items() if other[0] != os.getpid() or log.is_idle]:
                del _LOGS[other]
            _LOGS[key] = WorkLog(metering)
        _LOGS[key].begin(shard, save)
        return _LOGS[key]
