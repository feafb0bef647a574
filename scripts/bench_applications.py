#!/usr/bin/env python3
"""Compress the networks of keras.applications and of MLPerf Tiny, and print bytes and agreement with Keras as Markdown.

    scripts/bench_applications.py [NAME ...] [--rows ROWS.jsonl]

NAME is the name of a function of keras.applications, such as EfficientNetB3, or of a network of MLPerf Tiny; by default one
network of each family. Weights are random; images are smooth noise, of which BatchNormalization has the statistics. Each network
runs in a separate process. With --rows, results are appended to a file; networks that are already in it are skipped.
Takes about 20 minutes.
"""

from __future__ import annotations

import gzip
import json
import logging
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from environment import JSON, argument_parser, describe, enter, run_script
from tables import print_head, print_row

if TYPE_CHECKING:
    import keras

FAMILIES = (
    *("MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large", "EfficientNetB0", "EfficientNetV2B0"),
    *("ResNet50", "ResNet50V2", "DenseNet121", "NASNetMobile", "ConvNeXtTiny", "VGG16", "Xception", "InceptionV3"),
    "InceptionResNetV2",
)
SMALLEST = {"Xception": 71, "InceptionV3": 75, "InceptionResNetV2": 75}
IMAGE_SIZE = 64
IMAGES, CALIBRATION, SPARSITY, PRUNE = 64, 32, 0.5, 0.25


def resnet8() -> keras.Model:
    """Image classification."""
    from joulecache.pipelines.models.architectures import build_architecture

    return build_architecture("resnet8", (32, 32, 3), 10)


def mobilenet_96() -> keras.Model:
    """Person detection."""
    from joulecache.pipelines.models.architectures import build_architecture

    return build_architecture("mobilenet:0.25", (96, 96, 3), 2)


def ds_cnn() -> keras.Model:
    """Keyword spotting (Zhang et al., arXiv:1711.07128): 49 windows of 10 features, 12 words."""
    import keras
    from keras import layers

    def activated(x: Any) -> Any:
        return layers.ReLU()(layers.BatchNormalization()(x))

    sound = keras.Input((49, 10, 1))
    x = layers.Rescaling(1 / 127.5, offset=-1)(sound)
    x = layers.Dropout(0.2)(activated(layers.Conv2D(64, (10, 4), 2, padding="same")(x)))
    for _ in range(4):
        x = activated(layers.DepthwiseConv2D(3, padding="same")(x))
        x = activated(layers.Conv2D(64, 1)(x))
    x = layers.GlobalAveragePooling2D()(layers.Dropout(0.4)(x))
    return keras.Model(sound, layers.Dense(12)(x), name="ds_cnn")


TINY: dict[str, Callable[[], keras.Model]] = {
    "ResNet-8 (MLPerf Tiny)": resnet8,
    "DS-CNN (MLPerf Tiny)": ds_cnn,
    "MobileNet 0.25 (MLPerf Tiny)": mobilenet_96,
}


def main(names: list[str], file: Path | None) -> None:
    """Print one row for each network."""
    known = [json.loads(line) for line in file.read_text().splitlines()] if file and file.exists() else []
    rows: dict[str, JSON] = {row["name"]: row for row in known}
    print(
        f"{describe('tensorflow', 'keras', 'ai-edge-litert')}. {IMAGES} images; {CALIBRATION} calibrate int8; {PRUNE:.0%} of the "
        f"channels pruned, {SPARSITY:.0%} of the weights zeroed.\n"
    )
    print_head(
        *("network", "input", "parameters", "MACs", "float32, kB", "int8, kB", "int8 agrees with Keras"),
        *("gzip of int8, kB", "sparse", "sparse int8 agrees", "pruned: parameters", "MACs", "int8, kB", "int8 agrees"),
        text_columns=2,
    )
    for name in names:
        if name not in rows:
            rows[name] = measured_in_a_process(name)
            if file:
                with file.open("a") as out:
                    print(json.dumps(rows[name]), file=out)
        print_row(*cells(rows[name]))
    for name in names:
        for note in rows[name].get("notes", []):
            print(f"\n`{name}`: {note}")


def measured_in_a_process(name: str) -> JSON:
    """Measure a network in a child process, which returns its memory when it ends."""
    try:
        return run_script(__file__, name, "--json")
    except subprocess.CalledProcessError as error:
        return {"name": name, "notes": [f"its process ended with {error.returncode}"]}


def cells(row: JSON) -> list[str]:
    """Return the cells of a row; what was refused is a dash."""

    def number(key: str) -> str:
        return f"{row[key]:,}" if row.get(key) is not None else "-"

    def kilobytes(key: str) -> str:
        return f"{row[key] / 1e3:,.0f}" if row.get(key) is not None else "-"

    def agreement(kind: str) -> str:
        if row.get(f"{kind}_same") is None:
            return "-"
        return f"{row[f'{kind}_same']:.1%} (error {row[f'{kind}_error']:.1%})"

    def left(key: str) -> str:
        whole = row.get(key.removeprefix("pruned_"))
        return f"{row[key] / whole:.1%}" if whole and row.get(key) is not None else "-"

    return [
        *(row["name"], row.get("input", "-"), number("parameters"), number("macs")),
        *(kilobytes("float32_bytes"), kilobytes("int8_bytes"), agreement("int8")),
        *(kilobytes("int8_gzip"), kilobytes("sparse_gzip"), agreement("sparse")),
        *(left("pruned_parameters"), left("pruned_macs"), kilobytes("pruned_bytes"), agreement("pruned")),
    ]


class Notes(logging.Handler):
    """Appends what a library notes to a list, once."""

    def __init__(self, notes: list[str]) -> None:
        super().__init__()
        self.notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        """Append a note."""
        if record.getMessage() not in self.notes:
            self.notes.append(record.getMessage())


def measure(name: str) -> JSON:
    """Compress a network; return its figures and what was refused."""
    from joulecache.pipelines.compressing.pruning import prune_channels
    from joulecache.pipelines.compressing.sparsity import prune_weights
    from joulecache.pipelines.compressing.tflite import to_tflite
    from joulecache.pipelines.models.macs import count_macs

    row: JSON = {"name": name, "notes": []}
    logging.getLogger("joulecache").addHandler(Notes(row["notes"]))
    model = built(name)
    images = smooth_noise(model.input_shape[1:])
    settle(model, images)
    row |= {"input": "x".join(map(str, model.input_shape[1:])), "parameters": model.count_params()}

    def part(prefix: str, step: Callable[[], JSON]) -> None:
        try:
            row.update({f"{prefix}{key}": value for key, value in step().items()})
        except ValueError as error:
            row["notes"].append(f"{prefix.rstrip('_') or 'MACs'}: {error}")

    def pruned() -> JSON:
        smaller = prune_channels(model, PRUNE)
        settle(smaller, images)
        row.update(pruned_parameters=smaller.count_params(), pruned_macs=count_macs(smaller))
        return quantized(smaller, images)

    part("", lambda: {"macs": count_macs(model)})
    part("float32_", lambda: {"bytes": len(to_tflite(model, "float32"))})
    part("int8_", lambda: quantized(model, images))
    part("sparse_", lambda: quantized(prune_weights(model, SPARSITY), images))
    part("pruned_", pruned)
    return row


def built(name: str) -> keras.Model:
    """Build a network of ten classes that returns logits."""
    import keras

    if name in TINY:
        return TINY[name]()
    size = SMALLEST.get(name, IMAGE_SIZE)
    keras.utils.set_random_seed(0)
    return getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None
    )


def smooth_noise(shape: tuple[int, int, int]) -> Any:
    """Return images, uint8 `[IMAGES, H, W, C]`, of 5x5 random values, enlarged: noise of single pixels averages out."""
    import numpy as np
    import tensorflow as tf

    values = np.random.default_rng(0).uniform(-60, 315, (IMAGES, 5, 5, shape[-1])).astype(np.float32)
    return np.clip(tf.image.resize(values, shape[:2], "bicubic"), 0, 255).astype(np.uint8)


def settle(model: keras.Model, images: Any) -> None:
    """Make a fresh network as tame as a trained one: normalized by the statistics of the images, and shifted by 1.

    Otherwise signals fade or explode with depth, or each layer amplifies the rounding of those before it.
    """
    import numpy as np
    import tensorflow as tf
    from keras import layers

    from joulecache.pipelines.compressing.batch_norm import reestimate_batch_norm

    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    for norm in norms:
        norm.beta.assign(np.ones(norm.beta.shape))
    if norms:
        labels = np.zeros(len(images), np.int64)
        reestimate_batch_norm(model, tf.data.Dataset.from_tensor_slices((images, labels)).batch(32))


def quantized(model: keras.Model, images: Any) -> JSON:
    """Convert a model to int8 and run it; return its bytes, plain and compressed, and its agreement with Keras."""
    import numpy as np

    from joulecache.pipelines.compressing.litert import TfliteModel
    from joulecache.pipelines.compressing.tflite import to_tflite

    content = to_tflite(model, "int8", images[:CALIBRATION], minimum_calibration=CALIBRATION)
    logits, expected = TfliteModel(content).predict(images), model.predict(images, batch_size=32, verbose=0)
    spread = np.linalg.norm(expected - expected.mean(axis=0))
    return {
        "bytes": len(content),
        "gzip": len(gzip.compress(content)),
        "same": float(np.mean(logits.argmax(axis=1) == expected.argmax(axis=1))),
        "error": float(np.linalg.norm(logits - expected) / spread),
    }


if __name__ == "__main__":
    enter()
    parser = argument_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--rows", type=Path)
    parser.add_argument(
        "--json", action="store_true", help="print the figures of one network as JSON, measured in this process"
    )
    given = parser.parse_args()
    if given.json:
        print(json.dumps(measure(given.names[0])))
    else:
        main(given.names or [*TINY, *FAMILIES], given.rows)
