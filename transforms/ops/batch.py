"""Ops on batches, which run after the cut: conversion to floats, and mixtures of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from joulecache.transforms import kernels
from joulecache.transforms.ops.arguments import number, per_channel
from joulecache.transforms.ops.base import Drawn, Op, word_columns
from joulecache.transforms.randomness import UNIT, below

Batch = NDArray[np.uint8] | NDArray[np.float32]
"""Images ``[B, H, W, C]``; ops that do not mix images also accept ``[H, W, C]``."""
Empty = Callable[[tuple[int, ...], Any], NDArray[Any]]
"""Allocates an array of a shape and dtype, like ``np.empty``."""


class BatchOp(Op):
    """An op that runs on a batch at load time, with one draw for the whole batch."""

    accepts_alpha: ClassVar[bool] = True

    def apply(self, images: Batch, drawn: Drawn, empty: Empty) -> Batch:
        """Compute the result, in a new array from `empty` or in place."""
        raise NotImplementedError


@dataclass(frozen=True)
class ToFloat(BatchOp):
    """Convert levels to float32 from 0 to 1.

    ``[..., C]`` uint8 to float32, level * (1 / 255): torchvision's ``ToDtype(float32, scale=True)``. Only after the cut, since
    caches hold uint8.
    """

    def apply(self, images: Batch, drawn: Drawn, empty: Empty) -> Batch:
        scaled: NDArray[np.float32] = empty(images.shape, np.float32)
        for floats, levels in zip(_each(scaled), _each(images), strict=True):
            floats[:] = levels  # faster than a product of two types
            floats *= np.float32(1 / 255)
        return scaled


@dataclass(frozen=True)
class Normalize(BatchOp):
    """Subtract a mean and divide by a standard deviation.

    ``[..., C]`` float32 to the same shape: torchvision's `Normalize`. Only after `to_float`.

    Attributes:
        mean: A number, or one per channel, on the scale of 0 to 1.
        std: A number, or one per channel, on the scale of 0 to 1.
    """

    typical = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
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
        """Return the channels unchanged; raise ValueError for per-channel numbers on a grey image."""
        per_channel(self, "mean", self.mean, channels)
        per_channel(self, "std", self.std, channels)
        return channels

    def apply(self, images: Batch, drawn: Drawn, empty: Empty) -> Batch:
        mean, std = (_like_an_image(value, images) for value in (self.mean, self.std))
        for floats in _each(images):  # views of the result of to_float
            floats -= mean
            floats /= std
        return images


class Mixture(BatchOp):
    """An op that mixes each image and label of a batch with the previous one, in a proportion from Beta(alpha, alpha).

    The draw is a function of the seed, the epoch, the index of the batch and the op's position. Labels become float32 ``[B, K]``.

    Attributes:
        alpha: Parameter of the Beta distribution; 1 is the uniform distribution.
    """

    alpha: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", number(self, "alpha", self.alpha, 1e-3, 1e3))

    def kept_share(self, drawn: Drawn, height: int, width: int) -> float:
        """Return the fraction of a mixed image that comes from the image itself rather than from the previous one."""
        raise NotImplementedError

    def _beta(self, word: int) -> int:
        """Map a word to Beta(alpha, alpha) by the quantile function, in units of 1/65536."""
        if self.alpha == 1:  # uniform
            return word + (1 << 15) >> 16
        from scipy.special import betaincinv

        return round(float(betaincinv(self.alpha, self.alpha, (word + 0.5) / 2**32)) * UNIT)


@dataclass(frozen=True)
class Mixup(Mixture):
    """Blend each image and label of a batch with the previous one.

    ``[B, H, W, C]`` uint8 or float32 to the same shape: torchvision's `MixUp`. lam * image + (1 - lam) * other, with lam
    from Beta(alpha, alpha) in multiples of 1/65536; uint8 is rounded down. From Zhang et al., "mixup: Beyond Empirical Risk
    Minimization" (2017).

    Attributes:
        alpha: Parameter of the Beta distribution; 1 is the uniform distribution.
    """

    random_words: ClassVar[int] = 1
    alpha: float = 1.0

    def draw(self, words: Sequence[int], height: int, width: int, /) -> Drawn:
        """Return (lam,), in units of 1/65536."""
        return (self._beta(words[0]),)

    def apply(self, images: Batch, drawn: Drawn, empty: Empty) -> Batch:
        mixed = empty(images.shape, images.dtype)
        # Image by image: a rolled copy of the whole batch costs two more passes through memory.
        for row, image in enumerate(images):
            other = images[row - 1]
            if images.dtype == np.uint8:
                mixed[row] = kernels.blend(other, image, drawn[0])
            else:
                lam = np.float32(drawn[0] / UNIT)
                mixed[row] = lam * image + (np.float32(1) - lam) * other
        return mixed

    def kept_share(self, drawn: Drawn, height: int, width: int) -> float:
        return drawn[0] / UNIT


@dataclass(frozen=True)
class Cutmix(Mixture):
    """Paste a window of the previous image into each image of a batch, and mix their labels.

    ``[B, H, W, C]`` uint8 or float32 to the same shape: torchvision's `CutMix`. The window has the aspect ratio of the image
    and the fraction 1 - lam of its area, with lam from Beta(alpha, alpha). It is centered on a random pixel and clipped to the
    image. From Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features" (2019).

    Attributes:
        alpha: Parameter of the Beta distribution; 1 is the uniform distribution.
    """

    random_words: ClassVar[int] = 3
    alpha: float = 1.0

    def draw(self, words: Sequence[int], height: int, width: int, /) -> Drawn:
        """Return the window (top, left, bottom, right)."""
        middle_y, middle_x = below(words[1], height), below(words[2], width)
        radius = 0.5 * math.sqrt(1 - self._beta(words[0]) / UNIT)
        down, across = int(radius * height), int(radius * width)
        top, left = max(middle_y - down, 0), max(middle_x - across, 0)
        return top, left, min(middle_y + down, height), min(middle_x + across, width)

    def apply(self, images: Batch, drawn: Drawn, empty: Empty) -> Batch:
        top, left, bottom, right = drawn
        window = images[:, top:bottom, left:right]
        window[:] = np.roll(window, 1, axis=0)
        return images

    def kept_share(self, drawn: Drawn, height: int, width: int) -> float:
        top, left, bottom, right = drawn
        return 1 - (bottom - top) * (right - left) / (height * width)


def mix_labels(
    ops: Sequence[Op], labels: NDArray[np.int64], classes: int, words: Sequence[int], size: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the labels of a batch, mixed as `apply_batch_ops` mixes its images.

    Args:
        ops: `BatchOp`s.
        labels: Class numbers ``[B]``.
        classes: The number of classes K.
        words: The batch's random words for all `ops`.
        size: (height, width) of the images.

    Returns:
        One-hot labels, mixed in the same proportions as the images, float32 ``[B, K]``.
    """
    soft = np.zeros((len(labels), classes), np.float32)
    soft[np.arange(len(labels)), labels] = 1
    return mix_shares(ops, soft, words, size)


def mix_shares(
    ops: Sequence[Op], soft: NDArray[np.float32], words: Sequence[int], size: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the class shares of a batch, float32 ``[B, K]``, mixed as `mix_labels` does."""
    for op, columns in word_columns(ops):
        if isinstance(op, Mixture):
            drawn = op.draw(words[columns], *size)
            share = np.float32(op.kept_share(drawn, *size))
            soft = share * soft + (np.float32(1) - share) * np.roll(soft, 1, axis=0)
    return soft


def _each(images: Batch) -> Batch:
    """Return the values of each image, ``[B, H * W * C]``. Ops run on one image after the other, which stays in the CPU's cache."""
    return images.reshape(-1, math.prod(images.shape[-3:]))


def _like_an_image(value: float | tuple[float, ...], images: Batch) -> NDArray[np.float32]:
    """Repeat a number, or one per channel, for all values of an image: NumPy takes ten times as long to broadcast it."""
    height, width, channels = images.shape[-3:]
    return np.tile(np.broadcast_to(np.array(value, np.float32), channels), height * width)
