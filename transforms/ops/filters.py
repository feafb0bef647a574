"""Ops that blur, sharpen or add noise, in integer arithmetic: the same result on every machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from joulecache.transforms import kernels
from joulecache.transforms.images import Array
from joulecache.transforms.ops.arguments import Range, integer, number, number_or_interval
from joulecache.transforms.ops.base import Drawn, Photometric, RandomApply, draw_columns
from joulecache.transforms.ops.colour import MAX_FACTOR
from joulecache.transforms.randomness import UNIT, between

MAX_KERNEL = 255

_STRIP = 1 << 18  # levels; a multiple of 4
_MIN_SIGMA = 0.01  # pixels; the neighbours' weights are 0 well above it


@dataclass(frozen=True)
class GaussianBlur(Photometric):
    """Blur with a Gaussian of random width.

    ``[H, W, C]`` uint8 to the same shape: torchvision's `GaussianBlur`. The weights exp(-x**2 / (2 sigma**2)) are rounded to
    multiples of 1/4096 that add up to 1, and edges are padded by "reflect". Rows are filtered first and rounded to 1/16 level,
    then columns, rounded to a level; ties to even.

    Attributes:
        kernel_size: In pixels, odd: a number, or (x, y).
        sigma: Standard deviation in pixels: a number, or (low, high), drawn uniformly.
    """

    version: ClassVar[int] = 2
    typical = (9,)
    random_words: ClassVar[int] = 1
    kernel_size: int | tuple[int, int]
    sigma: Range = (0.1, 2.0)

    def __post_init__(self) -> None:
        x, y = self.kernel
        for side in (x, y):
            if integer(self, "kernel_size", side, 1, MAX_KERNEL) % 2 == 0:
                raise ValueError(f"gaussian_blur: kernel_size must be odd, got {self.kernel_size!r}")
        object.__setattr__(self, "kernel_size", x if x == y else (x, y))
        object.__setattr__(self, "sigma", number_or_interval(self, "sigma", self.sigma, _MIN_SIGMA, MAX_KERNEL))

    @property
    def random(self) -> bool:
        """Whether two draws can differ: not with a single sigma."""
        return isinstance(self.sigma, tuple) and self.sigma[0] < self.sigma[1]

    @property
    def kernel(self) -> tuple[int, int]:
        """The size of the kernel as (x, y)."""
        if not isinstance(self.kernel_size, tuple):
            return self.kernel_size, self.kernel_size
        if len(self.kernel_size) != 2:
            raise ValueError(f"gaussian_blur: kernel_size must be an odd number or (x, y), got {self.kernel_size!r}")
        return self.kernel_size

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size unchanged; raise ValueError if the kernel is too large for it."""
        x, y = self.kernel
        if x // 2 >= width or y // 2 >= height:
            raise ValueError(
                f"gaussian_blur: a kernel of {x}x{y} is too large for an image of {height}x{width}: use a smaller one, or blur first"
            )
        return height, width

    def draw(self, words: Sequence[int], height: int, width: int, /) -> Drawn:
        """Return (sigma,), in units of 1/65536."""
        return (between(words[0], *(self.sigma if isinstance(self.sigma, tuple) else (self.sigma, self.sigma))),)

    draw_batch = draw_columns

    def pixels(self, image: Array, drawn: Drawn, /) -> Array:
        self.output_size(*image.shape[:2])  # raises where the edges would be mirrored repeatedly
        across, down = (gaussian_weights(size, drawn[0]) for size in self.kernel)
        return kernels.blur(image, across, down)


@dataclass(frozen=True)
class GaussianNoise(Photometric):
    """Add Gaussian noise to every level.

    ``[H, W, C]`` uint8 to the same shape, rounded to the nearest and clipped to 0..255. torchvision's `GaussianNoise` on uint8,
    always clipped. The noise is the normal quantile of 16-bit words of Philox4x64-10, so it is bounded by 4.3 sigma.

    Attributes:
        mean: As a fraction of the full scale of 255 levels, from -1 to 1.
        sigma: Standard deviation as a fraction of the full scale, from 0 to 1.
    """

    random_words: ClassVar[int] = 2
    mean: float = 0.0
    sigma: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", number(self, "mean", self.mean, -1.0, 1.0))
        object.__setattr__(self, "sigma", number(self, "sigma", self.sigma, 0.0, 1.0))

    def draw(self, words: Sequence[int], height: int, width: int, /) -> Drawn:
        """Return both words unchanged: they are the key of the noise generator."""
        return words[0], words[1]

    draw_batch = draw_columns

    def pixels(self, image: Array, drawn: Drawn, /) -> Array:
        table, generator = _noise_table(self.mean, self.sigma), np.random.Philox(key=drawn[1] << 32 | drawn[0])
        result = np.empty(image.shape, np.uint8)
        flat, levels = result.reshape(-1), np.ascontiguousarray(kernels.straight(image)).reshape(-1)
        for first in range(0, image.size, _STRIP):
            part = levels[first : first + _STRIP]
            steps = generator.random_raw(-(-len(part) // 4)).astype("<u8", copy=False).view("<u2")[: len(part)]
            noise = kernels.look_up_wide(table, steps)
            noise += part
            flat[first : first + _STRIP] = np.clip(noise, 0, 255, out=noise)
        return result


@dataclass(frozen=True)
class Sharpness(RandomApply, Photometric):
    """Sharpen or smooth, with a probability.

    ``[H, W, C]`` uint8 to the same shape, blended with its smoothed image: torchvision's `RandomAdjustSharpness`. Smoothing is
    the mean of 3x3 pixels with a weight of 5 for the central one, rounded to the nearest; the edge is unchanged. The blend is
    rounded down and clipped.

    Attributes:
        sharpness_factor: 0 smooths, 1 changes nothing, 2 sharpens; at most 100.
        probability: From 0 to 1.
    """

    typical = (2, 1.0)
    sharpness_factor: float
    probability: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        factor = number(self, "sharpness_factor", self.sharpness_factor, 0.0, MAX_FACTOR)
        object.__setattr__(self, "sharpness_factor", factor)

    def apply(self, image: Array) -> Array:
        return adjust_sharpness(image, round(self.sharpness_factor * UNIT))


def adjust_sharpness(image: Array, factor: int) -> Array:
    """Blend with the smoothed image by a factor in units of 1/65536, rounded down."""
    return kernels.blend(smoothed(image), image, factor)


def smoothed(image: Array) -> Array:
    """Return the mean of 3x3 pixels with a weight of 5 for the central one, and the edge unchanged: Pillow's ``SMOOTH``."""
    return image if min(image.shape[:2]) < 3 else kernels.smooth(image)


@lru_cache(maxsize=256)
def gaussian_weights(size: int, sigma: int) -> tuple[int, ...]:
    """Return the symmetric weights of a Gaussian kernel.

    Args:
        size: Number of weights, odd.
        sigma: Standard deviation in pixels, in units of 1/65536.

    Returns:
        Weights in units of 1/4096 that add up to 1.
    """
    spread = 2 * (sigma / UNIT) ** 2
    half = [math.exp(-(distance**2) / spread) for distance in range(size // 2 + 1)]
    total = half[0] + 2 * sum(half[1:])
    tail = [round(kernels.WEIGHT_UNIT * weight / total) for weight in half[1:]]
    return (*reversed(tail), kernels.WEIGHT_UNIT - 2 * sum(tail), *tail)


@lru_cache(maxsize=16)
def _noise_table(mean: float, sigma: float) -> NDArray[np.int16]:
    """Return the noise, in levels, at 65536 evenly spaced quantiles."""
    return np.rint(255 * (mean + sigma * _quantiles())).astype(np.int16)


@lru_cache(maxsize=1)
def _quantiles() -> NDArray[np.float64]:
    """Return the normal quantiles at the midpoints of 65536 equal steps."""
    normal = NormalDist()
    upper = np.array([normal.inv_cdf((step + 0.5) / UNIT) for step in range(UNIT // 2, UNIT)])
    return np.concatenate([-upper[::-1], upper])
