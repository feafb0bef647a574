"""The memory of a shard's raw images and masks while it is built: that of the process, or a file for a large shard."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.core.memory import array_on_disk

PROCESS_BYTES = 128 << 20
"""What a shard may have in the memory of a process. A worker has two shards."""

Allocate: TypeAlias = Callable[[tuple[int, ...]], NDArray[np.uint8]]
"""Returns an array of a shape."""
T = TypeVar("T", NDArray[np.uint8], "NDArray[np.uint8] | list[bytes]")


class Allocator:
    """Allocates the arrays of one shard: small ones in the memory of this process, those beyond `PROCESS_BYTES` in files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._left = folder, PROCESS_BYTES

    def __call__(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return an array; OSError if the disk is full."""
        size = math.prod(shape)
        if size > self._left:
            return array_on_disk(shape, self._folder)
        self._left -= size
        return np.empty(shape, np.uint8)


def close_gaps(images: T, slots: Sequence[int]) -> T:
    """Move the images in some slots, in ascending order, to the start, in place; return these images."""
    if len(slots) < len(images):
        for row, slot in enumerate(slots):
            if row != slot:
                images[row] = images[slot]
    return images[: len(slots)]
