"""The result of a build, and its progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from joulecache.pipelines.building.rows import Reject
from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.core.notebook import Displayed
from joulecache.pipelines.energy import Energy


@dataclass(frozen=True)
class Built(Displayed):
    """The outcome of `precompute`.

    Attributes:
        manifest: The manifest of the cache.
        unchanged: The cache was up to date: no image was computed or copied.
        resumed_shards: Shards that an interrupted build had finished.
        transformed: Computed images, of all variants.
        copied: Images copied from the existing cache into changed shards. Images of unchanged shards do not count.
        workers: Processes that built shards, as ``host:pid``.
        energy: Energy of this build; that of all builds is in the manifest. None if it was unchanged.
    """

    manifest: Manifest
    unchanged: bool
    resumed_shards: int = 0
    transformed: int = 0
    copied: int = 0
    workers: tuple[str, ...] = ()
    energy: Energy | None = None


@dataclass(frozen=True)
class WriteResult:
    """The outcome of `WriteCache`.

    Attributes:
        manifest: The manifest of the cache.
        records: Cached records.
        rejects: The rejected records, sorted by key: also in the cache.
        transformed: Computed images, of all variants.
        copied: Images copied from the existing cache.
        workers: Processes that built shards, as ``host:pid``.
    """

    manifest: Manifest
    records: int
    rejects: tuple[Reject, ...]
    transformed: int
    copied: int
    workers: tuple[str, ...]

    @property
    def energy(self) -> Energy | None:
        """Energy of all builds that went into the cache; None if one of them was not measured."""
        return None if self.manifest.energy is None else self.manifest.energy.energy


@dataclass(frozen=True)
class BuildProgress:
    """The progress of a build, in finished shards.

    Attributes:
        done: Records in finished shards.
        records: Records in the source.
        resumed_records: Records in `done` that were finished when the build started.
        rejects: Rejected records so far.
        written_bytes: Bytes of the shards so far.
        energy_j: Joules so far.
        duration_s: Seconds since the build started.
    """

    done: int
    records: int
    resumed_records: int
    rejects: int
    written_bytes: int
    energy_j: float
    duration_s: float

    @property
    def records_per_s(self) -> float:
        """Records finished per second."""
        return (self.done - self.resumed_records) / max(self.duration_s, 1e-9)


Progress: TypeAlias = Callable[[BuildProgress], None]
"""Called while a build runs, when shards are finished."""
