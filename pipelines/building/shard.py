"""Build one shard: a plain function that reads a range of units and writes their images."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from joulecache.pipelines.building.metering import this_process
from joulecache.pipelines.building.previous import PreviousShard
from joulecache.pipelines.building.reading import read_ahead, read_or_reject
from joulecache.pipelines.building.rows import IndexRow, Reject
from joulecache.pipelines.building.shard_memory import ShardMemory
from joulecache.pipelines.building.specs import ShardResult, ShardSpec
from joulecache.pipelines.building.split_columns import Origin, SplitColumns
from joulecache.pipelines.building.work_folder import WORK, index_name
from joulecache.pipelines.building.workspace import Workspace
from joulecache.pipelines.cache.data_file import DataFile
from joulecache.pipelines.cache.index import empty_index, write_index
from joulecache.pipelines.cache.names import SPLITS, ShardName
from joulecache.pipelines.cache.shards import write_shard
from joulecache.pipelines.core.files import write_named
from joulecache.pipelines.source import Record, Unit
from joulecache.pipelines.source.features import spatial_features
from joulecache.pipelines.source.spatial import Mask


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
class TransformedShard:
    """A shard with its images in memory, ready to be written."""

    spec: ShardSpec
    splits: Mapping[str, SplitColumns]
    rejects: list[Reject]
    previous: PreviousShard | None


# Transforming ---------------------------------------------------------------------------------------------------------


def transform_shard(spec: ShardSpec) -> TransformedShard:
    """Run the first half of `build_shard`: read, decode and transform."""
    return _Transformer(spec).transform()


class _Transformer:
    """Computes or copies the images of a shard."""

    def __init__(self, spec: ShardSpec) -> None:
        self._spec, self._config = spec, spec.config
        self._features = tuple(spec.features.values())
        self._has_spatial = bool(spatial_features(spec.features))
        self._slots: dict[str, tuple[str, int]] = {}
        keys: dict[str, list[str]] = {split: [] for split in SPLITS}
        for unit in spec.units:
            for key in unit.record_keys():
                split = self._config.split_of(key, unit.split)
                self._slots[key] = split, len(keys[split])
                keys[split].append(key)
        memory = ShardMemory(Path(spec.cache), spec.shard)
        self._splits = {
            split: SplitColumns(self._config, spec.features, split, keys[split], memory)
            for split in SPLITS
            if keys[split]
        }
        self._rejects: list[Reject] = []
        self._previous: PreviousShard | None = None
        if spec.previous:
            self._previous = PreviousShard(Path(spec.cache), spec.previous, spec)

    def transform(self) -> TransformedShard:
        """Fill the slots of all records that are not rejected."""
        units = self._spec.units if self._previous is None else [*self._changed(self._previous)]
        for unit, records in read_ahead(units):
            self._read(unit, records)
        return TransformedShard(self._spec, self._splits, self._rejects, self._previous)

    def _changed(self, previous: PreviousShard) -> Iterator[Unit]:
        """Copy the records of unchanged units; yield the other units."""
        for unit in self._spec.units:
            known = None if self._spec.rehash else previous.unchanged_records(unit, self._config)
            if known is None:
                yield unit
                continue
            rows, rejects = known
            self._rejects += rejects
            for row in rows:
                self._copy(previous, row)

    def _copy(self, previous: PreviousShard, row: IndexRow) -> None:
        split, slot = self._slots[row.key]
        columns = self._splits[split]
        stored = previous.stored(split, row.row)[: columns.maker.variants]
        origin = Origin(row.source_bytes, row.mtime_ns, row.digest)
        columns.fill(slot, row.targets, origin, (), copied=stored, previous_row=row.row)

    def _read(self, unit: Unit, records: Iterator[Record]) -> None:
        for record in read_or_reject(unit, records):
            if isinstance(record, Reject):
                self._rejects.append(record)
                continue
            try:
                self._transform(record)
            except ValueError as error:  # a damaged image, or one that an op does not support
                self._rejects.append(Reject(record.key, str(error), self._size_of(record), record.mtime_ns))

    def _transform(self, record: Record) -> None:
        if record.problem:
            raise ValueError(record.problem)
        targets = record.targets
        for feature, target in zip(self._features, targets, strict=True):
            feature.check(target)
        if self._has_spatial:
            pairs = zip(self._features, targets, strict=True)
            targets = tuple(feature.index_value(target) for feature, target in pairs)
        split, slot = self._slots[record.key]
        columns = self._splits[split]
        digest = hashlib.sha256(record.data).digest()[:16]
        origin = Origin(self._size_of(record), record.mtime_ns, digest)
        row = self._previous.find_row(record.key, split, digest, targets) if self._previous else None
        if self._previous is None or row is None:
            made = columns.maker.make(record.data, record.targets, columns.words(slot))
            columns.fill(slot, targets, origin, made)
            return
        copied = self._previous.stored(split, row)[: columns.maker.variants]
        words = columns.words(slot)[len(copied) :]
        made = columns.maker.make(record.data, record.targets, words) if words else []
        columns.fill(slot, targets, origin, made, copied=copied, previous_row=row)

    def _size_of(self, record: Record) -> int:
        """Return the bytes of a record's image and masks, as units know them before they are read."""
        if not self._has_spatial:
            return len(record.data)
        pairs = zip(self._features, record.targets, strict=False)
        masks = (target for feature, target in pairs if isinstance(feature, Mask) and isinstance(target, bytes))
        return len(record.data) + sum(map(len, masks))


# Writing --------------------------------------------------------------------------------------------------------------


def finish_shard(workspace: Workspace, shard: TransformedShard) -> ShardResult:
    """Run the second half of `build_shard`: write the files and the result, and upload them to a remote cache."""
    written, rows = write_files(shard)
    name = index_name(shard.spec.shard)
    # Atomically, since a runner that considers a worker lost may build a shard twice at the same time.
    write_named(Path(shard.spec.cache, WORK), lambda file: write_index(file, rows), lambda _: name)
    workspace.upload(written, name)
    result = dataclasses.replace(written, index=name, used=workspace.finish())
    workspace.keep(result)
    return result


def write_files(shard: TransformedShard) -> tuple[ShardResult, pa.RecordBatch]:
    """Write the files of a shard; return its result, and its part of the index."""
    spec = shard.spec
    splits = {split: columns for split, columns in shard.splits.items() if len(columns)}
    files = {split: _write_split(shard, split, columns) for split, columns in splits.items()}
    parts = [columns.index(spec.shard) for columns in splits.values()]
    batch = pa.concat_batches(parts) if parts else empty_index(spec.features)
    copied = sum(columns.copied for columns in splits.values())
    result = ShardResult(
        shard=spec.shard,
        files=files,
        rejects=tuple(shard.rejects),
        source_bytes=sum(columns.source_bytes for columns in splits.values()),
        index="",
        spec=spec.digest,
        transformed=sum(len(columns) * columns.maker.variants for columns in splits.values()) - copied,
        copied=copied,
        worker=this_process(),
    )
    return result, batch


def _write_split(shard: TransformedShard, split: str, columns: SplitColumns) -> tuple[DataFile, ...]:
    """Return the files of a split, one per variant; write those that the existing cache does not have."""
    spec, previous = shard.spec, shard.previous
    files = list(previous.matching_files(split, columns.identities()) if previous else ())[: columns.maker.variants]
    for variant in range(len(files), columns.maker.variants):
        draw = spec.config.first_draw_of(split) + variant
        name = ShardName(split, draw, spec.shard, spec.shards, "", spec.config.format)
        files.append(write_shard(Path(spec.cache), name, columns.rows(variant)))
    return tuple(files)
