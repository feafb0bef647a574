#!/usr/bin/env python3
"""Print what the transforms cost in CPU time, as Markdown: every op, the chain's own machinery, and decoding at a smaller scale.

    scripts/bench_transforms.py [SOURCE]

SOURCE holds the photos for the last part: a folder, tar or Parquet file; 256 synthetic photos by default. Ratios are of measurements that
took turns in this run; a plain copy of the same bytes is the baseline of the ops.
"""

import os
import platform
import statistics
import sys
import time
from contextlib import ExitStack
from importlib import metadata
from itertools import islice
from pathlib import Path
from unittest import mock

from environment import enter

BATCH, SIDE, ROUNDS, PHOTOS = 64, 256, 7, 256
SUFFIXES = (
    "random_crop(224)|flip_lr",
    "random_resized_crop(224)|flip_lr",
    "random_crop(224)|flip_lr|color_jitter(0.4, 0.4, 0.4, 0.1)|cutout(56)",
    "random_crop(224)|flip_lr|rand_augment",
)


def main(source: str) -> None:
    """Print the three parts."""
    from joulecache.pipelines import Meter

    names = ("joulecache", "pillow", "numpy")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    print(
        f"{Meter().passport()['cpu']}, {len(os.sched_getaffinity(0))} CPUs, Python {platform.python_version()}, {versions}\n"
    )
    print_ops()
    print_machinery()
    print_scaled_decoding(source)


def print_ops() -> None:
    """Print every op's cost beside that of a copy."""
    from joulecache.pipelines.planning.op_costs import copy_cost, op_costs
    from joulecache.transforms.chain import op_text

    copy = copy_cost()
    print("| op, on one image of 224x224x3 | CPU us/image | times a copy |\n|---|---:|---:|")
    print(f"| a plain copy | {copy:.1f} | 1 |")
    for cost in op_costs():
        print(
            f"| `{op_text(cost.op)}` | {cost.cpu_us_per_image:,.1f} | {cost.cpu_us_per_image / copy:,.1f} |", flush=True
        )


def print_machinery() -> None:
    """Print what a chain costs when its kernels do nothing: draws, parameters and the way through the ops."""
    import numpy as np

    from joulecache.pipelines.planning.op_costs import cpu_us
    from joulecache.transforms import chain as chains
    from joulecache.transforms import parse, randomness

    images = [np.zeros((SIDE, SIDE, 3), np.uint8)] * BATCH
    print(
        f"\n| ops, kernels left out | loader, batch of {BATCH}: us/image | build, one by one: us/image |\n|---|---:|---:|"
    )
    for text in SUFFIXES:
        ops = parse(f"decode || {text}").on_images

        def loaded(ops=ops) -> None:
            words = randomness.word_table(ops, 1, 0, range(BATCH), 0)
            chains.apply_to_each(ops, images, words)

        def built(ops=ops) -> None:
            words = randomness.random_words(ops, 1, 0, range(BATCH), 0)
            for image, drawn in zip(images, words, strict=True):
                chains.apply(ops, image, drawn)

        with ExitStack() as patches:
            for op in ops:
                patches.enter_context(mock.patch.object(type(op), "pixels", lambda op, image, drawn: image))
            costs = [cpu_us(work) / BATCH for work in (loaded, built)]
        print(f"| {code(text)} | {costs[0]:.1f} | {costs[1]:.1f} |", flush=True)


def print_scaled_decoding(source: str) -> None:
    """Print how many more images a CPU-second gives at a smaller DCT scale."""
    from joulecache.pipelines.source import open_source
    from joulecache.transforms import parse

    listed = open_source(source)
    photos = [record.data for unit in islice(listed.units, PHOTOS) for record in unit.read()]
    chains = [parse(text) for text in ("decode|resize(72)", "decode(shorter=72)|resize(72)")]
    rates = []
    for _ in range(ROUNDS + 1):  # the first warms up
        pair = []
        for chain in chains:
            started = time.process_time()
            for photo in photos:
                chain(photo)
            pair.append(len(photos) / (time.process_time() - started))
        rates.append(pair)
    ratios = [scaled / whole for whole, scaled in rates[1:]]
    print(f"\n| {len(photos)} photos of {Path(source).name} | images per CPU-second |\n|---|---:|")
    for chain, pair in zip(chains, zip(*rates[1:], strict=True), strict=True):
        print(f"| {code(str(chain))} | {statistics.median(pair):,.0f} |")
    print(
        f"| ratio in turns of {ROUNDS}: median (least to most) | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
    )


def code(text: str) -> str:
    """Return text as code in a cell of a table, where a bar would end the cell."""
    return f"`{text}`".replace("|", r"\|")


if __name__ == "__main__":
    enter()
    main(*(sys.argv[1:] or [f"synthetic:{PHOTOS}"]))
