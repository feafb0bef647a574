"""Ops that map each level through a lookup table."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from joulecache.transforms import kernels
from joulecache.transforms.images import Array
from joulecache.transforms.ops.arguments import integer, number
from joulecache.transforms.ops.base import Photometric, RandomApply


@dataclass(frozen=True)
class Autocontrast(RandomApply, Photometric):
    """Stretch each channel from 0 to 255, with a probability.

    ``[H, W, C]`` uint8 to the same shape: (level - darkest) * 255 / (lightest - darkest), rounded down; a channel of one level
    is unchanged. torchvision's `RandomAutocontrast`.

    Attributes:
        probability: From 0 to 1.
    """

    typical = (1.0,)
    probability: float = 0.5

    def apply(self, image: Array) -> Array:
        return stretched(image)


@dataclass(frozen=True)
class Equalize(RandomApply, Photometric):
    """Equalize the histogram of each channel, with a probability.

    ``[H, W, C]`` uint8 to the same shape. Pillow's `ImageOps.equalize`, which is torchvision's `RandomEqualize`.

    Attributes:
        probability: From 0 to 1.
    """

    typical = (1.0,)
    probability: float = 0.5

    def apply(self, image: Array) -> Array:
        return equalized(image)


@dataclass(frozen=True)
class Posterize(RandomApply, Photometric):
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

    def apply(self, image: Array) -> Array:
        return posterized(image, self.bits)


@dataclass(frozen=True)
class Solarize(RandomApply, Photometric):
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

    def apply(self, image: Array) -> Array:
        return solarized(image, self.threshold)


# The formulas, which policies share --------------------------------------------------------------------------------------


def stretched(image: Array) -> Array:
    """Stretch the levels of each channel from 0 to 255."""
    return kernels.merge([_stretched(channel) for channel in kernels.split(image)])


def _stretched(channel: Array) -> Array:
    darkest, lightest = int(channel.min()), int(channel.max())
    span = lightest - darkest
    return kernels.linear(channel, 255, -255 * darkest, span) if span else channel


def equalized(image: Array) -> Array:
    """Equalize the histogram of each channel like Pillow, in steps of 1/255 of the pixels below the lightest level."""
    return kernels.merge([_equalized(channel) for channel in kernels.split(image)])


def _equalized(channel: Array) -> Array:
    histogram = kernels.histogram(channel)
    step = int(histogram.sum() - histogram[histogram.nonzero()[0][-1]]) // 255
    if not step:
        return channel
    before = np.cumsum(histogram) - histogram
    return kernels.look_up(np.minimum((before + step // 2) // step, 255).astype(np.uint8), channel)


def posterized(image: Array, bits: int) -> Array:
    """Keep the high bits of every level."""
    return kernels.straight(image) & np.uint8(256 - (1 << 8 - bits))


def solarized(image: Array, threshold: float) -> Array:
    """Invert levels from the threshold upwards."""
    image = kernels.straight(image)
    inverted = (image >= math.ceil(threshold)).view(np.uint8)
    return image ^ np.negative(inverted, out=inverted)  # by a mask of 0 or 255
