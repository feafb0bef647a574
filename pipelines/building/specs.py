"""The specification of a shard, which is sent to a worker, and its result."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from joulecache.pipelines.building.config import BuildError, ShardConfig
from joulecache.pipelines.building.metering import Metering, ProcessLog
from joulecache.pipelines.building.previous import Previous
from joulecache.pipelines.building.rows import Reject
from joulecache.pipelines.building.work_folder import WORK, result_name
from joulecache.pipelines.cache.data_file import DataFile
from joulecache.pipelines.core import codec, files
from joulecache.pipelines.source import Unit
from joulecache.pipelines.source.features import Features


@dataclass(frozen=True)
class ShardSpec:
    """One shard to build: a range of the hash of units.

    Attributes:
        cache: The cache's folder, or its URL in an object store.
        shard: Number of the shard.
        shards: Number of shards per split and variant.
        units: The units whose hash is in the range.
        features: The features of the source.
        config: The options of the cache.
        previous: The shard in the existing cache, for an update.
        rehash: Read every unit, even with unchanged size and time.
        metering: How workers meter themselves.
        work: The build's work folder inside the cache.
    """

    cache: str
    shard: int
    shards: int
    units: Sequence[Unit]
    features: Features
    config: ShardConfig
    previous: Previous | None = None
    rehash: bool = False
    metering: Metering = field(default_factory=Metering)
    work: str = WORK

    @property
    def digest(self) -> str:
        """SHA-256 of everything that determines the shard: equal digests mean equal bytes."""
        relevant = dataclasses.replace(self, units=tuple(self.units), cache="", metering=Metering(), work="")
        versions = [op.version for chain in (self.config.chain, self.config.val_chain) for op in chain.ops]
        return hashlib.sha256(repr((versions, relevant)).encode()).hexdigest()


@dataclass(frozen=True)
class ShardResult:
    """The result of a shard.

    Attributes:
        shard: Number of the shard.
        files: By split, one file per variant. Splits without records are missing.
        rejects: The rejected records.
        source_bytes: Encoded bytes of the records.
        index: Name of the shard's part of the index in the work folder; "" for a shard that an update keeps.
        spec: Digest of the `ShardSpec`.
        transformed: Computed images, of all variants.
        copied: Images copied from the existing cache, of all variants.
        error: Why the shard could not be written.
        worker: `this_process` of the worker.
        used: What the worker, its process and descendants, used since its last result; None for a shard that an update keeps.
    """

    shard: int
    files: Mapping[str, tuple[DataFile, ...]]
    rejects: tuple[Reject, ...]
    source_bytes: int
    index: str
    spec: str
    transformed: int = 0
    copied: int = 0
    error: str | None = None
    worker: str = ""
    used: ProcessLog | None = None

    @property
    def cached_records(self) -> int:
        """Records in the cache, of all splits."""
        return sum(files[0].records for files in self.files.values())

    @property
    def records(self) -> int:
        """Records of the shard, cached and rejected."""
        return self.cached_records + len(self.rejects)

    @property
    def data_files(self) -> list[DataFile]:
        """The files of all splits and variants."""
        return [file for files in self.files.values() for file in files]


def write_result(work: Path, result: ShardResult) -> None:
    """Write a shard's result to the work folder."""
    files.write_text(work / result_name(result.shard), codec.dumps(result))


def read_result(work: Path, shard: int) -> ShardResult:
    """Read a shard's result from the work folder.

    Raises:
        BuildError: The result is missing.
        ValueError: The result is damaged.
    """
    try:
        text = (work / result_name(shard)).read_bytes()
    except OSError as error:
        raise BuildError(f"shard {shard} has no result: its worker stopped early; run the command again") from error
    return codec.loads(ShardResult, text)
