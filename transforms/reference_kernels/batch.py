"""Kernels of what runs on a whole batch, after the cut: floats and mixtures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from joulecache.transforms.ops import Cutmix, Mixture, Mixup, Normalize, Op, ToFloat
from joulecache.transforms.randomness import UNIT, parameters

Levels = NDArray[np.uint8] | NDArray[np.float32]
Empty = Callable[[tuple[int, ...], Any], NDArray[Any]]
"""Makes a new array of a shape and dtype, for a caller that wants it somewhere."""


def apply_to_batch(ops: Sequence[Op], images: Levels, words: Sequence[int], empty: Empty = np.empty) -> Levels:
    """Run ops that stand behind those on single images on ``[B, H, W, C]``, or ``[H, W, C]`` where none is a mixture.

    `words` are those of the whole batch. uint8 comes in; floats or uint8 go out, in a new array from `empty` or in the one that came.
    """
    taken = 0
    for op in ops:
        drawn = parameters(op, words[taken : taken + op.words], *images.shape[-3:-1])
        taken += op.words
        images = _KERNELS[type(op)](op, images, drawn, empty)
    return images


def mix_labels(
    ops: Sequence[Op], labels: NDArray[np.int64], classes: int, words: Sequence[int], size: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the labels that go with `apply_to_batch`: one-hot and mixed by the same shares, float32 ``[B, K]``; `size` (height, width)."""
    soft = np.zeros((len(labels), classes), np.float32)
    soft[np.arange(len(labels)), labels] = 1
    taken = 0
    for op in ops:
        if isinstance(op, Mixture):
            drawn = parameters(op, words[taken : taken + op.words], *size)
            share = np.float32(_own_share(op, drawn, size))
            soft = share * soft + (np.float32(1) - share) * np.roll(soft, 1, axis=0)
        taken += op.words
    return soft


def _own_share(op: Mixture, drawn: tuple[int, ...], size: tuple[int, int]) -> float:
    """Return how much of an image is its own."""
    if isinstance(op, Mixup):
        return drawn[0] / UNIT
    top, left, bottom, right = drawn
    return 1 - (bottom - top) * (right - left) / (size[0] * size[1])


def _to_float(op: ToFloat, images: Levels, drawn: tuple[int, ...], empty: Empty) -> Levels:
    scaled: NDArray[np.float32] = np.multiply(images, np.float32(1 / 255), out=empty(images.shape, np.float32))
    return scaled


def _normalize(op: Normalize, images: NDArray[np.float32], drawn: tuple[int, ...], empty: Empty) -> Levels:
    # Whole rows at once: NumPy takes ten times as long to repeat three numbers.
    rows = images.reshape(-1, images.shape[-2] * images.shape[-1])  # a view, changed in place: to_float made it
    rows -= _along_a_row(op.mean, images)
    rows /= _along_a_row(op.std, images)
    return images


def _along_a_row(value: float | tuple[float, ...], images: Levels) -> NDArray[np.float32]:
    width, channels = images.shape[-2:]
    return np.tile(np.broadcast_to(np.array(value, np.float32), channels), width)


def _mixup(op: Mixup, images: Levels, drawn: tuple[int, ...], empty: Empty) -> Levels:
    mixed = empty(images.shape, images.dtype)
    # Image by image: a rolled copy of the whole batch would go through memory twice more.
    for place, image in enumerate(images):
        other = images[place - 1]
        if images.dtype == np.uint8:
            # At most 255 * 65536: 32 bits hold it.
            blended = image * np.uint32(drawn[0])
            blended += other * np.uint32(UNIT - drawn[0])
            mixed[place] = blended >> 16
        else:
            share = np.float32(drawn[0] / UNIT)
            mixed[place] = share * image + (np.float32(1) - share) * other
    return mixed


def _cutmix(op: Cutmix, images: Levels, drawn: tuple[int, ...], empty: Empty) -> Levels:
    top, left, bottom, right = drawn
    window = images[:, top:bottom, left:right]
    window[:] = np.roll(window, 1, axis=0)
    return images


_KERNELS: dict[type[Op], Callable[[Any, Any, tuple[int, ...], Empty], Levels]] = {
    ToFloat: _to_float,
    Normalize: _normalize,
    Mixup: _mixup,
    Cutmix: _cutmix,
}
