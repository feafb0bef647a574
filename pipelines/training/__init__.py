"""Train a classifier from a cache, with the joules of every epoch beside its loss and accuracy."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.data.ops.map_op import _MapDataset

from joulecache.pipelines.cache.manifest import open_manifest
from joulecache.pipelines.compressing import COMPRESSION_RECORD, Compression, Recipe, compress_on, held_out_split
from joulecache.pipelines.compressing.output import (
    check_output_folder,
    discard_folder,
    staged_folder,
    write_record,
)
from joulecache.pipelines.compressing.sparsity import copy_of
from joulecache.pipelines.compressing.steps import Tell
from joulecache.pipelines.core.notebook import table_html
from joulecache.pipelines.energy import Energy, Meter, Window
from joulecache.pipelines.loading import load
from joulecache.pipelines.models import build_model, check_batches, compile_model, has_soft_labels, run_epochs
from joulecache.transforms.ops import Op

TRAINING_RECORD = "history.json"

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


class InputWaits:
    """Count the seconds for which whoever iterates over `timed` datasets is blocked for the next batch."""

    def __init__(self) -> None:
        self._waited_s: tf.Variable | None = None  # since the last restart

    def timed(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Return a dataset of the same batches that counts; `EnergyCallback.timed` says what, and where it counts nothing."""
        if not isinstance(dataset, tf.data.Dataset):
            raise TypeError(f"a {type(dataset).__name__} cannot be timed: give a tf.data.Dataset")
        with tf.init_scope():
            if tf.distribute.has_strategy():
                return dataset
            try:
                tf.timestamp()
            except tf.errors.FailedPreconditionError:
                return dataset
            if self._waited_s is None:
                with tf.device("CPU:0"):  # where tf.data runs, beside a GPU too
                    self._waited_s = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        return _with_waits_counted(dataset, self._waited_s)

    def restart(self) -> None:
        """Count from 0 on."""
        if self._waited_s is not None:
            self._waited_s.assign(0.0)

    def seconds(self, at_most_s: float) -> float | None:
        """Return what was waited since the last restart, no more than `at_most_s`; None where nothing was counted."""
        waited_s = 0.0 if self._waited_s is None else float(self._waited_s.numpy())
        # no wait is of 0 s: nothing was timed, or something else than what was iterated over
        return min(waited_s, at_most_s) if waited_s else None


def _with_waits_counted(dataset: tf.data.Dataset, waited_s: tf.Variable) -> tf.data.Dataset:
    """Return the same batches, each of which adds to `waited_s` the seconds that it took to come."""

    def count(asked_s: tf.Tensor, batch: Any) -> Any:
        waited_s.assign_add(tf.maximum(tf.timestamp() - asked_s, 0.0))
        return batch

    # zip asks its parts in turn, in the thread that asks it
    clock = _map_inline(tf.data.Dataset.from_tensors(0).repeat(), lambda _: tf.timestamp())
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False
    return _map_inline(tf.data.Dataset.zip((clock, read_ahead(dataset))), count).with_options(options)


def _map_inline(dataset: tf.data.Dataset, function: Callable[..., Any]) -> tf.data.Dataset:
    """Map in the thread that asks, and nowhere else.

    Not a public part of TensorFlow, as its own transformations use it: `Dataset.map` hands op after op to a pool of
    threads, where these clocks took 0.15 ms of CPU time a batch instead of 0.01.
    """
    plain = tf.autograph.experimental.do_not_convert(function)
    return _MapDataset(dataset, plain, force_synchronous=True, use_inter_op_parallelism=False)


def read_ahead(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Append the prefetch that TensorFlow itself appends, unless told not to, where the last step does not read ahead."""
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


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What training gave: `history` is Keras', each name with one value per epoch, joules and the wait for input included.

    `energy` is that of training all epochs, `val_energy` that of validating after each; None without validation. `accuracy` and
    `val_accuracy` are those of the last epoch. `images` counts every image as often as it was trained on; None where
    the model's own train step hides it.
    """

    history: Mapping[str, Sequence[float]]
    energy: Energy
    val_energy: Energy | None
    accuracy: float
    val_accuracy: float | None
    images: int | None

    def to_json(self) -> dict[str, object]:
        """Return a dict of JSON values, the history as one row per epoch; None where a loss diverged."""
        rows = zip(*self.history.values(), strict=True)
        return {
            "epochs": [
                {name: value if math.isfinite(value) else None for name, value in zip(self.history, row, strict=True)}
                for row in rows
            ],
            "accuracy": self.accuracy,
            "val_accuracy": self.val_accuracy,
            "images": self.images,
            "energy": self.energy.to_json(),
            "val_energy": self.val_energy and self.val_energy.to_json(),
        }


def fit(
    model: keras.Model,
    train_data: tf.data.Dataset,
    validation_data: tf.data.Dataset | None = None,
    *,
    epochs: int,
    seed: int = 0,
    meter: Meter | None = None,
    learning_rate: float = 1e-3,
    optimizer: keras.optimizers.Optimizer | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> TrainingRun:
    """Train a classifier in place on batches of (uint8 images [B, H, W, C], integer labels [B] or soft ones [B, K]), metered.

    The model is compiled (`compile_model`) and Keras' global seed set first, so the same seed, data and initial weights give the
    same model on the same machine. The learning rate falls to 0 along half a cosine, where the number of batches is known, and
    else stays; an `optimizer` of your own takes Adam's place, with a learning rate of its own. `callbacks` see the joules in their
    logs, and how long the input was waited for (`EnergyCallback.timed`). Raises ValueError for bad arguments and for data that
    is not such batches, has no end, or has another shape than the model.
    """
    if epochs < 1:
        raise ValueError(f"{epochs} epochs: train for at least 1")
    check_batches(train_data, "training data", model)
    if validation_data is not None:
        check_batches(validation_data, "validation data", model)
    keras.utils.set_random_seed(seed)
    batches = int(train_data.cardinality())
    compile_model(
        model,
        learning_rate,
        steps=batches * epochs if batches > 0 else None,
        optimizer=optimizer,
        soft_labels=has_soft_labels(train_data),
    )
    metered = EnergyCallback(meter or Meter())
    try:
        history = run_epochs(
            model,
            metered.timed(train_data),
            epochs=epochs,
            validation_data=validation_data,
            callbacks=[metered, *callbacks],
        )
    finally:
        metered.close()
    return TrainingRun(
        history=history,
        energy=reduce(operator.add, metered.energies),
        val_energy=reduce(operator.add, metered.val_energies) if metered.val_energies else None,
        accuracy=history["accuracy"][-1],
        val_accuracy=history["val_accuracy"][-1] if validation_data is not None else None,
        images=None if None in metered.images else sum(images or 0 for images in metered.images),
    )


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A run folder: the model file `path` in `folder`, how it was trained, and what compressing it gave, if asked for."""

    folder: Path
    path: Path
    training: TrainingRun
    compression: Compression | None

    def _repr_html_(self) -> str:
        trained = table_html(
            str(self.path), {"accuracy": f"{self.training.accuracy:.1%}", "energy": str(self.training.energy)}
        )
        return trained + ((self.compression._repr_html_() or "") if self.compression else "")


def train(
    cache: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    epochs: int,
    model: str | os.PathLike[str] = "cnn",
    batch_size: int = 64,
    seed: int = 0,
    learning_rate: float = 1e-3,
    optimizer: keras.optimizers.Optimizer | None = None,
    recipe: Recipe | None = None,
    meter: Meter | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    progress: Tell | None = None,
    ops: Mapping[str, type[Op]] | None = None,
) -> TrainedModel:
    """Train a model (a name, or a `.keras` or `.h5` file) on a cache, and compress it where a `recipe` is given.

    The run folder `out` gets `model.keras` and `history.json` (per epoch: loss, accuracy, joules, seconds), together, when
    training is done; then `compressed/` as `compress` writes it. The cache's `val` split validates, where it has
    records; its `test` split, or `val`, measures what was compressed. `ops`
    are the ops of your own that the cache's chain names. Raises CacheError for a cache that cannot be read, ValueError for bad
    arguments, images of varying size, a compression that cannot be done, and a folder that holds other files: all before
    training.
    """
    folder = Path(out)
    check_output_folder(folder, TRAINING_RECORD)
    manifest = open_manifest(cache)
    train_data = load(cache, "train", batch_size, seed=seed, ops=ops)
    held_out = "val" in manifest.splits and manifest.splits["val"].records > 0
    test_split = None if recipe is None else held_out_split(cache)
    val_data = load(cache, "val", batch_size, shuffle=False, ops=ops) if held_out else None
    height, width, channels = check_batches(train_data, "training data")
    if height is None or width is None or channels is None:
        raise ValueError(f"the images of cache {os.fspath(cache)!r} vary in size: end its chain in resize or a crop")
    keras.utils.set_random_seed(seed)
    network = build_model(model, (height, width, channels), train_data.num_classes)
    if recipe is not None:
        recipe.check(network)
    meter = meter or Meter()
    tell = progress or (lambda what, done, total: None)
    told = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: tell("training: epochs", epoch, epochs))
    training = fit(
        network,
        train_data,
        val_data,
        epochs=epochs,
        seed=seed,
        meter=meter,
        learning_rate=learning_rate,
        optimizer=optimizer,
        callbacks=[told, *callbacks],
    )
    with staged_folder(folder, TRAINING_RECORD) as staging:
        # without its optimizer, whose learning rate has come to an end
        copy_of(network).save(staging / "model.keras")
        settings = {
            "model": os.fspath(model),
            "cache": os.fspath(cache),
            "batch_size": batch_size,
            "seed": seed,
            "learning_rate": learning_rate if optimizer is None else None,
            "optimizer": None if optimizer is None else keras.optimizers.serialize(optimizer),
        }
        write_record(staging / TRAINING_RECORD, {**settings, **training.to_json()})
    # what an earlier run here compressed was another model
    discard_folder(folder / "compressed", COMPRESSION_RECORD)
    compression = None
    if recipe is not None and test_split is not None:
        compression = compress_on(
            network,
            train_data,
            load(cache, test_split, batch_size, shuffle=False, ops=ops),
            recipe,
            out=folder / "compressed",
            seed=seed,
            meter=meter,
            progress=tell,
        )
    return TrainedModel(folder=folder, path=folder / "model.keras", training=training, compression=compression)
