"""Ops that the online arms run in Python: their reference kernels in `tf.numpy_function`, as people run what TensorFlow has no kernel for.

A call costs as much as a small image, so neighbouring ops share one. The kernels release the interpreter's lock while they compute,
but what is between them does not run in parallel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from joulecache.pipelines.loading.array_pool import ArrayPool
from joulecache.pipelines.loading.iterators import keep_iterators_at_exit, python_call
from joulecache.transforms import chain as reference
from joulecache.transforms import tensorflow as graphs
from joulecache.transforms.kernels import put
from joulecache.transforms.ops import BatchOp, Hue, Mixup, Op, RandomResizedCrop, Resize, ResizeShorter, Rotate, ToFloat
from joulecache.transforms.ops.batch import mix_shares
from joulecache.transforms.randomness import word_table
from joulecache.transforms.targets import (
    BoxesTarget,
    MaskTarget,
    PointsTarget,
    SpatialTarget,
    apply_to_each_with_targets,
    apply_with_targets,
)
from joulecache.transforms.tensorflow_targets import ABSENT, Boxes, Mask, Moving, Points

_INEXACT = (Resize, ResizeShorter, RandomResizedCrop, Hue, Rotate)
_CHEAPER_IF_SMALL = (Hue, Rotate)  # in TensorFlow, at 32x32: 63 instead of 102 us, and 48 instead of 70
LARGE_PIXELS = 120 * 120
"""The size of an image from which on memory traffic costs more than calls."""
_ARRAYS = ArrayPool()  # one for all: TensorFlow keeps the functions of `tf.numpy_function` until the process ends

Shape: TypeAlias = tuple[int | None, int | None, int]
"""Height, width and channels of the images after some ops; None where they vary."""


@dataclass(frozen=True)
class OnlineOps:
    """The ops of a chain as the online arms run them.

    Their parameters for one image are int32: what an op with a TensorFlow kernel draws, and the random words of one in Python, which
    draws itself. An op on batches in Python has words for each batch instead.

    Attributes:
        chain: The chain.
        in_python: The numbers of the ops that run in Python.
    """

    chain: reference.Chain
    in_python: frozenset[int]

    @classmethod
    def of(cls, chain: reference.Chain, *, moving: bool = False) -> OnlineOps:
        """Choose the ops that run in Python: those without a TensorFlow kernel, or with one that costs more, and those that share a call.

        Those between them would cost a second call. Ops before them whose TensorFlow kernel rounds otherwise run there too, since some
        ops amplify the difference; resizes cost less so as well. With `moving` targets, none of `_CHEAPER_IF_SMALL` runs in TensorFlow.
        """
        ops, count = chain.ops, len(chain.ops) - len(chain.on_batches)

        def costs_more(number: int) -> bool:
            size = reference.fixed_size(ops[:number])
            is_small = size is not None and size[0] * size[1] < LARGE_PIXELS
            return isinstance(ops[number], _CHEAPER_IF_SMALL) and (moving or not is_small)

        on_images, on_batches = (
            [number for number in numbers if not graphs.has_kernel(ops[number]) or costs_more(number)]
            for numbers in (range(count), range(count, len(ops)))
        )
        if on_images:
            on_images += [number for number in range(on_images[-1]) if isinstance(ops[number], _INEXACT)]
        spans = [range(min(numbers), max(numbers) + 1) for numbers in (on_images, on_batches) if numbers]
        return cls(chain, frozenset(itertools.chain(*spans)))

    @property
    def mixing(self) -> int:
        """The number of the first op on batches in Python, or of all ops without one."""
        ops = self.chain.ops
        return next(
            (number for number in sorted(self.in_python) if isinstance(ops[number], BatchOp)),
            len(ops),
        )

    def runs(self, first: int, last: int) -> Iterator[tuple[int, int, bool]]:
        """Yield the runs of ops from number `first` up to `last` that share a call: first, last, and whether in Python."""
        mixing = self.mixing
        for (inside, _), numbers in itertools.groupby(
            range(first, last), lambda number: (number in self.in_python, number >= mixing)
        ):
            start, *rest = numbers
            yield start, start + 1 + len(rest), inside

    def parameter_count(self, last: int) -> int:
        """Return the number of parameters of the first `last` ops."""
        return sum(
            (0 if isinstance(op, BatchOp) else op.random_words)
            if number in self.in_python
            else graphs.drawn_count([op])
            for number, op in enumerate(self.chain.ops[:last])
        )

    def parameters(self, words: Sequence[int], height: int, width: int) -> list[int]:
        """Return the parameters for one image of this size after decode, from the random words of all ops after decode."""
        parameters: list[int] = []
        used = 0
        for number, op in enumerate(self.chain.ops[1:], 1):
            own = words[used : used + op.random_words]
            used += op.random_words
            if number not in self.in_python:
                parameters += op.draw(own, height, width)
            elif not isinstance(op, BatchOp):
                parameters += np.array(own, np.uint32).view(np.int32).tolist()
            height, width = op.output_size(height, width)
        return parameters

    def batch_words(self, seed: int, epochs: int, batches: int) -> NDArray[np.int32]:
        """Return the random words of the ops on batches in Python for each batch, `[epochs, batches, W]`."""
        ops = self.chain.ops[self.mixing :]
        numbers = np.arange(batches)
        tables = [word_table(ops, self.mixing, seed, numbers, epoch) for epoch in range(epochs)]
        return np.stack(tables).astype(np.uint32).view(np.int32)

    def shape(self, last: int) -> Shape:
        """Return the shape of the images after the first `last` ops."""
        ops = self.chain.ops[:last]
        height, width = reference.fixed_size(ops) or (None, None)
        return height, width, reference.output_channels(ops)


# Calls ----------------------------------------------------------------------------------------------------------------


def apply(
    ops: Sequence[Op], image: tf.Tensor, targets: Sequence[Moving], words: tf.Tensor, shape: Shape
) -> tuple[tf.Tensor, tuple[Moving, ...]]:
    """Run ops on one image and its targets.

    Args:
        ops: Ops on single images.
        image: Encoded bytes (a scalar string), or `[H, W, C]` uint8.
        targets: Its targets.
        words: The random words of the ops, int32 `[W]`.
        shape: The shape of the result.

    Returns:
        The image `[H, W, C]` uint8 and its targets, as `transforms.tensorflow_targets.apply` returns them.
    """

    def call(image: Any, words: NDArray[np.int32], *parts: NDArray[Any]) -> Sequence[NDArray[Any]]:
        own = words.view(np.uint32).tolist()
        if not parts:
            return (reference.apply(ops, image, own),)
        [before] = _of_each(targets, [part[None] for part in parts])
        pixels, after = apply_with_targets(ops, image, own, before)
        return pixels, *(part[0] for part in _stacked(targets, parts, [after]))

    pixels, *parts = _called(call, [image, words, *tf.nest.flatten(targets)], tf.uint8)
    return tf.ensure_shape(pixels, shape), _like(targets, parts, shape, ())


def apply_batch(
    ops: Sequence[Op], images: tf.Tensor, targets: Sequence[Moving], words: tf.Tensor, shape: Shape
) -> tuple[tf.Tensor, tuple[Moving, ...]]:
    """Run ops on images of one size and their targets: as `apply`, with a leading batch axis."""

    def call(images: NDArray[np.uint8], words: NDArray[np.int32], *parts: NDArray[Any]) -> Sequence[NDArray[Any]]:
        before = _of_each(targets, parts) if parts else [()] * len(images)
        pixels, after = apply_to_each_with_targets(ops, [*images], words.view(np.uint32).astype(np.int64), before)
        batch = _ARRAYS.empty((len(images), *pixels[0].shape), np.uint8)
        for place, image in zip(batch, pixels, strict=True):
            put(place, image)
        return batch, *_stacked(targets, parts, after)

    pixels, *parts = _called(call, [images, words, *tf.nest.flatten(targets)], tf.uint8)
    return tf.ensure_shape(pixels, [None, *shape]), _like(targets, parts, shape, (None,))


def mix(
    ops: Sequence[Op], images: tf.Tensor, shares: Sequence[tf.Tensor], words: tf.Tensor
) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
    """Run ops on a batch, the first of which mixes its images.

    Args:
        ops: Ops on batches.
        images: `[B, H, W, C]` uint8 or float32.
        shares: Class shares, float32 `[B, K]`.
        words: The batch's random words for the ops, int32 `[W]`.

    Returns:
        The images and class shares.
    """

    def call(images: NDArray[Any], words: NDArray[np.int32], *shares: NDArray[np.float32]) -> Sequence[NDArray[Any]]:
        own = words.view(np.uint32).tolist()
        if not isinstance(ops[0], Mixup):  # `cutmix` works in place, and TensorFlow owns this memory
            images, given = _ARRAYS.empty(images.shape, images.dtype), images
            images[:] = given
        mixed = reference.apply_batch_ops(ops, images, own, _ARRAYS.empty)
        return mixed, *(mix_shares(ops, each, own, images.shape[1:3]) for each in shares)

    is_float = images.dtype == tf.float32 or any(isinstance(op, ToFloat) for op in ops)
    mixed, *parts = _called(call, [images, words, *shares], tf.float32 if is_float else tf.uint8)
    like = zip(parts, shares, strict=True)
    return tf.ensure_shape(mixed, images.shape), tuple(tf.ensure_shape(part, each.shape) for part, each in like)


def _called(
    function: Callable[..., Sequence[NDArray[Any]]], inputs: Sequence[tf.Tensor], dtype: tf.DType
) -> list[tf.Tensor]:
    """Call a function on tensors: the images, the words and what moves with the images; all but the words are returned."""
    keep_iterators_at_exit()

    def call(*arrays: Any) -> Sequence[NDArray[Any]]:
        with python_call():
            return function(*arrays)

    types = [dtype, *(each.dtype for each in inputs[2:])]
    outputs: list[tf.Tensor] = tf.numpy_function(call, inputs, types, stateful=False)
    return outputs


# Targets: the tensors of a batch, and those of each image --------------------------------------------------------------


def _of_each(like: Sequence[Moving], parts: Sequence[NDArray[Any]]) -> list[tuple[SpatialTarget, ...]]:
    """Return the targets of each image of a batch."""
    left = iter(parts)
    columns: list[list[SpatialTarget]] = []
    for target in like:
        match target:
            case Mask():
                columns.append([MaskTarget(ids) for ids in next(left)])
            case Points():
                columns.append([PointsTarget(points) for points in next(left)])
            case Boxes():
                pairs = zip(next(left), next(left), strict=True)
                columns.append([BoxesTarget(boxes[found >= 0], found[found >= 0]) for boxes, found in pairs])
    return [*zip(*columns, strict=True)]


def _stacked(
    like: Sequence[Moving], parts: Sequence[NDArray[Any]], moved: Sequence[Sequence[SpatialTarget]]
) -> list[NDArray[Any]]:
    """Return the tensors of the targets of each image, boxes padded to as many as `parts` has."""
    stacked: list[NDArray[Any]] = []
    for column in zip(*moved, strict=True) if like else ():
        match column[0]:
            case MaskTarget():
                stacked.append(np.stack([each.ids for each in column]))
            case PointsTarget():
                stacked.append(np.stack([each.points for each in column]))
            case BoxesTarget():
                most = parts[len(stacked)].shape[-2]
                boxes, classes = np.zeros((len(column), most, 4), np.float32), np.full((len(column), most), ABSENT)
                for row, each in enumerate(column):
                    boxes[row, : len(each.boxes)], classes[row, : len(each.boxes)] = each.boxes, each.classes
                stacked += [boxes, classes]
    return stacked


def _like(
    like: Sequence[Moving], parts: Sequence[tf.Tensor], shape: Shape, batch: tuple[None, ...]
) -> tuple[Moving, ...]:
    """Return tensors as targets, with their static shapes."""
    left = iter(parts)
    targets: list[Moving] = []
    for target in like:
        if isinstance(target, Mask):
            targets.append(Mask(tf.ensure_shape(next(left), [*batch, *shape[:2], 1])))
        else:
            targets.append(type(target)(*(tf.ensure_shape(next(left), each.shape) for each in target)))
    return tuple(targets)
