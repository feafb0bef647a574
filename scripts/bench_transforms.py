#!/usr/bin/env python3
"""Print the CPU time of the transforms as Markdown: every op, also next to TensorFlow's, the chain's overhead, and scaled decoding.

    scripts/bench_transforms.py [SOURCE]

SOURCE holds the photos for the last part: a folder, tar or Parquet file; 256 synthetic photos by default. The ops are compared with a
plain copy of the same bytes; measurements that a ratio compares are interleaved.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from unittest import mock

from environment import argument_parser, describe, enter
from tables import code, median, print_head, print_row

import joulecache as jc

BATCH, SIDE, ROUNDS, PHOTOS = 64, 256, 7, 256
SUFFIXES = (
    "random_crop(224)|flip_lr",
    "random_resized_crop(224)|flip_lr",
    "random_crop(224)|flip_lr|color_jitter(0.4, 0.4, 0.4, 0.1)|cutout(56)",
    "random_crop(224)|flip_lr|rand_augment",
)
DECODES = ("decode|resize(72)", "decode(shorter=72)|resize(72)")


def main(source: str) -> None:
    """Print all parts."""
    print(f"{describe('pillow', 'numpy', 'opencv-python-headless', 'simplejpeg', 'cykooz-resizer')}\n")
    print_ops()
    print_rivals()
    print_overhead()
    print_scaled_decoding(source)


def print_ops() -> None:
    """Print the cost of every op, next to that of a copy."""
    from joulecache.pipelines.planning.transform_costs import copy_cost, op_costs
    from joulecache.transforms.chain import op_text

    copy_us = copy_cost()
    print_head("op, on one image of 224x224x3", "CPU us/image", "times a copy")
    print_row("a plain copy", f"{copy_us:.1f}", 1)
    for cost in op_costs():
        print_row(f"`{op_text(cost.op)}`", f"{cost.cpu_us_per_image:,.1f}", f"{cost.cpu_us_per_image / copy_us:,.1f}")


def print_rivals() -> None:
    """Print the cost of ops in tf.data, in Python as the online arms of an audit run them, and by similar functions of TensorFlow."""
    from tensorflow_rivals import compare

    print()
    print_head(
        *("op in tf.data", "TensorFlow's function", "side", "without, CPU us/image", "in Python", "TensorFlow's"),
        "difference in levels",
        text_columns=2,
    )
    for each in compare():
        costs = (f"{cost_us:,.1f}" for cost_us in (each.nothing_us, each.python_us, each.tensorflow_us))
        print_row(code(each.rival.op), code(each.rival.name), each.side, *costs, f"{each.difference:.2f}")


def print_overhead() -> None:
    """Print the cost of a chain whose ops compute no pixels: random words, draws, and calls."""
    from joulecache.pipelines.planning.transform_costs import cpu_us

    print()
    print_head("ops, without their pixels", f"loader, batch of {BATCH}: us/image", "build, one by one: us/image")
    for text in SUFFIXES:
        ops = jc.parse(f"decode || {text}").on_images
        with ExitStack() as patches:
            for op in ops:
                patches.enter_context(mock.patch.object(type(op), "pixels", lambda op, image, drawn: image))
            costs_us = [cpu_us(functools.partial(work, ops)) / BATCH for work in (run_batch, run_each)]
        print_row(code(text), *(f"{cost_us:.1f}" for cost_us in costs_us))


def run_batch(ops: Sequence[jc.Op]) -> None:
    """Run ops on a batch, as the loader does."""
    import numpy as np

    from joulecache.transforms.chain import apply_to_each
    from joulecache.transforms.randomness import word_table

    images = [np.zeros((SIDE, SIDE, 3), np.uint8)] * BATCH
    apply_to_each(ops, images, word_table(ops, 1, 0, range(BATCH), 0))


def run_each(ops: Sequence[jc.Op]) -> None:
    """Run ops on one image at a time, as a build does."""
    import numpy as np

    from joulecache.transforms.chain import apply
    from joulecache.transforms.randomness import random_words

    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    for words in random_words(ops, 1, 0, range(BATCH), 0):
        apply(ops, image, words)


def print_scaled_decoding(source: str) -> None:
    """Print the images per CPU-second at full and at a smaller DCT scale."""
    from joulecache.pipelines.source import open_source

    photos = [record.data for unit in islice(open_source(source).units, PHOTOS) for record in unit.read()]
    rates: dict[str, list[float]] = {text: [] for text in DECODES}
    for turn in range(ROUNDS + 1):
        for text, found in rates.items():
            rate = images_per_s(jc.parse(text), photos)
            if turn:  # the first round is a warm-up
                found.append(rate)
    whole, scaled = rates.values()
    print()
    print_head(f"{len(photos)} photos of {Path(source).name}", "images per CPU-second")
    for text, found in rates.items():
        print_row(code(text), f"{statistics.median(found):,.0f}")
    ratios = [more / fewer for fewer, more in zip(whole, scaled, strict=True)]
    print_row(f"ratio in turns of {ROUNDS}: median (least to most)", median(ratios, ".2f"))


def images_per_s(chain: jc.Chain, photos: Sequence[bytes]) -> float:
    """Return how many photos a chain transforms in a second of CPU time."""
    started = time.process_time()
    for photo in photos:
        chain(photo)
    return len(photos) / (time.process_time() - started)


if __name__ == "__main__":
    enter()
    parser = argument_parser(__doc__)
    parser.add_argument("source", nargs="?", default=f"synthetic:{PHOTOS}")
    main(parser.parse_args().source)
