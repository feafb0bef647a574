#!/usr/bin/env python3
"""Print how the costs of a build and a loader grow with the number of images, measured and extrapolated, as Markdown.

    scripts/bench_scale.py [FOLDER] [--largest N]

Tars of small JPEGs in 1,000 classes, up to 1.28 million as in ImageNet, are listed, built and opened, each in a separate process.
The images are 8x8 pixels, so the cost depends almost only on the number of records. Writes 7 GB to FOLDER, by default a
temporary one. Takes about half an hour. Figures at 100 million follow from a straight line through the two largest sizes:
over the number of images or, for what grows with the shards, over their number, of which a cache has at most 8,000.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import pickle
import resource
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from environment import argument_parser, describe, enter, run_script
from tables import print_head, print_row

import joulecache as jc
from joulecache.pipelines.building.config import MANY_SHARDS

SIZES = (20_000, 80_000, 320_000, 1_281_167)
FAR = 100_000_000
CLASSES = 1000
SHARD_RECORDS = 400  # the number of 224x224 images in a shard of 64 MiB
CHAIN = "decode|resize(8) || flip_lr"
PARTS_OF_SOURCE = 32
ROWS = {
    "list_s": "listing the tar, s",
    "parts_one_s": "listing the same images in 32 tars on one CPU, s",
    "parts_all_s": "the same on all CPUs, s",
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

PER_SHARD = {"shards", "spec_bytes", "manifest_kb", "manifest_ms"}

Facts = dict[str, float]


def main(folder: Path, largest: int) -> None:
    """Print the table."""
    print(f"{describe('apache-beam', 'pyarrow', 'tensorflow')}\n")
    sizes = [size for size in SIZES if size <= largest]
    found: list[Facts] = []
    for size in sizes:
        tar, cache = folder / f"{size}.tar", folder / f"cache-{size}"
        make_tar(tar, range(size))
        make_parts(tar, size)
        facts: Facts = {}
        for part in PARTS:  # each in a child process, so that peak memory is per part
            facts |= run_script(__file__, folder, "--part", part, "--tar", tar, "--cache", cache)
        found.append(facts)
        tar.unlink()
        shutil.rmtree(parts_of(tar))
        shutil.rmtree(cache)
        print(f"{size:,} images: {facts}", file=sys.stderr)
    print_head("", *(f"{size:,}" for size in sizes), f"{FAR:,} by a line")
    for name, what in ROWS.items():
        values = [facts[name] for facts in found]
        counts, far_count = [float(size) for size in sizes], FAR
        if name in PER_SHARD:
            counts, far_count = [facts["shards"] for facts in found], min(FAR // SHARD_RECORDS, MANY_SHARDS)
        slope = (values[-1] - values[-2]) / (counts[-1] - counts[-2])
        far = values[-1] + slope * (far_count - counts[-1])
        print_row(what, *(f"{value:,.4g}" for value in values), f"{far:,.3g}")


def parts_of(tar: Path) -> Path:
    """Return the folder of the tars with the images of a tar."""
    return tar.with_suffix("")


def make_parts(tar: Path, count: int) -> None:
    """Write the images of a tar to several tars."""
    parts_of(tar).mkdir()
    make_tar(parts_of(tar) / "few.tar", range(2))
    for part in range(PARTS_OF_SOURCE):
        make_tar(parts_of(tar) / f"part-{part:02d}.tar", range(part, count, PARTS_OF_SOURCE))


def make_tar(path: Path, numbers: Iterable[int]) -> None:
    """Write a tar of one small image under many names."""
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (90, 120, 150)).save(stream, "JPEG")
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in numbers:
            member = tarfile.TarInfo(f"n{number % CLASSES:08d}/n{number % CLASSES:08d}_{number}.JPEG")
            member.size = stream.getbuffer().nbytes
            tar.addfile(member, io.BytesIO(stream.getvalue()))
            tar.members = []  # type: ignore[attr-defined]  # otherwise it keeps all of them in memory


def peak_mb() -> float:
    """Return the peak memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def measure_listing(tar: Path, cache: Path) -> Facts:
    """List the source and make the specs, as the launcher does."""
    from joulecache.pipelines.building.config import ShardConfig
    from joulecache.pipelines.building.job import shard_specs
    from joulecache.pipelines.building.stored_features import StoredFeatures, write_features
    from joulecache.pipelines.source import open_source, store_units

    open_source(parts_of(tar) / "few.tar")  # imports
    before_mb, started = peak_mb(), time.monotonic()
    source = open_source(tar)
    list_s = time.monotonic() - started
    chain = jc.parse(CHAIN)
    shards = max(1, source.records // SHARD_RECORDS)
    specs = shard_specs(source, str(cache), shards, ShardConfig(chain, chain.for_validation()))
    units = cache.parent / "units.arrow"
    parts = store_units([spec.units for spec in specs], units, str(units))
    features = StoredFeatures(str(cache.parent / write_features(source.features, cache.parent)))
    sent = (dataclasses.replace(spec, units=part, features=features) for spec, part in zip(specs, parts, strict=True))
    return {
        "list_s": list_s,
        "launcher_mb": peak_mb() - before_mb,
        "shards": shards,
        "spec_bytes": sum(len(pickle.dumps(spec)) for spec in sent),
        "units_mb": units.stat().st_size / 1e6,
    }


def measure_parts(tar: Path, cache: Path) -> Facts:
    """List the source in several tars, with one process and with one per CPU."""
    from joulecache.pipelines.source import open_source

    cpus, found = os.sched_getaffinity(0), {}
    for name, allowed in (("parts_one_s", {min(cpus)}), ("parts_all_s", cpus)):
        os.sched_setaffinity(0, allowed)
        started = time.monotonic()
        open_source(f"{parts_of(tar)}/part-*.tar")
        found[name] = time.monotonic() - started
    return found


def measure_build(tar: Path, cache: Path) -> Facts:
    """Build the cache."""
    from joulecache.pipelines.source import open_source

    shards = max(1, open_source(tar).records // SHARD_RECORDS)
    started = time.monotonic()
    manifest = jc.precompute(tar, cache, CHAIN, shards=shards).manifest
    return {
        "build_s": time.monotonic() - started,
        "manifest_kb": (cache / "manifest.json").stat().st_size / 1e3,
        "index_mb": manifest.index.bytes / 1e6,
    }


def measure_opening(tar: Path, cache: Path) -> Facts:
    """Open the cache as a loader does, and take a batch."""
    started = time.monotonic()
    jc.open_manifest(cache)
    manifest_s = time.monotonic() - started
    import tensorflow as tf

    next(iter(tf.data.Dataset.range(4).batch(2)))
    before_mb, started = peak_mb(), time.monotonic()
    next(iter(jc.load(cache, "train", 64)))
    return {"manifest_ms": 1000 * manifest_s, "load_s": time.monotonic() - started, "loader_mb": peak_mb() - before_mb}


PARTS = {"listing": measure_listing, "parts": measure_parts, "build": measure_build, "opening": measure_opening}


if __name__ == "__main__":
    enter()
    parser = argument_parser(__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--tar", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.largest < SIZES[1]:
        parser.error(f"--largest must be at least {SIZES[1]}, since a line needs two sizes")
    if given.part:
        print(json.dumps(PARTS[given.part](given.tar, given.cache)))
    else:
        with tempfile.TemporaryDirectory(prefix="joulecache-scale-") as temporary:
            main(given.folder or Path(temporary), given.largest)
