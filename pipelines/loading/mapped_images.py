"""Images as they lie in the mapped files of one variant, read by row: raw ones in one piece of address space, others one by one."""

from __future__ import annotations

import ctypes
import errno
import math
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.cache.shards import CacheError, DataFile, image_layout, map_images, read_encoded

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_NOWHERE = ctypes.c_void_p(-1).value
_ADVICE_BYTES = 1 << 17  # the kernel reads no more of one advice than what it reads ahead, by default so much

_SMALL_IMAGE = 1 << 12  # bytes: to copy one twice costs less than to have Python point at it


class StoredImages(ABC):
    """The images of one variant, in files whose rows end at `ends`."""

    def __init__(self, files: Sequence[DataFile]) -> None:
        self._ends = np.cumsum([file.records for file in files])
        self._starts = np.concatenate([[0], self._ends[:-1]])

    @abstractmethod
    def take(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy raw images of those rows to uint8 ``[B, H, W, C]``."""

    @abstractmethod
    def views(self, rows: NDArray[np.int64]) -> list[Any]:
        """Return the images of those rows where they lie: uint8 ``[H, W, C]``, or buffers of encoded ones."""

    def will_need(self, start: int, stop: int) -> None:
        """Have the kernel read the rows from `start` to before `stop` from disk, in its own time."""
        for first, last in self._addresses(start, stop):
            for piece in range(first - first % mmap.PAGESIZE, last, _ADVICE_BYTES):
                _libc.madvise(piece, min(_ADVICE_BYTES, last - piece), mmap.MADV_WILLNEED)

    def expect_random(self) -> None:
        """Tell the kernel to read nothing but what it is asked for."""
        for first, last in self._addresses(0, int(self._ends[-1])):
            begin = first - first % mmap.PAGESIZE
            _libc.madvise(begin, last - begin, mmap.MADV_RANDOM)

    def _addresses(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield where rows lie in memory, a range for each file."""
        shards = range(np.searchsorted(self._ends, start, side="right"), np.searchsorted(self._starts, stop))
        for shard in shards:
            first, last = max(self._starts[shard], start), min(self._ends[shard], stop) - 1
            one, other = (np.frombuffer(view, np.uint8) for view in self.views(np.array([first, last])))
            yield one.ctypes.data, other.ctypes.data + other.size


def open_stored(folder: Path, files: Sequence[DataFile], shape: tuple[int, int, int] | None) -> StoredImages:
    """Map the files of a variant; `shape` is that of raw images, None for encoded ones. Raises CacheError."""
    try:
        return _open(folder, files, shape)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        most = int(Path("/proc/sys/vm/max_map_count").read_text())
        raise CacheError(
            f"cannot map {len(files):,} files of {str(folder)!r}: a process may map {most:,} pieces (sysctl vm.max_map_count), and a "
            "file is up to two of them for each variant: raise that, or build the cache with fewer --shards"
        ) from error


def _open(folder: Path, files: Sequence[DataFile], shape: tuple[int, int, int] | None) -> StoredImages:
    if shape is None:
        return _Shards([read_encoded(folder / file.name, file) for file in files], files)
    layouts = [image_layout(file, shape) for file in files]
    if all(offset % mmap.ALLOCATIONGRANULARITY == 0 and stride == math.prod(shape) for offset, stride in layouts):
        return _OneArray(folder, files, shape)
    return _Shards([map_images(folder / file.name, file, shape) for file in files], files)


class _Shards(StoredImages):
    """Images of several files, each a sequence: raw ones with something between them, or encoded ones."""

    def __init__(self, shards: Sequence[Sequence[Any] | NDArray[np.uint8]], files: Sequence[DataFile]) -> None:
        super().__init__(files)
        self._shards = shards

    def take(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        if math.prod(out.shape[1:]) > _SMALL_IMAGE:
            np.concatenate(self.views(rows), out=out.reshape(-1, *out.shape[2:]))
            return
        shards, inside = self._places(rows)
        for shard in np.unique(shards):
            chosen = shards == shard
            out[chosen] = self._shards[shard][inside[chosen]]

    def views(self, rows: NDArray[np.int64]) -> list[Any]:
        shards, inside = self._places(rows)
        return [self._shards[shard][row] for shard, row in zip(shards.tolist(), inside.tolist(), strict=True)]

    def _places(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        shards = np.searchsorted(self._ends, rows, side="right")
        return shards, rows - self._starts[shards]


class _OneArray(StoredImages):
    """Raw images of any number of files as one array, so that to gather from many costs what it costs from one.

    Address space is reserved for all, and each file mapped over a part of it, at a row that begins on a page: between the files lie
    a few rows that are nothing, and that no row number of ours leads to.
    """

    def __init__(self, folder: Path, files: Sequence[DataFile], shape: tuple[int, int, int]) -> None:
        super().__init__(files)
        image_bytes = math.prod(shape)
        rows_of_pages = mmap.ALLOCATIONGRANULARITY // math.gcd(mmap.ALLOCATIONGRANULARITY, image_bytes)
        room = [-(-file.records // rows_of_pages) * rows_of_pages for file in files]
        places = np.cumsum([0, *room])
        space = _AddressSpace(int(places[-1]), shape)
        for file, place in zip(files, places.tolist(), strict=False):
            assert file.image_offset is not None
            space.map(
                folder / file.name, file.bytes, place * image_bytes, file.records * image_bytes, file.image_offset
            )
        self._images: NDArray[np.uint8] = np.asarray(space)
        self._shifts = places[:-1] - self._starts

    def take(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        self._images.take(self._places(rows), axis=0, out=out, mode="clip")  # another mode would make a copy of `out`

    def views(self, rows: NDArray[np.int64]) -> list[Any]:
        images = self._images
        return [images[place] for place in self._places(rows).tolist()]

    def _places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        if len(self._ends) == 1:
            return rows
        places: NDArray[np.int64] = rows + self._shifts[np.searchsorted(self._ends, rows, side="right")]
        return places


class _AddressSpace:
    """Reserved addresses that parts of files are mapped over; NumPy arrays of it keep it alive."""

    def __init__(self, rows: int, shape: tuple[int, int, int]) -> None:
        self._size = rows * math.prod(shape)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._start = _map(None, self._size, 0, flags, -1, 0)
        self.__array_interface__ = {
            "version": 3,
            "data": (self._start, True),
            "shape": (rows, *shape),
            "typestr": "|u1",
        }

    def map(self, path: Path, file_bytes: int, start: int, size: int, offset: int) -> None:
        """Map `size` bytes of a file from `offset` on, read-only, over those from `start` on; CacheError if it is of another size."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            actual = os.fstat(descriptor).st_size
            if actual != file_bytes:
                raise CacheError(
                    f"{path} has {actual} bytes, its manifest says {file_bytes}: it was cut or changed, rebuild the cache"
                )
            flags = mmap.MAP_SHARED | _MAP_FIXED
            _map(self._start + start, size, mmap.PROT_READ, flags, descriptor, offset)
        finally:
            os.close(descriptor)

    def __del__(self) -> None:
        if hasattr(self, "_start"):
            _libc.munmap(self._start, self._size)


def _map(address: int | None, size: int, protection: int, flags: int, descriptor: int, offset: int) -> int:
    found = _libc.mmap(address, size, protection, flags, descriptor, offset)
    if found == _NOWHERE or found is None:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot map {size} bytes: {os.strerror(number)}")
    return int(found)
