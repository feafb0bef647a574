"""Records in Beam pipelines: as people write and read them, and as `WriteCache` groups them into shards. Imports no Beam."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.building.rows import Reject
from joulecache.pipelines.cache.names import SPLITS
from joulecache.pipelines.core.checks import shown
from joulecache.pipelines.source import records as source_records
from joulecache.pipelines.source.feature import Target
from joulecache.pipelines.source.features import AnyFeature, ClassLabel, Features, MultiLabel, Value
from joulecache.pipelines.source.naming import NOT_UTF8, is_utf8, printable
from joulecache.pipelines.source.spatial import Boxes, Mask, Points
from joulecache.pipelines.source.targets import encode_target
from joulecache.transforms.randomness import key_hash
from joulecache.transforms.targets import BoxesTarget

TargetValue: TypeAlias = str | int | float | bytes | tuple[str, ...] | np.generic | NDArray[Any] | Mapping[str, Any]
"""A target: the name of a class, several names, a number or an array, a text; a mask, boxes or points."""


@dataclass(frozen=True)
class Place:
    """Where a source has a record, by which `WriteCache` puts it into the shard and row that `precompute` would choose.

    Attributes:
        unit: Name of the part of the source that is read as a whole: an image's key, or a Parquet row group.
        position: Position of the record in the source.
        mtime_ns: When its file was last written.
    """

    unit: str
    position: int
    mtime_ns: int


@dataclass(frozen=True)
class Record:
    """One image with its key and targets: an element of a Beam PCollection.

    Attributes:
        key: Stable name, unique in the cache. It decides between train and val, and what random ops draw.
        image: The encoded image, such as a JPEG; an image of a cache as uint8 ``[H, W, C]``. None if it cannot be read.
        targets: Its targets by name. Classes are names, or numbers from 0; boxes are a dict of ``boxes`` and ``classes``.
        split: ``train``, ``val`` or ``test``; None to let the hash of the key decide between train and val.
        place: Where `ReadRecords` found it; None for any other record, whose key decides its shard and row.
        problem: Why it cannot be used; `WriteCache` rejects it with this reason.
    """

    key: str
    image: bytes | NDArray[np.uint8] | None
    targets: Mapping[str, TargetValue] = field(default_factory=dict)
    split: str | None = None
    place: Place | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, repr=False)
class RecordUnit:
    """A `Unit` of one record in memory.

    Attributes:
        record: The record, checked.
        split: The split that it names.
        position: Its position in its source; -1 without a source.
    """

    record: source_records.Record
    split: str | None
    position: int

    def __repr__(self) -> str:  # part of a spec's digest
        digest = hashlib.sha256(self.record.data).hexdigest()
        return f"RecordUnit({self.record.key!r}, {self.record.targets!r}, {self.split!r}, {digest})"

    @property
    def content(self) -> tuple[object, ...]:
        """What the cache would have of it."""
        return self.record.data, self.record.targets, self.split

    @property
    def name(self) -> str:
        """The record's key."""
        return self.record.key

    @property
    def count(self) -> int:
        """One."""
        return 1

    @property
    def mtime_ns(self) -> int:
        """When its file was last written; 0 without a file."""
        return self.record.mtime_ns

    @property
    def size_bytes(self) -> int:
        """Encoded size."""
        return len(self.record.data)

    @property
    def targets(self) -> None:
        """None: a record that was sent is read."""
        return

    def record_keys(self) -> Iterator[str]:
        """Yield the record's key."""
        yield self.record.key

    def read(self) -> Iterator[source_records.Record]:
        """Yield the record."""
        yield self.record


# To a cache -----------------------------------------------------------------------------------------------------------


def checked(element: Record | Mapping[str, Any], features: Features, shards: int) -> tuple[int, RecordUnit | Reject]:
    """Return a record as its shard builds it, or why it is rejected, after the number of the shard.

    Args:
        element: The record, or a dict of ``key``, ``image``, targets by their names, and perhaps ``split``.
        features: The features of the targets. Other targets are ignored.
        shards: Number of shards.

    Raises:
        TypeError: The element is neither.
    """
    record = element if isinstance(element, Record) else _from_dict(element)
    unit = _unit(record, features)
    by = record.place.unit if record.place else unit.key if isinstance(unit, Reject) else unit.name
    return key_hash(by) * shards >> 64, unit


def _from_dict(element: object) -> Record:
    if not isinstance(element, Mapping):
        raise TypeError(f"WriteCache expects jc.Record or dicts with key and image, got {shown(element)}")
    targets = {name: value for name, value in element.items() if name not in ("key", "image", "split")}
    return Record(element.get("key", ""), element.get("image"), targets, element.get("split"))


def _unit(record: Record, features: Features) -> RecordUnit | Reject:
    mtime_ns = record.place.mtime_ns if record.place else 0
    if problem := _key_problem(record.key):
        return Reject(_stand_in(record), problem)
    if not isinstance(record.image, bytes):
        got = "it has no image" if record.image is None else f"its image must be encoded bytes, got {_kind(record)}"
        return Reject(record.key, record.problem or got)
    try:
        if record.problem:
            raise ValueError(record.problem)
        if record.split is not None and record.split not in SPLITS:
            raise ValueError(f"its split must be {', '.join(SPLITS)} or None, got {shown(record.split)}")
        targets = tuple(_target(name, feature, record.targets) for name, feature in features.items())
    except ValueError as error:
        return Reject(record.key, str(error), len(record.image), mtime_ns)
    sent = source_records.Record(record.key, targets, record.image, mtime_ns)
    return RecordUnit(sent, record.split, record.place.position if record.place else -1)


def _key_problem(key: object) -> str | None:
    if key is None or key == "":
        return "it has no key"
    if not isinstance(key, str):
        return f"its key must be a text, got {shown(key)}"
    return None if is_utf8(key) else NOT_UTF8


def _stand_in(record: Record) -> str:
    """Return what stands for an unusable key in the list of rejected records."""
    key: object = record.key
    if key:
        return printable(key) if isinstance(key, str) else shown(key)
    data = record.image if isinstance(record.image, bytes) else b""
    return f"(no key: image {hashlib.sha256(data).hexdigest()[:16]})"


def _kind(record: Record) -> str:
    return "decoded pixels" if isinstance(record.image, np.ndarray) else shown(record.image)


def _target(name: str, feature: AnyFeature, values: Mapping[str, TargetValue]) -> Target:
    value = values.get(name)
    if value is None:
        raise ValueError(f"it has no {name!r}")
    try:
        target = _encoded(feature, value)
        feature.check(target)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"its {name!r}: {error}") from None
    return target


def _encoded(feature: AnyFeature, value: TargetValue) -> Target:
    match feature:
        case Mask():
            return value  # type: ignore[return-value]  # checked by the feature
        case Boxes():
            if not isinstance(value, Mapping) or {*value} != {"boxes", "classes"}:
                raise ValueError(f"must be a dict of boxes and classes, got {shown(value)}")
            classes = [encode_target(ClassLabel(feature.names), _plain(each)) for each in value["classes"]]
            return feature.encode(value["boxes"], [int(number) for number in classes])
        case Points():
            return feature.encode(np.asarray(value, np.float32))
        case _:
            return encode_target(feature, _plain(value))


def _plain(value: Any) -> Any:
    """Return NumPy's values and tuples as Python's numbers and lists."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return list(value) if isinstance(value, tuple | set) else value


# From a source or a cache ---------------------------------------------------------------------------------------------


def readable(feature: AnyFeature, target: Target) -> TargetValue:
    """Return a target of a source as `Record` has it; ValueError if it is malformed."""
    feature.check(target)
    match feature:
        case ClassLabel(names) if isinstance(target, int):
            return names[target]
        case MultiLabel(names) if isinstance(target, bytes):
            return tuple(name for name, present in zip(names, target, strict=True) if present)
        case Value(dtype, shape) if isinstance(target, bytes):
            return np.frombuffer(target, dtype).reshape(shape)
        case Boxes():
            return readable_boxes(feature, feature.decode(target))
        case Points():
            return feature.decode(target).points
        case _:
            return target


def readable_boxes(feature: Boxes, found: BoxesTarget) -> dict[str, Any]:
    """Return boxes as `Record` has them: ``boxes``, float32 ``[n, 4]``, and the names of their ``classes``."""
    return {"boxes": found.boxes, "classes": tuple(feature.names[number] for number in found.classes.tolist())}
