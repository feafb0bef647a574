#!/usr/bin/env python3
"""Print how a build compares with the bare work, as Markdown: throughput, workers, Beam, writing, updates, memory, break-even.

    scripts/bench_precompute.py [FOLDER]

Writes 8 GB to FOLDER, by default a temporary one. Takes about a quarter of an hour. All ratios compare interleaved runs; the median
and the range are printed. The bare work is a thread pool that reads the same files, runs the
same ops and writes the same bytes to plain files. scripts/bench_releases.py compares builds with those of an older revision.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from environment import argument_parser, describe, enter, run_python
from tables import code, print_head, print_row, spread

import joulecache as jc

CHAIN, SIDE, PHOTOS, SHARDS, ROUNDS = "decode|resize(224)", 224, 7120, 16, 3  # shards of 64 MiB
CUT = "decode|resize(72) || random_crop(64)|flip_lr"
SMALL, LARGE, CHANGED = 10_000, 100_000, 0.01
SMALL_SHARDS, SMALL_CHAIN = 8, "decode|resize(128)"  # of 60 MB
WIDE, WIDE_SHARDS, WIDE_CHAIN = 682, 2, "decode|resize(1024)"  # of 1 GiB
UPDATED_CHAIN = "decode|resize(16)"
MEGAPIXELS = (4000, 3000)


def main(root: Path) -> None:
    """Print all parts."""
    print(f"{describe('apache-beam', 'pyarrow', 'pillow', 'numpy')}\n")
    photos = make_photos(root / "photos")
    print_head("what", "median", "least to most")
    print_overhead(root)
    print_throughput(root, photos)
    print_writing(root)
    print_updates(root)
    print_memory(root)
    print_break_even(root, photos)


def print_values(what: str, values: Sequence[float]) -> None:
    """Print one row of the table."""
    print_row(what, f"{statistics.median(values):.3g}", spread(values))


# Sources and builds ---------------------------------------------------------------------------------------------------


def make_photos(folder: Path) -> list[Path]:
    """Write synthetic photos of about 500x375 as files."""
    from joulecache.pipelines.source import synthetic_photo

    folder.mkdir()
    paths = [folder / f"{number:05d}.jpg" for number in range(PHOTOS)]
    for number, path in enumerate(paths):
        path.write_bytes(synthetic_photo(number % 64))
    return paths


def make_small(folder: Path, count: int) -> Path:
    """Write JPEGs of 32x32 as files."""
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


def build(source: Path, cache: Path, chain: str = CHAIN, **options: Any) -> float:
    """Build a new cache; return its duration in seconds."""
    shutil.rmtree(cache, ignore_errors=True)
    started = time.perf_counter()
    jc.precompute(source, cache, chain, val_fraction=0, **options)
    return time.perf_counter() - started


def bare(paths: Sequence[Path], folder: Path, workers: int) -> float:
    """Do the same work without Beam, index, hashes and manifest; return its duration in seconds."""
    import numpy as np

    from joulecache.transforms.chain import apply

    ops = jc.parse(CHAIN).ops
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()

    def transform(images: Any, chosen: Sequence[Path], place: int) -> None:
        images[place] = apply(ops, chosen[place].read_bytes(), [])

    started = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        for shard in range(SHARDS):
            chosen = paths[shard::SHARDS]
            images = np.empty((len(chosen), SIDE, SIDE, 3), np.uint8)
            list(pool.map(functools.partial(transform, images, chosen), range(len(chosen)), chunksize=16))
            write_plain(folder / f"{shard}", images)
    return time.perf_counter() - started


def write_plain(path: Path, data: Any) -> None:
    """Write bytes to a plain file, and sync it."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


# Parts ----------------------------------------------------------------------------------------------------------------


def print_overhead(root: Path) -> None:
    """Print the duration of a build of one photo: the fixed cost of Beam, and of joulecache."""
    (root / "one").mkdir()
    shutil.copy(root / "photos" / "00000.jpg", root / "one")
    print_values("seconds of the first build in a process, of one photo", [build(root / "one", root / "cache")])
    print_values("seconds of the next ones", [build(root / "one", root / "cache") for _ in range(ROUNDS)])


def print_throughput(root: Path, photos: Sequence[Path]) -> None:
    """Print the throughput relative to the bare work, and to one worker."""
    workers = len(os.sched_getaffinity(0))
    bare(photos, root / "bare", workers)
    times: dict[str, list[float]] = {"bare": [], "ours": [], "one": [], "bare one": []}
    for _ in range(ROUNDS):
        times["bare"].append(bare(photos, root / "bare", workers))
        times["ours"].append(build(root / "photos", root / "cache", shards=SHARDS))
        times["one"].append(build(root / "photos", root / "cache", shards=SHARDS, workers=1))
        times["bare one"].append(bare(photos, root / "bare", 1))

    def ratios(over: str, under: str) -> list[float]:
        return [a / b for a, b in zip(times[over], times[under], strict=True)]

    print_values(f"images per second, {PHOTOS} photos, {code(CHAIN)}", [PHOTOS / ours for ours in times["ours"]])
    print_values("throughput, times that of the bare work", ratios("bare", "ours"))
    print_values(f"throughput of {workers} workers, times that of 1", ratios("one", "ours"))
    print_values(f"the bare work by {workers} threads, times by 1", ratios("bare one", "bare"))


def print_writing(root: Path) -> None:
    """Print the CPU time of writing a raw Arrow shard of 64 MiB, relative to the same bytes in a plain file."""
    import numpy as np
    import pyarrow as pa

    from joulecache.pipelines.cache.data_file import PixelStats
    from joulecache.pipelines.cache.names import ShardName
    from joulecache.pipelines.cache.rows import Rows
    from joulecache.pipelines.cache.shards import write_shard
    from joulecache.pipelines.source.features import LABEL, ClassLabel

    count = (64 << 20) // (SIDE * SIDE * 3)
    images = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    keys = [f"{number:06d}.jpg" for number in range(count)]
    rows = Rows(
        images,
        {LABEL: ClassLabel(("one",))},
        {LABEL: pa.array(np.zeros(count, np.int64))},
        keys,
        np.zeros(count, np.uint64),
        PixelStats(1, (0,), (0,)),
    )
    ratios, hashes = [], []
    for _ in range(ROUNDS + 1):
        started = time.process_time()
        file = write_shard(root, ShardName("train", 0, 0, 1, "", "arrow"), rows)
        ours_s = time.process_time() - started
        (root / file.name).unlink()
        started = time.process_time()
        write_plain(root / "plain", images)
        plain_s = time.process_time() - started
        (root / "plain").unlink()
        started = time.process_time()
        hashlib.sha256(images.reshape(-1).data)
        ratios.append(ours_s / plain_s)
        hashes.append((time.process_time() - started) / plain_s)
    print_values("CPU time of writing raw Arrow with its SHA-256, times a plain file", ratios[1:])
    print_values("the SHA-256 alone, times a plain file", hashes[1:])


def print_updates(root: Path) -> None:
    """Print the time to find that nothing changed, and how much is computed after a few files changed."""
    source, cache = make_small(root / "large", LARGE), root / "large-cache"
    update = functools.partial(jc.precompute, source, cache, UPDATED_CHAIN, val_fraction=0, shards=SMALL_SHARDS)
    update()
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        assert update().unchanged
        seconds.append(time.perf_counter() - started)
    print_values(f"seconds to find {LARGE:,} records unchanged", seconds)
    for number in range(0, LARGE, round(1 / CHANGED)):
        (source / f"{number:06d}.jpg").write_bytes((source / f"{number + 1:06d}.jpg").read_bytes())
    computed = 100 * update().transformed / LARGE
    print_values(f"% of the images computed after {CHANGED:.0%} of the files changed", [computed])


PEAK = """
import sys, threading
from contextlib import suppress
import psutil
from joulecache.pipelines import precompute

ended, peak, anonymous, here = threading.Event(), [0], [0], psutil.Process()

def anonymous_kb(process):
    with open(f"/proc/{process.pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss_Anon"))

def watch():  # of all processes: shared pages are divided among them
    while not ended.wait(0.02):
        with suppress(psutil.Error, OSError, StopIteration):
            processes = [here, *here.children(recursive=True)]
            peak.append(sum(process.memory_full_info().pss for process in processes))
            anonymous.append(1024 * sum(map(anonymous_kb, processes)))

watcher = threading.Thread(target=watch)
watcher.start()
precompute(sys.argv[1], sys.argv[2], sys.argv[3], val_fraction=0, shards=int(sys.argv[4]) or None, workers=2)
ended.set()
watcher.join()
print(max(peak) / 1e6, max(anonymous) / 1e6)
"""


def peak_mb(source: Path, cache: Path, chain: str, shards: int = 0) -> float:
    """Build with two workers; return the peak memory of all processes in MB."""
    return peaks_mb(source, cache, chain, shards)[0]


def peaks_mb(source: Path, cache: Path, chain: str, shards: int) -> tuple[float, float]:
    """Build with two workers; return the peak memory of all processes in MB, and that without the pages of files."""
    shutil.rmtree(cache, ignore_errors=True)
    whole, anonymous = map(float, run_python(PEAK, source, cache, chain, shards).split())
    return whole, anonymous


def print_memory(root: Path) -> None:
    """Print the peak memory of builds of more records, of large shards, and of large photos."""
    from PIL import Image

    from joulecache.pipelines.source import synthetic_photo

    small, large, cache = make_small(root / "small", SMALL), root / "large", root / "memory-cache"
    # The largest of several: only by chance do a shard being written and one being filled reach their peaks together.
    few = max(peak_mb(small, cache, SMALL_CHAIN, SMALL_SHARDS) for _ in range(ROUNDS))
    many = peak_mb(large, cache, SMALL_CHAIN, SMALL_SHARDS * LARGE // SMALL)
    shutil.rmtree(cache)
    print_values(f"peak memory of {SMALL:,} records, MB", [few])
    print_values(f"peak memory of {LARGE:,} records, times that of {SMALL:,}", [many / few])
    wide = make_small(root / "wide", WIDE)
    whole, anonymous = peaks_mb(wide, cache, WIDE_CHAIN, WIDE_SHARDS)
    print_values("peak memory with two raw shards of 1 GiB, MB", [whole])
    print_values("the same without pages of files, which the kernel may drop, MB", [anonymous])
    photos = root / "megapixels"
    photos.mkdir()
    for number in range(48):
        photo = Image.open(io.BytesIO(synthetic_photo(number))).resize(MEGAPIXELS)
        photo.save(photos / f"{number:02d}.jpg", quality=90)
    print_values("peak memory with photos of 12 megapixels, defaults, MB", [peak_mb(photos, cache, CHAIN)])


def print_break_even(root: Path, photos: Sequence[Path]) -> None:
    """Print the number of the naive arm's epochs that use the energy of the build."""
    from joulecache.pipelines.experiment.arms import make_arms
    from joulecache.pipelines.experiment.files import list_files

    cache, meter = root / "cut-cache", jc.Meter()
    ratios, epochs = [], []
    for turn in range(ROUNDS + 1):
        build(root / "photos", cache, CUT)
        opened = jc.open_cache(cache)
        built_j = opened.manifest.build_energy.active_j
        spent_j = {}
        for arm in make_arms(["naive", "optimized"], list_files(root / "photos", opened, 1), opened, 64):
            arm.start_epoch(0)
            with meter.window(f"{arm.name} {turn}") as window:
                for _ in arm.dataset:
                    pass
            spent_j[arm.name] = window.energy.active_j
        ratios.append(built_j / spent_j["naive"])
        epochs.append(built_j / (spent_j["naive"] - spent_j["optimized"]))
    print_values(f"active energy of the build, times one naive epoch of {len(photos)} photos", ratios[1:])
    print_values("epochs until the build is paid back", epochs[1:])


if __name__ == "__main__":
    enter()
    parser = argument_parser(__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as temporary:
        main(Path(temporary))
