"""Ops that TensorFlow has a similar function for, in a tf.data pipeline of decoded images: the function, and the op in Python."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import joulecache as jc
from joulecache.pipelines.experiment import python_ops
from joulecache.pipelines.source import synthetic_photo
from joulecache.transforms.ops import Affine, Op, Rotate
from joulecache.transforms.randomness import UNIT, word_table

BATCH, ROUNDS = 64, 5
IMAGES = {32: 6400, 224: 640}
"""Images in a measured epoch, by their side."""

Function = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Rival:
    """A function of TensorFlow.

    Attributes:
        op: Text of the op that it is compared with.
        name: Its name.
        run: Maps images, and the op's amounts as floats, to images.
        on_batches: Whether it runs on batches with amounts for each image.
    """

    op: str
    name: str
    run: Function
    on_batches: bool = False


@dataclass(frozen=True)
class Compared:
    """CPU time in microseconds per image, in the same pipeline.

    Attributes:
        rival: What was compared.
        side: Height and width of the images in pixels.
        nothing_us: Without an op.
        python_us: With the op in Python.
        tensorflow_us: With the function.
        difference: Mean difference between the two results, in levels.
    """

    rival: Rival
    side: int
    nothing_us: float
    python_us: float
    tensorflow_us: float
    difference: float


def _warped(images: Any, amounts: Any) -> Any:
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=amounts,
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )


def _blurred(image: Any, amounts: Any) -> Any:
    weights = tf.exp(-(tf.range(-4.0, 5.0) ** 2) / (2 * amounts[0] ** 2))
    weights /= tf.reduce_sum(weights)
    padded = tf.pad(tf.cast(image[None], tf.float32), [[0, 0], [4, 4], [4, 4], [0, 0]], "REFLECT")
    for shape in ([9, 1, 1, 1], [1, 9, 1, 1]):
        kernel = tf.tile(tf.reshape(weights, shape), [1, 1, 3, 1])
        padded = tf.nn.depthwise_conv2d(padded, kernel, [1, 1, 1, 1], "VALID")
    return tf.saturate_cast(tf.round(padded[0]), tf.uint8)


RIVALS = (
    Rival(
        "grayscale(3)",
        "tf.image.rgb_to_grayscale",
        lambda images, amounts: tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(images)),
        on_batches=True,
    ),
    Rival(
        "saturation(0.4)",
        "tf.image.adjust_saturation",
        lambda image, amounts: tf.image.adjust_saturation(image, amounts[0]),
    ),
    Rival("hue(0.1)", "tf.image.adjust_hue", lambda image, amounts: tf.image.adjust_hue(image, amounts[0])),
    Rival("rotate(15)", "ImageProjectiveTransformV3", _warped, on_batches=True),
    Rival("affine(15, (0.1, 0.1))", "ImageProjectiveTransformV3", _warped, on_batches=True),
    Rival("gaussian_blur(9)", "tf.nn.depthwise_conv2d", _blurred),
)


def compare() -> Iterator[Compared]:
    """Measure all rivals at all sizes."""
    for side in IMAGES:
        photos = [jc.parse(f"decode|resize({side})")(synthetic_photo(number)) for number in range(BATCH)]
        for rival in RIVALS:
            yield _compare(rival, side, np.stack(photos))


def _compare(rival: Rival, side: int, photos: NDArray[Any]) -> Compared:
    [op], count = jc.parse(f"decode || {rival.op}").on_images, IMAGES[side]
    words = word_table([op], 1, 0, np.arange(count), 0)
    rows = tf.constant(words.astype(np.uint32).view(np.int32))
    amounts = tf.constant([_amounts(op, each, side) for each in words.tolist()], tf.float32)
    images, parallel = tf.constant(photos), tf.data.AUTOTUNE

    def given(number: Any) -> tuple[Any, Any, Any]:
        return images[number % BATCH], rows[number], amounts[number]

    def in_python(some: Any, words: Any, amounts: Any) -> Any:
        return python_ops.apply_batch([op], some, [], words, (side, side, 3))[0]

    def in_tensorflow(some: Any, words: Any, amounts: Any) -> Any:
        return rival.run(some, amounts)

    single = tf.data.Dataset.range(count).map(given, num_parallel_calls=parallel)
    batched = single.batch(BATCH, num_parallel_calls=parallel)
    if rival.on_batches:
        theirs = batched.map(in_tensorflow, num_parallel_calls=parallel)
    else:
        theirs = single.map(in_tensorflow, num_parallel_calls=parallel).batch(BATCH, num_parallel_calls=parallel)
    datasets = (batched, batched.map(in_python, num_parallel_calls=parallel), theirs)
    costs: list[list[float]] = [[] for _ in datasets]
    for turn in range(ROUNDS + 1):
        for dataset, found in zip(datasets, costs, strict=True):
            cost_us = _cpu_s(dataset) / count * 1e6
            if turn:  # the first round is a warm-up
                found.append(cost_us)
    ours, other = (next(iter(dataset)).numpy().astype(float) for dataset in datasets[1:])
    nothing_us, python_us, tensorflow_us = map(statistics.median, costs)
    return Compared(rival, side, nothing_us, python_us, tensorflow_us, float(np.abs(ours - other).mean()))


def _amounts(op: Op, words: list[int], side: int) -> list[float]:
    drawn = op.draw(words, side, side) if words else (0,)
    if not isinstance(op, Rotate | Affine):
        return [each / UNIT for each in drawn]
    # from the center of a pixel to its number, as TensorFlow counts
    xx, xy, x, yx, yy, y = op.matrix(drawn, side, side)
    return [xx, xy, x + (xx + xy - 1) / 2, yx, yy, y + (yx + yy - 1) / 2, 0.0, 0.0]


def _cpu_s(dataset: tf.data.Dataset) -> float:
    started = time.process_time()
    for _ in dataset:
        pass
    return time.process_time() - started
