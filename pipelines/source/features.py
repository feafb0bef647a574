"""Features: the types of targets, which are what a model learns from an image.

A source gives each record one *target* per feature, in the order of the source's features. Between the source and the shards a target is
one plain Python value, which compares, hashes and pickles fast: the number of a class; a scalar; a text; or the little-endian bytes of an
array. A feature checks its targets and turns many of them into one Arrow column, and a column back into targets or a NumPy array.

A record whose only target is a class has it in a column ``label``. Any other target is a column with the target's name, in the shards
and in the index.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa

from joulecache.pipelines.core.checks import shown
from joulecache.pipelines.source.feature import MOST_ELEMENTS, Feature, Named, Target, checked_names
from joulecache.pipelines.source.spatial import Boxes, Mask, Points

__all__ = [
    "LABEL",
    "AnyFeature",
    "Boxes",
    "ClassLabel",
    "Features",
    "Mask",
    "MultiLabel",
    "Points",
    "TargetTable",
    "Text",
    "Value",
    "check_labelled",
    "check_names",
    "is_labelled",
]

LABEL = "label"
"""The name of a class that is the only target."""

_RESERVED = (
    *("image", "key", "key_hash", "pad"),
    *("split", "source_bytes", "mtime_ns", "digest", "shard", "row"),
)


@dataclass(frozen=True)
class ClassLabel(Named):
    """One class of each image; int64 ``[B]``.

    Attributes:
        names: Names of the classes.
        kind: ``class``.

    Raises:
        ValueError: A name is not a text.
    """

    names: tuple[str, ...]
    kind: Literal["class"] = field(default="class", kw_only=True, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", checked_names(self.names))

    @property
    def dtype(self) -> str:
        """NumPy's name of the stored type."""
        return "int64"

    def check(self, target: Target) -> None:
        """Raise ValueError unless a target is the number of a class."""
        if not isinstance(target, int) or not 0 <= target < len(self.names):
            raise ValueError(f"label {target!r} is not one of the {len(self.names)} classes")


@dataclass(frozen=True)
class MultiLabel(Named):
    """Any number of classes of each image; uint8 ``[K]`` of 0 and 1, loaded as float32 ``[B, K]``.

    Attributes:
        names: Names of the K classes.
        kind: ``multilabel``.

    Raises:
        ValueError: There are no names, or one is not a text.
    """

    names: tuple[str, ...]
    kind: Literal["multilabel"] = field(default="multilabel", kw_only=True, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", checked_names(self.names))
        if not 1 <= len(self.names) <= MOST_ELEMENTS:
            raise ValueError(f"names must have 1 to {MOST_ELEMENTS:,} classes, got {len(self.names):,}")

    @property
    def dtype(self) -> str:
        """NumPy's name of the stored type."""
        return "uint8"

    @property
    def shape(self) -> tuple[int, ...]:
        """(K,)."""
        return (len(self.names),)

    @property
    def loaded_dtype(self) -> str:
        """NumPy's name of the type that `load` yields."""
        return "float32"

    def check(self, target: Target) -> None:
        """Raise ValueError unless a target has a 0 or 1 for each class."""
        if not isinstance(target, bytes) or len(target) != len(self.names) or target.strip(b"\0\1"):
            raise ValueError(f"its labels must have a 0 or 1 for each of the {len(self.names)} classes")

    def encode(self, labels: Iterable[int]) -> bytes:
        """Return the target with these classes, given by number."""
        target = bytearray(len(self.names))
        for label in labels:
            target[label] = 1
        return bytes(target)


@dataclass(frozen=True)
class Value(Feature):
    """One or more numbers of each image, such as an age, an embedding or a weight; ``[B, *shape]``.

    Attributes:
        dtype: ``float32`` or ``int64``.
        shape: Shape of the numbers of one image; () for one number.
        kind: ``value``.

    Raises:
        ValueError: The dtype is another one, or a side of the shape is not positive.
    """

    dtype: Literal["float32", "int64"] = "float32"
    shape: tuple[int, ...] = ()
    kind: Literal["value"] = field(default="value", kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "int64"):
            raise ValueError(f"dtype must be float32 or int64, got {self.dtype!r}")
        object.__setattr__(self, "shape", tuple(self.shape))
        if any(type(side) is not int or side < 1 for side in self.shape) or math.prod(self.shape) > MOST_ELEMENTS:
            raise ValueError(f"shape must have positive sides, at most {MOST_ELEMENTS:,} numbers, got {self.shape}")

    def check(self, target: Target) -> None:
        """Raise ValueError unless a target has finite numbers of this dtype and shape."""
        if not self.shape:
            if isinstance(target, str | bytes) or not math.isfinite(target):
                raise ValueError(f"its value must be a finite number, got {shown(target)}")
            return
        count = math.prod(self.shape)
        if not isinstance(target, bytes) or len(target) != count * np.dtype(self.dtype).itemsize:
            raise ValueError(f"its value must have {count} numbers")
        if not np.isfinite(np.frombuffer(target, self.dtype)).all():
            raise ValueError("its value must have finite numbers")

    def encode(self, numbers: Sequence[float | int]) -> Target:
        """Return numbers as a target; ValueError unless they fit the dtype and shape and are finite."""
        if len(numbers) != math.prod(self.shape):
            raise ValueError(f"must have {math.prod(self.shape)} numbers, got {len(numbers)}")
        try:
            with np.errstate(over="ignore"):
                array = np.array(numbers, np.float64 if self.dtype == "float32" else np.int64).astype(self.dtype)
        except (OverflowError, TypeError) as error:
            raise ValueError(f"must have numbers of type {self.dtype}: {error}") from None
        if not np.isfinite(array).all():
            raise ValueError(f"must have finite numbers of type {self.dtype}")
        return array.tobytes() if self.shape else array[0].item()


@dataclass(frozen=True)
class Text(Feature):
    """A text for each image; string ``[B]``, UTF-8.

    Attributes:
        kind: ``text``.
    """

    kind: Literal["text"] = field(default="text", kw_only=True, repr=False)

    @property
    def dtype(self) -> str:
        """``str``."""
        return "str"

    def check(self, target: Target) -> None:
        """Raise ValueError unless a target is a text that UTF-8 can encode."""
        if not isinstance(target, str):
            raise ValueError(f"its text must be a string, got {shown(target)}")
        try:
            target.encode()
        except UnicodeEncodeError:
            raise ValueError("its text is not valid Unicode") from None


AnyFeature: TypeAlias = ClassLabel | MultiLabel | Value | Text | Mask | Boxes | Points
"""The features, as the manifest has them."""

Features: TypeAlias = Mapping[str, AnyFeature]
"""Features by the name of their targets."""


@dataclass(frozen=True)
class TargetTable:
    """The targets of the images of a source.

    Attributes:
        features: The feature of each target, by name.
        columns: For each feature, the target of each image; None for an image that is no record.
        files: In place of a column, for each target in files: their places, a row for each image, with the columns of `FILE_COLUMNS`
            and ``mtime_ns``.
    """

    features: Features
    columns: Mapping[str, Sequence[Target | None]]
    files: Mapping[str, pa.Table] = field(default_factory=dict)


def spatial_features(features: Features) -> dict[str, Mask | Boxes | Points]:
    """Return the features whose targets move with the pixels."""
    return {name: feature for name, feature in features.items() if isinstance(feature, Mask | Boxes | Points)}


def is_labelled(features: Features) -> bool:
    """Return whether the only target is a class, which is stored as ``label``."""
    return [*features] == [LABEL] and isinstance(features[LABEL], ClassLabel)


def check_labelled(features: Features, what: str, where: str) -> None:
    """Raise ValueError unless the only target is a class.

    Args:
        features: The features of a source or cache.
        what: What needs it, as the subject of a sentence in the singular.
        where: The source or cache.
    """
    if not is_labelled(features):
        raise ValueError(
            f"{what} needs one class for each image, but {where!r} has {describe_features(features)}: choose a class with "
            "--target NAME:class"
        )


def describe_features(features: Features) -> str:
    """Return the names and kinds of features: ``age (value), tags (multilabel)``."""
    return ", ".join(f"{name} ({feature.kind})" for name, feature in features.items()) or "no targets"


def check_names(features: Iterable[str]) -> None:
    """Raise ValueError if a target has the name of a column that each cache has, or none."""
    for name in features:
        if not name or not name.isprintable() or name in _RESERVED:
            raise ValueError(
                f"a target cannot be called {name!r}: rename its column; {', '.join(_RESERVED)} are columns of each cache"
            )


def check_columns(features: Features) -> None:
    """Raise ValueError if a column of a target has the name of one that each cache has, or of another target."""
    columns = [column for name, feature in features.items() for column in feature.columns(name)]
    check_names(columns)
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice!r} is both a target and a column of another one: rename a target")
