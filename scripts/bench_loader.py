#!/usr/bin/env python3
"""Print the cost of loading images, as Markdown.

    scripts/bench_loader.py [FOLDER]

Writes 10 GB to FOLDER, by default a temporary one. Takes about 12 minutes.

First CPU microseconds per image, of all threads, batches of 64, shuffled, warm page cache. Each of 7 rounds runs all loaders in random
order, for 2 epochs each. It prints the median, the range, and the median as a multiple of `cache()` in RAM. Then the same of
`model.fit`, of short epochs, and of crops and flips at load time. grain (with array_record) and FFCV are included if they are
installed. Then the same of images with masks, boxes and points, as multiples of the images alone. Then
`batches`, without TensorFlow, as a multiple of a NumPy gather into rotating buffers. Then a cache that does not fit in memory, read in
blocks, against `cat`; the time to open 1,000 shards; the state of an iterator; the time to import and to show the help.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import filterfalse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from other_loaders import BATCH, Loaders, is_installed, other_libraries, repeated
from tensorflow_loaders import CACHE, MIRRORED, OURS, cropped, drop_ins, images_of, tensorflow_datasets, training

from environment import CLI, ROOT, argument_parser, describe, enter, run_script
from tables import median, print_head, print_row, spread

import joulecache as jc

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from joulecache.pipelines.cache.manifest import Manifest

ROUNDS = 7
SIZES = {224: (3840, 2), 32: (51_200, 2)}  # side: images, epochs
SHORT = {224: (900, 8), 32: (2000, 20)}
LARGER = 256  # side of images that are cropped to 224
ALONE, GATHER = "images alone", "a NumPy gather into rotating buffers"


def main(folder: Path) -> None:
    """Print all parts."""
    print(describe("tensorflow", "pyarrow", "numpy", *filter(is_installed, ("grain", "ffcv"))))
    for side in SIZES:
        print_costs(folder / str(side), side)
        print_training_costs(folder / str(side), side)
        print_short_epochs(folder / f"short-{side}", side)
    print_crop_costs(folder / "crops", 224)
    print_target_costs(folder / "targets", 224)
    for side in SIZES:
        print_numpy_costs(folder / f"numpy-{side}", side)
    print_larger_than_memory(folder / "large")
    print_opening(folder / "many")
    print_state(folder / "many", folder / "state")
    print_starting()


# CPU time per image ---------------------------------------------------------------------------------------------------


def print_costs(folder: Path, side: int) -> None:
    """Measure all loaders on images of one size."""
    images, epochs = SIZES[side]
    title = f"{images:,} images of {side}x{side}x3, {epochs} epochs"
    print_table(title, make_loaders(folder, side), images * epochs, CACHE)


def print_training_costs(folder: Path, side: int) -> None:
    """Measure `model.fit` over the cache that `print_costs` left."""
    images, epochs = SIZES[side]
    for steps in (1, 32):
        loaders: Loaders = {
            name: training(dataset, epochs, steps, images * epochs)
            for name, dataset in drop_ins(folder / "one").items()
        }
        title = f"{images:,} images of {side}x{side}x3, {epochs} epochs of `model.fit`, `steps_per_execution={steps}`"
        print_table(title, loaders, images * epochs, CACHE)


def print_short_epochs(folder: Path, side: int) -> None:
    """Measure epochs of few images, in which the start of an iterator counts."""
    images, epochs = SHORT[side]
    cache = build(make_images(folder / "source", side, images), folder / "cache", f"decode|resize({side})", shards=1)
    loaders: Loaders = {name: functools.partial(repeated, each, epochs) for name, each in drop_ins(cache).items()}
    print_table(f"{images:,} images of {side}x{side}x3, {epochs} epochs", loaders, images * epochs, CACHE)


def print_crop_costs(folder: Path, side: int) -> None:
    """Measure larger images that are cropped and mirrored at load time."""
    images, epochs = SIZES[side]
    source = make_images(folder / "source", LARGER, images)
    chain = f"decode|resize({LARGER})"
    datasets = cropped(images_of(build(source, folder / "whole", chain, shards=1)), side)
    for suffix in (f"random_crop({side})", f"random_crop({side})|flip_lr"):
        cache = build(source, folder / suffix, f"{chain} || {suffix}", shards=1)
        datasets[f"**ours, `{suffix}`**".replace("|", r"\|")] = jc.load(cache, "train", BATCH)
    loaders: Loaders = {name: functools.partial(repeated, each, epochs) for name, each in datasets.items()}
    title = f"{images:,} images of {LARGER}x{LARGER}x3, cropped to {side} and mirrored, {epochs} epochs"
    print_table(title, loaders, images * epochs, MIRRORED)


def print_target_costs(folder: Path, side: int) -> None:
    """Measure images that are cropped and mirrored together with masks, boxes and points, and the same images alone."""
    images, epochs = SIZES[side]
    targets = ("mask", "boxes", "points")
    chain = f"decode|resize({LARGER}) || random_crop({side})|flip_lr"
    cache = build(f"synthetic:{images}", folder, chain, shards=1, target=targets)
    selections = {ALONE: (), **{f"with {name}": name for name in targets}, "with all three": targets}
    loaders: Loaders = {
        name: functools.partial(repeated, jc.load(cache, "train", BATCH, targets=selected), epochs)
        for name, selected in selections.items()
    }
    title = f"{images:,} images of {LARGER}x{LARGER}x3, cropped to {side} and mirrored, {epochs} epochs"
    print_table(title, loaders, images * epochs, ALONE)


def print_numpy_costs(folder: Path, side: int) -> None:
    """Measure `batches`, a gather of the same images by NumPy, and other libraries without TensorFlow."""
    import numpy as np

    count, epochs = SIZES[side]
    cache = build(make_images(folder / "source", side, count), folder / "cache", f"decode|resize({side})", shards=1)
    images = np.concatenate([batch for batch, _ in jc.batches(cache, "train", BATCH, shuffle=False)])

    def gather() -> Iterator[NDArray[np.uint8]]:
        buffers = np.zeros((4, BATCH, *images.shape[1:]), np.uint8)
        for epoch in range(epochs):
            order = np.random.default_rng(epoch).permutation(count)
            for number, start in enumerate(range(0, count, BATCH)):
                buffer = buffers[number % len(buffers)]
                images.take(order[start : start + BATCH], axis=0, out=buffer, mode="clip")
                yield buffer

    whole = jc.batches(cache, "train", BATCH, epochs=epochs)
    loaders: Loaders = {
        GATHER: gather,
        "**ours, `batches`**": functools.partial(repeated, jc.batches(cache, "train", BATCH), epochs),
        "**ours, `batches`, `epochs=`**": lambda: whole,
        **other_libraries(folder, images, epochs),
    }
    for name in filterfalse(is_installed, ("ffcv", "grain")):
        print(f"\n{name} is not installed")
    print_table(
        f"{count:,} images of {side}x{side}x3 as NumPy arrays, {epochs} epochs", loaders, count * epochs, GATHER
    )


def print_table(title: str, loaders: Loaders, count: int, base: str) -> None:
    """Measure loaders of `count` images in turns, and print their cost, also as multiples of the `base` loader's."""
    found: dict[str, list[float]] = {name: [] for name in loaders}
    for turn in range(ROUNDS + 1):
        for name in random.Random(turn).sample(list(loaders), len(loaders)):
            cost = cpu_us(loaders[name], count)
            if turn:  # the first round is a warm-up
                found[name].append(cost)
    base_us = statistics.median(found[base])
    print()
    print_head(title, "us per image", "least to most", f"times {base}")
    for name, costs in found.items():
        middle = statistics.median(costs)
        print_row(name, f"{middle:.2f}", spread(costs, ".2f"), f"{middle / base_us:.2f}")


def cpu_us(loader: Callable[[], Iterable[Any]], count: int) -> float:
    """Return the CPU microseconds per image of all epochs, of all threads."""
    batches = iter(loader())
    before_s, images = cpu_s(), 0
    for batch in batches:
        images += len(batch[0] if isinstance(batch, tuple | list) else batch)
    spent_s = cpu_s() - before_s  # before the loader's threads end
    assert images == count, (images, count)
    return spent_s / count * 1e6


def cpu_s() -> float:
    """Return the CPU seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def make_loaders(folder: Path, side: int) -> Loaders:
    """Return all loaders of images of one size."""
    count, epochs = SIZES[side]
    source = make_images(folder / "source", side, count)
    chain = f"decode|resize({side})"
    one = build(source, folder / "one", chain, shards=1)
    records = build(source, folder / "tfrecord", chain, shards=1, format="tfrecord")
    images = images_of(one)
    whole = jc.load(one, "train", BATCH, epochs=epochs)
    datasets = {
        **tensorflow_datasets(folder, images, records),
        OURS: jc.load(one, "train", BATCH),
        "**ours, raw Arrow, 64 shards**": jc.load(build(source, folder / "many", chain, shards=64), "train", BATCH),
        "**ours, raw TFRecord**": jc.load(records, "train", BATCH),
    }
    return {
        **floors(images, epochs),
        **{name: functools.partial(repeated, each, epochs) for name, each in datasets.items()},
        "**ours, raw Arrow, 1 shard, `epochs=`**": lambda: whole,
        **other_libraries(folder, images, epochs),
    }


def floors(images: NDArray[np.uint8], epochs: int) -> Loaders:
    """Return the lower bounds of any loader's cost."""
    import numpy as np
    import tensorflow as tf

    def copy() -> Iterator[tuple[NDArray[np.uint8]]]:
        batch = np.empty((BATCH, *images.shape[1:]), np.uint8)
        for start in [*range(0, len(images), BATCH)] * epochs:
            np.copyto(batch, images[start : start + BATCH])
            yield (batch,)

    batch = (images[:BATCH], np.zeros(BATCH, np.int64))
    constant = tf.data.Dataset.from_tensors(batch).repeat(len(images) // BATCH * epochs).prefetch(tf.data.AUTOTUNE)
    return {
        "a plain copy, in order": copy,
        "TensorFlow's floor: one batch again and again": lambda: constant,
    }


# A cache that does not fit in memory ----------------------------------------------------------------------------------


def print_larger_than_memory(folder: Path) -> None:
    """Read a cache in blocks with memory for half of it, and its files by `cat`, in turns."""
    source = make_images(folder / "source", 64, 120_000)
    cache = build(source, folder / "cache", "decode|resize(64)", shards=16)
    source.unlink()
    payload = sum(file.stat().st_size for file in cache.glob("train-*"))
    limit = payload // 2
    group = make_group(limit)
    memory = f"{limit / 1e9:.1f} GB of memory" if group else "all memory: no control group could be made"
    title = f"{payload / 1e9:.1f} GB of 64x64x3, {memory}"
    found: dict[str, list[dict[str, float]]] = {"cat": [], "blocks": []}
    for _ in range(4):
        for how, runs in found.items():
            runs.append(run_script(__file__, how, cache, group or ""))
            time.sleep(5)  # virtual disks allow bursts, then throttle: both readers get the same pause
    if group:
        group.rmdir()
    print()
    print_head(title, "MB/s", "read, of the payload", "anonymous memory, 5 epochs")
    for how, name in (("cat", "`cat`"), ("blocks", '**ours, `shuffle="blocks"`**')):
        speeds = [payload / run["s"] / 1e6 for run in found[how]]
        grew = max(run["grew"] for run in found[how]) / 1e6
        read = max(run["read"] for run in found[how]) / payload
        print_row(name, median(speeds, ".0f"), f"{read:.3f}", f"+{grew:.0f} MB")
    ratios = [cat["s"] / blocks["s"] for cat, blocks in zip(found["cat"], found["blocks"], strict=True)]
    print(f"\nblocks at {statistics.median(ratios):.2f} of `cat`, in pairs {spread(ratios, '.2f')}", flush=True)


def make_group(limit: int) -> Path | None:
    """Make a control group with a memory limit; None if that is not possible."""
    for root, name in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root, f"bench-loader-{os.getpid()}")
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / name).exists():
            (group / name).write_text(str(limit))
            return group
        group.rmdir()
    return None


def read_once(how: str, cache: Path, group: str) -> None:
    """Read the images of a cache with a cold page cache, in a control group, and print the cost as JSON.

    `load` reads four more epochs, to see whether memory grows.
    """
    if group:
        Path(group, "cgroup.procs").write_text(str(os.getpid()))
    files = sorted(cache.glob("train-*"))
    jc.load(cache, "train", BATCH, shuffle="blocks")  # imports TensorFlow
    for file in files:
        with open(file, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before, start, memory, most = read_bytes(), time.perf_counter(), anonymous_bytes(), 0
    if how == "cat":
        subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)
        seconds, read = time.perf_counter() - start, read_bytes() - before
    else:
        dataset = jc.load(cache, "train", BATCH, shuffle="blocks")
        for epoch in range(5):
            for place, _ in enumerate(dataset):
                if place % 100 == 0:
                    most = max(most, anonymous_bytes())
            if epoch == 0:
                seconds, read = time.perf_counter() - start, read_bytes() - before
    print(json.dumps({"s": seconds, "read": read, "grew": max(0, most - memory)}))


def read_bytes() -> int:
    """Return the bytes that this process and its waited-for children have read from disk."""
    return int(Path("/proc/self/io").read_text().partition("\nread_bytes: ")[2].split()[0])


def anonymous_bytes() -> int:
    """Return the memory of this process that is not backed by a file."""
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) * 1024


# Opening --------------------------------------------------------------------------------------------------------------


def print_opening(folder: Path) -> None:
    """Open a cache of 1,000 shards and 10 million records, whose files hold zeros."""
    cache = make_sparse(folder, shards=1000, records=10_000)
    runs = [run_script(__file__, "open", cache) for _ in range(5)]
    seconds, grew = median([run["s"] for run in runs], ".2f"), max(run["grew"] for run in runs)
    print(f"\nOpening 1,000 shards of 10,000 images: {seconds} s, {grew / 1e6:.0f} MB of anonymous memory")


def open_once(cache: Path) -> None:
    """Open a cache, take a batch, and print the cost of opening as JSON."""
    small = build("synthetic:2", cache.parent / f"small-{os.getpid()}", "decode|resize(32)", shards=1)
    next(iter(jc.load(small, "train", 2)))  # imports TensorFlow and all modules
    memory, start = anonymous_bytes(), time.perf_counter()
    dataset = jc.load(cache, "train", BATCH, shuffle=False)
    seconds, grew = time.perf_counter() - start, anonymous_bytes() - memory
    next(iter(dataset))
    print(json.dumps({"s": seconds, "grew": grew}))


def print_state(cache: Path, folder: Path) -> None:
    """Save an iterator, and print the size of its state in the checkpoint."""
    import tensorflow as tf

    iterator = iter(jc.load(cache, "train", BATCH, shuffle=False, epochs=3))
    next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).save(str(folder / "saved"))
    [data] = folder.glob("saved-*.data-*")
    overhead = len(tf.train.load_variable(path, "_CHECKPOINTABLE_OBJECT_GRAPH")) + 8  # the checkpoint's own counter
    print(f"\nThe state of an iterator in a tf.train.Checkpoint: {data.stat().st_size - overhead} bytes")


def print_starting() -> None:
    """Print the time to import the package, and to show the help."""
    code = {"import joulecache": "import joulecache", "joulecache --help": f"import sys; sys.argv[1:] = ['-h']; {CLI}"}
    for what, each in code.items():
        seconds = []
        for _ in range(7):
            start = time.perf_counter()
            command = [sys.executable, "-c", each]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env=environment)
            seconds.append(time.perf_counter() - start)
        print(f"\n`{what}`: {median(seconds, '.3f')} s", flush=True)


def make_sparse(folder: Path, shards: int, records: int) -> Path:
    """Make a cache with a real manifest and sparse files: they have the right sizes, but use no disk blocks."""
    from joulecache.pipelines.cache.manifest_io import write_manifest

    cache = build("synthetic:2", folder, "decode|resize(32)", shards=1)
    manifest = jc.open_manifest(cache)
    train = manifest.splits["train"]
    offset = train.files[0].image_offset
    assert offset is not None
    files = []
    for shard in range(shards):
        digest = hashlib.sha256(str(shard).encode()).hexdigest()
        name = f"train-v0-{shard:05d}-of-{shards:05d}-{digest[:8]}.arrow"
        size = offset + records * 3072
        (cache / name).touch()
        os.truncate(cache / name, size)
        files.append(dataclasses.replace(train.files[0], name=name, records=records, bytes=size, sha256=digest))
    total = shards * records
    counts = (total, *[0] * (len(train.class_counts) - 1))
    split = dataclasses.replace(train, records=total, files=tuple(files), class_counts=counts)
    splits = {**manifest.splits, "train": split}
    index = make_index(cache, manifest, total)
    write_manifest(cache, dataclasses.replace(index, shards=shards, splits=splits))
    return cache


def make_index(cache: Path, manifest: Manifest, records: int) -> Manifest:
    """Write an index of zeros; return the manifest with it."""
    import numpy as np
    import pyarrow as pa

    from joulecache.pipelines.cache.index import index_schema

    schema = index_schema(manifest.features)
    index, columns = cache / "index-00000000.arrow", []
    for field in schema:
        kind, widths = str(field.type), {"string": 4, "fixed_size_binary[16]": 16}
        width = widths.get(kind) or field.type.bit_width // 8
        zeros = pa.py_buffer(np.zeros((records + (kind == "string")) * width, np.uint8))
        buffers = [None, zeros, *([pa.py_buffer(b"")] if kind == "string" else [])]
        columns.append(pa.Array.from_buffers(field.type, records, buffers))
    with pa.ipc.new_file(str(index), schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    size = index.stat().st_size
    entry = dataclasses.replace(manifest.index, name=index.name, records=records, bytes=size, sha256="0" * 64)
    return dataclasses.replace(manifest, index=entry)


# Sources and caches ---------------------------------------------------------------------------------------------------


def make_images(folder: Path, side: int, count: int) -> Path:
    """Write a Parquet file of uncompressed noise images."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    draws = np.random.default_rng(side)
    header = f"P6 {side} {side} 255\n".encode()
    kind = pa.struct([("bytes", pa.binary())])
    schema = pa.schema([("image", kind), ("label", pa.int64())])
    with pq.ParquetWriter(folder / "images.parquet", schema, compression="none") as writer:
        for start in range(0, count, 256):
            size = min(256, count - start)
            noise = draws.integers(0, 256, (size, side * side * 3), np.uint8)
            rows = pa.array([{"bytes": header + row.tobytes()} for row in noise], kind)
            writer.write_table(pa.table([rows, pa.array([0] * size)], schema))
    return folder / "images.parquet"


def build(source: Path | str, cache: Path, chain: str, **options: Any) -> Path:
    """Build a cache without held-out records."""
    jc.precompute(source, cache, chain, val_fraction=0, **options)
    return cache


if __name__ == "__main__":
    enter()
    match sys.argv[1:]:  # the first cases are child processes of the last
        case ["cat" | "blocks" as how, cache, group]:
            read_once(how, Path(cache), group)
        case ["open", cache]:
            open_once(Path(cache))
        case _:
            parser = argument_parser(__doc__)
            parser.add_argument("folder", nargs="?", type=Path)
            with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as temporary:
                main(Path(temporary))
