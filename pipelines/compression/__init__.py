"""Make a trained classifier smaller: prune channels, quantize, and measure what each step gains and costs."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal, get_args

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from joulecache.pipelines.compression.pruning import kept_channels, prune_channels
from joulecache.pipelines.compression.staging import staged_folder, write_record
from joulecache.pipelines.compression.tflite import (
    CALIBRATION_IMAGES,
    PREDICT_BATCH,
    TfliteKind,
    TfliteModel,
    to_tflite,
)
from joulecache.pipelines.loader import load
from joulecache.pipelines.meter import Energy, Meter
from joulecache.pipelines.models import (
    check_batches,
    compile_model,
    count_macs,
    has_soft_labels,
    load_model,
    run_epochs,
)
from joulecache.transforms.ops import Op

__all__ = [
    "COMPRESSION_RECORD",
    "Compression",
    "Quantization",
    "TfliteKind",
    "TfliteModel",
    "Variant",
    "check_compression",
    "compress",
    "compress_on",
    "kept_channels",
    "measure_variant",
    "prune_channels",
    "to_tflite",
    "wilson_interval",
]

Quantization = Literal["float16", "dynamic", "int8"]

COMPRESSION_RECORD = "compression.json"

_FINETUNE_LEARNING_RATE = 1e-3
_TIMED_IMAGES = 512


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One model file, measured on the held-out images.

    `accuracy` is over all `images`, `accuracy_low` and `accuracy_high` its 95% Wilson interval. `cpu_ms_per_image` is the
    fastest of `runs` runs, `cpu_ms_per_image_median` their median, on one thread in batches of `batch_size`. `macs` are
    multiply-accumulates per image. `energy_per_image` is that of the timed runs, divided.
    """

    name: str
    path: Path
    parameters: int
    macs: int
    file_bytes: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    images: int
    cpu_ms_per_image: float
    cpu_ms_per_image_median: float
    runs: int
    batch_size: int
    energy_per_image: Energy

    def to_json(self) -> dict[str, object]:
        """Return a dict of JSON values; the path is the file's name."""
        body = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**body, "path": self.path.name, "energy_per_image": self.energy_per_image.to_json()}


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95% score interval of a proportion (Wilson 1927); ValueError unless 0 <= successes <= trials, trials > 0."""
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"{successes} of {trials}: an interval needs at least one trial, and no more successes than trials"
        )
    z = 1.959963984540054  # the normal distribution's 97.5% point
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # at both ends the formula is exact but for rounding, which must not leave the share outside
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def measure_variant(
    name: str,
    path: str | os.PathLike[str],
    model: keras.Model,
    test_data: tf.data.Dataset,
    *,
    meter: Meter | None = None,
    runs: int = 5,
) -> Variant:
    """Measure a TensorFlow Lite file, made from `model`, on all of `test_data`: batches of (uint8 images, labels).

    Accuracy counts every image once. CPU time and energy are of `runs` passes over 512 of the images (repeated
    where there are fewer) that lie in memory: the model alone, without its input. Raises ValueError for test data without
    images or without end.
    """
    if runs < 1:
        raise ValueError(f"{runs} runs: time at least 1")
    check_batches(test_data, "test data")
    meter = meter or Meter()
    file = Path(path)
    runner = TfliteModel(file)
    correct = images = 0
    held: list[NDArray[np.uint8]] = []
    for batch, labels in test_data.as_numpy_iterator():
        classes = labels.argmax(axis=-1) if labels.ndim == 2 else labels
        correct += int((runner.predict(batch).argmax(axis=-1) == classes).sum())
        if images < _TIMED_IMAGES:
            held.append(batch)
        images += len(batch)
    if not images:
        raise ValueError("test data has no images: accuracy needs held-out images")
    timed = np.concatenate(held)
    timed = timed[np.arange(_TIMED_IMAGES) % len(timed)]
    runner.predict(timed)
    cpu_s = []
    with meter.window(f"inference of {name}") as window:
        for _ in range(runs):
            # the interpreter's one thread is this one; the clock of the process would add whatever else runs in it
            start_s = time.thread_time()
            runner.predict(timed)
            cpu_s.append(time.thread_time() - start_s)
    low, high = wilson_interval(correct, images)
    return Variant(
        name=name,
        path=file,
        parameters=model.count_params(),
        macs=count_macs(model),
        file_bytes=file.stat().st_size,
        accuracy=correct / images,
        accuracy_low=low,
        accuracy_high=high,
        images=images,
        cpu_ms_per_image=min(cpu_s) / _TIMED_IMAGES * 1e3,
        cpu_ms_per_image_median=median(cpu_s) / _TIMED_IMAGES * 1e3,
        runs=runs,
        batch_size=PREDICT_BATCH,
        energy_per_image=window.energy / (runs * _TIMED_IMAGES),
    )


@dataclass(frozen=True, kw_only=True)
class Compression:
    """What compressing one model gave.

    `variants` are the measured files in `folder`, the given model first. `widths` is (before, after) by pruned layer, empty where
    nothing was pruned. `finetune_energy` and `control_energy` are those of fine-tuning the pruned model and the control;
    None where there was none. `calibration_images` is 0 where nothing needed them.
    """

    folder: Path
    variants: tuple[Variant, ...]
    prune: float
    quantize: Quantization | None
    finetune_epochs: int
    seed: int
    widths: Mapping[str, tuple[int, int]]
    finetune_energy: Energy | None
    control_energy: Energy | None
    calibration_images: int

    def variant(self, name: str) -> Variant:
        """Return the variant of a name; ValueError, listing those there are."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise ValueError(f"no variant {name!r}: there are {', '.join(variant.name for variant in self.variants)}")

    def to_json(self) -> dict[str, object]:
        """Return a dict of JSON values, without the folder."""
        body = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "folder"}
        return {
            **body,
            "variants": [variant.to_json() for variant in self.variants],
            "widths": {name: list(widths) for name, widths in self.widths.items()},
            "finetune_energy": self.finetune_energy and self.finetune_energy.to_json(),
            "control_energy": self.control_energy and self.control_energy.to_json(),
        }


def compress(
    model: keras.Model | str | os.PathLike[str],
    cache: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    prune: float | None = 0.5,
    quantize: Quantization | None = "int8",
    finetune_epochs: int = 2,
    batch_size: int = 64,
    seed: int = 0,
    meter: Meter | None = None,
    control: bool = True,
    ops: Mapping[str, type[Op]] | None = None,
) -> Compression:
    """Compress a Keras classifier, or its file, with the images of a cache: `train` to tune and calibrate, `val` to measure.

    `ops` are the ops of your own that the cache's chain names. See `compress_on` for what is done, written and raised.
    """
    if not isinstance(model, keras.Model):
        model = load_model(model)
    train_data = load(cache, "train", batch_size, seed=seed, ops=ops)
    if train_data.num_classes != model.outputs[0].shape[-1]:
        raise ValueError(
            f"the model tells {model.outputs[0].shape[-1]} classes apart, but cache {os.fspath(cache)!r} has "
            f"{train_data.num_classes}: give a model trained on these classes"
        )
    return compress_on(
        model,
        train_data,
        load(cache, "val", batch_size, shuffle=False, ops=ops),
        out=out,
        prune=prune,
        quantize=quantize,
        finetune_epochs=finetune_epochs,
        seed=seed,
        meter=meter,
        control=control,
    )


def check_compression(model: keras.Model, prune: float | None, quantize: Quantization | None) -> None:
    """Raise what `compress_on` would for a model that it cannot prune or count, and for what it should do to it."""
    if not prune and quantize is None:
        raise ValueError("nothing to do: give a prune ratio above 0, a quantization, or both")
    if quantize is not None and quantize not in get_args(Quantization):
        raise ValueError(f"unknown quantization {quantize!r}: allowed are {', '.join(get_args(Quantization))}, or None")
    if prune:
        kept_channels(model, prune)
    count_macs(model)


def compress_on(
    model: keras.Model,
    train_data: tf.data.Dataset,
    test_data: tf.data.Dataset,
    *,
    out: str | os.PathLike[str],
    prune: float | None = 0.5,
    quantize: Quantization | None = "int8",
    finetune_epochs: int = 2,
    seed: int = 0,
    meter: Meter | None = None,
    control: bool = True,
) -> Compression:
    """Prune, fine-tune, quantize and measure a classifier on batches of (uint8 images [B, H, W, C], integer labels [B]).

    Into the folder `out` go `baseline.tflite` (the given model), `pruned.keras` and `pruned-float32.tflite` (pruned by `prune`, then
    fine-tuned), `pruned-int8.tflite` (after `quantize`), `control.tflite` (not pruned, the same fine-tuning), and
    `compression.json`. Without pruning (None or 0) there is no fine-tuning and no control, and the quantized file is
    `baseline-int8.tflite`. All appear together at the end, or nothing does. int8 is calibrated on the first 200 images
    of `train_data`, or on all of a smaller set.

    The given model is untouched; Keras' global seed is set. Raises ValueError for nothing to do, bad arguments,
    data of another shape, training data for test data, a model that cannot be pruned or converted, and a folder `out` that
    holds other files.
    """
    check_compression(model, prune, quantize)
    ratio = prune or 0.0
    if finetune_epochs < 0:
        raise ValueError(f"{finetune_epochs} epochs of fine-tuning: give 0 or more")
    if train_data is test_data:
        raise ValueError("training and test data are the same: test on images that were held out")
    check_batches(train_data, "training data", model)
    check_batches(test_data, "test data", model)
    meter = meter or Meter()
    variants: list[Variant] = []
    widths: dict[str, tuple[int, int]] = {}
    finetune_energy = control_energy = None
    calibration = None
    with staged_folder(Path(out), COMPRESSION_RECORD) as folder:

        def add(name: str, variant: keras.Model, kind: TfliteKind) -> None:
            file = folder / f"{name}.tflite"
            # a set smaller than CALIBRATION_IMAGES was taken whole
            file.write_bytes(to_tflite(variant, kind, calibration, minimum_calibration=1))
            measured = measure_variant(name, file, variant, test_data, meter=meter)
            variants.append(dataclasses.replace(measured, path=Path(out) / file.name))

        smallest = model
        add("baseline", model, "float32")
        if ratio:
            kept = kept_channels(model, ratio)
            widths = {name: (model.get_layer(name).kernel.shape[-1], len(kept[name])) for name in kept}
            smallest = prune_channels(model, ratio)
            if finetune_epochs:
                finetune_energy = _finetune(smallest, train_data, finetune_epochs, seed, meter)
            # Keras cannot leave the optimizer, twice the size of the weights, out of a .keras file; a copy (ratio 0) has none
            prune_channels(smallest, 0).save(folder / "pruned.keras")
            add("pruned-float32", smallest, "float32")
            if control and finetune_epochs:
                unpruned = prune_channels(model, 0)
                control_energy = _finetune(unpruned, train_data, finetune_epochs, seed, meter)
                add("control", unpruned, "float32")
        if quantize is not None:
            if quantize == "int8":
                calibration = _first_images(train_data, CALIBRATION_IMAGES)
            add(f"{'pruned' if ratio else 'baseline'}-{quantize}", smallest, quantize)
        compression = Compression(
            folder=Path(out),
            variants=tuple(variants),
            prune=ratio,
            quantize=quantize,
            finetune_epochs=finetune_epochs if ratio else 0,
            seed=seed,
            widths=widths,
            finetune_energy=finetune_energy,
            control_energy=control_energy,
            calibration_images=0 if calibration is None else len(calibration),
        )
        write_record(folder / COMPRESSION_RECORD, compression.to_json())
    return compression


def _finetune(model: keras.Model, data: tf.data.Dataset, epochs: int, seed: int, meter: Meter) -> Energy:
    keras.utils.set_random_seed(seed)
    compile_model(model, _FINETUNE_LEARNING_RATE, soft_labels=has_soft_labels(data))
    with meter.window("fine-tuning") as window:
        run_epochs(model, data, epochs=epochs)
    return window.energy


def _first_images(data: tf.data.Dataset, count: int) -> NDArray[np.uint8]:
    return np.stack([image for image, _ in data.unbatch().take(count).as_numpy_iterator()])
