"""Make a trained classifier smaller: prune channels and weights, share weights, quantize; measure what each gains and costs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.compressing.model_files import Form, measure_files
from joulecache.pipelines.compressing.output import check_output_folder, staged_folder, write_record
from joulecache.pipelines.compressing.pruning import kept_channels
from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.compressing.results import COMPRESSION_RECORD, Compression, ModelFile
from joulecache.pipelines.compressing.sparsity import copy_of
from joulecache.pipelines.compressing.steps import AWARE, Budget, Tell, check_recipe, count_batches, make_forms
from joulecache.pipelines.compressing.tflite import CALIBRATION_IMAGES
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.loading.loader import load
from joulecache.pipelines.models import check_batches, load_model
from joulecache.transforms.ops import Op

_MOST_SHARED = 0.05  # of the calibration images with the test images: pictures do occur twice


def held_out_split(cache: str | os.PathLike[str]) -> str:
    """Return the split of a cache that models are measured on: `test` where it has records, else `val`; else ValueError."""
    splits = open_manifest(cache).splits
    for name in ("test", "val"):
        if name in splits and splits[name].records:
            return name
    raise ValueError(
        f"cache {os.fspath(cache)!r} has no test and no val records to measure compressed models on: build it with "
        "--val-fraction 0.1"
    )


def compress(
    model: keras.Model | str | os.PathLike[str],
    cache: str | os.PathLike[str],
    recipe: Recipe,
    *,
    out: str | os.PathLike[str],
    batch_size: int = 64,
    seed: int = 0,
    seeds: int = 1,
    meter: Meter | None = None,
    control: bool = True,
    progress: Tell | None = None,
    ops: Mapping[str, type[Op]] | None = None,
) -> Compression:
    """Compress a Keras classifier, or its file, with the images of a cache: `train` to tune and calibrate, held-out ones to measure.

    Those are its `test` split, or `val` where it has none. `ops` are the ops of your own that the cache's chain names. See
    `compress_on` for what is done, written and raised.
    """
    if not isinstance(model, keras.Model):
        model = load_model(model)
    check_recipe(recipe, model)
    test_split = held_out_split(cache)
    train_data = load(cache, "train", batch_size, seed=seed, ops=ops)
    if train_data.num_classes != model.outputs[0].shape[-1]:
        raise ValueError(
            f"the model tells {model.outputs[0].shape[-1]} classes apart, but cache {os.fspath(cache)!r} has "
            f"{train_data.num_classes}: give a model trained on these classes"
        )
    return compress_on(
        model,
        train_data,
        load(cache, test_split, batch_size, shuffle=False, ops=ops),
        recipe,
        out=out,
        seed=seed,
        seeds=seeds,
        meter=meter,
        control=control,
        progress=progress,
    )


def compress_on(
    model: keras.Model,
    train_data: tf.data.Dataset,
    test_data: tf.data.Dataset,
    recipe: Recipe,
    *,
    out: str | os.PathLike[str],
    seed: int = 0,
    seeds: int = 1,
    meter: Meter | None = None,
    control: bool = True,
    progress: Tell | None = None,
) -> Compression:
    """Do a recipe to a classifier and measure it, on batches of (uint8 images [B, H, W, C], integer labels [B]).

    Into the folder `out` go a TensorFlow Lite file for each form (see `make_forms` for their names): the given model, the
    control, what each stage gave, and the quantized ones; the last stage as a Keras file too, and `compression.json`. All
    appear together at the end, or nothing does. int8 is calibrated on the first 200 images of `train_data` that are not in
    `test_data`, or on all of a smaller set. With `seeds` above 1 all is done again for each further seed, for its accuracy.
    `progress` hears what is fine-tuned, the epochs done and all of them.

    The given model is untouched; Keras' global seed is set. Raises ValueError, before any work, for data of another shape,
    training data for test data, a calibration set that overlaps the test set, a model that the recipe cannot be done to,
    and a folder `out` that holds other files; later for a model that cannot be converted.
    """
    check_recipe(recipe, model)
    if seeds < 1:
        raise ValueError(f"{seeds} seeds: give at least 1")
    check_output_folder(Path(out), COMPRESSION_RECORD)
    if train_data is test_data:
        raise ValueError("training and test data are the same: test on images that were held out")
    check_batches(train_data, "training data", model)
    check_batches(test_data, "test data", model)
    calibration = _calibration(train_data, test_data) if recipe.quantize == "int8" else None
    meter = meter or Meter()
    batches = count_batches(train_data)
    with staged_folder(Path(out), COMPRESSION_RECORD) as folder:
        forms: tuple[Form, ...] = ()
        accuracies: dict[str, tuple[float, ...]] = {}
        model_files: tuple[ModelFile, ...] = ()
        for each in range(seed, seed + seeds):
            budget = Budget(data=train_data, batches=batches, seed=each, meter=meter, tell=progress or _silent)
            made, scores = make_forms(
                model,
                recipe,
                budget,
                test_data,
                control=control,
                calibration=calibration,
                # all seeds are compared form by form
                aware=any(form.name.endswith(AWARE) for form in forms) if forms else None,
            )
            for form, scored in zip(made, scores, strict=True):
                accuracies[form.name] = (*accuracies.get(form.name, ()), scored.accuracy)
            if not forms:
                forms = made
                model_files = measure_files(forms, scores, test_data, folder=Path(out), meter=meter)
        for form in forms:
            (folder / f"{form.name}.tflite").write_bytes(form.content)
        smallest = forms[-1]
        if smallest.model is not model:
            # Keras cannot leave the optimizer, twice the size of the weights, out of a .keras file; a copy has none
            copy_of(smallest.model).save(folder / f"{smallest.name}.keras")
        compression = Compression(
            folder=Path(out),
            model_files=model_files,
            recipe=recipe,
            seed=seed,
            widths=_widths(model, smallest.model, recipe) if recipe.prunes_channels else {},
            calibration_images=0 if calibration is None else len(calibration),
            accuracies=accuracies,
        )
        write_record(folder / COMPRESSION_RECORD, compression.to_json())
    return compression


def _silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


def _widths(before: keras.Model, after: keras.Model, recipe: Recipe) -> dict[str, tuple[int, int]]:
    """Return the output channels of each layer that may lose some, before and after."""
    return {
        name: (len(kept), after.get_layer(name).kernel.shape[-1])
        for name, kept in kept_channels(before, 0, protected=recipe.protected).items()
    }


def _calibration(train_data: tf.data.Dataset, test_data: tf.data.Dataset) -> NDArray[np.uint8]:
    """Return the first training images that are no test images; ValueError where too many are, or nothing is left."""
    tested = {_digest(image) for images, _ in test_data.as_numpy_iterator() for image in images}
    kept: list[NDArray[np.uint8]] = []
    shared = 0
    for image, _ in train_data.unbatch().as_numpy_iterator():
        if _digest(image) in tested:
            shared += 1
        else:
            kept.append(image)
        if len(kept) == CALIBRATION_IMAGES or shared > _MOST_SHARED * CALIBRATION_IMAGES:
            break
    if shared > _MOST_SHARED * (shared + len(kept)):
        raise ValueError(
            f"the calibration set overlaps the test set: {shared} of the first {shared + len(kept)} training images are "
            "test images, pixel by pixel; test on images that were held out"
        )
    if not kept:
        raise ValueError("training data is empty: give at least one batch")
    return np.stack(kept)


def _digest(image: NDArray[np.uint8]) -> bytes:
    return blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
