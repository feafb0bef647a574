"""Columns of targets that move with the pixels: what the records of one shard file, or of a variant, have for one feature."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.cache.encoded_column import EncodedColumn
from joulecache.transforms.targets import BoxesTarget


@dataclass(frozen=True, eq=False)
class BoxRows:
    """The boxes of several images, those of each after those of the one before.

    Attributes:
        counts: Number of boxes of each image, int64 ``[N]``.
        boxes: Left, top, right and bottom of all boxes in pixels, float32 ``[total, 4]``.
        classes: Numbers of their classes, int64 ``[total]``.
    """

    counts: NDArray[np.int64]
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, row: int) -> BoxesTarget:
        """Return the boxes of one image."""
        start, stop = int(self.starts[row]), int(self.starts[row] + self.counts[row])
        return BoxesTarget(self.boxes[start:stop], self.classes[start:stop])

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Place of the first box of each image, int64 ``[N]``."""
        return np.cumsum(self.counts) - self.counts

    def take(self, rows: NDArray[np.int64]) -> BoxRows:
        """Return the boxes of some images, int64 ``[B]``, in this order."""
        counts = self.counts[rows]
        shifts = self.starts[rows] - (np.cumsum(counts) - counts)
        places = np.repeat(shifts, counts) + np.arange(counts.sum())
        return BoxRows(counts, self.boxes[places], self.classes[places])

    @classmethod
    def of(cls, images: Sequence[BoxesTarget]) -> BoxRows:
        """Return the boxes of each of several images as one object."""
        return cls(
            np.array([len(each.classes) for each in images], np.int64),
            np.concatenate([np.empty((0, 4), np.float32), *(each.boxes for each in images)]),
            np.concatenate([np.empty(0, np.int64), *(each.classes for each in images)]),
        )

    @classmethod
    def joined(cls, parts: Iterable[BoxRows]) -> BoxRows:
        """Return the boxes of the images of all parts."""
        found = list(parts)
        return cls(
            *(np.concatenate(each) for each in zip(*((p.counts, p.boxes, p.classes) for p in found), strict=True))
        )


PointRows: TypeAlias = NDArray[np.float32]
"""Points of several images, float32 ``[N, n, 3]``."""

StoredColumn: TypeAlias = NDArray[np.uint8] | EncodedColumn | Sequence[bytes] | BoxRows | PointRows
"""A column: raw masks, uint8 ``[N, H, W, 1]``; masks as PNG; boxes; or points."""
