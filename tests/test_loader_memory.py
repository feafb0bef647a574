"""Memory of the loader: it does not grow with the cache, measured in real processes, and is free when datasets are gone."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from processes import run_python

from joulecache.pipelines.building.precomputing import precompute
from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.cache.names import Encoding
from joulecache.pipelines.core.memory import memory_limit
from joulecache.pipelines.loading.directory import image_dataset_from_directory
from joulecache.pipelines.loading.loader import load

MEGABYTE = 1 << 20
GROWTH = 50 * MEGABYTE

_EPOCHS = """
import json, sys
from pathlib import Path
from joulecache.pipelines import load

def anonymous():
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) * 1024

folder, small, how = sys.argv[1:]
for _ in load(small, "train", 4): pass  # TensorFlow is there
before, most = anonymous(), 0
dataset = load(folder, "train", 64, shuffle={"all": True, "blocks": "blocks"}[how])
for epoch in range(5):
    for place, (images, labels) in enumerate(dataset):
        if place % 8 == 0:
            most = max(most, anonymous())
print(json.dumps(most - before))
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "cache"
    precompute("synthetic:8", folder, "decode|resize(8)", val_fraction=0)
    return folder


@pytest.fixture(scope="module", params=[224, 32])
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 100 MiB of noise, twice what its readers may take."""
    side = request.param
    folder = tmp_path_factory.mktemp("large")
    header, count = f"P6 {side} {side} 255\n".encode(), 100 * MEGABYTE // (side * side * 3) + 1
    noise = np.random.default_rng(1).integers(0, 256, (count, side * side * 3), np.uint8)
    images = pa.array([{"bytes": header + row.tobytes(), "path": None} for row in noise])
    pq.write_table(pa.table({"image": images, "label": pa.array([0] * count)}), folder / "noise.parquet")
    precompute(folder / "noise.parquet", folder / "cache", f"decode|resize({side})", val_fraction=0, shards=4)
    (folder / "noise.parquet").unlink()
    assert sum(file.bytes for file in open_manifest(folder / "cache").splits["train"].files) > 2 * GROWTH
    return folder / "cache"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["all", "blocks"])
def test_anonymous_memory_does_not_grow_with_the_cache(large: Path, small: Path, how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _EPOCHS, str(large), str(small), how],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert json.loads(done.stdout) < GROWTH


# ------------------------------------------------------------------------------------------ what a dataset leaves


def open_files(folder: Path) -> list[str]:
    """Return the files of a folder that this process has mapped or open."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text().splitlines()
    found = [line.split(maxsplit=5)[-1] for line in maps] + list(map(os.path.realpath, Path("/proc/self/fd").iterdir()))
    return [path for path in found if path.startswith(str(folder))]


@pytest.mark.parametrize(("encoding", "suffix"), [("raw", ""), ("raw", " || flip_lr"), ("jpeg", " || flip_lr")])
@pytest.mark.parametrize("epochs", [None, 1])
def test_a_dataset_that_is_gone_leaves_no_files(
    tmp_path: Path, encoding: Encoding, suffix: str, epochs: int | None
) -> None:
    precompute("synthetic:8", tmp_path, f"decode|resize(8){suffix}", val_fraction=0, encoding=encoding)
    dataset = load(tmp_path, "train", 3, epochs=epochs)
    iterator = iter(dataset.map(lambda images, labels: images).prefetch(1))
    del dataset
    assert open_files(tmp_path)
    assert len(next(iterator)) == 3
    del iterator
    assert not open_files(tmp_path)
    decoding = [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
    assert len(decoding) <= len(os.sched_getaffinity(0))  # one pool for all datasets


def test_a_directory_that_is_gone_leaves_no_files(tmp_path: Path, photo_folder: Path) -> None:
    dataset = image_dataset_from_directory(photo_folder, cache_dir=tmp_path, image_size=8, verbose=False)
    assert open_files(tmp_path)
    assert len(list(dataset)) > 0
    del dataset
    assert not open_files(tmp_path)


# ------------------------------------------------------------------------------------------ how much there is


def machine(root: Path, cgroup: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Write a /proc and a /sys/fs/cgroup; return both."""
    proc, groups = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(cgroup)
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    return proc, groups


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        ("0::/a/b\n", {"a/memory.max": "5000\n", "a/b/memory.max": "7000\n", "memory.max": "max\n"}),
        ("3:cpu:/x\n2:memory:/c\n", {"memory/c/memory.limit_in_bytes": "5000\n", "x/memory.max": "1\n"}),
    ],
    ids=["version 2", "version 1"],
)
def test_the_limit_is_that_of_the_tightest_control_group(tmp_path: Path, cgroup: str, files: dict[str, str]) -> None:
    assert memory_limit(*machine(tmp_path, cgroup, files)) == 5000


def test_without_control_groups_the_limit_is_the_machine(tmp_path: Path) -> None:
    total = psutil.virtual_memory().total
    assert memory_limit(*machine(tmp_path, "0::/gone\n", {"memory.max": "max\n"})) == total
    assert memory_limit(tmp_path / "nowhere") == total
    assert GROWTH < memory_limit() <= total


def test_a_worker_reuses_the_memory_of_images() -> None:
    code = """
import resource, sys
from joulecache.pipelines.core.memory import reuse_memory

def images():
    return len([b"x" * (3 << 20) for _ in range(8)])

if sys.argv[1] == "reuse":
    reuse_memory()
images()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    images()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    # as Dask sets it for its workers
    new_pages = [int(run_python(code, how, MALLOC_TRIM_THRESHOLD_="65536").stdout) for how in ("map", "reuse")]
    assert new_pages[1] < new_pages[0] / 10
