"""Policies: ops that choose among fourteen others at every draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from joulecache.transforms.ops.base import Fill, Op, chosen, level_or_colour, refuse_colour_on_grey, whole
from joulecache.transforms.ops.geometry import INTERPOLATIONS

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
"""Those whose strength is turned round at every second draw."""

STEPS = 6  # a policy applies at most so many in a row: room for their random words


class _Policy(Op):
    """A random choice of augmentations, each of a strength that is one of `num_magnitude_bins` even steps."""

    num_magnitude_bins: int
    interpolation: str
    fill: Fill

    def __post_init__(self) -> None:
        whole(self, "num_magnitude_bins", self.num_magnitude_bins, 2, 1000)
        chosen(self, "interpolation", self.interpolation, INTERPOLATIONS)
        level_or_colour(self, "fill", self.fill)

    def output_channels(self, channels: int) -> int:
        """Return the channels as they are; ValueError for a colour on a grey image."""
        refuse_colour_on_grey(self, "fill", self.fill, channels)
        return channels

    def strengths(self, height: int, width: int) -> dict[str, tuple[float, float]]:
        """Return the first and the last strength of each augmentation: tangents, pixels, degrees, factors less 1, bits, levels."""
        raise NotImplementedError


@dataclass(frozen=True)
class RandAugment(_Policy):
    """Apply random augmentations of one strength in a row.

    ``[H, W, C]`` uint8 to the same shape: torchvision's `RandAugment`. `num_ops`: how many in a row, each drawn from all.
    `magnitude` counts steps from 0 to `num_magnitude_bins` - 1. `interpolation` and `fill` are those of `Rotate`. From Cubuk et
    al., "RandAugment: Practical automated data augmentation with a reduced search space" (2019).
    """

    words: ClassVar[int] = 2 * STEPS
    num_ops: int = 2
    magnitude: int = 9
    num_magnitude_bins: int = 31
    interpolation: str = "nearest"
    fill: Fill = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "num_ops", self.num_ops, 1, STEPS)
        whole(self, "magnitude", self.magnitude, 0, self.num_magnitude_bins - 1)

    def strengths(self, height: int, width: int) -> dict[str, tuple[float, float]]:
        """Return the first and the last strength of each augmentation: tangents, pixels, degrees, factors less 1, bits, levels."""
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


@dataclass(frozen=True)
class TrivialAugment(_Policy):
    """Apply one random augmentation of a random strength.

    ``[H, W, C]`` uint8 to the same shape: torchvision's `TrivialAugmentWide`. `interpolation` and `fill` are those of `Rotate`.
    From Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation" (2021).
    """

    words: ClassVar[int] = 3
    num_magnitude_bins: int = 31
    interpolation: str = "nearest"
    fill: Fill = 0

    def strengths(self, height: int, width: int) -> dict[str, tuple[float, float]]:
        """Return the first and the last strength of each augmentation: tangents, pixels, degrees, factors less 1, bits, levels."""
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
