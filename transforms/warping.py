"""Affine maps of images: nearest neighbours in fixed point, as Pillow computes them, and bilinear interpolation by Pillow itself."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from joulecache.transforms import kernels
from joulecache.transforms.coordinates import Matrix
from joulecache.transforms.images import Array, Fill, as_array, as_image

Places = NDArray[np.float32]
"""Columns or rows of pixels, whole numbers ``[H, W]``."""

_MAX_PLACE = 32_767
_RESAMPLING = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}


def warp(image: Array, matrix: Matrix, interpolation: str, fill: Fill) -> Array:
    """Apply an affine map from result to input coordinates, keep the size, and fill the area outside the input.

    Args:
        image: uint8 ``[H, W, C]``.
        matrix: The map.
        interpolation: "nearest" or "bilinear".
        fill: A level, or (red, green, blue).
    """
    xx, xy, right, yx, yy, down = matrix
    if (xx, xy, yx, yy) == (1, 0, 0, 1) and right == int(right) and down == int(down):
        return _moved(image, -int(right), -int(down), fill)
    places = _places(matrix, *image.shape[:2]) if interpolation == "nearest" else None
    if places is not None:
        return kernels.fetch(image, *places, fill)
    source = as_image(kernels.straight(image))
    if source.mode == "RGB" and not isinstance(fill, tuple):
        fill = fill, fill, fill  # Pillow reads a single number as the red level
    return as_array(
        source.transform(source.size, Image.Transform.AFFINE, matrix, _RESAMPLING[interpolation], fillcolor=fill)
    )


def _moved(image: Array, right: int, down: int, fill: Fill) -> Array:
    """Move the image by whole pixels."""
    height, width, _ = image.shape
    result = np.empty(image.shape, np.uint8)
    result[:] = fill
    if abs(right) < width and abs(down) < height:
        moved = image[max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
        kernels.put(result[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)], moved)
    return result


def _places(matrix: Matrix, height: int, width: int) -> tuple[Places, Places] | None:
    """Return the columns and rows of the pixels that are nearest to the centers of the result's; None if they need over 16 bits."""
    xx, xy, x, yx, yy, y = matrix
    corners = [
        place
        for column in (0, width)
        for row in (0, height)
        for place in (xx * column + xy * row + x, yx * column + yy * row + y)
    ]
    if max(height, width, *map(abs, corners)) >= _MAX_PLACE:
        return None
    x, y = x + xx * 0.5 + xy * 0.5, y + yx * 0.5 + yy * 0.5
    if xy == yx == 0:
        columns, rows = np.broadcast_arrays(_sums(x, xx, width), _sums(y, yy, height)[:, None])
        return np.ascontiguousarray(columns), np.ascontiguousarray(rows)
    return _plane(x, xx, xy, height, width), _plane(y, yx, yy, height, width)


def _sums(first: float, step: float, count: int) -> Places:
    """Return `first`, `first` + `step` and so on, added up like Pillow, rounded down."""
    terms = np.full(count, step)
    terms[0] = first
    return np.floor(np.add.accumulate(terms)).astype(np.float32)


def _plane(first: float, across: float, down: float, height: int, width: int) -> Places:
    """Return first + across * column + down * row in units of 1/65536, rounded down."""
    start, right, below = (math.floor(number * 65536 + 0.5) for number in (first, across, down))
    row, column = np.arange(width) * right + start, np.arange(height)[:, None] * below
    plane = row.astype(np.int32) + column.astype(np.int32)  # one may overflow, but not the sum of both
    plane >>= 16
    return plane.astype(np.float32)
