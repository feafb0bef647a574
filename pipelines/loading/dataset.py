"""tf.data over a `StepReader`."""

from __future__ import annotations

import functools
import itertools
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.loading.config import LoadConfig
from joulecache.pipelines.loading.kept_alive import Token, call_method, keep_alive
from joulecache.pipelines.loading.reader import FINGERPRINT_BITS, StepReader

Tensors: TypeAlias = Any

_STEPS_AHEAD = 1
_POSITION = 1 << FINGERPRINT_BITS  # a saved position is the step's number times this, plus the fingerprint


def make_dataset(reader: StepReader, config: LoadConfig) -> tf.data.Dataset:
    """Return a `tf.data.Dataset` over the batches of a reader, as `load` describes them."""
    batches, (epoch, batch) = reader.batches, reader.start
    steps = _Steps(reader, config)
    token = keep_alive(steps)
    if config.epochs is None:
        # Not captured: TensorFlow never frees what the function of a scan captures.
        tokens = tf.data.Dataset.from_tensors(token).repeat()
        numbers = tf.data.Dataset.zip(tf.data.Dataset.range(batches.steps), tokens)
        dataset = _in_one_thread(numbers.scan(np.int64(-1), steps.scan))
    else:
        first = epoch * batches.steps + (batches.step_of(batch) if batch else 0)
        bounds = (number * _POSITION + reader.fingerprint for number in (first, config.epochs * batches.steps))
        dataset = tf.data.Dataset.range(*bounds, _POSITION).map(functools.partial(steps.at_position, token))
    dataset = dataset.prefetch(_STEPS_AHEAD)
    if steps.stacked:
        dataset = dataset.flat_map(lambda *step: tf.data.Dataset.from_tensor_slices(step if len(step) > 1 else step[0]))
    if config.epochs is not None or not batch:
        count = batches.count if config.epochs is None else (config.epochs - epoch) * batches.count - batch
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(count))
    options = tf.data.Options()
    # Steps are already read ahead: prefetching batches as well would add a fifth to the cost of a small batch.
    options.experimental_optimization.inject_prefetch = False
    # Checkpoints hold positions, not the batches that were read ahead.
    options.experimental_symbolic_checkpoint = config.epochs is not None
    dataset = dataset.with_options(options)
    dataset.class_names = reader.class_names
    dataset.num_classes = len(dataset.class_names)
    return dataset


class _Steps:
    """The steps of a reader as functions for tf.data.

    They use few TensorFlow ops, since each op costs milliseconds at the start of every epoch. `stacked` is whether steps have
    a leading axis of batches. Without `epochs`, they always do if `start` is inside an epoch, because steps before it are empty.
    """

    def __init__(self, reader: StepReader, config: LoadConfig) -> None:
        self._reader = reader
        self._fingerprint = reader.fingerprint
        self._epochs = itertools.count(reader.start[0])
        self._previous = -1
        split, batches = reader.split, reader.batches
        self.stacked = batches.per_step > 1 or (config.epochs is None and reader.start[1] > 0)
        self._image_type = tf.float32 if split.chain.is_float else tf.uint8
        self._dtype = self._image_type if config.dtype == "uint8" else tf.as_dtype(config.dtype)
        self._tensors = [tensor for column in split.targets for tensor in column.tensors]
        self._target_types = [tf.string if each.dtype == "str" else tf.as_dtype(each.dtype) for each in self._tensors]
        batch_shape = [None] * self.stacked + [None if batches.remainder else batches.batch_size]
        self._image_shape = [*batch_shape, *split.image_shape]
        self._target_shapes = [[*batch_shape, *each.shape] for each in self._tensors]

    def scan(self, epoch: tf.Tensor, number: tuple[tf.Tensor, Token]) -> tuple[tf.Tensor, Tensors]:
        """Return the epoch and the batches of a step. At an iterator's first step `epoch` is -1: a new epoch begins."""
        step, token = number
        types = [tf.int64, self._image_type, *self._target_types]
        epoch, *arrays = call_method(token, self._read_next, [epoch, step], types)
        return tf.ensure_shape(epoch, []), self._shaped(*arrays)

    def at_position(self, token: Token, position: tf.Tensor) -> Tensors:
        """Return the step at a position: its number, counted from epoch 0, times `_POSITION`, plus the reader's fingerprint."""
        types = [self._image_type, *self._target_types]
        return self._shaped(*call_method(token, self._read_at, [position], types))

    def _read_next(self, epoch: np.int64, step: np.int64) -> tuple[Any, ...]:
        epoch = np.int64(next(self._epochs)) if epoch < 0 else epoch
        return epoch, *self._read(int(epoch), int(step))

    def _read_at(self, position: np.int64) -> tuple[Any, ...]:
        number, fingerprint = divmod(int(position), _POSITION)
        if fingerprint != self._fingerprint:
            raise CacheError(
                "this iterator was saved from a dataset over other images or with other arguments of load: restore it with the "
                "same, or start again"
            )
        return self._read(*divmod(number, self._reader.batches.steps))

    def _read(self, epoch: int, step: int) -> tuple[Any, ...]:
        number = epoch * self._reader.batches.steps + step
        sequential, self._previous = number == self._previous + 1, number
        images, targets = self._reader.read(epoch, step, sequential=sequential)
        return (images, *targets) if self.stacked else (images[0], *(each[0] for each in targets))

    def _shaped(self, images: tf.Tensor, *targets: tf.Tensor) -> Tensors:
        if self._dtype != self._image_type:
            images = tf.cast(images, self._dtype)
        shaped = [tf.ensure_shape(each, shape) for each, shape in zip(targets, self._target_shapes, strict=True)]
        return self._reader.arrange(tf.ensure_shape(images, self._image_shape), shaped)


def _in_one_thread(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Run a dataset in one thread: passing large batches between threads of TensorFlow's pool would cost a tenth more.

    Such a dataset has no symbolic checkpoints.
    """
    variant = tf.raw_ops.PrivateThreadPoolDataset(
        input_dataset=tf.data.experimental.to_variant(dataset),
        num_threads=1,
        output_types=tf.nest.map_structure(lambda spec: spec.dtype, tf.nest.flatten(dataset.element_spec)),
        output_shapes=tf.nest.map_structure(lambda spec: spec.shape, tf.nest.flatten(dataset.element_spec)),
    )
    return tf.data.experimental.from_variant(variant, dataset.element_spec)
