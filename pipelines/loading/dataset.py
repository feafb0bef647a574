"""tf.data over a `StepReader`."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.loading.config import LoadConfig
from joulecache.pipelines.loading.graph import as_tensors, gather, with_rows_per_step
from joulecache.pipelines.loading.kept_alive import Token, call_method, keep_alive
from joulecache.pipelines.loading.light_functions import Tensors, map_in_order, scan, slices
from joulecache.pipelines.loading.reader import FINGERPRINT_BITS, StepReader

Arrays: TypeAlias = tuple[Any, ...]

_STEPS_AHEAD = 1
_POSITION = 1 << FINGERPRINT_BITS  # a saved position is the step's number times this, plus the fingerprint


def make_dataset(reader: StepReader, config: LoadConfig) -> tf.data.Dataset:
    """Return a `tf.data.Dataset` over the batches of a reader, as `load` describes them."""
    (epoch, batch), count = reader.start, reader.batches.count
    dataset = _gathered(reader, config) if reader.gathers else _read(reader, config)
    if config.epochs is not None or not batch:
        left = count if config.epochs is None else (config.epochs - epoch) * count - batch
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(left))
    options = tf.data.Options()
    # Steps are already read ahead: prefetching batches as well would add a fifth to the cost of a small batch.
    options.experimental_optimization.inject_prefetch = False
    # Checkpoints hold positions, not the batches that were read ahead.
    options.experimental_symbolic_checkpoint = config.epochs is not None
    dataset = dataset.with_options(options)
    dataset.class_names = reader.class_names
    dataset.num_classes = len(dataset.class_names)
    return dataset


def _read(reader: StepReader, config: LoadConfig) -> tf.data.Dataset:
    """Return batches that Python reads."""
    steps = _ImageSteps(reader, config)
    dataset = steps.dataset(steps.shaped)
    if config.epochs is None:
        dataset = _in_one_thread(dataset)
    dataset = dataset.prefetch(_STEPS_AHEAD)
    return slices(dataset) if steps.stacked else dataset


def _gathered(reader: StepReader, config: LoadConfig) -> tf.data.Dataset:
    """Return batches that TensorFlow gathers."""
    reader, whole_steps = with_rows_per_step(reader, config)
    steps = _PlaceSteps(reader, config, whole_steps=whole_steps)
    images = as_tensors(reader.split.arrays)
    if whole_steps:
        dataset = steps.dataset(steps.gathered, images).prefetch(_STEPS_AHEAD)
        return slices(dataset) if steps.stacked else dataset
    batches = slices(steps.dataset(steps.ensure_shapes))
    dataset = map_in_order(batches, lambda *batch: steps.gathered(*batch, images))
    return dataset.prefetch(_STEPS_AHEAD)


class _Steps(ABC):
    """The steps of a reader as functions for tf.data.

    They use few TensorFlow ops, since each op costs time at the start of every epoch. `stacked` is whether steps have
    a leading axis of batches.
    """

    def __init__(self, reader: StepReader, config: LoadConfig, *, stacked: bool) -> None:
        self._reader, self._config, self.stacked = reader, config, stacked
        self._fingerprint = reader.fingerprint
        self._epochs = itertools.count(reader.start[0])
        self._previous = -1
        split, batches = reader.split, reader.batches
        self._image_type = tf.float32 if split.chain.is_float else tf.uint8
        self._dtype = self._image_type if config.dtype == "uint8" else tf.as_dtype(config.dtype)
        tensors = [tensor for column in split.targets for tensor in column.tensors]
        self._target_types = [tf.string if each.dtype == "str" else tf.as_dtype(each.dtype) for each in tensors]
        self._target_shapes = [each.shape for each in tensors]
        self._batch_shape: list[int | None] = [None if batches.remainder else batches.batch_size]
        self._step_shape = [*[None] * stacked, *self._batch_shape]

    @property
    @abstractmethod
    def types(self) -> list[Any]:
        """The types of the arrays of a step."""

    @abstractmethod
    def read(self, epoch: int, step: int, *, sequential: bool) -> Arrays:
        """Return the arrays of a step."""

    def dataset(self, function: Any, *constants: Any) -> tf.data.Dataset:
        """Return `function` of the arrays of each step, followed by constants, as a dataset.

        The function must not capture the token or tensors of this object: TensorFlow would never free them.
        """
        reader, config = self._reader, self._config
        batches, (epoch, batch) = reader.batches, reader.start
        token = keep_alive(self)
        if config.epochs is None:
            # Not captured: TensorFlow never frees what the function of a scan captures.
            held = [tf.data.Dataset.from_tensors(each).repeat() for each in (token, *constants)]
            numbers = tf.data.Dataset.zip(tf.data.Dataset.range(batches.steps), *held)
            return scan(numbers, -1, lambda *given: self._scan(function, *given))
        first = epoch * batches.steps + (batches.step_of(batch) if batch else 0)
        bounds = (number * _POSITION + reader.fingerprint for number in (first, config.epochs * batches.steps))
        positions = tf.data.Dataset.range(*bounds, _POSITION)
        return map_in_order(positions, lambda position: self._at_position(function, position, token, *constants))

    def _scan(
        self, function: Any, epoch: tf.Tensor, step: tf.Tensor, token: Token, *constants: Any
    ) -> tuple[tf.Tensor, Tensors]:
        """Return the epoch and a step of it. At an iterator's first step `epoch` is -1: a new epoch begins."""
        epoch, *arrays = call_method(token, self._read_next, [epoch, step], [tf.int64, *self.types])
        return tf.ensure_shape(epoch, []), function(*arrays, *constants)

    def _at_position(self, function: Any, position: tf.Tensor, token: Token, *constants: Any) -> Tensors:
        """Return the step at a position: its number, counted from epoch 0, times `_POSITION`, plus the reader's fingerprint."""
        return function(*call_method(token, self._read_at, [position], self.types), *constants)

    def _read_next(self, epoch: np.int64, step: np.int64) -> Arrays:
        epoch = np.int64(next(self._epochs)) if epoch < 0 else epoch
        return epoch, *self._read(int(epoch), int(step))

    def _read_at(self, position: np.int64) -> Arrays:
        number, fingerprint = divmod(int(position), _POSITION)
        if fingerprint != self._fingerprint:
            raise CacheError(
                "this iterator was saved from a dataset over other images or with other arguments of load: restore it with the "
                "same, or start again"
            )
        return self._read(*divmod(number, self._reader.batches.steps))

    def _read(self, epoch: int, step: int) -> Arrays:
        number = epoch * self._reader.batches.steps + step
        sequential, self._previous = number == self._previous + 1, number
        return self.read(epoch, step, sequential=sequential)

    def _arranged(self, views: Sequence[tf.Tensor], targets: Any, shape: list[int | None]) -> Tensors:
        if self._dtype != self._image_type:
            views = [tf.cast(images, self._dtype) for images in views]
        views = [tf.ensure_shape(images, [*shape, *self._reader.split.image_shape]) for images in views]
        return self._reader.arrange(views, self._ensured(targets, shape))

    def _ensured(self, targets: Any, shape: list[int | None]) -> list[tf.Tensor]:
        return [tf.ensure_shape(one, [*shape, *each]) for one, each in zip(targets, self._target_shapes, strict=True)]


def _is_stacked(reader: StepReader, config: LoadConfig) -> bool:
    """Return whether steps have several batches, or none: those before a `start` inside an epoch, without `epochs`, are empty."""
    return reader.batches.per_step > 1 or (config.epochs is None and reader.start[1] > 0)


class _ImageSteps(_Steps):
    """Steps of images."""

    def __init__(self, reader: StepReader, config: LoadConfig) -> None:
        super().__init__(reader, config, stacked=_is_stacked(reader, config))

    @property
    def types(self) -> list[Any]:
        return [*[self._image_type] * self._reader.views, *self._target_types]

    def read(self, epoch: int, step: int, *, sequential: bool) -> Arrays:
        images, targets = self._reader.read(epoch, step, sequential=sequential)
        arrays = (*images, *targets)
        return arrays if self.stacked else tuple(each[0] for each in arrays)

    def shaped(self, *arrays: tf.Tensor) -> Tensors:
        """Return batches in the structure that `load` yields."""
        views = self._reader.views
        return self._arranged(arrays[:views], arrays[views:], self._step_shape)


class _PlaceSteps(_Steps):
    """Steps of places of images, for the graph path: one variant for all batches with `whole_steps`, else one for each."""

    def __init__(self, reader: StepReader, config: LoadConfig, *, whole_steps: bool) -> None:
        super().__init__(reader, config, stacked=not whole_steps or _is_stacked(reader, config))
        self._whole_steps = whole_steps

    @property
    def types(self) -> list[Any]:
        return [tf.int32, tf.int64, *self._target_types]

    def read(self, epoch: int, step: int, *, sequential: bool) -> Arrays:
        variant, places, targets = self._reader.read_places(epoch, step, sequential=sequential)
        if not self.stacked:
            places, targets = places[0], tuple(each[0] for each in targets)
        return np.full(() if self._whole_steps else len(places), variant, np.int32), places, *targets

    def ensure_shapes(self, variants: tf.Tensor, places: tf.Tensor, *targets: tf.Tensor) -> Arrays:
        """Return the arrays of a step with their static shapes."""
        shape = self._step_shape
        return tf.ensure_shape(variants, [None]), tf.ensure_shape(places, shape), *self._ensured(targets, shape)

    def gathered(self, variant: tf.Tensor, places: tf.Tensor, *targets_and_images: Any) -> Tensors:
        """Return the batches, or the one batch, of some places in the structure that `load` yields."""
        *targets, images = targets_and_images
        shape = self._step_shape if self._whole_steps else self._batch_shape
        return self._arranged([gather(images, variant, places)], targets, shape)


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
