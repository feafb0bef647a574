"""Ops that change levels and leave every pixel where it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from joulecache.transforms.ops.base import Op, Sometimes, ends, number, number_or_interval, symmetric, whole

LARGEST_FACTOR = 100.0
LARGEST_KERNEL = 255


class _ByFactor(Op):
    """An op with a factor uniform in [1 - delta, 1 + delta]."""

    words: ClassVar[int] = 1
    delta: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", number(self, "delta", self.delta, 0.0, 1.0))


@dataclass(frozen=True)
class Brightness(_ByFactor):
    """Multiply all levels by a random factor in [1 - delta, 1 + delta].

    ``[H, W, C]`` uint8 to the same shape, rounded down and clipped to 0..255. torchvision's `adjust_brightness`, the factor a
    multiple of 1/65536 so that every kernel computes in integers.
    """

    delta: float


@dataclass(frozen=True)
class Contrast(_ByFactor):
    """Blend with the mean grey by a random factor in [1 - delta, 1 + delta].

    ``[H, W, C]`` uint8 to the same shape, rounded down and clipped to 0..255. torchvision's `adjust_contrast` (grey = 0.2989 R
    + 0.587 G + 0.114 B, rounded down), in integers: the factor and the weights are multiples of 1/65536.
    """

    delta: float


@dataclass(frozen=True)
class Saturation(_ByFactor):
    """Blend with the grey image by a random factor in [1 - delta, 1 + delta].

    ``[H, W, C]`` uint8 to the same shape; grey images stay as they are. torchvision's `adjust_saturation`, with the grey and
    the integers of `Contrast`.
    """

    delta: float


@dataclass(frozen=True)
class Hue(Op):
    """Turn the hues by a random share of the colour circle in [-delta, delta].

    ``[H, W, C]`` uint8 to the same shape; delta is at most 0.5. torchvision's `adjust_hue`: hue, saturation and value of Smith,
    "Color gamut transform pairs" (SIGGRAPH 1978), in integers, the share a multiple of 1/65536, levels rounded to the nearest.
    Grey images stay as they are.
    """

    words: ClassVar[int] = 1
    delta: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", number(self, "delta", self.delta, 0.0, 0.5))


Spread = float | tuple[float, float]


@dataclass(frozen=True)
class ColorJitter(Op):
    """Change brightness, contrast, saturation and hue, in a random order.

    ``[H, W, C]`` uint8 to the same shape: torchvision's `ColorJitter`. Each is a number d for a factor in [max(0, 1 - d), 1 +
    d], or (low, high); `hue` for a share of the colour circle in [-d, d], or (low, high), at most 0.5. 0 leaves one out. The
    formulas are those of the ops of these names.
    """

    words: ClassVar[int] = 5
    brightness: Spread = 0.0
    contrast: Spread = 0.0
    saturation: Spread = 0.0
    hue: Spread = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            object.__setattr__(self, name, number_or_interval(self, name, getattr(self, name), 0.0, LARGEST_FACTOR))
        object.__setattr__(self, "hue", symmetric(self, "hue", self.hue, 0.5))

    @cached_property
    def factors(self) -> tuple[tuple[float, float], ...]:
        """The ranges of the factors of brightness, contrast and saturation."""
        values = (self.brightness, self.contrast, self.saturation)
        return tuple(value if isinstance(value, tuple) else (max(0.0, 1 - value), 1 + value) for value in values)

    @cached_property
    def hues(self) -> tuple[float, float]:
        """The range of the share of the colour circle."""
        return ends(self.hue)


@dataclass(frozen=True)
class Grayscale(Op):
    """Make grey.

    ``[H, W, C]`` uint8 to ``[H, W, num_output_channels]``: 1, or 3 equal ones. torchvision's `Grayscale`. The luma of ITU-R
    601, (19595 R + 38470 G + 7471 B + 32768) / 65536 rounded down, as Pillow and ``decode(1)`` have it.
    """

    num_output_channels: int = 1

    def __post_init__(self) -> None:
        if type(self.num_output_channels) is not int or self.num_output_channels not in (1, 3):
            raise ValueError(f"grayscale: num_output_channels must be 1 or 3, got {self.num_output_channels!r}")

    def output_channels(self, channels: int) -> int:
        """Return the channels that were asked for."""
        return self.num_output_channels


@dataclass(frozen=True)
class GaussianBlur(Op):
    """Blur with a Gaussian of a random width.

    ``[H, W, C]`` uint8 to the same shape: torchvision's `GaussianBlur`. `kernel_size` in pixels, odd, or (x, y). `sigma`: the
    standard deviation in pixels, uniform in (low, high), or a number. The weights exp(-x**2 / (2 sigma**2)) are rounded to
    multiples of 1/65536 that add up to 1; beyond the edge the image is mirrored without its last pixel; levels are rounded to
    the nearest.
    """

    words: ClassVar[int] = 1
    kernel_size: int | tuple[int, int]
    sigma: Spread = (0.1, 2.0)

    def __post_init__(self) -> None:
        x, y = self.kernel
        for side in (x, y):
            if whole(self, "kernel_size", side, 1, LARGEST_KERNEL) % 2 == 0:
                raise ValueError(f"gaussian_blur: kernel_size must be odd, got {self.kernel_size!r}")
        object.__setattr__(self, "kernel_size", x if x == y else (x, y))
        object.__setattr__(self, "sigma", number_or_interval(self, "sigma", self.sigma, _LEAST_SIGMA, LARGEST_KERNEL))

    @property
    def random(self) -> bool:
        """Whether two draws of the op can differ."""
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
        """Return the size as it is; ValueError for an image that the kernel reaches beyond."""
        x, y = self.kernel
        if x // 2 >= width or y // 2 >= height:
            raise ValueError(
                f"gaussian_blur: a kernel of {x}x{y} mirrors more than there is of the image {height}x{width}: blur less, or "
                "before the resize"
            )
        return height, width


_LEAST_SIGMA = 0.01  # pixels: nothing is left of the neighbours long before


@dataclass(frozen=True)
class GaussianNoise(Op):
    """Add Gaussian noise to every level.

    ``[H, W, C]`` uint8 to the same shape, rounded to the nearest and clipped to 0..255. `mean` and `sigma` are shares of the
    full scale of 255 levels. torchvision's `GaussianNoise` on uint8, always clipped. The noise is the normal quantile of 16-bit
    words of Philox4x64-10, so it ends at 4.3 sigma.
    """

    words: ClassVar[int] = 2
    mean: float = 0.0
    sigma: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", number(self, "mean", self.mean, -1.0, 1.0))
        object.__setattr__(self, "sigma", number(self, "sigma", self.sigma, 0.0, 1.0))


@dataclass(frozen=True)
class Autocontrast(Sometimes):
    """Stretch each channel from 0 to 255, with a probability.

    ``[H, W, C]`` uint8 to the same shape: (level - darkest) * 255 / (lightest - darkest), rounded down; a channel of one level
    stays. torchvision's `RandomAutocontrast`.
    """

    probability: float = 0.5


@dataclass(frozen=True)
class Equalize(Sometimes):
    """Make all levels of a channel about as frequent, with a probability.

    ``[H, W, C]`` uint8 to the same shape. Pillow's `ImageOps.equalize`, which is torchvision's `RandomEqualize`.
    """

    probability: float = 0.5


@dataclass(frozen=True)
class Posterize(Sometimes):
    """Keep the high bits of every level, with a probability.

    ``[H, W, C]`` uint8 to the same shape: torchvision's `RandomPosterize`.
    """

    bits: int
    probability: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "bits", self.bits, 0, 8)


@dataclass(frozen=True)
class Solarize(Sometimes):
    """Turn levels from a threshold upwards into 255 - level, with a probability.

    ``[H, W, C]`` uint8 to the same shape: torchvision's `RandomSolarize`.
    """

    threshold: float
    probability: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "threshold", number(self, "threshold", self.threshold, 0.0, 256.0))


@dataclass(frozen=True)
class Sharpness(Sometimes):
    """Sharpen or smooth, with a probability.

    ``[H, W, C]`` uint8 to the same shape, blended with its smoothed image: torchvision's `RandomAdjustSharpness`.
    `sharpness_factor`: 0 smooths, 1 changes nothing, 2 sharpens. Smoothed is the mean of 3x3 pixels in which the middle one
    counts 5 times, rounded to the nearest, the edge as it is; the blend is rounded down and clipped.
    """

    sharpness_factor: float
    probability: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        factor = number(self, "sharpness_factor", self.sharpness_factor, 0.0, LARGEST_FACTOR)
        object.__setattr__(self, "sharpness_factor", factor)
