"""Train a classifier, measure its energy, and optionally compress it."""

from __future__ import annotations

import logging
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import keras
import tensorflow as tf

from joulecache.pipelines.cache.cache import Cache, CacheLike, open_cache
from joulecache.pipelines.compressing.compression import (
    PreparedCompression,
    held_out_split,
    prepare_compression,
    refuse_inside,
)
from joulecache.pipelines.compressing.feasibility import check_conversion
from joulecache.pipelines.compressing.kernels import copy_of
from joulecache.pipelines.compressing.output import check_output_folder, discard_output, staged_output, write_record
from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.compressing.results import COMPRESSION_RECORD, Compression
from joulecache.pipelines.core.checks import check_integer, check_number
from joulecache.pipelines.core.progress import Progress, silent
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.loading.loader import load
from joulecache.pipelines.models.classifiers import build_model, check_model, is_model_file
from joulecache.pipelines.models.fitting import MAX_SEED, check_batches, compile_model, has_soft_labels, run_epochs
from joulecache.pipelines.source.features import check_labelled
from joulecache.pipelines.training.callback import EnergyCallback
from joulecache.pipelines.training.results import TRAINING_RECORD, TrainedModel, TrainingRun
from joulecache.transforms.ops import Op

_NOTES = logging.getLogger("joulecache")


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
    """Train a classifier in place, and measure its energy.

    The model is compiled (`compile_model`) and Keras' global seed is set first: the same seed, data and initial weights
    give the same model on the same machine.

    Args:
        model: The classifier.
        train_data: Batches of (uint8 images `[B, H, W, C]`, integer labels `[B]` or float labels `[B, K]`).
        validation_data: Batches to validate on after each epoch.
        epochs: Epochs, at least 1.
        seed: Random seed.
        meter: Measures training and validation.
        learning_rate: Adam's initial learning rate. It decays to 0 along a cosine if the number of batches is known, else
            it is constant.
        optimizer: Replaces Adam and its schedule.
        callbacks: Further callbacks. Their logs include joules and waits for input (`EnergyCallback`).

    Raises:
        ValueError: An argument is out of range, or the data has the wrong structure or shape, or never ends.
    """
    epochs, seed, learning_rate = _checked(epochs, seed, learning_rate)
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
    energy = EnergyCallback(meter or Meter())
    try:
        history = run_epochs(
            model,
            energy.timed(train_data),
            epochs=epochs,
            validation_data=validation_data,
            callbacks=[energy, *callbacks],
        )
    finally:
        energy.close()
    return _training_run(history, energy)


def train(
    cache: CacheLike,
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
    progress: Progress | None = None,
    ops: Mapping[str, type[Op]] | None = None,
) -> TrainedModel:
    """Train a model on a cache, and compress it if there is a recipe.

    The run folder gets `model.keras` and `history.json` (loss, accuracy, joules and seconds of each epoch) when training
    is done; then `compressed/`, as `compress` writes it. The `val` split validates, if it has records; compressed models
    are measured on the `test` split, or on `val` if there is no `test`.

    Args:
        cache: A cache with images of one size: a folder, a URL, or an opened `Cache`.
        out: The run folder: new, empty, or of an earlier run.
        epochs: Epochs, at least 1.
        model: The name of a model (see `build_model`), or a `.keras` or `.h5` file.
        batch_size: Images per batch.
        seed: Random seed.
        learning_rate: Adam's initial learning rate (see `fit`).
        optimizer: Replaces Adam.
        recipe: How to compress the trained model; None: do not.
        meter: Measures all of it.
        callbacks: Further Keras callbacks.
        progress: Called with a description, the epochs done and their total.
        ops: Custom ops in the cache's chain, by name.

    Returns:
        The run folder and its contents.

    Raises:
        CacheError: The cache cannot be read.
        ValueError: Before training, if an argument is wrong, images vary in size, the recipe cannot be applied, or the
            folder holds other files, cannot be written to, or overlaps the cache.
        RuntimeError: The trained model cannot be compressed, since its training diverged. It is kept.
    """
    folder, meter, report = Path(out), meter or Meter(), progress or silent
    epochs, seed, learning_rate = _checked(epochs, seed, learning_rate)
    batch_size = check_integer("batch_size", batch_size)
    check_output_folder(folder, TRAINING_RECORD)
    check_model(model)
    opened = open_cache(cache)
    check_labelled(opened.manifest.features, "training", opened.location)
    refuse_inside(opened, folder)
    data = _load_splits(opened, batch_size, seed, ops, with_test=recipe is not None)
    keras.utils.set_random_seed(seed)
    network = build_model(model, _image_shape(data.train, opened), data.train.num_classes)
    prepared: PreparedCompression | None = None
    if recipe is not None:
        small = folder / "compressed"
        prepared = prepare_compression(
            network, data.finetune, data.test, recipe, out=small, seed=seed, meter=meter, progress=report
        )
        if is_model_file(model):  # the named ones can be converted
            check_conversion(recipe, network)
    trained = fit(
        network,
        data.train,
        data.val,
        epochs=epochs,
        seed=seed,
        meter=meter,
        learning_rate=learning_rate,
        optimizer=optimizer,
        callbacks=[_reporting(report, epochs), *callbacks],
    )
    training = _with_chance(trained, opened.manifest.splits["val"].class_counts)
    settings = {
        "model": os.fspath(model),
        "cache": opened.location,
        "batch_size": batch_size,
        "seed": seed,
        "learning_rate": learning_rate if optimizer is None else None,
        "optimizer": None if optimizer is None else keras.optimizers.serialize(optimizer),
    }
    _write_run(folder, network, {**settings, **training.to_json()})
    path = folder / "model.keras"
    compression = None if prepared is None else _compress(prepared, path)
    return TrainedModel(folder=folder, path=path, training=training, compression=compression)


def _checked(epochs: int, seed: int, learning_rate: float) -> tuple[int, int, float]:
    return (
        check_integer("epochs", epochs),
        check_integer("seed", seed, 0, MAX_SEED),
        check_number("learning_rate", learning_rate, above=0),
    )


def _compress(prepared: PreparedCompression, path: Path) -> Compression:
    """Compress the trained model; say where it is if that fails."""
    try:
        return prepared.run()
    except BaseException as error:
        _NOTES.warning(
            "the trained model is kept in %s: compress it with `joulecache compress` instead of training again", path
        )
        if isinstance(error, ValueError):  # no fault of the arguments, which were checked
            raise RuntimeError(f"the trained model cannot be compressed: {error}") from error
        raise


class _Splits(NamedTuple):
    train: tf.data.Dataset
    val: tf.data.Dataset | None
    finetune: tf.data.Dataset | None
    test: tf.data.Dataset | None


def _load_splits(
    cache: Cache, batch_size: int, seed: int, ops: Mapping[str, type[Op]] | None, *, with_test: bool
) -> _Splits:
    """Load the splits to train and to validate on, and those to fine-tune and to measure compressed models on."""

    def training() -> tf.data.Dataset:
        return load(cache, "train", batch_size, seed=seed, ops=ops)

    def held_out(split: str) -> tf.data.Dataset:
        return load(cache, split, batch_size, shuffle=False, ops=ops)

    return _Splits(
        train=training(),
        val=held_out("val") if cache.manifest.splits["val"].records else None,
        finetune=training() if with_test else None,  # each dataset counts its own epochs
        test=held_out(held_out_split(cache)) if with_test else None,
    )


def _training_run(history: Mapping[str, Sequence[float]], metered: EnergyCallback) -> TrainingRun:
    return TrainingRun(
        history=history,
        energy=reduce(operator.add, metered.energies),
        val_energy=reduce(operator.add, metered.val_energies) if metered.val_energies else None,
        loss=history["loss"][-1],
        val_loss=history["val_loss"][-1] if "val_loss" in history else None,
        accuracy=history["accuracy"][-1],
        val_accuracy=history["val_accuracy"][-1] if "val_accuracy" in history else None,
        images=None if None in metered.images else sum(images or 0 for images in metered.images),
    )


def _with_chance(run: TrainingRun, class_counts: Sequence[int]) -> TrainingRun:
    """Add the number of validation images and their share in the largest class, from the number of images per class."""
    images = sum(class_counts)
    return replace(run, val_images=images, chance=max(class_counts) / images) if images else run


def _reporting(report: Progress, epochs: int) -> keras.callbacks.Callback:
    return keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: report("training: epochs", epoch, epochs))


def _image_shape(data: tf.data.Dataset, cache: Cache) -> tuple[int, int, int]:
    height, width, channels = check_batches(data, "training data")
    if height is None or width is None or channels is None:
        raise ValueError(f"the images of cache {cache.location!r} vary in size: end its chain in resize or a crop")
    return height, width, channels


def _write_run(folder: Path, model: keras.Model, record: Mapping[str, object]) -> None:
    """Write a run folder, and delete the compressed models of an earlier run in it."""
    with staged_output(folder, TRAINING_RECORD) as staging:
        copy_of(model).save(staging / "model.keras")  # without its optimizer
        write_record(staging / TRAINING_RECORD, record)
    discard_output(folder / "compressed", COMPRESSION_RECORD)
