"""Train a model, measure its energy, and optionally compress it."""

from __future__ import annotations

import difflib
import logging
import operator
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

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
from joulecache.pipelines.core.user_code import describe_failure, origin_of
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.loading.loader import load
from joulecache.pipelines.loading.targets import Selection, select
from joulecache.pipelines.models.classifiers import build_model, check_model, feature_to_classify, is_model_file
from joulecache.pipelines.models.fitting import MAX_SEED, check_batches, compile_model, has_soft_labels, run_epochs
from joulecache.pipelines.models.heads import check_head, log_objective
from joulecache.pipelines.models.metrics import Metric
from joulecache.pipelines.models.user_models import MakeModel, TrainingData, make_user_model
from joulecache.pipelines.source.features import ClassLabel, Features, MultiLabel, describe_features
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
    multi_label: bool = False,
    class_weight: Mapping[int, float] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> TrainingRun:
    """Train a classifier in place, and measure its energy.

    The model is compiled (`compile_model`) and Keras' global seed is set first: the same seed, data and initial weights
    give the same model on the same machine.

    Args:
        model: The classifier.
        train_data: Batches of (uint8 images `[B, H, W, C]`, integer labels `[B]` or float labels `[B, K]`), with or without weights
            `[B]` of the images.
        validation_data: Batches to validate on after each epoch.
        epochs: Epochs, at least 1.
        seed: Random seed.
        meter: Measures training and validation.
        learning_rate: Adam's initial learning rate. It decays to 0 along a cosine if the number of batches is known, else
            it is constant.
        optimizer: Replaces Adam and its schedule.
        multi_label: Labels `[B, K]` are 0 or 1 for each class, not shares of one class.
        class_weight: Weight in the loss of each class, by its number.
        callbacks: Further callbacks. Their logs include joules and waits for input (`EnergyCallback`).

    Raises:
        ValueError: An argument is out of range, or the data has the wrong structure or shape, or never ends.
    """
    epochs, seed = check_integer("epochs", epochs), check_integer("seed", seed, 0, MAX_SEED)
    learning_rate = check_number("learning_rate", learning_rate, above=0)
    check_batches(train_data, "training data", model)
    if validation_data is not None:
        check_batches(validation_data, "validation data", model)
    keras.utils.set_random_seed(seed)
    batches = int(train_data.cardinality())
    chosen = compile_model(
        model,
        learning_rate,
        steps=batches * epochs if batches > 0 else None,
        optimizer=optimizer,
        soft_labels=has_soft_labels(train_data),
        multi_label=multi_label,
    )
    run = _fit_compiled(
        model, chosen.metric, train_data, validation_data, epochs, meter or Meter(), callbacks, class_weight
    )
    return replace(run, objective=chosen.description)


def _fit_compiled(
    model: keras.Model,
    metric: Metric,
    train_data: tf.data.Dataset,
    validation_data: tf.data.Dataset | None,
    epochs: int,
    meter: Meter,
    callbacks: Sequence[keras.callbacks.Callback],
    class_weight: Mapping[int, float] | None,
) -> TrainingRun:
    """Train a compiled model in place, and measure its energy."""
    energy = EnergyCallback(meter)
    try:
        history = run_epochs(
            model,
            energy.timed(train_data),
            epochs=epochs,
            validation_data=validation_data,
            callbacks=[energy, *callbacks],
            class_weight=class_weight,
        )
    finally:
        energy.close()
    return _training_run(history, metric, energy)


def train(
    cache: CacheLike,
    *,
    out: str | os.PathLike[str],
    epochs: int,
    model: str | os.PathLike[str] | MakeModel = "cnn",
    batch_size: int = 64,
    seed: int = 0,
    learning_rate: float | None = None,
    optimizer: keras.optimizers.Optimizer | None = None,
    targets: str | Sequence[str] | None = None,
    sample_weight: str | None = None,
    class_weight: Mapping[str, float] | None = None,
    recipe: Recipe | None = None,
    meter: Meter | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    progress: Progress | None = None,
    ops: Mapping[str, type[Op]] | None = None,
) -> TrainedModel:
    """Train a model on a cache, and compress it if there is a recipe.

    The run folder gets `model.keras` and `history.json` (loss, metrics, joules and seconds of each epoch) when training
    is done; then `compressed/`, as `compress` writes it. The `val` split validates, if it has records; compressed models
    are measured on the `test` split, or on `val` if there is no `test`.

    Args:
        cache: A cache with images of one size: a folder, a URL, or an opened `Cache`.
        out: The run folder: new, empty, or of an earlier run.
        epochs: Epochs, at least 1.
        model: The name of a classifier (see `build_model`) or a `.keras` or `.h5` file, for one class or multi-label of each image;
            or a function that receives `TrainingData` and returns a compiled model, for any targets.
        batch_size: Images per batch.
        seed: Random seed.
        learning_rate: Adam's initial learning rate (see `fit`). Default: 0.001. A function's model has its own.
        optimizer: Replaces Adam. A function's model has its own.
        targets: Names of the targets to train on. Default: all of the cache, but for `sample_weight`.
        sample_weight: Name of a `Value` that weights each image.
        class_weight: Weight in the loss of images of a class, by its name; 1 for others. Not with `sample_weight`.
        recipe: How to compress the trained classifier; None: do not.
        meter: Measures all of it.
        callbacks: Further Keras callbacks.
        progress: Called with a description, the epochs done and their total.
        ops: Custom ops in the cache's chain, by name.

    Returns:
        The run folder and its contents.

    Raises:
        CacheError: The cache cannot be read.
        ValueError: Before training, if an argument is wrong, images vary in size, the model does not fit the targets, the recipe
            cannot be applied, or the folder holds other files, cannot be written to, or overlaps the cache.
        RuntimeError: The trained model cannot be compressed, since its training diverged. It is kept.
    """
    folder, meter, report = Path(out), meter or Meter(), progress or silent
    epochs, seed = check_integer("epochs", epochs), check_integer("seed", seed, 0, MAX_SEED)
    batch_size = check_integer("batch_size", batch_size)
    check_output_folder(folder, TRAINING_RECORD)
    if callable(model):
        _check_own_compilation(learning_rate, optimizer, recipe)
    else:
        check_model(model)
    rate = check_number("learning_rate", 1e-3 if learning_rate is None else learning_rate, above=0)
    opened = open_cache(cache)
    refuse_inside(opened, folder)
    selection = select(opened.manifest.features, (targets,) if isinstance(targets, str) else targets, sample_weight)
    data = _load_splits(opened, batch_size, seed, ops, selection, with_test=recipe is not None)
    keras.utils.set_random_seed(seed)
    features = {name: opened.manifest.features[name] for name in selection.targets}
    weights = _class_weights(class_weight, features, selection.sample_weight)
    callbacks = [_reporting(report, epochs), *callbacks]
    job = _Job(data, features, opened.location, folder, epochs, seed, meter, report, callbacks, weights)
    network, training, prepared = (
        _train_user_model(model, job) if callable(model) else _train_classifier(model, rate, optimizer, recipe, job)
    )
    if training.metric.is_accuracy and [type(feature) for feature in features.values()] == [ClassLabel]:
        training = _with_chance(training, opened.manifest.splits["val"].class_counts)
    used = network.optimizer if callable(model) else optimizer
    settings = {
        "model": origin_of(model).function if callable(model) else os.fspath(model),
        "cache": opened.location,
        "batch_size": batch_size,
        "seed": seed,
        "learning_rate": rate if used is None else None,
        "optimizer": None if used is None else keras.optimizers.serialize(used),
    }
    _write_run(folder, network, {**settings, **training.to_json()}, whole=callable(model))
    path = folder / "model.keras"
    compression = None if prepared is None else _compress(prepared, path)
    return TrainedModel(folder=folder, path=path, training=training, compression=compression)


@dataclass(frozen=True)
class _Job:
    """What a model of either kind is trained with; `where` is the cache."""

    data: _Splits
    features: Features
    where: str
    folder: Path
    epochs: int
    seed: int
    meter: Meter
    report: Progress
    callbacks: Sequence[keras.callbacks.Callback]
    class_weight: Mapping[int, float] | None


class _Trained(NamedTuple):
    network: keras.Model
    training: TrainingRun
    prepared: PreparedCompression | None = None


def _train_user_model(function: MakeModel, job: _Job) -> _Trained:
    """Train the compiled model that a function makes."""
    made = make_user_model(function, TrainingData(job.data.train.element_spec, job.features))
    _check_saving(made.network)
    data = job.data
    run = _fit_compiled(
        made.network, made.metric, data.train, data.val, job.epochs, job.meter, job.callbacks, job.class_weight
    )
    return _Trained(made.network, run)


def _train_classifier(
    model: str | os.PathLike[str],
    learning_rate: float,
    optimizer: keras.optimizers.Optimizer | None,
    recipe: Recipe | None,
    job: _Job,
) -> _Trained:
    """Train a classifier by name or from a file, and check that it can be compressed."""
    data, feature = job.data, feature_to_classify(job.features, model, job.where)
    network = build_model(model, _image_shape(data.train, job.where), len(feature.names))
    check_head(network, feature, job.where)
    multi_label = isinstance(feature, MultiLabel)
    prepared: PreparedCompression | None = None
    if recipe is not None:
        prepared = prepare_compression(
            network,
            data.finetune,
            data.test,
            recipe,
            out=job.folder / "compressed",
            seed=job.seed,
            meter=job.meter,
            progress=job.report,
            multi_label=multi_label,
            class_weight=job.class_weight,
        )
        if is_model_file(model):  # the named ones can be converted
            check_conversion(recipe, network)
    if is_model_file(model):
        log_objective(network, feature)
    run = fit(
        network,
        data.train,
        data.val,
        epochs=job.epochs,
        seed=job.seed,
        meter=job.meter,
        learning_rate=learning_rate,
        optimizer=optimizer,
        multi_label=multi_label,
        class_weight=job.class_weight,
        callbacks=job.callbacks,
    )
    return _Trained(network, run, prepared)


def _class_weights(
    given: Mapping[str, float] | None, features: Features, sample_weight: str | None
) -> Mapping[int, float] | None:
    """Return the weights of all classes by number; raise ValueError for unknown classes, or without one class for each image."""
    if given is None:
        return None
    found = [*features.values()]
    if len(found) != 1 or not isinstance(found[0], ClassLabel):
        raise ValueError(
            f"class_weight needs one class for each image, got {describe_features(features)}: leave it out"
        )
    if sample_weight is not None:
        raise ValueError("class_weight and sample_weight exclude each other: multiply the weights into sample_weight")
    names = found[0].names
    for name, weight in given.items():
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
            raise ValueError(f"class_weight has no class {name!r}: did you mean {' or '.join(map(repr, close))}?")
        check_number(f"class_weight of {name!r}", weight, low=0)
    return {number: float(given.get(name, 1.0)) for number, name in enumerate(names)}


def _check_own_compilation(
    learning_rate: float | None, optimizer: keras.optimizers.Optimizer | None, recipe: Recipe | None
) -> None:
    """Raise ValueError for arguments that a function's model decides, or that need a classifier."""
    if learning_rate is not None or optimizer is not None:
        raise ValueError("a function compiles its model: set the learning rate and the optimizer there")
    if recipe is not None:
        raise ValueError("a recipe compresses a classifier: train one by name or from a file, or leave the recipe out")


def _check_saving(network: keras.Model) -> None:
    """Raise ValueError if a model cannot be saved, which would lose it after training."""
    with tempfile.TemporaryDirectory(prefix="joulecache-") as folder:
        try:
            network.save(Path(folder) / "model.keras")
        except Exception as error:  # layers raise anything
            raise ValueError(f"the model cannot be saved: {describe_failure(error)}") from error


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
    cache: Cache,
    batch_size: int,
    seed: int,
    ops: Mapping[str, type[Op]] | None,
    selection: Selection,
    *,
    with_test: bool,
) -> _Splits:
    """Load the splits to train and to validate on, and those to fine-tune and to measure compressed models on."""
    loaded: dict[str, Any] = {"ops": ops, "targets": selection.targets, "sample_weight": selection.sample_weight}

    def training() -> tf.data.Dataset:
        return load(cache, "train", batch_size, seed=seed, **loaded)

    def held_out(split: str) -> tf.data.Dataset:
        return load(cache, split, batch_size, shuffle=False, **loaded)

    return _Splits(
        train=training(),
        val=held_out("val") if cache.manifest.splits["val"].records else None,
        finetune=training() if with_test else None,  # each dataset counts its own epochs
        test=held_out(held_out_split(cache)) if with_test else None,
    )


def _training_run(history: Mapping[str, Sequence[float]], metric: Metric, metered: EnergyCallback) -> TrainingRun:
    def last(name: str) -> float | None:
        return history[name][-1] if name in history else None

    return TrainingRun(
        history=history,
        energy=reduce(operator.add, metered.energies),
        val_energy=reduce(operator.add, metered.val_energies) if metered.val_energies else None,
        loss=last("loss"),
        val_loss=last("val_loss"),
        score=last(metric.name),
        val_score=last(f"val_{metric.name}"),
        images=None if None in metered.images else sum(images or 0 for images in metered.images),
        metric=metric,
    )


def _with_chance(run: TrainingRun, class_counts: Sequence[int]) -> TrainingRun:
    """Add the number of validation images and their share in the largest class, from the number of images per class."""
    images = sum(class_counts)
    return replace(run, val_images=images, chance=max(class_counts) / images) if images else run


def _reporting(report: Progress, epochs: int) -> keras.callbacks.Callback:
    return keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: report("training: epochs", epoch, epochs))


def _image_shape(data: tf.data.Dataset, where: str) -> tuple[int, int, int]:
    height, width, channels = check_batches(data, "training data")
    if height is None or width is None or channels is None:
        raise ValueError(f"the images of cache {where!r} vary in size: end its chain in resize or a crop")
    return height, width, channels


def _write_run(folder: Path, model: keras.Model, record: Mapping[str, object], *, whole: bool) -> None:
    """Write a run folder, and delete the compressed models of an earlier run in it; `whole` keeps the optimizer."""
    with staged_output(folder, TRAINING_RECORD) as staging:
        (model if whole else copy_of(model)).save(staging / "model.keras")
        write_record(staging / TRAINING_RECORD, record)
    discard_output(folder / "compressed", COMPRESSION_RECORD)
