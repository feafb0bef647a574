"""An image on its way through kernels: a uint8 array ``[H, W, C]`` or a Pillow image, whichever the last kernel left."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.uint8]
Pixels = Array | Image.Image


def as_array(image: Pixels) -> Array:
    """Return the image as uint8 ``[H, W, C]``; a Pillow image is copied."""
    if isinstance(image, Image.Image):
        array: Array = np.asarray(image)
        return array if array.ndim == 3 else array[:, :, None]
    return image


def as_image(image: Pixels) -> Image.Image:
    """Return the image as a Pillow image (RGB, or L for one channel)."""
    if isinstance(image, Image.Image):
        return image
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def size_of(image: Pixels) -> tuple[int, int]:
    """Return (height, width)."""
    return image.size[::-1] if isinstance(image, Image.Image) else image.shape[:2]


def look_up(table: Array, image: Pixels) -> Array:
    """Return a new image with every level replaced by its entry in a table of 256, or of ``[C, 256]``, one per channel."""
    array = as_array(image)
    if table.ndim == 1:
        return table.take(array, mode="clip")  # three times as fast as table[array]
    looked_up = np.empty_like(array, order="C")
    for channel, levels in enumerate(table):
        looked_up[:, :, channel] = levels.take(array[:, :, channel], mode="clip")
    return looked_up


def put(place: Array, image: Array) -> None:
    """Copy an image ``[H, W, C]`` to its place in a batch."""
    if image.strides[1] < 0:  # mirrored: NumPy copies single channels 3 to 4 times faster than reversed pixels
        for channel in range(image.shape[2]):
            place[:, :, channel] = image[:, :, channel]
    else:
        place[...] = image
