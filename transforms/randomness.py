"""Counter-based random words: a pure function of (seed, key hash, n, op position), never of order, worker or runner.

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11). Its key is the seed, its
counter is (key hash, n, position and block), so any record's draw can be computed on its own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

UNIT = 65536
"""Drawn factors, fractions, degrees and tangents are integers in units of 1 / UNIT."""

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_BLOCK_BITS = 8
MAX_WORDS = 4 << _BLOCK_BITS
"""The maximum number of words per draw: 256 blocks of 4."""


class DrawsWords(Protocol):
    """Anything that uses random words, such as an op."""

    @property
    def random_words(self) -> int:
        """Number of 32-bit words per draw."""


def key_hash(key: str) -> int:
    """Return the 64-bit hash of a record's key: BLAKE2b, little-endian."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def philox(key: tuple[int, int], counter: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint32]:
    """Compute Philox4x32-10.

    Args:
        key: Two 32-bit key words.
        counter: Four arrays of 32-bit counter words that broadcast to one shape S.

    Returns:
        Random words, uint32 ``[*S, 4]``.
    """
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
    ops: Sequence[DrawsWords], first_position: int, seed: int, key_hashes: ArrayLike, n: ArrayLike
) -> list[list[int]]:
    """Return `word_table` as one list of Python ints per record."""
    words: list[list[int]] = word_table(ops, first_position, seed, key_hashes, n).tolist()
    return words


def word_table(
    ops: Sequence[DrawsWords], first_position: int, seed: int, key_hashes: ArrayLike, n: ArrayLike
) -> NDArray[np.int64]:
    """Return the random words that a batch of records draws for `ops`.

    One call costs about a hundred NumPy operations, whatever the batch size: draw whole batches.

    Args:
        ops: The ops, in order.
        first_position: Position of ``ops[0]`` in the whole chain.
        seed: The cache's seed, 64 bits.
        key_hashes: `key_hash` of each record, ``[B]``.
        n: Variant (before the cut) or epoch (after it): one for all records, or one per record.

    Returns:
        32-bit words in the order of the ops, int64 ``[B, W]``.
    """
    hashes = np.atleast_1d(np.asarray(key_hashes, np.uint64))
    blocks: list[int] = []
    columns: list[int] = []
    for position, op in enumerate(ops, first_position):
        columns += range(4 * len(blocks), 4 * len(blocks) + op.random_words)
        blocks += [position << _BLOCK_BITS | block for block in range(math.ceil(op.random_words / 4))]
    if not blocks:
        return np.empty((len(hashes), 0), np.int64)
    rows = hashes[:, None]
    counter = (
        rows & _LOW,
        rows >> _HALF,
        np.broadcast_to(np.asarray(n, np.uint64), hashes.shape)[:, None] & _LOW,
        np.asarray(blocks, np.uint64)[None, :],
    )
    drawn = philox((seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF), counter).reshape(len(hashes), 4 * len(blocks))
    return drawn[:, columns].astype(np.int64)


# Numbers from words ---------------------------------------------------------------------------------------------------


def below(word: int, bound: int) -> int:
    """Map a 32-bit word (or an int64 array of them) to an integer in [0, bound), with a bias of at most bound / 2**32."""
    return word * bound >> 32


def between(word: int, low: float, high: float) -> int:
    """Map a word (or an int64 array of them) to a number in [low, high], in units of 1/65536."""
    first, count = _units(low, high)
    return first + below(word, count)


@lru_cache(maxsize=1024)
def _units(low: float, high: float) -> tuple[int, int]:
    """Return the smallest multiple of 1/65536 in [low, high], in units of 1/65536, and the number of such multiples."""
    first = round(low * UNIT)
    return first, round(high * UNIT) - first + 1


def log_uniform(word: int, low: float, high: float) -> float:
    """Map a word to a float in [low, high), uniform in the logarithm."""
    value = low
    for bit, step in enumerate(_log_steps(low, high)):
        if word >> (31 - bit) & 1:
            value *= step
    return value


def log_uniform_array(words: NDArray[np.int64], low: float, high: float) -> NDArray[np.float64]:
    """Apply `log_uniform` to every word, with the same rounding."""
    values = np.full(len(words), low)
    for bit, step in enumerate(_log_steps(low, high)):
        values *= np.where(words >> (31 - bit) & 1, step, 1.0)
    return values


@lru_cache(maxsize=64)
def _log_steps(low: float, high: float) -> tuple[float, ...]:
    """Return (high / low) to the powers 1/2, 1/4, ... 1/2**32.

    IEEE 754 rounds square roots and products the same on every machine, but not `exp` and `log`.
    """
    steps, step = [], high / low
    for _ in range(32):
        step = math.sqrt(step)
        steps.append(step)
    return tuple(steps)
