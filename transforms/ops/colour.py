"""Ops that change colours, in integer arithmetic: the same result on every machine."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from joulecache.transforms import kernels
from joulecache.transforms.images import Array
from joulecache.transforms.ops.arguments import Range, ends, number, number_or_interval, symmetric
from joulecache.transforms.ops.base import Drawn, Photometric, draw_columns
from joulecache.transforms.randomness import UNIT, below, between

MAX_FACTOR = 100.0


class _FactorOp(Photometric):
    """An op with a factor drawn uniformly from [1 - delta, 1 + delta]."""

    random_words: ClassVar[int] = 1
    delta: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", number(self, "delta", self.delta, 0.0, 1.0))

    def draw(self, words: Sequence[int], height: int, width: int, /) -> Drawn:
        """Return (factor,), in units of 1/65536."""
        spread = round(self.delta * UNIT)
        return (UNIT - spread + below(words[0], 2 * spread + 1),)

    draw_batch = draw_columns


@dataclass(frozen=True)
class Brightness(_FactorOp):
    """Multiply all levels by a random factor in [1 - delta, 1 + delta].

    ``[H, W, C]`` uint8 to the same shape, rounded down and clipped to 0..255. torchvision's `adjust_brightness`; the factor is a
    multiple of 1/65536, so that every kernel computes in integers.

    Attributes:
        delta: Half-width of the factor's range, from 0 to 1.
    """

    typical = (0.4,)
    delta: float

    def pixels(self, image: Array, drawn: Drawn, /) -> Array:
        return adjust_brightness(image, drawn[0])


@dataclass(frozen=True)
class Contrast(_FactorOp):
    """Blend with the mean grey by a random factor in [1 - delta, 1 + delta].

    ``[H, W, C]`` uint8 to the same shape, rounded down and clipped to 0..255. torchvision's `adjust_contrast` (grey = 0.2989 R
    + 0.587 G + 0.114 B, rounded down), in integers: factor and weights are multiples of 1/65536.

    Attributes:
        delta: Half-width of the factor's range, from 0 to 1.
    """

    typical = (0.4,)
    delta: float

    def pixels(self, image: Array, drawn: Drawn, /) -> Array:
        return adjust_contrast(image, drawn[0])


@dataclass(frozen=True)
class Saturation(_FactorOp):
    """Blend with the grey image by a random factor in [1 - delta, 1 + delta].

    ``[H, W, C]`` uint8 to the same shape; grey images are unchanged. torchvision's `adjust_saturation`, with the grey and
    the integers of `Contrast`.

    Attributes:
        delta: Half-width of the factor's range, from 0 to 1.
    """

    typical = (0.4,)
    delta: float

    def pixels(self, image: Array, drawn: Drawn, /) -> Array:
        return adjust_saturation(image, drawn[0])


@dataclass(frozen=True)
class Hue(Photometric):
    """Rotate the hues by a random fraction of the colour circle in [-delta, delta].

    ``[H, W, C]`` uint8 to the same shape; grey images are unchanged. torchvision's `adjust_hue`: hue, saturation and value of
    Smith, "Color gamut transform pairs" (SIGGRAPH 1978), in integers; the fraction is a multiple of 1/65536, levels are rounded
    to the nearest.

    Attributes:
        delta: The largest fraction, from 0 to 0.5.
    """

    typical = (0.1,)
    random_words: ClassVar[int] = 1
    delta: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", number(self, "delta", self.delta, 0.0, 0.5))

    def draw(self, words: Sequence[int], height: int, width: int, /) -> Drawn:
        """Return (fraction of the colour circle,), in units of 1/65536."""
        return (between(words[0], -self.delta, self.delta),)

    draw_batch = draw_columns

    def pixels(self, image: Array, drawn: Drawn, /) -> Array:
        return adjust_hue(image, drawn[0])


@dataclass(frozen=True)
class ColorJitter(Photometric):
    """Change brightness, contrast, saturation and hue, in a random order.

    ``[H, W, C]`` uint8 to the same shape: torchvision's `ColorJitter`, with the formulas of `Brightness` and so on.

    Attributes:
        brightness: d for a factor in [max(0, 1 - d), 1 + d], or (low, high); 0 leaves it unchanged.
        contrast: As `brightness`.
        saturation: As `brightness`.
        hue: d for a fraction of the colour circle in [-d, d], or (low, high), at most 0.5; 0 leaves it unchanged.
    """

    typical = (0.4, 0.4, 0.4, 0.1)
    random_words: ClassVar[int] = 5
    brightness: Range = 0.0
    contrast: Range = 0.0
    saturation: Range = 0.0
    hue: Range = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            object.__setattr__(self, name, number_or_interval(self, name, getattr(self, name), 0.0, MAX_FACTOR))
        object.__setattr__(self, "hue", symmetric(self, "hue", self.hue, 0.5))

    @cached_property
    def factors(self) -> tuple[tuple[float, float], ...]:
        """The ranges of the factors of brightness, contrast and saturation."""
        values = (self.brightness, self.contrast, self.saturation)
        return tuple(value if isinstance(value, tuple) else (max(0.0, 1 - value), 1 + value) for value in values)

    @cached_property
    def hues(self) -> tuple[float, float]:
        """The range of the fraction of the colour circle."""
        return ends(self.hue)

    def draw(self, words: Sequence[int], height: int, width: int, /) -> Drawn:
        """Return (index of the order, brightness, contrast, saturation, hue), the last four in units of 1/65536."""
        ranges = (*self.factors, self.hues)
        return below(words[0], 24), *(between(words[i], *bounds) for i, bounds in enumerate(ranges, 1))

    draw_batch = draw_columns

    def pixels(self, image: Array, drawn: Drawn, /) -> Array:
        image = kernels.straight(image)
        for step in _ORDERS[drawn[0]]:
            if drawn[1 + step] != _UNCHANGED[step]:
                image = _ADJUSTS[step](image, drawn[1 + step])
        return image


@dataclass(frozen=True)
class Grayscale(Photometric):
    """Convert to grey.

    ``[H, W, C]`` uint8 to ``[H, W, num_output_channels]``: torchvision's `Grayscale`. The luma of ITU-R 601, (19595 R + 38470 G +
    7471 B + 32768) / 65536 rounded down, as in Pillow and ``decode(1)``.

    Attributes:
        num_output_channels: 1, or 3 equal channels.
    """

    typical = (3,)
    num_output_channels: int = 1

    def __post_init__(self) -> None:
        if type(self.num_output_channels) is not int or self.num_output_channels not in (1, 3):
            raise ValueError(f"grayscale: num_output_channels must be 1 or 3, got {self.num_output_channels!r}")

    def output_channels(self, channels: int) -> int:
        return self.num_output_channels

    def pixels(self, image: Array, drawn: Drawn, /) -> Array:
        grey = image if image.shape[2] == 1 else kernels.luma(image)
        return grey if self.num_output_channels == 1 else kernels.repeat(grey)


# The formulas, which policies share --------------------------------------------------------------------------------------


def adjust_brightness(image: Array, factor: int) -> Array:
    """Multiply by a factor in units of 1/65536, rounded down."""
    return kernels.linear(image, factor, 0, UNIT)


def adjust_contrast(image: Array, factor: int) -> Array:
    """Blend with the mean of the grey image by a factor in units of 1/65536, rounded down."""
    pixels, total = image.shape[0] * image.shape[1], kernels.total(_grey(image))
    return kernels.linear(image, factor * pixels, (UNIT - factor) * total, UNIT * pixels)


def adjust_saturation(image: Array, factor: int) -> Array:
    """Blend with the grey image by a factor in units of 1/65536, rounded down."""
    return image if image.shape[2] == 1 else kernels.blend(kernels.repeat(kernels.grey(image)), image, factor)


def adjust_hue(image: Array, fraction: int) -> Array:
    """Rotate the hues by a fraction of the colour circle in units of 1/65536, rounded to the nearest level."""
    return image if image.shape[2] == 1 or fraction % UNIT == 0 else kernels.turn_hue(image, fraction)


def _grey(image: Array) -> Array:
    return image if image.shape[2] == 1 else kernels.grey(image)


_ORDERS = tuple(itertools.permutations(range(4)))
_ADJUSTS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
_UNCHANGED = (UNIT, UNIT, UNIT, 0)
