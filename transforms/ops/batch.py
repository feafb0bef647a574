"""Ops that stand only after the cut: floats, which caches do not hold, and mixtures of the images of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from joulecache.transforms.ops.base import Op, number, refuse_colour_on_grey


class BatchOp(Op):
    """An op that runs on a whole batch at load time."""


@dataclass(frozen=True)
class ToFloat(BatchOp):
    """Turn levels into float32 from 0 to 1.

    ``[..., C]`` uint8 to float32, level * (1 / 255): torchvision's ``ToDtype(float32, scale=True)``. Only after the cut, since
    caches hold uint8.
    """


@dataclass(frozen=True)
class Normalize(BatchOp):
    """Subtract a mean and divide by a standard deviation.

    ``[..., C]`` float32 to the same shape: torchvision's `Normalize`. `mean` and `std`: numbers, or one per channel. Only after
    `to_float`, in whose units, 0 to 1, both are.
    """

    mean: float | tuple[float, float, float]
    std: float | tuple[float, float, float]

    def __post_init__(self) -> None:
        for name, low in (("mean", -1e6), ("std", 1e-6)):
            value = getattr(self, name)
            if isinstance(value, tuple):
                if len(value) != 3:
                    raise ValueError(f"normalize: {name} must be a number or one per channel, got {value!r}")
                object.__setattr__(self, name, tuple(number(self, name, part, low, 1e6) for part in value))
            else:
                object.__setattr__(self, name, number(self, name, value, low, 1e6))

    def output_channels(self, channels: int) -> int:
        """Return the channels as they are; ValueError for numbers per colour on a grey image."""
        for name in ("mean", "std"):
            refuse_colour_on_grey(self, name, getattr(self, name), channels)
        return channels


class Mixture(BatchOp):
    """An op that mixes each image of a batch with the one before it, and their labels, by a share from Beta(alpha, alpha).

    The draw is one for the whole batch, a function of the seed, the epoch, the batch's number and the op's position; labels
    become float32 ``[B, K]``. What an image is mixed with depends on the batch, so the pixels are exempt from being those of
    one image.
    """

    alpha: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", number(self, "alpha", self.alpha, 1e-3, 1e3))


@dataclass(frozen=True)
class Mixup(Mixture):
    """Blend each image of a batch with the one before it, and their labels.

    ``[B, H, W, C]`` uint8 or float32 to the same shape: torchvision's `MixUp`. lam * image + (1 - lam) * other, lam from
    Beta(alpha, alpha) in multiples of 1/65536; uint8 is rounded down. From Zhang et al., "mixup: Beyond Empirical Risk
    Minimization" (2017).
    """

    words: ClassVar[int] = 1
    alpha: float = 1.0


@dataclass(frozen=True)
class Cutmix(Mixture):
    """Put a window of the image before it into each image of a batch, and mix their labels.

    ``[B, H, W, C]`` uint8 or float32 to the same shape: torchvision's `CutMix`. The window has the aspect of the image and the
    area 1 - lam, lam from Beta(alpha, alpha), around a uniform pixel; what reaches over the edge is cut off. From Yun et al.,
    "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features" (2019).
    """

    words: ClassVar[int] = 3
    alpha: float = 1.0
