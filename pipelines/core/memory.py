"""The memory of this process: its limit, and how its allocator reuses it."""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

_PROC = Path("/proc")
_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # options of mallopt
# (Folder, file) of the limit, by controller in /proc/self/cgroup; "" is cgroup version 2.
_LIMIT_FILES = {"": ("", "memory.max"), "memory": ("memory", "memory.limit_in_bytes")}


def memory_limit(proc: Path = _PROC, control_groups: Path = _CONTROL_GROUPS) -> int:
    """Return the bytes of memory that this process may use: the machine's, or the lowest limit of its control groups."""
    limits = [int(psutil.virtual_memory().total)]
    try:
        lines = (proc / "self" / "cgroup").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers not in _LIMIT_FILES:
            continue
        hierarchy, name = _LIMIT_FILES[controllers]
        folder = control_groups / hierarchy / group.lstrip("/")
        for ancestor in (folder, *folder.parents):
            with suppress(OSError, ValueError):  # no such group, or "max"
                limits.append(int((ancestor / name).read_text("utf-8")))
    return min(limits)


@functools.cache
def reuse_memory() -> None:
    """Make glibc reuse the memory of images, instead of mapping new pages for each, which costs up to a third of the CPU of a build.

    The process keeps up to 256 MB that it has freed. Other C libraries are left alone. MALLOC_TRIM_THRESHOLD_ is overruled: Dask
    sets it to 64 KiB for all its workers.
    """
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, 256 << 20)
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20)


def array_on_disk(shape: tuple[int, ...], folder: Path) -> NDArray[np.uint8]:
    """Return zeros in a file without a name, which the kernel writes when memory is short and deletes with the array or the process.

    Args:
        shape: Shape of the array.
        folder: The folder whose disk has the file.

    Raises:
        OSError: The disk has not enough space, all of which is reserved here: later, a full disk would stop the process.
    """
    size = max(1, math.prod(shape))
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)
        return np.ndarray(shape, np.uint8, buffer=mmap.mmap(file.fileno(), size))
