"""Map files side by side into one reserved range of addresses, as one NumPy array."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from pathlib import Path

from joulecache.pipelines.cache.errors import wrong_size

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MAP_FAILED = ctypes.c_void_p(-1).value
_ADVICE_BYTES = 1 << 17  # the kernel reads at most its read-ahead per call, 128 KiB by default


class AddressSpace:
    """Reserved addresses for parts of files, as a uint8 array ``[rows, *shape]``.

    NumPy views of it keep it alive. Addresses without a mapped file must not be read.
    """

    def __init__(self, rows: int, shape: tuple[int, int, int]) -> None:
        height, width, channels = shape
        self._size = rows * height * width * channels
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._start = _mmap(None, self._size, 0, flags, -1, 0)
        self.__array_interface__ = {
            "version": 3,
            "data": (self._start, True),
            "shape": (rows, *shape),
            "typestr": "|u1",
        }

    def map(self, path: Path, file_bytes: int, start: int, size: int, offset: int) -> None:
        """Map `size` bytes of a file from `offset` on, read-only, at `start`.

        Raises:
            CacheError: The file does not have `file_bytes` bytes.
            OSError: The file cannot be opened or mapped.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            actual = os.fstat(descriptor).st_size
            if actual != file_bytes:
                raise wrong_size(path, actual, file_bytes)
            _mmap(self._start + start, size, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, descriptor, offset)
        finally:
            os.close(descriptor)

    # a default argument, since globals may be gone when Python exits
    def __del__(self, munmap: Callable[[int, int], int] = _libc.munmap) -> None:
        if hasattr(self, "_start"):
            munmap(self._start, self._size)


def read_ahead(start: int, stop: int) -> None:
    """Ask the kernel to read mapped addresses from disk in the background."""
    for piece in range(start - start % mmap.PAGESIZE, stop, _ADVICE_BYTES):
        _libc.madvise(piece, min(_ADVICE_BYTES, stop - piece), mmap.MADV_WILLNEED)


def disable_readahead(start: int, stop: int) -> None:
    """Tell the kernel to expect random reads of mapped addresses."""
    first = start - start % mmap.PAGESIZE
    _libc.madvise(first, stop - first, mmap.MADV_RANDOM)


def _mmap(address: int | None, size: int, protection: int, flags: int, descriptor: int, offset: int) -> int:
    found = _libc.mmap(address, size, protection, flags, descriptor, offset)
    if found == _MAP_FAILED or found is None:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot map {size} bytes: {os.strerror(number)}")
    return int(found)
