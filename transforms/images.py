"""The type of images passed between ops, and conversions from and to Pillow's."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.uint8]
"""An image, ``[H, W, C]`` uint8."""
Pixels = Array | Image.Image
"""An image as users have it."""
Fill = int | tuple[int, int, int]
"""A level, or (red, green, blue)."""


def as_array(image: Pixels) -> Array:
    """Return the image as uint8 ``[H, W, C]``. A Pillow image is copied, an array is not."""
    if isinstance(image, Image.Image):
        array: Array = np.asarray(image)
        return array if array.ndim == 3 else array[:, :, None]
    return image


def encode_png(image: Array) -> bytes:
    """Encode an image or mask as PNG."""
    stream = io.BytesIO()
    as_image(np.ascontiguousarray(image)).save(stream, "PNG")
    return stream.getvalue()


def as_image(image: Pixels) -> Image.Image:
    """Return the image as a Pillow image: RGB, or L for one channel."""
    if isinstance(image, Image.Image):
        return image
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
