"""What a cache holds already: the rows and images that an update can copy instead of computing them again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from joulecache.pipelines.building.config import Recipe
from joulecache.pipelines.cache.manifest import Manifest, read_index
from joulecache.pipelines.cache.shards import SPLITS, DataFile, map_images, parse_shard_name, read_encoded
from joulecache.pipelines.source import Unit


@dataclass(frozen=True)
class Reject:
    """A record that is not in the cache, and why. Size and time are None where it could not be read."""

    key: str
    reason: str
    source_bytes: int | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True)
class Previous:
    """What a cache holds of one range: enough to find it again in the cache's folder.

    `manifest` lists the files of this range alone. `relabelled`: the classes have changed since, so that labels must be read anew.
    """

    manifest: Manifest
    rejects: tuple[Reject, ...]
    relabelled: bool

    def __repr__(self) -> str:  # part of a spec's digest
        return f"Previous({self.manifest.index.sha256}, {self.manifest.files()}, {self.rejects}, {self.relabelled})"


@dataclass(frozen=True, slots=True)
class OldRow:
    """A row of the index."""

    key: str
    hash: int
    label: int
    split: str
    size: int
    mtime_ns: int
    digest: bytes
    row: int


def old_rows(index: Any) -> Iterator[OldRow]:
    """Yield the rows of an index, or of a part of it, that was validated."""
    names = ("key", "key_hash", "label", "split", "source_bytes", "mtime_ns", "digest", "row")
    for key, hashed, label, split, *others in zip(*(index[name].to_pylist() for name in names), strict=True):
        yield OldRow(key, hashed, label, SPLITS[split], *others)


def of_shard(index: Any, shard: int) -> Any:
    """Return one shard's part of an index."""
    return index.filter(pc.equal(index["shard"], shard))


def is_unchanged(unit: Unit, known: Mapping[str, OldRow | Reject]) -> bool:
    """Say whether all records of a unit are known with its time, and with its size where that is known without reading."""
    size = unit.size_bytes
    for key in unit.record_keys():
        row = known.get(key)
        if row is None or row.mtime_ns != unit.mtime_ns:
            return False
        # Where the source gives no split the hash still says what it said.
        if isinstance(row, OldRow) and row.split != unit.split and (unit.split or row.split == "test"):
            return False
        if size is not None and size != (row.size if isinstance(row, OldRow) else row.source_bytes):
            return False
    return True


class OldShard:
    """One shard of a cache, opened to copy from. A file of it whose bytes have changed makes it empty."""

    def __init__(self, folder: Path, previous: Previous, shard: int, encoding: str) -> None:
        self._relabelled = previous.relabelled
        self._shapes = {name: split.image_shape for name, split in previous.manifest.splits.items()}
        self._files = {name: split.files for name, split in previous.manifest.splits.items()}
        self._known: dict[str, OldRow | Reject] = {}
        self._images: dict[str, list[Any]] = {}
        if not all(_is_whole(folder / file.name, file) for files in self._files.values() for file in files):
            return
        index = read_index(folder, previous.manifest)
        index.validate(full=True)
        rows = list(old_rows(of_shard(index, shard)))
        self._known = {row.key: row for row in rows} | {reject.key: reject for reject in previous.rejects}
        self._order = {name: [(row.key, row.label, row.row) for row in rows if row.split == name] for name in SPLITS}
        for name, files in self._files.items():
            shape: Any = self._shapes[name]
            self._images[name] = [
                map_images(folder / file.name, file, shape)
                if encoding == "raw"
                else read_encoded(folder / file.name, file)
                for file in files
            ]

    def channels(self, split: str) -> int:
        """Return the channels of a split's images."""
        return self._shapes[split][2]

    def pictures(self, split: str, row: int) -> list[Any]:
        """Return the images of a row as they are cached, of every variant: arrays, or encoded bytes."""
        return [images[row] if isinstance(images, np.ndarray) else bytes(images[row]) for images in self._images[split]]

    def same(self, key: str, split: str, digest: bytes) -> int | None:
        """Return the row of a record that has the same content, None where there is none."""
        row = self._known.get(key)
        return row.row if isinstance(row, OldRow) and (row.split, row.digest) == (split, digest) else None

    def unread(self, unit: Unit, recipe: Recipe) -> tuple[list[OldRow], list[Reject]] | None:
        """Return what is known of a unit that need not be read: unchanged, with labels and all variants that are wanted."""
        if self._relabelled or not self._known or not is_unchanged(unit, self._known):
            return None
        found = [self._known[key] for key in unit.record_keys()]
        rows = [row for row in found if isinstance(row, OldRow)]
        if any(len(self._files[row.split]) < recipe.of(row.split)[1] for row in rows):
            return None
        return rows, [row for row in found if isinstance(row, Reject)]

    def files_of(self, split: str, rows: Sequence[tuple[str, int, int | None]]) -> tuple[DataFile, ...]:
        """Return the files of a split's variants that hold exactly these rows, as (key, label, old row); () where none does."""
        return self._files[split] if self._known and self._order[split] == list(rows) else ()


def files_of(manifest: Manifest, split: str, shard: int) -> tuple[DataFile, ...]:
    """Return a shard's files, one per variant."""
    names = ((file, parse_shard_name(file.name)) for file in manifest.splits[split].files)
    return tuple(file for file, name in names if name and name.shard == shard)


def _is_whole(path: Path, file: DataFile) -> bool:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
