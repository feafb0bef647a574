"""Ops that move pixels or leave some out: sizes, windows, mirrors, rotations, borders, masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from joulecache.transforms.ops.base import (
    LARGEST_SIDE,
    Fill,
    Op,
    Size,
    Sometimes,
    chosen,
    ends,
    interval,
    level_or_colour,
    number,
    op_name,
    refuse_colour_on_grey,
    size_pair,
    symmetric,
    whole,
)

INTERPOLATIONS = ("nearest", "bilinear")
PADDING_MODES = ("constant", "edge", "reflect", "symmetric")

_MOST_SHEAR = 89.0  # degrees: at 90 the image is a line

Padding = int | tuple[int, int] | tuple[int, int, int, int]
Degrees = float | tuple[float, float]


class _FixedSize(Op):
    """An op whose result has the size that was asked for, whatever comes in."""

    size: Size

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", size_pair(self, self.size))

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return self.target

    @property
    def target(self) -> tuple[int, int]:
        """The size as (height, width)."""
        assert isinstance(self.size, tuple)
        return self.size


class _Filled(Op):
    """An op that puts `fill` where there is no image: a level, or (red, green, blue)."""

    fill: Fill

    def __post_init__(self) -> None:
        level_or_colour(self, "fill", self.fill)

    def output_channels(self, channels: int) -> int:
        refuse_colour_on_grey(self, "fill", self.fill, channels)
        return channels


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
class Resize(_FixedSize):
    """Resize, bilinear with antialias.

    ``[H, W, C]`` uint8 to ``[*size, C]``; `size`: size x size, or (height, width). Pillow's `resize` with its triangle filter, which
    is torchvision's `Resize` with antialias.
    """

    size: Size


@dataclass(frozen=True)
class ResizeShorter(Op):
    """Resize the shorter side and keep the aspect, bilinear with antialias.

    ``[H, W, C]`` uint8 to one whose shorter side is `size`. The longer side is ``int(size * longer / shorter)``, as in
    torchvision's `Resize`.
    """

    size: int

    def __post_init__(self) -> None:
        whole(self, "size", self.size, 1, LARGEST_SIDE)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the result for an input of that size."""
        if height <= width:
            return self.size, self.size * width // height
        return self.size * height // width, self.size


@dataclass(frozen=True)
class CentralCrop(_Crop):
    """Cut out the central window.

    ``[H, W, C]`` uint8 to ``[*size, C]``. An odd margin is rounded half to even, as in torchvision's `CenterCrop`.
    """

    size: Size

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """Return (top, left) of the window in an image of that size."""
        crop_height, crop_width = self.output_size(height, width)
        return _half_to_even(height - crop_height), _half_to_even(width - crop_width)


@dataclass(frozen=True)
class RandomCrop(_Crop):
    """Cut out a window at a random place.

    ``[H, W, C]`` uint8 to ``[*size, C]``, all places alike: torchvision's `RandomCrop`.
    """

    words: ClassVar[int] = 2
    size: Size


@dataclass(frozen=True)
class RandomResizedCrop(_FixedSize):
    """Cut out a window of random area and aspect, and resize it.

    ``[H, W, C]`` uint8 to ``[*size, C]``, bilinear with antialias. `scale`: the window's share of the area, uniform. `ratio`:
    its width / height, uniform in the logarithm. Ten tries, then the central window with the nearest allowed aspect, as in
    torchvision's `RandomResizedCrop`.
    """

    words: ClassVar[int] = 22
    size: Size
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scale", interval(self, "scale", self.scale, 1e-6, 1.0))
        object.__setattr__(self, "ratio", interval(self, "ratio", self.ratio, 1e-3, 1e3))


@dataclass(frozen=True)
class Pad(_Filled):
    """Add a border.

    ``[H, W, C]`` uint8 to ``[top + H + bottom, left + W + right, C]``. `padding`: pixels on every side, or (left and right, top
    and bottom), or (left, top, right, bottom). `padding_mode`: "constant" puts `fill` there (a level, or (red, green, blue));
    "edge" repeats the last pixel, "reflect" mirrors without it, "symmetric" with it. As torchvision's `Pad`.
    """

    padding: Padding
    fill: Fill = 0
    padding_mode: str = "constant"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.padding if isinstance(self.padding, tuple) else (self.padding,)
        if len(given) not in (1, 2, 4):
            raise ValueError(
                f"pad: padding must be a whole number, (left and right, top and bottom) or (left, top, right, bottom), got {given!r}"
            )
        for side in given:
            whole(self, "padding", side, 0, LARGEST_SIDE)
        chosen(self, "padding_mode", self.padding_mode, PADDING_MODES)
        left, top, right, bottom = self.sides
        if (left, top) == (right, bottom):
            object.__setattr__(self, "padding", left if left == top else (left, top))

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """The border as (left, top, right, bottom)."""
        given = self.padding if isinstance(self.padding, tuple) else (self.padding,)
        left, top, right, bottom = given * (4 // len(given))
        return left, top, right, bottom

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) with the border; ValueError for one that is wider than what it mirrors."""
        left, top, right, bottom = self.sides
        if self.padding_mode in ("reflect", "symmetric"):
            spared = 1 if self.padding_mode == "reflect" else 0
            if max(left, right) > width - spared or max(top, bottom) > height - spared:
                raise ValueError(
                    f"pad: a border of {self.padding} mirrors more than there is of the image {height}x{width}: pad less, or "
                    "choose padding_mode 'edge'"
                )
        return top + height + bottom, left + width + right


@dataclass(frozen=True)
class FlipLr(Sometimes):
    """Mirror left to right, with a probability.

    ``[H, W, C]`` uint8 to the same shape: torchvision's `RandomHorizontalFlip`.
    """

    probability: float = 0.5


@dataclass(frozen=True)
class FlipUd(Sometimes):
    """Mirror top to bottom, with a probability.

    ``[H, W, C]`` uint8 to the same shape: torchvision's `RandomVerticalFlip`.
    """

    probability: float = 0.5


class _Warp(_Filled):
    """What rotations have in common."""

    degrees: Degrees
    interpolation: str
    center: tuple[float, float] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "degrees", symmetric(self, "degrees", self.degrees, 360.0))
        chosen(self, "interpolation", self.interpolation, INTERPOLATIONS)
        if self.center is not None:
            if not isinstance(self.center, tuple) or len(self.center) != 2:
                raise ValueError(f"{op_name(type(self))}: center must be (x, y) in pixels, got {self.center!r}")
            x, y = (number(self, "center", place, -LARGEST_SIDE, LARGEST_SIDE) for place in self.center)
            object.__setattr__(self, "center", (x, y))

    @property
    def angles(self) -> tuple[float, float]:
        """The range of the angle, in degrees."""
        return ends(self.degrees)


@dataclass(frozen=True)
class Rotate(_Warp):
    """Rotate counter-clockwise by a random angle.

    ``[H, W, C]`` uint8 to the same shape. `degrees`: d for [-d, d], or (low, high). `interpolation`: "nearest" or "bilinear".
    What comes in from outside is `fill`: a level, or (red, green, blue). `center`: (x, y) in pixels from the top left, by
    default the middle. torchvision's `RandomRotation` without `expand`, whose size would change with every draw; the angle is a
    multiple of 1/65536 of a degree.
    """

    words: ClassVar[int] = 1
    degrees: Degrees
    interpolation: str = "nearest"
    fill: Fill = 0
    center: tuple[float, float] | None = None


@dataclass(frozen=True)
class Affine(_Warp):
    """Rotate, move, scale and shear by random amounts.

    ``[H, W, C]`` uint8 to the same shape, all amounts uniform. `degrees`: clockwise, d for [-d, d], or (low, high).
    `translate`: (a, b) moves by at most a * W and b * H pixels. `scale`: (low, high). `shear` in degrees: s for [-s, s] along
    x, (low, high) along x, or (x low, x high, y low, y high). None: not at all. `interpolation`, `fill` and `center` are those
    of `Rotate`. torchvision's `RandomAffine` and its matrix, drawn in multiples of 1/65536, pixels in whole ones.
    """

    words: ClassVar[int] = 6
    degrees: Degrees
    translate: tuple[float, float] | None = None
    scale: tuple[float, float] | None = None
    shear: float | tuple[float, float] | tuple[float, float, float, float] | None = None
    interpolation: str = "nearest"
    fill: Fill = 0
    center: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.translate is not None:
            if not isinstance(self.translate, tuple) or len(self.translate) != 2:
                raise ValueError(f"affine: translate must be shares of (width, height), got {self.translate!r}")
            across, down = (number(self, "translate", share, 0.0, 1.0) for share in self.translate)
            object.__setattr__(self, "translate", (across, down))
        if self.scale is not None:
            object.__setattr__(self, "scale", interval(self, "scale", self.scale, 0.01, 100.0))
        if self.shear is not None:
            object.__setattr__(self, "shear", self._canonical_shear())

    def _canonical_shear(self) -> float | tuple[float, ...]:
        if not isinstance(self.shear, tuple) or len(self.shear) == 2:
            return symmetric(self, "shear", self.shear, _MOST_SHEAR)
        if len(self.shear) != 4:
            raise ValueError(
                f"affine: shear must be a number, (low, high) or (x low, x high, y low, y high), got {self.shear!r}"
            )
        along_x = interval(self, "shear", self.shear[:2], -_MOST_SHEAR, _MOST_SHEAR)
        along_y = interval(self, "shear", self.shear[2:], -_MOST_SHEAR, _MOST_SHEAR)
        return (*along_x, *along_y) if any(along_y) else symmetric(self, "shear", along_x, _MOST_SHEAR)

    @property
    def shears(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The ranges of the shear along x and along y, in degrees."""
        if self.shear is None:
            return (0.0, 0.0), (0.0, 0.0)
        if isinstance(self.shear, tuple) and len(self.shear) == 4:
            return self.shear[:2], self.shear[2:]
        return ends(self.shear), (0.0, 0.0)


@dataclass(frozen=True)
class Cutout(_Filled):
    """Fill a window around a random pixel.

    ``[H, W, C]`` uint8 to the same shape. `size`: size x size, or (height, width). The window may reach over the edge. `fill`:
    a level, or (red, green, blue). From DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with
    Cutout" (2017).
    """

    words: ClassVar[int] = 2
    size: Size
    fill: Fill = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "size", size_pair(self, self.size))


def _half_to_even(margin: int) -> int:
    half, odd = divmod(margin, 2)
    return half + (odd & half)
