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
    AUGMENTATIONS,
    OPS,
    SIGNED,
    Affine,
    Brightness,
    ColorJitter,
    Contrast,
    Cutmix,
    Cutout,
    GaussianBlur,
    GaussianNoise,
    Hue,
    Mixture,
    Mixup,
    Op,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    Rotate,
    Saturation,
    Sometimes,
    TrivialAugment,
)

UNIT = 65536
"""Factors, shares, degrees and tangents are integers in units of 1 / UNIT."""

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
    drawn = philox((seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF), counter).reshape(len(hashes), 4 * len(blocks))
    return drawn[:, columns].astype(np.int64)


def batch_parameters(op: Op, words: NDArray[np.int64], height: int, width: int) -> list[tuple[int, ...]]:
    """Return `parameters` for every record of a batch of images of one size, from its words, int64 ``[B, W]``."""
    if type(op) is RandomResizedCrop:
        return [tuple(row) for row in _random_resized_crops(op, words, height, width).tolist()]
    draw = _draw_of(op)
    if draw in (None, _rand_augment, _trivial_augment, _mixup, _cutmix):
        return [parameters(op, row, height, width) for row in words.tolist()]
    return list(zip(*(column.tolist() for column in draw(op, words.T, height, width)), strict=True))


def parameters(op: Op, words: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    """Turn an op's random words into the integers that its kernel takes, for an image of that size.

    ======================  ===================================================================================
    random_crop, cutout     (top, left)
    random_resized_crop     (top, left, height, width)
    with a probability      (0 or 1,)
    brightness, contrast,
    saturation              (factor,)
    hue                     (share of the colour circle,)
    color_jitter            (which of the 24 orders, brightness, contrast, saturation, hue)
    rotate                  (degrees,)
    affine                  (degrees, pixels right, pixels down, scale, degrees of shear along x, along y)
    gaussian_blur           (sigma,)
    gaussian_noise          the two words as they are
    rand_augment,
    trivial_augment         (which augmentation, strength) for each in a row
    mixup                   (share of the image itself,)
    cutmix                  (top, left, bottom, right)
    ======================  ===================================================================================

    All but places, orders and words in units of 1/65536. Ops without draws: (). An op of somebody else's: its words.
    """
    if not op.words:
        return ()
    draw = _draw_of(op)
    return draw(op, words, height, width) if draw else tuple(words)


def _draw_of(op: Op) -> Callable[[Any, Any, int, int], tuple[Any, ...]] | None:
    return _DRAWS.get(
        type(op)
    )  # by the very type: an op of somebody else's that derives from one of these gets its words


# The draws below take words that are numbers, or int64 arrays with one number per record, unless they say otherwise.


def _below(word: int, bound: int) -> int:
    """Return a number in [0, bound) from a 32-bit word by multiplication and shift (bias at most bound / 2**32)."""
    return word * bound >> 32


def _between(word: int, low: float, high: float) -> int:
    """Return a number from `low` to `high`, both of them included, in units of 1/65536."""
    first, count = _units(low, high)
    return first + _below(word, count)


@lru_cache(maxsize=1024)
def _units(low: float, high: float) -> tuple[int, int]:
    """Return the first of the numbers from `low` to `high` in units of 1/65536, and how many there are."""
    first = round(low * UNIT)
    return first, round(high * UNIT) - first + 1


def _random_crop(op: RandomCrop, words: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    crop_height, crop_width = op.output_size(height, width)
    return _below(words[0], height - crop_height + 1), _below(words[1], width - crop_width + 1)


def _cutout(op: Cutout, words: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    assert isinstance(op.size, tuple)
    return _below(words[0], height) - op.size[0] // 2, _below(words[1], width) - op.size[1] // 2


def _flip(op: Sometimes, words: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    return ((words[0] < round(op.probability * 2**32)) * 1,)


def _factor(op: Brightness | Contrast | Saturation, words: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    spread = round(op.delta * UNIT)
    return (UNIT - spread + _below(words[0], 2 * spread + 1),)


def _hue(op: Hue, words: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    return (_between(words[0], -op.delta, op.delta),)


def _color_jitter(op: ColorJitter, words: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    ranges = (*op.factors, op.hues)
    return _below(words[0], 24), *(_between(words[i], *bounds) for i, bounds in enumerate(ranges, 1))


def _rotate(op: Rotate, words: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    return (_between(words[0], *op.angles),)


def _affine(op: Affine, words: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    across, down = (0, 0) if op.translate is None else (round(op.translate[0] * width), round(op.translate[1] * height))
    along_x, along_y = op.shears
    return (
        _between(words[0], *op.angles),
        _below(words[1], 2 * across + 1) - across,
        _below(words[2], 2 * down + 1) - down,
        _between(words[3], *(op.scale or (1.0, 1.0))),
        _between(words[4], *along_x),
        _between(words[5], *along_y),
    )


def _sigma(op: GaussianBlur, words: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    return (_between(words[0], *(op.sigma if isinstance(op.sigma, tuple) else (op.sigma, op.sigma))),)


def _words(op: GaussianNoise, words: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    return words[0], words[1]


def _mixup(op: Mixup, words: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    return (_share(op, words[0]),)


def _cutmix(op: Cutmix, words: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    """Return the window of torchvision's `CutMix`. For words that are numbers."""
    middle_y, middle_x = _below(words[1], height), _below(words[2], width)
    radius = 0.5 * math.sqrt(1 - _share(op, words[0]) / UNIT)
    down, across = int(radius * height), int(radius * width)
    top, left = max(middle_y - down, 0), max(middle_x - across, 0)
    return top, left, min(middle_y + down, height), min(middle_x + across, width)


def _share(op: Mixture, word: int) -> int:
    """Return the quantile of Beta(alpha, alpha) at a word, in units of 1/65536. For a word that is a number."""
    if op.alpha == 1:  # uniform
        return word + (1 << 15) >> 16
    from scipy.special import betaincinv

    return round(float(betaincinv(op.alpha, op.alpha, (word + 0.5) / 2**32)) * UNIT)


# Random resized crops -------------------------------------------------------------------------------------------------


def _random_resized_crop(op: RandomResizedCrop, words: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    """Draw one window; for words that are numbers. `_random_resized_crops` draws many, with the same arithmetic."""
    area = height * width
    for area_word, ratio_word in zip(words[0:20:2], words[1:20:2], strict=True):
        target = area * (op.scale[0] + (op.scale[1] - op.scale[0]) * (area_word / 2**32))
        ratio = _log_uniform(op.ratio[0], op.ratio[1], ratio_word)
        crop_width, crop_height = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = _below(words[20], height - crop_height + 1), _below(words[21], width - crop_width + 1)
            return top, left, crop_height, crop_width
    return _central_window(op, height, width)


def _random_resized_crops(
    op: RandomResizedCrop, words: NDArray[np.int64], height: int, width: int
) -> NDArray[np.int64]:
    """Draw the windows (top, left, height, width) of a batch, int64 ``[B, 4]``."""
    windows = np.tile(np.array(_central_window(op, height, width), np.int64), (len(words), 1))
    area = height * width
    waiting = np.arange(len(words))
    for attempt in range(10):  # most records are served by the first
        area_words, ratio_words = words[waiting, 2 * attempt], words[waiting, 2 * attempt + 1]
        target = area * (op.scale[0] + (op.scale[1] - op.scale[0]) * (area_words / 2**32))
        ratio = np.full(len(waiting), op.ratio[0])
        for bit, step in enumerate(_steps(*op.ratio)):
            ratio *= np.where(ratio_words >> (_RATIO_BITS - 1 - bit) & 1, step, 1.0)
        widths, heights = np.rint(np.sqrt(target * ratio)), np.rint(np.sqrt(target / ratio))
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        served = waiting[fits]
        crop_heights, crop_widths = heights[fits].astype(np.int64), widths[fits].astype(np.int64)
        windows[served, 0] = words[served, 20] * (height - crop_heights + 1) >> 32
        windows[served, 1] = words[served, 21] * (width - crop_widths + 1) >> 32
        windows[served, 2], windows[served, 3] = crop_heights, crop_widths
        waiting = waiting[~fits]
        if not len(waiting):
            break
    return windows


def _central_window(op: RandomResizedCrop, height: int, width: int) -> tuple[int, ...]:
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


@lru_cache(maxsize=64)
def _steps(low: float, high: float) -> tuple[float, ...]:
    """Return (high / low) to the powers 1/2, 1/4, ... 1/2**32.

    Products of these give a log-uniform number from random bits by square roots alone, which IEEE 754 rounds the same on every
    machine; `exp` and `log` it does not.
    """
    steps, step = [], high / low
    for _ in range(_RATIO_BITS):
        step = math.sqrt(step)
        steps.append(step)
    return tuple(steps)


# Policies, for words that are numbers ---------------------------------------------------------------------------------


def _rand_augment(op: RandAugment, words: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    drawn: list[int] = []
    for step in range(op.num_ops):
        drawn += _augmentation(op, words[2 * step], words[2 * step + 1], op.magnitude, height, width)
    return tuple(drawn)


def _trivial_augment(op: TrivialAugment, words: Sequence[int], height: int, width: int) -> tuple[int, ...]:
    return _augmentation(op, words[0], words[1], _below(words[2], op.num_magnitude_bins), height, width)


def _augmentation(
    op: RandAugment | TrivialAugment, which_word: int, sign_word: int, magnitude: int, height: int, width: int
) -> tuple[int, int]:
    """Draw (which of `AUGMENTATIONS`, its strength): pixels, bits and levels whole, all else in units of 1/65536."""
    which = _below(which_word, len(AUGMENTATIONS))
    name = AUGMENTATIONS[which]
    first, last = op.strengths(height, width).get(name, (0.0, 0.0))
    strength = first + (last - first) * magnitude / (op.num_magnitude_bins - 1)
    if name in SIGNED and sign_word < 2**31:
        strength = -strength
    match name:
        case "translate_x" | "translate_y":
            return which, int(strength)
        case "posterize":
            return which, round(strength)
        case "solarize":
            return which, math.ceil(strength)
        case _:
            return which, round(strength * UNIT)


_DRAWS: dict[type[Op], Callable[[Any, Any, int, int], tuple[Any, ...]]] = {
    **{kind: _flip for kind in OPS.values() if issubclass(kind, Sometimes)},
    RandomCrop: _random_crop,
    RandomResizedCrop: _random_resized_crop,
    Rotate: _rotate,
    Affine: _affine,
    Cutout: _cutout,
    Brightness: _factor,
    Contrast: _factor,
    Saturation: _factor,
    Hue: _hue,
    ColorJitter: _color_jitter,
    GaussianBlur: _sigma,
    GaussianNoise: _words,
    RandAugment: _rand_augment,
    TrivialAugment: _trivial_augment,
    Mixup: _mixup,
    Cutmix: _cutmix,
}
