"""Compress a trained classifier and measure the result."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from joulecache.pipelines.cache.cache import Cache, CacheLike, open_cache
from joulecache.pipelines.compressing.feasibility import check_conversion, check_recipe
from joulecache.pipelines.compressing.kernels import copy_of
from joulecache.pipelines.compressing.measuring import ConvertedModel, Score, measure_files
from joulecache.pipelines.compressing.output import check_output_folder, staged_output, write_record
from joulecache.pipelines.compressing.pruning import kept_channels
from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.compressing.results import COMPRESSION_RECORD, Compression
from joulecache.pipelines.compressing.steps import AWARE, Job, StepRunner, count_batches
from joulecache.pipelines.compressing.tflite import CALIBRATION_IMAGES
from joulecache.pipelines.core.checks import check_integer
from joulecache.pipelines.core.files import overlap
from joulecache.pipelines.core.object_store import is_remote
from joulecache.pipelines.core.progress import Progress, silent
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.loading.loader import load
from joulecache.pipelines.models.classifiers import feature_to_classify, load_model
from joulecache.pipelines.models.fitting import MAX_SEED, check_batches
from joulecache.pipelines.models.flattening import plain_copy
from joulecache.pipelines.models.heads import check_head, log_objective
from joulecache.pipelines.source.features import MultiLabel
from joulecache.transforms.ops import Op

_MAX_SHARED = 0.05  # share of the calibration images that may also be test images: datasets do contain duplicates


def compress(
    model: keras.Model | str | os.PathLike[str],
    cache: CacheLike,
    recipe: Recipe,
    *,
    out: str | os.PathLike[str],
    batch_size: int = 64,
    seed: int = 0,
    seeds: int = 1,
    meter: Meter | None = None,
    control: bool = True,
    progress: Progress | None = None,
    ops: Mapping[str, type[Op]] | None = None,
) -> Compression:
    """Compress a Keras classifier with the images of a cache.

    The `train` split fine-tunes and calibrates; the `test` split, or `val` if there is no `test`, measures.

    Args:
        model: A functional or sequential classifier, which stays untouched, or its `.keras` or `.h5` file.
        cache: A cache with images of the model's input shape and its classes: a folder, a URL, or an opened `Cache`.
        recipe: The steps.
        out: The output folder (see `compress_on`).
        batch_size: Images per batch.
        seed: Random seed.
        seeds: Number of seeds (see `compress_on`).
        meter: Measures fine-tuning and inference.
        control: Also fine-tune the uncompressed model for as long, as a control.
        progress: Called with a description, the epochs done and their total.
        ops: Custom ops in the cache's chain, by name.

    Returns:
        The model files and their measurements.

    Raises:
        CacheError: The cache cannot be read.
        ValueError: As `compress_on`; or the cache has other classes or no held-out images, or contains `out`.
    """
    _check_arguments(seed, seeds, Path(out))
    if not isinstance(model, keras.Model):
        if not isinstance(model, str | os.PathLike):
            raise ValueError(f"model must be a Keras 3 model or the path of its file, got {type(model).__name__}")
        model = load_model(model)
    check_recipe(recipe, model)
    opened = open_cache(cache)
    feature = feature_to_classify(opened.manifest.features, model.name, opened.location)
    check_head(model, feature, opened.location)
    if recipe.finetune_epochs:
        log_objective(model, feature)
    refuse_inside(opened, Path(out))
    test_data = load(opened, held_out_split(opened), batch_size, shuffle=False, ops=ops)
    train_data = load(opened, "train", batch_size, seed=seed, ops=ops)
    return compress_on(
        model,
        train_data,
        test_data,
        recipe,
        out=out,
        seed=seed,
        seeds=seeds,
        meter=meter,
        control=control,
        progress=progress,
        multi_label=isinstance(feature, MultiLabel),
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
    progress: Progress | None = None,
    int8_tolerance: float = 0.005,
    multi_label: bool = False,
) -> Compression:
    """Compress a classifier with your own datasets; for the other arguments see `compress`.

    The folder `out` gets a TensorFlow Lite file for each model (see `StepRunner.run` for their names), the last one as a
    Keras file too, and `compression.json`: all of them at the end, or none. int8 is calibrated on the first 200 training
    images that are not test images, or on all if there are fewer. Sets Keras' global seed.

    Args:
        model: A functional or sequential classifier, which stays untouched.
        train_data: Batches of (uint8 images `[B, H, W, C]`, integer labels `[B]` or float labels `[B, K]`) to fine-tune
            on.
        test_data: Held-out batches to measure on.
        recipe: The steps.
        out: The output folder: new, empty, or of an earlier compression.
        seed: The first seed.
        seeds: Number of seeds. Files and figures are those of the first; further ones add accuracies.
        meter: As in `compress`.
        control: As in `compress`.
        progress: As in `compress`.
        int8_tolerance: Loss of accuracy by int8 above which the models are fine-tuned with its rounding.
        multi_label: Labels `[B, K]` are 0 or 1 for each class, not shares of one class.

    Raises:
        ValueError: Before any work, if the recipe cannot be applied to the model, the data has another shape or tests on
            training images, `out` holds other files or cannot be written to, or the model cannot be converted.
    """
    prepared = prepare_compression(
        model,
        train_data,
        test_data,
        recipe,
        out=out,
        seed=seed,
        seeds=seeds,
        meter=meter,
        control=control,
        progress=progress,
        int8_tolerance=int8_tolerance,
        multi_label=multi_label,
    )
    if recipe.changes_weights and recipe.finetune_epochs:  # else the models are converted at once
        check_conversion(recipe, model)
    return prepared.run()


@dataclass(frozen=True)
class PreparedCompression:
    """A compression whose arguments are checked. Its model may still be trained before it runs."""

    job: Job
    out: Path
    seeds: range

    def run(self) -> Compression:
        """Run the job for all seeds, and fill the output folder."""
        job = replace(self.job, model=plain_copy(self.job.model))
        model, recipe = job.model, job.recipe
        with staged_output(self.out, COMPRESSION_RECORD) as staging:
            scores = StepRunner(job, self.seeds[0]).run()
            models = list(scores)
            compression = Compression(
                model_files=measure_files(scores, job.test_data, meter=job.meter),
                recipe=recipe,
                seed=self.seeds[0],
                widths=_widths(model, models[-1].model, recipe) if recipe.prunes_channels else {},
                calibration_images=0 if job.calibration is None else len(job.calibration),
                accuracies=_accuracies(job, scores, self.seeds[1:]),
                chance=scores[models[0]].chance,
            )
            write_models(staging, models, model)
            write_record(staging / COMPRESSION_RECORD, compression.to_json())
        return compression


def prepare_compression(
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
    progress: Progress | None = None,
    int8_tolerance: float = 0.005,
    multi_label: bool = False,
    class_weight: Mapping[int, float] | None = None,
) -> PreparedCompression:
    """Check the arguments of `compress_on`, and read the images that calibrate int8; raises ValueError like it.

    `class_weight` weights each class in the loss of fine-tuning, by its number.
    """
    _check_arguments(seed, seeds, Path(out))
    check_recipe(recipe, model)
    if train_data is test_data:
        raise ValueError("training and test data are the same: test on held-out images")
    check_batches(train_data, "training data", model)
    check_batches(test_data, "test data", model)
    job = Job(
        model=model,
        recipe=recipe,
        train_data=train_data,
        batches=count_batches(train_data),
        test_data=test_data,
        calibration=calibration_images(train_data, test_data) if recipe.quantize == "int8" else None,
        control=control,
        meter=meter or Meter(),
        progress=progress or silent,
        int8_tolerance=int8_tolerance,
        multi_label=multi_label,
        class_weight=class_weight,
    )
    return PreparedCompression(job, Path(out), range(seed, seed + seeds))


def _check_arguments(seed: int, seeds: int, out: Path) -> None:
    check_integer("seeds", seeds)
    check_integer("seed", seed, 0, MAX_SEED + 1 - seeds)
    check_output_folder(out, COMPRESSION_RECORD)


def refuse_inside(cache: Cache, out: Path) -> None:
    """Raise ValueError if an output folder is inside a local cache, or contains it."""
    if not is_remote(cache.location) and overlap(cache.folder, out):
        raise ValueError(f"out {str(out)!r} and cache {cache.location!r} overlap: choose a folder outside the cache")


def held_out_split(cache: Cache) -> str:
    """Return the split that measures compressed models: `test` if it has records, else `val`; ValueError if neither has."""
    splits = cache.manifest.splits
    for name in ("test", "val"):
        if name in splits and splits[name].records:
            return name
    raise ValueError(
        f"cache {cache.location!r} has no test or val records to measure compressed models on: build it with "
        "--val-fraction 0.1"
    )


def calibration_images(train_data: tf.data.Dataset, test_data: tf.data.Dataset) -> NDArray[np.uint8]:
    """Return the first training images, uint8 `[N, H, W, C]`; skip test images, but raise ValueError if there are many."""
    test_digests = {_digest(image) for images, *_ in test_data.as_numpy_iterator() for image in images}
    kept: list[NDArray[np.uint8]] = []
    shared = 0
    for image, *_ in train_data.unbatch().as_numpy_iterator():
        if _digest(image) in test_digests:
            shared += 1
        else:
            kept.append(image)
        if len(kept) == CALIBRATION_IMAGES or shared > _MAX_SHARED * CALIBRATION_IMAGES:
            break
    if shared > _MAX_SHARED * (shared + len(kept)):
        raise ValueError(
            f"the calibration set overlaps the test set: {shared} of the first {shared + len(kept)} training images equal "
            "test images: test on held-out images"
        )
    if not kept:
        raise ValueError("training data is empty: expected at least one batch")
    return np.stack(kept)


def write_models(folder: Path, models: Sequence[ConvertedModel], given: keras.Model) -> None:
    """Write the file of each model, and the last one as a Keras file too unless it is the given model."""
    for each in models:
        (folder / each.file_name).write_bytes(each.content)
    last = models[-1]
    if last.model is not given:
        # without the optimizer, which is twice the size of the weights
        copy_of(last.model).save(folder / f"{last.name}.keras")


def _accuracies(
    job: Job, first: Mapping[ConvertedModel, Score], further: Sequence[int]
) -> dict[str, tuple[float, ...]]:
    """Run the steps for further seeds; return the accuracies of all seeds, by model."""
    accuracies: dict[str, tuple[float, ...]] = {model.name: (scored.accuracy,) for model, scored in first.items()}
    # every seed makes the same set of models, however much accuracy int8 loses
    aware = any(model.name.endswith(AWARE) for model in first)
    for seed in further:
        for model, scored in StepRunner(job, seed).run(aware=aware).items():
            accuracies[model.name] += (scored.accuracy,)
    return accuracies


def _widths(before: keras.Model, after: keras.Model, recipe: Recipe) -> dict[str, tuple[int, int]]:
    """Return the output channels, before and after, of each layer that may lose some."""
    return {
        name: (len(kept), after.get_layer(name).weights[-1].shape[-1])
        for name, kept in kept_channels(before, 0, protected=recipe.protected).items()
    }


def _digest(image: NDArray[np.uint8]) -> bytes:
    return blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
