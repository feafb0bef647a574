"""Policies: ops that choose among fourteen augmentations at every draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from joulecache.transforms.images import Fill, Matrix, Pixels, size_of, warp
from joulecache.transforms.ops import colour, filters, levels
from joulecache.transforms.ops.arguments import INTERPOLATIONS, fill_value, integer, one_of, per_channel
from joulecache.transforms.ops.base import Drawn, Op
from joulecache.transforms.ops.warps import affine_matrix
from joulecache.transforms.randomness import UNIT, below

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
"""What a policy chooses from, in torchvision's order."""

SIGNED = frozenset(AUGMENTATIONS[1:10])
"""The augmentations whose strength is negated in every second draw."""

STEPS = 6  # the most augmentations in a row: random words are reserved for all of them


class _Policy(Op):
    """A random choice of augmentations, each of a strength that is one of `num_magnitude_bins` even steps."""

    num_magnitude_bins: int
    interpolation: str
    fill: Fill

    def __post_init__(self) -> None:
        integer(self, "num_magnitude_bins", self.num_magnitude_bins, 2, 1000)
        one_of(self, "interpolation", self.interpolation, INTERPOLATIONS)
        fill_value(self, "fill", self.fill)

    def output_channels(self, channels: int) -> int:
        """Return the channels unchanged; raise ValueError for a colour on a grey image."""
        per_channel(self, "fill", self.fill, channels)
        return channels

    def strengths(self, height: int, width: int) -> dict[str, tuple[float, float]]:
        """Return each augmentation's first and last strength: tangents, pixels, degrees, factors less 1, bits or levels."""
        raise NotImplementedError

    def _augmentation(
        self, which_word: int, sign_word: int, magnitude: int, height: int, width: int
    ) -> tuple[int, int]:
        """Draw (which of `AUGMENTATIONS`, its strength): pixels, bits and levels whole, others in units of 1/65536."""
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

    def pixels(self, image: Pixels, drawn: Drawn, /) -> Pixels:
        for which, strength in zip(drawn[::2], drawn[1::2], strict=True):
            image = self._augmented(AUGMENTATIONS[which], image, strength)
        return image

    def _augmented(self, name: str, image: Pixels, strength: int) -> Pixels:
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
                return warp(image, _warp_matrix(name, image, strength), self.interpolation, self.fill)


def _warp_matrix(name: str, image: Pixels, strength: int) -> Matrix:
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
            height, width = size_of(image)
            return affine_matrix((width * 0.5, height * 0.5), -strength / UNIT, (0, 0), 1.0, (0.0, 0.0))


@dataclass(frozen=True)
class RandAugment(_Policy):
    """Apply random augmentations of one strength in a row.

    ``[H, W, C]`` uint8 to the same shape: torchvision's `RandAugment`. From Cubuk et al., "RandAugment: Practical automated data
    augmentation with a reduced search space" (2019).

    Attributes:
        num_ops: How many in a row, each drawn from all; 1 to 6.
        magnitude: The strength: a step from 0 to `num_magnitude_bins` - 1.
        num_magnitude_bins: Number of steps.
        interpolation: "nearest" or "bilinear".
        fill: Colour of what comes in from outside: a level, or (red, green, blue).
    """

    random_words: ClassVar[int] = 2 * STEPS
    num_ops: int = 2
    magnitude: int = 9
    num_magnitude_bins: int = 31
    interpolation: str = "nearest"
    fill: Fill = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        integer(self, "num_ops", self.num_ops, 1, STEPS)
        integer(self, "magnitude", self.magnitude, 0, self.num_magnitude_bins - 1)

    def strengths(self, height: int, width: int) -> dict[str, tuple[float, float]]:
        return {
            "shear_x": (0.0, 0.3),
            "shear_y": (0.0, 0.3),
            "translate_x": (0.0, 150.0 / 331.0 * width),
            "translate_y": (0.0, 150.0 / 331.0 * height),
            "rotate": (0.0, 30.0),
            "brightness": (0.0, 0.9),
            "color": (0.0, 0.9),
            "contrast": (0.0, 0.9),
            "sharpness": (0.0, 0.9),
            "posterize": (8.0, 4.0),
            "solarize": (255.0, 0.0),
        }

    def draw(self, words: Sequence[int], height: int, width: int, /) -> Drawn:
        """Return (which augmentation, strength) for each in a row."""
        drawn: list[int] = []
        for step in range(self.num_ops):
            drawn += self._augmentation(words[2 * step], words[2 * step + 1], self.magnitude, height, width)
        return tuple(drawn)


@dataclass(frozen=True)
class TrivialAugment(_Policy):
    """Apply one random augmentation of a random strength.

    ``[H, W, C]`` uint8 to the same shape: torchvision's `TrivialAugmentWide`. From Müller and Hutter, "TrivialAugment: Tuning-free
    Yet State-of-the-Art Data Augmentation" (2021).

    Attributes:
        num_magnitude_bins: Number of steps of strength.
        interpolation: "nearest" or "bilinear".
        fill: Colour of what comes in from outside: a level, or (red, green, blue).
    """

    random_words: ClassVar[int] = 3
    num_magnitude_bins: int = 31
    interpolation: str = "nearest"
    fill: Fill = 0

    def strengths(self, height: int, width: int) -> dict[str, tuple[float, float]]:
        return {
            "shear_x": (0.0, 0.99),
            "shear_y": (0.0, 0.99),
            "translate_x": (0.0, 32.0),
            "translate_y": (0.0, 32.0),
            "rotate": (0.0, 135.0),
            "brightness": (0.0, 0.99),
            "color": (0.0, 0.99),
            "contrast": (0.0, 0.99),
            "sharpness": (0.0, 0.99),
            "posterize": (8.0, 2.0),
            "solarize": (255.0, 0.0),
        }

    def draw(self, words: Sequence[int], height: int, width: int, /) -> Drawn:
        """Return (which augmentation, strength)."""
        return self._augmentation(words[0], words[1], below(words[2], self.num_magnitude_bins), height, width)
