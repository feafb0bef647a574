"""A cache that an earlier release built: it opens, is up to date, and can be updated."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from caches import hashes, is_clean, shard_hashes

from joulecache.pipelines.building.precomputing import precompute
from joulecache.pipelines.cache.cache import open_cache, verify
from joulecache.pipelines.cache.manifest import MANIFEST, encode_manifest
from joulecache.pipelines.loading.split import CachedSplit

GOLDEN = Path(__file__).parent / "golden" / "class-cache"
CHAIN = "decode|resize(12)|random_crop(8) || flip_lr"
OPTIONS = {"variants": 2, "shards": 3, "encoding": "png"}


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A copy of the cache of ``synthetic:9``."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "released"))


def test_it_opens_and_is_intact(released: Path) -> None:
    assert verify(released) == []
    opened = open_cache(released)
    assert opened.targets("train") == {}
    images, (labels,) = CachedSplit(opened, "train").batch(np.arange(8), 0, 0)
    assert images.shape == (8, 8, 8, 3)
    assert sorted(labels.tolist()) == sorted(
        label for label, count in enumerate(opened.split("train").class_counts) for _ in range(count)
    )


def test_it_is_written_as_it_was(released: Path) -> None:
    """New fields of the manifest are left out where they say nothing."""
    content = (released / MANIFEST).read_bytes()
    assert encode_manifest(open_cache(released).manifest) == content


def test_it_is_up_to_date(released: Path) -> None:
    before = hashes(open_cache(released).manifest)
    result = precompute("synthetic:9", released, CHAIN, **OPTIONS)  # type: ignore[arg-type]
    assert result.unchanged
    assert hashes(result.manifest) == before


def test_it_is_updated_with_what_it_has(released: Path, tmp_path: Path) -> None:
    before = shard_hashes(open_cache(released).manifest)
    result = precompute("synthetic:11", released, CHAIN, **OPTIONS)  # type: ignore[arg-type]
    assert result.transformed <= 4
    assert {*before} & {*shard_hashes(result.manifest)}
    assert verify(released) == []
    assert is_clean(released)
    fresh = precompute("synthetic:11", tmp_path / "fresh", CHAIN, **OPTIONS)  # type: ignore[arg-type]
    assert [(file.records, file.targets) for file in fresh.manifest.files()] == [
        (file.records, file.targets) for file in result.manifest.files()
    ]
