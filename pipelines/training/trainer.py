"""Train a classifier from a cache, metered, and compress it on request."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path

import keras
import tensorflow as tf

from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.compressing.compression import compress_on, held_out_split
from joulecache.pipelines.compressing.output import check_output_folder, discard_folder, staged_folder, write_record
from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.compressing.results import COMPRESSION_RECORD
from joulecache.pipelines.compressing.sparsity import copy_of
from joulecache.pipelines.compressing.steps import Tell, check_recipe
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.loading.loader import load
from joulecache.pipelines.models import build_model, check_batches, compile_model, has_soft_labels, run_epochs
from joulecache.pipelines.training.callback import EnergyCallback
from joulecache.pipelines.training.results import TrainedModel, TrainingRun
from joulecache.transforms.ops import Op

TRAINING_RECORD = "history.json"


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
        check_recipe(recipe, network)
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
