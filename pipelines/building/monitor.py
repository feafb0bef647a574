"""Monitor a running build: save its energy and report progress when shards are finished."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from joulecache.pipelines.building.destination import Destination
from joulecache.pipelines.building.energy_log import EnergyLog, summed_energy
from joulecache.pipelines.building.results import BuildProgress, Progress
from joulecache.pipelines.building.specs import ShardResult, read_result
from joulecache.pipelines.building.work_folder import finished_shards
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.core.object_store import StoreError


class Monitor:
    """Polls for finished shards while a build runs, in addition to kept and resumed ones."""

    def __init__(
        self,
        destination: Destination,
        work: Path,
        log: EnergyLog,
        records: int,
        finished: Sequence[ShardResult],
        progress: Progress | None,
    ) -> None:
        self._destination, self._work, self._log, self._progress = destination, work, log, progress
        self._records = records
        self._results = {result.shard: result for result in finished}
        self._resumed_records = sum(result.records for result in finished)
        self._started = time.monotonic()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Poll while the block runs, and once more at its end."""
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(self._destination.poll_s):
                with suppress(StoreError, CacheError):  # the last poll raises it
                    self._poll()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._poll()

    def _poll(self) -> None:
        self._destination.fetch_finished()
        new = finished_shards(self._work) - self._results.keys()
        if not new:
            return
        self._results |= {shard: read_result(self._work, shard) for shard in new}
        energy_j = summed_energy(self._log.save()).total_j
        self._destination.publish(self._log.name)
        if self._progress:
            self._progress(self._current(energy_j))

    def _current(self, energy_j: float) -> BuildProgress:
        results = self._results.values()
        return BuildProgress(
            done=sum(result.records for result in results),
            records=self._records,
            resumed_records=self._resumed_records,
            rejects=sum(len(result.rejects) for result in results),
            written_bytes=sum(file.bytes for result in results for file in result.data_files),
            energy_j=energy_j,
            duration_s=time.monotonic() - self._started,
        )
