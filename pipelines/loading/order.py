"""The order of an epoch: a permutation computed piece by piece, without an array of all records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

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
        shuffle: None for the order of the rows; ``all`` for a uniform permutation; ``blocks`` for whole files in random order, in
            groups of about a window, with their blocks of neighbouring rows in random order, and the rows permuted inside windows
            of blocks. So files are read in pieces of a block, and each file in one part of the epoch.
        block: Rows per block; the last one of a file may have fewer.
        window: Rows per window, in blocks. Windows have up to half a window more.
        files: Number of rows of each file; empty for one file.
    """

    records: int
    seed: int
    shuffle: Literal["all", "blocks"] | None = None
    block: int = 1
    window: int = 1
    files: tuple[int, ...] = field(default=(), hash=False, repr=False)  # long, and follows from the files of a split

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
                starts = _blocks(self, epoch).windows
                first, last = np.searchsorted(starts, [start, stop - 1], side="right") - 1
                windows = [_window(self, epoch, window) for window in range(first, last + 1)]
                return _cut(windows, start - int(starts[first]), stop - start)

    def picks(self, epoch: int, start: int, stop: int) -> tuple[Rows, int | Rows]:
        """Return `rows`, and the draws that they have: those of the epoch, or one for each row."""
        return self.rows(epoch, start, stop), epoch

    def read_ahead(self, epoch: int, start: int, stop: int, *, first: bool) -> list[tuple[int, int]]:
        """Return the ranges of rows to read from disk while positions `start` to `stop` - 1 are consumed; none unless in blocks.

        They cover the part of the next window that is due by then; if reading starts here (`first`), also this window.
        """
        if self.shuffle != "blocks":
            return []
        blocks = _blocks(self, epoch)
        longest = int(np.diff(blocks.windows).max())
        begin, end = np.searchsorted(blocks.positions[:-1], [start + longest, stop + longest])
        if first:
            window = np.searchsorted(blocks.windows, start, side="right") - 1
            begin = np.searchsorted(blocks.positions, blocks.windows[window])
        starts = blocks.starts[begin:end]
        return list(zip(starts.tolist(), (starts + np.diff(blocks.positions)[begin:end]).tolist(), strict=True))

    def groups(self, epoch: int, start: int, stop: int) -> list[list[int]]:
        """Return the files that hold the rows at positions `start` to `stop` - 1, in groups that are read one after the other.

        Every file is in one group of an epoch. Not for ``all``, which has no groups.
        """
        groups = _groups(self, epoch)
        first, last = np.searchsorted(groups.positions, [start, stop - 1], side="right") - 1
        return [groups.files[group] for group in range(first, last + 1)]


class _Groups(NamedTuple):
    """Files in the order of an epoch, by group, and the position where each group starts; its end last."""

    files: list[list[int]]
    positions: Rows


class _Blocks(NamedTuple):
    """Blocks in the order of an epoch: the row where each starts, its position; and the positions of windows. Ends last."""

    starts: Rows
    positions: Rows
    windows: Rows


def _cut(pieces: Sequence[Rows], start: int, count: int) -> Rows:
    joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return joined[start : start + count]


@lru_cache(maxsize=16)
def _chunk(order: Order, epoch: int, chunk: int) -> Rows:
    start = chunk * CHUNK
    return permute(np.arange(start, min(start + CHUNK, order.records)), order.records, (order.seed, epoch, 0))


@lru_cache(maxsize=4)
def _groups(order: Order, epoch: int) -> _Groups:
    files = order.files or (order.records,)
    if order.shuffle is None:
        filled = np.flatnonzero(files)
        return _Groups([[file] for file in filled.tolist()], _ends(np.array(files)[filled]))
    groups: list[list[int]] = [[]]
    positions, position = [0], 0
    for file in filter(files.__getitem__, permute(np.arange(len(files)), len(files), (order.seed, epoch, 0)).tolist()):
        if position - positions[-1] >= order.block * order.window:
            groups.append([])
            positions.append(position)
        groups[-1].append(file)
        position += files[file]
    return _Groups(groups, np.array([*positions, position]))


@lru_cache(maxsize=4)
def _blocks(order: Order, epoch: int) -> _Blocks:
    files = np.array(order.files or (order.records,))
    groups = _groups(order, epoch)
    group_of_file = np.empty(len(files), np.int64)
    for number, group in enumerate(groups.files):
        group_of_file[group] = number
    counts = -(-files // order.block)
    file_of_block = np.repeat(np.arange(len(files)), counts)
    inside = (np.arange(counts.sum()) - np.repeat(_ends(counts)[:-1], counts)) * order.block
    sizes = np.minimum(order.block, files[file_of_block] - inside)
    shuffled = permute(np.arange(len(sizes)), len(sizes), (order.seed, epoch, 1))
    blocks = shuffled[np.argsort(group_of_file[file_of_block[shuffled]], kind="stable")]
    positions = _ends(sizes[blocks])
    windows: list[Rows] = []
    for start, end in zip(groups.positions[:-1], groups.positions[1:], strict=True):
        count = max(1, round((end - start) / (order.block * order.window)))
        wanted = start + np.arange(count) * (end - start) // count
        windows.append(positions[np.searchsorted(positions, wanted)])
    windows.append(positions[-1:])
    starts = _ends(files)[:-1][file_of_block] + inside
    return _Blocks(starts[blocks], positions, np.unique(np.concatenate(windows)))


def _ends(sizes: Rows) -> Rows:
    return np.concatenate([[0], np.cumsum(sizes)])


@lru_cache(maxsize=4)
def _window(order: Order, epoch: int, window: int) -> Rows:
    blocks = _blocks(order, epoch)
    first, last = np.searchsorted(blocks.positions, blocks.windows[window : window + 2])
    sizes = np.diff(blocks.positions[first : last + 1])
    shifts = blocks.starts[first:last] - (np.cumsum(sizes) - sizes)
    rows = np.repeat(shifts, sizes) + np.arange(sizes.sum())
    return rows[permute(np.arange(len(rows)), len(rows), (order.seed, epoch, window + 2))]
