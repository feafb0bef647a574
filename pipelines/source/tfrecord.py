"""TFRecord files of `tf.train.Example`s with encoded images."""

from __future__ import annotations

import itertools
import mmap
import os
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from joulecache.pipelines.core import tfrecord
from joulecache.pipelines.core.object_store import is_remote, open_binary
from joulecache.pipelines.core.tfrecord import HEADER_BYTES, Feature, is_header
from joulecache.pipelines.source.annotations import CATEGORY_KEYS, Corners, first_of
from joulecache.pipelines.source.columns import BOXES, BYTES, FLOAT, INTEGER, LIST, BoxColumns, Choice, Column
from joulecache.pipelines.source.decompressed import Decompressed, DecompressionError, first_decompressed
from joulecache.pipelines.source.feature import Target
from joulecache.pipelines.source.records import Archive, Record, SourceError
from joulecache.pipelines.source.row_targets import RowTarget, ValuesSeen, encode_row, row_target
from joulecache.pipelines.source.rows import NO_LABEL, LabelsSeen, RowFile, RowRange
from joulecache.transforms.ops.decode import TRANSPOSED, Decode

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
                names = [name for column in self.columns.sources for name in _names(column)]
                values = tfrecord.values(data, 0, len(data), names)
                cells = [_cell(column, values, lambda: _size(image)) for column in self.columns.sources]
                targets = encode_row(self.columns.features, dict(zip(self.columns.features, cells, strict=True)))
        except ValueError as error:
            problem = str(error)
        return Record(key, targets, image, self.mtime_ns, problem)


def _names(column: Column) -> list[str]:
    return [column.name] if column.boxes is None else column.boxes.names


def _cell(column: Column, values: Mapping[str, Any], size: Callable[[], tuple[int, int]]) -> Any:
    """Return the value of a target: of boxes their corners, in pixels of an image of a (width, height)."""
    if column.boxes is None:
        return values.get(column.name)
    corners, classes, crowds = _boxes(column.boxes, values)
    width, height = size()
    kept = [row for row in range(len(corners)) if not crowds[row]]
    scaled = [(xmin * width, ymin * height, xmax * width, ymax * height) for ymin, xmin, ymax, xmax in corners]
    return Corners(
        [scaled[row] for row in kept], None if column.boxes.classes is None else [classes[row] for row in kept]
    )


def _boxes(boxes: BoxColumns, values: Mapping[str, Any]) -> tuple[list[tuple[float, ...]], list[Any], list[Any]]:
    """Return ymin, xmin, ymax and xmax of each box, its class, and whether it is of a crowd; ValueError if these do not fit together."""
    lists = {name: _listed(values.get(name)) for name in boxes.names}
    numbers = [lists[name] for name in boxes.corners]
    if not all(isinstance(number, int | float) for each in numbers for number in each):
        raise ValueError(f"must have numbers in {' and '.join(boxes.corners)}")
    if len(boxes.corners) == 1:
        numbers = [numbers[0][place::4] for place in range(4)]
    count = len(numbers[0])
    classes = lists[boxes.classes] if boxes.classes else [0] * count
    crowds = lists[boxes.crowds] if boxes.crowds else [0] * count
    if any(len(each) != count for each in (*numbers, classes, crowds)):
        raise ValueError(f"must have as many values in each of {', '.join(boxes.names)}")
    return [*zip(*numbers, strict=True)], classes, crowds


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _size(image: bytes) -> tuple[int, int]:
    """Return width and height of an encoded image, upright."""
    opened, orientation = Decode().open_upright(image)
    width, height = opened.size
    return (height, width) if orientation in TRANSPOSED else (width, height)


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
    return [*(Column(name, kind) for name, kind in sorted(kinds.items())), *box_columns(kinds)]


def box_columns(kinds: Collection[str]) -> list[Column]:
    """Return the columns of boxes that the features of a file make, as TensorFlow's object detection and TFDS write them."""
    found = []
    for name in sorted(kinds):
        prefix, _, last = name.rpartition("/")
        corners = [f"{prefix}/{side}" for side in ("ymin", "xmin", "ymax", "xmax")]
        above = prefix.rpartition("/")[0]
        if last == "ymin" and prefix and all(corner in kinds for corner in corners):
            classes = first_of(kinds, [f"{above}/class/text", f"{above}/class/label", f"{prefix}/label"])
            boxes = BoxColumns(tuple(corners), classes, first_of(kinds, [f"{above}/is_crowd"]))
            found.append(Column(prefix, BOXES, None, boxes))
        elif last in ("bbox", "bboxes") and prefix:
            classes = first_of(kinds, [f"{prefix}/{key}" for key in CATEGORY_KEYS])
            boxes = BoxColumns((name,), classes, first_of(kinds, [f"{prefix}/is_crowd"]))
            found.append(Column(prefix, BOXES, None, boxes))
    return found


def _features(data: Any, start: int, stop: int) -> dict[str, Feature]:
    """Return the features of a record; none if it is not an Example."""
    try:
        return tfrecord.features(data, start, stop)
    except ValueError:
        return {}


def list_tfrecord(file: Archive, key: str, choice: Choice, declared: Sequence[Column] | None = None) -> RowFile:
    """List the records of a file and read their labels, but not the images.

    Args:
        file: The file.
        key: Start of the keys.
        choice: The columns to read.
        declared: All columns, where something else than the records tells them.

    Raises:
        SourceError: The file is damaged, or no record has an image.
    """
    ends, seen = array("q", [0]), LabelsSeen()
    images = targets = 0
    columns = declared if declared is not None or not choice.wanted else tfrecord_columns(file)
    chosen = [row_target(file.name, columns or (), wanted) for wanted in choice.wanted or ()]
    others = [ValuesSeen() for _ in chosen]
    problem = "it has no records"
    with _contents(file) as data:
        for start, stop in tfrecord.records(data):
            ends.append(tfrecord.record_end(stop))
            try:
                features = tfrecord.features(data, start, stop)
                _image(features, choice.image.name)
                images += 1
                if choice.wanted is not None:
                    _add_values(data, start, stop, chosen, others)
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


def _add_values(data: Any, start: int, stop: int, chosen: Sequence[RowTarget], seen: Sequence[ValuesSeen]) -> None:
    """Add the targets of a record to those seen; of masks only the first are read."""
    wanted = [
        (target, each)
        for target, each in zip(chosen, seen, strict=True)
        if not (target.kind in ("mask", "points") and each.sampled)
    ]
    values = tfrecord.values(data, start, stop, [name for target, _ in wanted for name in _names(target.column)])
    for target, each in wanted:
        if target.column.boxes is not None:
            each.crowds += sum(map(bool, _boxes(target.column.boxes, values)[2]))
            each.add_boxes(_cell(target.column, values, lambda: (1, 1)))
        elif target.kind in ("mask", "points"):
            each.add_sample(values.get(target.column.name))
        else:
            each.add(values.get(target.column.name))
