"""TFRecord files of `tf.train.Example`s with encoded images."""

from __future__ import annotations

import itertools
import mmap
import os
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from joulecache.pipelines.core import tfrecord
from joulecache.pipelines.core.object_store import is_remote, open_binary
from joulecache.pipelines.core.tfrecord import HEADER_BYTES, Feature, is_header
from joulecache.pipelines.source.columns import BYTES, FLOAT, INTEGER, LIST, Choice, Column
from joulecache.pipelines.source.decompressed import Decompressed, DecompressionError, first_decompressed
from joulecache.pipelines.source.feature import Target
from joulecache.pipelines.source.records import Archive, Record, SourceError
from joulecache.pipelines.source.row_targets import RowTarget, ValuesSeen, encode_row, row_target
from joulecache.pipelines.source.rows import NO_LABEL, LabelsSeen, RowFile, RowRange

_UNIT_RECORDS = 64  # small, so that the units spread evenly over the shards
_PEEKED_RECORDS = 64  # that tell the features of a file
_KINDS = {tfrecord.BYTES: BYTES, tfrecord.INTEGER: INTEGER, tfrecord.FLOAT: FLOAT}


@dataclass(frozen=True, slots=True)
class RecordRange(RowRange):
    """Consecutive records of a TFRecord file; the first starts at byte `offset` of the file, or of its decompressed content."""

    offset: int
    content: Decompressed | None

    def read(self) -> Iterator[Record]:
        """Yield the records. Only one is in memory at a time."""
        with self.content.open() if self.content else open_binary(self.path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(self.offset)
            for key in self.record_keys():
                try:
                    data, intact = tfrecord.read_record(file, size)
                except ValueError as error:
                    raise OSError(f"{self.path} has changed since it was listed: {error}") from error
                yield self._record(key, data, intact)

    def _record(self, key: str, data: bytes, intact: bool) -> Record:
        image, problem = b"", None
        targets: tuple[Target, ...] = (NO_LABEL,) if self.columns.features is None else ()
        try:
            if not intact:
                raise ValueError("its bytes do not match their checksum")
            features = tfrecord.features(data, 0, len(data))
            found = _image(features, self.columns.image)
            image = data[found.start : found.stop]
            kind = INTEGER if self.columns.classes is None else BYTES
            if self.columns.features is None:
                targets = (self.columns.number(_label(data, features, self.columns.target, kind)),)
            else:
                targets = encode_row(self.columns.features, tfrecord.values(data, 0, len(data), self.columns.features))
        except ValueError as error:
            problem = str(error)
        return Record(key, targets, image, self.mtime_ns, problem)


def _image(features: Mapping[str, Feature], name: str) -> Feature:
    """Return where the image of an Example is; ValueError if there is none, or several."""
    found = features.get(name)
    if found is None or _kind(found) != BYTES:
        raise ValueError(f"its example must have one encoded image in {name}, got {_shown(features)}")
    return found


def _label(data: Any, features: Mapping[str, Feature], name: str, kind: str) -> int | bytes:
    """Return the label of an Example, of a kind of column; ValueError if there is none, or several."""
    found = features.get(name)
    if found is None or _kind(found) != kind:
        raise ValueError(f"its example must have one class in {name} ({kind}), got {_shown(features)}")
    return tfrecord.integer(data, found) if kind == INTEGER else bytes(data[found.start : found.stop])


def _kind(feature: Feature) -> str:
    return _KINDS[feature.kind] if feature.single else LIST


def _shown(features: Mapping[str, Feature]) -> str:
    return ", ".join(f"{name} ({_kind(features[name])})" for name in sorted(features)) or "no features"


# Files ----------------------------------------------------------------------------------------------------------------


def is_tfrecord(head: bytes) -> bool:
    """Return whether a file that starts with these bytes has TFRecords, compressed or not."""
    return is_header(head) or is_header(first_decompressed(head, HEADER_BYTES))


def with_content(file: Archive) -> Archive:
    """Return a file with its content if it is compressed, which is decompressed when it is first read."""
    with open_binary(file.location) as opened:
        head = opened.read(HEADER_BYTES)
    return file if is_header(head) else replace(file, content=Decompressed(file.location, file.mtime_ns))


class _Slices:
    """The bytes of an open file, read when they are accessed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, file.seek(0, os.SEEK_END)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: Any) -> Any:
        start, stop, _ = (place if isinstance(place, slice) else slice(place, place + 1)).indices(self._size)
        self._file.seek(start)
        data = self._file.read(stop - start)
        return data if isinstance(place, slice) else data[0]


@contextmanager
def _contents(file: Archive) -> Iterator[Any]:
    """Open the bytes of a file to list it; errors become SourceError."""
    try:
        with file.content.open() if file.content else open_binary(file.location) as opened:
            if file.content or is_remote(file.location):
                yield _Slices(opened)
            else:
                with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    yield data
    except DecompressionError as error:
        raise SourceError(str(error)) from error
    except SourceError:
        raise
    except ValueError as error:
        raise SourceError(f"cannot read {file.name!r} as TFRecord: {error}") from error


# Listing --------------------------------------------------------------------------------------------------------------


def tfrecord_columns(file: Archive) -> list[Column]:
    """Return the features of the first records of a file; SourceError if it is damaged."""
    kinds: dict[str, str] = {}
    with _contents(file) as data:
        for start, stop in itertools.islice(tfrecord.records(data), _PEEKED_RECORDS):
            for name, feature in _features(data, start, stop).items():
                if name not in kinds or not feature.single:
                    kinds[name] = _kind(feature)
    return [Column(name, kind) for name, kind in sorted(kinds.items())]


def _features(data: Any, start: int, stop: int) -> dict[str, Feature]:
    """Return the features of a record; none if it is not an Example."""
    try:
        return tfrecord.features(data, start, stop)
    except ValueError:
        return {}


def list_tfrecord(file: Archive, key: str, choice: Choice) -> RowFile:
    """List the records of a file and read their labels, but not the images.

    Raise SourceError if the file is damaged, or no record has an image.
    """
    ends, seen = array("q", [0]), LabelsSeen()
    images = targets = 0
    chosen = _row_targets(file, choice)
    names, others = [target.column.name for target in chosen], [ValuesSeen() for _ in chosen]
    problem = "it has no records"
    with _contents(file) as data:
        for start, stop in tfrecord.records(data):
            ends.append(tfrecord.record_end(stop))
            try:
                features = tfrecord.features(data, start, stop)
                _image(features, choice.image.name)
                images += 1
                if choice.wanted is not None:
                    values = tfrecord.values(data, start, stop, names)
                    for name, each in zip(names, others, strict=True):
                        each.add(values.get(name))
                    continue
                targets += choice.target.name in features
                seen.add(_label(data, features, choice.target.name, choice.target.kind))
            except ValueError as error:
                problem = str(error)
    if not images:
        raise SourceError(f"no records with an image in {file.name!r}: {problem}")
    rows = len(ends) - 1
    units = [
        RecordRange(
            name=f"{key}#{row}",
            path=file.location,
            file_key=key,
            first_row=row,
            mtime_ns=file.mtime_ns,
            count=min(_UNIT_RECORDS, rows - row),
            split=None,
            columns=choice.columns,
            offset=ends[row],
            content=file.content,
        )
        for row in range(0, rows, _UNIT_RECORDS)
    ]
    return RowFile(key, units, None, seen if targets else None, others, chosen)


def _row_targets(file: Archive, choice: Choice) -> list[RowTarget]:
    if not choice.wanted:
        return []
    columns = tfrecord_columns(file)
    return [row_target(file.name, columns, wanted) for wanted in choice.wanted]
