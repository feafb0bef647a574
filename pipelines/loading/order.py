"""The order of an epoch: a permutation that is computed where it is needed, so that no array of all records is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Shuffle = Literal["all", "blocks"]

CHUNK = 4096  # places of an epoch's order that are computed at once
BLOCK_BYTES = 1 << 20  # read in one go: at most two pages of it are read in vain
WINDOW_BYTES = 128 << 20  # shuffled together; this and the next lie in the page cache
# Of the block cipher that permutes. `index_shuffle` has 4, and of a million records puts neighbours near neighbours: their places
# correlate by 0.4. From 12 on nothing is seen; 16 cost 0.04 us per image more than 4.
_ROUNDS = 16


@dataclass(frozen=True)
class Order:
    """Which row comes at which place of an epoch: a function of `seed` and the epoch alone.

    `shuffle` None is the order of the rows. "all" is a uniform permutation. "blocks" takes blocks of `block` neighbouring rows in random
    order, `window` of them at a time, and permutes the rows inside a window: what is read is read in pieces as large as a block.
    """

    records: int
    seed: int
    shuffle: Shuffle | None = None
    block: int = 1
    window: int = 1

    def rows(self, epoch: int, start: int, stop: int) -> Rows:
        """Return the rows at the places from `start` to before `stop`."""
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

    def ahead(self, epoch: int, start: int, stop: int, begins: bool) -> list[tuple[int, int]]:
        """Return the ranges of rows to be read from disk while those places are fed, none unless in blocks.

        They are the same part of the next window; where reading begins, all of this one too.
        """
        if self.shuffle != "blocks":
            return []
        blocks, starts = _windows(self, epoch)
        first, last = (place // self.block + self.window for place in (start, stop + self.block - 1))
        if begins:
            first = int(np.searchsorted(starts, start, side="right") - 1) * self.window
        begin = blocks[first:last] * self.block
        return list(zip(begin.tolist(), np.minimum(begin + self.block, self.records).tolist(), strict=True))


def _cut(pieces: Sequence[Rows], start: int, count: int) -> Rows:
    joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return joined[start : start + count]


def permuted(places: Rows, count: int, key: tuple[int, int, int]) -> Rows:
    """Return where a permutation of `count`, given by a key of numbers below 2**64, puts places."""
    words, last = np.array(key, np.uint64), np.int64(count - 1)
    rows: Rows = tf.raw_ops.RandomIndexShuffle(index=places, seed=words, max_index=last, rounds=_ROUNDS).numpy()
    return rows


@lru_cache(maxsize=64)
def _chunk(order: Order, epoch: int, chunk: int) -> Rows:
    start = chunk * CHUNK
    return permuted(np.arange(start, min(start + CHUNK, order.records)), order.records, (order.seed, epoch, 0))


@lru_cache(maxsize=4)
def _windows(order: Order, epoch: int) -> tuple[Rows, Rows]:
    """Return the blocks in the order of the epoch, and the place where each window of them begins."""
    count = -(-order.records // order.block)
    blocks = permuted(np.arange(count), count, (order.seed, epoch, 0))
    sizes = np.minimum(order.block, order.records - blocks * order.block)  # the last one is shorter
    return blocks, np.concatenate([[0], np.cumsum(sizes)])[: -1 : order.window]


@lru_cache(maxsize=4)
def _window(order: Order, epoch: int, window: int) -> Rows:
    blocks = _windows(order, epoch)[0][window * order.window :][: order.window]
    rows = (blocks[:, None] * order.block + np.arange(order.block)).reshape(-1)
    rows = rows[rows < order.records]
    return rows[permuted(np.arange(len(rows)), len(rows), (order.seed, epoch, window + 1))]
