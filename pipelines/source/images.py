"""Images that are files of their own, in a folder or a tar: what is known of each by its name, and of its class beside it."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from joulecache.pipelines.core.object_store import is_remote, open_binary, read_bytes, read_range
from joulecache.pipelines.source.labels import Labels
from joulecache.pipelines.source.naming import (
    IMAGE_SUFFIXES,
    as_splits,
    file_splits,
    first_folders,
    folder_classes,
    spread,
)
from joulecache.pipelines.source.records import MOST_CLASSES, Record, Source, SourceError, Unit


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image in a folder."""

    name: str
    root: str
    label: int
    split: str | None
    size_bytes: int
    mtime_ns: int
    count: int = 1

    def record_keys(self) -> Iterator[str]:
        """Yield the path inside the source."""
        yield self.name

    def read(self) -> Iterator[Record]:
        """Yield the file."""
        yield Record(self.name, self.label, read_bytes(self.root, self.name), self.mtime_ns)


@dataclass(frozen=True, slots=True)
class TarMember:
    """An image in an uncompressed tar, found by its offset."""

    name: str
    path: str
    label: int
    split: str | None
    size_bytes: int
    mtime_ns: int
    offset: int
    count: int = 1

    def record_keys(self) -> Iterator[str]:
        """Yield the member's name, behind that of its tar where there are several."""
        yield self.name

    def read(self) -> Iterator[Record]:
        """Yield the member."""
        data = read_range(self.path, self.offset, self.size_bytes)
        if len(data) != self.size_bytes:
            raise OSError(f"{self.path} ended inside {self.name}: the tar is cut short")
        yield Record(self.name, self.label, data, self.mtime_ns)


CLASS_SUFFIX = ".cls"
_CLASS = re.compile(rb"\s*([0-9]{1,7})\s*")
_ROWS_AT_ONCE = 1024


class ImageTable(Sequence[Unit]):
    """Units of one image each, kept as columns: 50 bytes and its name for an image, where objects take 300."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[Unit]:
        for first in range(0, len(self), _ROWS_AT_ONCE):
            yield from self._units(first, _ROWS_AT_ONCE)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[row] for row in range(*place.indices(len(self)))]
        row = range(len(self))[place]
        return next(self._units(row, 1))

    def take(self, rows: Sequence[int]) -> ImageTable:
        """Return the units of some rows, copied, so that nothing else is held by them."""
        return ImageTable(self._table.take(pa.array(rows, pa.int64())).combine_chunks())

    def _units(self, first: int, count: int) -> Iterator[Unit]:
        rows = self._table.slice(first, count)
        columns = (rows[name].to_pylist() for name in ("key", "label", "size_bytes", "mtime_ns", "offset"))
        decoded = (_from_dictionary(rows[name]) for name in ("path", "split"))
        for key, label, size, mtime_ns, offset, path, split in zip(*columns, *decoded, strict=True):
            if offset is None:
                yield ImageFile(key, path, label, split, size, mtime_ns)
            else:
                yield TarMember(key, path, label, split, size, mtime_ns, offset)


def _from_dictionary(column: Any) -> Iterator[Any]:
    """Yield the values of a column of few different ones: the same objects, in a fifth of the time that `to_pylist` takes."""
    for chunk in column.chunks:
        values = [*chunk.dictionary.to_pylist(), None]
        yield from map(values.__getitem__, chunk.indices.fill_null(len(values) - 1).to_pylist())


class StoredImages(ImageTable):
    """Units in a file, read when they are looked at: what travels to a worker is where they are."""

    def __init__(self, path: str, batch: int, count: int) -> None:
        self._place = path, batch, count

    def __reduce__(self) -> tuple[type[StoredImages], tuple[str, int, int]]:
        return StoredImages, self._place

    def __len__(self) -> int:
        return self._place[2]

    @cached_property
    def _table(self) -> Any:
        path, batch, _ = self._place
        with pa.ipc.open_file(open_binary(path) if is_remote(path) else pa.memory_map(path)) as reader:
            return pa.Table.from_batches([reader.get_batch(batch)])


def store_images(tables: Sequence[ImageTable], path: Path, where: str) -> list[ImageTable]:
    """Write tables to one file, and return each as it is found `where` a worker finds that file. They are parts of one table."""
    with pa.ipc.new_file(str(path), tables[0]._table.schema) as writer:
        for table in filter(len, tables):
            [batch] = table._table.to_batches()  # `take` has made it one
            writer.write_batch(batch)
    places = itertools.count()
    return [StoredImages(where, next(places), len(table)) if len(table) else table for table in tables]


@dataclass(frozen=True)
class Images:
    """The images of one folder or tar; the key of one is `prefix` and its name.

    `places` has the columns path, size_bytes, mtime_ns and offset, as `places_of` makes them. `classes` are what the class files in a tar
    hold, by sample; where there are any, an image without one is refused.
    """

    prefix: str
    names: Sequence[str]
    places: Any
    classes: Mapping[str, bytes]
    skipped: Counter[str]
    refused: Sequence[tuple[str, str]]


def places_of(path: str, sizes: Sequence[int], mtimes_ns: Sequence[int], offsets: Sequence[int] | None) -> Any:
    """Return where images lie: in a folder, or in a tar from some byte on."""
    count = len(sizes)
    paths = pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), pa.array([path]))
    columns = [
        paths,
        *(pa.array(np.asarray(numbers, np.int64)) for numbers in (sizes, mtimes_ns)),
        pa.nulls(count, pa.int64()) if offsets is None else pa.array(np.asarray(offsets, np.int64)),
    ]
    return pa.Table.from_arrays(columns, ["path", "size_bytes", "mtime_ns", "offset"])


def labelled(location: str, found: Sequence[Images], limit: int | None, given: Labels | None) -> Source:
    """Give images their classes and splits; keep at most `limit` of them, spread over the classes.

    Classes are those of `given`, else those beside the images, else the folders. Raises SourceError.
    """
    skipped = sum((images.skipped for images in found), Counter[str]())
    refused = [one for images in found for one in images.refused]
    names = [name for images in found for name in images.names]
    keys = [images.prefix + name if images.prefix else name for images in found for name in images.names]
    if not keys:
        first = f", {len(refused)} refused, such as {': '.join(refused[0])}" if refused else ""
        raise SourceError(
            f"{location!r} holds no image ({sum(skipped.values())} other files{first}): "
            f"images end in {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    folders, depth = first_folders(names)
    splits = as_splits(folders)
    if splits is None:
        splits = _tar_splits(found)
    else:  # the classes come behind the splits
        folders, _ = first_folders([name.split("/", depth + 1)[-1] for name in names])
    labels: Sequence[int | None]
    held: Sequence[bytes | None] = ()
    if given:
        labels, class_names, unused = given.of(keys)
        skipped.update({"(label of no image)": unused} if unused else {})
    elif any(images.classes for images in found):
        held = [images.classes.get(sample_of(name)) for images in found for name in images.names]
        labels = [None if text is None else _class_number(text) for text in held]
        class_names = tuple(map(str, range(max((label for label in labels if label is not None), default=-1) + 1)))
    else:
        labels, class_names = folder_classes(folders, keys)
    unlabelled = [row for row, label in enumerate(labels) if label is None]
    refused += [
        (keys[row], f"it has no label in {given.path}" if given else _no_class(held[row])) for row in unlabelled
    ]
    if not class_names:
        raise SourceError(f"{location!r} holds no image with a class: {': '.join(refused[-1])}")
    table = pa.concat_tables([images.places for images in found]).unify_dictionaries()
    table = table.append_column("key", pa.array(keys, pa.string()))
    table = table.append_column("label", pa.array(labels, pa.int32()))
    table = table.append_column("split", pa.array(splits, pa.string()).dictionary_encode())
    units = ImageTable(table).take(spread(keys, labels, limit))
    del table
    pa.default_memory_pool().release_unused()  # which would keep what the columns took while they were made
    return Source(location, class_names, units, len(units), "val" in splits, skipped, tuple(refused))


def sample_of(name: str) -> str:
    """Return a member's name up to the first dot of its last part: what the files of one WebDataset sample share."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _class_number(text: bytes) -> int | None:
    match = _CLASS.fullmatch(text)
    return int(match[1]) if match and int(match[1]) < MOST_CLASSES else None


def _no_class(text: bytes | None) -> str:
    if text is None:
        return f"it has no {CLASS_SUFFIX} beside it"
    return f"its {CLASS_SUFFIX} holds {text!r}, not a class from 0 to {MOST_CLASSES - 1}"


def _tar_splits(found: Sequence[Images]) -> list[str | None]:
    """Return the split of every image by the name of its tar."""
    splits = file_splits([images.prefix.rstrip("/") for images in found]) or [None] * len(found)
    return [split for images, split in zip(found, splits, strict=True) for _ in images.names]
