"""Units of one image each, as objects and as tables that scale to millions of images."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from joulecache.pipelines.core.object_store import is_remote, open_binary, read_bytes, read_range
from joulecache.pipelines.source.feature import Target
from joulecache.pipelines.source.records import Record, Unit

_ROWS_AT_ONCE = 1024
_TARGET = "target/"  # before the name of a column of targets
_FILE = "file/"  # before the name of a target that is in a file, and a column of its place
FILE_COLUMNS = ("path", "name", "offset", "size_bytes")
"""The columns of a `TargetFile`."""


@dataclass(frozen=True, slots=True)
class TargetFile:
    """A file, or member of an uncompressed tar, that has a target of an image.

    Attributes:
        path: The folder or tar.
        name: The file's path in the folder; None in a tar.
        offset: Where it starts in the tar; None in a folder.
        size_bytes: Its size.
    """

    path: str
    name: str | None
    offset: int | None
    size_bytes: int

    def read(self) -> bytes:
        """Return its content; OSError if it is missing or the tar was truncated."""
        if self.name is not None:
            return read_bytes(self.path, self.name)
        data = read_range(self.path, self.offset or 0, self.size_bytes)
        if len(data) != self.size_bytes:
            raise OSError(f"{self.path} ends inside a member: the tar was truncated")
        return data


def _whole(targets: tuple[Target | None, ...], files: tuple[TargetFile, ...]) -> tuple[Target, ...]:
    """Return targets with the content of files in place of None."""
    contents = (file.read() for file in files)
    return tuple(next(contents) if target is None else target for target in targets)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image in a local or remote folder.

    Attributes:
        targets: Its targets; None for those in files.
        size_bytes: Size of the image and of these files.
        mtime_ns: When the last of them was written.
        files: The files of targets.
    """

    name: str
    root: str
    targets: tuple[Target | None, ...]
    split: str | None
    size_bytes: int
    mtime_ns: int
    count: int = 1
    files: tuple[TargetFile, ...] = ()

    @property
    def location(self) -> str:
        """The folder."""
        return self.root

    def record_keys(self) -> Iterator[str]:
        """Yield its path in the source."""
        yield self.name

    def read(self) -> Iterator[Record]:
        """Yield its record."""
        yield Record(self.name, _whole(self.targets, self.files), read_bytes(self.root, self.name), self.mtime_ns)


@dataclass(frozen=True, slots=True)
class TarMember:
    """An image in an uncompressed tar, read at its offset. `ImageFile` describes what both have."""

    name: str
    path: str
    targets: tuple[Target | None, ...]
    split: str | None
    size_bytes: int
    mtime_ns: int
    offset: int
    count: int = 1
    files: tuple[TargetFile, ...] = ()

    @property
    def location(self) -> str:
        """The tar."""
        return self.path

    def record_keys(self) -> Iterator[str]:
        """Yield the member's name, after that of its tar where there are several."""
        yield self.name

    def read(self) -> Iterator[Record]:
        """Yield its record."""
        size = self.size_bytes - sum(file.size_bytes for file in self.files)
        data = read_range(self.path, self.offset, size)
        if len(data) != size:
            raise OSError(f"{self.path} ends inside {self.name}: the tar was truncated")
        yield Record(self.name, _whole(self.targets, self.files), data, self.mtime_ns)


def target_column(name: str) -> str:
    """Return the name of the column of a target."""
    return _TARGET + name


def file_column(name: str, place: str) -> str:
    """Return the name of the column of a place, one of `FILE_COLUMNS`, of a target in files."""
    return f"{_FILE}{name}/{place}"


class _Parts:
    """The record batches of a table. Rows taken from them cost what they are; Arrow joins all chunks of a table at each call."""

    def __init__(self, table: Any) -> None:
        self._schema = table.schema
        self._batches = table.to_batches()
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    def take(self, rows: NDArray[np.int64]) -> Any:
        """Return a table of some rows."""
        parts = np.searchsorted(self._starts, rows, side="right") - 1
        ends = [*(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(rows)]
        taken = [
            self._batches[parts[start]].take(pa.array(rows[start:end] - self._starts[parts[start]]))
            for start, end in zip([0, *ends], ends, strict=False)
            if start < end
        ]
        return pa.Table.from_batches(taken, self._schema)


class ImageTable(Sequence[Unit]):
    """Units of one image each, stored as columns: 50 bytes plus the name per image, instead of 300 bytes for an object."""

    def __init__(self, table: Any, rows: NDArray[np.int64] | None = None, parts: _Parts | None = None) -> None:
        """Some rows of a table, or of its parts, are the units; by default all."""
        self._table, self._rows, self._parts = table, rows, parts

    def __len__(self) -> int:
        return int(self._table.num_rows) if self._rows is None else len(self._rows)

    def __iter__(self) -> Iterator[Unit]:
        for first in range(0, len(self), _ROWS_AT_ONCE):
            yield from self._units(first, _ROWS_AT_ONCE)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[row] for row in range(*place.indices(len(self)))]
        row = range(len(self))[place]
        return next(self._units(row, 1))

    def select(self, rows: Sequence[int] | NDArray[np.int64]) -> ImageTable:
        """Return some of the units, without copying the table."""
        chosen = np.asarray(rows, np.int64)
        parts = self._parts or _Parts(self._table)
        return ImageTable(self._table, chosen if self._rows is None else self._rows[chosen], parts)

    def compacted(self) -> ImageTable:
        """Return the same units in a table that has no others."""
        return ImageTable(self.taken().combine_chunks())

    def taken(self, first: int = 0, count: int | None = None) -> Any:
        """Return `count` units from `first` on, by default all, as a table."""
        if self._rows is None or self._parts is None:
            return self._table.slice(first, count)
        return self._parts.take(self._rows[first : None if count is None else first + count])

    def __reduce__(self) -> Any:
        return ImageTable, (self.taken().combine_chunks(),)

    def _units(self, first: int, count: int) -> Iterator[Unit]:
        rows = self.taken(first, count)
        columns = (rows[name].to_pylist() for name in ("size_bytes", "mtime_ns", "offset"))
        names = [name for name in rows.column_names if name.startswith(_TARGET)]
        targets = zip(*(rows[name].to_pylist() for name in names), strict=True) if names else itertools.repeat(())
        decoded = (_from_dictionary(rows[name]) for name in ("path", "split"))
        files = _files(rows)
        for key, size, mtime_ns, offset, path, split, of_record, at in zip(
            _keys(rows), *columns, *decoded, targets, files, strict=False
        ):
            if offset is None:
                yield ImageFile(key, path, of_record, split, size, mtime_ns, 1, at)
            else:
                yield TarMember(key, path, of_record, split, size, mtime_ns, offset, 1, at)


def _keys(rows: Any) -> Iterator[str]:
    names = rows["key"].to_pylist()
    return map(operator.add, _from_dictionary(rows["prefix"]), names) if "prefix" in rows.column_names else iter(names)


def _files(rows: Any) -> Iterator[tuple[TargetFile, ...]]:
    """Return the files of the targets of each row, without end if there are none."""
    starts = [
        name.removesuffix("path") for name in rows.column_names if name.startswith(_FILE) and name.endswith("/path")
    ]
    if not starts:
        return itertools.repeat(())
    return zip(*(_files_of(rows, start) for start in starts), strict=True)


def _files_of(rows: Any, start: str) -> Iterator[TargetFile]:
    paths, *others = (start + place for place in FILE_COLUMNS)
    return map(TargetFile, _from_dictionary(rows[paths]), *(rows[name].to_pylist() for name in others))


def _from_dictionary(column: Any) -> Iterator[Any]:
    """Yield the values of a dictionary column, one object for each distinct value: five times as fast as `to_pylist`."""
    for chunk in column.chunks:
        values = [*chunk.dictionary.to_pylist(), None]
        yield from map(values.__getitem__, chunk.indices.fill_null(len(values) - 1).to_pylist())


class _StoredTable(ImageTable):
    """A table in a file, read on first access and pickled by reference."""

    def __init__(self, path: str, batch: int, count: int) -> None:
        self._place, self._rows, self._parts = (path, batch, count), None, None

    def __reduce__(self) -> tuple[type[_StoredTable], tuple[str, int, int]]:
        return _StoredTable, self._place

    def __len__(self) -> int:
        return self._place[2]

    @cached_property
    def _table(self) -> Any:
        path, batch, _ = self._place
        with pa.ipc.open_file(open_binary(path) if is_remote(path) else pa.memory_map(path)) as reader:
            return pa.Table.from_batches([reader.get_batch(batch)])


def _store_tables(tables: Sequence[ImageTable], path: Path, location: str) -> list[ImageTable]:
    """Write parts of one table to a file; return each as a reference to `location`."""
    with pa.ipc.new_file(str(path), tables[0].taken(0, 0).schema) as writer:
        for table in filter(len, tables):
            [batch] = table.taken().combine_chunks().to_batches()
            writer.write_batch(batch)
    places = itertools.count()
    return [_StoredTable(location, next(places), len(table)) if len(table) else table for table in tables]


def select(units: Sequence[Unit], rows: Sequence[int]) -> Sequence[Unit]:
    """Return the units of some rows. Those of a table are pickled without the others."""
    return units.select(rows) if isinstance(units, ImageTable) else tuple(units[row] for row in rows)


def store_units(parts: Sequence[Sequence[Unit]], path: Path, location: str) -> list[Sequence[Unit]]:
    """Write parts of a source's units to a file if they are tables, so that only references are sent to workers.

    Workers find the file at `location`. Parts that are not tables are returned unchanged.
    """
    tables = [part for part in parts if isinstance(part, ImageTable)]
    return [*_store_tables(tables, path, location)] if tables and len(tables) == len(parts) else list(parts)
