"""Decode JPEGs with libjpeg-turbo, straight into arrays.

Damaged and unusual files are left to Pillow, which defines the pixels and decides what is rejected.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray

_SMALLEST_SIDE = 8  # below it, two of libjpeg's scales may result in one size
_MARKER = struct.Struct(">BBH")
_FRAME = struct.Struct(">BHHBB2xB2xB")  # precision, height, width, components, and the numbers of three of them
_FRAMES, _SCAN = frozenset([0xC0, 0xC1, 0xC2]), 0xDA
_ANY_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset([*range(0xD0, 0xDA), 0xFF])  # no segments, or padding
_APP0, _APP1, _APP14 = 0xE0, 0xE1, 0xEE
_NEVER = 1 << 16
_LEAST_BYTES = {
    **{marker: _NEVER if marker < 0xC0 or marker in _STANDALONE else 2 for marker in range(256)},
    _APP0: 16,  # Pillow refuses shorter ones
    _APP14: 14,
}
_USED = frozenset([_SCAN, _APP0, _APP1, _APP14, *_ANY_FRAME])
_JFIF, _EXIF, _ADOBE = b"JFIF", b"Exif\0\0", b"Adobe"
_XMP_ORIENTATION = b"tiff:Orientation"
_ORIENTATION, _SHORT, _ENTRY_BYTES = 0x0112, 3, 12
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}


class _UnusualError(Exception):
    """A header is left to Pillow."""


@dataclass(frozen=True, slots=True)
class Jpeg:
    """A JPEG whose header was read.

    Attributes:
        data: The file.
        height: Stored height, in pixels.
        width: Stored width, in pixels.
        orientation: EXIF orientation; 1 without one.
    """

    data: bytes
    height: int
    width: int
    orientation: int

    def decode(self, channels: int, scale: int) -> NDArray[np.uint8] | None:
        """Decode the image, without rotating it upright; return None if the data is damaged.

        Args:
            channels: 3 (RGB), 1 (the stored luma) or 4 (RGB and an alpha of 255).
            scale: Denominator of the DCT scale: 1, 2, 4 or 8.

        Returns:
            uint8 ``[H, W, channels]``, with the sides divided by `scale` and rounded up.
        """
        height, width = -(-self.height // scale), -(-self.width // scale)
        colours = {1: "GRAY", 3: "RGB", 4: "RGBA"}[channels]
        try:
            image: NDArray[np.uint8] = simplejpeg.decode_jpeg(self.data, colours, min_height=height, min_width=width)
        except ValueError:
            return None
        return image if image.shape == (height, width, channels) else None


def simplejpeg_version() -> str:
    """Return the version of simplejpeg, which has its own libjpeg-turbo."""
    return str(simplejpeg.__version__)


def read_jpeg(data: bytes) -> Jpeg | None:
    """Read the header of a JPEG; return None for other formats, and for files that are left to Pillow."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        return _read(data)
    except (struct.error, _UnusualError):
        return None


def _read(data: bytes) -> Jpeg:
    has_jfif, transform = False, None
    frame: tuple[int, ...] | None = None
    exif: list[bytes] = []
    for marker, start, end in _segments(data):
        if marker == _APP0 and data.startswith(_JFIF, start):
            has_jfif = True
        elif marker == _APP1 and data.startswith(_EXIF, start):
            exif.append(data[start + len(_EXIF) : end])
        elif marker == _APP14 and data.startswith(_ADOBE, start):
            transform = data[start + 11]
        elif marker in _ANY_FRAME:
            if frame or marker not in _FRAMES:
                raise _UnusualError
            frame = _FRAME.unpack_from(data, start)
    if frame is None:
        raise _UnusualError
    precision, height, width, components, *numbers = frame
    is_usual = precision == 8 and min(height, width) >= _SMALLEST_SIDE
    if not is_usual or not (components == 1 or (components == 3 and _is_ycc(has_jfif, transform, numbers))):
        raise _UnusualError
    return Jpeg(data, height, width, _orientation(data, exif))


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of the segments before the first scan that matter here. Tables, the most frequent, do not."""
    position, length, unpack, least_bytes = 2, len(data), _MARKER.unpack_from, _LEAST_BYTES
    while True:
        prefix, marker, size = unpack(data, position)
        end = position + 2 + size
        if prefix != 0xFF or size < least_bytes[marker] or end > length:
            raise _UnusualError
        if marker in _USED:
            if marker == _SCAN:
                return
            yield marker, position + 4, end
        position = end


def _is_ycc(has_jfif: bool, transform: int | None, numbers: list[int]) -> bool:
    """Return whether libjpeg takes three components for YCbCr without a guess."""
    if has_jfif:
        return transform in (None, 1)
    return transform == 1 if transform is not None else numbers == [1, 2, 3]


def _orientation(data: bytes, exif: list[bytes]) -> int:
    if len(exif) > 1:
        raise _UnusualError
    orientation = _tiff_orientation(exif[0]) if exif else 0
    if not orientation and _XMP_ORIENTATION in data:
        raise _UnusualError
    return orientation or 1


def _tiff_orientation(tiff: bytes) -> int:
    """Return the orientation in the first directory of TIFF data; 0 if it has none."""
    order = _BYTE_ORDERS.get(tiff[:4])
    if order is None:
        raise _UnusualError
    (directory,) = struct.unpack_from(order + "L", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, directory)
    orientation = 0
    for entry in range(directory + 2, directory + 2 + count * _ENTRY_BYTES, _ENTRY_BYTES):
        tag, kind, values, value = struct.unpack_from(order + "HHLH2x", tiff, entry)
        if tag == _ORIENTATION:
            if (kind, values) != (_SHORT, 1):
                raise _UnusualError
            orientation = value
    return orientation
