"""Workloads, the consumers of an arm's batches: nothing, a simulated device, training, fine-tuning or inference."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from joulecache.pipelines.compressing.litert import TfliteModel
from joulecache.pipelines.compressing.pruning import prune_channels
from joulecache.pipelines.compressing.quantization_aware import QuantizationAware
from joulecache.pipelines.experiment.arms import Arm
from joulecache.pipelines.experiment.names import ACCELERATOR, FINETUNE, INFER, INPUT, TRAIN
from joulecache.pipelines.experiment.results import Device
from joulecache.pipelines.models.fitting import compile_model
from joulecache.pipelines.models.flattening import plain_copy
from joulecache.pipelines.models.metrics import ACCURACY, Metric
from joulecache.pipelines.models.user_models import UserModel
from joulecache.pipelines.training.input_waits import InputWaits

_MAX_REPEATS = 50


class Workload:
    """A consumer of batches, with its default number of blocks, the epochs in one run, and the device that it simulates."""

    name: str
    blocks: int
    epochs: int
    device: Device | None = None

    def prepare(self, seed: int) -> None:
        """Prepare one run; not measured."""

    def run(self, arm: Arm, first_epoch: int) -> int:
        """Consume the arm's epochs from `first_epoch` on; return the number of images. Only this is measured."""
        raise NotImplementedError

    def release(self) -> None:
        """Drop what the run kept; not measured."""

    def score(self) -> float | None:
        """Return the model's first metric on held-out records after a run; not measured."""
        return None

    def waited_s(self, duration_s: float) -> float | None:
        """Return the seconds of the run in which a training or a device waited for its next batch; None if not timed."""
        return None


class SpentIterators:
    """Exhausted iterators, which are dropped while nothing is measured.

    TensorFlow's destructor may wait for the thread that tunes the pipeline, which sleeps for twice as long each time, up to a
    minute: a run would last up to twice as long. That wait uses no CPU, so other threads do it; only the iterators of arms that may
    keep working are waited for. The sooner an iterator is dropped, the shorter the wait; dropping many in sequence takes minutes.
    """

    def __init__(self) -> None:
        self._at_rest: list[Iterator[object]] = []
        self._working: list[Iterator[object]] = []

    def keep(self, arm: Arm, iterator: Iterator[object]) -> None:
        """Hold an iterator of the arm until `drop`."""
        (self._working if arm.reads_on else self._at_rest).append(iterator)

    def drop(self) -> None:
        """Drop all iterators."""
        self._working.clear()
        while self._at_rest:
            alone = [self._at_rest.pop()]
            threading.Thread(target=alone.clear).start()
            del alone


class InputOnly(Workload):
    """Iterate over the batches and discard them: the cost of the input alone.

    An arm whose epochs are shorter than `shortest_s` repeats them, up to 50 times, in every run but its first, which measures their
    duration: a run of some milliseconds is mostly noise.
    """

    name = INPUT
    blocks = 20

    def __init__(self, *, epochs: int = 1, shortest_s: float = 0.0) -> None:
        self.epochs = epochs
        self.spent = SpentIterators()
        self._shortest_s = shortest_s
        self._repeats: dict[str, int] = {}

    def run(self, arm: Arm, first_epoch: int) -> int:
        """Iterate over the epochs."""
        if arm.name not in self._repeats:
            return self._first_run(arm, first_epoch)
        return self._consume(arm, first_epoch, self._repeats[arm.name] * self.epochs)

    def release(self) -> None:
        """Drop the run's iterators."""
        self.spent.drop()

    def _first_run(self, arm: Arm, first_epoch: int) -> int:
        count, duration_s = 0, 0.0
        for _ in range(2):  # the first time maps files and traces graphs
            if not count or duration_s < self._shortest_s:
                started_s = time.monotonic()
                count += self._consume(arm, first_epoch, self.epochs)
                duration_s = time.monotonic() - started_s
        self._repeats[arm.name] = min(max(1, math.ceil(self._shortest_s / duration_s)), _MAX_REPEATS)
        return count

    def _consume(self, arm: Arm, first_epoch: int, epochs: int) -> int:
        return consume(arm, first_epoch, epochs, self._use, self.spent)

    def _use(self, images: tf.Tensor) -> None:
        """Do nothing with a batch."""


class CopyToDevice(InputOnly):
    """Iterate over the batches, and copy each to the device that trains."""

    def __init__(self, *, shortest_s: float = 0.0) -> None:
        super().__init__(shortest_s=shortest_s)
        self._device = training_device()

    def _use(self, images: tf.Tensor) -> None:
        with tf.device(self._device):
            tf.identity(images)


class Accelerator(InputOnly):
    """Feed a device that computes for the time of a step on each batch, while the processor prepares the next one.

    A batch that arrives early waits for the device, a late one lets it wait. As frameworks do, the next batch is requested as soon as
    the step has begun, so an arm that prepares nothing ahead overlaps with the step, too.
    """

    name = ACCELERATOR
    blocks = 10

    def __init__(self, device: Device, *, shortest_s: float = 0.0) -> None:
        super().__init__(shortest_s=shortest_s)
        self.device = device
        self._step_s = device.step_s
        self._free_s = self._waited_s = 0.0

    def run(self, arm: Arm, first_epoch: int) -> int:
        """Iterate over the epochs, and compute on each batch."""
        self._free_s, self._waited_s = time.monotonic(), 0.0
        count = super().run(arm, first_epoch)
        _sleep_until(self._free_s)
        return count

    def waited_s(self, duration_s: float) -> float:
        """Return the seconds for which the device waited in the last run."""
        return min(self._waited_s, duration_s)

    def _use(self, images: tf.Tensor) -> None:
        arrived_s = time.monotonic()
        self._waited_s += max(0.0, arrived_s - self._free_s)
        _sleep_until(self._free_s)
        # from when it was free: what a sleep lasts too long must not add up
        self._free_s = max(self._free_s, arrived_s) + self._step_s


class Training(Workload):
    """Train one compiled network for some epochs, from the weights that `start` returns for a seed.

    Every arm of a block starts from the same weights with a fresh optimizer. The network is compiled and traced only once, since
    doing so would add the same energy to every run. Without held-out records, `val_data`, there is no score.

    Attributes:
        metric: The model's first metric.
    """

    blocks = 5

    def __init__(
        self,
        name: str,
        network: keras.Model,
        start: Callable[[int], Sequence[NDArray[np.generic]]],
        val_data: tf.data.Dataset | None,
        epochs: int,
        metric: Metric = ACCURACY,
    ) -> None:
        self.name, self.network, self.epochs, self.metric = name, network, epochs, metric
        self._start, self._val_data = start, val_data
        if not network.optimizer.built:
            network.optimizer.build(network.trainable_variables)
        self._optimizer_start = [keras.ops.convert_to_numpy(variable) for variable in network.optimizer.variables]
        self._waits = InputWaits()
        self._timed: dict[tf.data.Dataset, tf.data.Dataset] = {}

    def prepare(self, seed: int) -> None:
        """Set the weights of the seed and reset the optimizer."""
        keras.utils.set_random_seed(seed)
        self.network.set_weights(self._start(seed))
        for variable, value in zip(self.network.optimizer.variables, self._optimizer_start, strict=True):
            variable.assign(value)

    def run(self, arm: Arm, first_epoch: int) -> int:
        """Train for the epochs."""
        self._waits.restart()
        for epoch in range(first_epoch, first_epoch + self.epochs):
            arm.start_epoch(epoch)
            # shuffle=False: the arms shuffle, and Keras warns that it cannot shuffle a tf.data.Dataset
            self.network.fit(self.timed(arm.dataset), epochs=1, shuffle=False, verbose=0)
        return arm.records * self.epochs

    def timed(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Return a dataset whose waits are timed, the same one each time; the first call for a dataset traces graphs."""
        if dataset not in self._timed:
            self._timed[dataset] = self._waits.timed(dataset)
        return self._timed[dataset]

    def score(self) -> float | None:
        """Return the metric on the held-out records; None without any, or if it is not finite."""
        if self._val_data is None:
            return None
        value = float(self.network.evaluate(self._val_data, verbose=0, return_dict=True)[self.metric.name])
        return value if math.isfinite(value) else None

    def waited_s(self, duration_s: float) -> float | None:
        """Return the seconds for which the last run waited for batches."""
        return self._waits.seconds(duration_s)


def train_from_scratch(
    network: keras.Model,
    val_data: tf.data.Dataset | None,
    epochs: int,
    *,
    multi_label: bool = False,
    soft_labels: bool = False,
) -> Training:
    """Make the workload "train": a classifier from fresh weights, drawn from the seed."""
    metric = compile_model(network, 1e-3, multi_label=multi_label, soft_labels=soft_labels).metric
    return Training(
        TRAIN, network, lambda seed: keras.models.clone_model(network).get_weights(), val_data, epochs, metric
    )


def train_user_model(model: UserModel, val_data: tf.data.Dataset | None, epochs: int) -> Training:
    """Make the workload "train": a model that the user's function makes again for every seed."""
    return Training(TRAIN, model.network, lambda seed: model.remake().get_weights(), val_data, epochs, model.metric)


def finetune_pruned(
    trained: keras.Model,
    prune: float,
    val_data: tf.data.Dataset | None,
    epochs: int,
    *,
    multi_label: bool = False,
    soft_labels: bool = False,
) -> Training:
    """Make the workload "finetune": the trained model, pruned, with int8 rounding in every step."""
    pruned = prune_channels(plain_copy(trained), prune)
    network = QuantizationAware(pruned)
    metric = compile_model(network, 1e-4, head=network.head, multi_label=multi_label, soft_labels=soft_labels).metric
    network(keras.ops.zeros((1, *pruned.inputs[0].shape[1:])))
    weights = network.get_weights()
    return Training(FINETUNE, network, lambda seed: weights, val_data, epochs, metric)


class Infer(Workload):
    """Run a TensorFlow Lite model over the training split, on one thread."""

    name = INFER
    blocks = 10
    epochs = 1

    def __init__(self, model: Path) -> None:
        self._model = TfliteModel(model)
        self._spent = SpentIterators()

    def run(self, arm: Arm, first_epoch: int) -> int:
        """Predict every batch."""
        return consume(arm, first_epoch, self.epochs, lambda images: self._model.predict(images.numpy()), self._spent)

    def release(self) -> None:
        """Drop the run's iterators."""
        self._spent.drop()


def _sleep_until(moment_s: float) -> None:
    time.sleep(max(0.0, moment_s - time.monotonic()))


def training_device() -> str:
    """Return the device that trains: the first GPU that TensorFlow sees, or the processor."""
    return "GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"


def consume(arm: Arm, first_epoch: int, epochs: int, use: Callable[[tf.Tensor], object], spent: SpentIterators) -> int:
    """Call `use` with the images of every batch of the epochs; return the number of images. `spent` keeps the iterators."""
    count = 0
    for epoch in range(first_epoch, first_epoch + epochs):
        arm.start_epoch(epoch)
        iterator = iter(arm.dataset)
        spent.keep(arm, iterator)
        for batch in iterator:
            images = tf.nest.flatten(batch)[0]
            use(images)
            count += images.shape[0]
    return count
