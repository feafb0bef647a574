"""Measure how long a training waits for its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.data.ops.map_op import _MapDataset


class InputWaits:
    """Count the seconds that the consumer of `timed` datasets is blocked waiting for the next batch."""

    def __init__(self) -> None:
        self._waited_s: tf.Variable | None = None  # since the last restart

    def __deepcopy__(self, memo: object) -> InputWaits:
        """Return this object, since timed datasets count in it."""
        return self

    def timed(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Return a dataset of the same batches that counts waits; limits and errors are those of `EnergyCallback.timed`."""
        if not isinstance(dataset, tf.data.Dataset):
            raise TypeError(f"only a tf.data.Dataset can be timed, got a {type(dataset).__name__}")
        with tf.init_scope():
            if tf.distribute.has_strategy():
                return dataset
            try:
                tf.timestamp()
            except tf.errors.FailedPreconditionError:
                return dataset
            if self._waited_s is None:
                with tf.device("CPU:0"):  # where tf.data runs, even if there is a GPU
                    self._waited_s = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        return _with_waits_counted(dataset, self._waited_s)

    def restart(self) -> None:
        """Reset the count to 0."""
        if self._waited_s is not None:
            self._waited_s.assign(0.0)

    def seconds(self, at_most_s: float) -> float | None:
        """Return the seconds since the last restart, at most `at_most_s`; None if nothing was counted."""
        waited_s = 0.0 if self._waited_s is None else float(self._waited_s.numpy())
        # a wait is never 0 s: nothing was timed, or something else was iterated over
        return min(waited_s, at_most_s) if waited_s else None


def _with_waits_counted(dataset: tf.data.Dataset, waited_s: tf.Variable) -> tf.data.Dataset:
    """Return the same batches; each adds the seconds until its arrival to `waited_s`."""

    def count(requested_s: tf.Tensor, batch: Any) -> Any:
        waited_s.assign_add(tf.maximum(tf.timestamp() - requested_s, 0.0))
        return batch

    # zip requests its parts one after the other, in the calling thread
    clock = _map_inline(tf.data.Dataset.from_tensors(0).repeat(), lambda _: tf.timestamp())
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False
    return _map_inline(tf.data.Dataset.zip((clock, read_ahead(dataset))), count).with_options(options)


def _map_inline(dataset: tf.data.Dataset, function: Callable[..., Any]) -> tf.data.Dataset:
    """Map in the calling thread, with a private class that TensorFlow's own transformations use.

    `Dataset.map` hands every op to a thread pool, where these clocks cost 0.15 ms of CPU time per batch instead of 0.01.
    """
    plain = tf.autograph.experimental.do_not_convert(function)
    return _MapDataset(dataset, plain, force_synchronous=True, use_inter_op_parallelism=False)


def read_ahead(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Append the prefetch that TensorFlow appends by default, unless the last step reads ahead."""
    options = dataset.options()
    wanted = options.experimental_optimization.inject_prefetch
    if wanted is None:
        wanted = options.experimental_optimization.apply_default_optimizations is not False
    last = dataset
    while type(last).__name__ == "_OptionsDataset":
        (last,) = last._inputs()
    reads_ahead = any(step in type(last).__name__ for step in ("Prefetch", "Parallel", "MapAndBatch"))
    if reads_ahead or not wanted or options.autotune.enabled is False:
        return dataset
    return dataset.prefetch(tf.data.AUTOTUNE)
