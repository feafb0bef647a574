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

from joulecache.transforms.images import Array, Pixels, as_array, blend, clipped
from joulecache.transforms.ops.arguments import Range, integer, number, number_or_interval
from joulecache.transforms.ops.base import Drawn, Op, RandomApply, draw_columns
from joulecache.transforms.ops.colour import MAX_FACTOR
from joulecache.transforms.randomness import UNIT, between

MAX_KERNEL = 255

_MIN_SIGMA = 0.01  # pixels; the neighbours' weights are 0 well above it


@dataclass(frozen=True)
class GaussianBlur(Op):
    """Blur with a Gaussian of random width.

    ``[H, W, C]`` uint8 to the same shape: torchvision's `GaussianBlur`. The weights exp(-x**2 / (2 sigma**2)) are rounded to
    multiples of 1/65536 that add up to 1, edges are padded by "reflect", and levels are rounded to the nearest.

    Attributes:
        kernel_size: In pixels, odd: a number, or (x, y).
        sigma: Standard deviation in pixels: a number, or (low, high), drawn uniformly.
    """

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

    def pixels(self, image: Pixels, drawn: Drawn, /) -> Array:
        # Rows, then columns, with 16-bit weights and 8 fractional bits between the passes.
        across, down = self.kernel
        array = as_array(image)
        self.output_size(*array.shape[:2])
        rows = _convolved(array.astype(np.uint32), gaussian_weights(across, drawn[0]), 1)
        rows = rows + np.uint32(0x80) >> np.uint32(8)
        return (_convolved(rows, gaussian_weights(down, drawn[0]), 0) + 0x800000 >> 24).astype(np.uint8)


@dataclass(frozen=True)
class GaussianNoise(Op):
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

    def pixels(self, image: Pixels, drawn: Drawn, /) -> Array:
        array = as_array(image)
        words = np.random.Philox(key=drawn[1] << 32 | drawn[0]).random_raw(-(-array.size // 4))
        steps = words.astype("<u8", copy=False).view("<u2")[: array.size].reshape(array.shape)
        noise = _noise_table(self.mean, self.sigma)[steps]
        noise += array
        return clipped(noise)


@dataclass(frozen=True)
class Sharpness(RandomApply):
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

    def apply(self, image: Pixels) -> Array:
        return adjust_sharpness(image, round(self.sharpness_factor * UNIT))


def adjust_sharpness(image: Pixels, factor: int) -> Array:
    """Blend with the smoothed image by a factor in units of 1/65536, rounded down."""
    array = as_array(image)
    return blend(smoothed(array), array, factor)


def smoothed(image: Array) -> Array:
    """Return the mean of 3x3 pixels with a weight of 5 for the central one, and the edge unchanged: Pillow's ``SMOOTH``."""
    if min(image.shape[:2]) < 3:
        return image
    levels = image.astype(np.uint16)
    rows = levels[:-2] + levels[1:-1] + levels[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * levels[1:-1, 1:-1]
    result = image.copy()
    result[1:-1, 1:-1] = (total + 6) // 13
    return result


@lru_cache(maxsize=256)
def gaussian_weights(size: int, sigma: int) -> tuple[int, ...]:
    """Return the symmetric weights of a Gaussian kernel.

    Args:
        size: Number of weights, odd.
        sigma: Standard deviation in pixels, in units of 1/65536.

    Returns:
        Weights in units of 1/65536 that add up to 1.
    """
    spread = 2 * (sigma / UNIT) ** 2
    half = [math.exp(-(distance**2) / spread) for distance in range(size // 2 + 1)]
    total = half[0] + 2 * sum(half[1:])
    tail = [round(UNIT * weight / total) for weight in half[1:]]
    return (*reversed(tail), UNIT - 2 * sum(tail), *tail)


def _convolved(levels: NDArray[np.uint32], weights: tuple[int, ...], axis: int) -> NDArray[np.uint32]:
    radius = len(weights) // 2
    if radius == 0:
        return levels * np.uint32(weights[0])
    border = [(0, 0)] * 3
    border[axis] = (radius, radius)
    padded = np.pad(levels, border, mode="reflect")
    size = levels.shape[axis]

    def shifted(offset: int) -> NDArray[np.uint32]:
        return padded[offset : offset + size] if axis == 0 else padded[:, offset : offset + size]

    total = shifted(radius) * np.uint32(weights[radius])
    for distance in range(1, radius + 1):
        weight = weights[radius + distance]
        if weight:
            total += (shifted(radius - distance) + shifted(radius + distance)) * np.uint32(weight)
    return total


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
