#!/usr/bin/env python3
"""Train ResNet-8 on CIFAR-10 from a cache, compress it in four ways, and print what that gave, as Markdown.

    scripts/train_resnet8.py CIFAR10 OUT [--epochs 40] [--seeds 1]

CIFAR10 is a folder with train*.parquet and test*.parquet, in the layout `image: struct<bytes, path>, label`; OUT a folder for the
cache, the run and the compressed models; what is there already is not done again. All training images are trained on, with
settings that were chosen on a tenth of them held out; the test images only measure. Takes about an hour on 2 cores with one seed, and
half an hour for each further one.
"""

import argparse
import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from environment import enter

# The border makes room for the crop; both random ops stay fresh every epoch, as they cost less than reading one more variant.
# It is mirrored: a black one, which the test images do not have, makes held-out accuracy fall below that of training.
CHAIN = "decode|resize(32)|pad(4, padding_mode='reflect') || random_crop(32)|flip_lr"
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, BATCH_SIZE = 0.1, 0.9, 5e-3, 64
FINETUNE_EPOCHS, PRUNE, MACS, SPARSITY, CLUSTERS = 4, 0.25, 0.8, 0.5, 16
# What the residual branches add to, and the widest layer, are narrow as they are: without them the same share of the multiply-accumulates
# costs far less of the accuracy, on training images too.
PROTECTED = ("stem", "stack_2_conv_2", "stack_3_conv_1", "stack_3_conv_2")


def main(cifar10: Path, out: Path, epochs: int, seeds: int) -> None:
    """Build, train, compress and print."""
    from joulecache.pipelines import Energy, Meter, Recipe, compress, precompute, train
    from joulecache.pipelines.compressing.results import read_compression
    from joulecache.transforms import parse

    tuned = {"quantize": "int8", "finetune_epochs": FINETUNE_EPOCHS}
    inside = {"macs": MACS, "protected": PROTECTED}
    recipes = {
        "int8 alone": Recipe(quantize="int8"),
        "A quarter of all channels": Recipe(prune=PRUNE, **tuned),
        "Channels inside the blocks": Recipe(**inside, **tuned),
        "Half of the weights": Recipe(sparsity=SPARSITY, **tuned),
        "All together": Recipe(**inside, sparsity=SPARSITY, clusters=CLUSTERS, **tuned),
    }
    meter = Meter()
    say("building the cache")
    built = precompute(f"{cifar10}/*.parquet", out / "cache", parse(CHAIN), val_fraction=0.0, meter=meter).manifest
    record = out / "run" / "history.json"
    if not record.exists():
        batches = -(-built.splits["train"].records // BATCH_SIZE)
        train(
            out / "cache",
            out=out / "run",
            epochs=epochs,
            model="resnet8",
            batch_size=BATCH_SIZE,
            optimizer=sgd(batches * epochs),
            meter=meter,
            progress=tell,
        )
    run = json.loads(record.read_text("utf-8"))
    spent = Energy.from_json(run["energy"])
    names = ("joulecache", "tensorflow", "keras", "ai-edge-litert")
    passport = meter.passport()
    print(
        f"{passport['cpu']}, {len(os.sched_getaffinity(0))} CPUs, Python {platform.python_version()}, "
        f"{', '.join(f'{name} {metadata.version(name)}' for name in names)}; joules: {passport['method']}.\n"
    )
    print(
        f"Cache `{CHAIN}` of {built.splits['train'].records:,} training and {built.splits['test'].records:,} test images. "
        f"Training: {len(run['epochs'])} epochs in batches of {run['batch_size']}, SGD with Nesterov's momentum of {MOMENTUM}, "
        f"from {LEARNING_RATE} along half a cosine to 0, weights decaying by {WEIGHT_DECAY} times that: "
        f"{spent}, {spent.cpu_s:,.0f} CPU seconds in {spent.duration_s:,.0f} s; {run['accuracy']:.1%} of the augmented training "
        f"images right in the last.{''.join(f' Flagged: {flag}.' for flag in spent.flags)}\n"
    )
    done = {}
    for title, recipe in recipes.items():
        folder = out / title.lower().replace(" ", "-")
        found = read_compression(folder / "compression.json") if (folder / "compression.json").exists() else None
        if found is None or found.recipe != recipe:
            say(f"compressing: {title}")
            found = compress(
                out / "run" / "model.keras",
                out / "cache",
                recipe,
                out=folder,
                batch_size=BATCH_SIZE,
                seeds=seeds if recipe.prunes_channels or recipe.sparsity else 1,
                meter=meter,
                progress=tell,
            )
        done[title] = found
    from joulecache.pipelines.report import compression_markdown

    print_reach(done)
    for title, compression in done.items():
        print(f"\n## {title}\n\n{compression_markdown(compression.to_json())}")


def sgd(steps: int):
    """Return the optimizer: on held-out training images Adam, without decay, stayed behind it."""
    import keras

    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    optimizer = keras.optimizers.SGD(rate, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def print_reach(done: dict) -> None:
    """Print the figures that the whole is judged by, asked and reached."""
    int8, _, channels, weights, everything = (
        {each.name: each for each in found.model_files} for found in done.values()
    )
    baseline, quantized = int8["baseline"], int8["baseline-int8"]
    rows = [
        ("accuracy in float32, at least 84%", f"{baseline.accuracy:.2%}", baseline.accuracy >= 0.84),
        compared("int8: bytes, at most 0.31x", quantized.file_bytes / baseline.file_bytes, 0.31),
        points("int8: at most 0.5 points below float32", baseline, quantized, 0.5),
        compared("int8: CPU time, at most 0.45x", quantized.cpu_ms_per_image / baseline.cpu_ms_per_image, 0.45),
    ]
    small, control = last(channels), channels["control"]
    rows += [
        compared("channels inside the blocks: MACs, at most 0.80x", small.macs / control.macs, 0.80),
        points("channels inside the blocks, int8: at most 1.5 points below the control", control, small, 1.5),
    ]
    small, control = last(weights), weights["control"]
    rows += [
        compared("half of the weights, int8: gzip, at most 62 kB", small.gzip_bytes / 1e3, 62),
        points("half of the weights, int8: at most 2 points below the control", control, small, 2),
    ]
    small, control = last(everything), everything["control"]
    rows += [
        compared("all together: gzip, at most 48 kB", small.gzip_bytes / 1e3, 48),
        points("all together: at most 3 points below the control", control, small, 3),
    ]
    print("| asked | reached | |\n|---|---:|---|")
    for asked, reached, held in rows:
        print(f"| {asked} | {reached} | {'yes' if held else '**no**'} |")


def last(files: dict):
    """Return the last model file of a recipe."""
    return list(files.values())[-1]


def compared(asked: str, value: float, most: float) -> tuple[str, str, bool]:
    """Return a row of a figure that has a limit."""
    return asked, f"{value:.3g}", value <= most


def points(asked: str, whole, part, most: float) -> tuple[str, str, bool]:
    """Return a row of the accuracy lost, in points."""
    lost = 100 * (whole.accuracy - part.accuracy)
    return asked, f"{lost:.2f} ({part.accuracy:.2%} against {whole.accuracy:.2%})", lost <= most


def say(text: str) -> None:
    """Tell on stderr how far it is."""
    print(text, file=sys.stderr, flush=True)


def tell(what: str, done: int, total: int) -> None:
    """Tell on stderr which epoch begins."""
    say(f"{what}: {done} of {total}")


if __name__ == "__main__":
    enter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    main(given.cifar10, given.out, given.epochs, given.seeds)
