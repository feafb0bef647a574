"""The pixels that count: every op in Pillow and NumPy, on one image.

An image on its way is a uint8 array ``[H, W, C]`` or a Pillow image; each kernel takes either, and a chain ends in an array. Kernels
that only move pixels return views, so that a chain of crops and flips costs one copy, wherever its result is put.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from joulecache.transforms.ops import (
    Brightness,
    CentralCrop,
    Contrast,
    Decode,
    FlipLr,
    Op,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    ResizeShorter,
)
from joulecache.transforms.randomness import batch_parameters, parameters

Pixels = NDArray[np.uint8] | Image.Image

GREY_WEIGHTS = (19589, 38470, 7471)  # 0.2989, 0.587 and 0.114 in units of 1/65536

# What Pillow may open. It guesses from content, whatever a file is called, and would hand PostScript to Ghostscript.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "JPEG2000", "PPM", "TIFF", "TGA")

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DecodeError(ValueError):
    """An image that cannot be decoded; the message says why."""


def apply(ops: Sequence[Op], image: bytes | Pixels, words: Sequence[int]) -> NDArray[np.uint8]:
    """Run the ops on one image with its random words (see `random_words`); ``[H, W, C]`` uint8, possibly a view.

    `image` is encoded bytes when the first op is decode. Raises DecodeError, or ValueError for an image that an op cannot take.
    """
    return as_array(run(ops, image, words))


def run(ops: Sequence[Op], image: bytes | Pixels, words: Sequence[int]) -> Pixels:
    """Run the ops as `apply` does, and leave the image as its last kernel left it."""
    taken = 0
    for op in ops:
        if isinstance(op, Decode):
            assert isinstance(image, bytes)
            image = decode(op, image)
            continue
        assert not isinstance(image, bytes)
        height, width = _size_of(image)
        drawn = parameters(op, words[taken : taken + op.words], height, width)
        taken += op.words
        image = _KERNELS[type(op)](op, image, drawn)
    assert not isinstance(image, bytes)
    return image


def apply_batch(ops: Sequence[Op], images: Sequence[Pixels], words: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    """Run ops on images of one size as `apply` does on each, with less to do between the kernels; no decode.

    `words` is their `word_table`, int64 ``[B, W]``.
    """
    taken = 0
    for op in ops:
        drawn = batch_parameters(op, words[:, taken : taken + op.words], *_size_of(images[0]))
        kernel = _KERNELS[type(op)]
        images = [kernel(op, image, numbers) for image, numbers in zip(images, drawn, strict=True)]
        taken += op.words
    return [as_array(image) for image in images]


def decode(op: Decode, data: bytes) -> Image.Image:
    """Decode one encoded image to RGB or grey; DecodeError with the reason when that fails."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
            width, height = opened.size
            if height * width > op.max_pixels:
                raise DecodeError(f"{height}x{width} is more than max_pixels={op.max_pixels}")
            mode = "RGB" if op.channels == 3 else "L"
            # Only JPEG heeds it: its scale, and for grey the luma as it is stored, without a way through colours.
            opened.draft(mode, None if op.shorter is None else (op.shorter, op.shorter))
            with _tolerance(op.truncated):
                opened.load()
            turn = _UPRIGHT.get(opened.getexif().get(_EXIF_ORIENTATION, 1))
            image = _converted(opened, mode)
            return image if turn is None else image.transpose(turn)
    except DecodeError:
        raise
    except UnidentifiedImageError as error:  # its own message holds an address in memory, different in every run
        raise DecodeError(f"not an image in one of the formats {', '.join(_FORMATS)}") from error
    except Exception as error:  # Pillow's decoders raise anything at all on hostile bytes
        raise DecodeError(f"{type(error).__name__}: {error}".splitlines()[0]) from error


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
        # 16-bit grey: the high byte, where Pillow's own conversion clips all but the darkest levels to white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DecodeError("levels of 32 bits have no agreed range: save it with 8 or 16 bits")
    image.info.pop("transparency", None)  # dropped anyway; Pillow would warn that it drops it
    return image if image.mode == mode else image.convert(mode)


class _Tolerance:
    """Pillow's switch for truncated files. It is global: decodes that want it alike run at once, the others take turns."""

    def __init__(self) -> None:
        self._door = (
            threading.Lock()
        )  # who waits for a turn bars it, or a steady stream of the others would never let them in
        self._turn = threading.Condition()
        self._inside = 0
        self._before = False

    @contextmanager
    def __call__(self, truncated: bool) -> Iterator[None]:
        with self._door, self._turn:
            self._turn.wait_for(lambda: not self._inside or truncated == ImageFile.LOAD_TRUNCATED_IMAGES)
            if not self._inside:
                self._before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, truncated
            self._inside += 1
        try:
            yield
        finally:
            with self._turn:
                self._inside -= 1
                if not self._inside:
                    ImageFile.LOAD_TRUNCATED_IMAGES = self._before
                    self._turn.notify_all()


_tolerance = _Tolerance()


def as_array(image: Pixels) -> NDArray[np.uint8]:
    """Return the image as uint8 ``[H, W, C]``; a Pillow image is copied."""
    if isinstance(image, Image.Image):
        array: NDArray[np.uint8] = np.asarray(image)
        return array if array.ndim == 3 else array[:, :, None]
    return image


def as_image(image: Pixels) -> Image.Image:
    """Return the image as a Pillow image (RGB, or L for one channel)."""
    if isinstance(image, Image.Image):
        return image
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _size_of(image: Pixels) -> tuple[int, int]:
    return image.size[::-1] if isinstance(image, Image.Image) else image.shape[:2]


def _resize(op: Resize | ResizeShorter, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    height, width = op.output_size(*_size_of(image))
    return as_image(image).resize((width, height), Image.Resampling.BILINEAR)


def _window(image: Pixels, top: int, left: int, height: int, width: int) -> Pixels:
    if isinstance(image, Image.Image):
        return image.crop((left, top, left + width, top + height))
    return image[top : top + height, left : left + width]


def _central_crop(op: CentralCrop, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    return _window(image, *op.corner(*_size_of(image)), *op.target)


def _random_crop(op: RandomCrop, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    return _window(image, drawn[0], drawn[1], *op.target)


def _random_resized_crop(op: RandomResizedCrop, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    # Cut first: Pillow's resize(box=) would blend in pixels from beside the window.
    height, width = op.target
    return as_image(_window(image, *drawn)).resize((width, height), Image.Resampling.BILINEAR)


def _flip_lr(op: FlipLr, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    return as_array(image)[:, ::-1] if drawn[0] else image


def _brightness(op: Brightness, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    levels = np.arange(256, dtype=np.int64) * drawn[0] >> 16
    return _look_up(levels, image)


def _contrast(op: Contrast, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    array = as_array(image)
    pixels, grey_sum = array.shape[0] * array.shape[1], grey_total(array)
    blended = np.arange(256, dtype=np.int64) * (drawn[0] * pixels) + (65536 - drawn[0]) * grey_sum
    return _look_up(blended // (65536 * pixels), array)


def grey_total(image: NDArray[np.uint8]) -> int:
    """Return the sum of the grey levels of an image ``[H, W, C]``, each rounded down."""
    if image.shape[2] == 1:
        return int(image.sum(dtype=np.int64))
    red, green, blue = (image[:, :, c].astype(np.int32) * GREY_WEIGHTS[c] for c in range(3))
    return int((red + green + blue >> 16).sum(dtype=np.int64))


def _look_up(levels: NDArray[np.int64], image: Pixels) -> NDArray[np.uint8]:
    table: NDArray[np.uint8] = np.clip(levels, 0, 255).astype(np.uint8)
    return table[as_array(image)]


_KERNELS: dict[type[Op], Callable[[Any, Pixels, tuple[int, ...]], Pixels]] = {
    Resize: _resize,
    ResizeShorter: _resize,
    CentralCrop: _central_crop,
    RandomCrop: _random_crop,
    RandomResizedCrop: _random_resized_crop,
    FlipLr: _flip_lr,
    Brightness: _brightness,
    Contrast: _contrast,
}
