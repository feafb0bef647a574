"""Ops that map each level through a lookup table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from joulecache.transforms.images import LEVELS, Array, Pixels, as_array, clipped, histograms, look_up
from joulecache.transforms.ops.arguments import integer, number
from joulecache.transforms.ops.base import RandomApply


@dataclass(frozen=True)
class Autocontrast(RandomApply):
    """Stretch each channel from 0 to 255, with a probability.

    ``[H, W, C]`` uint8 to the same shape: (level - darkest) * 255 / (lightest - darkest), rounded down; a channel of one level
    is unchanged. torchvision's `RandomAutocontrast`.

    Attributes:
        probability: From 0 to 1.
    """

    typical = (1.0,)
    probability: float = 0.5

    def apply(self, image: Pixels) -> Array:
        return stretched(image)


@dataclass(frozen=True)
class Equalize(RandomApply):
    """Equalize the histogram of each channel, with a probability.

    ``[H, W, C]`` uint8 to the same shape. Pillow's `ImageOps.equalize`, which is torchvision's `RandomEqualize`.

    Attributes:
        probability: From 0 to 1.
    """

    typical = (1.0,)
    probability: float = 0.5

    def apply(self, image: Pixels) -> Array:
        return equalized(image)


@dataclass(frozen=True)
class Posterize(RandomApply):
    """Keep the high bits of every level, with a probability.

    ``[H, W, C]`` uint8 to the same shape: torchvision's `RandomPosterize`.

    Attributes:
        bits: Number of bits to keep, from 0 to 8.
        probability: From 0 to 1.
    """

    typical = (4, 1.0)
    bits: int
    probability: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        integer(self, "bits", self.bits, 0, 8)

    def apply(self, image: Pixels) -> Array:
        return posterized(image, self.bits)


@dataclass(frozen=True)
class Solarize(RandomApply):
    """Invert levels above a threshold, with a probability.

    ``[H, W, C]`` uint8 to the same shape: torchvision's `RandomSolarize`.

    Attributes:
        threshold: The smallest inverted level, from 0 to 256.
        probability: From 0 to 1.
    """

    typical = (128, 1.0)
    threshold: float
    probability: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "threshold", number(self, "threshold", self.threshold, 0.0, 256.0))

    def apply(self, image: Pixels) -> Array:
        return solarized(image, self.threshold)


# The formulas, which policies share --------------------------------------------------------------------------------------


def stretched(image: Pixels) -> Array:
    """Stretch the levels of each channel from 0 to 255."""
    counts = histograms(image)
    tables = np.empty((len(counts), 256), np.uint8)
    for table, histogram in zip(tables, counts, strict=True):
        found = np.flatnonzero(histogram)
        darkest, lightest = int(found[0]), int(found[-1])
        span = lightest - darkest
        table[:] = clipped((LEVELS - darkest) * 255 // span) if span else LEVELS
    return look_up(tables, image)


def equalized(image: Pixels) -> Array:
    """Equalize the histogram of each channel like Pillow, in steps of 1/255 of the pixels below the lightest level."""
    counts = histograms(image)
    tables = np.empty((len(counts), 256), np.uint8)
    for table, histogram in zip(tables, counts, strict=True):
        found = np.flatnonzero(histogram)
        step = int(histogram.sum() - histogram[found[-1]]) // 255
        before = np.cumsum(histogram) - histogram
        table[:] = clipped((before + step // 2) // step) if step else LEVELS
    return look_up(tables, image)


def posterized(image: Pixels, bits: int) -> Array:
    """Keep the high bits of every level."""
    return as_array(image) & np.uint8(256 - (1 << 8 - bits))


def solarized(image: Pixels, threshold: float) -> Array:
    """Invert levels from the threshold upwards."""
    return look_up(np.where(threshold <= LEVELS, 255 - LEVELS, LEVELS).astype(np.uint8), image)
