"""Read the images of one variant by row from mapped files: raw images as one array if possible, others file by file."""

from __future__ import annotations

import errno
import math
import mmap
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.cache.address_space import AddressSpace, disable_readahead, read_ahead
from joulecache.pipelines.cache.data_file import DataFile
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.shards import map_images, read_encoded

_SMALL_IMAGE_BYTES = 1 << 12  # copying such an image twice is faster than a Python view of it


class MappedImages(ABC):
    """The images of one variant; rows are counted over all its files."""

    def __init__(self, files: Sequence[DataFile]) -> None:
        self._ends = np.cumsum([file.records for file in files])
        self._starts = np.concatenate([[0], self._ends[:-1]])

    @abstractmethod
    def take(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy the raw images of some rows to `out`, uint8 ``[B, H, W, C]``."""

    @abstractmethod
    def views(self, rows: NDArray[np.int64]) -> list[Any]:
        """Return the images of some rows without a copy: arrays uint8 ``[H, W, C]``, or buffers of encoded images."""

    def read_ahead(self, start: int, stop: int) -> None:
        """Ask the kernel to read the rows in [start, stop) from disk in the background."""
        for first, last in self.addresses(start, stop):
            read_ahead(first, last)

    def disable_readahead(self) -> None:
        """Tell the kernel to read only what is accessed or passed to `read_ahead`."""
        for first, last in self.addresses(0, int(self._ends[-1])):
            disable_readahead(first, last)

    def addresses(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the memory ranges (first, end) of the rows in [start, stop), one for each file."""
        files = range(np.searchsorted(self._ends, start, side="right"), np.searchsorted(self._starts, stop))
        for file in files:
            first, last = max(self._starts[file], start), min(self._ends[file], stop) - 1
            one, other = (np.frombuffer(view, np.uint8) for view in self.views(np.array([first, last])))
            yield one.ctypes.data, other.ctypes.data + other.size


def map_variant(folder: Path, files: Sequence[DataFile], shape: tuple[int, int, int] | None) -> MappedImages:
    """Map the files of a variant; `shape` is (height, width, channels) of raw images, None for encoded ones.

    Raises:
        CacheError: A file is missing, damaged or of another size, or the process may map no more files.
    """
    with mapping_errors(folder, files):
        return _map_variant(folder, files, shape)


@contextmanager
def mapping_errors(folder: Path, files: Sequence[DataFile]) -> Iterator[None]:
    """Raise the OSErrors of mapping files as CacheError."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise CacheError(f"cannot map the files of {str(folder)!r}: {error}") from error
        allowed = int(Path("/proc/sys/vm/max_map_count").read_text())
        raise CacheError(
            f"cannot map {len(files):,} files of {str(folder)!r}: a process may map {allowed:,} areas (sysctl vm.max_map_count), "
            "and each file needs two or three for each variant: raise that limit, or rebuild the cache with fewer --shards"
        ) from error


def _map_variant(folder: Path, files: Sequence[DataFile], shape: tuple[int, int, int] | None) -> MappedImages:
    if shape is None:
        return _FileByFile([read_encoded(folder / file.name, file) for file in files], files)
    layouts = [file.image_layout(shape) for file in files]
    if all(offset % mmap.ALLOCATIONGRANULARITY == 0 and stride == math.prod(shape) for offset, stride in layouts):
        return OneArray(folder, files, shape)
    return _FileByFile([map_images(folder / file.name, file, shape) for file in files], files)


def one_by_one(images: Sequence[Sequence[Any] | NDArray[np.uint8]], files: Sequence[DataFile]) -> MappedImages:
    """Return the images or masks of each of some files as those of a variant."""
    return _FileByFile(images, files)


class _FileByFile(MappedImages):
    """A sequence of images or masks for each file: encoded ones, or raw ones with other data in between."""

    def __init__(self, images: Sequence[Sequence[Any] | NDArray[np.uint8]], files: Sequence[DataFile]) -> None:
        super().__init__(files)
        self._images = images

    def take(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        if math.prod(out.shape[1:]) > _SMALL_IMAGE_BYTES:
            np.concatenate(self.views(rows), out=out.reshape(-1, *out.shape[2:]))
            return
        files, inside = self._locate(rows)
        for file in np.unique(files):
            chosen = files == file
            out[chosen] = self._images[file][inside[chosen]]

    def views(self, rows: NDArray[np.int64]) -> list[Any]:
        files, inside = self._locate(rows)
        return [self._images[file][row] for file, row in zip(files.tolist(), inside.tolist(), strict=True)]

    def _locate(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        files = np.searchsorted(self._ends, rows, side="right")
        return files, rows - self._starts[files]


class OneArray(MappedImages):
    """Raw images of all files as one array, so that a gather from many files is as fast as from one.

    Each file is mapped at a place that starts on a page of one reserved range of addresses. Places between files must not be accessed.

    Attributes:
        images: uint8 ``[P, H, W, C]``.
    """

    def __init__(self, folder: Path, files: Sequence[DataFile], shape: tuple[int, int, int]) -> None:
        super().__init__(files)
        image_bytes = math.prod(shape)
        rows_per_page = mmap.ALLOCATIONGRANULARITY // math.gcd(mmap.ALLOCATIONGRANULARITY, image_bytes)
        reserved = [-(-file.records // rows_per_page) * rows_per_page for file in files]
        positions = np.cumsum([0, *reserved])
        space = AddressSpace(int(positions[-1]), shape)
        for file, position in zip(files, positions.tolist(), strict=False):
            offset, _ = file.image_layout(shape)
            space.map(folder / file.name, file.bytes, position * image_bytes, file.records * image_bytes, offset)
        self.images: NDArray[np.uint8] = np.asarray(space)
        self._shifts = positions[:-1] - self._starts

    def take(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy the images of some rows."""
        self.images.take(self.places(rows), axis=0, out=out, mode="clip")  # other modes copy `out`

    def views(self, rows: NDArray[np.int64]) -> list[Any]:
        """Return the images of some rows without a copy."""
        images = self.images
        return [images[position] for position in self.places(rows).tolist()]

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where some rows are in `images`."""
        if len(self._ends) == 1:
            return rows
        positions: NDArray[np.int64] = rows + self._shifts[np.searchsorted(self._ends, rows, side="right")]
        return positions
