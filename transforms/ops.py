"""Declare the ops: what can be done to one image, its arguments, and how large the result is.

Images are uint8 arrays ``[H, W, C]``. Nothing here computes pixels: `reference_kernels` does, and `graph_kernels` in TensorFlow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

Size = int | tuple[int, int]

LARGEST_SIDE = 65_535  # the largest side that JPEG can hold
LARGEST_PIXELS = 178_956_970  # Pillow refuses to open more, twice its `MAX_IMAGE_PIXELS`


def _whole(op: str, name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{op}: {name} must be a whole number from {low} to {high}, got {value!r}")


def _number(op: str, name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{op}: {name} must be a number from {low:g} to {high:g}, got {value!r}")
    return float(value)  # 1 and 1.0 are one argument, and must spell one fingerprint


def _size(op: str, value: object) -> tuple[int, int]:
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{op}: size must be a whole number or (height, width), got {value!r}")
    for side in pair:
        _whole(op, "size", side, 1, LARGEST_SIDE)
    return pair


def _range(op: str, name: str, value: object, low: float, high: float) -> tuple[float, float]:
    if not isinstance(value, tuple) or len(value) != 2:
        raise ValueError(f"{op}: {name} must be a pair (low, high), got {value!r}")
    first, last = (_number(op, name, end, low, high) for end in value)
    if first > last:
        raise ValueError(f"{op}: {name} must not fall, got {value!r}")
    return first, last


class Op:
    """One transform. A subclass is a frozen dataclass whose fields are the arguments.

    `version` changes when the pixels change. `words` is how many random 32-bit words one draw takes: 0 for an op that is
    the same every time.
    """

    version: ClassVar[int] = 1
    words: ClassVar[int] = 0

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the result for an input of that size; ValueError if the op cannot take it."""
        return height, width


class _FixedSize(Op):
    """An op whose result has the size that was asked for, whatever comes in."""

    size: Size

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _size(op_name(type(self)), self.size))

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return self.target

    @property
    def target(self) -> tuple[int, int]:
        """The size as (height, width)."""
        assert isinstance(self.size, tuple)
        return self.size


class _Crop(_FixedSize):
    """A window of the image, which must be at least as large."""

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        crop_height, crop_width = self.target
        if crop_height > height or crop_width > width:
            raise ValueError(
                f"{op_name(type(self))}: the crop {crop_height}x{crop_width} is larger than the image {height}x{width}: "
                f"resize before it, or crop less"
            )
        return self.target


@dataclass(frozen=True)
class Decode(Op):
    """Decode encoded bytes to ``[H, W, channels]`` uint8, with EXIF orientation applied.

    `channels`: 3 (RGB) or 1 (grey). `shorter`: decode a JPEG at the smallest DCT scale (1, 1/2, 1/4, 1/8) whose shorter side
    is at least that many pixels before it is rounded up; other formats are not scaled. `truncated`: accept a file that ends
    early. Images of more than `max_pixels` are refused before they are decompressed. Always the first op of a chain.
    """

    channels: int = 3
    shorter: int | None = None
    truncated: bool = False
    max_pixels: int = 178_000_000

    def __post_init__(self) -> None:
        if type(self.channels) is not int or self.channels not in (1, 3):
            raise ValueError(f"decode: channels must be 1 or 3, got {self.channels!r}")
        if self.shorter is not None:
            _whole("decode", "shorter", self.shorter, 1, LARGEST_SIDE)
        if not isinstance(self.truncated, bool):
            raise ValueError(f"decode: truncated must be True or False, got {self.truncated!r}")
        _whole("decode", "max_pixels", self.max_pixels, 1, LARGEST_PIXELS)

    def jpeg_scale(self, height: int, width: int) -> int:
        """Return the denominator of the DCT scale for a JPEG of that size: 1, 2, 4 or 8."""
        if self.shorter is None:
            return 1
        fitting = min(height, width) // self.shorter
        return next(scale for scale in (8, 4, 2, 1) if scale <= max(fitting, 1))


@dataclass(frozen=True)
class Resize(_FixedSize):
    """Resize ``[H, W, C]`` uint8 to `size` (size x size, or (height, width)): bilinear with antialias."""

    size: Size


@dataclass(frozen=True)
class ResizeShorter(Op):
    """Resize ``[H, W, C]`` uint8 so that the shorter side is `size`, the aspect kept: bilinear with antialias.

    The longer side is ``int(size * longer / shorter)``, as in torchvision's `Resize`.
    """

    size: int

    def __post_init__(self) -> None:
        _whole("resize_shorter", "size", self.size, 1, LARGEST_SIDE)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the result for an input of that size."""
        if height <= width:
            return self.size, self.size * width // height
        return self.size * height // width, self.size


@dataclass(frozen=True)
class CentralCrop(_Crop):
    """Cut the central window of `size` out of ``[H, W, C]`` uint8; an odd margin is rounded half to even, as in torchvision."""

    size: Size

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """Return (top, left) of the window in an image of that size."""
        crop_height, crop_width = self.output_size(height, width)
        return _half_to_even(height - crop_height), _half_to_even(width - crop_width)


@dataclass(frozen=True)
class RandomCrop(_Crop):
    """Cut a window of `size` at a uniformly random place out of ``[H, W, C]`` uint8."""

    words: ClassVar[int] = 2
    size: Size


@dataclass(frozen=True)
class RandomResizedCrop(_FixedSize):
    """Cut a window of random area and aspect out of ``[H, W, C]`` uint8 and resize it to `size`: bilinear with antialias.

    `scale`: the window's share of the area, uniform. `ratio`: its width / height, uniform in the logarithm. Ten tries, then
    the central window with the nearest allowed aspect, as in torchvision's `RandomResizedCrop`.
    """

    words: ClassVar[int] = 22
    size: Size
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scale", _range("random_resized_crop", "scale", self.scale, 1e-6, 1.0))
        object.__setattr__(self, "ratio", _range("random_resized_crop", "ratio", self.ratio, 1e-3, 1e3))


@dataclass(frozen=True)
class FlipLr(Op):
    """Mirror ``[H, W, C]`` uint8 left to right with the given `probability`."""

    words: ClassVar[int] = 1
    probability: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "probability", _number("flip_lr", "probability", self.probability, 0.0, 1.0))


@dataclass(frozen=True)
class Brightness(Op):
    """Multiply ``[H, W, C]`` uint8 by a factor uniform in [1 - delta, 1 + delta], rounded down and clipped to 0..255.

    torchvision's `adjust_brightness`, the factor a multiple of 1/65536 so that every kernel computes in integers.
    """

    words: ClassVar[int] = 1
    delta: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", _number("brightness", "delta", self.delta, 0.0, 1.0))


@dataclass(frozen=True)
class Contrast(Op):
    """Blend ``[H, W, C]`` uint8 with the mean of its grey image, by a factor uniform in [1 - delta, 1 + delta].

    torchvision's `adjust_contrast` (grey = 0.2989 R + 0.587 G + 0.114 B, rounded down), in integers: the factor and the weights
    are multiples of 1/65536.
    """

    words: ClassVar[int] = 1
    delta: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", _number("contrast", "delta", self.delta, 0.0, 1.0))


def _half_to_even(margin: int) -> int:
    half, odd = divmod(margin, 2)
    return half + (odd & half)


def op_name(kind: type[Op]) -> str:
    """Return an op's name in chain text: ``RandomCrop`` is ``random_crop``."""
    return "".join("_" + c.lower() if c.isupper() else c for c in kind.__name__).lstrip("_")


OPS: dict[str, type[Op]] = {
    op_name(kind): kind
    for kind in (
        Decode,
        Resize,
        ResizeShorter,
        CentralCrop,
        RandomCrop,
        RandomResizedCrop,
        FlipLr,
        Brightness,
        Contrast,
    )
}


def root_steps(low: float, high: float, bits: int) -> tuple[float, ...]:
    """Return (high / low) to the powers 1/2, 1/4, ... 1/2**bits.

    Products of these give a log-uniform number from random bits by square roots alone, which IEEE 754 rounds the same on every
    machine; `exp` and `log` it does not.
    """
    steps, step = [], high / low
    for _ in range(bits):
        step = math.sqrt(step)
        steps.append(step)
    return tuple(steps)
