"""The records of one shard file, before they are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.cache.data_file import PixelStats


@dataclass(frozen=True)
class Rows:
    """The records of one shard file, in its order.

    Attributes:
        images: Raw images, uint8 ``[N, H, W, C]``, or N encoded ones.
        labels: int64 ``[N]``.
        keys: N keys.
        key_hashes: uint64 ``[N]``.
        pixel_stats: Sums over the pixels of all images.
    """

    images: NDArray[np.uint8] | Sequence[bytes]
    labels: NDArray[np.int64]
    keys: Sequence[str]
    key_hashes: NDArray[np.uint64]
    pixel_stats: PixelStats

    def __len__(self) -> int:
        return len(self.keys)
