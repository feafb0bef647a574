"""Collect the targets of one variant that move with the pixels while a shard is built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.building.shard_memory import Encoded, ShardMemory, close_gaps
from joulecache.pipelines.cache.data_file import TargetSummary
from joulecache.pipelines.cache.spatial_columns import BoxRows, StoredColumn
from joulecache.pipelines.cache.target_summaries import (
    is_empty,
    summary_of_boxes,
    summary_of_masks,
    summary_of_points,
)
from joulecache.pipelines.source.spatial import Boxes, Mask, Points, SpatialFeature
from joulecache.transforms.images import encode_png
from joulecache.transforms.kernels import histogram
from joulecache.transforms.ops.decode import decode_ids
from joulecache.transforms.targets import BoxesTarget, MaskTarget, PointsTarget, SpatialTarget

CachedTarget: TypeAlias = SpatialTarget | bytes
"""A target in a cache: bytes for an encoded mask."""


class TargetRows(ABC):
    """The targets of one feature, each in the slot of its record. Rejected records leave gaps."""

    @abstractmethod
    def put(self, slot: int, target: CachedTarget) -> None:
        """Fill a slot, once."""

    @abstractmethod
    def column(self, slots: Sequence[int]) -> tuple[StoredColumn, TargetSummary]:
        """Return the targets of all filled slots, and their summary."""


def target_rows(feature: SpatialFeature, count: int, size: tuple[int, int] | None, memory: ShardMemory) -> TargetRows:
    """Return an object that collects the targets of `count` records; `size` is that of raw masks, None to encode them."""
    match feature:
        case Mask():
            return _MaskRows(feature, count, size, memory)
        case Boxes():
            return _BoxRows(feature, count)
        case Points():
            return _PointRows(feature, count)
    raise TypeError(f"cannot store {feature}")


class _MaskRows(TargetRows):
    def __init__(self, feature: Mask, count: int, size: tuple[int, int] | None, memory: ShardMemory) -> None:
        self._feature, self._memory = feature, memory
        self._raw = None if size is None else memory.array(count, *size, 1)
        self._encoded: list[Encoded] = [b""] * (count if size is None else 0)
        self._pixels, self._empty = np.zeros(256, np.int64), 0

    def put(self, slot: int, target: CachedTarget) -> None:
        ids = decode_ids(target) if isinstance(target, bytes) else _ids(target)
        if self._raw is not None:
            self._raw[slot] = ids
        else:
            self._encoded[slot] = self._memory.keep(target if isinstance(target, bytes) else encode_png(ids))
        pixels = histogram(np.ascontiguousarray(ids[:, :, 0]))
        self._pixels += pixels
        self._empty += is_empty(pixels)

    def column(self, slots: Sequence[int]) -> tuple[StoredColumn, TargetSummary]:
        summary = summary_of_masks(self._feature, self._pixels, self._empty)
        if self._raw is None:
            return self._memory.column([self._encoded[slot] for slot in slots]), summary
        self._raw = close_gaps(self._raw, slots)
        return self._raw, summary


def _ids(target: CachedTarget) -> NDArray[np.uint8]:
    assert isinstance(target, MaskTarget)
    return target.ids


class _BoxRows(TargetRows):
    def __init__(self, feature: Boxes, count: int) -> None:
        self._feature = feature
        self._boxes: list[BoxesTarget | None] = [None] * count

    def put(self, slot: int, target: CachedTarget) -> None:
        assert isinstance(target, BoxesTarget)
        self._boxes[slot] = target

    def column(self, slots: Sequence[int]) -> tuple[StoredColumn, TargetSummary]:
        found = BoxRows.of([boxes for boxes in map(self._boxes.__getitem__, slots) if boxes is not None])
        return found, summary_of_boxes(self._feature, found)


class _PointRows(TargetRows):
    def __init__(self, feature: Points, count: int) -> None:
        self._points = np.empty((count, *feature.shape), np.float32)

    def put(self, slot: int, target: CachedTarget) -> None:
        assert isinstance(target, PointsTarget)
        self._points[slot] = target.points

    def column(self, slots: Sequence[int]) -> tuple[StoredColumn, TargetSummary]:
        found = self._points[list(slots)]
        return found, summary_of_points(found)
