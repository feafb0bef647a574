"""PNGs and JPEGs with metadata that Pillow refuses, and that other decoders skip."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

_IHDR_END, _IEND_BYTES, _APP0_END = 33, 12, 20


def chunk(name: bytes, body: bytes, checksum: int | None = None) -> bytes:
    """Return a chunk of a PNG."""
    return (
        struct.pack(">I", len(body))
        + name
        + body
        + struct.pack(">I", zlib.crc32(name + body) if checksum is None else checksum)
    )


def segment(marker: int, body: bytes) -> bytes:
    """Return a segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def in_png(png: bytes, *chunks: bytes, after_pixels: bool = False) -> bytes:
    """Return a PNG with more chunks, before or after the pixels."""
    place = len(png) - _IEND_BYTES if after_pixels else _IHDR_END
    return png[:place] + b"".join(chunks) + png[place:]


def in_jpeg(jpeg: bytes, *segments: bytes) -> bytes:
    """Return a JPEG with more segments."""
    return jpeg[:_APP0_END] + b"".join(segments) + jpeg[_APP0_END:]


_LONG = zlib.compress(b"x" * (2 << 20))
_FRAME = struct.pack(">IIIIHHBB", 99, 99, 9, 9, 1, 10, 0, 0)
_ANIMATION = chunk(b"acTL", struct.pack(">II", 2, 0))

REFUSED_CHUNKS: Mapping[str, bytes] = {
    "zTXt of 2 MiB": chunk(b"zTXt", b"a\0\0" + _LONG),
    "iTXt of 2 MiB": chunk(b"iTXt", b"a\0\1\0\0\0" + _LONG),
    "profile of 2 MiB": chunk(b"iCCP", b"a\0\0" + _LONG),
    "text of 70 MiB": chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * (1 << 20))) * 70,
    "profile without a name": chunk(b"iCCP", b"aaaaa"),
    "profile of an unknown compression": chunk(b"iCCP", b"a\0\5" + _LONG),
    "text of an unknown compression": chunk(b"zTXt", b"a\0\7" + _LONG),
    "text with a wrong checksum": chunk(b"tEXt", b"a\0b", checksum=5),
    "short gamma": chunk(b"gAMA", b"a"),
    "short chromaticities": chunk(b"cHRM", b"abc"),
    "empty rendering intent": chunk(b"sRGB", b""),
    "short resolution": chunk(b"pHYs", b"ab"),
    "short transparency": chunk(b"tRNS", b"a"),
    "short animation": chunk(b"acTL", b"a"),
    "short frame": _ANIMATION + chunk(b"fcTL", b"abc"),
    "frames out of order": _ANIMATION + chunk(b"fcTL", struct.pack(">I", 7) + _FRAME),
    "a frame larger than the image": _ANIMATION + chunk(b"fcTL", struct.pack(">I", 0) + _FRAME),
}
"""Chunks that make Pillow refuse an RGB PNG."""

REFUSED_SEGMENTS: Mapping[str, bytes] = {
    "short JFIF": segment(0xE0, b"JFIF"),
    "short Adobe": segment(0xEE, b"Adobe"),
    "standalone marker": b"\xff\x01",
}
"""Segments that make Pillow refuse a JPEG."""
