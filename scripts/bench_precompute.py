#!/usr/bin/env python3
"""Print how a build compares with the bare work, as Markdown: throughput, workers, Beam, writing, updates, memory, break-even.

    scripts/bench_precompute.py [FOLDER]

FOLDER is where files are written, by default a temporary one. Every ratio is of runs that took turns; the median and the range of the
turns are printed. The bare work is a thread pool that reads the same files, runs the same kernels and writes the same bytes to plain files.
Takes about a quarter of an hour, and 8 GB.
"""

import hashlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from environment import ROOT, enter

CHAIN, SIDE, PHOTOS, SHARDS, ROUNDS = "decode|resize(224)", 224, 7120, 16, 3  # shards of 64 MiB
CUT = "decode|resize(72) || random_crop(64)|flip_lr"
SMALL, LARGE, CHANGED = 10_000, 100_000, 0.01
SMALL_SHARDS, SMALL_CHAIN = 8, "decode|resize(128)"  # of 60 MB
MEGAPIXELS = (4000, 3000)


def main(folder: str) -> None:
    """Print the parts."""
    from joulecache.pipelines import Meter

    names = ("joulecache", "apache-beam", "pyarrow", "pillow", "numpy")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    print(
        f"{Meter().passport()['cpu']}, {len(os.sched_getaffinity(0))} CPUs, Python {platform.python_version()}, {versions}\n"
    )
    root = Path(folder)
    photos = make_photos(root / "photos")
    print("| what | median | least to most |\n|---|---:|---:|")
    print_beam(root)
    print_throughput(root, photos)
    print_writing(root)
    print_updates(root)
    print_memory(root)
    print_break_even(root, photos)


def row(what: str, values: list[float], unit: str = "") -> None:
    """Print one line of the table."""
    low, high = min(values), max(values)
    print(f"| {what} | {statistics.median(values):.3g}{unit} | {low:.3g} to {high:.3g} |", flush=True)


def make_photos(folder: Path) -> list[Path]:
    """Write synthetic photos of about 500x375 as files."""
    from joulecache.pipelines.source import synthetic_photo

    folder.mkdir()
    paths = [folder / f"{number:05d}.jpg" for number in range(PHOTOS)]
    for number, path in enumerate(paths):
        path.write_bytes(synthetic_photo(number % 64))
    return paths


def build(source: Path, cache: Path, chain: str = CHAIN, **options) -> float:
    """Build a cache anew and return the seconds that it took."""
    from joulecache.pipelines import precompute

    shutil.rmtree(cache, ignore_errors=True)
    started = time.perf_counter()
    precompute(source, cache, chain, val_fraction=0, **options)
    return time.perf_counter() - started


def bare(paths: list[Path], folder: Path, workers: int) -> float:
    """Do the same work without Beam, index, hashes and manifest."""
    import numpy as np

    from joulecache.transforms import parse
    from joulecache.transforms.chain import apply

    ops = parse(CHAIN).ops
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    started = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        for shard in range(SHARDS):
            chosen = paths[shard::SHARDS]
            images = np.empty((len(chosen), SIDE, SIDE, 3), np.uint8)

            def transform(place: int, chosen=chosen, images=images) -> None:
                images[place] = apply(ops, chosen[place].read_bytes(), [])

            list(pool.map(transform, range(len(chosen)), chunksize=16))
            with open(folder / f"{shard}", "wb") as file:
                file.write(images)
                file.flush()
                os.fsync(file.fileno())
    return time.perf_counter() - started


def print_beam(root: Path) -> None:
    """Print what a build of one photo takes: Beam's fixed cost, and ours."""
    (root / "one").mkdir()
    shutil.copy(root / "photos" / "00000.jpg", root / "one")
    first = build(root / "one", root / "cache")
    row("seconds of the first build in a process, of one photo", [first])
    row("seconds of the next ones", [build(root / "one", root / "cache") for _ in range(ROUNDS)])


def print_throughput(root: Path, photos: list[Path]) -> None:
    """Print the throughput beside the bare work, and with one worker."""
    workers = len(os.sched_getaffinity(0))
    bare(photos, root / "bare", workers)
    against, speedup, bare_speedup, rate = [], [], [], []
    for _ in range(ROUNDS):
        plain = bare(photos, root / "bare", workers)
        ours = build(root / "photos", root / "cache", shards=SHARDS)
        one = build(root / "photos", root / "cache", shards=SHARDS, workers=1)
        against.append(plain / ours)
        bare_speedup.append(bare(photos, root / "bare", 1) / plain)
        speedup.append(one / ours)
        rate.append(PHOTOS / ours)
    chain = CHAIN.replace("|", r"\|")  # a bar would end the cell
    row(f"images per second, {PHOTOS} photos, `{chain}`", rate)
    row("throughput, times that of the bare work", against)
    row(f"throughput of {workers} workers, times that of 1", speedup)
    row(f"the bare work by {workers} threads, times by 1", bare_speedup)


def print_writing(root: Path) -> None:
    """Print the CPU of writing a raw Arrow shard of 64 MiB beside that of the same bytes in a plain file."""
    import numpy as np

    from joulecache.pipelines.cache.shards import Levels, Rows, ShardName, write_shard

    count = (64 << 20) // (SIDE * SIDE * 3)
    images = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    keys = [f"{number:06d}.jpg" for number in range(count)]
    rows = Rows(images, np.zeros(count, np.int64), keys, np.zeros(count, np.uint64), Levels(1, (0,), (0,)))
    ratios, hashes = [], []
    for _ in range(ROUNDS + 1):
        started = time.process_time()
        file = write_shard(root, ShardName("train", 0, 0, 1, "", "arrow"), rows)
        ours = time.process_time() - started
        (root / file.name).unlink()
        started = time.process_time()
        with open(root / "plain", "wb") as plain:
            plain.write(images)
            plain.flush()
            os.fsync(plain.fileno())
        bare = time.process_time() - started
        (root / "plain").unlink()
        started = time.process_time()
        hashlib.sha256(images.reshape(-1))
        ratios.append(ours / bare)
        hashes.append((time.process_time() - started) / bare)
    row("CPU of writing raw Arrow with its SHA-256, times a plain file", ratios[1:])
    row("of these the SHA-256 alone", hashes[1:])


def make_small(folder: Path, count: int) -> Path:
    """Write JPEGs of 32x32 as files."""
    import io

    import numpy as np
    from PIL import Image

    folder.mkdir()
    data = []
    for number in range(64):
        stream = io.BytesIO()
        noise = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(noise).resize((32, 32)).save(stream, "JPEG")
        data.append(stream.getvalue())
    for number in range(count):
        (folder / f"{number:06d}.jpg").write_bytes(data[number % 64])
    return folder


def print_updates(root: Path) -> None:
    """Print what it takes to find that nothing changed, and how much is computed when a little did."""
    from joulecache.pipelines import precompute

    source, cache = make_small(root / "large", LARGE), root / "large-cache"
    options = {"val_fraction": 0, "shards": SMALL_SHARDS}
    precompute(source, cache, "decode|resize(16)", **options)
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        assert precompute(source, cache, "decode|resize(16)", **options).unchanged
        seconds.append(time.perf_counter() - started)
    row(f"seconds to find {LARGE:,} records unchanged", seconds)
    for number in range(0, LARGE, round(1 / CHANGED)):
        (source / f"{number:06d}.jpg").write_bytes((source / f"{number + 1:06d}.jpg").read_bytes())
    updated = precompute(source, cache, "decode|resize(16)", **options)
    row(f"% of the images computed when {CHANGED:.0%} of the files changed", [100 * updated.transformed / LARGE])


PEAK = """
import sys
sys.path.insert(0, sys.argv[1])
from joulecache.pipelines import precompute
precompute(sys.argv[2], sys.argv[3], sys.argv[4], val_fraction=0, shards=int(sys.argv[5]) or None)
for line in open("/proc/self/status"):  # not ru_maxrss, which begins with the peak of the process that started this one
    if line.startswith("VmHWM"):
        print(int(line.split()[1]) / 1024)
"""


def peak_mb(source: Path, cache: Path, chain: str, shards: int = 0) -> float:
    """Build in a process of its own and return the most memory that it had, in MB."""
    shutil.rmtree(cache, ignore_errors=True)
    command = [sys.executable, "-c", PEAK, str(ROOT), str(source), str(cache), chain, str(shards)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_memory(root: Path) -> None:
    """Print the peak memory of builds of more records, and of large photos."""
    import io

    from PIL import Image

    from joulecache.pipelines.source import synthetic_photo

    small, large, cache = make_small(root / "small", SMALL), root / "large", root / "memory-cache"
    # The most of some: whether the shard that is written and the one that is filled meet at their largest is chance.
    few = max(peak_mb(small, cache, SMALL_CHAIN, SMALL_SHARDS) for _ in range(ROUNDS))
    many = peak_mb(large, cache, SMALL_CHAIN, SMALL_SHARDS * LARGE // SMALL)
    shutil.rmtree(cache)
    row(f"peak memory of {SMALL:,} records, MB", [few])
    row(f"peak memory of {LARGE:,} records, times that of {SMALL:,}", [many / few])
    photos = root / "megapixels"
    photos.mkdir()
    for number in range(48):
        photo = Image.open(io.BytesIO(synthetic_photo(number))).resize(MEGAPIXELS)
        photo.save(photos / f"{number:02d}.jpg", quality=90)
    row("peak memory with photos of 12 megapixels, defaults, MB", [peak_mb(photos, cache, CHAIN)])


def print_break_even(root: Path, photos: list[Path]) -> None:
    """Print how many epochs of its own preprocessing the naive arm takes to cost what the build did."""
    from joulecache.pipelines import Energy, Meter, open_manifest
    from joulecache.pipelines.experiment.arms import list_files, make_arms

    cache, meter = root / "cut-cache", Meter()
    ratios, epochs = [], []
    for turn in range(ROUNDS + 1):
        build(root / "photos", cache, CUT)
        built = Energy.from_json(open_manifest(cache).energy["energy"]).active_j
        spent = {}
        arms = make_arms(["naive", "optimized"], list_files(root / "photos", cache, 1), cache, 64)
        for arm in arms:
            arm.start_epoch(0)
            with meter.window(f"{arm.name} {turn}") as window:
                for _ in arm.dataset:
                    pass
            spent[arm.name] = window.energy.active_j
        ratios.append(built / spent["naive"])
        epochs.append(built / (spent["naive"] - spent["optimized"]))
    row(f"active energy of the build, times one naive epoch of {len(photos)} photos", ratios[1:])
    row("epochs until the build is paid back", epochs[1:])


if __name__ == "__main__":
    enter()
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as temporary:
        main(temporary)
