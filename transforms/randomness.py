"""Random parameters as a pure function of (seed, key hash, n, op position): never of order, worker or runner.

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11): the key is the seed, the
counter is (key hash, n, position and block), so that any record's draw can be had without the ones before it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from joulecache.transforms.ops import (
    Brightness,
    Contrast,
    FlipLr,
    Op,
    RandomCrop,
    RandomResizedCrop,
    root_steps,
)

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_RATIO_BITS = 32
_BLOCK_BITS = 8  # a draw takes at most 256 blocks of 4 words


def key_hash(key: str) -> int:
    """Return the 64-bit hash of a record's key: BLAKE2b, little-endian."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def philox(key: tuple[int, int], counter: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint32]:
    """Return Philox4x32-10 of four 32-bit counter words that broadcast to shape S; uint32 ``[*S, 4]``."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0 = _MULTIPLIERS[0] * c0
        p1 = _MULTIPLIERS[1] * c2
        c0 = (p1 >> _HALF) ^ c1 ^ np.uint64(k0)
        c2 = (p0 >> _HALF) ^ c3 ^ np.uint64(k1)
        c1 = p1 & _LOW
        c3 = p0 & _LOW
        k0 = (k0 + _WEYL[0]) & 0xFFFFFFFF
        k1 = (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1).astype(np.uint32)


def random_words(
    ops: Sequence[Op], first_position: int, seed: int, key_hashes: ArrayLike, n: ArrayLike
) -> list[list[int]]:
    """Return for each record the 32-bit words that its draws of all `ops` take: `word_table` as lists of numbers."""
    words: list[list[int]] = word_table(ops, first_position, seed, key_hashes, n).tolist()
    return words


def word_table(
    ops: Sequence[Op], first_position: int, seed: int, key_hashes: ArrayLike, n: ArrayLike
) -> NDArray[np.int64]:
    """Return the 32-bit words that the records' draws of all `ops` take, in the order of the ops; int64 ``[B, W]``.

    `first_position` is the place of ``ops[0]`` in the whole chain; `n` is one number or one per record. One call serves a
    whole batch: its cost is that of some hundred NumPy operations, whatever the batch.
    """
    hashes = np.atleast_1d(np.asarray(key_hashes, np.uint64))
    blocks: list[int] = []
    columns: list[int] = []
    for position, op in enumerate(ops, first_position):
        columns += range(4 * len(blocks), 4 * len(blocks) + op.words)
        blocks += [position << _BLOCK_BITS | block for block in range(math.ceil(op.words / 4))]
    if not blocks:
        return np.empty((len(hashes), 0), np.int64)
    rows = hashes[:, None]
    counter = (
        rows & _LOW,
        rows >> _HALF,
        np.broadcast_to(np.asarray(n, np.uint64), hashes.shape)[:, None] & _LOW,
        np.asarray(blocks, np.uint64)[None, :],
    )
    drawn = philox((seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF), counter).reshape(len(hashes), -1)
    return drawn[:, columns].astype(np.int64)


def batch_parameters(op: Op, words: NDArray[np.int64], height: int, width: int) -> list[tuple[int, ...]]:
    """Return `parameters` for every record of a batch of images of one size, from its words, int64 ``[B, W]``."""
    draw = _DRAWS.get(type(op))
    if draw is None or draw is _random_resized_crop:
        return [parameters(op, row, height, width) for row in words.tolist()]
    return list(zip(*(column.tolist() for column in draw(op, words.T, height, width)), strict=True))


def parameters(op: Op, words: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    """Turn an op's random words into the integers that its kernel takes, for an image of that size.

    random_crop: (top, left). random_resized_crop: (top, left, height, width). flip_lr: (0 or 1,). brightness and contrast: (factor in
    units of 1/65536,). Ops without draws: ().
    """
    if not op.words:
        return ()
    draw = _DRAWS.get(type(op))
    return draw(op, words, height, width) if draw else tuple(words)


def _below(word: int, bound: int) -> int:
    """Return a number in [0, bound) from a 32-bit word by multiplication and shift (bias at most bound / 2**32).

    Like the draws below but random_resized_crop it also takes an int64 array of words, one per record.
    """
    return word * bound >> 32


def _random_crop(op: RandomCrop, words: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    crop_height, crop_width = op.output_size(height, width)
    return _below(words[0], height - crop_height + 1), _below(words[1], width - crop_width + 1)


def _random_resized_crop(op: RandomResizedCrop, words: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    area = height * width
    for area_word, ratio_word in zip(words[0:20:2], words[1:20:2], strict=True):
        target = area * (op.scale[0] + (op.scale[1] - op.scale[0]) * (area_word / 2**32))
        ratio = _log_uniform(op.ratio[0], op.ratio[1], ratio_word)
        crop_width, crop_height = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = _below(words[20], height - crop_height + 1), _below(words[21], width - crop_width + 1)
            return top, left, crop_height, crop_width
    crop_height, crop_width = height, width
    if width / height < op.ratio[0]:
        crop_height = max(1, round(width / op.ratio[0]))
    elif width / height > op.ratio[1]:
        crop_width = max(1, round(height * op.ratio[1]))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _log_uniform(low: float, high: float, word: int) -> float:
    value = low
    for bit, step in enumerate(_steps(low, high)):
        if word >> (_RATIO_BITS - 1 - bit) & 1:
            value *= step
    return value


_steps = lru_cache(maxsize=64)(lambda low, high: root_steps(low, high, _RATIO_BITS))


def _flip(op: FlipLr, words: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    return ((words[0] < round(op.probability * 2**32)) * 1,)


def _factor(op: Brightness | Contrast, words: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    spread = round(op.delta * 65536)
    return (65536 - spread + _below(words[0], 2 * spread + 1),)


_DRAWS: dict[type[Op], Callable[[Any, Any, int, int], tuple[Any, ...]]] = {
    RandomCrop: _random_crop,
    RandomResizedCrop: _random_resized_crop,
    FlipLr: _flip,
    Brightness: _factor,
    Contrast: _factor,
}
