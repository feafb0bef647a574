"""Remove metadata that Pillow refuses from encoded images, so that their pixels can be decoded."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPE = 25  # its place in the file
_PIXELS = frozenset([b"IHDR", b"PLTE", b"IDAT", b"IEND"])
_TRANSPARENCY_BYTES = {0: 2, 2: 6}  # by colour type
_TEXT = frozenset([b"tEXt", b"zTXt", b"iTXt"])
_CHUNK_BYTES, _TEXT_BYTES = 1 << 20, 1 << 25
"""Limits on text that is kept, within Pillow's: the orientation may be in it."""

_JPEG = b"\xff\xd8\xff"
_SCAN, _COMMENT, _STANDALONE = 0xDA, 0xFE, (0x01, 0xFF)
_APPLICATION = range(0xE0, 0xF0)
_SEGMENT_BYTES = {0xE0: 16, 0xE1: 2, 0xEE: 14}
"""Least size of JFIF, EXIF and Adobe segments, which affect the pixels or the orientation."""


def without_metadata(data: bytes) -> bytes | None:
    """Return a PNG or JPEG without the metadata that its pixels and its orientation do not depend on.

    Pillow refuses images whose text decompresses to more than 1 MiB, as a protection against decompression bombs, or whose metadata are
    damaged. Other decoders skip them.

    Returns:
        The image without metadata; None if there are none, and for other formats.
    """
    if data.startswith(_PNG):
        kept = b"".join(_png_chunks(data))
    elif data.startswith(_JPEG):
        kept = b"".join(_jpeg_segments(data))
    else:
        return None
    return kept if len(kept) < len(data) else None


def _png_chunks(data: bytes) -> Iterator[bytes]:
    yield _PNG
    position, text_left = len(_PNG), _TEXT_BYTES
    while position + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + size
        chunk = data[position:end]
        keeps = name in _PIXELS
        if not keeps and len(chunk) == 12 + size and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:]):
            if name == b"tRNS":
                keeps = size == _TRANSPARENCY_BYTES.get(data[_COLOUR_TYPE], size)
            elif name in _TEXT:
                text_bytes = _text_bytes(name, chunk[8:-4])
                keeps = text_bytes <= min(_CHUNK_BYTES, text_left)
                text_left -= text_bytes if keeps else 0
            else:
                keeps = name == b"eXIf"
        if keeps:
            yield chunk
        if name == b"IEND":
            return
        position = end


def _text_bytes(name: bytes, body: bytes) -> int:
    """Return the decompressed size of a text chunk; more than `_CHUNK_BYTES` if it is damaged."""
    rest = body.partition(b"\0")[2]
    if name == b"zTXt":
        method, text = rest[:1], rest[1:]
    elif name == b"iTXt" and rest[:1] not in (b"", b"\0"):
        method, text = rest[1:2], rest[2:].split(b"\0", 2)[-1]
    else:
        return len(body)
    try:
        return len(zlib.decompressobj().decompress(text, _CHUNK_BYTES + 1)) if method == b"\0" else _CHUNK_BYTES + 1
    except zlib.error:
        return _CHUNK_BYTES + 1


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    yield data[:2]
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != _SCAN:
        marker = data[position + 1]
        if marker in _STANDALONE:
            position += 1 if marker == 0xFF else 2
            continue
        size = int.from_bytes(data[position + 2 : position + 4])
        end = position + 2 + size
        is_metadata = marker in _APPLICATION or marker == _COMMENT
        if not is_metadata or size >= _SEGMENT_BYTES.get(marker, 1 << 16):
            yield data[position:end]
        position = end
    yield data[position:]
