"""An opened cache: read once, passed as an object."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import joulecache as jc
from joulecache.pipelines.building.precomputing import precompute
from joulecache.pipelines.cache.errors import CacheError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Path:
    made = tmp_path_factory.mktemp("cache") / "cache"
    precompute(photo_folder, made, "decode|resize(24) || flip_lr", val_fraction=0.3)
    return made


def test_a_cache_is_opened_from_its_path(folder: Path) -> None:
    cache = jc.open_cache(folder)
    assert (cache.location, cache.folder, cache.manifest) == (str(folder), folder, jc.open_manifest(folder))
    assert jc.open_cache(cache) is cache
    assert os.fspath(cache) == str(folder)


def test_index_rows_and_chains_are_those_of_a_split(folder: Path) -> None:
    cache = jc.open_cache(folder)
    assert cache.index is cache.index
    train, val = cache.rows("train"), cache.rows("val")
    assert (train.num_rows, val.num_rows) == (cache.split("train").records, cache.split("val").records)
    assert set(np.asarray(train["split"])) == {0}
    assert set(np.asarray(val["split"])) == {1}
    assert str(cache.chain()) == cache.manifest.chain
    assert not cache.chain("val").suffix
    with pytest.raises(CacheError, match="no records in split 'test'"):
        cache.rows("test")


def test_damage_is_found_by_object_and_by_path(folder: Path, tmp_path: Path) -> None:
    cache = jc.open_cache(folder)
    assert cache.verify() == jc.verify(cache) == jc.verify(folder) == []
    path = folder / cache.manifest.rejected.name
    whole = path.read_bytes()
    path.write_bytes(whole + b"\n")
    try:
        with pytest.raises(CacheError, match="truncated or changed"):
            jc.open_cache(folder)
        with pytest.raises(CacheError, match="no cache at"):
            jc.open_cache(tmp_path)
    finally:
        path.write_bytes(whole)
