"""Decode encoded images, or say why a file is rejected: JPEGs with libjpeg-turbo, everything else with Pillow."""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from joulecache.transforms.coordinates import Coordinates, scaled
from joulecache.transforms.images import Array, Fill, Pixels, as_array
from joulecache.transforms.jpeg import Jpeg, read_jpeg
from joulecache.transforms.libtiff import collected_errors
from joulecache.transforms.metadata import without_metadata
from joulecache.transforms.ops.arguments import MAX_SIDE, fill_value, integer
from joulecache.transforms.ops.base import Drawn, Op
from joulecache.transforms.resizing import resize_mask

MAX_PIXELS = 178_956_970  # twice `PIL.Image.MAX_IMAGE_PIXELS`: Pillow refuses larger images

# The formats that Pillow may open. It detects the format from the content, and would pass PostScript to Ghostscript.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "JPEG2000", "PPM", "TIFF", "TGA")

EXIF_ORIENTATION = 0x0112
TRANSPOSED = (5, 6, 7, 8)
"""The EXIF orientations that swap height and width."""
_ALL, _BACK = slice(None), slice(None, None, -1)
_MIRRORED: dict[int, tuple[slice, slice]] = {
    2: (_ALL, _BACK),
    3: (_BACK, _BACK),
    4: (_BACK, _ALL),
    6: (_ALL, _BACK),
    7: (_BACK, _BACK),
    8: (_BACK, _ALL),
}
"""How to mirror stored pixels, after transposing them for some orientations, to turn them upright."""


class DecodeError(ValueError):
    """An image cannot be decoded; the message says why, in one line."""


@dataclass(frozen=True, slots=True)
class Header:
    """An encoded image whose header was read.

    Attributes:
        height: Height at the scale at which it is decoded, before it is turned upright, in pixels.
        width: Width at this scale, in pixels.
        stored: (height, width) at full scale, before it is turned upright, in pixels.
        opened: What decodes it.
        data: The encoded image.
    """

    height: int
    width: int
    stored: tuple[int, int]
    opened: Jpeg | Image.Image
    data: bytes


@dataclass(frozen=True)
class Decode(Op):
    """Decode an encoded image and rotate it upright as EXIF says.

    Bytes to ``[H, W, channels]`` uint8. Always the first op of a chain. An animation is decoded to its first frame, 16-bit
    levels to their high byte.

    Attributes:
        channels: 3 (RGB), 1 (grey) or 4 (RGB and alpha, 255 where an image has none).
        shorter: Decode a JPEG at the smallest DCT scale (1, 1/2, 1/4, 1/8) whose shorter side, before rounding up, has at least
            this many pixels. Other formats are not scaled.
        truncated: Accept truncated files.
        max_pixels: Reject larger images, before they are decompressed.
        background: Colour to put behind transparent pixels: a level, or (red, green, blue). None drops the alpha
            channel and keeps the colours, as torchvision and TensorFlow do.
    """

    channels: int = 3
    shorter: int | None = None
    truncated: bool = False
    max_pixels: int = 178_000_000
    background: Fill | None = None

    def __post_init__(self) -> None:
        if type(self.channels) is not int or self.channels not in (1, 3, 4):
            raise ValueError(f"decode: channels must be 1, 3 or 4, got {self.channels!r}")
        if self.shorter is not None:
            integer(self, "shorter", self.shorter, 1, MAX_SIDE)
        if not isinstance(self.truncated, bool):
            raise ValueError(f"decode: truncated must be True or False, got {self.truncated!r}")
        integer(self, "max_pixels", self.max_pixels, 1, MAX_PIXELS)
        if self.background is not None:
            fill_value(self, "background", self.background)
            if self.channels == 4:
                raise ValueError(
                    "decode: background replaces the alpha channel that channels=4 keeps: drop one of them"
                )

    def output_channels(self, channels: int) -> int:
        """Return the op's `channels`, regardless of the image."""
        return self.channels

    def jpeg_scale(self, height: int, width: int) -> int:
        """Return the denominator of the DCT scale for a JPEG of this size: 1, 2, 4 or 8."""
        if self.shorter is None:
            return 1
        fitting = min(height, width) // self.shorter
        return next(scale for scale in (8, 4, 2, 1) if scale <= max(fitting, 1))

    def read_header(self, data: bytes) -> Header:
        """Read the header of an encoded image, without decoding it.

        Raises:
            DecodeError: The bytes are not a supported image, or the image has more than `max_pixels`.
        """
        jpeg = read_jpeg(data)
        if jpeg is not None and jpeg.height * jpeg.width <= self.max_pixels:
            scale = self.jpeg_scale(jpeg.height, jpeg.width)
            stored = jpeg.height, jpeg.width
            return Header(-(-jpeg.height // scale), -(-jpeg.width // scale), stored, jpeg, data)
        try:
            opened, stored = self._open(data)
        except DecodeError:
            if (repaired := without_metadata(data)) is None:
                raise
            return self.read_header(repaired)
        return Header(opened.height, opened.width, stored, opened, data)

    def open_upright(self, data: bytes) -> tuple[Image.Image, int]:
        """Return an encoded image as Pillow opens it, at the scale at which `pixels` decodes it, and its EXIF orientation, 1 to 8.

        Raises:
            DecodeError: The image cannot be decoded.
        """
        try:
            opened, _ = self._open(data)
            with _decode_errors():
                if opened.format == "PNG":  # the orientation may be after the pixels
                    with _truncation(self.truncated):
                        opened.load()
                return opened, _orientation(opened)
        except DecodeError:
            if (repaired := without_metadata(data)) is None:
                raise
            return self.open_upright(repaired)

    def _open(self, data: bytes) -> tuple[Image.Image, tuple[int, int]]:
        """Return the image, which Pillow has not read yet, at the scale at which it is decoded, and its (height, width) at full scale."""
        with _decode_errors():
            opened = Image.open(io.BytesIO(data), formats=_FORMATS)
            width, height = opened.size
            if height * width > self.max_pixels:
                raise DecodeError(f"{height}x{width} is more than max_pixels={self.max_pixels}")
            # Affects JPEG only: sets the scale and, for grey, reads the stored luma instead of converting from RGB.
            opened.draft(
                "L" if self.channels == 1 else "RGB", None if self.shorter is None else (self.shorter, self.shorter)
            )
            return opened, (height, width)

    def pixels(self, image: bytes | Header | Array, drawn: Drawn = (), /) -> Array:
        """Decode one image.

        Args:
            image: Encoded bytes, or the result of `read_header`.
            drawn: Unused.

        Returns:
            uint8 ``[H, W, channels]``.

        Raises:
            DecodeError: The image cannot be decoded.
        """
        assert isinstance(image, bytes | Header)
        return self.decoded(image)[0]

    def decoded(self, image: bytes | Header) -> tuple[Array, tuple[int, int]]:
        """Return `pixels`, and the (height, width) of the upright image at full scale, to which its targets refer."""
        header = self.read_header(image) if isinstance(image, bytes) else image
        try:
            pixels, orientation = self._decoded(header.opened)
        except DecodeError:
            if (repaired := without_metadata(header.data)) is None:
                raise
            return self.decoded(repaired)
        height, width = header.stored
        return pixels, (width, height) if orientation in TRANSPOSED else (height, width)

    def mask(self, mask: Array, drawn: Drawn, /) -> Array:
        """Resize a mask to the decoded image, whose (height, width) is `drawn`."""
        return resize_mask(mask, *drawn)

    def boxes(self, boxes: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        """Scale boxes from an upright image of this size to the decoded one, whose (height, width) is `drawn`."""
        height, width = drawn
        return scaled(boxes, size, (height, width))

    def points(self, points: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        """Scale points as `boxes` does."""
        height, width = drawn
        return scaled(points, size, (height, width))

    def _decoded(self, opened: Jpeg | Image.Image) -> tuple[Array, int]:
        """Return the upright pixels, and the EXIF orientation."""
        if isinstance(opened, Jpeg):
            decoded = opened.decode(self.channels, self.jpeg_scale(opened.height, opened.width))
            if decoded is not None:
                return _rotated(decoded, opened.orientation), opened.orientation
            opened, _ = self._open(opened.data)
        with _decode_errors():
            with _truncation(self.truncated):
                opened.load()
            return self._upright(opened)

    def load(self, image: bytes | str | Path | Pixels) -> Array:
        """Decode bytes or a file, or convert a decoded image without resizing it.

        Args:
            image: Encoded bytes, a path, a Pillow image, or an array ``[H, W, channels]`` uint8, which is returned unchanged.

        Raises:
            DecodeError: The image cannot be decoded.
            OSError: The file cannot be read.
            ValueError: The array has another shape or dtype.
        """
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != self.channels or not image.size:
                raise ValueError(
                    f"an image must be a uint8 array [H, W, {self.channels}], got {image.dtype} {list(image.shape)}"
                )
            return image
        if isinstance(image, Image.Image):
            with _decode_errors(), _truncation(self.truncated):
                copied = image.copy()
                copied.format = image.format  # not copied by Pillow, but it determines the range of 32-bit levels
                return self._upright(copied)[0]
        return self.pixels(image if isinstance(image, bytes) else Path(image).read_bytes())

    @property
    def _mode(self) -> str:
        return {1: "L", 3: "RGB", 4: "RGBA"}[self.channels]

    def _upright(self, image: Image.Image) -> tuple[Array, int]:
        """Convert an image to the op's channels and apply its EXIF orientation, which is returned too."""
        orientation = _orientation(image)
        return _rotated(as_array(self._converted(image)), orientation), orientation

    def _converted(self, image: Image.Image) -> Image.Image:
        """Convert a Pillow image of any mode to RGB or grey."""
        if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
            # 16-bit grey: use the high byte, since Pillow clips all levels above 255 to white.
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise DecodeError("levels of 32 bits have no agreed range: save it with 8 or 16 bits")
        if isinstance(image.info.get("transparency"), str):  # a text of a PNG
            del image.info["transparency"]
        if self.background is not None and image.has_transparency_data:
            color = self.background if isinstance(self.background, tuple) else (self.background,) * 3
            background = Image.new("RGBA", image.size, (*color, 255))
            image = Image.alpha_composite(background, image.convert("RGBA"))
        if self.channels != 4:
            image.info.pop("transparency", None)  # unused from here on, and Pillow would warn about it
        return image if image.mode == self._mode else image.convert(self._mode)


def decode_ids(data: bytes) -> Array:
    """Decode a mask: an image of one channel whose levels, or palette indices, are numbers of classes.

    Returns:
        uint8 ``[H, W, 1]``, upright as EXIF says.

    Raises:
        DecodeError: The bytes are not an image of one channel, or a number is above 255, or they are a JPEG with levels other than 0 and
            255, whose compression changes numbers.
    """
    with _decode_errors():
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        width, height = image.size
        if height * width > MAX_PIXELS:
            raise DecodeError(f"{height}x{width} is more than {MAX_PIXELS} pixels")
        if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
            raise DecodeError(f"expected one channel of class ids, got {image.mode}")
        image.load()
        levels = np.asarray(image)
        if levels.dtype not in (np.bool_, np.uint8) and (levels.min() < 0 or levels.max() > 255):
            raise DecodeError(
                f"class ids must be from 0 to 255, got {levels.min() if levels.min() < 0 else levels.max()}"
            )
        if image.format == "JPEG" and ((levels != 0) & (levels != 255)).any():
            raise DecodeError("a JPEG changes class ids: save masks as PNG")
        return _rotated(levels.astype(np.uint8)[:, :, None], _orientation(image))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 if it is none or cannot be read: unreadable tags are no reason to reject the pixels."""
    orientation = None
    with suppress(Exception):
        orientation = image.getexif().get(EXIF_ORIENTATION)
    return next((known for known in range(2, 9) if known == orientation), 1)


def _rotated(stored: Array, orientation: int) -> Array:
    """Return the image upright, contiguous."""
    if orientation in TRANSPOSED:
        stored = stored.swapaxes(0, 1)
    if orientation in _MIRRORED:
        stored = stored[_MIRRORED[orientation]]
    return np.ascontiguousarray(stored)


_IGNORE_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@contextmanager
def _decode_errors() -> Iterator[None]:
    """Turn any exception into a DecodeError with a one-line reason, and ignore what Pillow warns of, logs and prints.

    Pillow warns about large images and damaged tags. Where warnings are errors, these would reject images that can be decoded.
    """
    # Not `catch_warnings`: it is not thread-safe, and it resets which warnings were already shown.
    filters = cast("list[Any]", warnings.filters)
    filters.insert(0, _IGNORE_PILLOW)
    damages: list[str] = []
    try:
        with collected_errors() as damages:
            yield
    except DecodeError:
        raise
    except UnidentifiedImageError as error:  # Pillow's message holds a memory address, which differs between runs
        raise DecodeError(f"not an image in one of the formats {', '.join(_FORMATS)}") from error
    except Exception as error:  # Pillow's decoders may raise anything on hostile bytes
        reason = f"damaged TIFF: {damages[0]}" if damages else f"{type(error).__name__}: {error}"
        raise DecodeError(reason.splitlines()[0]) from error
    finally:
        with suppress(ValueError):
            filters.remove(_IGNORE_PILLOW)


class _TruncationSwitch:
    """Pillow's global switch for truncated files. Decodes with the same setting run concurrently, others wait."""

    def __init__(self) -> None:
        # Held while waiting for the other setting to finish, so that new arrivals cannot starve the waiting thread.
        self._queue = threading.Lock()
        self._idle = threading.Condition()
        self._running = 0
        self._previous = False

    @contextmanager
    def __call__(self, truncated: bool) -> Iterator[None]:
        with self._queue, self._idle:
            self._idle.wait_for(lambda: not self._running or truncated == ImageFile.LOAD_TRUNCATED_IMAGES)
            if not self._running:
                self._previous, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, truncated
            self._running += 1
        try:
            yield
        finally:
            with self._idle:
                self._running -= 1
                if not self._running:
                    ImageFile.LOAD_TRUNCATED_IMAGES = self._previous
                    self._idle.notify_all()


_truncation = _TruncationSwitch()
