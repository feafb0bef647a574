"""Pseudorandom permutations of any length, evaluated at any positions without storing them.

A value is encrypted by the block cipher Simon (https://eprint.iacr.org/2013/404) on the smallest even number of bits that
holds it, at least 16, and again while the result is out of range (cycle walking). Word size, key schedule and round function
are those of TensorFlow's ``RandomIndexShuffle``, so both give the same order; this one is vectorised and needs no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

SMALLEST_DOMAIN = 1 << 16
"""Permutations up to this length cost as much as one of this length."""

# `RandomIndexShuffle` has 4 by default, which leaves neighbours among a million records near each other: their positions
# correlate by 0.4. From 12 on there is no measurable correlation.
_ROUNDS = 16
_KEY_WORDS = 3
_CONSTANT = 0xFFFFFFFC
_SEQUENCE = 0x7369F885192C0EF5
_TABLE_BITS = 16  # larger tables do not fit in the processor's cache


def permute(places: Integers, count: int, key: tuple[int, int, int]) -> Integers:
    """Return the values of a permutation of ``range(count)`` at positions `places`, both int64 ``[N]``.

    `key` selects the permutation; only the low bits of each of its numbers are used, half as many as a block has.
    """
    if count == 1:
        return np.zeros_like(places)
    word_bits = max(SMALLEST_DOMAIN.bit_length() - 1, (count - 1).bit_length() + 1) // 2
    keys = _round_keys(key, word_bits)
    if count <= SMALLEST_DOMAIN:
        return _walk_table(_encrypt(np.arange(SMALLEST_DOMAIN), keys, word_bits), count)[places]
    values = _encrypt(places, keys, word_bits)
    walking = np.flatnonzero(values >= count)
    while walking.size:
        values[walking] = _encrypt(values[walking], keys, word_bits)
        walking = walking[values[walking] >= count]
    return values


def _walk_table(values: Integers, count: int) -> Integers:
    """Walk every cycle of a whole permutation to its next value below `count`, in steps that double."""
    step = np.where(np.arange(len(values)) < count, np.arange(len(values)), values)
    values = values[:count]
    while (values >= count).any():
        values = step[values]
        step = step[step]
    return values


def _round_keys(key: Sequence[int], bits: int) -> list[int]:
    mask = (1 << bits) - 1
    keys = [word & mask for word in key]
    for position in range(_ROUNDS - _KEY_WORDS):
        last = keys[-1]
        rotated = (last >> 3 | last << bits - 3) ^ (last >> 4 | last << bits - 4)
        keys.append((_CONSTANT ^ (_SEQUENCE & mask) >> position & 1 ^ keys[-_KEY_WORDS] ^ rotated) & mask)
    return keys


def _encrypt(values: Integers, keys: Sequence[int], bits: int) -> Integers:
    """Return new values of twice `bits` bits."""
    left, right = values >> bits, values & (1 << bits) - 1
    for even, odd in zip(keys[::2], keys[1::2], strict=True):
        left ^= _mixed(right, bits)
        left ^= even
        right ^= _mixed(left, bits)
        right ^= odd
    left <<= bits
    left |= right
    return left


def _mixed(words: Integers, bits: int) -> Integers:
    return _mix_table(bits).take(words, mode="clip") if bits <= _TABLE_BITS else _mix(words, bits)


@lru_cache
def _mix_table(bits: int) -> Integers:
    return _mix(np.arange(1 << bits), bits)


def _mix(words: Integers, bits: int) -> Integers:
    """Return Simon's round function of words of `bits` bits."""
    one, two, eight = (words << shift | words >> bits - shift for shift in (1, 2, 8))
    mixed: Integers = (one & eight ^ two) & (1 << bits) - 1
    return mixed
