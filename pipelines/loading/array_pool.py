"""A pool of buffers for batches; a buffer is reused as soon as no array refers to it."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_TENSOR_ALIGNMENT = 64  # bytes; TensorFlow copies arrays whose address is not a multiple of this


def tensor_block(size: int) -> NDArray[np.uint8]:
    """Return uninitialized memory for `size` bytes at `tensor_address`."""
    return np.empty(size + _TENSOR_ALIGNMENT, np.uint8)


def tensor_address(block: NDArray[np.uint8]) -> int:
    """Return the first address in a block that TensorFlow uses without a copy."""
    return int(block.ctypes.data + -block.ctypes.data % _TENSOR_ALIGNMENT)


class ArrayPool:
    """Allocates arrays that TensorFlow uses without a copy, and reuses their memory when the last tensor is gone.

    Allocating fresh memory costs as much as filling it.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, list[NDArray[np.uint8]]] = defaultdict(list)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an uninitialized array."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        free = self._free[size]
        try:
            block = free.pop()
        except IndexError:
            block = tensor_block(size)
        return np.asarray(_PooledArray(block, free, shape, np.dtype(dtype).str))


class _PooledArray:
    """A block of memory in use: the array and all its views keep this object, which returns the block when it is deleted."""

    def __init__(
        self, block: NDArray[np.uint8], free: list[NDArray[np.uint8]], shape: tuple[int, ...], typestr: str
    ) -> None:
        self._block, self._free = block, free
        data = tensor_address(block), False
        self.__array_interface__ = {"version": 3, "data": data, "shape": shape, "typestr": typestr}

    def __del__(self) -> None:
        self._free.append(self._block)
