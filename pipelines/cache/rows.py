"""The records of one shard file, before they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from joulecache.pipelines.cache.data_file import PixelStats
from joulecache.pipelines.source.features import Features


@dataclass(frozen=True)
class Rows:
    """The records of one shard file, in its order.

    Attributes:
        images: Raw images, uint8 ``[N, H, W, C]``, or N encoded ones.
        features: The features of the targets, by name.
        targets: A column of N targets for each feature.
        keys: N keys.
        key_hashes: uint64 ``[N]``.
        pixel_stats: Sums over the pixels of all images.
    """

    images: NDArray[np.uint8] | Sequence[bytes]
    features: Features
    targets: Mapping[str, pa.Array]
    keys: Sequence[str]
    key_hashes: NDArray[np.uint64]
    pixel_stats: PixelStats

    def __len__(self) -> int:
        return len(self.keys)
