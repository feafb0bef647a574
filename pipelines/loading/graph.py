"""The graph path: TensorFlow gathers images from the mapped files, where nothing after the cut needs Python.

Python only computes which rows a batch has. Measured with batches of 64 on 2 cores of an AMD EPYC: 8.3 us per image of 224x224
instead of 11.4 through Python and its buffers; 1.2 us per image of 32x32 if 8 MiB are gathered at once, 1.8 us if 1.5 MiB are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from joulecache.pipelines.cache.mapped_images import OneArray
from joulecache.pipelines.loading.config import LoadConfig
from joulecache.pipelines.loading.reader import StepReader

Images: TypeAlias = tf.experimental.Optional
"""The images of each variant, tensors uint8 ``[P, H, W, C]`` in the memory of mapped files."""

_RECORDS_PER_STEP = 4096
_TARGET_BYTES_PER_STEP = 1 << 20


def as_tensors(arrays: Sequence[OneArray]) -> Images:
    """Return the images of variants as tensors, without a copy.

    When TensorFlow optimizes a pipeline, it may copy a tensor; here that would read addresses without a file. It does not look
    inside an Optional.
    """
    with tf.device("CPU:0"):
        capsules = [np.asarray(_Shared(array.images)).__dlpack__() for array in arrays]
        return tf.experimental.Optional.from_value(tuple(map(tf.experimental.dlpack.from_dlpack, capsules)))


def gather(images: Images, variant: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """Return images of a variant, an int32 scalar, uint8 ``[*S, H, W, C]`` by place, int64 ``[*S]``."""
    tensors = images.get_value()
    if len(tensors) == 1:
        return tf.gather(tensors[0], places)
    return tf.switch_case(variant, [lambda tensor=tensor: tf.gather(tensor, places) for tensor in tensors])


def with_rows_per_step(reader: StepReader, config: LoadConfig) -> tuple[StepReader, bool]:
    """Return a reader for the graph path, and whether whole steps of images are gathered, as `divide` made them, or single batches.

    Large batches are gathered one by one, and a step has the rows of many, because a Python call for each would cost a tenth of
    the batch. With shuffle="blocks", however, a step reads ahead what it has, and with `epochs` states would be larger.
    """
    batches = reader.batches
    if batches.per_step > 1 or config.shuffled == "blocks" or config.epochs is not None:
        return reader, True
    tensors = [tensor for column in reader.split.targets for tensor in column.tensors]
    target_bytes = sum(
        math.prod(each.shape) * (8 if each.dtype == "str" else np.dtype(each.dtype).itemsize) for each in tensors
    )
    records = min(_RECORDS_PER_STEP, _TARGET_BYTES_PER_STEP // max(target_bytes, 1))
    per_step = max(1, records // batches.batch_size)
    return dataclasses.replace(reader, batches=dataclasses.replace(batches, per_step=per_step)), False


class _Shared:
    """An array that TensorFlow does not copy for being read-only; no op writes to its inputs while others hold them."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self._array = array
        self.__array_interface__: dict[str, Any] = {**array.__array_interface__, "data": (array.ctypes.data, False)}
