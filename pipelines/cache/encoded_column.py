"""Encoded images or masks, one after the other in one buffer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def _in_memory(size: int) -> NDArray[np.uint8]:
    return np.empty(size, np.uint8)


class EncodedColumn(Sequence[Any]):
    """Encoded images as views of one buffer. A scalar of pyarrow would be a copy, whose address is not in a mapped file.

    Attributes:
        values: The bytes of all images, uint8.
        ends: Where the first image starts and where each of N ends, ``[N + 1]``.
    """

    def __init__(self, values: NDArray[np.uint8], ends: NDArray[np.integer[Any]]) -> None:
        self.values, self.ends = values, ends

    @classmethod
    def of(
        cls, images: Sequence[bytes | memoryview], allocate: Callable[[int], NDArray[np.uint8]] = _in_memory
    ) -> EncodedColumn:
        """Return copies of encoded images; `allocate` returns uninitialized memory, given its bytes."""
        ends = np.cumsum([0, *map(len, images)], dtype=np.int64)
        values = allocate(int(ends[-1]))
        for row, image in enumerate(images):
            values.data[ends[row] : ends[row + 1]] = image
        return cls(values, ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, row: Any) -> Any:
        return self.values[self.ends[row] : self.ends[row + 1]]
