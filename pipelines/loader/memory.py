"""Memory: blocks for batches, that are used again when nobody holds them any more, and how much there is."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

_TENSOR_ALIGNMENT = 64  # bytes: TensorFlow takes over what begins at a multiple of it, and copies all else


class BatchMemory:
    """Makes arrays such as TensorFlow takes over without a copy; it lets go of them when the tensor is gone.

    New memory costs as much as filling it: what comes back is handed out again.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, list[NDArray[np.uint8]]] = defaultdict(list)

    def array(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return an array with anything in it."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        free = self._free[size]
        try:
            block = free.pop()
        except IndexError:
            block = np.empty(size + _TENSOR_ALIGNMENT, np.uint8)
        address = block.ctypes.data + -block.ctypes.data % _TENSOR_ALIGNMENT
        return np.asarray(_Loan(block, free, address, shape, np.dtype(dtype).str))


class _Loan:
    """A block of memory while it is an array: the array and all its views hold this object, whose end gives the block back."""

    def __init__(
        self, block: NDArray[np.uint8], free: list[NDArray[np.uint8]], address: int, shape: tuple[int, ...], kind: str
    ) -> None:
        self._block, self._free = block, free
        self.__array_interface__ = {"version": 3, "data": (address, False), "shape": shape, "typestr": kind}

    def __del__(self) -> None:
        self._free.append(self._block)


def memory_limit() -> int:
    """Return the bytes of memory that this process may use: those of the machine, or of the smallest control group around it."""
    limits = [int(psutil.virtual_memory().total)]
    try:
        own = Path("/proc/self/cgroup").read_text("utf-8").partition("0::/")[2].splitlines()
    except OSError:
        own = []
    root = Path("/sys/fs/cgroup")
    for folder in [root / own[0], *(root / own[0]).parents] if own else []:
        try:
            limits.append(int((folder / "memory.max").read_text("utf-8")))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min(limits)
