"""The rows and images of an existing cache that an update copies instead of computing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.compute as pc

from joulecache.pipelines.building.config import ShardConfig
from joulecache.pipelines.building.images import CachedImage
from joulecache.pipelines.building.rows import IndexRow, Reject, index_rows
from joulecache.pipelines.cache.data_file import DataFile
from joulecache.pipelines.cache.index import read_index
from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.cache.names import SPLITS, parse_shard_name
from joulecache.pipelines.cache.shards import map_images, read_encoded
from joulecache.pipelines.core.files import sha256_of
from joulecache.pipelines.source import Unit
from joulecache.pipelines.source.feature import Target


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


def is_unchanged(unit: Unit, known: Mapping[str, IndexRow | Reject]) -> bool:
    """Return whether all records of a unit are in the cache with the same modification time, and the same size and targets if known."""
    size, targets = unit.size_bytes, unit.targets
    for key in unit.record_keys():
        row = known.get(key)
        if row is None or row.mtime_ns != unit.mtime_ns:
            return False
        if targets is not None and isinstance(row, IndexRow) and targets != row.targets:
            return False
        # Without a split from the source, the hash of the key decides, which has not changed.
        if isinstance(row, IndexRow) and row.split != unit.split and (unit.split or row.split == "test"):
            return False
        if size is not None and size != row.source_bytes:
            return False
    return True


class PreviousShard:
    """One shard of a cache, opened to copy from. It is empty if the bytes of one of its files have changed."""

    def __init__(self, folder: Path, previous: Previous, shard: int, encoding: str) -> None:
        self._reread = previous.reread
        self._files = {name: split.files for name, split in previous.manifest.splits.items()}
        self._known: dict[str, IndexRow | Reject] = {}
        self._images: dict[str, list[Any]] = {}
        if any(sha256_of(folder / file.name) != file.sha256 for files in self._files.values() for file in files):
            return
        index = read_index(folder, previous.manifest)
        index.validate(full=True)
        rows = list(index_rows(index.filter(pc.equal(index["shard"], shard)), previous.manifest.features))
        self._known = {row.key: row for row in rows} | {reject.key: reject for reject in previous.rejects}
        self._order = {name: [(row.key, row.targets, row.row) for row in rows if row.split == name] for name in SPLITS}
        for name, files in self._files.items():
            shape = cast("tuple[int, int, int]", previous.manifest.splits[name].image_shape)
            self._images[name] = [
                map_images(folder / file.name, file, shape)
                if encoding == "raw"
                else read_encoded(folder / file.name, file)
                for file in files
            ]

    def images(self, split: str, row: int) -> list[CachedImage]:
        """Return the cached images of a row, one per variant."""
        return [images[row] if isinstance(images, np.ndarray) else bytes(images[row]) for images in self._images[split]]

    def find_row(self, key: str, split: str, digest: bytes) -> int | None:
        """Return the row of a record with the same split and content; None if there is none."""
        row = self._known.get(key)
        return row.row if isinstance(row, IndexRow) and (row.split, row.digest) == (split, digest) else None

    def unchanged_records(self, unit: Unit, config: ShardConfig) -> tuple[list[IndexRow], list[Reject]] | None:
        """Return the records of a unit if it is unchanged and the cache has all variants; None if it must be read."""
        if self._reread or not self._known or not is_unchanged(unit, self._known):
            return None
        records = [self._known[key] for key in unit.record_keys()]
        rows = [record for record in records if isinstance(record, IndexRow)]
        if any(len(self._files[row.split]) < config.variants_of(row.split) for row in rows):
            return None
        return rows, [record for record in records if isinstance(record, Reject)]

    def matching_files(self, split: str, rows: Sequence[tuple[str, tuple[Target, ...], int]]) -> tuple[DataFile, ...]:
        """Return the files of a split's variants if they hold exactly these rows, given as (key, targets, previous row), else ()."""
        return self._files[split] if self._known and self._order[split] == list(rows) else ()
