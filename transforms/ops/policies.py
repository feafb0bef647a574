"""Policies: ops that apply random augmentations, chosen from fourteen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from joulecache.transforms import coordinates, kernels
from joulecache.transforms.coordinates import Coordinates, Matrix
from joulecache.transforms.images import Array, Fill
from joulecache.transforms.ops import colour, filters, levels
from joulecache.transforms.ops.arguments import INTERPOLATIONS, fill_value, integer, one_of, per_channel
from joulecache.transforms.ops.base import Drawn, Op
from joulecache.transforms.ops.warps import affine_matrix
from joulecache.transforms.randomness import UNIT, below
from joulecache.transforms.warping import warp

AUGMENTATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
"""The augmentations, in torchvision's order."""

SIGNED = frozenset(AUGMENTATIONS[1:10])
"""The augmentations whose strength has a random sign."""

MOVING = frozenset(AUGMENTATIONS[1:6])
"""The augmentations that move pixels."""

MAX_OPS = 6  # augmentations in sequence; every draw consumes the words of this many


class _Policy(Op):
    """A random choice of augmentations, each with one of `num_magnitude_bins` evenly spaced strengths."""

    num_magnitude_bins: int
    interpolation: str
    fill: Fill

    def __post_init__(self) -> None:
        integer(self, "num_magnitude_bins", self.num_magnitude_bins, 2, 1000)
        one_of(self, "interpolation", self.interpolation, INTERPOLATIONS)
        fill_value(self, "fill", self.fill)

    def output_channels(self, channels: int) -> int:
        """Return the channels unchanged; raise ValueError for a colour fill on grey images."""
        per_channel(self, "fill", self.fill, channels)
        return channels

    def strengths(self, height: int, width: int) -> dict[str, tuple[float, float]]:
        """Return each augmentation's strengths at the first and last magnitude: tangents, pixels, degrees, factors - 1, bits, levels."""
        raise NotImplementedError

    def _augmentation(
        self, which_word: int, sign_word: int, magnitude: int, height: int, width: int
    ) -> tuple[int, int]:
        """Return (index into `AUGMENTATIONS`, strength); pixels, bits and levels are whole, others in units of 1/65536."""
        which = below(which_word, len(AUGMENTATIONS))
        name = AUGMENTATIONS[which]
        first, last = self.strengths(height, width).get(name, (0.0, 0.0))
        strength = first + (last - first) * magnitude / (self.num_magnitude_bins - 1)
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

    def pixels(self, image: Array, drawn: Drawn, /) -> Array:
        image = kernels.straight(image)
        for which, strength in zip(drawn[::2], drawn[1::2], strict=True):
            image = self._augmented(AUGMENTATIONS[which], image, strength)
        return image

    def _augmented(self, name: str, image: Array, strength: int) -> Array:
        match name:
            case "brightness":
                return colour.adjust_brightness(image, UNIT + strength)
            case "color":
                return colour.adjust_saturation(image, UNIT + strength)
            case "contrast":
                return colour.adjust_contrast(image, UNIT + strength)
            case "sharpness":
                return filters.adjust_sharpness(image, UNIT + strength)
            case "posterize":
                return levels.posterized(image, strength)
            case "solarize":
                return levels.solarized(image, strength)
            case "autocontrast":
                return levels.stretched(image)
            case "equalize":
                return levels.equalized(image)
            case "identity":
                return image
            case _:
                return warp(image, _warp_matrix(name, image.shape[:2], strength), self.interpolation, self.fill)

    def mask(self, mask: Array, drawn: Drawn, /) -> Array:
        for matrix in _matrices(drawn, mask.shape[:2]):
            mask = warp(mask, matrix, "nearest", 0)
        return mask

    def boxes(self, boxes: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        for matrix in _matrices(drawn, size):
            boxes = coordinates.clamped(coordinates.mapped(boxes, coordinates.inverse(matrix)), *size)
        return boxes

    def points(self, points: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        for matrix in _matrices(drawn, size):
            points = coordinates.mapped(points, coordinates.inverse(matrix))
        return points


def _strengths(
    tangent: float, translate: tuple[float, float], degrees: float, factor: float, bits: float
) -> dict[str, tuple[float, float]]:
    tangents, factors = (0.0, tangent), (0.0, factor)
    return {
        "shear_x": tangents,
        "shear_y": tangents,
        "translate_x": (0.0, translate[0]),
        "translate_y": (0.0, translate[1]),
        "rotate": (0.0, degrees),
        "brightness": factors,
        "color": factors,
        "contrast": factors,
        "sharpness": factors,
        "posterize": (8.0, bits),
        "solarize": (255.0, 0.0),
    }


def _matrices(drawn: Drawn, size: tuple[int, ...]) -> list[Matrix]:
    """Return the maps of the drawn augmentations that move pixels."""
    pairs = zip(drawn[::2], drawn[1::2], strict=True)
    return [
        _warp_matrix(AUGMENTATIONS[which], size, strength)
        for which, strength in pairs
        if AUGMENTATIONS[which] in MOVING
    ]


def _warp_matrix(name: str, size: tuple[int, ...], strength: int) -> Matrix:
    match name:
        case "shear_x":  # about the top left, as in the papers and torchvision
            return 1.0, strength / UNIT, 0.0, 0.0, 1.0, 0.0
        case "shear_y":
            return 1.0, 0.0, 0.0, strength / UNIT, 1.0, 0.0
        case "translate_x":
            return 1.0, 0.0, -strength, 0.0, 1.0, 0.0
        case "translate_y":
            return 1.0, 0.0, 0.0, 0.0, 1.0, -strength
        case _:  # rotate
            height, width = size
            return affine_matrix((width * 0.5, height * 0.5), -strength / UNIT, (0, 0), 1.0, (0.0, 0.0))


@dataclass(frozen=True)
class RandAugment(_Policy):
    """Apply random augmentations of one strength in sequence.

    ``[H, W, C]`` uint8 to the same shape: torchvision's `RandAugment`. From Cubuk et al., "RandAugment: Practical automated data
    augmentation with a reduced search space" (2019).

    Attributes:
        num_ops: Number of augmentations, from 1 to 6.
        magnitude: Index of the strength, from 0 to `num_magnitude_bins` - 1.
        num_magnitude_bins: Number of strengths.
        interpolation: "nearest" or "bilinear".
        fill: Colour of the area outside the image: a level, or (red, green, blue).
    """

    random_words: ClassVar[int] = 2 * MAX_OPS
    num_ops: int = 2
    magnitude: int = 9
    num_magnitude_bins: int = 31
    interpolation: str = "nearest"
    fill: Fill = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        integer(self, "num_ops", self.num_ops, 1, MAX_OPS)
        integer(self, "magnitude", self.magnitude, 0, self.num_magnitude_bins - 1)

    def strengths(self, height: int, width: int) -> dict[str, tuple[float, float]]:
        return _strengths(0.3, (150.0 / 331.0 * width, 150.0 / 331.0 * height), 30.0, 0.9, 4.0)

    def draw(self, words: Sequence[int], height: int, width: int, /) -> Drawn:
        """Return (index, strength) of each augmentation in sequence."""
        drawn: list[int] = []
        for position in range(self.num_ops):
            drawn += self._augmentation(words[2 * position], words[2 * position + 1], self.magnitude, height, width)
        return tuple(drawn)


@dataclass(frozen=True)
class TrivialAugment(_Policy):
    """Apply one random augmentation of a random strength.

    ``[H, W, C]`` uint8 to the same shape: torchvision's `TrivialAugmentWide`. From Müller and Hutter, "TrivialAugment: Tuning-free
    Yet State-of-the-Art Data Augmentation" (2021).

    Attributes:
        num_magnitude_bins: Number of strengths.
        interpolation: "nearest" or "bilinear".
        fill: Colour of the area outside the image: a level, or (red, green, blue).
    """

    random_words: ClassVar[int] = 3
    num_magnitude_bins: int = 31
    interpolation: str = "nearest"
    fill: Fill = 0

    def strengths(self, height: int, width: int) -> dict[str, tuple[float, float]]:
        return _strengths(0.99, (32.0, 32.0), 135.0, 0.99, 2.0)

    def draw(self, words: Sequence[int], height: int, width: int, /) -> Drawn:
        """Return (index, strength) of the augmentation."""
        return self._augmentation(words[0], words[1], below(words[2], self.num_magnitude_bins), height, width)
