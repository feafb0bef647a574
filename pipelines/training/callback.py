"""Energy in Keras' logs: a callback that meters every epoch of a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import keras
import tensorflow as tf

from joulecache.pipelines.core.checks import check_integer
from joulecache.pipelines.core.quantities import joules, share
from joulecache.pipelines.energy import Energy, Meter, Window
from joulecache.pipelines.models.metrics import in_order, is_accuracy, is_loss
from joulecache.pipelines.training.input_waits import InputWaits

ADDED = (
    "energy_j",
    "energy_low_j",
    "energy_high_j",
    "energy_j_per_1000_images",
    "cpu_s",
    "co2eq_g",
    "input_wait_s",
    "compute_s",
)
"""Keys that `EnergyCallback` adds to the logs, besides those of the validation."""
_MAX_OPEN = 100  # maximum number of trainings that share a meter


class EpochLines(keras.callbacks.Callback):  # type: ignore[misc]
    """Say loss, first metric and joules of each epoch in one line; list it after an `EnergyCallback`.

    Args:
        say: Called with each line.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        super().__init__()
        self._say = say

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Say what the logs hold."""
        logs = logs or {}
        measured = [name for name in logs if not name.startswith("val_") and name not in ADDED]
        name = next((name for name in in_order(measured, self.model) if not is_loss(name)), None)
        scores, held_out = _scores(logs, "", name), _scores(logs, "val_", name)
        parts = [scores, held_out and f"held out: {held_out}"]
        parts.append(joules(logs["energy_j"]) if "energy_j" in logs else "")
        self._say(f"epoch {epoch + 1} of {self.params['epochs']}: {'; '.join(filter(None, parts))}")


def _scores(logs: Mapping[str, float], prefix: str, metric: str | None) -> str:
    """Return the loss and a metric of an epoch as text; "" without them."""
    loss, score = logs.get(f"{prefix}loss"), logs.get(f"{prefix}{metric}")
    texts = [f"loss {loss:#.4g}"] if loss is not None else []
    if metric is not None and score is not None:
        texts.append(f"{metric} {share(score) if is_accuracy(metric) else f'{score:#.4g}'}")
    return ", ".join(texts)


class EnergyCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Add the energy of each epoch to Keras' logs, so that History, CSVLogger and TensorBoard show it next to the loss.

    Keys of the logs: `energy_j`, `energy_low_j`, `energy_high_j`, `cpu_s`, if the number of images is known
    `energy_j_per_1000_images`, and if the meter has a country `co2eq_g`, grams of CO2 equivalent, all of training without
    validation; `val_energy_j` and `val_co2eq_g`, of validation. If the input is `timed`, also `input_wait_s`, the seconds
    that training waited for batches, and `compute_s`, the rest.

    The meter's windows are named "training" and "validation", or "training 2" and so on if a name is in use. List this
    callback before those that write logs: they receive logs in that order.

    Args:
        meter: Measures the epochs.
        images_per_epoch: Training images per epoch. None: count them with Keras' mean of the loss, which a custom train
            step hides.

    Attributes:
        energies: Energy of training, by epoch.
        val_energies: Energy of validation, by epoch.
        images: Training images, by epoch; None if unknown.
        input_waits_s: Seconds of waiting for batches, by epoch; None if not timed.

    Raises:
        ValueError: `images_per_epoch` is below 1.
    """

    def __init__(self, meter: Meter, images_per_epoch: int | None = None) -> None:
        super().__init__()
        if images_per_epoch is not None:
            check_integer("images_per_epoch", images_per_epoch)
        self.energies: list[Energy] = []
        self.val_energies: list[Energy] = []
        self.images: list[int | None] = []
        self.input_waits_s: list[float | None] = []
        self._meter = meter
        self._images_per_epoch = images_per_epoch
        self._opened = ExitStack()  # holds the one window that is open
        self._training: Window | None = None
        self._validation: Window | None = None
        self._waits = InputWaits()  # those of the current epoch

    def timed(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Return a dataset of the same batches that measures the wait for each.

        Apply it last: `model.fit(callback.timed(train), callbacks=[callback])`, or `train.apply(callback.timed)`. If
        something reads ahead behind it (`prefetch`, `class_weight` in Keras' fit, a strategy for several devices), it measures
        the waits of that reader. If the next batch is requested while a step still runs, as on a GPU or with
        `steps_per_execution` above 1, the overlap counts as waiting, and `compute_s` is a lower bound.

        TensorFlow's graphs have only the wall clock, in microseconds: if it is set during a wait, the figure is off by
        as much, but never below 0 or above the epoch's duration. `scripts/bench_meter.py` prints what timing costs.
        TensorFlow does not save the dataset's iterator in a checkpoint. In the scope of a distribution strategy, and with op
        determinism, which forbids clocks, the dataset is returned unchanged, and nothing is measured.

        Raises:
            TypeError: It is not a dataset.
        """
        return self._waits.timed(dataset)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin to measure an epoch's training."""
        self.close()
        self._waits.restart()
        self._training = self._open("training")

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Close the window of training and open that of validation."""
        if self._training is not None:  # otherwise this is an evaluation outside of training
            self._end_training(self._training)
            self._validation = self._open("validation")

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Close the window of validation."""
        if self._validation is not None:
            self._opened.close()
            self.val_energies.append(self._validation.energy)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add the epoch's figures to the logs."""
        if self._training is not None:
            self._end_training(self._training)
        if logs is None:
            return
        energy, images = self.energies[-1], self.images[-1]
        logs["energy_j"], logs["energy_low_j"], logs["energy_high_j"] = energy.total_j, energy.low_j, energy.high_j
        logs["cpu_s"] = energy.cpu_s
        if images:
            logs["energy_j_per_1000_images"] = energy.total_j / images * 1000
        if energy.carbon_g is not None:
            logs["co2eq_g"] = energy.carbon_g
        wait_s = self.input_waits_s[-1]
        if wait_s is not None:
            logs["input_wait_s"], logs["compute_s"] = wait_s, energy.duration_s - wait_s
        if self._validation is not None:
            validation = self.val_energies[-1]
            logs["val_energy_j"] = validation.total_j
            if validation.carbon_g is not None:
                logs["val_co2eq_g"] = validation.carbon_g
            self._validation = None

    def close(self) -> None:
        """Close the window of an interrupted training, and drop its energy."""
        self._opened.close()
        self._training = self._validation = None

    def _open(self, name: str) -> Window:
        # a meter refuses a name that is open, and another training, nested or interrupted, may share the meter
        for number in range(1, _MAX_OPEN):
            with suppress(ValueError):
                return self._opened.enter_context(self._meter.window(name if number == 1 else f"{name} {number}"))
        return self._opened.enter_context(self._meter.window(f"{name} {_MAX_OPEN}"))

    def _end_training(self, window: Window) -> None:
        # reading the count waits for the last step, which may still run on a GPU and belongs to the window
        self.images.append(self._images_per_epoch or self._count_images())
        self._opened.close()
        self.energies.append(window.energy)
        self.input_waits_s.append(self._waits.seconds(window.energy.duration_s))
        self._training = None

    def _count_images(self) -> int | None:
        if type(self.model).train_step is not keras.Model.train_step:
            return None
        for metric in self.model.metrics:
            if metric.name == "loss" and isinstance(metric, keras.metrics.Mean):
                # a float32, exact up to 16.7 million images per epoch; with a strategy it is a sum over devices
                return int(tf.convert_to_tensor(metric.count.value))
        return None
