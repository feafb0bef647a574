"""The energy of a build: the log of the launcher, saved while it runs, and the sum of the logs of all processes."""

from __future__ import annotations

import functools
import operator
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from joulecache.pipelines.building.metering import ProcessLog, this_process
from joulecache.pipelines.building.specs import ShardResult
from joulecache.pipelines.building.work_folder import energy_log_name, energy_logs
from joulecache.pipelines.cache.manifest import BuildEnergy, HostEnergy
from joulecache.pipelines.core import codec
from joulecache.pipelines.core.files import write_text
from joulecache.pipelines.energy import Energy, Meter, Provenance
from joulecache.pipelines.energy.hosts import Span, host_energy, process_energies
from joulecache.pipelines.energy.machine import machine_id


class EnergyLog:
    """Meters the launcher of a build and saves its log, so that a killed build loses only the energy after the last save.

    Attributes:
        name: Name of the log in the work folder.
    """

    def __init__(self, meter: Meter, work: Path) -> None:
        """Start metering. The work folder may hold logs of earlier runs of the build."""
        self._work, self.name = work, energy_log_name()
        self._stack = ExitStack()
        self._start_s = time.monotonic()
        self._window = self._stack.enter_context(meter.window("build"))
        self.save()

    def save(self, *, is_complete: bool = False) -> list[ProcessLog]:
        """Save the energy so far; return the logs of all processes."""
        log = ProcessLog(
            process=this_process(),
            machine=machine_id(),
            is_launcher=True,
            is_complete=is_complete,
            spans=(Span(self._start_s, time.monotonic(), self._window.so_far()),),
        )
        with suppress(OSError):  # on a full disk the build fails with a better message
            write_text(self._work / self.name, codec.dumps(log), durable=False)
        return [log, *read_logs(self._work, but=self.name)]

    def close(self) -> list[ProcessLog]:
        """Stop metering, and save once more."""
        self._stack.close()
        return self.save(is_complete=True)


def read_logs(work: Path, but: str = "") -> list[ProcessLog]:
    """Return the energy logs in a work folder, except the one named `but` and those that a killed process left damaged."""
    logs: list[ProcessLog] = []
    for path in energy_logs(work):
        with suppress(OSError, ValueError):
            if path.name != but:
                logs.append(codec.loads(ProcessLog, path.read_bytes()))
    return logs


def total_energy(logs: Sequence[ProcessLog], built: Iterable[ShardResult], provenance: Provenance) -> BuildEnergy:
    """Return the energy of a build, given the logs of all its processes and the results of its shards.

    Args:
        logs: The logs, or those in the results.
        built: The results of the shards that it built, which name shards of workers without a log.
        provenance: Provenance of the launcher's meter.
    """
    unmetered = {shard for log in logs if _misses(log, logs) for shard in log.shards}
    logged = {log.process for log in logs}
    unmetered |= {result.shard for result in built if result.worker not in logged}
    return BuildEnergy(summed_energy(logs), provenance, host_energies(logs), tuple(sorted(unmetered)))


def summed_energy(logs: Sequence[ProcessLog]) -> Energy:
    """Return the energy of all hosts, given the logs of processes: each joule once."""
    return functools.reduce(operator.add, map(_energy, _by_machine(logs)))


def host_energies(logs: Sequence[ProcessLog]) -> tuple[HostEnergy, ...]:
    """Return the energy of each host, shared between launcher and workers by CPU time."""
    by_name: dict[str, HostEnergy] = {}
    for host in map(_host, _by_machine(logs)):
        by_name[host.name] = by_name[host.name] + host if host.name in by_name else host
    return tuple(by_name.values())


def _by_machine(logs: Iterable[ProcessLog]) -> list[list[ProcessLog]]:
    found: defaultdict[str, list[ProcessLog]] = defaultdict(list)
    for log in logs:
        if log.spans:
            found[log.machine].append(log)
    return [*found.values()]


def _energy(logs: Sequence[ProcessLog]) -> Energy:
    return host_energy([span for log in logs if not _launcher(log, logs) for span in log.spans])


def _host(logs: Sequence[ProcessLog]) -> HostEnergy:
    roots = [(log, span) for log in logs if not _launcher(log, logs) for span in log.spans]
    energies = process_energies([span for _, span in roots])
    launchers = [energy for (log, _), energy in zip(roots, energies, strict=True) if log.is_launcher]
    workers = [energy for (log, _), energy in zip(roots, energies, strict=True) if not log.is_launcher]
    launcher = functools.reduce(operator.add, launchers) if launchers else None
    local = [log for log in logs if _launcher(log, logs)]
    if launcher and local:  # their part of the process tree, by CPU time
        share = min(1.0, sum(log.energy.cpu_s for log in local) / launcher.cpu_s) if launcher.cpu_s else 0.0
        launcher, used = launcher * (1 - share), launcher * share
        workers.append(used)
    first = next((log for log in logs if log.is_launcher), logs[0])
    processes = {log.process for log in logs if not log.is_launcher}
    return HostEnergy(
        first.host, launcher, functools.reduce(operator.add, workers) if workers else None, len(processes)
    )


def _launcher(log: ProcessLog, logs: Iterable[ProcessLog]) -> ProcessLog | None:
    """Return the log of the launcher that includes a log; None if there is none."""
    launchers = (other for other in logs if other.is_launcher and other.machine == log.machine)
    return next((other for other in launchers if log.metered_by == other.process), None)


def _misses(log: ProcessLog, logs: Iterable[ProcessLog]) -> bool:
    """Return whether a process ended before it logged all that it used."""
    launcher = _launcher(log, logs)
    return not log.is_complete and not log.is_launcher and not (launcher and launcher.is_complete)
