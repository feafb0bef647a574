"""Affine maps of images: nearest neighbours in fixed point, as Pillow computes them, and bilinear interpolation by Pillow itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from joulecache.transforms import kernels
from joulecache.transforms.coordinates import Matrix
from joulecache.transforms.images import Array, Fill, as_array, as_image

_MAX_PLACE = 32_767
_STRIP = 16_000  # pixels at a time
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
        return _fetched(image, *places, fill)
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


def _fetched(image: Array, columns: _Places, rows: _Places, fill: Fill) -> Array:
    """Return the pixels of an image at these places, a strip at a time, so that the places stay in the CPU's cache."""
    source, result = np.ascontiguousarray(kernels.straight(image)), np.empty(image.shape, np.uint8)
    height, width, _ = image.shape
    count = max(1, _STRIP // width)
    for first in range(0, height, count):
        strip = slice(first, first + count)
        result[strip] = kernels.fetch(source, columns.of(strip), rows.of(strip), fill)
    return result


@dataclass(frozen=True, slots=True)
class _Places:
    """The column, or the row, of the input's pixel that is nearest to the center of each of the result's: a sum of two numbers.

    Attributes:
        across: What depends on the column of the result, in units of 1/65536, int32 ``[W]``.
        down: What depends on its row, int32 ``[H, 1]``.
    """

    across: NDArray[np.int32]
    down: NDArray[np.int32]

    def of(self, strip: slice) -> NDArray[np.float32]:
        """Return the places for rows of the result, whole numbers."""
        places = self.across + self.down[strip]  # one may overflow, but not the sum of both
        places >>= 16
        return places.astype(np.float32)


def _places(matrix: Matrix, height: int, width: int) -> tuple[_Places, _Places] | None:
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
        none_across, none_down = np.zeros(width, np.int32), np.zeros((height, 1), np.int32)
        return _Places(_sums(x, xx, width), none_down), _Places(none_across, _sums(y, yy, height)[:, None])
    return _plane(x, xx, xy, height, width), _plane(y, yx, yy, height, width)


def _sums(first: float, step: float, count: int) -> NDArray[np.int32]:
    """Return `first`, `first` + `step` and so on, added up like Pillow, rounded down, in units of 1/65536."""
    terms = np.full(count, step)
    terms[0] = first
    return np.floor(np.add.accumulate(terms)).astype(np.int32) << 16


def _plane(first: float, across: float, down: float, height: int, width: int) -> _Places:
    """Return first + across * column + down * row."""
    start, right, below = (math.floor(number * 65536 + 0.5) for number in (first, across, down))
    columns, rows = np.arange(width) * right + start, np.arange(height)[:, None] * below
    return _Places(columns.astype(np.int32), rows.astype(np.int32))
