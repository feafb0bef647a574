"""Targets of records in Parquet and TFRecord files: what their columns hold, and how a cell becomes a target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from joulecache.pipelines.source.classes import sort_key
from joulecache.pipelines.source.columns import BOOLEAN, BYTES, FLOAT, INTEGER, LIST, TEXT, Column
from joulecache.pipelines.source.config import Wanted
from joulecache.pipelines.source.feature import Target
from joulecache.pipelines.source.features import AnyFeature, ClassLabel, Features, MultiLabel, Text, Value
from joulecache.pipelines.source.records import MAX_CLASSES, SourceError
from joulecache.pipelines.source.targets import encode_target, flat, shape_of

_COLUMN_KINDS: Mapping[str, tuple[str, ...]] = {
    "class": (INTEGER, TEXT, BYTES, BOOLEAN),
    "multilabel": (LIST, INTEGER, TEXT, BYTES),
    "value": (FLOAT, INTEGER, BOOLEAN, LIST),
    "text": (TEXT, BYTES),
}
_INFERRED = {INTEGER: "class", TEXT: "class", BYTES: "class", BOOLEAN: "class", FLOAT: "value"}
_BOOLEANS = ("False", "True")


@dataclass(frozen=True)
class RowTarget:
    """A target to read.

    Attributes:
        column: Its column.
        kind: One of `KINDS`.
    """

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
    """

    names: set[str] = field(default_factory=set)
    last: int = -1
    shape: tuple[int, ...] | None = None
    whole: bool = True

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
    column = next((each for each in columns if each.name == wanted.name), None)
    if column is None:
        there = ", ".join(map(str, columns[:20])) or "none"
        raise SourceError(f"{file!r} has no column {wanted.name!r}: it has {there}")
    kind = wanted.kind or ("multilabel" if column.kind == LIST and column.class_names else _INFERRED.get(column.kind))
    if kind is None and column.kind == LIST:
        raise SourceError(
            f"column {column.name!r} of {file!r} holds lists: pass --target {column.name}:multilabel or --target {column.name}:value"
        )
    if kind is None or column.kind not in _COLUMN_KINDS[kind]:
        expected = ", ".join(_COLUMN_KINDS[kind or "value"])
        raise SourceError(
            f"column {column.name!r} of {file!r} holds {column.kind}: a {kind or 'target'} is made of {expected}"
        )
    return RowTarget(column, kind)


def join_features(targets: Sequence[RowTarget], files: Iterable[Sequence[ValuesSeen]]) -> dict[str, AnyFeature]:
    """Return the feature of each target, by what the files of a source have."""
    by_target = zip(*files, strict=True)
    return {target.column.name: _feature(target, list(seen)) for target, seen in zip(targets, by_target, strict=True)}


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
        case _:
            return Text()


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
