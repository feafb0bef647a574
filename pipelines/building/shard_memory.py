"""The memory of a shard while it is built: that of the process, and files for a large shard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.building.config import BuildError
from joulecache.pipelines.cache.encoded_column import EncodedColumn
from joulecache.pipelines.core.memory import array_on_disk

PROCESS_BYTES = 128 << 20
"""What a shard may have in the memory of a process. A worker has two shards."""

_BLOCK_BYTES = 32 << 20  # of encoded images in a file; each file is open as long as the shard

Encoded: TypeAlias = bytes | memoryview
T = TypeVar("T", NDArray[np.uint8], "NDArray[np.uint8] | list[Encoded]")


class ShardMemory:
    """Holds the images and masks of one shard: `PROCESS_BYTES` in the memory of this process, the rest in files of the cache folder.

    The files have no name, and all their space is reserved: a full disk is an error here, where later it would stop the process.
    """

    def __init__(self, folder: Path, shard: int) -> None:
        self._folder, self._shard, self._left = folder, shard, PROCESS_BYTES
        self._block = memoryview(b"")

    def array(self, *shape: int) -> NDArray[np.uint8]:
        """Return an array of a shape; raises BuildError if the disk is full."""
        return np.empty(shape, np.uint8) if self._fits(math.prod(shape)) else self._on_disk(*shape)

    def keep(self, data: bytes) -> Encoded:
        """Return an encoded image, perhaps from a file; raises BuildError if the disk is full."""
        size = len(data)
        if self._fits(size):
            return data
        if size > len(self._block):
            self._block = self._on_disk(max(_BLOCK_BYTES, size)).data
        kept, self._block = self._block[:size], self._block[size:]
        kept[:] = data
        return kept

    def column(self, images: Sequence[Encoded]) -> EncodedColumn:
        """Return encoded images as one buffer; raises BuildError if the disk is full."""
        return EncodedColumn.of(images, self.array)

    def _fits(self, size: int) -> bool:
        if size > self._left:
            return False
        self._left -= size
        return True

    def _on_disk(self, *shape: int) -> NDArray[np.uint8]:
        try:
            return array_on_disk(shape, self._folder)
        except OSError as error:
            raise BuildError(
                f"shard {self._shard} has no room on the disk of {str(self._folder)!r}: {error.strerror}"
            ) from error


def close_gaps(images: T, slots: Sequence[int]) -> T:
    """Move the images in some slots, in ascending order, to the start, in place; return these images."""
    if len(slots) < len(images):
        for row, slot in enumerate(slots):
            if row != slot:
                images[row] = images[slot]
    return images[: len(slots)]
