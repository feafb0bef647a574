"""An opened cache: read once, passed as an object."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from caches import cached_images

import joulecache as jc
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.local_copy import copies_folder


def test_a_cache_is_opened_from_its_path(photo_cache: Path) -> None:
    cache = jc.open_cache(photo_cache)
    assert (cache.location, cache.folder) == (str(photo_cache), photo_cache)
    assert cache.manifest == jc.open_manifest(photo_cache)
    assert jc.open_cache(cache) is cache
    assert os.fspath(cache) == str(photo_cache)


def test_rows_images_and_chains_are_those_of_a_split(photo_cache: Path) -> None:
    cache = jc.open_cache(photo_cache)
    assert cache.index is cache.index
    for number, name in enumerate(("train", "val")):
        rows = cache.rows(name)
        assert rows.num_rows == cache.split(name).records
        assert set(np.asarray(rows["split"])) == {number}
    images = cache.images("train", variant=1).views(np.arange(cache.split("train").records))
    np.testing.assert_array_equal(images, cached_images(photo_cache, "train", 1))
    assert str(cache.chain()) == cache.manifest.chain
    assert not cache.chain("val").suffix
    with pytest.raises(CacheError, match="no records in split 'test'"):
        cache.rows("test")


def test_an_opened_cache_stays_where_it_is_when_the_working_directory_changes(
    photo_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photo_cache.parent)
    cache = jc.open_cache(photo_cache.name)
    monkeypatch.chdir(tmp_path)
    assert cache.location == photo_cache.name
    assert cache.verify() == []
    assert cache.index.num_rows == cache.manifest.records


def test_a_home_that_no_shell_expanded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for use in (
        lambda: jc.open_cache("~/c"),
        lambda: jc.precompute("synthetic:2", "~/c", "decode|resize(8)"),
        lambda: jc.precompute("~/c", "cache", "decode|resize(8)"),
    ):
        with pytest.raises(ValueError, match="only shells expand '~', and not after '=': write '/home/me/c'"):
            use()
    assert not list(tmp_path.iterdir())


def test_copies_of_remote_caches_are_in_the_home_or_where_a_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for given, expected in (
        (None, Path("/home/me/.cache/joulecache")),
        ("~/stage", Path("/home/me/stage")),  # as in a Dockerfile
        ("stage", tmp_path / "stage"),
    ):
        if given is not None:
            monkeypatch.setenv("JOULECACHE_STAGE", given)
        assert copies_folder() == expected
    monkeypatch.setenv("JOULECACHE_STAGE", "~nobody-here/stage")
    with pytest.raises(CacheError, match="has no home folder to copy caches to: set JOULECACHE_STAGE to a folder"):
        copies_folder()


def test_damage_is_found_by_object_and_by_path(photo_cache: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(photo_cache, tmp_path / "cache"))
    cache = jc.open_cache(folder)
    assert cache.verify() == jc.verify(cache) == jc.verify(folder) == []
    path = folder / cache.manifest.rejected.name
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(CacheError, match="truncated or changed"):
        jc.open_cache(folder)
    with pytest.raises(CacheError, match="no cache at"):
        jc.open_cache(tmp_path)
