"""Build one shard: a plain function that reads a range of units and writes their images."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from joulecache.pipelines.building.config import ShardConfig
from joulecache.pipelines.building.images import (
    BatchedDraws,
    decode_cached,
    make_images,
    pixel_stats_of,
    working_bytes,
)
from joulecache.pipelines.building.memory_budget import MemoryBudget
from joulecache.pipelines.building.previous import PreviousShard
from joulecache.pipelines.building.rows import IndexRow, Reject, index_batch
from joulecache.pipelines.building.specs import ShardResult, ShardSpec, this_process, write_result
from joulecache.pipelines.building.work_folder import WORK, index_name
from joulecache.pipelines.building.workspace import Workspace
from joulecache.pipelines.cache.data_file import DataFile, PixelStats
from joulecache.pipelines.cache.index import write_index
from joulecache.pipelines.cache.names import SPLITS, ShardName
from joulecache.pipelines.cache.rows import Rows
from joulecache.pipelines.cache.shards import write_shard
from joulecache.pipelines.core.files import write_named
from joulecache.pipelines.core.object_store import StoreError
from joulecache.pipelines.source import Record, Unit
from joulecache.transforms.chain import fixed_size, output_channels
from joulecache.transforms.randomness import key_hash

_DECODED = MemoryBudget()  # shared by all shards that this process builds at once
_TASK_RECORDS = 16  # amortizes the cost of a task

Images = list[Any]
"""A split's images: one array ``[N, H, W, C]`` (raw) or one list of N encoded images per variant."""


def build_shard(spec: ShardSpec) -> ShardResult:
    """Build one shard: read and decode each unit of its range once, and write a file for every split and variant.

    Images of unchanged records are copied from the existing cache, and unchanged files are not written again. Does not use Beam.

    Returns:
        The result, which is also written to the work folder.

    Raises:
        OSError: The cache cannot be written to.
    """
    with Workspace(spec) as workspace:
        return finish_shard(workspace, transform_shard(workspace.spec))


@dataclass(frozen=True)
class _Record:
    """A record of the new shard."""

    row: IndexRow  # its `row` is a slot in the images of the split, where rejected records leave gaps
    pixel_stats: list[PixelStats]  # of each variant
    previous_row: int | None  # its row in the existing cache, from which its first variants were copied
    transformed: int  # computed variants

    @property
    def copied(self) -> int:
        return len(self.pixel_stats) - self.transformed


@dataclass(frozen=True)
class TransformedShard:
    """A shard with its images in memory, ready to be written."""

    spec: ShardSpec
    records: list[_Record]
    rejects: list[Reject]
    images: Mapping[str, Images]
    previous: PreviousShard | None


# Transforming ---------------------------------------------------------------------------------------------------------


def transform_shard(spec: ShardSpec) -> TransformedShard:
    """Run the first half of `build_shard`, in threads: read, decode and transform."""
    transformer = _Transformer(spec)
    records: list[_Record] = []
    rejects: list[Reject] = []
    with ThreadPoolExecutor(spec.workers) as pool:
        for some_records, some_rejects in pool.map(transformer.transform, _tasks(spec.units)):
            records += some_records
            rejects += some_rejects
    return TransformedShard(spec, records, rejects, transformer.images, transformer.previous)


def _tasks(units: Sequence[Unit]) -> Iterator[list[Unit]]:
    task: list[Unit] = []
    for unit in units:
        task.append(unit)
        if sum(unit.count for unit in task) >= _TASK_RECORDS:
            yield task
            task = []
    if task:
        yield task


class _Transformer:
    """Computes or copies the images of a shard. Threads share it, and write to different slots of `images`."""

    def __init__(self, spec: ShardSpec) -> None:
        self._spec, self._config = spec, spec.config
        self._slots: dict[str, tuple[str, int]] = {}
        counts = dict.fromkeys(SPLITS, 0)
        for unit in spec.units:
            for key in unit.record_keys():
                split = self._config.split_of(key, unit.split)
                self._slots[key] = split, counts[split]
                counts[split] += 1
        self.images = {split: _allocate(self._config, split, counts[split]) for split in SPLITS}
        self.previous: PreviousShard | None = None
        if spec.previous:
            self.previous = PreviousShard(Path(spec.cache), spec.previous, spec.shard, self._config.encoding)

    def transform(self, units: Sequence[Unit]) -> tuple[list[_Record], list[Reject]]:
        """Fill the slots of the records of units; return the records and the rejects."""
        records: list[_Record] = []
        rejects: list[Reject] = []
        keys = [(key, self._slots[key][0]) for unit in units for key in unit.record_keys()]
        draws = BatchedDraws(keys, self._config)
        for unit in units:
            known = None
            if self.previous and not self._spec.rehash:
                known = self.previous.unchanged_records(unit, self._config)
            if known is None:
                self._read(unit, draws, records, rejects)
            else:
                records += map(self._copy_record, known[0])
                rejects += known[1]
        return records, rejects

    def _read(self, unit: Unit, draws: BatchedDraws, records: list[_Record], rejects: list[Reject]) -> None:
        unread = dict.fromkeys(unit.record_keys())
        try:
            for record in unit.read():
                del unread[record.key]
                try:
                    records.append(self._transform_record(record, draws))
                except ValueError as error:  # a damaged image, or one that an op does not support
                    rejects.append(Reject(record.key, str(error), len(record.data), record.mtime_ns))
        except StoreError:  # not caused by the records: the store may recover
            raise
        except (OSError, pa.ArrowInvalid) as error:
            reason = f"cannot be read: {error}".splitlines()[0]
            rejects += [Reject(key, reason) for key in unread]

    def _transform_record(self, record: Record, draws: BatchedDraws) -> _Record:
        if record.problem:
            raise ValueError(record.problem)
        if not 0 <= record.label < self._spec.classes:
            raise ValueError(f"label {record.label} is not one of the {self._spec.classes} classes")
        split, slot = self._slots[record.key]
        digest = hashlib.sha256(record.data).digest()[:16]
        previous_row = self.previous.find_row(record.key, split, digest) if self.previous else None
        pixel_stats = [] if previous_row is None else self._copy_images(split, previous_row, slot)
        words = draws.take(record.key, split)[len(pixel_stats) :]
        if words:
            decode = self._config.chain_of(split).decode
            header = decode.read_header(record.data)
            with _DECODED.hold(working_bytes(header, decode.channels)):
                images, new_stats = make_images(header, words, self._config, split)
            for variant, image in enumerate(images, len(pixel_stats)):
                self.images[split][variant][slot] = image
            pixel_stats += new_stats
        size, hashed = len(record.data), key_hash(record.key)
        row = IndexRow(record.key, hashed, record.label, split, size, record.mtime_ns, digest, slot)
        return _Record(row, pixel_stats, previous_row, transformed=len(words))

    def _copy_record(self, row: IndexRow) -> _Record:
        split, slot = self._slots[row.key]
        pixel_stats = self._copy_images(split, row.row, slot)
        return _Record(dataclasses.replace(row, row=slot), pixel_stats, previous_row=row.row, transformed=0)

    def _copy_images(self, split: str, row: int, slot: int) -> list[PixelStats]:
        """Copy the needed variants of a record from the existing cache; return their pixel sums."""
        assert self.previous is not None
        pixel_stats = []
        variants = self._config.variants_of(split)
        for variant, image in enumerate(self.previous.images(split, row)[:variants]):
            self.images[split][variant][slot] = image
            pixels = image if isinstance(image, np.ndarray) else decode_cached(image, self.previous.channels(split))
            pixel_stats.append(pixel_stats_of(pixels))
        return pixel_stats


def _allocate(config: ShardConfig, split: str, count: int) -> Images:
    chain, variants = config.chain_of(split), config.variants_of(split)
    if config.encoding != "raw":
        return [[b""] * count for _ in range(variants)]
    size = fixed_size(chain.prefix)
    assert size is not None
    return [np.empty((count, *size, output_channels(chain.prefix)), np.uint8) for _ in range(variants)]


# Writing --------------------------------------------------------------------------------------------------------------


def finish_shard(workspace: Workspace, shard: TransformedShard) -> ShardResult:
    """Run the second half of `build_shard`: write the files and the result, and upload them to a remote cache."""
    spec, work = shard.spec, Path(shard.spec.cache, WORK)
    files: dict[str, tuple[DataFile, ...]] = {}
    index: list[IndexRow] = []
    for split in SPLITS:
        records = sorted(
            (record for record in shard.records if record.row.split == split), key=lambda each: each.row.row
        )
        index += [dataclasses.replace(record.row, row=position) for position, record in enumerate(records)]
        if records:
            files[split] = _write_split(shard, split, records)
    batch = index_batch(index, spec.shard)
    # Atomically, since a runner that considers a worker lost may build a shard twice at the same time.
    write_named(work, lambda file: write_index(file, batch), lambda _: index_name(spec.shard))
    result = ShardResult(
        shard=spec.shard,
        files=files,
        rejects=tuple(shard.rejects),
        source_bytes=sum(row.source_bytes for row in index),
        index=index_name(spec.shard),
        spec=spec.digest,
        transformed=sum(record.transformed for record in shard.records),
        copied=sum(record.copied for record in shard.records),
        worker=this_process(),
        metered=spec.launcher in ("", this_process()),
    )
    write_result(work, result)
    workspace.upload(result)
    return result


def _write_split(shard: TransformedShard, split: str, records: Sequence[_Record]) -> tuple[DataFile, ...]:
    """Return the files of a split, one per variant; write those that the existing cache does not have."""
    spec, rows = shard.spec, [record.row for record in records]
    unchanged: tuple[DataFile, ...] = ()
    if shard.previous:
        wanted = [(record.row.key, record.row.label, record.previous_row) for record in records]
        unchanged = shard.previous.matching_files(split, wanted)
    files = list(unchanged[: len(shard.images[split])])
    for variant, images in enumerate(shard.images[split][len(files) :], len(files)):
        name = ShardName(split, variant, spec.shard, spec.shards, "", spec.config.format)
        content = Rows(
            images=_select(images, [row.row for row in rows]),
            labels=np.array([row.label for row in rows], np.int64),
            keys=[row.key for row in rows],
            key_hashes=np.array([row.hash for row in rows], np.uint64),
            pixel_stats=functools.reduce(operator.add, (record.pixel_stats[variant] for record in records)),
        )
        files.append(write_shard(Path(spec.cache), name, content))
    return tuple(files)


def _select(images: Any, slots: list[int]) -> Any:
    if len(slots) == len(images):
        return images
    return images[slots] if isinstance(images, np.ndarray) else [images[slot] for slot in slots]
