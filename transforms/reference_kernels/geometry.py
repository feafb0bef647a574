"""Kernels that move pixels or leave some out. Those that only move return views, which cost nothing until they are copied."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from joulecache.transforms.ops import (
    Affine,
    CentralCrop,
    Cutout,
    Fill,
    FlipLr,
    FlipUd,
    Pad,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    ResizeShorter,
    Rotate,
)
from joulecache.transforms.randomness import UNIT
from joulecache.transforms.reference_kernels.images import Array, Pixels, as_array, as_image, size_of

_RESAMPLING = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}

Matrix = tuple[float, float, float, float, float, float]


def resize(op: Resize | ResizeShorter, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    """Resize to the op's output size."""
    height, width = op.output_size(*size_of(image))
    return as_image(image).resize((width, height), Image.Resampling.BILINEAR)


def _window(image: Pixels, top: int, left: int, height: int, width: int) -> Pixels:
    if isinstance(image, Image.Image):
        return image.crop((left, top, left + width, top + height))
    return image[top : top + height, left : left + width]


def central_crop(op: CentralCrop, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    """Cut out the central window."""
    return _window(image, *op.corner(*size_of(image)), *op.target)


def random_crop(op: RandomCrop, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    """Cut out the window at (top, left)."""
    return _window(image, drawn[0], drawn[1], *op.target)


def random_resized_crop(op: RandomResizedCrop, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    """Cut out the window (top, left, height, width) and resize it."""
    # Cut first: Pillow's resize(box=) would blend in pixels from beside the window.
    height, width = op.target
    return as_image(_window(image, *drawn)).resize((width, height), Image.Resampling.BILINEAR)


def pad(op: Pad, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    """Add the border."""
    array = as_array(image)
    height, width, channels = array.shape
    left, top, right, bottom = op.sides
    if op.padding_mode != "constant":
        op.output_size(height, width)  # NumPy would mirror more than there is, again and again
        border = ((top, bottom), (left, right), (0, 0))
        return np.pad(array, border, mode=op.padding_mode)  # type: ignore[call-overload, no-any-return]
    padded = np.empty((top + height + bottom, left + width + right, channels), np.uint8)
    padded[:top], padded[top + height :] = op.fill, op.fill
    padded[top : top + height, :left], padded[top : top + height, left + width :] = op.fill, op.fill
    padded[top : top + height, left : left + width] = array
    return padded


def flip_lr(op: FlipLr, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    """Mirror left to right."""
    return as_array(image)[:, ::-1] if drawn[0] else image


def flip_ud(op: FlipUd, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    """Mirror top to bottom."""
    return as_array(image)[::-1] if drawn[0] else image


def cutout(op: Cutout, image: Pixels, drawn: tuple[int, ...]) -> Array:
    """Fill the window at (top, left), as much of it as lies on the image."""
    assert isinstance(op.size, tuple)
    top, left = drawn
    cut = as_array(image).copy()
    cut[max(top, 0) : top + op.size[0], max(left, 0) : left + op.size[1]] = op.fill
    return cut


def rotate(op: Rotate, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    """Rotate counter-clockwise."""
    matrix = affine_matrix(_center(op, image), -drawn[0] / UNIT, (0, 0), 1.0, (0.0, 0.0))
    return warp(image, matrix, op.interpolation, op.fill)


def affine(op: Affine, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    """Rotate clockwise, move, scale and shear."""
    degrees, right, down, scale, along_x, along_y = drawn
    shear = along_x / UNIT, along_y / UNIT
    matrix = affine_matrix(_center(op, image), degrees / UNIT, (right, down), scale / UNIT, shear)
    return warp(image, matrix, op.interpolation, op.fill)


def _center(op: Rotate | Affine, image: Pixels) -> tuple[float, float]:
    height, width = size_of(image)
    return op.center or (width * 0.5, height * 0.5)


def affine_matrix(
    center: tuple[float, float],
    degrees: float,
    translate: tuple[int, int],
    scale: float,
    shear: tuple[float, float],
) -> Matrix:
    """Return the matrix from places in the result to places in the image, as Pillow wants it.

    The inverse of T C R(degrees, clockwise) Sy Sx scale C^-1, with C the move to the center, T the translation and Sx, Sy the shears:
    the composition of torchvision's `affine`.
    """
    turn, shear_x, shear_y = math.radians(degrees), math.radians(shear[0]), math.radians(shear[1])
    leaning = math.cos(turn - shear_y) / math.cos(shear_y)
    rising = math.sin(turn - shear_y) / math.cos(shear_y)
    a, b = leaning, -leaning * math.tan(shear_x) - math.sin(turn)
    c, d = rising, -rising * math.tan(shear_x) + math.cos(turn)
    # Rounded, since the last digits of sines and tangents differ between machines; Pillow rounds its own matrices here.
    xx, xy, yx, yy = (round(part / scale, 15) for part in (d, -b, -c, a))
    from_x, from_y = center[0] + translate[0], center[1] + translate[1]
    return xx, xy, center[0] - xx * from_x - xy * from_y, yx, yy, center[1] - yx * from_x - yy * from_y


def warp(image: Pixels, matrix: Matrix, interpolation: str, fill: Fill) -> Image.Image:
    """Fetch every pixel of a result of the same size from where the matrix says; what lies outside is `fill`."""
    picture = as_image(image)
    if picture.mode == "RGB" and not isinstance(fill, tuple):
        fill = fill, fill, fill  # one number would be red alone
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, _RESAMPLING[interpolation], fillcolor=fill)
