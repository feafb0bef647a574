#!/usr/bin/env python3
"""Train every named model for a few epochs on CIFAR-10, quantize it, and print its cost and accuracy as Markdown.

    scripts/bench_models.py CIFAR10 [--epochs 5]

CIFAR10 is a folder with train*.parquet and test*.parquet, in the layout `image: struct<bytes, path>, label`. Models of several
widths are trained at the narrowest. Takes about 20 minutes; nothing else should run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from environment import argument_parser, describe, enter
from tables import print_head, print_row

import joulecache as jc

CHAIN, BATCH_SIZE = "decode|resize(32)|pad(4) || random_crop(32)|flip_lr", 64


def main(cifar10: Path, folder: Path, epochs: int) -> None:
    """Print one row for each model."""
    from joulecache.pipelines.models.architectures import MODELS

    meter = jc.Meter()
    jc.precompute(f"{cifar10}/*.parquet", folder / "cache", CHAIN, val_fraction=0.0, meter=meter)
    print(
        f"{describe('tensorflow', 'keras', 'ai-edge-litert', meter=meter)}. {epochs} epochs, batches of {BATCH_SIZE}, seed 0; "
        "training: the last epoch, input included; inference: one thread, the model alone.\n"
    )
    print_head(
        *("model", "parameters", "MACs", "training, CPU ms a step", "active J per 1,000 images"),
        *("inference, CPU ms an image: float32", "int8", "active mJ an image: float32", "int8"),
        *("test accuracy (95%): float32", "int8"),
    )
    for name, architecture in MODELS.items():
        model = f"{name}:{architecture.widths[0]:g}" if architecture.widths else name
        print_row(model, *cells(model, folder / "cache", folder / name, epochs, meter))
    print_left_out(folder)


def cells(model: str, cache: Path, out: Path, epochs: int, meter: jc.Meter) -> Iterator[str]:
    """Train and quantize a model; yield its figures."""
    training = jc.train(cache, out=out, epochs=epochs, model=model, batch_size=BATCH_SIZE, meter=meter).training
    recipe = jc.Recipe(quantize="int8", finetune_epochs=0)
    files = jc.compress(out / "model.keras", cache, recipe, out=out / "small", meter=meter).model_files
    assert training.images is not None
    yield f"{files[0].parameters:,}"
    yield f"{files[0].macs:,}"
    yield f"{training.history['cpu_s'][-1] / (training.images / epochs / BATCH_SIZE) * 1e3:.3g}"
    yield f"{training.energy.active_j / training.images * 1e3:.3g}"
    yield from (f"{file.cpu_ms_per_image:.3g}" for file in files)
    yield from (f"{file.energy_per_image.active_j * 1e3:.3g}" for file in files)
    yield from (f"{file.accuracy:.1%} ({file.accuracy_low:.1%} to {file.accuracy_high:.1%})" for file in files)


def print_left_out(folder: Path) -> None:
    """Print what 16-bit activations with 8-bit weights would cost, which joulecache does not offer."""
    import numpy as np
    import tensorflow as tf

    from joulecache.pipelines.compressing.tflite import convert_quietly, to_tflite
    from joulecache.pipelines.models.classifiers import load_model

    model = load_model(folder / "resnet8" / "model.keras")
    batches = jc.load(folder / "cache", "train", BATCH_SIZE).take(4).as_numpy_iterator()
    images = np.concatenate([batch for batch, _ in batches])
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None].astype(np.float32)] for image in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8]
    mixed = convert_quietly(converter)
    float32_s = cpu_s(to_tflite(model, "float32"), images)
    int8_s = cpu_s(to_tflite(model, "int8", images), images)
    mixed_s = cpu_s(mixed, images)
    print(
        f"\nLeft out: 16-bit activations with 8-bit weights, which use {mixed_s / float32_s:.3g} times the CPU time of float32 "
        f"and {mixed_s / int8_s:.3g} times that of int8 (`resnet8`)."
    )


def cpu_s(file: bytes, images: Any) -> float:
    """Return the CPU seconds of a TensorFlow Lite file on some images: the fastest of five runs after a warm-up."""
    from joulecache.pipelines.compressing.litert import TfliteModel

    model, times = TfliteModel(file), []
    for _ in range(6):
        start_s = time.thread_time()
        model.predict(images)
        times.append(time.thread_time() - start_s)
    return min(times[1:])


if __name__ == "__main__":
    enter()
    parser = argument_parser(__doc__)
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        main(given.cifar10, Path(temporary), given.epochs)
