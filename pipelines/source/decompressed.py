"""Files compressed with gzip or zlib, decompressed once per process."""

from __future__ import annotations

import functools
import io
import os
import tempfile
import threading
import weakref
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from joulecache.pipelines.core.files import RangeReader
from joulecache.pipelines.core.object_store import open_binary

_CHUNK_BYTES = 1 << 20
_READ_BYTES = 1 << 16
_GZIP_OR_ZLIB = 47  # window bits with which zlib detects the header


class DecompressionError(OSError):
    """A file cannot be decompressed."""


def first_decompressed(data: bytes, size: int) -> bytes:
    """Return the first `size` decompressed bytes of a file that starts with `data`; none if it is not compressed."""
    if data[:2] != b"\x1f\x8b" and (data[:1] != b"\x78" or int.from_bytes(data[:2]) % 31):
        return b""
    try:
        return zlib.decompressobj(_GZIP_OR_ZLIB).decompress(data, size)
    except zlib.error:
        return b""


class _Spool:
    """A temporary file without a name, to which decompressed files are appended. It is deleted with the last of them."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile(prefix="joulecache-")  # noqa: SIM115 - closed by the finalizer
        self.process = os.getpid()  # a fork shares the position in the file, and must not append to it
        weakref.finalize(self, self.file.close)

    def append(self, location: str) -> _Content:
        """Decompress a file to the end of the spool."""
        start = self.file.seek(0, os.SEEK_END)
        with open_binary(location) as compressed:
            for chunk in _decompress(compressed, location):
                try:
                    self.file.write(chunk)
                    self.file.flush()
                except OSError as error:
                    raise DecompressionError(
                        f"cannot decompress {location!r} into {tempfile.gettempdir()!r} ({error.strerror}): set TMPDIR to a folder with "
                        "more space"
                    ) from error
        return _Content(self, start, self.file.tell() - start)


@dataclass(frozen=True, eq=False)
class _Content:
    """Where the content of a file is in the spool."""

    spool: _Spool
    start: int
    size: int

    def read_at(self, offset: int, size: int) -> bytes:
        return os.pread(self.spool.file.fileno(), size, self.start + offset)


_LOCK = threading.Lock()
_CONTENTS: weakref.WeakValueDictionary[tuple[str, int], _Content] = weakref.WeakValueDictionary()
_KEPT: list[_Content] = []


@dataclass(frozen=True)
class Decompressed:
    """The content of a compressed file, which is read in any order.

    The first access decompresses the file into a temporary file that the process shares, and that is kept as long as an object for
    the same file exists. In a worker process, which receives such objects one shard at a time, it is kept until the process ends.

    Attributes:
        location: Path or URL of the file.
        mtime_ns: When the file was last written.
        in_worker: Whether the object was sent to this process.
    """

    location: str
    mtime_ns: int
    in_worker: bool = field(default=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return Decompressed, (self.location, self.mtime_ns, True)

    def open(self) -> BinaryIO:
        """Open the content for reading and seeking.

        Raises:
            DecompressionError: The file is damaged, or the disk full.
            OSError: The file cannot be read.
        """
        content = self._content
        return cast("BinaryIO", io.BufferedReader(RangeReader(content.read_at, content.size), _READ_BYTES))

    @functools.cached_property
    def _content(self) -> _Content:
        key = self.location, self.mtime_ns
        with _LOCK:
            content = _CONTENTS.get(key)
            if content is None:
                spools = (other.spool for other in _CONTENTS.values() if other.spool.process == os.getpid())
                spool = next(spools, None) or _Spool()
                content = _CONTENTS[key] = spool.append(self.location)
                if self.in_worker:
                    _KEPT.append(content)
        return content


def _decompress(compressed: BinaryIO, location: str) -> Iterator[bytes]:
    """Yield the content of a file of one or more compressed streams, which zeros may follow."""
    decoder = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        while data := compressed.read(_CHUNK_BYTES):
            while data:
                if decoder.eof:
                    data = data.lstrip(b"\0")
                    if not data:
                        break
                    decoder = zlib.decompressobj(_GZIP_OR_ZLIB)
                yield decoder.decompress(data, _CHUNK_BYTES)
                data = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
        yield decoder.flush()
    except zlib.error as error:
        raise DecompressionError(f"cannot decompress {location!r}: {error}") from error
    if not decoder.eof:
        raise DecompressionError(f"cannot decompress {location!r}: the file is truncated")
