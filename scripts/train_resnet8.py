#!/usr/bin/env python3
"""Train ResNet-8 on CIFAR-10 from a cache, compress it in several ways, and print the results as Markdown.

    scripts/train_resnet8.py CIFAR10 OUT [--epochs 40] [--seeds 1]

CIFAR10 is a folder with train*.parquet and test*.parquet, in the layout `image: struct<bytes, path>, label`. OUT keeps the
cache, the run and the compressed models; finished parts are not repeated. All training images are used, with settings
chosen on a held-out tenth of them; the test images are used only for evaluation. Takes about an hour on 2 cores with one
seed, and half an hour for each further one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from environment import JSON, argument_parser, describe, enter
from tables import print_row

import joulecache as jc

if TYPE_CHECKING:
    from joulecache.pipelines.cache.manifest import Manifest
    from joulecache.pipelines.compressing.results import Compression, ModelFile

# The padding makes room for the crop; both random ops stay fresh every epoch, as they cost less than reading another variant.
# It mirrors the image: black borders, which the test images lack, make held-out accuracy fall below that of training.
CHAIN = "decode|resize(32)|pad(4, padding_mode='reflect') || random_crop(32)|flip_lr"
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, BATCH_SIZE = 0.1, 0.9, 5e-3, 64
FINETUNE_EPOCHS, PRUNE, MACS, SPARSITY, CLUSTERS = 4, 0.25, 0.8, 0.5, 16
# The layers that residual branches add to, and the widest layer, are narrow as they are: pruning the same share of the
# multiply-accumulates elsewhere costs far less accuracy, on training images too.
PROTECTED = ("stem", "stack_2_conv_2", "stack_3_conv_1", "stack_3_conv_2")

Row = tuple[str, str, bool]


def main(cifar10: Path, out: Path, epochs: int, seeds: int) -> None:
    """Build, train, compress and print."""
    from joulecache.pipelines.report.describe.compression import describe_compression
    from joulecache.pipelines.report.render.markdown import sections_markdown

    meter = jc.Meter()
    log("building the cache")
    built = jc.precompute(f"{cifar10}/*.parquet", out / "cache", CHAIN, val_fraction=0.0, meter=meter).manifest
    run = train(out, epochs, built.splits["train"].records, meter)
    print(f"{describe('tensorflow', 'keras', 'ai-edge-litert', meter=meter)}.\n")
    print_training(built, run)
    found = {title: compress(title, recipe, out, seeds, meter) for title, recipe in recipes().items()}
    print_goals(found)
    for title, compression in found.items():
        print("\n".join(("", f"## {title}", "", *sections_markdown(describe_compression(compression)))))


def recipes() -> dict[str, jc.Recipe]:
    """Return the recipes by title."""
    tuned: dict[str, Any] = {"quantize": "int8", "finetune_epochs": FINETUNE_EPOCHS}
    inside: dict[str, Any] = {"macs": MACS, "protected": PROTECTED}
    return {
        "int8 alone": jc.Recipe(quantize="int8"),
        "A quarter of all channels": jc.Recipe(prune=PRUNE, **tuned),
        "Channels inside the blocks": jc.Recipe(**inside, **tuned),
        "Half of the weights": jc.Recipe(sparsity=SPARSITY, **tuned),
        "All together": jc.Recipe(**inside, sparsity=SPARSITY, clusters=CLUSTERS, **tuned),
    }


def train(out: Path, epochs: int, images: int, meter: jc.Meter) -> JSON:
    """Train, unless that is done; return the run's history.json."""
    record = out / "run" / "history.json"
    if not record.exists():
        jc.train(
            out / "cache",
            out=record.parent,
            epochs=epochs,
            model="resnet8",
            batch_size=BATCH_SIZE,
            optimizer=sgd(epochs * -(-images // BATCH_SIZE)),
            meter=meter,
            progress=log_progress,
        )
    run: JSON = json.loads(record.read_text("utf-8"))
    return run


def sgd(steps: int) -> Any:
    """Return the optimizer. On held-out training images, Adam without decay was worse."""
    import keras

    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    optimizer = keras.optimizers.SGD(rate, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def compress(title: str, recipe: jc.Recipe, out: Path, seeds: int, meter: jc.Meter) -> Compression:
    """Compress the trained model by a recipe, unless that is done."""
    from joulecache.pipelines.compressing.results import read_compression

    folder = out / title.lower().replace(" ", "-")
    record = folder / "compression.json"
    if record.exists() and (found := read_compression(record)).recipe == recipe:
        return found
    log(f"compressing: {title}")
    return jc.compress(
        out / "run" / "model.keras",
        out / "cache",
        recipe,
        out=folder,
        batch_size=BATCH_SIZE,
        seeds=seeds if recipe.prunes_channels or recipe.sparsity else 1,
        meter=meter,
        progress=log_progress,
    )


def print_training(built: Manifest, run: JSON) -> None:
    """Print the data, the settings and the cost of training."""
    energy = jc.Energy.from_json(run["energy"])
    flags = "".join(f" Flagged: {flag}." for flag in energy.flags)
    print(
        f"Cache `{CHAIN}` of {built.splits['train'].records:,} training and {built.splits['test'].records:,} test images. "
        f"Training: {len(run['epochs'])} epochs in batches of {run['batch_size']}, SGD with Nesterov momentum of {MOMENTUM}, "
        f"learning rate from {LEARNING_RATE} to 0 along half a cosine, weight decay of {WEIGHT_DECAY} times that: "
        f"{energy}, {energy.cpu_s:,.0f} CPU seconds in {energy.duration_s:,.0f} s; accuracy on the augmented training images of "
        f"the last epoch {run['accuracy']:.1%}.{flags}\n"
    )


def print_goals(found: Mapping[str, Compression]) -> None:
    """Print the goals, and whether they are reached."""
    files = [{each.name: each for each in compression.model_files} for compression in found.values()]
    results = [compression.model_files[-1] for compression in found.values()]
    baseline, int8 = files[0]["baseline"], files[0]["baseline-int8"]
    channels, weights, together = results[2:]
    dense = files[2]["control"]
    assert channels.macs is not None
    assert dense.macs is not None
    rows: list[Row] = [
        ("accuracy in float32, at least 84%", f"{baseline.accuracy:.2%}", baseline.accuracy >= 0.84),
        limited("int8: bytes, at most 0.31x", int8.file_bytes / baseline.file_bytes, 0.31),
        lost("int8: at most 0.5 points below float32", baseline, int8, 0.5),
        limited("int8: CPU time, at most 0.45x", int8.cpu_ms_per_image / baseline.cpu_ms_per_image, 0.45),
        limited("channels inside the blocks: MACs, at most 0.80x", channels.macs / dense.macs, 0.80),
        lost(
            "channels inside the blocks, int8: at most 1.5 points below the control",
            *(dense, channels, 1.5),
        ),
        limited("half of the weights, int8: gzip, at most 62 kB", weights.gzip_bytes / 1e3, 62),
        lost("half of the weights, int8: at most 2 points below the control", files[3]["control"], weights, 2),
        limited("all together: gzip, at most 48 kB", together.gzip_bytes / 1e3, 48),
        lost("all together: at most 3 points below the control", files[4]["control"], together, 3),
    ]
    print("| goal | reached | |\n|---|---:|---|")
    for goal, reached, held in rows:
        print_row(goal, reached, "yes" if held else "**no**")


def limited(goal: str, value: float, most: float) -> Row:
    """Return the row of a figure with an upper limit."""
    return goal, f"{value:.3g}", value <= most


def lost(goal: str, whole: ModelFile, part: ModelFile, most: float) -> Row:
    """Return the row of an accuracy that may be at most `most` points lower than another."""
    points = 100 * (whole.accuracy - part.accuracy)
    return goal, f"{points:.2f} ({part.accuracy:.2%} against {whole.accuracy:.2%})", points <= most


def log(text: str) -> None:
    """Print progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def log_progress(what: str, done: int, total: int) -> None:
    """Print a step on stderr."""
    log(f"{what}: {done} of {total}")


if __name__ == "__main__":
    enter()
    parser = argument_parser(__doc__)
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    main(given.cifar10, given.out, given.epochs, given.seeds)
