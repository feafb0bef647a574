"""The rows and images of an existing cache that an update copies instead of computing them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from joulecache.pipelines.building.config import ShardConfig
from joulecache.pipelines.building.images import Stored
from joulecache.pipelines.building.rows import IndexRow, Reject, index_rows
from joulecache.pipelines.building.spatial_targets import CachedTarget
from joulecache.pipelines.cache.data_file import DataFile
from joulecache.pipelines.cache.index import read_index
from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.cache.names import SPLITS, parse_shard_name
from joulecache.pipelines.cache.shards import map_images, read_encoded, read_targets
from joulecache.pipelines.cache.spatial_columns import BoxRows, StoredColumn
from joulecache.pipelines.core.files import sha256_of
from joulecache.pipelines.source import Unit
from joulecache.pipelines.source.feature import Target
from joulecache.pipelines.source.features import Features, spatial_features
from joulecache.pipelines.source.spatial import Mask, SpatialFeature
from joulecache.transforms.targets import MaskTarget, PointsTarget

if TYPE_CHECKING:
    from joulecache.pipelines.building.specs import ShardSpec


_Images: TypeAlias = NDArray[np.uint8] | Sequence[Any]


@dataclass(frozen=True)
class Previous:
    """One shard of an existing cache, as sent to a worker, which finds the rest in the folder of the cache.

    Attributes:
        manifest: The cache's manifest, reduced to the files of this shard.
        rejects: The rejected records of the shard.
        reread: The features or columns have changed, so that all records must be read again.
    """

    manifest: Manifest
    rejects: tuple[Reject, ...]
    reread: bool

    def __repr__(self) -> str:  # part of a spec's digest
        return f"Previous({self.manifest.index.sha256}, {self.manifest.files()}, {self.rejects}, {self.reread})"


def shard_files(manifest: Manifest, split: str, shard: int) -> tuple[DataFile, ...]:
    """Return a shard's files in a split, one per variant."""
    names = ((file, parse_shard_name(file.name)) for file in manifest.splits[split].files)
    return tuple(file for file, name in names if name and name.shard == shard)


def of_shard(manifest: Manifest, spec: ShardSpec) -> Manifest:
    """Return a manifest reduced to the files of a shard, without draws before the first one of its specification."""
    splits = {}
    for name, split in manifest.splits.items():
        dropped = spec.config.first_draw_of(name) - split.first_draw
        splits[name] = dataclasses.replace(split, files=shard_files(manifest, name, spec.shard)[dropped:])
    return dataclasses.replace(manifest, splits=splits)


def is_unchanged(unit: Unit, known: Mapping[str, IndexRow | Reject], features: Features) -> bool:
    """Return whether all records of a unit are in the cache with the same modification time, and the same size and targets if known."""
    size, targets = unit.size_bytes, unit.targets
    for key in unit.record_keys():
        row = known.get(key)
        if row is None or row.mtime_ns != unit.mtime_ns:
            return False
        if targets is not None and isinstance(row, IndexRow) and not _are_stored(targets, row.targets, features):
            return False
        # Without a split from the source, the hash of the key decides, which has not changed.
        if isinstance(row, IndexRow) and row.split != unit.split and (unit.split or row.split == "test"):
            return False
        if size is not None and size != row.source_bytes:
            return False
    return True


def _are_stored(targets: Sequence[Target | None], stored: Sequence[Target], features: Features) -> bool:
    """Return whether known targets of a unit are those of an index row."""
    if targets == stored:
        return True
    rows = zip(features.values(), targets, stored, strict=True)
    return all(given is None or feature.index_value(given) == found for feature, given, found in rows)


def _columns(features: Features) -> list[tuple[str, object]]:
    """Return what two caches must have in common to have the same columns of targets: of classes, not their names."""
    return [
        (name, feature if isinstance(feature, SpatialFeature) else feature.arrow_type)
        for name, feature in features.items()
    ]


class PreviousShard:
    """One shard of a cache, opened to copy from. It is empty if the bytes of one of its files have changed."""

    def __init__(self, folder: Path, previous: Previous, spec: ShardSpec) -> None:
        self._reread = previous.reread
        self._features, self._new = previous.manifest.features, spec.features
        self._has_columns = _columns(self._features) == _columns(self._new)
        spatial = spatial_features(self._new)
        self._has_targets = spatial.items() <= spatial_features(self._features).items()
        self._spatial = spatial if self._has_targets else {}
        self._files = {name: split.files for name, split in previous.manifest.splits.items()}
        self._known: dict[str, IndexRow | Reject] = {}
        self._variants: dict[str, list[tuple[_Images, Mapping[str, StoredColumn]]]] = {}
        if any(sha256_of(folder / file.name) != file.sha256 for files in self._files.values() for file in files):
            return
        index = read_index(folder, previous.manifest)
        index.validate(full=True)
        rows = list(index_rows(index.filter(pc.equal(index["shard"], spec.shard)), self._features))
        self._known = {row.key: row for row in rows} | {reject.key: reject for reject in previous.rejects}
        self._order = {name: [(row.key, row.targets, row.row) for row in rows if row.split == name] for name in SPLITS}
        for name, files in self._files.items():
            shape = cast("tuple[int, int, int]", previous.manifest.splits[name].image_shape)
            is_raw = spec.config.encoding == "raw"
            self._variants[name] = [
                _read(folder / file.name, file, self._spatial, shape, is_raw=is_raw) for file in files
            ]

    def stored(self, split: str, row: int) -> list[Stored]:
        """Return the cached variants of a row."""
        return [
            Stored(
                images[row] if isinstance(images, np.ndarray) else bytes(images[row]),
                tuple(_target(feature, columns[name], row) for name, feature in self._spatial.items()),
            )
            for images, columns in self._variants[split]
        ]

    def find_row(self, key: str, split: str, digest: bytes, targets: Sequence[Target]) -> int | None:
        """Return the row of a record with the same split, image and targets that move with it; None if there is none."""
        row = self._known.get(key)
        if not isinstance(row, IndexRow) or (row.split, row.digest) != (split, digest) or not self._has_targets:
            return None
        if self._spatial:
            before, now = (
                dict(zip(self._features, row.targets, strict=True)),
                dict(zip(self._new, targets, strict=True)),
            )
            if any(before[name] != now[name] for name in self._spatial):
                return None
        return row.row

    def unchanged_records(self, unit: Unit, config: ShardConfig) -> tuple[list[IndexRow], list[Reject]] | None:
        """Return the records of a unit if it is unchanged and the cache has all variants; None if it must be read."""
        if self._reread or not self._known or not is_unchanged(unit, self._known, self._features):
            return None
        records = [self._known[key] for key in unit.record_keys()]
        rows = [record for record in records if isinstance(record, IndexRow)]
        if any(len(self._files[row.split]) < config.variants_of(row.split) for row in rows):
            return None
        return rows, [record for record in records if isinstance(record, Reject)]

    def matching_files(self, split: str, rows: Sequence[tuple[str, tuple[Target, ...], int]]) -> tuple[DataFile, ...]:
        """Return the files of a split's variants if they hold exactly these rows, given as (key, targets, previous row), else ()."""
        if not self._known or not self._has_columns or self._order[split] != list(rows):
            return ()
        return self._files[split]


def _read(
    path: Path, file: DataFile, spatial: Mapping[str, SpatialFeature], shape: tuple[int, int, int], *, is_raw: bool
) -> tuple[_Images, Mapping[str, StoredColumn]]:
    """Map the images and targets of a file."""
    images: _Images = map_images(path, file, shape) if is_raw else read_encoded(path, file)
    return images, read_targets(path, file, spatial, shape[:2] if is_raw else None) if spatial else {}


def _target(feature: SpatialFeature, column: StoredColumn, row: int) -> CachedTarget:
    match feature, column:
        case Mask(), np.ndarray():
            return MaskTarget(column[row])
        case _, np.ndarray():
            return PointsTarget(column[row])
        case _, BoxRows():
            return column[row]
        case _:
            return bytes(column[row])
