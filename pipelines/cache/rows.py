"""The records of one shard file, before they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from joulecache.pipelines.cache.data_file import PixelStats, TargetSummary
from joulecache.pipelines.cache.encoded_column import EncodedColumn
from joulecache.pipelines.cache.spatial_columns import StoredColumn
from joulecache.pipelines.source.features import Features
from joulecache.pipelines.source.spatial import Mask


@dataclass(frozen=True)
class Rows:
    """The records of one shard file, in its order.

    Attributes:
        images: Raw images, uint8 ``[N, H, W, C]``, or N encoded ones.
        features: The features of the targets, by name.
        targets: A column of N targets for each feature whose targets do not move with the pixels.
        keys: N keys.
        key_hashes: uint64 ``[N]``.
        pixel_stats: Sums over the pixels of all images.
        spatial: A column of N targets for each other feature.
        summaries: What each of these columns has.
    """

    images: NDArray[np.uint8] | EncodedColumn
    features: Features
    targets: Mapping[str, pa.Array]
    keys: Sequence[str]
    key_hashes: NDArray[np.uint64]
    pixel_stats: PixelStats
    spatial: Mapping[str, StoredColumn] = field(default_factory=dict)
    summaries: Mapping[str, TargetSummary] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def masks(self) -> dict[str, NDArray[np.uint8] | EncodedColumn]:
        """The columns of masks."""
        return {
            name: cast("NDArray[np.uint8] | EncodedColumn", self.spatial[name])
            for name, feature in self.features.items()
            if isinstance(feature, Mask)
        }
