"""Summaries of targets that move with the pixels."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.cache.data_file import TargetSummary
from joulecache.pipelines.cache.spatial_columns import BoxRows, PointRows
from joulecache.pipelines.source.features import AnyFeature
from joulecache.pipelines.source.spatial import VOID, Boxes, Mask, Points

Histogram: TypeAlias = NDArray[np.int64]
"""Number of pixels of each id, int64 ``[256]``."""


def total(feature: AnyFeature, summaries: Iterable[TargetSummary]) -> TargetSummary:
    """Return the summary of all targets of a feature, given those of its files."""
    return functools.reduce(operator.add, summaries, _without_images(feature))


def _without_images(feature: AnyFeature) -> TargetSummary:
    match feature:
        case Mask(names):
            return TargetSummary((0,) * len(names), empty=0)
        case Boxes(names):
            return TargetSummary((0,) * len(names), empty=0, most=0)
        case Points(n):
            return TargetSummary((0,) * n, empty=0)
        case _:
            return TargetSummary()


def summary_of_masks(feature: Mask, pixels: Histogram, empty: int) -> TargetSummary:
    """Return the summary of masks, of which `empty` have only 0 and 255. Without names, the counts end with the highest id."""
    classes = len(feature.names) or 1 + int(np.flatnonzero(pixels[:VOID]).max(initial=-1))
    return TargetSummary(tuple(pixels[:classes].tolist()), empty=empty)


def is_empty(pixels: Histogram) -> bool:
    """Return whether a mask has only 0 and 255."""
    return not pixels[1:VOID].any()


def summary_of_boxes(feature: Boxes, rows: BoxRows) -> TargetSummary:
    """Return the summary of boxes."""
    counts = np.bincount(rows.classes, minlength=len(feature.names))
    empty = int(np.count_nonzero(rows.counts == 0))
    return TargetSummary(tuple(counts.tolist()), empty=empty, most=int(rows.counts.max(initial=0)))


def summary_of_points(points: PointRows) -> TargetSummary:
    """Return the summary of points: those with a visibility are there."""
    there = points[:, :, 2] > 0
    found = points[there, :2]
    low, high = (float(found.min()), float(found.max())) if len(found) else (None, None)
    empty = int(np.count_nonzero(~there.any(axis=1)))
    return TargetSummary(tuple(there.sum(axis=0).tolist()), low, high, empty)
