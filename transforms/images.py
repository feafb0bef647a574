"""The types of images passed between ops, and the Pillow and NumPy kernels that ops share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from joulecache.transforms import resizing

Array = NDArray[np.uint8]
"""An image, ``[H, W, C]`` uint8."""
Pixels = Array | Image.Image
"""An image between two ops, in the form that the last op returned: this avoids conversions back and forth."""
Fill = int | tuple[int, int, int]
"""A level, or (red, green, blue)."""
Matrix = tuple[float, float, float, float, float, float]
"""The first two rows of the matrix that maps (x, y, 1) in the result to (x, y) in the input."""

LEVELS = np.arange(256, dtype=np.int64)

_RESAMPLING = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}


def as_array(image: Pixels) -> Array:
    """Return the image as uint8 ``[H, W, C]``. A Pillow image is copied, an array is not."""
    if isinstance(image, Image.Image):
        array: Array = np.asarray(image)
        return array if array.ndim == 3 else array[:, :, None]
    return image


def as_image(image: Pixels) -> Image.Image:
    """Return the image as a Pillow image: RGB, or L for one channel."""
    if isinstance(image, Image.Image):
        return image
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def size_of(image: Pixels) -> tuple[int, int]:
    """Return (height, width)."""
    return image.size[::-1] if isinstance(image, Image.Image) else image.shape[:2]


def put(slot: Array, image: Array) -> None:
    """Copy an image ``[H, W, C]`` into its slot of a batch."""
    if image.strides[1] < 0:  # mirrored: NumPy copies single channels 3 to 4 times faster than reversed pixels
        for channel in range(image.shape[2]):
            slot[:, :, channel] = image[:, :, channel]
    else:
        slot[...] = image


def crop(image: Pixels, top: int, left: int, height: int, width: int) -> Pixels:
    """Cut a window out of the image; for an array, return a view."""
    if isinstance(image, Image.Image):
        return image.crop((left, top, left + width, top + height))
    return image[top : top + height, left : left + width]


def resize(image: Pixels, height: int, width: int) -> Array:
    """Resize with a triangle filter: bilinear with antialias."""
    return resizing.resize(as_array(image), height, width)


def warp(image: Pixels, matrix: Matrix, interpolation: str, fill: Fill) -> Image.Image:
    """Apply an affine map from result to input coordinates, keep the size, and fill the area outside the input."""
    source = as_image(image)
    if source.mode == "RGB" and not isinstance(fill, tuple):
        fill = fill, fill, fill  # Pillow reads a single number as the red level
    return source.transform(source.size, Image.Transform.AFFINE, matrix, _RESAMPLING[interpolation], fillcolor=fill)


def look_up(table: Array, image: Pixels) -> Array:
    """Return a new image with every level replaced by its entry in a table: ``[256]``, or ``[C, 256]``, one per channel."""
    array = as_array(image)
    if table.ndim == 1:
        return table.take(array, mode="clip")  # three times as fast as table[array]
    result = np.empty_like(array, order="C")
    for channel, levels in enumerate(table):
        result[:, :, channel] = levels.take(array[:, :, channel], mode="clip")
    return result


def histograms(image: Pixels) -> NDArray[np.int64]:
    """Count the levels of each channel, ``[C, 256]``."""
    return np.array(as_image(image).histogram(), np.int64).reshape(-1, 256)


def clipped(levels: NDArray[Any]) -> Array:
    """Return levels as uint8, clipped to 0..255. Overwrites its argument."""
    result: Array = np.clip(levels, 0, 255, out=levels).astype(np.uint8)
    return result


def blend(other: Array, image: Array, factor: int) -> Array:
    """Return factor * image + (1 - factor) * other, rounded down and clipped; `factor` in units of 1/65536."""
    mixed = other.astype(np.int32)
    difference = image - mixed  # int32: factor * difference exceeds 32 bits only for factors above 128
    difference *= factor
    difference >>= 16
    mixed += difference
    return clipped(mixed)
