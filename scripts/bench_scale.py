#!/usr/bin/env python3
"""Print what a build and a loader need that grows with the number of images, measured and extrapolated, as Markdown.

    scripts/bench_scale.py [FOLDER] [--largest N]

Tars of small JPEGs in 1,000 classes, up to 1.28 million as ImageNet has, are listed, built and opened, each in a process of its own: the
images are 8x8 pixels, so that what is left is what the number of records costs. FOLDER is where files are written, by default a temporary
one; it takes 5 GB there and about half an hour. A straight line through the two largest sizes gives the figures at 100 million.
"""

import argparse
import io
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib import metadata
from pathlib import Path

from environment import enter

SIZES = (20_000, 80_000, 320_000, 1_281_167)
FAR = 100_000_000
CLASSES = 1000
CHAIN = "decode|resize(8) || flip_lr"
ROWS = {
    "list_s": "listing the tar, s",
    "launcher_mb": "launcher's memory: the list of all images and the specs, MB",
    "shards": "shards",
    "spec_bytes": "all specs as they travel to workers: what crosses the shuffle, bytes",
    "units_mb": "the file of units that workers read their range from, MB",
    "build_s": "build, s",
    "manifest_kb": "manifest.json, kB",
    "index_mb": "index, MB",
    "manifest_ms": "opening the manifest, ms",
    "load_s": "load() until the first batch, s",
    "loader_mb": "resident memory of load() above that of its imports, mapped pages included, MB",
}


def main(folder: Path, largest: int) -> None:
    """Print the table."""
    from joulecache.pipelines import Meter

    names = ("joulecache", "apache-beam", "pyarrow", "tensorflow")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    print(
        f"{Meter().passport()['cpu']}, {len(os.sched_getaffinity(0))} CPUs, Python {platform.python_version()}, {versions}\n"
    )
    sizes = [size for size in SIZES if size <= largest]
    found = []
    for size in sizes:
        tar, cache = folder / f"{size}.tar", folder / f"cache-{size}"
        make_tar(tar, size)
        facts = {}
        for part in (listed, built, opened):
            facts |= elsewhere(part.__name__, tar, cache)
        found.append(facts)
        tar.unlink()
        shutil.rmtree(cache)
        print(f"{size:,} images: {facts}", file=sys.stderr)
    print("| | " + " | ".join(f"{size:,}" for size in sizes) + f" | {FAR:,} by a line |")
    print(f"|---|{'---:|' * (len(sizes) + 1)}")
    for name, what in ROWS.items():
        values = [facts[name] for facts in found]
        slope = (values[-1] - values[-2]) / (sizes[-1] - sizes[-2])
        far = values[-1] + slope * (FAR - sizes[-1])
        print(f"| {what} | " + " | ".join(f"{value:,.4g}" for value in values) + f" | {far:,.3g} |")


def make_tar(path: Path, count: int) -> None:
    """Write a tar of one small image under many names."""
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (90, 120, 150)).save(stream, "JPEG")
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(count):
            member = tarfile.TarInfo(f"n{number % CLASSES:08d}/n{number % CLASSES:08d}_{number}.JPEG")
            member.size = stream.getbuffer().nbytes
            tar.addfile(member, io.BytesIO(stream.getvalue()))
            tar.members = []


def elsewhere(part: str, tar: Path, cache: Path) -> dict[str, float]:
    """Do a part in a process of its own, whose memory is then its own; return what it found."""
    words = [sys.executable, __file__, str(cache.parent), "--part", part, "--tar", str(tar), "--cache", str(cache)]
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)


def peak_mb() -> float:
    """Return the most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def listed(tar: Path, cache: Path) -> dict[str, float]:
    """List the source and make the specs, as the launcher does."""
    import dataclasses
    import pickle

    from joulecache.pipelines.building.config import ShardConfig
    from joulecache.pipelines.building.job import shard_specs
    from joulecache.pipelines.source import open_source, store_units
    from joulecache.transforms import parse

    before_mb, started = peak_mb(), time.monotonic()
    source = open_source(tar)
    list_s = time.monotonic() - started
    chain = parse(CHAIN)
    shards = max(1, source.records // SHARD_RECORDS)
    specs = shard_specs(source, str(cache), shards, ShardConfig(chain, chain.for_validation()), 1)
    units = cache.parent / "units.arrow"
    parts = store_units([spec.units for spec in specs], units, str(units))
    travelling = sum(
        len(pickle.dumps(dataclasses.replace(spec, units=part))) for spec, part in zip(specs, parts, strict=True)
    )
    return {
        "list_s": list_s,
        "launcher_mb": peak_mb() - before_mb,
        "shards": shards,
        "spec_bytes": travelling,
        "units_mb": units.stat().st_size / 1e6,
    }


SHARD_RECORDS = 400  # a shard of 64 MiB holds as many images of 224x224


def built(tar: Path, cache: Path) -> dict[str, float]:
    """Build the cache."""
    from joulecache.pipelines import precompute
    from joulecache.pipelines.source import open_source

    shards = max(1, open_source(tar).records // SHARD_RECORDS)
    started = time.monotonic()
    manifest = precompute(tar, cache, CHAIN, shards=shards).manifest
    return {
        "build_s": time.monotonic() - started,
        "manifest_kb": (cache / "manifest.json").stat().st_size / 1e3,
        "index_mb": manifest.index.bytes / 1e6,
    }


def opened(tar: Path, cache: Path) -> dict[str, float]:
    """Open the cache as a loader does, and take a batch."""
    from joulecache.pipelines import load, open_manifest

    started = time.monotonic()
    open_manifest(cache)
    manifest_s = time.monotonic() - started
    import tensorflow as tf

    next(iter(tf.data.Dataset.range(4).batch(2)))
    before_mb, started = peak_mb(), time.monotonic()
    next(iter(load(cache, "train", 64)))
    return {"manifest_ms": 1000 * manifest_s, "load_s": time.monotonic() - started, "loader_mb": peak_mb() - before_mb}


if __name__ == "__main__":
    enter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    for name in ("--part", "--tar", "--cache"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.largest < SIZES[1]:
        parser.error(f"--largest must be at least {SIZES[1]}: a line goes through two sizes")
    if given.part:
        print(
            json.dumps(
                {"listed": listed, "built": built, "opened": opened}[given.part](Path(given.tar), Path(given.cache))
            )
        )
    else:
        with tempfile.TemporaryDirectory(prefix="joulecache-scale-") as temporary:
            main(given.folder or Path(temporary), given.largest)
