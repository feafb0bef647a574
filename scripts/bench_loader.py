#!/usr/bin/env python3
"""Print what it costs to load images, as Markdown.

    scripts/bench_loader.py [FOLDER]

FOLDER is where files are written, by default a temporary one: 9 GB. Takes about 8 minutes.

First CPU microseconds per image, of all threads, batches of 64, shuffled, warm page cache. Every way takes its turn, in random
order, in each of 7 rounds of 2 epochs; the median and the range are printed, and the median as a multiple of `cache()` in RAM.
grain (with array_record) and FFCV take part where they are installed. Then a cache that does not fit memory, read in blocks,
against `cat`; and what it takes to open 1,000 shards.
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from environment import enter

BATCH, ROUNDS, WINDOW = 64, 7, 512
SIZES = {224: (3840, 2), 32: (51_200, 2)}  # side: images, epochs
LARGER = 256  # of what is cropped to 224
CACHE = "`cache()` in RAM"


def main(folder: Path) -> None:
    """Print all tables."""
    from joulecache.pipelines import Meter

    names = ("joulecache", "tensorflow", "pyarrow", "numpy", *filter(is_installed, ("grain", "ffcv")))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    cores = len(os.sched_getaffinity(0))
    print(f"{Meter().passport()['cpu']}, {cores} CPUs, Python {platform.python_version()}, {versions}")
    for side in SIZES:
        print_costs(folder / str(side), side)
    print_larger_than_memory(folder / "large")
    print_opening(folder / "many")
    print_state(folder / "many", folder / "state")
    print_starting()


def print_costs(folder: Path, side: int) -> None:
    """Measure all ways to load images of one size."""
    images, epochs = SIZES[side]
    ways = make_ways(folder, side)
    found = {name: [] for name in ways}
    names = list(ways)
    for turn in range(ROUNDS + 1):
        random.Random(turn).shuffle(names)
        for name in names:
            cost = cpu_us(ways[name], images * epochs)
            if turn:  # the first warms up
                found[name].append(cost)
    of_cache = statistics.median(found[CACHE])
    print(f"\n| {images:,} images of {side}x{side}x3, {epochs} epochs | us per image | least to most | times {CACHE} |")
    print("|---|---:|---:|---:|")
    for name, costs in found.items():
        middle = statistics.median(costs)
        print(f"| {name} | {middle:.2f} | {min(costs):.2f} to {max(costs):.2f} | {middle / of_cache:.2f} |", flush=True)


def cpu_us(way, count: int) -> float:
    """Run the epochs and return the CPU microseconds per image, of all threads; read while they live."""
    batches = iter(way())
    before = cpu_s()
    images = 0
    for batch in batches:
        images += len(batch[0])
    spent = cpu_s() - before
    assert images == count, (images, count)
    return spent / count * 1e6


def cpu_s() -> float:
    """Return the CPU seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def make_ways(folder: Path, side: int) -> dict:
    """Return functions that give a dataset over the epochs, by name."""
    import numpy as np
    import tensorflow as tf

    from joulecache.pipelines import cached, load

    count, epochs = SIZES[side]
    source = make_images(folder / "source", side, count)
    chain = f"decode|resize({side})"
    one = build(source, folder / "one", chain, shards=1)
    many = build(source, folder / "many", chain, shards=64)
    records = build(source, folder / "tfrecord", chain, shards=1, format="tfrecord")
    images = np.concatenate([batch.numpy() for batch, _ in load(one, "train", BATCH, shuffle=False)])
    labels = np.zeros(count, np.int64)
    elements = tf.data.Dataset.from_tensor_slices((images, labels))
    in_ram = elements.cache()
    for _ in in_ram:
        pass
    saved = folder / "saved"
    elements.save(str(saved))
    shards = sorted(map(str, records.glob("*.tfrecord")))
    features = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}

    def parse(examples):
        parsed = tf.io.parse_example(examples, features)
        return tf.reshape(tf.io.decode_raw(parsed["image"], tf.uint8), [-1, side, side, 3]), parsed["label"]

    def copy():
        batch = np.empty((BATCH, side, side, 3), np.uint8)
        for start in [*range(0, count, BATCH)] * epochs:
            np.copyto(batch, images[start : start + BATCH])
            yield batch, None

    def batches(dataset):
        return dataset.shuffle(WINDOW).batch(BATCH).prefetch(tf.data.AUTOTUNE)

    constant = tf.data.Dataset.from_tensors((images[:BATCH], labels[:BATCH])).repeat(count // BATCH * epochs)
    parsed = tf.data.TFRecordDataset(shards).shuffle(WINDOW).batch(BATCH).map(parse, tf.data.AUTOTUNE)
    others = {
        CACHE: batches(in_ram),
        "`Dataset.load`": batches(tf.data.Dataset.load(str(saved))),
        "TFRecord and parse": parsed.prefetch(tf.data.AUTOTUNE),
    }
    ours = {
        "**ours, `cached()` in place of `cache()`**": batches(elements.apply(cached(folder / "cached"))),
        "**ours, raw Arrow, 1 shard**": load(one, "train", BATCH),
        "**ours, raw Arrow, 64 shards**": load(many, "train", BATCH),
        "**ours, raw TFRecord**": load(records, "train", BATCH),
    }
    whole = load(one, "train", BATCH, epochs=epochs)
    if side == 224:
        source = make_images(folder / "larger", LARGER, count)
        for suffix in (f"random_crop({side})", f"random_crop({side})|flip_lr"):
            cache = build(source, folder / suffix, f"decode|resize({LARGER}) || {suffix}", shards=1)
            name = f"**ours, raw Arrow of {LARGER}, `{suffix}`**".replace("|", r"\|")
            ours[name] = load(cache, "train", BATCH)
    ways = {
        "a plain copy, in order": copy,
        "TensorFlow's floor: one batch again and again": lambda: constant.prefetch(tf.data.AUTOTUNE),
        **{name: lambda way=way: one_after_another(way, epochs) for name, way in {**others, **ours}.items()},
        "**ours, raw Arrow, 1 shard, `epochs=`**": lambda: whole,
    }
    if is_installed("grain"):
        ways["grain and ArrayRecord"] = grain_way(folder / "images.array_record", images, epochs)
    if is_installed("ffcv"):
        ways["FFCV, without TensorFlow"] = ffcv_way(folder / "images.beton", images, epochs)
    return ways


def one_after_another(dataset, epochs: int):
    """Iterate as a training does: anew for every epoch."""
    for _ in range(epochs):
        yield from dataset


def is_installed(package: str) -> bool:
    """Say whether a package that the project does not need can take part."""
    return importlib.util.find_spec(package) is not None


def grain_way(path: Path, images, epochs: int):
    """Write the images as ArrayRecord, and return a function that reads them without threads, which costs it least."""
    import grain.python as grain
    import numpy as np
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for image in images:
        writer.write(image.tobytes() + bytes(8))
    writer.close()
    shape = images.shape[1:]

    def parse(record):
        levels = np.frombuffer(record, np.uint8)
        return levels[:-8].reshape(shape), levels[-8:].view(np.int64)[0]

    def way():
        dataset = grain.MapDataset.source(grain.ArrayRecordDataSource([str(path)])).seed(1).shuffle().repeat(epochs)
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        return dataset.map(parse).to_iter_dataset(options).batch(BATCH)

    return way


def ffcv_way(path: Path, images, epochs: int):
    """Write the images raw, and return a function that reads them with as many threads as there are CPUs."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.decoders import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.writer import DatasetWriter

    class Images:
        def __len__(self):
            return len(images)

        def __getitem__(self, row):
            return images[row], 0

    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(Images())
    loader = Loader(
        str(path),
        batch_size=BATCH,
        num_workers=len(os.sched_getaffinity(0)),
        order=OrderOption.RANDOM,
        os_cache=True,
        pipelines={"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]},
    )
    return lambda: one_after_another(loader, epochs)


# A cache that does not fit memory ---------------------------------------------------------------------------------------


def print_larger_than_memory(folder: Path) -> None:
    """Read a cache in blocks with half the memory that it takes, and its files by `cat`, in turns."""
    source = make_images(folder / "source", 64, 120_000)
    cache = build(source, folder / "cache", "decode|resize(64)", shards=16)
    source.unlink()
    payload = sum(file.stat().st_size for file in cache.glob("train-*"))
    limit = payload // 2
    group = make_group(limit)
    memory = (
        f"{limit / 1e9:.1f} GB of memory" if group else "as much memory as there is: no control group could be made"
    )
    print(
        f"\n| {payload / 1e9:.1f} GB of 64x64x3, {memory} | MB/s | read, of the payload | anonymous memory, 5 epochs |"
    )
    print("|---|---:|---:|---:|")
    found = {"cat": [], "blocks": []}
    for _ in range(4):
        for how, runs in found.items():
            command = [sys.executable, __file__, how, str(cache), str(group or "")]
            runs.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
            time.sleep(5)  # disks of virtual machines let bursts through, and then less: give both the same rest
    if group:
        group.rmdir()
    for how, name in (("cat", "`cat`"), ("blocks", '**ours, `shuffle="blocks"`**')):
        speeds = [payload / run["s"] / 1e6 for run in found[how]]
        grew = max(run["grew"] for run in found[how]) / 1e6
        most = max(run["read"] for run in found[how]) / payload
        print(
            f"| {name} | {statistics.median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f}) | {most:.3f} | +{grew:.0f} MB |"
        )
    ratios = [cat["s"] / blocks["s"] for cat, blocks in zip(found["cat"], found["blocks"], strict=True)]
    print(
        f"\nblocks at {statistics.median(ratios):.2f} of `cat`, in pairs {min(ratios):.2f} to {max(ratios):.2f}",
        flush=True,
    )


def make_group(limit: int) -> Path | None:
    """Make a control group with a limit of memory; None where one cannot be made."""
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
    """Read the images of a cache with a cold page cache, as a process of a control group, and print what it took.

    Images are read for 4 more epochs, to see whether memory grows.
    """
    if group:
        Path(group, "cgroup.procs").write_text(str(os.getpid()))
    from joulecache.pipelines import load

    files = sorted(cache.glob("train-*"))
    load(cache, "train", BATCH, shuffle="blocks")  # TensorFlow is there
    for file in files:
        with open(file, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before, start, memory, most = read_bytes(), time.perf_counter(), anonymous_bytes(), 0
    if how == "cat":
        subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)
        seconds, read = time.perf_counter() - start, read_bytes() - before
    else:
        dataset = load(cache, "train", BATCH, shuffle="blocks")
        for epoch in range(5):
            for place, _ in enumerate(dataset):
                if place % 100 == 0:
                    most = max(most, anonymous_bytes())
            if epoch == 0:
                seconds, read = time.perf_counter() - start, read_bytes() - before
    print(json.dumps({"s": seconds, "read": read, "grew": max(0, most - memory)}))


def read_bytes() -> int:
    """Return what this process, and the children that it waited for, had read from disk."""
    return int(Path("/proc/self/io").read_text().partition("\nread_bytes: ")[2].split()[0])


def anonymous_bytes() -> int:
    """Return the memory of this process that is no file's."""
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) * 1024


# Opening ------------------------------------------------------------------------------------------------------------------


def print_opening(folder: Path) -> None:
    """Open a cache of 1,000 shards and 10 million records, whose files hold zeros."""
    cache = make_sparse(folder, shards=1000, records=10_000)
    found = []
    for _ in range(5):
        done = subprocess.run([sys.executable, __file__, "open", str(cache)], stdout=subprocess.PIPE, check=True)
        found.append(json.loads(done.stdout))
    seconds = [run["s"] for run in found]
    print(
        f"\nOpening 1,000 shards of 10,000 images: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), "
        f"{max(run['grew'] for run in found) / 1e6:.0f} MB of anonymous memory"
    )


def print_state(cache: Path, folder: Path) -> None:
    """Save an iterator, and print what its state takes in the checkpoint."""
    import tensorflow as tf

    from joulecache.pipelines import load

    iterator = iter(load(cache, "train", BATCH, shuffle=False, epochs=3))
    next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).save(str(folder / "saved"))
    [data] = folder.glob("saved-*.data-*")
    graph, counter = tf.train.load_variable(path, "_CHECKPOINTABLE_OBJECT_GRAPH"), 8  # what a checkpoint says of itself
    print(f"\nThe state of an iterator in a tf.train.Checkpoint: {data.stat().st_size - len(graph) - counter} bytes")


def print_starting() -> None:
    """Print what an import and a look at the help take."""
    help_command = [str(Path(sys.prefix) / "bin" / "joulecache"), "--help"]
    for what, command in (
        ("import joulecache.pipelines", [sys.executable, "-c", "import joulecache.pipelines"]),
        ("joulecache --help", help_command),
    ):
        taken = []
        for _ in range(7):
            start = time.perf_counter()
            subprocess.run(
                command, stdout=subprocess.DEVNULL, check=True, env={**os.environ, "PYTHONPATH": sys.path[0]}
            )
            taken.append(time.perf_counter() - start)
        print(f"\n`{what}`: {statistics.median(taken):.3f} s ({min(taken):.3f} to {max(taken):.3f})", flush=True)


def make_sparse(folder: Path, shards: int, records: int) -> Path:
    """Make a cache of which only the manifest is real: the files have the sizes that it says, and take no room."""
    import numpy as np
    import pyarrow as pa

    from joulecache.pipelines import open_manifest
    from joulecache.pipelines.cache.manifest import INDEX_SCHEMA, write_manifest

    cache = build("synthetic:2", folder, "decode|resize(32)", shards=1)
    manifest = open_manifest(cache)
    train = manifest.splits["train"]
    files = []
    for shard in range(shards):
        digest = hashlib.sha256(str(shard).encode()).hexdigest()
        name = f"train-v0-{shard:05d}-of-{shards:05d}-{digest[:8]}.arrow"
        size = train.files[0].image_offset + records * 3072
        (cache / name).touch()
        os.truncate(cache / name, size)
        files.append(dataclasses.replace(train.files[0], name=name, records=records, bytes=size, sha256=digest))
    total = shards * records
    index = cache / "index-00000000.arrow"
    columns = []
    for field in INDEX_SCHEMA:
        width = {"string": 4, "fixed_size_binary[16]": 16}.get(str(field.type)) or field.type.bit_width // 8
        zeros = pa.py_buffer(np.zeros((total + (str(field.type) == "string")) * width, np.uint8))
        buffers = [None, zeros, pa.py_buffer(b"")] if str(field.type) == "string" else [None, zeros]
        columns.append(pa.Array.from_buffers(field.type, total, buffers))
    with pa.ipc.new_file(str(index), INDEX_SCHEMA) as writer:
        writer.write_batch(pa.record_batch(columns, schema=INDEX_SCHEMA))
    counts = (total, *[0] * (len(train.class_counts) - 1))
    split = dataclasses.replace(train, records=total, files=tuple(files), class_counts=counts)
    entry = dataclasses.replace(
        manifest.index, name=index.name, records=total, bytes=index.stat().st_size, sha256="0" * 64
    )
    write_manifest(
        cache, dataclasses.replace(manifest, shards=shards, splits={**manifest.splits, "train": split}, index=entry)
    )
    return cache


def open_once(cache: Path) -> None:
    """Open a cache, look at a batch, and print what the opening took."""
    from joulecache.pipelines import load

    small = build("synthetic:2", cache.parent / f"small-{os.getpid()}", "decode|resize(32)", shards=1)
    next(iter(load(small, "train", 2)))  # TensorFlow and all modules are there
    memory, start = anonymous_bytes(), time.perf_counter()
    dataset = load(cache, "train", BATCH, shuffle=False)
    seconds, grew = time.perf_counter() - start, anonymous_bytes() - memory
    next(iter(dataset))
    print(json.dumps({"s": seconds, "grew": grew}))


def make_images(folder: Path, side: int, count: int) -> Path:
    """Write a Parquet file of uncompressed images of noise: what they show does not matter here."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    random = np.random.default_rng(side)
    header = f"P6 {side} {side} 255\n".encode()
    kind = pa.struct([("bytes", pa.binary())])
    schema = pa.schema([("image", kind), ("label", pa.int64())])
    with pq.ParquetWriter(folder / "images.parquet", schema, compression="none") as writer:
        for start in range(0, count, 256):
            size = min(256, count - start)
            noise = random.integers(0, 256, (size, side * side * 3), np.uint8)
            rows = pa.array([{"bytes": header + row.tobytes()} for row in noise], kind)
            writer.write_table(pa.table([rows, pa.array([0] * size)], schema))
    return folder / "images.parquet"


def build(source: Path, cache: Path, chain: str, **options) -> Path:
    """Build a cache without held-out records."""
    from joulecache.pipelines import precompute

    precompute(source, cache, chain, val_fraction=0, **options)
    return cache


if __name__ == "__main__":
    enter()
    match sys.argv[1:]:
        case ["cat" | "blocks" as how, cache, group]:
            read_once(how, Path(cache), group)
        case ["open", cache]:
            open_once(Path(cache))
        case _:
            with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as temporary:
                main(Path(temporary))
