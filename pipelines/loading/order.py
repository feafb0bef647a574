"""The order of an epoch: a permutation computed piece by piece, without an array of all records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.loading.permutation import SMALLEST_DOMAIN, permute

Rows = NDArray[np.int64]

CHUNK = SMALLEST_DOMAIN
"""Positions of a permutation that are computed at once."""


@dataclass(frozen=True)
class Order:
    """The order of rows in an epoch; a function of `seed` and the epoch alone.

    Saved iterators depend on the names, order and values of these fields.

    Attributes:
        records: Number of rows.
        seed: Seed of the permutations.
        shuffle: None for the order of the rows; ``all`` for a uniform permutation; ``blocks`` for blocks of neighbouring rows in
            random order, with the rows permuted inside windows of blocks, so that files are read in pieces of a block.
        block: Rows per block.
        window: Blocks per window.
    """

    records: int
    seed: int
    shuffle: Literal["all", "blocks"] | None = None
    block: int = 1
    window: int = 1

    def rows(self, epoch: int, start: int, stop: int) -> Rows:
        """Return the rows at positions `start` to `stop` - 1, int64 ``[stop - start]``."""
        if start == stop:
            return np.empty(0, np.int64)
        match self.shuffle:
            case None:
                return np.arange(start, stop)
            case "all":
                chunks = range(start // CHUNK, -(-stop // CHUNK))
                return _cut([_chunk(self, epoch, chunk) for chunk in chunks], start - chunks[0] * CHUNK, stop - start)
            case "blocks":
                starts = _windows(self, epoch)[1]
                first, last = np.searchsorted(starts, [start, stop - 1], side="right") - 1
                windows = [_window(self, epoch, window) for window in range(first, last + 1)]
                return _cut(windows, start - int(starts[first]), stop - start)

    def read_ahead(self, epoch: int, start: int, stop: int, *, first: bool) -> list[tuple[int, int]]:
        """Return the ranges of rows to read from disk while positions `start` to `stop` - 1 are consumed; none unless in blocks.

        They cover the part of the next window that is due by then; if reading starts here (`first`), also this window.
        """
        if self.shuffle != "blocks":
            return []
        blocks, starts = _windows(self, epoch)
        begin, end = (place // self.block + self.window for place in (start, stop + self.block - 1))
        if first:
            begin = int(np.searchsorted(starts, start, side="right") - 1) * self.window
        rows = blocks[begin:end] * self.block
        return list(zip(rows.tolist(), np.minimum(rows + self.block, self.records).tolist(), strict=True))


def _cut(pieces: Sequence[Rows], start: int, count: int) -> Rows:
    joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return joined[start : start + count]


@lru_cache(maxsize=16)
def _chunk(order: Order, epoch: int, chunk: int) -> Rows:
    start = chunk * CHUNK
    return permute(np.arange(start, min(start + CHUNK, order.records)), order.records, (order.seed, epoch, 0))


@lru_cache(maxsize=4)
def _windows(order: Order, epoch: int) -> tuple[Rows, Rows]:
    """Return the blocks in the order of the epoch, and the position where each window of them starts."""
    count = -(-order.records // order.block)
    blocks = permute(np.arange(count), count, (order.seed, epoch, 0))
    sizes = np.minimum(order.block, order.records - blocks * order.block)  # the last block may be shorter
    return blocks, np.concatenate([[0], np.cumsum(sizes)])[: -1 : order.window]


@lru_cache(maxsize=4)
def _window(order: Order, epoch: int, window: int) -> Rows:
    blocks = _windows(order, epoch)[0][window * order.window :][: order.window]
    rows = (blocks[:, None] * order.block + np.arange(order.block)).reshape(-1)
    rows = rows[rows < order.records]
    return rows[permute(np.arange(len(rows)), len(rows), (order.seed, epoch, window + 1))]
