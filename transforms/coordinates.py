"""Coordinates of boxes and points: how they move with the pixels, in float32, with the results of torchvision v2's `tv_tensors`.

Boxes are float32 ``[n, 4]`` (left, top, right, bottom), points float32 ``[n, 3]`` (x, y, visibility), in pixels from the top left
corner of the image. The functions accept both, and one amount for all rows or an array with one per row. Every step is one rounded
float32 operation, so the results are the same on every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Coordinates = NDArray[np.float32]
"""Boxes ``[n, 4]`` or points ``[n, 3]``."""
Matrix = tuple[float, float, float, float, float, float]
"""The first two rows of the matrix of an affine map of (x, y, 1)."""


def shifted(coordinates: Coordinates, right: ArrayLike, down: ArrayLike) -> Coordinates:
    """Move by pixels."""
    moved = coordinates.copy()
    xs, ys = _axes(moved)
    xs += _column(right)
    ys += _column(down)
    return moved


def scaled(coordinates: Coordinates, size: tuple[ArrayLike, ArrayLike], new_size: tuple[int, int]) -> Coordinates:
    """Resize an image of `size` (height, width) to `new_size`."""
    moved = coordinates.copy()
    for axis, old, new in zip(reversed(_axes(moved)), size, new_size, strict=True):
        axis *= _column(np.divide(new, old))
    return moved


def mirrored(coordinates: Coordinates, size: tuple[int, int], across: ArrayLike, down: ArrayLike) -> Coordinates:
    """Mirror left to right where `across` is true, top to bottom where `down` is.

    A point at x goes to W - 1 - x, the side of a box to W - x, as in torchvision.
    """
    moved = coordinates.copy()
    is_boxes = coordinates.shape[1] == 4
    for axis, length, mirrors in zip(_axes(moved), reversed(size), (across, down), strict=True):
        flipped = np.float32(length if is_boxes else length - 1) - axis[:, ::-1]
        np.copyto(axis, flipped, where=np.asarray(mirrors, bool)[..., None])
    return moved


def mapped(coordinates: Coordinates, matrix: Matrix) -> Coordinates:
    """Apply an affine map. A box becomes the smallest upright box around its four corners."""
    xx, xy, right, yx, yy, down = (np.float32(part) + np.float32(0) for part in matrix)  # no -0.0
    moved = coordinates.copy()
    if coordinates.shape[1] == 3:
        x, y = coordinates[:, 0], coordinates[:, 1]
        moved[:, 0], moved[:, 1] = x * xx + y * xy + right, x * yx + y * yy + down
        return moved
    x, y = coordinates[:, [0, 2, 2, 0]], coordinates[:, [1, 1, 3, 3]]
    for axis, corners in zip(_axes(moved), (x * xx + y * xy + right, x * yx + y * yy + down), strict=True):
        axis[:, 0], axis[:, 1] = corners.min(axis=1), corners.max(axis=1)
    return moved


def clamped(boxes: Coordinates, height: ArrayLike, width: ArrayLike) -> Coordinates:
    """Clip boxes to an image."""
    moved = np.maximum(boxes, np.float32(0))
    xs, ys = _axes(moved)
    np.minimum(xs, _column(width), out=xs)
    np.minimum(ys, _column(height), out=ys)
    return moved


def at_least_a_pixel(boxes: Coordinates) -> NDArray[np.bool_]:
    """Return which boxes are at least one pixel high and wide, bool ``[n]``."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return (sides[:, 0] >= 1) & (sides[:, 1] >= 1)


def inside(points: Coordinates, height: int, width: int) -> NDArray[np.bool_]:
    """Return which points lie in an image, bool ``[n]``."""
    x, y = points[:, 0], points[:, 1]
    return (x >= 0) & (x < width) & (y >= 0) & (y < height)


def inverse(matrix: Matrix) -> Matrix:
    """Return the matrix of the inverse map."""
    xx, xy, right, yx, yy, down = matrix
    area = xx * yy - xy * yx
    a, b, c, d = yy / area, -xy / area, -yx / area, xx / area
    return a, b, -a * right - b * down, c, d, -c * right - d * down


def _axes(coordinates: Coordinates) -> tuple[Coordinates, Coordinates]:
    """Return views of the x and of the y coordinates, ``[n, 2]`` of boxes and ``[n, 1]`` of points."""
    stop = 4 if coordinates.shape[1] == 4 else 2
    return coordinates[:, 0:stop:2], coordinates[:, 1:stop:2]


def _column(amount: ArrayLike) -> Coordinates:
    return np.asarray(amount, np.float32)[..., None]
