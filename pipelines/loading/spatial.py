"""Targets of a split that move with the pixels, by row: masks, boxes and points. Imports no TensorFlow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.cache.cache import Cache
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.mapped_images import MappedImages
from joulecache.pipelines.cache.spatial_columns import BoxRows, PointRows
from joulecache.pipelines.loading.decoding import DecodingThreads
from joulecache.pipelines.loading.targets import TensorSpec
from joulecache.pipelines.source.features import spatial_features
from joulecache.pipelines.source.spatial import Boxes, Mask, SpatialFeature
from joulecache.transforms.kernels import put
from joulecache.transforms.ops.batch import Empty
from joulecache.transforms.ops.decode import decode_ids
from joulecache.transforms.targets import BoxesTarget, MaskTarget, PointsTarget, SpatialTarget

PADDING = -1
"""The coordinates and the class of the boxes that pad an image to the largest number of boxes in its split."""

Size = tuple[int, int]
"""(height, width)."""


@dataclass(frozen=True, eq=False)
class SpatialColumn(ABC):
    """The targets of one feature.

    Attributes:
        name: Name of the target.
        feature: Its type.
    """

    name: str
    feature: SpatialFeature

    @property
    @abstractmethod
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The loaded tensors."""

    def pack(self, tensors: Sequence[Any]) -> Any:
        """Return `tensors` in the structure that `load` yields."""
        return tensors[0]

    @abstractmethod
    def targets(self, rows: NDArray[np.int64], variant: int) -> Sequence[SpatialTarget]:
        """Return the targets of some rows of a variant, before the ops after the cut."""

    @abstractmethod
    def stacked(self, targets: Sequence[SpatialTarget], empty: Empty) -> tuple[NDArray[Any], ...]:
        """Return the targets of a batch as `tensors`, in arrays from `empty`."""

    @abstractmethod
    def take(self, rows: NDArray[np.int64], variant: int, empty: Empty) -> tuple[NDArray[Any], ...]:
        """Return `stacked` of `targets`, where no op comes between."""


@dataclass(frozen=True, eq=False)
class MaskColumn(SpatialColumn):
    """Masks.

    Attributes:
        variants: The masks of each variant.
        cached: Size of the cached images.
        loaded: Size of the images after all ops.
        threads: Decode masks from PNG; None for raw masks.
    """

    variants: Sequence[MappedImages]
    cached: Size
    loaded: Size
    threads: DecodingThreads | None

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The ids of the pixels."""
        return (TensorSpec("uint8", (*self.loaded, 1), losses=2),)

    def targets(self, rows: NDArray[np.int64], variant: int) -> Sequence[SpatialTarget]:
        """Return cached masks."""
        masks: list[Any] = self.variants[variant].views(rows)
        if self.threads is not None:
            masks = self.threads.decode(decode_ids, masks)
            for mask in masks:
                if mask.shape != (*self.cached, 1):
                    raise CacheError(
                        f"a mask {self.name!r} has shape {mask.shape}, its image {self.cached}: rebuild the cache"
                    )
        return [MaskTarget(mask) for mask in masks]

    def stacked(self, targets: Sequence[SpatialTarget], empty: Empty) -> tuple[NDArray[Any], ...]:
        """Return masks as `tensors`."""
        batch = empty((len(targets), *self.loaded, 1), np.uint8)
        for place, target in zip(batch, cast("Sequence[MaskTarget]", targets), strict=True):
            put(place, target.ids)
        return (batch,)

    def take(self, rows: NDArray[np.int64], variant: int, empty: Empty) -> tuple[NDArray[Any], ...]:
        """Return cached masks as `tensors`."""
        if self.threads is not None or not len(rows):
            return self.stacked(self.targets(rows, variant), empty)
        batch = empty((len(rows), *self.loaded, 1), np.uint8)
        self.variants[variant].take(rows, batch)
        return (batch,)


@dataclass(frozen=True, eq=False)
class BoxesColumn(SpatialColumn):
    """Boxes.

    Attributes:
        variants: The boxes of each variant.
        most: Number of boxes of each image after padding.
    """

    variants: Sequence[BoxRows]
    most: int

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The boxes, and their classes."""
        return TensorSpec("float32", (self.most, 4), losses=1), TensorSpec("int64", (self.most,), losses=1)

    def pack(self, tensors: Sequence[Any]) -> Any:
        """Return the dict that KerasHub's detectors expect."""
        return dict(zip(("boxes", "classes"), tensors, strict=True))

    def targets(self, rows: NDArray[np.int64], variant: int) -> Sequence[SpatialTarget]:
        """Return cached boxes."""
        boxes = self.variants[variant]
        return [boxes[row] for row in rows.tolist()]

    def stacked(self, targets: Sequence[SpatialTarget], empty: Empty) -> tuple[NDArray[Any], ...]:
        """Return boxes as `tensors`."""
        return self._padded(BoxRows.of(cast("Sequence[BoxesTarget]", targets)), empty)

    def take(self, rows: NDArray[np.int64], variant: int, empty: Empty) -> tuple[NDArray[Any], ...]:
        """Return cached boxes as `tensors`."""
        return self._padded(self.variants[variant].take(rows), empty)

    def _padded(self, images: BoxRows, empty: Empty) -> tuple[NDArray[Any], ...]:
        boxes, classes = empty((len(images), self.most, 4), np.float32), empty((len(images), self.most), np.int64)
        boxes.fill(PADDING)
        classes.fill(PADDING)
        filled = np.arange(self.most) < images.counts[:, None]
        boxes[filled], classes[filled] = images.boxes, images.classes
        return boxes, classes


@dataclass(frozen=True, eq=False)
class PointsColumn(SpatialColumn):
    """Points.

    Attributes:
        variants: The points of each variant.
    """

    variants: Sequence[PointRows]

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The points."""
        return (TensorSpec("float32", self.feature.shape, losses=1),)

    def targets(self, rows: NDArray[np.int64], variant: int) -> Sequence[SpatialTarget]:
        """Return cached points."""
        return [PointsTarget(points) for points in self.variants[variant][rows]]

    def stacked(self, targets: Sequence[SpatialTarget], empty: Empty) -> tuple[NDArray[Any], ...]:
        """Return points as `tensors`."""
        batch = empty((len(targets), *self.feature.shape), np.float32)
        for place, target in zip(batch, cast("Sequence[PointsTarget]", targets), strict=True):
            place[:] = target.points
        return (batch,)

    def take(self, rows: NDArray[np.int64], variant: int, empty: Empty) -> tuple[NDArray[Any], ...]:
        """Return cached points as `tensors`."""
        batch = empty((len(rows), *self.feature.shape), np.float32)
        batch[:] = self.variants[variant][rows]
        return (batch,)


def open_spatial(
    cache: Cache, split: str, names: Sequence[str], loaded: Size, threads: DecodingThreads | None
) -> dict[str, SpatialColumn]:
    """Open the targets of a split that move with the pixels.

    Args:
        cache: The cache.
        split: The split.
        names: Names of targets, also of others.
        loaded: Size of the images after all ops.
        threads: Decode encoded images; None for raw ones.

    Raises:
        CacheError: A file is missing or damaged.
    """
    entry = cache.split(split)
    chosen = {name: each for name, each in spatial_features(cache.manifest.features).items() if name in names}
    variants = [cache.targets(split, variant, [*chosen]) for variant in range(entry.variants)] if chosen else []
    columns: dict[str, SpatialColumn] = {}
    for name, feature in chosen.items():
        stored: list[Any] = [variant[name] for variant in variants]
        if isinstance(feature, Mask):
            height, width, _ = entry.image_shape
            assert height is not None
            assert width is not None
            columns[name] = MaskColumn(name, feature, stored, (height, width), loaded, threads)
        elif isinstance(feature, Boxes):
            most = (entry.targets or {})[name].most or 0
            # Keras' losses of no boxes at all are not a number
            columns[name] = BoxesColumn(name, feature, stored, max(most, 1))
        else:
            columns[name] = PointsColumn(name, feature, stored)
    return columns
