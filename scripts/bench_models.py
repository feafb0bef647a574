#!/usr/bin/env python3
"""Train every named model for a few epochs on CIFAR-10, quantize it, and print what that cost and gave, as Markdown.

    scripts/bench_models.py CIFAR10 [--epochs 5]

CIFAR10 is a folder with train*.parquet and test*.parquet, in the layout `image: struct<bytes, path>, label`. Models that come in
several widths are taken at the narrowest. Takes about 20 minutes; nothing else should run.
"""

import argparse
import os
import platform
import tempfile
import time
from importlib import metadata
from pathlib import Path

from environment import enter

CHAIN, BATCH_SIZE = "decode|resize(32)|pad(4) || random_crop(32)|flip_lr", 64


def main(cifar10: Path, folder: Path, epochs: int) -> None:
    """Print one row for each model."""
    from joulecache.pipelines import Meter, Recipe, compress, precompute, train
    from joulecache.pipelines.models import MODELS
    from joulecache.transforms import parse

    meter = Meter()
    precompute(f"{cifar10}/*.parquet", folder / "cache", parse(CHAIN), val_fraction=0.0, meter=meter)
    names = ("joulecache", "tensorflow", "keras", "ai-edge-litert")
    passport = meter.passport()
    print(
        f"{passport['cpu']}, {len(os.sched_getaffinity(0))} CPUs, Python {platform.python_version()}, "
        f"{', '.join(f'{name} {metadata.version(name)}' for name in names)}; joules: {passport['method']}. {epochs} epochs, batches of "
        f"{BATCH_SIZE}, seed 0; training: the last epoch, input included; inference: one thread, the model alone.\n"
    )
    print(
        "| model | parameters | MACs | training, CPU ms a step | active J per 1,000 images | inference, CPU ms an image: float32 "
        "| int8 | active mJ an image: float32 | int8 | test accuracy (95%): float32 | int8 |"
    )
    print(f"|---|{'---:|' * 10}")
    for name, architecture in MODELS.items():
        model = f"{name}:{architecture.widths[0]:g}" if architecture.widths else name
        out = folder / name
        history = train(
            folder / "cache", out=out, epochs=epochs, model=model, batch_size=BATCH_SIZE, meter=meter
        ).training
        last = history.to_json()["epochs"][-1]
        images = history.images // epochs
        recipe = Recipe(quantize="int8", finetune_epochs=0)
        forms = compress(out / "model.keras", folder / "cache", recipe, out=out / "small", meter=meter).model_files
        cells = [
            model,
            f"{forms[0].parameters:,}",
            f"{forms[0].macs:,}",
            f"{last['cpu_s'] / (images / BATCH_SIZE) * 1e3:.3g}",
            f"{history.energy.active_j / history.images * 1e3:.3g}",
            *(f"{form.cpu_ms_per_image:.3g}" for form in forms),
            *(f"{form.energy_per_image.active_j * 1e3:.3g}" for form in forms),
            *(f"{form.accuracy:.1%} ({form.accuracy_low:.1%} to {form.accuracy_high:.1%})" for form in forms),
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
    print_left_out(folder)


def print_left_out(folder: Path) -> None:
    """Print what 16-bit activations with 8-bit weights would take, which joulecache does not offer."""
    import numpy as np
    import tensorflow as tf

    from joulecache.pipelines import load
    from joulecache.pipelines.compressing.tflite import TfliteModel, native_output_kept, to_tflite
    from joulecache.pipelines.models import load_model

    model = load_model(folder / "resnet8" / "model.keras")
    images = np.concatenate(
        [batch for batch, _ in load(folder / "cache", "train", BATCH_SIZE).take(4).as_numpy_iterator()]
    )
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None].astype(np.float32)] for image in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8]
    with native_output_kept():
        mixed = converter.convert()
    spent = {}
    for name, content in (
        ("float32", to_tflite(model, "float32")),
        ("int8", to_tflite(model, "int8", images)),
        ("16x8", mixed),
    ):
        runner, times = TfliteModel(content), []
        for _ in range(6):
            start_s = time.thread_time()
            runner.predict(images)
            times.append(time.thread_time() - start_s)
        spent[name] = min(times[1:])
    print(
        f"\nLeft out: 16-bit activations with 8-bit weights, which take {spent['16x8'] / spent['float32']:.3g} times the CPU "
        f"time of float32 and {spent['16x8'] / spent['int8']:.3g} times that of int8 (`resnet8`)."
    )


if __name__ == "__main__":
    enter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        main(given.cifar10, Path(temporary), given.epochs)
