"""Updates: only what changed is computed, and the result has the bytes of a new build."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caches import CHAIN, OPTIONS, build, contents, hashes, is_clean, keys_of, rejects_of, shard_hashes, times
from conftest import MakeSource

from joulecache.pipelines.building.config import ShardConfig
from joulecache.pipelines.building.precomputing import Built, precompute
from joulecache.pipelines.cache.cache import open_cache, verify
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest import MANIFEST
from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.loading.split import CachedSplit
from joulecache.transforms import Brightness, FlipLr, parse

ENCODINGS = {
    "raw arrow": {},
    "png tfrecord": {"encoding": "png", "format": "tfrecord"},
    "jpeg arrow": {"encoding": "jpeg"},
    "raw tfrecord": {"format": "tfrecord"},
}
Updatable = tuple[Path, Path, dict[str, Any]]


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path, photo_cache: Path) -> dict[str, Path]:
    """Caches of `photos`, by encoding; filled as they are needed."""
    return {"raw arrow": photo_cache}


@pytest.fixture
def source(tmp_path: Path, photo_folder: Path) -> Path:
    """The folder of `photos`, to be changed."""
    return Path(shutil.copytree(photo_folder, tmp_path / "source"))


@pytest.fixture
def cache(tmp_path: Path, photo_cache: Path) -> Path:
    """The cache of `source`, to be updated."""
    return Path(shutil.copytree(photo_cache, tmp_path / "cache"))


@pytest.fixture(
    params=[
        name if name in ("raw arrow", "png tfrecord") else pytest.param(name, marks=pytest.mark.slow)
        for name in ENCODINGS
    ]
)
def updatable(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    source: Path,
    photo_folder: Path,
    caches: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Updatable:
    """A source to be changed, its cache, and the options that it was built with."""
    options = {**OPTIONS, **ENCODINGS[request.param]}
    if request.param not in caches:
        caches[request.param] = tmp_path_factory.mktemp("built") / "cache"
        build(photo_folder, caches[request.param], **options)
    return source, Path(shutil.copytree(caches[request.param], tmp_path / "cache")), options


def check_update(source: Path, cache: Path, transformed: int, **options: Any) -> Built:
    """Update a cache, and check how many images that computes, and that the cache is that of a new build, byte for byte."""
    options = {**OPTIONS, **options}
    updated = precompute(source, cache, **options)
    options.pop("rehash", None)
    fresh = precompute(source, cache.parent / f"fresh-{len(list(cache.parent.iterdir()))}", **options)
    assert hashes(updated.manifest) == hashes(fresh.manifest)
    assert updated.manifest.splits == fresh.manifest.splits
    assert updated.manifest.class_names == fresh.manifest.class_names
    assert updated.manifest.source == fresh.manifest.source
    assert updated.transformed == transformed
    assert is_clean(cache)
    assert verify(cache) == []
    return updated


def is_up_to_date(source: Path, cache: Path, **options: Any) -> bool:
    """Build again, and return whether nothing was done."""
    before = times(cache)
    unchanged = precompute(source, cache, **{**OPTIONS, **options}).unchanged
    return unchanged and times(cache) == before


def images_of(cache: Path, key: str) -> int:
    """Return how many images a cache has of a record: two variants, or one if it is held out."""
    return 2 if key in keys_of(cache, "train") else 1


# Changed sources ------------------------------------------------------------------------------------------------------


def test_a_changed_record_alone_is_computed(updatable: Updatable) -> None:
    source, cache, options = updatable
    (source / "cat" / "00.jpg").write_bytes((source / "dog" / "01.jpg").read_bytes())
    updated = check_update(source, cache, images_of(cache, "cat/00.jpg"), **options)
    assert updated.copied > 0
    assert is_up_to_date(source, cache, **options)


def test_more_variants_compute_the_new_ones_alone(updatable: Updatable) -> None:
    source, cache, options = updatable
    old = {file.name for file in open_manifest(cache).splits["train"].files}
    updated = check_update(source, cache, 3 * len(keys_of(cache, "train")), **{**options, "variants": 5})
    assert old <= {file.name for file in updated.manifest.splits["train"].files}


def test_many_changes_at_once(updatable: Updatable) -> None:
    source, cache, options = updatable
    options["variants"] = 3
    (source / "cat" / "00.jpg").write_bytes(b"broken")
    (source / "dog" / "01.jpg").unlink()
    shutil.copy(source / "cat" / "03.jpg", source / "cat" / "added.jpg")
    precompute(source, cache, **options)
    fresh = build(source, cache.parent / "fresh", **options)
    assert hashes(open_manifest(cache)) == hashes(fresh)
    assert [reject["key"] for reject in rejects_of(cache)] == ["cat/00.jpg"]
    assert is_up_to_date(source, cache, **options)  # with a reject
    (source / "cat" / "00.jpg").write_bytes((source / "cat" / "03.jpg").read_bytes())
    check_update(source, cache, 3 if is_train("cat/00.jpg") else 1, **options)


def is_train(key: str) -> bool:
    return ShardConfig(parse(CHAIN), parse(CHAIN), val_fraction=0.3).split_of(key, None) == "train"


def test_a_damaged_shard_is_not_copied_from(updatable: Updatable) -> None:
    source, cache, options = updatable
    for file in open_manifest(cache).splits["train"].files:
        data = bytearray((cache / file.name).read_bytes())
        data[len(data) // 2] ^= 1
        (cache / file.name).write_bytes(data)
    for path in source.rglob("*.jpg"):
        os.utime(path, (1, 1))
    check_update(source, cache, len(keys_of(cache, "train")) * 2 + len(keys_of(cache, "val")), **options)


@pytest.mark.parametrize("key", ["cat/added.jpg", "ape/added.jpg"], ids=["a record", "a class"])
def test_an_added_record_alone_is_computed(source: Path, cache: Path, key: str) -> None:
    (source / key).parent.mkdir(exist_ok=True)
    shutil.copy(source / "cat" / "00.jpg", source / key)
    updated = check_update(source, cache, 2 if is_train(key) else 1)
    assert ("ape" in updated.manifest.class_names) == key.startswith("ape")


def test_a_removed_record_and_fewer_variants_compute_nothing(source: Path, cache: Path) -> None:
    (source / "cat" / "00.jpg").unlink()
    check_update(source, cache, 0)
    check_update(source, cache, 0, variants=1)


def test_a_record_that_is_moved_to_another_class(source: Path, cache: Path) -> None:
    (source / "cat" / "00.jpg").rename(source / "dog" / "00.jpg")
    check_update(source, cache, 2 if is_train("dog/00.jpg") else 1)


def test_a_class_that_is_changed_in_the_labels_file_is_read(source: Path, cache: Path) -> None:
    keys = sorted(path.relative_to(source).as_posix() for path in source.rglob("*.jpg"))
    table = {key: key.split("/")[0] for key in keys}
    labels = cache.parent / "labels.csv"

    def write() -> None:
        labels.write_text("file,label\n" + "".join(f"{key},{name}\n" for key, name in table.items()))

    write()
    assert is_up_to_date(source, cache, labels=labels)
    table["cat/00.jpg"] = "dog"
    write()
    check_update(source, cache, 0, labels=labels)
    assert is_up_to_date(source, cache, labels=labels)


def test_a_file_that_is_only_touched_is_read_and_not_computed(source: Path, cache: Path) -> None:
    shards = shard_hashes(open_manifest(cache))
    os.utime(source / "cat" / "00.jpg", (1, 1))
    assert shards == shard_hashes(check_update(source, cache, 0).manifest)
    assert is_up_to_date(source, cache)


def test_a_change_behind_the_same_size_and_time_is_found_by_content(source: Path, cache: Path) -> None:
    path = source / "cat" / "00.jpg"
    before, changed = path.stat(), bytearray(path.read_bytes())
    changed[-20] ^= 0x55
    path.write_bytes(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert is_up_to_date(source, cache)
    check_update(source, cache, images_of(cache, "cat/00.jpg"), rehash=True)


def test_a_record_in_a_tar_is_compared_by_content(
    tmp_path: Path, make_tar: MakeSource, photos: dict[str, bytes]
) -> None:
    cache = tmp_path / "cache"
    build(make_tar(photos), cache, **OPTIONS)
    changed = images_of(cache, "cat/03.jpg")
    check_update(make_tar({**photos, "cat/03.jpg": photos["dog/01.jpg"]}), cache, changed)


# Unchanged sources ----------------------------------------------------------------------------------------------------


def test_a_cache_that_is_up_to_date_is_not_touched(source: Path, cache: Path) -> None:
    assert is_up_to_date(source, cache)
    assert is_up_to_date(source, cache, shards=None, workers=3)


def test_another_suffix_rewrites_the_manifest_only(source: Path, cache: Path) -> None:
    before = times(cache)
    assert precompute(source, cache, **{**OPTIONS, "chain": CHAIN + "|brightness(0.2)"}).unchanged
    after = times(cache)
    assert before.pop(MANIFEST) != after.pop(MANIFEST)
    assert after == before
    assert [type(op) for op in CachedSplit(open_cache(cache), "train").chain.suffix] == [FlipLr, Brightness]
    assert verify(cache) == []


@pytest.mark.parametrize("how", ["shard missing", "shard cut", "index", "index keys", "rejects"])
def test_a_damaged_cache_is_built_again(source: Path, cache: Path, how: str) -> None:
    before = hashes(open_manifest(cache))
    damage(cache, how)
    assert not precompute(source, cache, **OPTIONS).unchanged
    assert hashes(open_manifest(cache)) == before
    assert verify(cache) == []


def damage(cache: Path, how: str) -> None:
    manifest = open_manifest(cache)
    file = manifest.index if how.startswith("index") else manifest.splits["train"].files[0]
    path = cache / (manifest.rejected.name if how == "rejects" else file.name)
    if how == "shard missing":
        path.unlink()
    elif how == "shard cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "index":
        path.write_bytes(bytes(file.bytes))
    elif how == "index keys":
        path.write_bytes(path.read_bytes().replace(b"cat/", b"\xff\xff\xff\xff"))
    else:
        path.write_bytes(b"\xff\n")


# Other options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "was", "now"),
    [
        ({"chain": "decode|resize(41)|random_crop(32) || flip_lr"}, "resize(40)", "resize(41)"),
        ({"chain": "decode|resize(40)|random_crop(32) || random_crop(24)"}, "central_crop(32)", "central_crop(24)"),
        ({"val_chain": "decode|resize(32)"}, "central_crop(32)", "decode|resize(32)"),
        ({"seed": 4}, "seed 3", "4"),
        ({"format": "tfrecord"}, "'arrow'", "'tfrecord'"),
        ({"encoding": "png"}, "'raw'", "'png'"),
        ({"encoding": "jpeg"}, "'raw'", "'jpeg'"),
        ({"val_fraction": 0.1}, "0.3", "0.1"),
        ({"shards": 3}, "shards 4", "3"),
    ],
)
def test_other_options_are_refused_naming_both(
    source: Path, cache: Path, options: dict[str, Any], was: str, now: str
) -> None:
    before = contents(cache)
    with pytest.raises(CacheError, match="pass --replace to replace it, or choose another folder") as caught:
        precompute(source, cache, **{**OPTIONS, **options})
    assert str(caught.value).index(was) < str(caught.value).rindex(now)
    assert contents(cache) == before


def test_another_jpeg_quality_is_refused_naming_both(tmp_path: Path, photo_folder: Path) -> None:
    build(photo_folder, tmp_path / "cache", encoding="jpeg", quality=80, limit=3)
    with pytest.raises(CacheError, match="quality 80, not 95"):
        build(photo_folder, tmp_path / "cache", encoding="jpeg", limit=3)


def test_replace_swaps_and_a_reader_keeps_its_old_pixels(tmp_path: Path, source: Path, cache: Path) -> None:
    reader = CachedSplit(open_cache(cache), "train")
    rows = np.arange(len(reader))
    before = reader.images(rows, 4).copy()
    other: dict[str, Any] = {"chain": "decode|resize(16)", "shards": 3, "seed": 9}
    replaced = build(source, cache, **other, replace=True)
    np.testing.assert_array_equal(reader.images(rows, 4), before)
    assert CachedSplit(open_cache(cache), "train").image_shape == (16, 16, 3)
    assert hashes(replaced) == hashes(build(source, tmp_path / "fresh", **other))
    assert is_clean(cache)
    assert not precompute(source, cache, **other, replace=True).unchanged  # even what is up to date
