"""Energy in Keras' logs: a callback that meters every epoch of a training."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Any

import keras
import tensorflow as tf

from joulecache.pipelines.energy import Energy, Meter, Window
from joulecache.pipelines.training.input_waits import InputWaits

_MOST_OPEN = 100  # trainings under one meter at once


class EnergyCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Put the energy of each epoch into Keras' logs: History, CSVLogger and TensorBoard show it beside the loss.

    Keys: `energy_j`, `energy_low_j`, `energy_high_j`, `cpu_s` and, where the number of images is known,
    `energy_j_per_1000_images`, of the epoch's training alone; `val_energy_j`, of its validation. Where its input is `timed`, also
    `input_wait_s`, the seconds in which the training waited for batches, and `compute_s`, all its other seconds. `energies`,
    `val_energies`, `images` and `input_waits_s` keep the whole figures, one per epoch, None where not known. Without
    `images_per_epoch` the images are counted by Keras' mean of the loss; a model with a train step of its own hides them.

    The windows are named "training" and "validation", and where such a name is open in the meter "training 2" and so on.
    Callbacks get the logs in the order in which they are given: give this one before those that write them.
    """

    def __init__(self, meter: Meter, images_per_epoch: int | None = None) -> None:
        super().__init__()
        if images_per_epoch is not None and images_per_epoch < 1:
            raise ValueError(f"images_per_epoch {images_per_epoch}: give at least 1, or None to have them counted")
        self.energies: list[Energy] = []
        self.val_energies: list[Energy] = []
        self.images: list[int | None] = []
        self.input_waits_s: list[float | None] = []
        self._meter = meter
        self._images_per_epoch = images_per_epoch
        self._opened = ExitStack()  # holds the one window that is open
        self._training: Window | None = None
        self._validation: Window | None = None
        self._waits = InputWaits()  # of this epoch

    def timed(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Return a dataset of the same batches that counts the time for which each is waited for.

        `model.fit(callback.timed(train), callbacks=[callback])`, or `train.apply(callback.timed)`. It comes last: behind
        something that reads ahead (`prefetch`, `class_weight` in Keras' fit, a strategy for several devices) the waits are
        those of the reader. Where the next batch is asked for while a step still runs, as on a GPU or with
        `steps_per_execution` above 1, what overlaps counts as waiting: `compute_s` is then the least that computing took.

        TensorFlow's graphs know only the wall clock, in microseconds: where that is set during a wait, the figure is off by
        as much, yet never below 0 or above the epoch's duration. `scripts/bench_meter.py` prints what it costs. TensorFlow does not save
        the dataset's iterator in a checkpoint. In the scope of a distribution strategy, and with op determinism, which
        allows no clock, the dataset is returned as it is and nothing counted. Raises TypeError for what is no dataset.
        """
        return self._waits.timed(dataset)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Open the window of an epoch's training."""
        self.close()
        self._waits.restart()
        self._training = self._open("training")

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Close the window of the training, and open that of its validation."""
        if self._training is not None:  # else this is an evaluation outside of training
            self._end_training(self._training)
            self._validation = self._open("validation")

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Close the window of the validation."""
        if self._validation is not None:
            self._opened.close()
            self.val_energies.append(self._validation.energy)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Put the epoch's figures into the logs."""
        if self._training is not None:
            self._end_training(self._training)
        if logs is None:
            return
        energy, images = self.energies[-1], self.images[-1]
        logs["energy_j"], logs["energy_low_j"], logs["energy_high_j"] = energy.total_j, energy.low_j, energy.high_j
        logs["cpu_s"] = energy.cpu_s
        if images:
            logs["energy_j_per_1000_images"] = energy.total_j / images * 1000
        wait_s = self.input_waits_s[-1]
        if wait_s is not None:
            logs["input_wait_s"], logs["compute_s"] = wait_s, energy.duration_s - wait_s
        if self._validation is not None:
            logs["val_energy_j"] = self.val_energies[-1].total_j
            self._validation = None

    def close(self) -> None:
        """Close the window that an interrupted training left open; its energy is not kept."""
        self._opened.close()
        self._training = self._validation = None

    def _open(self, what: str) -> Window:
        # a meter refuses a name that is open: another training, nested or interrupted, may share the meter
        for number in range(1, _MOST_OPEN):
            with suppress(ValueError):
                return self._opened.enter_context(self._meter.window(what if number == 1 else f"{what} {number}"))
        return self._opened.enter_context(self._meter.window(f"{what} {_MOST_OPEN}"))

    def _end_training(self, window: Window) -> None:
        # reading the count waits for the last step, which on a GPU may still run: it belongs into the window
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
                # a float32, exact to 16.7 million images an epoch; from a strategy a sum over its devices
                return int(tf.convert_to_tensor(metric.count.value))
        return None
