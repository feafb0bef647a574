"""Targets of a split by row, as `load` yields them. Imports no TensorFlow."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from joulecache.pipelines.cache.cache import Cache
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.core.quantities import listed
from joulecache.pipelines.source.features import AnyFeature, ClassLabel, Features, MultiLabel, Text, Value
from joulecache.pipelines.source.spatial import SpatialFeature


class TensorSpec(NamedTuple):
    """A tensor of a target.

    Attributes:
        dtype: NumPy's name of its type, or ``str``.
        shape: Its shape for one image.
        losses: Number of axes over which Keras' losses have one value each, besides those of the batch: 2 for the pixels of a mask.
    """

    dtype: str
    shape: tuple[int, ...]
    losses: int = 0


class Column(Protocol):
    """The targets of one feature."""

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The loaded tensors."""

    def pack(self, tensors: Sequence[Any]) -> Any:
        """Return `tensors` in the structure that `load` yields."""


@dataclass(frozen=True)
class TargetColumn:
    """The targets of one feature.

    Attributes:
        name: Name of the target.
        feature: Its type.
        column: The targets of all rows.
        soft: Whether classes are loaded as shares, float32 ``[B, K]``, because the training chain mixes images.
    """

    name: str
    feature: AnyFeature
    column: pa.Array
    soft: bool

    @property
    def dtype(self) -> str:
        """NumPy's name of the loaded type, or ``str``."""
        return "float32" if self.soft else self.feature.loaded_dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one loaded target."""
        if self.soft and isinstance(self.feature, ClassLabel):
            return (len(self.feature.names),)
        return self.feature.shape

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The loaded tensor."""
        return (TensorSpec(self.dtype, self.shape),)

    def pack(self, tensors: Sequence[Any]) -> Any:
        """Return the tensor, as `load` yields it."""
        return tensors[0]

    @cached_property
    def array(self) -> NDArray[Any]:
        """All targets as stored, memory-mapped."""
        return self.feature.array(self.column)

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the targets of some rows, not mixed."""
        if isinstance(self.feature, Text):
            return np.array(self.column.take(pa.array(rows)).to_pylist(), object)
        found = self.array[rows]
        if isinstance(self.feature, MultiLabel):
            return found.astype(np.float32)
        if not self.soft:
            return found
        shares = np.zeros((len(rows), *self.shape), np.float32)
        shares[np.arange(len(rows)), found] = 1
        return shares


@dataclass(frozen=True)
class Selection:
    """Which targets `load` yields.

    Attributes:
        targets: Their names.
        sample_weight: The target that weights each image; None without.
    """

    targets: tuple[str, ...]
    sample_weight: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All names, the weight last."""
        return self.targets if self.sample_weight is None else (*self.targets, self.sample_weight)

    def arrange(self, images: Any, targets: Sequence[Any], weights: Any = None) -> Any:
        """Return images, the targets of `targets` and the weights in the structure that `load` yields."""
        if not targets:
            return images
        target = self.structure(targets)
        return (images, target) if self.sample_weight is None else (images, target, weights)

    def structure(self, targets: Sequence[Any]) -> Any:
        """Return one target as it is, several in a dict by name."""
        return targets[0] if len(targets) == 1 else dict(zip(self.targets, targets, strict=True))


def packed(columns: Sequence[Column], tensors: Sequence[Any]) -> list[Any]:
    """Return the tensors of all columns, one after the other, as one structure per column."""
    left = iter(tensors)
    return [column.pack([*itertools.islice(left, len(column.tensors))]) for column in columns]


def select(features: Features, targets: Sequence[str] | None, sample_weight: str | None) -> Selection:
    """Return which targets to load.

    Args:
        features: The features of the cache.
        targets: Names of targets. Default: all but `sample_weight`.
        sample_weight: Name of a `Value` of one number.

    Raises:
        ValueError: There is no such target, or it cannot be a weight.
    """
    if sample_weight is not None:
        weight = _find("sample_weight", features, sample_weight)
        if not isinstance(weight, Value) or weight.shape:
            raise ValueError(f"sample_weight must name a value of one number, but {sample_weight!r} is a {weight.kind}")
    chosen = tuple(name for name in features if name != sample_weight) if targets is None else tuple(targets)
    for name in chosen:
        _find("targets", features, name)
    if len({*chosen}) < len(chosen) or (sample_weight is not None and not chosen):
        raise ValueError(f"targets must name different targets, and at least one with sample_weight, got {chosen}")
    return Selection(chosen, sample_weight)


def _find(argument: str, features: Features, name: str) -> AnyFeature:
    try:
        return features[name]
    except KeyError:
        there = listed(list(map(repr, features))) if features else "which has none"
        raise ValueError(f"{argument} must name targets of the cache, {there}, got {name!r}") from None


def open_targets(cache: Cache, split: str, selection: Selection, *, soft: bool) -> dict[str, TargetColumn]:
    """Open the targets of a split that do not move with the pixels, by name.

    Args:
        cache: The cache.
        split: The split.
        selection: Which targets.
        soft: Whether the training chain mixes images.

    Raises:
        CacheError: The index is damaged.
        ValueError: The training chain mixes images, but a target cannot be mixed.
    """
    rows = cache.rows(split)
    columns = {}
    for name in selection.names:
        feature = cache.manifest.features[name]
        if soft and not isinstance(feature, ClassLabel | MultiLabel):
            raise ValueError(
                f"mixup and cutmix mix classes and multi-labels, but not the {feature.kind} {name!r}: leave it out with targets="
            )
        if isinstance(feature, Text):
            try:
                rows[name].validate(full=True)  # offsets outside the file would crash the interpreter
            except pa.ArrowException as error:
                raise CacheError(f"the index of {cache.location!r} is damaged: {error}") from error
        if not isinstance(feature, SpatialFeature):
            columns[name] = TargetColumn(name, feature, rows[name], soft)
    return columns
