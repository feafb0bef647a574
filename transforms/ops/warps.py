"""Ops that rotate, translate, scale and shear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from joulecache.transforms.coordinates import Coordinates, Matrix, inverse, mapped
from joulecache.transforms.images import Array, Fill
from joulecache.transforms.ops.arguments import (
    INTERPOLATIONS,
    MAX_SIDE,
    Range,
    ends,
    interval,
    number,
    one_of,
    op_name,
    symmetric,
)
from joulecache.transforms.ops.base import Drawn, draw_columns
from joulecache.transforms.ops.geometry import Filled
from joulecache.transforms.randomness import UNIT, below, between
from joulecache.transforms.warping import warp

_MAX_SHEAR = 89.0  # degrees: at 90 the image is a line


class _Warp(Filled):
    """An affine map of the image around a center."""

    degrees: Range
    interpolation: str
    center: tuple[float, float] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "degrees", symmetric(self, "degrees", self.degrees, 360.0))
        one_of(self, "interpolation", self.interpolation, INTERPOLATIONS)
        if self.center is not None:
            if not isinstance(self.center, tuple) or len(self.center) != 2:
                raise ValueError(f"{op_name(type(self))}: center must be (x, y) in pixels, got {self.center!r}")
            x, y = (number(self, "center", place, -MAX_SIDE, MAX_SIDE) for place in self.center)
            object.__setattr__(self, "center", (x, y))

    @property
    def angles(self) -> tuple[float, float]:
        """The range of the angle, in degrees."""
        return ends(self.degrees)

    def matrix(self, drawn: Drawn, height: int, width: int) -> Matrix:
        """Return the map from result to input coordinates, in an image of this size."""
        raise NotImplementedError

    def middle(self, height: int, width: int) -> tuple[float, float]:
        """Return the center of the map, (x, y)."""
        return self.center or (width * 0.5, height * 0.5)

    def pixels(self, image: Array, drawn: Drawn, /) -> Array:
        return warp(image, self.matrix(drawn, *image.shape[:2]), self.interpolation, self.fill)

    def mask(self, mask: Array, drawn: Drawn, /) -> Array:
        return warp(mask, self.matrix(drawn, *mask.shape[:2]), "nearest", 0)

    def boxes(self, boxes: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        return mapped(boxes, inverse(self.matrix(drawn, *size)))

    def points(self, points: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        return mapped(points, inverse(self.matrix(drawn, *size)))


@dataclass(frozen=True)
class Rotate(_Warp):
    """Rotate counter-clockwise by a random angle.

    ``[H, W, C]`` uint8 to the same shape. torchvision's `RandomRotation` without `expand`, which would make the size
    random; the angle is a multiple of 1/65536 of a degree.

    Attributes:
        degrees: d for (-d, d), or (low, high).
        interpolation: "nearest" or "bilinear".
        fill: Colour of the area outside the image: a level, or (red, green, blue).
        center: (x, y) in pixels from the top left; None for the middle.
    """

    typical = (15,)
    random_words: ClassVar[int] = 1
    degrees: Range
    interpolation: str = "nearest"
    fill: Fill = 0
    center: tuple[float, float] | None = None

    def draw(self, words: Sequence[int], height: int, width: int, /) -> Drawn:
        """Return (degrees,), in units of 1/65536."""
        return (between(words[0], *self.angles),)

    draw_batch = draw_columns

    def matrix(self, drawn: Drawn, height: int, width: int) -> Matrix:
        return affine_matrix(self.middle(height, width), -drawn[0] / UNIT, (0, 0), 1.0, (0.0, 0.0))


@dataclass(frozen=True)
class Affine(_Warp):
    """Rotate, translate, scale and shear by random amounts.

    ``[H, W, C]`` uint8 to the same shape, with uniformly drawn amounts. torchvision's `RandomAffine` and its matrix; translations
    are whole pixels, other amounts multiples of 1/65536.

    Attributes:
        degrees: Clockwise: d for (-d, d), or (low, high).
        translate: (a, b): translate by at most a * W and b * H pixels. None: do not translate.
        scale: (low, high). None: do not scale.
        shear: In degrees: s for (-s, s) along x, (low, high) along x, or (x low, x high, y low, y high). None: do not shear.
        interpolation: "nearest" or "bilinear".
        fill: Colour of the area outside the image: a level, or (red, green, blue).
        center: (x, y) in pixels from the top left; None for the middle.
    """

    typical = (15, (0.1, 0.1), (0.9, 1.1), 5)
    random_words: ClassVar[int] = 6
    degrees: Range
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
                raise ValueError(
                    f"affine: translate must be a pair of fractions of (width, height), got {self.translate!r}"
                )
            across, down = (number(self, "translate", fraction, 0.0, 1.0) for fraction in self.translate)
            object.__setattr__(self, "translate", (across, down))
        if self.scale is not None:
            object.__setattr__(self, "scale", interval(self, "scale", self.scale, 0.01, 100.0))
        if self.shear is not None:
            object.__setattr__(self, "shear", self._canonical_shear())

    def _canonical_shear(self) -> float | tuple[float, ...]:
        if not isinstance(self.shear, tuple) or len(self.shear) == 2:
            return symmetric(self, "shear", self.shear, _MAX_SHEAR)
        if len(self.shear) != 4:
            raise ValueError(
                f"affine: shear must be a number, (low, high) or (x low, x high, y low, y high), got {self.shear!r}"
            )
        along_x = interval(self, "shear", self.shear[:2], -_MAX_SHEAR, _MAX_SHEAR)
        along_y = interval(self, "shear", self.shear[2:], -_MAX_SHEAR, _MAX_SHEAR)
        return (*along_x, *along_y) if any(along_y) else symmetric(self, "shear", along_x, _MAX_SHEAR)

    @property
    def shears(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The ranges of the shear along x and along y, in degrees."""
        if self.shear is None:
            return (0.0, 0.0), (0.0, 0.0)
        if isinstance(self.shear, tuple) and len(self.shear) == 4:
            return self.shear[:2], self.shear[2:]
        return ends(self.shear), (0.0, 0.0)

    def draw(self, words: Sequence[int], height: int, width: int, /) -> Drawn:
        """Return (degrees, pixels right, pixels down, scale, shear along x, along y); all but pixels in units of 1/65536."""
        fraction_x, fraction_y = self.translate or (0, 0)
        across, down = round(fraction_x * width), round(fraction_y * height)
        along_x, along_y = self.shears
        return (
            between(words[0], *self.angles),
            below(words[1], 2 * across + 1) - across,
            below(words[2], 2 * down + 1) - down,
            between(words[3], *(self.scale or (1.0, 1.0))),
            between(words[4], *along_x),
            between(words[5], *along_y),
        )

    draw_batch = draw_columns

    def matrix(self, drawn: Drawn, height: int, width: int) -> Matrix:
        degrees, right, down, scale, along_x, along_y = drawn
        shear = along_x / UNIT, along_y / UNIT
        return affine_matrix(self.middle(height, width), degrees / UNIT, (right, down), scale / UNIT, shear)


def affine_matrix(
    center: tuple[float, float],
    degrees: float,
    translate: tuple[int, int],
    scale: float,
    shear: tuple[float, float],
) -> Matrix:
    """Return the matrix from result to input coordinates, for `warp`.

    The inverse of T C R(degrees, clockwise) Sy Sx scale C^-1, where C translates by the center, T by `translate`, and Sx, Sy
    shear: the composition of torchvision's `affine`.
    """
    angle, shear_x, shear_y = math.radians(degrees), math.radians(shear[0]), math.radians(shear[1])
    a = math.cos(angle - shear_y) / math.cos(shear_y)
    c = math.sin(angle - shear_y) / math.cos(shear_y)
    b = -a * math.tan(shear_x) - math.sin(angle)
    d = -c * math.tan(shear_x) + math.cos(angle)
    # Rounded like Pillow's own matrices, since the last digits of sines and tangents differ between machines.
    xx, xy, yx, yy = (round(part / scale, 15) for part in (d, -b, -c, a))
    from_x, from_y = center[0] + translate[0], center[1] + translate[1]
    return xx, xy, center[0] - xx * from_x - xy * from_y, yx, yy, center[1] - yx * from_x - yy * from_y
