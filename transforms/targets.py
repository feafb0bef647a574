"""Targets that move with the pixels of an image: masks, boxes and points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from joulecache.transforms.images import Array


@dataclass(frozen=True, slots=True, eq=False)
class MaskTarget:
    """A class of each pixel.

    Attributes:
        ids: Numbers of classes, uint8 ``[H, W, 1]``, of the image's height and width.
    """

    ids: Array


@dataclass(frozen=True, slots=True, eq=False)
class BoxesTarget:
    """Boxes with a class each.

    Attributes:
        boxes: Left, top, right and bottom in pixels, float32 ``[n, 4]``.
        classes: Numbers of their classes, int64 ``[n]``.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class PointsTarget:
    """A fixed number of points.

    Attributes:
        points: x, y and visibility of each, float32 ``[n, 3]``: 0 for a point that is not in the image, else as the source says.
    """

    points: NDArray[np.float32]


SpatialTarget: TypeAlias = MaskTarget | BoxesTarget | PointsTarget
"""A target that moves with the pixels."""
