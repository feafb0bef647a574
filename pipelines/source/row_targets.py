"""Targets of records in Parquet and TFRecord files: what their columns hold, and how a cell becomes a target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from joulecache.pipelines.source.annotations import (
    ONLY_CLASS,
    Corners,
    boxes_notes,
    corners,
    number_of_points,
    objects,
    plural_boxes,
)
from joulecache.pipelines.source.classes import sort_key
from joulecache.pipelines.source.columns import (
    BOOLEAN,
    BOXES,
    BYTES,
    FLOAT,
    IMAGE,
    INTEGER,
    LIST,
    MASK,
    TEXT,
    Column,
    find_column,
    mask_columns,
)
from joulecache.pipelines.source.config import Wanted
from joulecache.pipelines.source.feature import Target
from joulecache.pipelines.source.features import AnyFeature, ClassLabel, Features, MultiLabel, Text, Value
from joulecache.pipelines.source.masks import mask_feature
from joulecache.pipelines.source.records import MAX_CLASSES, SourceError
from joulecache.pipelines.source.spatial import Boxes, Mask, Points
from joulecache.pipelines.source.targets import encode_target, flat, shape_of

_COLUMN_KINDS: Mapping[str, tuple[str, ...]] = {
    "class": (INTEGER, TEXT, BYTES, BOOLEAN),
    "multilabel": (LIST, INTEGER, TEXT, BYTES),
    "value": (FLOAT, INTEGER, BOOLEAN, LIST),
    "text": (TEXT, BYTES),
    "mask": (IMAGE, MASK, BYTES),
    "boxes": (BOXES,),
    "points": (LIST,),
}
_INFERRED = {
    **dict.fromkeys((INTEGER, TEXT, BYTES, BOOLEAN), "class"),
    FLOAT: "value",
    IMAGE: "mask",
    MASK: "mask",
    BOXES: "boxes",
}
_SAMPLE = 16  # masks or points that tell their feature, of each file
_BOOLEANS = ("False", "True")


@dataclass(frozen=True)
class RowTarget:
    """A target to read.

    Attributes:
        name: Its name.
        column: Its column.
        kind: One of `KINDS`.
    """

    name: str
    column: Column
    kind: str


@dataclass
class ValuesSeen:
    """The values of one target in a file, from which its feature is made.

    Attributes:
        names: Class names.
        last: The largest class number.
        shape: Shape of the first value; None without one.
        whole: Whether all numbers are integers.
        sample: The first masks or points.
        boxes: Number of boxes.
        empty: Number of boxes without width or height, which are dropped.
        crowds: Number of boxes of crowds, which are dropped.
    """

    names: set[str] = field(default_factory=set)
    last: int = -1
    shape: tuple[int, ...] | None = None
    whole: bool = True
    sample: list[Any] = field(default_factory=list)
    boxes: int = 0
    empty: int = 0
    crowds: int = 0

    @property
    def sampled(self) -> bool:
        """Whether the sample is complete."""
        return len(self.sample) >= _SAMPLE

    def add_sample(self, value: Any) -> None:
        """Add a mask or points to the sample; None is none."""
        if value is not None and not self.sampled:
            self.sample.append(value)

    def add_boxes(self, value: Any) -> None:
        """Add the boxes of a record, as `objects` reads them or by their corners. Malformed ones are ignored."""
        try:
            if isinstance(value, Corners):
                found, classes = value.boxes, value.classes
            else:
                given, classes = objects(value)
                found = [corners(box) for box in given]
        except ValueError:
            return
        self.add([*classes] if classes is not None else None)
        empty = sum(1 for left, top, right, bottom in found if right <= left or bottom <= top)
        self.boxes += len(found) - empty
        self.empty += empty

    def add(self, value: Any) -> None:
        """Add a value; None is none. Values that no feature fits are ignored: their records will be rejected."""
        if value is None:
            return
        if self.shape is None:
            self.shape = shape_of(value)
        for item in flat(value):
            if isinstance(item, bytes):
                try:
                    item = item.decode()
                except UnicodeDecodeError:
                    continue
            if isinstance(item, str):
                self.names.add(item)
            elif isinstance(item, int) and self.last < item < MAX_CLASSES:
                self.last = int(item)
            self.whole = self.whole and isinstance(item, int)


def row_target(file: str, columns: Sequence[Column], wanted: Wanted) -> RowTarget:
    """Return the target of a name; SourceError if there is no such column, its kind is ambiguous, or it does not fit the kind."""
    column = find_column(columns, wanted)
    if column is None:
        there = ", ".join(map(str, columns[:20])) or "none"
        raise SourceError(f"{file!r} has no column {wanted.name!r}: it has {there}")
    kind = wanted.kind or _inferred_kind(column, columns)
    if kind is None and column.kind == LIST:
        ways = " or ".join(f"--target {column.name}:{each}" for each in ("multilabel", "value", "points"))
        raise SourceError(f"column {column.name!r} of {file!r} holds lists: pass {ways}")
    if kind is None or column.kind not in _COLUMN_KINDS[kind]:
        expected = ", ".join(_COLUMN_KINDS[kind or "value"])
        raise SourceError(
            f"column {column.name!r} of {file!r} holds {column.kind}: a {kind or 'target'} is made of {expected}"
        )
    return RowTarget(wanted.name, column, kind)


def _inferred_kind(column: Column, columns: Sequence[Column]) -> str | None:
    if column in mask_columns(columns):
        return "mask"
    return "multilabel" if column.kind == LIST and column.class_names else _INFERRED.get(column.kind)


def boxes_found(targets: Sequence[RowTarget], files: Sequence[Sequence[ValuesSeen]], features: Features) -> list[str]:
    """Return notes about the boxes that were found and dropped."""
    notes: list[str] = []
    for target, seen in zip(targets, zip(*files, strict=True), strict=True):
        feature = features[target.name]
        if isinstance(feature, Boxes):
            used, empty = sum(each.boxes for each in seen), sum(each.empty for each in seen)
            notes += boxes_notes(feature, used, empty, f"column {target.column.name}")
            if crowds := sum(each.crowds for each in seen):
                notes.append(f"dropped {plural_boxes(crowds)} of crowds in column {target.column.name}")
        elif isinstance(feature, Mask) and feature.names:
            notes.append(f"masks in column {target.column.name} have the classes {' and '.join(feature.names)}")
    return notes


def join_features(targets: Sequence[RowTarget], files: Iterable[Sequence[ValuesSeen]]) -> dict[str, AnyFeature]:
    """Return the feature of each target, by what the files of a source have."""
    by_target = zip(*files, strict=True)
    return {target.name: _feature(target, list(seen)) for target, seen in zip(targets, by_target, strict=True)}


def _feature(target: RowTarget, seen: Sequence[ValuesSeen]) -> AnyFeature:
    names = set[str]().union(*(each.names for each in seen))
    numbers = tuple(map(str, range(max(each.last for each in seen) + 1)))
    found = tuple(sorted(names, key=sort_key(names))) if names else numbers
    declared = _BOOLEANS if target.column.kind == BOOLEAN else target.column.class_names
    match target.kind:
        case "class":
            return ClassLabel(declared or found)
        case "multilabel":
            return MultiLabel(declared or found or ("none",))
        case "value":
            shape = next((each.shape for each in seen if each.shape is not None), ())
            whole = target.column.kind != FLOAT and all(each.whole for each in seen)
            return Value("int64" if whole else "float32", shape)
        case "mask":
            where = f"column {target.column.name}"
            sample = [mask_bytes(value) for each in seen for value in each.sample]
            feature, _ = mask_feature([data for data in sample if data is not None], where)
            return Mask(declared) if declared else feature
        case "boxes":
            return Boxes(declared or found or (ONLY_CLASS,))
        case "points":
            return Points(number_of_points([value for each in seen for value in each.sample]))
        case _:
            return Text()


def mask_bytes(value: Any) -> bytes | None:
    """Return the encoded mask in a cell; None without one."""
    data = value.get("bytes") if isinstance(value, dict) else value
    return data if isinstance(data, bytes) else None


def encode_row(features: Features, values: Mapping[str, Any]) -> tuple[Target, ...]:
    """Return the targets of a record from its cells; ValueError if one is missing or malformed."""
    targets = []
    for name, feature in features.items():
        value = values.get(name)
        if value is None:
            raise ValueError(f"its {name!r} is empty")
        if isinstance(feature, Value) and isinstance(value, list) and len(value) == 1 and not feature.shape:
            [value] = value
        try:
            target = encode_target(feature, value)
            feature.check(target)
        except UnicodeDecodeError:
            raise ValueError(f"its {name!r} is not UTF-8 text") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its {name!r} {error}") from None
        targets.append(target)
    return tuple(targets)
