"""Decode encoded images with Pillow: whatever is in a file, or the reason why it is not taken."""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from joulecache.transforms.ops import Decode
from joulecache.transforms.reference_kernels.images import Array, Pixels

# What Pillow may open. It guesses from content, whatever a file is called, and would hand PostScript to Ghostscript.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "JPEG2000", "PPM", "TIFF", "TGA")

EXIF_ORIENTATION = 0x0112
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


def read_header(op: Decode, data: bytes) -> Image.Image:
    """Open an encoded image at the scale that `decode` takes it, without its pixels; DecodeError with the reason when that fails."""
    with _reasons():
        opened = Image.open(io.BytesIO(data), formats=_FORMATS)
        width, height = opened.size
        if height * width > op.max_pixels:
            raise DecodeError(f"{height}x{width} is more than max_pixels={op.max_pixels}")
        # Only JPEG heeds it: its scale, and for grey the luma as it is stored, without a way through colours.
        opened.draft(_mode(op), None if op.shorter is None else (op.shorter, op.shorter))
        return opened


def decode(op: Decode, encoded: bytes | Image.Image) -> Image.Image:
    """Decode one encoded image, or what `read_header` gave for it, to RGB or grey; DecodeError with the reason when that fails."""
    opened = read_header(op, encoded) if isinstance(encoded, bytes) else encoded
    with _reasons():
        with _tolerance(op.truncated):
            opened.load()
        return _upright(op, opened)


def decode_any(op: Decode, image: bytes | str | Path | Image.Image | Array) -> Pixels:
    """Decode bytes, or the file at a path; take a Pillow image or an array ``[H, W, C]`` uint8 as decoded, at its own size.

    Raises DecodeError, OSError for a path, ValueError for an array of another shape or dtype.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != op.channels or not image.size:
            raise ValueError(f"an image is a uint8 array [H, W, {op.channels}], got {image.dtype} {list(image.shape)}")
        return image
    if isinstance(image, Image.Image):
        with _reasons(), _tolerance(op.truncated):
            copied = image.copy()
            copied.format = image.format  # which a copy forgets, and which says what its levels mean
            return _upright(op, copied)
    return decode(op, image if isinstance(image, bytes) else Path(image).read_bytes())


_UNHEARD = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@contextmanager
def _reasons() -> Iterator[None]:
    """Turn whatever is raised into a DecodeError that says why in one line, and let Pillow warn of nothing.

    What it warns of (a large image, a damaged tag) is decided here; where people make warnings errors, it would be rejected.
    """
    # Put in and taken out by hand: `catch_warnings` is not for threads, and forgets which warnings were already shown.
    filters = cast("list[Any]", warnings.filters)
    filters.insert(0, _UNHEARD)
    try:
        yield
    except DecodeError:
        raise
    except UnidentifiedImageError as error:  # its own message holds an address in memory, different in every run
        raise DecodeError(f"not an image in one of the formats {', '.join(_FORMATS)}") from error
    except Exception as error:  # Pillow's decoders raise anything at all on hostile bytes
        raise DecodeError(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    finally:
        with suppress(ValueError):
            filters.remove(_UNHEARD)


def _upright(op: Decode, image: Image.Image) -> Image.Image:
    """Convert an image to the op's channels, turned as its EXIF says."""
    turn = None
    with suppress(Exception):  # tags that cannot be read are no reason to reject the pixels
        turn = _UPRIGHT.get(image.getexif().get(EXIF_ORIENTATION, 1))
    plain = _converted(op, image)
    return plain if turn is None else plain.transpose(turn)


def _converted(op: Decode, image: Image.Image) -> Image.Image:
    """Return a Pillow image of any mode as RGB or grey; DecodeError for one whose levels have no range."""
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
        # 16-bit grey: the high byte, where Pillow's own conversion clips all but the darkest levels to white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DecodeError("levels of 32 bits have no agreed range: save it with 8 or 16 bits")
    if op.background is not None and image.has_transparency_data:
        colours = op.background if isinstance(op.background, tuple) else (op.background,) * 3
        beneath = Image.new("RGBA", image.size, (*colours, 255))
        image = Image.alpha_composite(beneath, image.convert("RGBA"))
    image.info.pop("transparency", None)  # dropped from here on; Pillow would warn that it drops it
    return image if image.mode == _mode(op) else image.convert(_mode(op))


def _mode(op: Decode) -> str:
    return "RGB" if op.channels == 3 else "L"


class _Tolerance:
    """Pillow's switch for truncated files. It is global: decodes that want it alike run at once, the others take turns."""

    def __init__(self) -> None:
        # Who waits for a turn bars the door, or a steady stream of the others would never let them in.
        self._door = threading.Lock()
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
