"""The records of one split of a shard, as columns."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from joulecache.pipelines.building.config import ShardConfig
from joulecache.pipelines.building.images import (
    ImageMaker,
    Made,
    Stored,
    Words,
    decode_cached,
    encode,
    pixel_stats_of,
)
from joulecache.pipelines.building.shard_memory import Encoded, ShardMemory, close_gaps
from joulecache.pipelines.building.spatial_targets import target_rows
from joulecache.pipelines.cache.data_file import PixelStats
from joulecache.pipelines.cache.index import index_schema
from joulecache.pipelines.cache.names import SPLITS
from joulecache.pipelines.cache.rows import Rows
from joulecache.pipelines.source.feature import Target
from joulecache.pipelines.source.features import Features, spatial_features
from joulecache.transforms.chain import output_channels
from joulecache.transforms.randomness import key_hash

_DRAWN_AT_ONCE = 256  # amortizes the cost of a call
_GAP = -1

Images: TypeAlias = NDArray[np.uint8] | list[Encoded]
"""The images of one variant: one array ``[N, H, W, C]``, or encoded ones."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The file of a record, as the index describes it to later updates.

    Attributes:
        size_bytes: Encoded size.
        mtime_ns: Modification time.
        digest: The first half of the SHA-256 of the encoded image.
    """

    size_bytes: int
    mtime_ns: int
    digest: bytes


class SplitColumns:
    """The records of a split while a shard is built, each in the slot that it has in the source. Rejected records leave gaps."""

    def __init__(
        self, config: ShardConfig, features: Features, split: str, keys: Sequence[str], memory: ShardMemory
    ) -> None:
        self.maker = ImageMaker(config, split, features)
        self._config, self._features, self._split, self._keys = config, features, split, keys
        self._memory = memory
        count = len(keys)
        self._hashes = [key_hash(key) for key in keys]
        self._targets: list[tuple[Target, ...] | None] = [None] * count
        self._origins = [Origin(0, 0, b"")] * count
        self._copied, self._previous_rows = [0] * count, [_GAP] * count
        prefix = config.chain_of(split).prefix
        self._channels = output_channels(prefix)
        self._images: list[Images] = [[b""] * count for _ in range(self.maker.variants)]
        size = config.raw_size_of(split)
        self._is_raw = size is not None
        if size is not None:
            shape = (count, *size, self._channels)
            self._images = [memory.array(*shape) for _ in range(self.maker.variants)]
        spatial = spatial_features(features)
        self._spatial = [
            {name: target_rows(feature, count, size, memory) for name, feature in spatial.items()}
            for _ in range(self.maker.variants)
        ]
        self._stats: dict[int, list[PixelStats]] = {}  # of the last variants, the encoded ones that were made, by slot
        self._drawn_block: int | None = None
        self._drawn: list[list[Words]] = []

    def words(self, slot: int) -> list[Words]:
        """Return the random words of a record's variants. They are drawn in blocks, fastest in the order of the slots."""
        block, row = divmod(slot, _DRAWN_AT_ONCE)
        if self._drawn_block != block:
            first = block * _DRAWN_AT_ONCE
            self._drawn = self.maker.draw(self._hashes[first : first + _DRAWN_AT_ONCE])
            self._drawn_block = block
        return self._drawn[row]

    def fill(
        self,
        slot: int,
        targets: tuple[Target, ...],
        origin: Origin,
        made: Sequence[Made],
        *,
        copied: Sequence[Stored] = (),
        previous_row: int = _GAP,
    ) -> None:
        """Fill the slot of a record.

        Args:
            slot: Its slot.
            targets: Its targets, as the index has them.
            origin: Its file.
            made: The last variants, computed.
            copied: The first variants, as an existing cache stores them.
            previous_row: Row of the record in that cache.

        Raises:
            ValueError: An image cannot be encoded.
        """
        stored: list[Made | Stored] = [*copied, *made]
        if not self._is_raw:
            encoded = [encode(each.image, self._config) for each in made]
            stored[len(copied) :] = [Stored(data, each.targets) for (data, _), each in zip(encoded, made, strict=True)]
            self._stats[slot] = [stats for _, stats in encoded]
        for variant, (image, moved) in enumerate(stored):
            kept = self._memory.keep(image) if isinstance(image, bytes) else image
            self._images[variant][slot] = kept  # type: ignore[assignment]
            if moved:
                for rows, target in zip(self._spatial[variant].values(), moved, strict=True):
                    rows.put(slot, target)
        self._targets[slot], self._origins[slot] = targets, origin
        self._copied[slot], self._previous_rows[slot] = len(copied), previous_row

    # Afterwards -------------------------------------------------------------------------------------------------------

    @cached_property
    def _slots(self) -> list[int]:
        return [slot for slot, targets in enumerate(self._targets) if targets is not None]

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def copied(self) -> int:
        """Number of copied images."""
        return sum(self._copied[slot] for slot in self._slots)

    @property
    def source_bytes(self) -> int:
        """Encoded bytes of the records."""
        return sum(self._origins[slot].size_bytes for slot in self._slots)

    def identities(self) -> list[tuple[str, tuple[Target, ...], int]]:
        """Return key, targets and row in the existing cache of each record."""
        return [(self._keys[slot], self._targets[slot] or (), self._previous_rows[slot]) for slot in self._slots]

    @cached_property
    def _target_columns(self) -> dict[str, pa.Array]:
        targets = [self._targets[slot] or () for slot in self._slots]
        return {
            name: feature.column([of_record[place] for of_record in targets])
            for place, (name, feature) in enumerate(self._features.items())
        }

    def rows(self, variant: int) -> Rows:
        """Return the content of the file of a variant."""
        images = self._images[variant] = close_gaps(self._images[variant], self._slots)
        spatial = {name: rows.column(self._slots) for name, rows in self._spatial[variant].items()}
        return Rows(
            images=images if isinstance(images, np.ndarray) else self._memory.column(images),
            features=self._features,
            targets={name: column for name, column in self._target_columns.items() if name not in spatial},
            keys=[self._keys[slot] for slot in self._slots],
            key_hashes=np.array(self._hashes, np.uint64)[self._slots],
            pixel_stats=pixel_stats_of(images) if isinstance(images, np.ndarray) else self._sum_stats(variant, images),
            spatial={name: column for name, (column, _) in spatial.items()},
            summaries={name: summary for name, (_, summary) in spatial.items()},
        )

    def _sum_stats(self, variant: int, images: Sequence[Encoded]) -> PixelStats:
        """Return the sums of the encoded images of a variant; those of copied ones are decoded."""
        each = (
            self._stats[slot][variant - self._copied[slot]]
            if variant >= self._copied[slot]
            else pixel_stats_of(decode_cached(bytes(image), self._channels))
            for slot, image in zip(self._slots, images, strict=True)
        )
        return functools.reduce(operator.add, each)

    def index(self, shard: int) -> pa.RecordBatch:
        """Return the rows of the index."""
        origins = [self._origins[slot] for slot in self._slots]
        columns = {
            "key": [self._keys[slot] for slot in self._slots],
            "key_hash": [self._hashes[slot] for slot in self._slots],
            **self._target_columns,
            "split": [SPLITS.index(self._split)] * len(self),
            "source_bytes": [origin.size_bytes for origin in origins],
            "mtime_ns": [origin.mtime_ns for origin in origins],
            "digest": [origin.digest for origin in origins],
            "shard": [shard] * len(self),
            "row": list(range(len(self))),
        }
        return pa.RecordBatch.from_pydict(columns, index_schema(self._features))
