"""Memory: blocks for batches, that are used again when nobody holds them any more, and how much there is."""

from __future__ import annotations

import math
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

_GROUPS = Path("/proc/self/cgroup")
# Of control groups, by the controllers of a line in /proc/self/cgroup: version 2 names none.
_LIMIT_FILES = {"": ("/sys/fs/cgroup", "memory.max"), "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")}
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
        groups = _GROUPS.read_text("utf-8").splitlines()
    except OSError:
        groups = []
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers not in _LIMIT_FILES:
            continue
        root, name = _LIMIT_FILES[controllers]
        for folder in [Path(root + path), *Path(root + path).parents]:
            with suppress(OSError, ValueError):  # no such group, or "max"
                limits.append(int((folder / name).read_text("utf-8")))
    return min(limits)
