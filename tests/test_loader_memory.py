"""What a loader takes: memory that does not grow with the cache, as real processes show it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from joulecache.pipelines.building.precomputing import precompute
from joulecache.pipelines.cache.manifest import open_manifest
from joulecache.pipelines.loading import memory

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


# ------------------------------------------------------------------------------------------ how much there is


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Control groups that are made up, as this machine may have none."""
    root = tmp_path / "groups"

    def make(line: str, files: dict[str, str]) -> None:
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        (tmp_path / "cgroup").write_text(line)
        monkeypatch.setattr(memory, "_GROUPS", tmp_path / "cgroup")
        limits = {"": (str(root), "memory.max"), "memory": (str(root / "memory"), "memory.limit_in_bytes")}
        monkeypatch.setattr(memory, "_LIMIT_FILES", limits)

    return make


def test_the_limit_is_that_of_the_smallest_group_around(groups: Any) -> None:
    total = memory.memory_limit()
    assert total > GROWTH
    groups("0::/a/b\n", {"a/memory.max": "5000\n", "a/b/memory.max": "7000\n", "memory.max": "max\n"})
    assert memory.memory_limit() == 5000
    groups("3:cpu:/x\n2:memory:/c\n", {"memory/c/memory.limit_in_bytes": "4000\n", "x/memory.max": "1\n"})
    assert memory.memory_limit() == 4000


def test_without_groups_the_limit_is_the_machine(groups: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    total = memory.memory_limit()
    groups("0::/gone\n", {"memory.max": "max\n"})
    assert memory.memory_limit() >= total
    monkeypatch.setattr(memory, "_GROUPS", Path("/nowhere"))
    assert memory.memory_limit() >= total
