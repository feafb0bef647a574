"""Builds: the same pixels as the plain loop and the same bytes however they are made; nothing lost, nothing half-built."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray
from PIL import Image

from joulecache.pipelines.building.beam_graph import run_specs
from joulecache.pipelines.building.config import BuildError, ShardConfig
from joulecache.pipelines.building.images import BatchedDraws, levels_of, make_images, mean_image_bytes
from joulecache.pipelines.building.memory_budget import MemoryBudget
from joulecache.pipelines.building.precomputing import BuildProgress, Built, precompute
from joulecache.pipelines.building.shard import build_shard
from joulecache.pipelines.building.specs import ShardSpec
from joulecache.pipelines.building.work_folder import WORK, hold_work_folder
from joulecache.pipelines.cache.cache import verify
from joulecache.pipelines.cache.manifest import (
    MANIFEST,
    CacheError,
    Manifest,
    open_manifest,
    read_index,
    read_manifest,
)
from joulecache.pipelines.cache.shards import SPLITS, Encoding, Format, Levels, map_images, read_encoded
from joulecache.pipelines.energy import Energy
from joulecache.pipelines.loading import CachedSplit
from joulecache.pipelines.source import ImageFile, Record, open_source
from joulecache.transforms import (
    Brightness,
    CentralCrop,
    Chain,
    Contrast,
    Decode,
    FlipLr,
    Op,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    ResizeShorter,
    parse,
)
from joulecache.transforms.chain import apply
from joulecache.transforms.images import as_array
from joulecache.transforms.randomness import key_hash, random_words

MakeSource = Callable[[Mapping[str, bytes]], Path]
Pixels = NDArray[np.uint8]

CHAIN = "decode|resize(40)|random_crop(32) || flip_lr"
LONG = parse("decode|resize_shorter(48)|random_crop(40)|brightness(0.5)|random_resized_crop(24)|flip_lr|contrast(0.5)")
FEW = 12  # photos, where more would only take longer


def build(source: str | Path, cache: Path, chain: Chain | str = CHAIN, **options: Any) -> Manifest:
    return precompute(source, cache, chain, **options).manifest


def hashes(manifest: Manifest) -> dict[str, str]:
    return {file.name: file.sha256 for file in manifest.files()}


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path under a folder, with what is in it."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def index(cache: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_index(cache, open_manifest(cache)).to_pylist()
    return rows


def rejects(cache: Path) -> list[dict[str, Any]]:
    lines = (cache / open_manifest(cache).rejected.name).read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def keys_of(cache: Path, split: str) -> list[str]:
    return [row["key"] for row in index(cache) if row["split"] == SPLITS.index(split)]


def online(chain: Chain, data: bytes, key: str, seed: int, variant: int, epoch: int) -> Pixels:
    """The plain loop's body: the whole chain on one image, by the reference kernels."""
    hashed = [key_hash(key)]
    head = random_words(chain.prefix, 0, seed, hashed, variant)[0]
    tail = random_words(chain.suffix, chain.cut, seed, hashed, epoch)[0]
    return apply(chain.suffix, apply(chain.prefix, data, head), tail)


def cached_images(cache: Path, split: str, variant: int) -> list[Pixels]:
    """What a cache holds, decoded, in the order of the index."""
    manifest = open_manifest(cache)
    listed = manifest.split(split)
    found: list[Pixels] = []
    for file in listed.variant_files(variant):
        if manifest.encoding == "raw":
            height, width, channels = listed.image_shape
            assert height is not None
            assert width is not None
            found += list(map_images(cache / file.name, file, (height, width, channels)))
        else:
            decode = Decode(channels=listed.image_shape[2])
            for image in read_encoded(cache / file.name, file):
                found.append(as_array(decode.pixels(bytes(image))))
    return found


# ------------------------------------------------------------------------------------------ the same pixels

CUTS = [(cut, "raw", "arrow") for cut in range(2, 8)] + [(cut, "png", "tfrecord") for cut in (1, 3, 5, 7)]
CUTS += [(5, "raw", "tfrecord"), (3, "png", "arrow")]


@pytest.mark.parametrize(("cut", "encoding", "kind"), CUTS)
def test_cached_prefix_and_loaded_suffix_are_the_chain_run_online(
    tmp_path: Path, photo_folder: Path, photos: dict[str, bytes], cut: int, encoding: str, kind: str
) -> None:
    if encoding == "raw" and cut == 2:
        chain = Chain((Decode(), Resize(48), *LONG.ops[2:]), 2)  # raw needs one size
    else:
        chain = Chain(LONG.ops, cut)
    options = {"encoding": encoding, "format": kind, "val_fraction": 0, "limit": FEW, "seed": 2**64 - 1}
    build(photo_folder, tmp_path / "cache", chain, variants=3, **options)
    seed = 2**64 - 1
    keys = keys_of(tmp_path / "cache", "train")
    assert len(keys) == FEW
    for epoch in (0, 1, 2, 3, 2**31):
        expected = [online(chain, photos[key], key, seed, epoch % 3, epoch) for key in keys]
        if cut in (1, 2) and encoding == "png":  # of varying size: no batches
            words = random_words(chain.suffix, cut, seed, [key_hash(key) for key in keys], epoch)
            cached = cached_images(tmp_path / "cache", "train", epoch % 3)
            got = [apply(chain.suffix, image, drawn) for image, drawn in zip(cached, words, strict=True)]
        else:
            got = list(CachedSplit(tmp_path / "cache", "train").images(np.arange(FEW), epoch))
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(one, other)


sides = st.integers(8, 40)
small_ops: st.SearchStrategy[Op] = st.one_of(
    st.builds(Resize, sides | st.tuples(sides, sides)),
    st.builds(ResizeShorter, sides),
    st.builds(CentralCrop, sides),
    st.builds(RandomCrop, sides),
    st.builds(RandomResizedCrop, sides),
    st.builds(FlipLr),
    st.builds(Brightness, st.floats(0, 1)),
    st.builds(Contrast, st.floats(0, 1)),
)


@given(st.lists(small_ops, max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_any_chain_gives_its_own_pixels_at_any_cut(
    photo_folder: Path, photos: dict[str, bytes], ops: list[Op], data: st.DataObject
) -> None:
    chain = Chain((Decode(channels=data.draw(st.sampled_from([1, 3]))), *ops), data.draw(st.integers(1, 1 + len(ops))))
    seed, variant, epoch = data.draw(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 1), st.integers(0, 2**32 - 1)))
    try:
        recipe = ShardConfig(chain, chain, 2, encoding="png", val_fraction=0, seed=seed)
        expected = {key: online(chain, photos[key], key, seed, variant, epoch) for key in ("cat/00.jpg", "dog/01.jpg")}
    except ValueError:  # a crop larger than its image
        return
    units = tuple(unit for unit in open_source(photo_folder).units if unit.name in expected)
    with TemporaryDirectory() as folder:
        Path(folder, WORK).mkdir()
        result = build_shard(ShardSpec(folder, 0, 1, units, 3, recipe, 1))
        assert result.rejects == ()
        file = result.files["train"][variant]
        images = [bytes(image) for image in read_encoded(Path(folder, file.name), file)]
    for (key, pixels), image in zip(expected.items(), images, strict=True):
        cached = Decode(channels=chain.decode.channels).pixels(image)
        words = random_words(chain.suffix, chain.cut, seed, [key_hash(key)], epoch)[0]
        np.testing.assert_array_equal(apply(chain.suffix, cached, words), pixels)


def test_with_a_variant_for_each_epoch_the_cached_stream_is_the_online_stream(
    tmp_path: Path, photo_folder: Path, photos: dict[str, bytes]
) -> None:
    chain = parse("decode|random_resized_crop(24)|brightness(0.3) || flip_lr")
    build(photo_folder, tmp_path / "cache", chain, variants=3, seed=5, limit=FEW)
    split, keys = CachedSplit(tmp_path / "cache", "train"), keys_of(tmp_path / "cache", "train")
    for epoch in range(3):
        for key, image in zip(keys, split.images(np.arange(len(keys)), epoch), strict=True):
            np.testing.assert_array_equal(image, chain(photos[key], key=key, seed=5, n=epoch))


def test_variants_are_different_draws(tmp_path: Path, photo_folder: Path) -> None:
    build(photo_folder, tmp_path / "cache", "decode|random_crop(16)", variants=3, limit=FEW)
    variants = [np.stack(cached_images(tmp_path / "cache", "train", variant)) for variant in range(3)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        same = (variants[one] == variants[other]).all(axis=(1, 2, 3))
        assert same.mean() < 0.2


def test_another_seed_gives_other_pixels(tmp_path: Path, photo_folder: Path) -> None:
    chain = "decode|resize(40)|random_crop(16)"
    one, other = (build(photo_folder, tmp_path / str(seed), chain, seed=seed, limit=FEW) for seed in (1, 2))
    assert {file.name for file in one.splits["train"].files}.isdisjoint(
        file.name for file in other.splits["train"].files
    )
    assert one.splits["val"].files == other.splits["val"].files


def test_held_out_records_are_not_augmented(tmp_path: Path, photo_folder: Path, photos: dict[str, bytes]) -> None:
    chain = "decode|random_resized_crop(24)|brightness(0.5) || flip_lr"
    manifest = build(photo_folder, tmp_path / "cache", chain, variants=3, val_fraction=0.4)
    assert manifest.splits["val"].chain == "decode|resize_shorter(24)|central_crop(24)"
    assert manifest.splits["val"].variants == 1
    plain = parse("decode|resize_shorter(24)|central_crop(24)")
    cached = cached_images(tmp_path / "cache", "val", 0)
    for key, image in zip(keys_of(tmp_path / "cache", "val"), cached, strict=True):
        np.testing.assert_array_equal(image, plain(photos[key]))


def test_held_out_records_get_the_chain_that_is_given(
    tmp_path: Path, photo_folder: Path, photos: dict[str, bytes]
) -> None:
    val = parse("decode(1)|resize((20, 30)) || central_crop(16)")
    build(photo_folder, tmp_path / "cache", CHAIN, val_chain=str(val), val_fraction=0.4)
    split, keys = CachedSplit(tmp_path / "cache", "val"), keys_of(tmp_path / "cache", "val")
    assert split.image_shape == (16, 16, 1)
    for key, image in zip(keys, split.images(np.arange(len(keys)), 0), strict=True):
        np.testing.assert_array_equal(image, val(photos[key]))


def test_a_record_stays_in_its_split_whatever_else_changes(tmp_path: Path, photo_folder: Path) -> None:
    build(photo_folder, tmp_path / "a", CHAIN, seed=1, val_fraction=0.4)
    build(photo_folder, tmp_path / "b", "decode|resize(8)", seed=2, shards=3, val_fraction=0.4)
    assert set(keys_of(tmp_path / "a", "val")) == set(keys_of(tmp_path / "b", "val"))


@given(st.floats(0, 0.9), st.floats(0, 0.9))
def test_a_larger_held_out_share_holds_the_smaller_one(one: float, other: float) -> None:
    chain = parse("decode|resize(8)")
    low, high = (ShardConfig(chain, chain, val_fraction=share) for share in sorted([one, other]))
    keys = [f"{number}.jpg" for number in range(400)]
    held, more = ({key for key in keys if recipe.split_of(key, None) == "val"} for recipe in (low, high))
    assert held <= more
    assert abs(len(more) / 400 - max(one, other)) < 0.1


def test_jpeg_keeps_the_quality_that_is_asked_for(tmp_path: Path, photo_folder: Path, photos: dict[str, bytes]) -> None:
    chain = parse("decode|resize(32)")
    for quality, options in ((95, {}), (30, {"quality": 30})):
        cache = tmp_path / str(quality)
        manifest = build(photo_folder, cache, chain, encoding="jpeg", val_fraction=0, limit=FEW, **options)
        assert manifest.quality == quality
        (file,) = manifest.splits["train"].files
        for key, image in zip(keys_of(cache, "train"), read_encoded(cache / file.name, file), strict=True):
            expected = io.BytesIO()
            Image.fromarray(chain(photos[key])).save(expected, "JPEG", quality=quality)
            assert bytes(image) == expected.getvalue()


# ------------------------------------------------------------------------------------------ the same bytes


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> dict[str, str]:
    """The files of a build by one thread in one go, as {name: SHA-256}."""
    cache = tmp_path_factory.mktemp("undisturbed")
    return hashes(build(photo_folder, cache, workers=1, variants=2, shards=4, val_fraction=0.2))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"workers": 2},
        {"workers": 8},
        {"beam_options": ["--direct_running_mode=multi_threading", "--direct_num_workers=2"]},
    ],
    ids=str,
)
def test_the_number_of_workers_does_not_change_a_byte(
    tmp_path: Path, photo_folder: Path, undisturbed: dict[str, str], options: dict[str, Any]
) -> None:
    manifest = build(photo_folder, tmp_path / "cache", variants=2, shards=4, val_fraction=0.2, **options)
    assert hashes(manifest) == undisturbed
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {*undisturbed, MANIFEST}


def test_a_plain_loop_without_beam_gives_the_same_bytes(
    tmp_path: Path, photo_folder: Path, undisturbed: dict[str, str]
) -> None:
    source, chain = open_source(photo_folder), parse(CHAIN)
    recipe = ShardConfig(chain, chain.for_validation(), 2, val_fraction=0.2)
    (tmp_path / WORK).mkdir()
    files = {}
    for shard in range(4):
        units = tuple(unit for unit in source.units if key_hash(unit.name) * 4 >> 64 == shard)
        result = build_shard(ShardSpec(str(tmp_path), shard, 4, units, 3, recipe, 2))
        files.update({file.name: file.sha256 for split in result.files.values() for file in split})
    assert files == {name: digest for name, digest in undisturbed.items() if name.startswith(SPLITS)}


def test_a_tar_gives_the_shards_of_its_folder(
    tmp_path: Path, make_tar: MakeSource, photos: dict[str, bytes], undisturbed: dict[str, str]
) -> None:
    manifest = build(make_tar(photos), tmp_path / "cache", variants=2, shards=4, val_fraction=0.2)
    shards = {file.name for split in manifest.splits.values() for file in split.files}
    assert shards == {name for name in undisturbed if name.startswith(SPLITS)}


# ------------------------------------------------------------------------------------------ nothing lost


def test_broken_images_are_listed_with_key_and_reason(
    tmp_path: Path, make_folder: MakeSource, photos: dict[str, bytes]
) -> None:
    broken = {"cat/zero.jpg": b"", "dog/text.png": b"not an image", "été/cut.jpg": photos["cat/00.jpg"][:500]}
    source = make_folder({**photos, **broken})
    manifest = build(source, tmp_path / "cache", variants=2, shards=3, max_reject_rate=0.2, val_fraction=0.2)
    listed = rejects(tmp_path / "cache")
    assert [reject["key"] for reject in listed] == sorted(broken)
    assert all(reject["reason"] for reject in listed)
    assert [reject["source_bytes"] for reject in listed] == [0, 12, 500]
    assert manifest.rejected.records == 3
    assert manifest.source["records"] == 33
    for split in manifest.splits.values():
        for variant in range(split.variants):
            assert sum(file.records for file in split.variant_files(variant)) == split.records
    assert {row["key"] for row in index(tmp_path / "cache")} == set(photos)
    assert verify(tmp_path / "cache") == []


def test_the_images_beside_broken_ones_keep_their_pixels(
    tmp_path: Path, make_folder: MakeSource, photos: dict[str, bytes]
) -> None:
    source = make_folder({**photos, **{f"cat/{number:02d}x.jpg": b"" for number in range(0, 30, 5)}})
    build(source, tmp_path / "cache", variants=2, max_reject_rate=0.2, val_fraction=0)
    chain = parse(CHAIN)
    for variant in range(2):
        for key, image in zip(
            keys_of(tmp_path / "cache", "train"), cached_images(tmp_path / "cache", "train", variant), strict=True
        ):
            np.testing.assert_array_equal(image, Chain(chain.prefix, chain.cut)(photos[key], key=key, n=variant))


def test_too_many_rejects_fail_and_show_nothing(
    tmp_path: Path, make_folder: MakeSource, photos: dict[str, bytes]
) -> None:
    source = make_folder({**photos, "cat/a.jpg": b"", "cat/b.jpg": b""})
    with pytest.raises(BuildError, match=r"2 of 32 .* 0\.05 allows: cat/a\.jpg: .* pass --max-reject-rate 0\.063"):
        build(source, tmp_path / "deep" / "cache")
    with pytest.raises(CacheError, match="no cache at"):
        open_manifest(tmp_path / "deep" / "cache")


def test_the_advised_reject_rate_is_enough_and_nothing_is_built_twice(
    tmp_path: Path, make_folder: MakeSource, photos: dict[str, bytes]
) -> None:
    source = make_folder({**photos, **{f"cat/{name}.jpg": b"" for name in "abcde"}})
    with pytest.raises(BuildError) as caught:
        build(source, tmp_path / "cache", shards=4)
    advised = float(str(caught.value).split("--max-reject-rate ")[1])
    built = precompute(source, tmp_path / "cache", CHAIN, shards=4, max_reject_rate=advised)
    assert built.manifest.rejected.records == 5
    assert built.resumed_shards == 4
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {*hashes(built.manifest), MANIFEST}
    again = precompute(source, tmp_path / "other", CHAIN, shards=4, max_reject_rate=advised)
    assert hashes(again.manifest) == hashes(built.manifest)


def test_a_rebuild_that_fails_leaves_the_cache_as_it_was(
    tmp_path: Path, make_folder: MakeSource, photos: dict[str, bytes]
) -> None:
    source = make_folder(photos)
    build(source, tmp_path / "cache")
    before = contents(tmp_path / "cache")
    for number in range(20):
        (source / "cat" / f"x{number}.jpg").write_bytes(photos["dog/01.jpg"] if number % 2 else b"")
    with pytest.raises(BuildError, match="max_reject_rate"):
        build(source, tmp_path / "cache")
    after = contents(tmp_path / "cache")
    assert {name: after[name] for name in before} == before
    assert verify(tmp_path / "cache") == []


def test_a_source_of_broken_images_only_is_never_built(tmp_path: Path, make_folder: MakeSource) -> None:
    with pytest.raises(BuildError, match=r"2 of 2 records rejected") as caught:
        build(make_folder({"a.jpg": b"", "b.jpg": b""}), tmp_path / "cache", max_reject_rate=1)
    assert "pass --max-reject-rate" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def parquet(path: Path, photos: Sequence[bytes | None], labels: Sequence[int | None], names: Sequence[str]) -> Path:
    images = pa.array(
        [{"bytes": photo, "path": None} for photo in photos], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    features = {"info": {"features": {"label": {"names": list(names)}}}}
    table = pa.table({"image": images, "label": pa.array(labels, pa.int64())})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path, row_group_size=4)
    return path


def test_a_label_that_is_no_class_is_a_reject(tmp_path: Path, photos: dict[str, bytes]) -> None:
    labels = [0, 1, 2, 3, -1, None, 10**12, 1, 0, 1]
    images = [None if row == 8 else photo for row, photo in enumerate(photos.values()) if row < 10]
    source = parquet(tmp_path / "photos.parquet", images, labels, ["a", "b", "c"])
    manifest = build(source, tmp_path / "cache", max_reject_rate=0.9, val_fraction=0)
    listed = {reject["key"]: reject["reason"] for reject in rejects(tmp_path / "cache")}
    assert list(listed) == [f"photos.parquet#{row}" for row in (3, 4, 5, 6, 8)]
    assert listed["photos.parquet#3"] == "label 3 is none of the 3 classes"
    assert manifest.splits["train"].class_counts == (1, 3, 1)
    assert manifest.class_names == ("a", "b", "c")


def test_an_image_that_is_smaller_than_its_crop_is_a_reject(
    tmp_path: Path, make_folder: MakeSource, photos: dict[str, bytes]
) -> None:
    tiny = io.BytesIO()
    Image.new("RGB", (31, 90)).save(tiny, "PNG")
    source = make_folder({**photos, "cat/tiny.png": tiny.getvalue()})
    build(source, tmp_path / "cache", "decode|random_crop(32)")
    (reject,) = rejects(tmp_path / "cache")
    assert reject["key"] == "cat/tiny.png"
    assert "crop 32x32 is larger than the image 90x31" in reject["reason"]


def test_an_image_that_the_suffix_could_not_take_is_a_reject(
    tmp_path: Path, make_folder: MakeSource, photos: dict[str, bytes]
) -> None:
    tiny = io.BytesIO()
    Image.new("RGB", (31, 90)).save(tiny, "PNG")
    source = make_folder({**photos, "cat/tiny.png": tiny.getvalue()})
    build(
        source,
        tmp_path / "cache",
        "decode || random_crop(32)",
        val_chain="decode|resize(32)",
        val_fraction=0,
        encoding="png",
    )
    assert [reject["key"] for reject in rejects(tmp_path / "cache")] == ["cat/tiny.png"]


def test_an_image_that_jpeg_cannot_hold_is_a_reject(
    tmp_path: Path, make_folder: MakeSource, photos: dict[str, bytes]
) -> None:
    wide = io.BytesIO()
    Image.new("RGB", (65_520, 1)).save(wide, "PNG")
    source = make_folder({**photos, "cat/wide.png": wide.getvalue()})
    build(source, tmp_path / "cache", "decode", encoding="jpeg")
    (reject,) = rejects(tmp_path / "cache")
    assert "1x65520 pixels cannot be saved as jpeg" in reject["reason"]


def test_a_file_that_is_gone_when_it_is_read_is_a_reject(tmp_path: Path, photo_folder: Path) -> None:
    units = (*open_source(photo_folder).units[:3], ImageFile("gone.jpg", str(tmp_path), 0, None, 5, 0))
    (tmp_path / WORK).mkdir()
    chain = parse("decode|resize(8)")
    result = build_shard(ShardSpec(str(tmp_path), 0, 1, units, 3, ShardConfig(chain, chain, val_fraction=0), 2))
    (reject,) = result.rejects
    assert (reject.key, reject.mtime_ns) == ("gone.jpg", None)
    assert reject.reason.startswith("cannot be read: ")
    assert result.files["train"][0].records == 3


def test_sidecars_are_counted(tmp_path: Path, make_folder: MakeSource, photos: dict[str, bytes]) -> None:
    source = make_folder({**photos, "README.md": b"", "cat/Thumbs.db": b"", "cat/.DS_Store": b"", "dog/notes.md": b""})
    manifest = build(source, tmp_path / "cache")
    assert sum(manifest.source["skipped"].values()) == 4
    assert manifest.source["skipped"][".md"] == 2
    assert manifest.source["records"] == 30


def test_a_limit_takes_that_many_records(tmp_path: Path, photo_folder: Path) -> None:
    manifest = build(photo_folder, tmp_path / "cache", limit=7)
    assert manifest.source["records"] == manifest.index.records == 7


def test_shards_without_records_have_no_file(tmp_path: Path, photo_folder: Path) -> None:
    manifest = build(photo_folder, tmp_path / "cache", limit=3, shards=20, val_fraction=0)
    assert manifest.shards == 20
    assert 1 <= len(manifest.splits["train"].files) <= 3
    assert manifest.splits["val"].files == ()
    assert len(CachedSplit(tmp_path / "cache", "train")) == 3


# ------------------------------------------------------------------------------------------ what the manifest says


@pytest.mark.parametrize(("encoding", "channels"), [("raw", 3), ("png", 1), ("jpeg", 3)])
def test_statistics_are_those_of_the_cached_pixels(
    tmp_path: Path, photo_folder: Path, encoding: str, channels: int
) -> None:
    chain = f"decode({channels})|resize(20)|brightness(0.9)"
    manifest = build(photo_folder, tmp_path / "cache", chain, variants=2, shards=3, encoding=encoding, val_fraction=0.3)
    for name in ("train", "val"):
        split = manifest.splits[name]
        variants = [cached_images(tmp_path / "cache", name, variant) for variant in range(split.variants)]
        pixels = np.concatenate([np.stack(images) for images in variants]).reshape(-1, channels).astype(np.float64)
        np.testing.assert_allclose(split.mean, pixels.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(split.std, pixels.std(axis=0), rtol=1e-10)
        labels = [row["label"] for row in index(tmp_path / "cache") if row["split"] == SPLITS.index(name)]
        assert split.class_counts == tuple(Counter(labels)[label] for label in range(3))


@pytest.mark.parametrize("kind", ["arrow"])
def test_the_index_is_in_the_order_of_the_shards_of_every_variant(
    tmp_path: Path, photo_folder: Path, photos: dict[str, bytes], kind: Format
) -> None:
    manifest = build(photo_folder, tmp_path / "cache", variants=2, shards=4, val_fraction=0.3, format=kind)
    rows = index(tmp_path / "cache")
    for name, split in manifest.splits.items():
        listed = [row for row in rows if row["split"] == SPLITS.index(name)]
        for variant in range(split.variants):
            stored: list[dict[str, Any]] = []
            for file in split.variant_files(variant):
                with pa.ipc.open_file(pa.memory_map(str(tmp_path / "cache" / file.name))) as reader:
                    stored += reader.read_all().select(["key", "label", "key_hash"]).to_pylist()
            assert stored == [{name: row[name] for name in ("key", "label", "key_hash")} for row in listed]
    assert rows == sorted(rows, key=lambda row: (row["split"], row["shard"], row["row"]))
    for row in rows:
        assert row["key_hash"] == key_hash(row["key"])
        assert manifest.class_names[row["label"]] == row["key"].split("/")[0]
        assert row["source_bytes"] == len(photos[row["key"]])


def test_the_energy_of_the_build_has_a_passport(tmp_path: Path, photo_folder: Path) -> None:
    energy = build(photo_folder, tmp_path / "cache", limit=FEW).energy
    assert energy is not None
    measured = Energy.from_json(energy["energy"])
    assert measured.total_j > 0
    assert measured.written_bytes is None or measured.written_bytes > 0
    assert energy["passport"]["method"] == measured.method


def test_versions_of_what_shapes_pixels_are_kept(tmp_path: Path, photo_folder: Path) -> None:
    versions = build(photo_folder, tmp_path / "cache", limit=FEW).versions
    assert versions["numpy"] == np.__version__
    assert set(versions) >= {"pillow", "pyarrow", "libjpeg_turbo"}


def test_progress_grows_to_the_number_of_records(tmp_path: Path, photo_folder: Path) -> None:
    told: list[BuildProgress] = []
    manifest = build(photo_folder, tmp_path / "cache", shards=4, progress=told.append)
    assert [now.done for now in told] == sorted(now.done for now in told)
    last = told[-1]
    assert (last.done, last.records, last.resumed_records, last.rejects) == (30, 30, 0, 0)
    assert last.written_bytes == sum(file.bytes for split in manifest.splits.values() for file in split.files)
    assert last.energy_j is not None
    assert 0 < last.energy_j <= Energy.from_json((manifest.energy or {})["energy"]).total_j
    assert last.records_per_s > 0


@given(
    image=st_numpy.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))),
    times=st.sampled_from([1, 60, 300]),
)
@settings(deadline=None, max_examples=50)
def test_levels_are_exact(image: NDArray[np.uint8], times: int) -> None:
    tall = np.concatenate([image] * times)
    wide = tall.astype(np.int64).reshape(-1, image.shape[2])
    expected = Levels(len(wide), tuple(wide.sum(axis=0).tolist()), tuple((wide**2).sum(axis=0).tolist()))
    assert levels_of(tall) == expected


def test_levels_of_a_large_white_image_are_exact() -> None:
    assert levels_of(np.full((1025, 700, 3), 255, np.uint8)) == Levels(
        1025 * 700, (255 * 1025 * 700,) * 3, (255 * 255 * 1025 * 700,) * 3
    )


# ------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": 0}, "variants must be a whole number from 1 to 999999, got 0"),
        ({"variants": True}, "variants"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"shards": 0}, "shards"),
        ({"shards": 100_000}, "shards"),
        ({"workers": 0}, "workers"),
        ({"workers": 1.5}, "workers"),
        ({"format": "csv"}, "format must be one of arrow, tfrecord, got 'csv'"),
        ({"encoding": "webp"}, "encoding must be one of raw, jpeg, png, got 'webp'"),
        ({"quality": 90}, "quality needs encoding jpeg, got quality 90 with raw"),
        ({"encoding": "jpeg", "quality": 0}, "quality must be a whole number from 1 to 100, got 0"),
        ({"val_fraction": 1}, "val_fraction must be a number from 0 to 0.9, got 1"),
        ({"val_fraction": float("nan")}, "val_fraction"),
        ({"max_reject_rate": -0.1}, "max_reject_rate must be a number from 0 to 1, got -0.1"),
        ({"chain": "decode|resize(20)|random_crop(24)"}, "crop 24x24 is larger than the image 20x20"),
        ({"chain": "decode|resize(40) || random_crop(48)"}, "crop 48x48 is larger than the image 40x40"),
        ({"chain": "decode|resise(20)"}, "did you mean 'resize'"),
        (
            {"chain": "decode|resize_shorter(20)"},
            "varying size, but raw needs one size: .* choose encoding png or jpeg",
        ),
        ({"val_chain": "decode"}, "val_chain 'decode' leaves images of varying size"),
        ({"beam_options": ["--runer=X"]}, "unknown Beam option '--runer=X': did you mean --runner?"),
        ({"beam_options": ["--xyzzy"]}, "unknown Beam option '--xyzzy'$"),
        ({"beam_options": ["stray"]}, "unknown Beam option 'stray'"),
        ({"beam_options": ["--runner"]}, "--runner: expected one argument"),
        ({"beam_options": ["--direct_num_workers=many"]}, "invalid int value: 'many'"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_written(
    tmp_path: Path, photo_folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(photo_folder, tmp_path / "cache", **{"chain": CHAIN, **options})
    assert list(tmp_path.iterdir()) == []


def test_a_build_runs_on_the_beam_runner_that_is_named(tmp_path: Path, photo_folder: Path) -> None:
    assert (
        build(photo_folder, tmp_path / "cache", limit=FEW, beam_options=["--runner=FnApiRunner"]).index.records == FEW
    )


def test_an_unknown_beam_runner_is_refused_and_leaves_nothing(tmp_path: Path, photo_folder: Path) -> None:
    with pytest.raises(ValueError, match="Nonsense"):
        build(photo_folder, tmp_path / "cache", beam_options=["--runner=Nonsense"])
    assert list(tmp_path.iterdir()) == []


def test_more_than_the_disk_holds_is_refused_before_the_work(tmp_path: Path, photo_folder: Path) -> None:
    with pytest.raises(BuildError, match="MB free: choose another disk"):
        build(photo_folder, tmp_path / "cache", "decode|resize(4096)", variants=999_999, shards=4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_the_room_for_encoded_images_is_estimated_on_a_sample(photo_folder: Path, encoding: Encoding) -> None:
    chain = parse("decode|resize(64)|brightness(0.5)")
    quality = 95 if encoding == "jpeg" else None
    recipe = ShardConfig(chain, chain, variants=3, encoding=encoding, quality=quality)
    units = open_source(photo_folder).units
    sizes = []
    for unit in units:
        [record] = unit.read()
        words = BatchedDraws([(record.key, "train")], recipe).take(record.key, "train")
        sizes += [len(image) for image in make_images(record.data, words, recipe, "train")[0]]
    assert mean_image_bytes(units, recipe) == pytest.approx(3 * np.mean(sizes), rel=0.05)
    broken = [ImageFile("broken.jpg", str(photo_folder), 0, None, 5, 0)]
    assert mean_image_bytes(broken, recipe) == 3 * (256 << 10)
    assert mean_image_bytes([*units, *broken], recipe) == pytest.approx(3 * np.mean(sizes), rel=0.05)


def test_the_room_for_raw_images_is_known(photo_folder: Path) -> None:
    chain = parse("decode(1)|resize((8, 10))")
    assert mean_image_bytes([], ShardConfig(chain, chain, variants=3)) == 3 * 80


def test_threads_hold_no_more_memory_than_there_is() -> None:
    budget, lock, held = MemoryBudget(100), threading.Lock(), [0]

    def change(size: int) -> None:
        with lock:
            held.append(held[-1] + size)

    def work(size: int) -> None:
        with budget.hold(size):
            change(min(size, 100))
            time.sleep(0.0005)
            change(-min(size, 100))

    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(work, [1, 40, 70, 99, 100, 5000] * 20):
            pass
    assert max(held) == 100
    assert held[-1] == 0


def test_a_large_image_is_not_kept_waiting_by_a_stream_of_small_ones() -> None:
    budget, stop = MemoryBudget(100), threading.Event()

    def stream() -> None:
        while not stop.is_set():
            with budget.hold(40):
                time.sleep(0.0005)

    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(stream)
        try:
            with budget.hold(100):
                pass
        finally:
            stop.set()


def test_what_fails_gives_its_memory_back() -> None:
    budget = MemoryBudget(100)
    for _ in range(3):
        with pytest.raises(KeyError), budget.hold(80):
            raise KeyError


@dataclasses.dataclass(frozen=True)
class FaultyUnit:
    """A unit that raises what no unit should."""

    error: type[BaseException]
    name: str = "faulty"
    count: int = 1
    split: None = None
    mtime_ns: int = 0
    size_bytes: int | None = None

    def record_keys(self) -> Iterator[str]:
        yield "faulty"

    def read(self) -> Iterator[Record]:
        raise self.error


def run_faulty(folder: Path, error: type[BaseException]) -> None:
    (folder / WORK).mkdir()
    chain = parse("decode|resize(8)")
    run_specs([ShardSpec(str(folder), 0, 1, (FaultyUnit(error),), 1, ShardConfig(chain, chain), 1)], None)


def test_beams_workers_that_would_be_waited_for_for_ever_are_refused(tmp_path: Path, photo_folder: Path) -> None:
    with pytest.raises(ValueError, match="multi_processing hangs when a worker dies: leave it out"):
        build(photo_folder, tmp_path / "cache", beam_options=["--direct_running_mode=multi_processing"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(30)
@pytest.mark.parametrize("error", [ZeroDivisionError, MemoryError, RuntimeError])
def test_a_worker_that_breaks_fails_the_build_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], error: type[BaseException]
) -> None:
    with pytest.raises(BuildError, match=f"the Beam pipeline failed: .*{error.__name__}") as caught:
        run_faulty(tmp_path, error)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_an_interrupt_is_not_taken_for_a_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_faulty(tmp_path, KeyboardInterrupt)


# ------------------------------------------------------------------------------------------ building again


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Path:
    """A folder with a source and its cache; only to be copied."""
    root = tmp_path_factory.mktemp("built")
    shutil.copytree(photo_folder, root / "source")
    build(root / "source", root / "cache", shards=2, val_fraction=0.3)
    return root


@pytest.fixture
def source(tmp_path: Path, built: Path) -> Path:
    """A folder of photos that may be changed."""
    return Path(shutil.copytree(built / "source", tmp_path / "source"))


@pytest.fixture
def cache(tmp_path: Path, built: Path) -> Path:
    """Its cache."""
    return Path(shutil.copytree(built / "cache", tmp_path / "cache"))


def rebuild(source: Path, cache: Path, **options: Any) -> bool:
    """Build again with the same options, and say whether that was needed."""
    given = {"chain": CHAIN, "shards": 2, "val_fraction": 0.3, **options}
    return not precompute(source, cache, **given).unchanged


def test_a_cache_that_is_up_to_date_is_not_touched(source: Path, cache: Path) -> None:
    before = times(cache)
    assert not rebuild(source, cache)
    assert not rebuild(source, cache, shards=None, workers=3)
    assert times(cache) == before


def test_a_cache_with_rejects_can_be_up_to_date(source: Path, tmp_path: Path) -> None:
    (source / "cat" / "broken.jpg").write_bytes(b"")
    assert rebuild(source, tmp_path / "cache")
    assert not rebuild(source, tmp_path / "cache")


def change(source: Path, how: str) -> None:
    if how == "added":
        shutil.copy(source / "cat" / "00.jpg", source / "cat" / "new.jpg")
    elif how == "removed":
        (source / "cat" / "00.jpg").unlink()
    elif how == "changed":
        (source / "cat" / "00.jpg").write_bytes((source / "dog" / "01.jpg").read_bytes())
    elif how == "moved":
        (source / "cat" / "00.jpg").rename(source / "dog" / "00.jpg")
    elif how == "class renamed":
        (source / "cat").rename(source / "zebra")
    elif how == "broken":
        (source / "cat" / "00.jpg").write_bytes(b"")


@pytest.mark.parametrize("how", ["added", "removed", "changed", "moved", "class renamed", "broken"])
def test_a_changed_source_is_built_again_and_old_files_go(tmp_path: Path, source: Path, cache: Path, how: str) -> None:
    change(source, how)
    assert rebuild(source, cache)
    manifest = open_manifest(cache)
    assert {path.name for path in cache.iterdir()} == {*hashes(manifest), MANIFEST}
    fresh = build(source, tmp_path / "fresh", shards=2, val_fraction=0.3)
    assert hashes(manifest) == hashes(fresh)


STRANGERS = [
    "notes.txt",
    "manifest.json.bak",
    ".hidden",
    "index.arrow",
    "train-v0-1-of-1-1a2b3c4d.arrow",
    "train-v0-00000-of-00001-1a2b3c4d.arrow.bak",
    "my-train-v0-00000-of-00001-1a2b3c4d.arrow",
    "index-1A2B3C4D.arrow",
    "rejected-1a2b3c4d.json",
    ".0123456789abcdef.tmp",
    "x.tmp",
    "folder/train-v0-00000-of-00001-1a2b3c4d.arrow",
    ".building/mine.txt",
]


def test_only_files_of_our_own_pattern_are_ever_deleted(source: Path, cache: Path) -> None:
    for name in STRANGERS:
        (cache / name).parent.mkdir(exist_ok=True)
        (cache / name).write_bytes(b"precious")
    leftovers = ["train-v0-00000-of-00001-1a2b3c4d.arrow", "index-1a2b3c4d.arrow", f".{'0f' * 16}.tmp"]
    for name in leftovers:
        (cache / name).write_bytes(b"left by a build that was killed")
    change(source, "added")
    assert rebuild(source, cache)
    assert [name for name in STRANGERS if (cache / name).read_bytes() != b"precious"] == []
    assert [name for name in leftovers if (cache / name).exists()] == []


@pytest.mark.parametrize(
    ("options", "was", "now"),
    [
        ({"chain": "decode|resize(41)|random_crop(32) || flip_lr"}, "resize(40)", "resize(41)"),
        ({"val_chain": "decode|resize(32)"}, "central_crop(32)", "decode|resize(32)"),
        ({"seed": 3}, "seed 0", "3"),
        ({"format": "tfrecord"}, "'arrow'", "'tfrecord'"),
        ({"encoding": "png"}, "'raw'", "'png'"),
        ({"val_fraction": 0.1}, "0.3", "0.1"),
        ({"shards": 3}, "shards 2", "3"),
    ],
)
def test_another_recipe_is_refused_naming_both(
    source: Path, cache: Path, options: dict[str, Any], was: str, now: str
) -> None:
    before = contents(cache)
    with pytest.raises(CacheError, match="pass --replace to replace it, or choose another folder") as caught:
        rebuild(source, cache, **options)
    was_at, now_at = str(caught.value).index(was), str(caught.value).rindex(now)
    assert was_at < now_at
    assert contents(cache) == before


def test_another_jpeg_quality_is_refused_naming_both(tmp_path: Path, photo_folder: Path) -> None:
    build(photo_folder, tmp_path / "cache", encoding="jpeg", quality=80, limit=FEW)
    with pytest.raises(CacheError, match="quality 80, not 95"):
        build(photo_folder, tmp_path / "cache", encoding="jpeg", limit=FEW)


# ------------------------------------------------------------------------------------------ updates


UPDATED: dict[str, Any] = {"chain": CHAIN, "variants": 2, "shards": 4, "val_fraction": 0.3, "seed": 3}


def check_update(source: Path, cache: Path, transformed: int, **options: Any) -> Built:
    """An update computes so many images, and its cache is that of a build from nothing, byte for byte."""
    recipe = {**UPDATED, **options}
    updated = precompute(source, cache, **recipe)
    recipe.pop("rehash", None)
    fresh = precompute(source, cache.parent / f"fresh-{len(list(cache.parent.iterdir()))}", **recipe)
    assert hashes(updated.manifest) == hashes(fresh.manifest)
    assert updated.manifest.splits == fresh.manifest.splits
    assert updated.manifest.class_names == fresh.manifest.class_names
    assert updated.manifest.source == fresh.manifest.source
    assert updated.transformed == transformed
    assert {path.name for path in cache.iterdir()} == {*hashes(updated.manifest), MANIFEST}
    assert verify(cache) == []
    return updated


@pytest.fixture(
    params=[
        "raw arrow",
        "png tfrecord",
        pytest.param("jpeg arrow", marks=pytest.mark.slow),
        pytest.param("raw tfrecord", marks=pytest.mark.slow),
    ]
)
def updatable(request: pytest.FixtureRequest, tmp_path: Path, photo_folder: Path) -> tuple[Path, Path, dict[str, Any]]:
    """A source that may be changed, its cache, and how it was built."""
    encoding, kind = request.param.split()
    shutil.copytree(photo_folder, tmp_path / "source")
    options = {"encoding": encoding, "format": kind}
    precompute(tmp_path / "source", tmp_path / "cache", **{**UPDATED, **options})
    return tmp_path / "source", tmp_path / "cache", options


def images_of(cache: Path, key: str) -> int:
    """How many images a record has in the cache: as many as variants, one when it is held out."""
    return 2 if key in keys_of(cache, "train") else 1


def test_a_changed_record_alone_is_transformed(updatable: tuple[Path, Path, dict[str, Any]]) -> None:
    source, cache, options = updatable
    changed = images_of(cache, "cat/00.jpg")
    (source / "cat" / "00.jpg").write_bytes((source / "dog" / "01.jpg").read_bytes())
    updated = check_update(source, cache, changed, **options)
    assert updated.copied > 0
    assert check_unchanged(source, cache, **options)


def check_unchanged(source: Path, cache: Path, **options: Any) -> bool:
    before = times(cache)
    unchanged = precompute(source, cache, **{**UPDATED, **options}).unchanged
    return unchanged and times(cache) == before


def test_an_added_record_alone_is_transformed(updatable: tuple[Path, Path, dict[str, Any]]) -> None:
    source, cache, options = updatable
    shutil.copy(source / "cat" / "00.jpg", source / "cat" / "added.jpg")
    train = ShardConfig(parse(CHAIN), parse(CHAIN), val_fraction=0.3).split_of("cat/added.jpg", None) == "train"
    check_update(source, cache, 2 if train else 1, **options)


def test_a_removed_record_transforms_nothing(updatable: tuple[Path, Path, dict[str, Any]]) -> None:
    source, cache, options = updatable
    (source / "cat" / "00.jpg").unlink()
    check_update(source, cache, 0, **options)


def test_a_class_that_is_added_gives_new_labels_and_the_old_pixels(
    updatable: tuple[Path, Path, dict[str, Any]],
) -> None:
    source, cache, options = updatable
    (source / "ape").mkdir()
    shutil.copy(source / "cat" / "00.jpg", source / "ape" / "a.jpg")
    train = ShardConfig(parse(CHAIN), parse(CHAIN), val_fraction=0.3).split_of("ape/a.jpg", None) == "train"
    assert check_update(source, cache, 2 if train else 1, **options).manifest.class_names[0] == "ape"


def test_a_file_that_is_only_touched_is_read_and_not_transformed(updatable: tuple[Path, Path, dict[str, Any]]) -> None:
    source, cache, options = updatable
    shards = {name for name in hashes(open_manifest(cache)) if name.startswith(("train", "val"))}
    os.utime(source / "cat" / "00.jpg", (1, 1))
    updated = check_update(source, cache, 0, **options)
    assert shards <= set(hashes(updated.manifest))
    assert check_unchanged(source, cache, **options)


def test_a_change_behind_the_same_size_and_time_is_found_by_content(
    updatable: tuple[Path, Path, dict[str, Any]],
) -> None:
    source, cache, options = updatable
    path = source / "cat" / "00.jpg"
    before, changed = path.stat(), bytearray(path.read_bytes())
    changed[-20] ^= 0x55
    path.write_bytes(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert check_unchanged(source, cache, **options)
    check_update(source, cache, images_of(cache, "cat/00.jpg"), rehash=True, **options)


def test_more_variants_build_the_new_ones_alone(updatable: tuple[Path, Path, dict[str, Any]]) -> None:
    source, cache, options = updatable
    old = {file.name for file in open_manifest(cache).splits["train"].files}
    updated = check_update(source, cache, 3 * len(keys_of(cache, "train")), **{**options, "variants": 5})
    assert old <= {file.name for file in updated.manifest.splits["train"].files}


def test_fewer_variants_leave_the_others_out(updatable: tuple[Path, Path, dict[str, Any]]) -> None:
    source, cache, options = updatable
    check_update(source, cache, 0, **{**options, "variants": 1})


def test_all_at_once(updatable: tuple[Path, Path, dict[str, Any]]) -> None:
    source, cache, options = updatable
    (source / "cat" / "00.jpg").write_bytes(b"broken")
    (source / "dog" / "01.jpg").unlink()
    shutil.copy(source / "cat" / "03.jpg", source / "cat" / "added.jpg")
    precompute(source, cache, **{**UPDATED, **options, "variants": 3})
    fresh = precompute(source, cache.parent / "fresh", **{**UPDATED, **options, "variants": 3})
    assert hashes(open_manifest(cache)) == hashes(fresh.manifest)
    assert [reject["key"] for reject in rejects(cache)] == ["cat/00.jpg"]
    (source / "cat" / "00.jpg").write_bytes((source / "cat" / "03.jpg").read_bytes())
    check_update(source, cache, 3 if images_of_train("cat/00.jpg") else 1, **{**options, "variants": 3})


def images_of_train(key: str) -> bool:
    return ShardConfig(parse(CHAIN), parse(CHAIN), val_fraction=0.3).split_of(key, None) == "train"


def test_a_record_in_a_tar_is_compared_by_content(
    tmp_path: Path, make_tar: MakeSource, photos: dict[str, bytes]
) -> None:
    cache = tmp_path / "cache"
    precompute(make_tar(photos), cache, **UPDATED)
    changed = images_of(cache, "cat/03.jpg")
    check_update(make_tar({**photos, "cat/03.jpg": photos["dog/01.jpg"]}), cache, changed)


def test_what_is_copied_was_whole(updatable: tuple[Path, Path, dict[str, Any]]) -> None:
    """A flipped byte in a shard is not copied into the next one: its records are transformed again."""
    source, cache, options = updatable
    for file in open_manifest(cache).splits["train"].files:
        data = bytearray((cache / file.name).read_bytes())
        data[len(data) // 2] ^= 1
        (cache / file.name).write_bytes(data)
    for path in source.rglob("*.jpg"):
        os.utime(path, (1, 1))
    records = len(keys_of(cache, "train")) * 2 + len(keys_of(cache, "val"))
    check_update(source, cache, records, **options)


def test_an_update_that_is_killed_goes_on(
    tmp_path: Path, photo_folder: Path, smaller: Path, builder: Builder, undisturbed: dict[str, str]
) -> None:
    for turn in range(20):
        cache = tmp_path / f"cache{turn}"
        build(smaller, cache, **{**RECIPE, "variants": 1})
        options = {"source": str(photo_folder), "cache": str(cache), **RECIPE}
        builder.kill(lambda: count_of(cache, f"{WORK}/*.json") > 1, **options)  # noqa: B023 - called at once
        finished = count_of(cache, f"{WORK}/*.json")
        if 1 < finished < 4 and open_manifest(cache).variants == 1:
            break
    built = precompute(photo_folder, cache, **RECIPE)
    assert built.resumed_shards == finished
    assert hashes(built.manifest) == undisturbed
    assert {path.name for path in cache.iterdir()} == {*undisturbed, MANIFEST}


def test_replace_swaps_and_a_reader_keeps_its_old_pixels(tmp_path: Path, source: Path, cache: Path) -> None:
    reader = CachedSplit(cache, "train")
    rows = np.arange(len(reader))
    before = reader.images(rows, 4).copy()
    other = "decode|resize(16)"
    assert rebuild(source, cache, chain=other, shards=3, seed=9, replace=True)
    np.testing.assert_array_equal(reader.images(rows, 4), before)
    assert CachedSplit(cache, "train").image_shape == (16, 16, 3)
    fresh = build(source, tmp_path / "fresh", other, shards=3, seed=9, val_fraction=0.3)
    assert hashes(open_manifest(cache)) == hashes(fresh)
    assert {path.name for path in cache.iterdir()} == {*hashes(fresh), MANIFEST}


def test_replace_builds_even_what_is_up_to_date(source: Path, cache: Path) -> None:
    before = hashes(open_manifest(cache))
    assert rebuild(source, cache, replace=True)
    assert hashes(open_manifest(cache)) == before


def test_another_suffix_rewrites_the_manifest_only(source: Path, cache: Path) -> None:
    before = times(cache)
    assert not rebuild(source, cache, chain="decode|resize(40)|random_crop(32) || flip_lr|brightness(0.2)")
    after = times(cache)
    assert before.pop(MANIFEST) != after.pop(MANIFEST)
    assert after == before
    assert [type(op) for op in CachedSplit(cache, "train").chain.suffix] == [FlipLr, Brightness]
    assert verify(cache) == []


def test_a_suffix_that_changes_the_validation_chain_is_refused(source: Path, cache: Path) -> None:
    with pytest.raises(CacheError, match="val chain"):
        rebuild(source, cache, chain="decode|resize(40)|random_crop(32) || random_crop(24)")


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


@pytest.mark.parametrize("how", ["shard missing", "shard cut", "index", "index keys", "rejects"])
def test_a_damaged_cache_is_built_again(source: Path, cache: Path, how: str) -> None:
    before = hashes(open_manifest(cache))
    damage(cache, how)
    assert rebuild(source, cache)
    assert hashes(open_manifest(cache)) == before
    assert verify(cache) == []


# ------------------------------------------------------------------------------------------ folders that are not ours


def test_source_and_cache_may_not_lie_inside_each_other(tmp_path: Path, source: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    before = contents(source)
    for cache in (
        source,
        source / "cache",
        source / "cat",
        tmp_path,
        tmp_path / "link" / "cache",
        source / ".." / "source",
    ):
        with pytest.raises(CacheError, match="overlap: choose another cache folder"):
            build(source, cache)
    assert contents(source) == before


def test_a_tar_may_not_lie_in_its_cache(make_tar: MakeSource, photos: dict[str, bytes]) -> None:
    tar = make_tar(photos)
    with pytest.raises(CacheError, match="overlap"):
        build(tar, tar.parent)


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "thesis.tex",
        ".git/config",
        "train-v0-00000-of-00001-1a2b3c4d.arrow",
        ".building/plan.txt",
        ".0123456789abcdef0123456789abcdef.tmp",
        "manifest.json",
    ],
)
def test_a_full_folder_that_is_no_cache_is_refused_and_untouched(
    tmp_path: Path, photo_folder: Path, name: str, replace: bool
) -> None:
    (tmp_path / "mine" / name).parent.mkdir(parents=True)
    (tmp_path / "mine" / name).write_text('{"name": "my web app"}')
    before = contents(tmp_path)
    with pytest.raises(CacheError):
        build(photo_folder, tmp_path / "mine", replace=replace)
    assert contents(tmp_path) == before


def test_a_file_is_no_folder_for_a_cache(tmp_path: Path, photo_folder: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CacheError, match="is not a folder: choose a folder"):
        build(photo_folder, tmp_path / "file")
    with pytest.raises(BuildError, match="Not a directory"):
        build(photo_folder, tmp_path / "file" / "cache")
    assert contents(tmp_path) == {"file": b"mine"}


def test_an_empty_folder_may_be_filled(tmp_path: Path, photo_folder: Path) -> None:
    assert build(photo_folder, tmp_path, limit=FEW) == open_manifest(tmp_path)


def test_a_folder_that_was_there_is_left_there_empty_when_the_build_fails(
    tmp_path: Path, make_folder: MakeSource
) -> None:
    source = make_folder({"a.jpg": b""})
    (tmp_path / "empty").mkdir()
    with pytest.raises(BuildError):
        build(source, tmp_path / "empty")
    assert contents(tmp_path / "empty") == {}


def test_a_file_that_someone_puts_there_meanwhile_is_kept(tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "cache"

    def fail() -> None:
        with hold_work_folder(cache):
            (cache / "mine.txt").write_text("precious")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert contents(cache) == {"mine.txt": b"precious"}


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path, photo_folder: Path) -> None:
    (tmp_path / "diary").write_text("precious")
    (tmp_path / "cache" / WORK).mkdir(parents=True)
    (tmp_path / "cache" / WORK / "lock").symlink_to(tmp_path / "diary")
    with pytest.raises(BuildError, match="cannot write to"):
        build(photo_folder, tmp_path / "cache")
    assert (tmp_path / "diary").read_text() == "precious"


# ------------------------------------------------------------------------------------------ disks that fail


@contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[Callable[[], None]]:
    """A small disk of its own; calling what it yields makes it read-only. Skips where this may not mount."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk needs the right to mount one")

    def freeze() -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)

    try:
        yield freeze
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def noise(count: int) -> dict[str, bytes]:
    """Images that png makes no smaller."""
    made = {}
    for number in range(count):
        stream = io.BytesIO()
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (60, 60, 3), np.uint8)).save(stream, "PNG")
        made[f"{number}.png"] = stream.getvalue()
    return made


@pytest.mark.parametrize(
    ("kind", "encoding", "size"),
    [("arrow", "raw", "240k"), ("arrow", "png", "240k"), ("tfrecord", "raw", "240k"), ("tfrecord", "png", "240k")],
)
def test_a_full_disk_is_told_in_one_line_and_nothing_is_left(
    tmp_path: Path, make_folder: MakeSource, kind: str, encoding: str, size: str
) -> None:
    source = make_folder(noise(20))
    with tmpfs(tmp_path / "disk", size):
        with pytest.raises(BuildError, match="No space left on device") as caught:
            build(source, tmp_path / "disk" / "cache", "decode|resize(60)", format=kind, encoding=encoding, shards=8)
        assert "\n" not in str(caught.value)
        assert "None" not in str(caught.value)
        assert contents(tmp_path / "disk") == {}


def test_a_disk_that_fills_up_leaves_the_old_cache(tmp_path: Path, make_folder: MakeSource) -> None:
    images = noise(20)
    source = make_folder(images)
    with tmpfs(tmp_path / "disk", "320k"):
        cache = tmp_path / "disk" / "cache"
        build(source, cache, "decode|resize(30)", shards=2)
        before = contents(cache)
        with pytest.raises(BuildError, match="No space left on device"):
            build(source, cache, "decode|resize(60)", shards=8, replace=True, encoding="png")
        assert contents(cache) == before


def test_a_read_only_disk_is_told_in_one_line(tmp_path: Path, photo_folder: Path) -> None:
    with tmpfs(tmp_path / "disk", "2m") as freeze:
        cache = tmp_path / "disk" / "cache"
        build(photo_folder, cache)
        before = contents(tmp_path / "disk")
        freeze()
        for chain in ("decode|resize(16)", CHAIN + "|brightness(0.1)"):
            with pytest.raises(BuildError, match=r"^cannot write to '.*cache': Read-only file system$"):
                build(photo_folder, cache, chain, replace="resize(16)" in chain)
        with pytest.raises(BuildError, match=r"^cannot write to '.*new': Read-only file system$"):
            build(photo_folder, tmp_path / "disk" / "new")
        assert precompute(photo_folder, cache, CHAIN).unchanged
        assert contents(tmp_path / "disk") == before


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_permission_is_told_in_one_line(tmp_path: Path, photo_folder: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(BuildError, match="Permission denied"):
        build(photo_folder, tmp_path / "closed" / "cache")
    (tmp_path / "hidden").mkdir(mode=0)
    with pytest.raises(CacheError, match="Permission denied"):
        build(photo_folder, tmp_path / "hidden")


# ------------------------------------------------------------------------------------------ builds that are killed

_SERVER = """
import json, os, sys
from joulecache.pipelines.building import beam_graph
from joulecache.pipelines.building.precomputing import precompute
from apache_beam.runners.portability import fn_api_runner
for line in sys.stdin:
    child = os.fork()
    if not child:
        precompute(**json.loads(line))
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


class Builder:
    """A process that forks a build for each request, so that a killed one costs no second import of Beam."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, **options: Any) -> int:
        """Start a build and return its process id."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(options) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def wait(self) -> None:
        """Return when the build has ended."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ended\n"

    def kill(self, moment: Callable[[], bool], **options: Any) -> None:
        """Start a build and kill it as soon as the moment has come, or let it end before."""
        child = self.start(**options)
        while not moment() and not _has_ended(child):
            time.sleep(0.001)
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(child, signal.SIGKILL)
        self.wait()


def _has_ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _stands_still(process: int) -> bool:
    """Say whether all threads of a process have heeded SIGSTOP, which takes them a moment."""
    threads = Path(f"/proc/{process}/task").glob("*/stat")
    return all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONWARNINGS": ""}
    command = [sys.executable, "-c", _SERVER]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe) as process:
        yield Builder(process)
        assert process.stdin is not None
        process.stdin.close()


RECIPE: dict[str, Any] = {"chain": CHAIN, "variants": 2, "shards": 4, "val_fraction": 0.2}  # that of `undisturbed`


def count_of(cache: Path, pattern: str) -> int:
    return len(list(cache.glob(pattern)))


def check_resumed(source: Path, cache: Path, expected: dict[str, str]) -> None:
    """Building again gives the bytes of an undisturbed build, and takes away all that was left."""
    finished = count_of(cache, f"{WORK}/*.json") if not (cache / MANIFEST).exists() else None
    built = precompute(source, cache, **RECIPE)
    assert hashes(open_manifest(cache)) == expected
    assert {path.name for path in cache.iterdir()} == {*expected, MANIFEST}
    assert verify(cache) == []
    if finished is not None:
        assert built.resumed_shards == finished


@pytest.mark.parametrize("pattern", [f"{WORK}/lock", "train-*", f"{WORK}/00002.json", "index-*"])
def test_a_build_that_is_killed_can_be_built_again(
    tmp_path: Path, photo_folder: Path, builder: Builder, undisturbed: dict[str, str], pattern: str
) -> None:
    cache = tmp_path / "cache"
    builder.kill(lambda: count_of(cache, pattern) > 0, source=str(photo_folder), cache=str(cache), **RECIPE)
    if (cache / MANIFEST).exists():
        assert hashes(open_manifest(cache)) == undisturbed
    check_resumed(photo_folder, cache, undisturbed)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path, builder: Builder) -> Path:
    """A cache folder as a build leaves it that was killed when some of its shards were finished; only to be copied."""
    for _ in range(20):  # on a busy machine the moment may be missed
        cache = tmp_path_factory.mktemp("stopped") / "cache"
        options = {"source": str(photo_folder), "cache": str(cache), **RECIPE}
        builder.kill(lambda: count_of(cache, f"{WORK}/*.json") > 1, **options)  # noqa: B023 - called at once
        if 1 < count_of(cache, f"{WORK}/*.json") < 4:
            return cache
    raise AssertionError("no build could be killed in its midst")


@pytest.fixture
def left(tmp_path: Path, stopped: Path) -> Path:
    shutil.copytree(stopped, tmp_path / "cache")
    return tmp_path / "cache"


def test_a_killed_build_goes_on_with_the_shards_that_are_missing(
    left: Path, photo_folder: Path, undisturbed: dict[str, str]
) -> None:
    finished = {path.name: path.stat().st_mtime_ns for path in left.glob("*.arrow")}
    told: list[BuildProgress] = []
    piece = {**Energy.from_json(spent_on(photo_folder, left.parent / "other")).to_json()}
    (left / WORK / "energy.log").write_text(json.dumps(piece))
    built = precompute(photo_folder, left, **RECIPE, progress=told.append)
    assert 1 < built.resumed_shards < 4
    assert hashes(built.manifest) == undisturbed
    kept = {name: time for name, time in finished.items() if name in hashes(built.manifest)}
    assert kept.items() <= times(left).items()
    assert told[-1].done == 30
    assert told[-1].resumed_records > 0
    spent = Energy.from_json((built.manifest.energy or {})["energy"])
    assert spent.cpu_s > Energy.from_json(piece).cpu_s  # what was spent before it was killed is not forgotten


@pytest.mark.parametrize("text", ["", '{"cut short', "[]", "{}"])
def test_what_is_no_energy_is_not_counted(left: Path, photo_folder: Path, text: str) -> None:
    (left / WORK / "energy.log").write_text(text)
    built = precompute(photo_folder, left, **RECIPE)
    assert Energy.from_json((built.manifest.energy or {})["energy"]).cpu_s > 0


def spent_on(source: Path, cache: Path) -> Any:
    return (build(source, cache, **RECIPE).energy or {})["energy"]


def test_a_build_of_another_recipe_takes_nothing_from_one_that_was_killed(left: Path, photo_folder: Path) -> None:
    recipe = {**RECIPE, "seed": 5}
    built = precompute(photo_folder, left, **recipe)
    assert built.resumed_shards == 0
    assert {path.name for path in left.iterdir()} == {*hashes(built.manifest), MANIFEST}
    fresh = precompute(photo_folder, left.parent / "fresh", **recipe)
    assert hashes(fresh.manifest) == hashes(built.manifest)


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "index", "result", "other name", "files"])
def test_a_finished_shard_that_is_damaged_is_built_again(
    left: Path, photo_folder: Path, undisturbed: dict[str, str], damage: str
) -> None:
    results = sorted((left / WORK).glob("*.json"))
    result = json.loads(results[0].read_text())
    shard = left / next(iter(result["files"].values()))[0]["name"]
    match damage:
        case "flip":
            data = bytearray(shard.read_bytes())
            data[len(data) // 2] ^= 1
            shard.write_bytes(data)
        case "cut":
            shard.write_bytes(shard.read_bytes()[:-1])
        case "missing":
            shard.unlink()
        case "index":
            (left / WORK / result["index"]).write_bytes(b"")
        case "result":
            results[0].write_text(results[0].read_text()[:-3])
        case "other name":
            results[0].write_text(json.dumps({**result, "index": "../../secret"}))
        case "files":
            results[0].write_text(json.dumps({**result, "files": {"train": 3}}))
    built = precompute(photo_folder, left, **RECIPE)
    assert built.resumed_shards == len(results) - 1
    assert hashes(built.manifest) == undisturbed
    assert verify(left) == []


def test_a_build_that_is_interrupted_goes_on_too(
    tmp_path: Path, photo_folder: Path, undisturbed: dict[str, str]
) -> None:
    cache = tmp_path / "cache"
    # where the tests run in the background of a shell, Ctrl-C is ignored, and so it would be here
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            precompute(photo_folder, cache, **RECIPE, progress=lambda now: os.kill(os.getpid(), signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    finished = count_of(cache, f"{WORK}/*.json")
    assert finished
    built = precompute(photo_folder, cache, **RECIPE)
    assert built.resumed_shards == finished
    assert hashes(built.manifest) == undisturbed
    assert {path.name for path in cache.iterdir()} == {*undisturbed, MANIFEST}


@pytest.fixture
def smaller(tmp_path: Path, photo_folder: Path) -> Path:
    """The photos without one."""
    shutil.copytree(photo_folder, tmp_path / "smaller")
    (tmp_path / "smaller" / "cat" / "00.jpg").unlink()
    return tmp_path / "smaller"


def check_killed_rebuild(
    builder: Builder, source: Path, cache: Path, expected: dict[str, str], moment: Callable[[], bool]
) -> None:
    old = open_manifest(cache)
    reader = CachedSplit(cache, "train")
    pixels = reader.images(np.arange(len(reader)), 0).copy()
    builder.kill(moment, source=str(source), cache=str(cache), **RECIPE)
    found = open_manifest(cache)
    assert found == old or hashes(found) == expected
    assert verify(cache) == []
    np.testing.assert_array_equal(reader.images(np.arange(len(reader)), 0), pixels)
    check_resumed(source, cache, expected)


@pytest.mark.parametrize("pattern", ["train-*", "index-*"])
def test_a_rebuild_that_is_killed_leaves_the_old_cache(
    tmp_path: Path, photo_folder: Path, smaller: Path, builder: Builder, undisturbed: dict[str, str], pattern: str
) -> None:
    cache = tmp_path / "cache"
    build(smaller, cache, **RECIPE)
    before = count_of(cache, pattern)
    check_killed_rebuild(builder, photo_folder, cache, undisturbed, lambda: count_of(cache, pattern) > before)


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(20))
def test_builds_that_are_killed_at_random_moments_lose_nothing(
    tmp_path: Path, photo_folder: Path, smaller: Path, builder: Builder, undisturbed: dict[str, str], turn: int
) -> None:
    cache, rng = tmp_path / "cache", random.Random(turn)

    def after(seconds: float) -> Callable[[], bool]:
        end = time.monotonic() + seconds
        return lambda: time.monotonic() > end

    builder.kill(after(rng.uniform(0, 0.6)), source=str(photo_folder), cache=str(cache), **RECIPE)
    check_resumed(photo_folder, cache, undisturbed)
    precompute(smaller, cache, **RECIPE)
    check_killed_rebuild(builder, photo_folder, cache, undisturbed, after(rng.uniform(0, 0.6)))


# Moments that are too short to be hit from outside: the folder is put as a build leaves it that is killed there.
@pytest.mark.parametrize("left", [[], [f"{WORK}/lock"], [f"{WORK}/lock", f"{WORK}/00000.tmp", f".{'0f' * 16}.tmp"]])
def test_what_a_build_leaves_that_is_killed_before_its_manifest_can_be_built_again(
    tmp_path: Path, photo_folder: Path, undisturbed: dict[str, str], left: list[str]
) -> None:
    (tmp_path / "cache" / WORK).mkdir(parents=True)
    for name in left:
        (tmp_path / "cache" / name).write_text("1234")
    check_resumed(photo_folder, tmp_path / "cache", undisturbed)


@pytest.mark.parametrize("lock", [True, False])
def test_what_a_build_leaves_that_is_killed_after_its_manifest_is_taken_away(
    tmp_path: Path, photo_folder: Path, undisturbed: dict[str, str], lock: bool
) -> None:
    cache = tmp_path / "cache"
    precompute(photo_folder, cache, **RECIPE)
    (cache / WORK).mkdir()
    for name in [f"{WORK}/lock"] * lock + [f"{WORK}/00001.json", "index-1a2b3c4d.arrow"]:
        (cache / name).write_text("1234")
    check_resumed(photo_folder, cache, undisturbed)


# ------------------------------------------------------------------------------------------ builds at once


def test_a_second_build_is_refused_naming_the_process_of_the_first(
    tmp_path: Path, photo_folder: Path, builder: Builder
) -> None:
    cache = tmp_path / "cache"
    first = builder.start(source=str(photo_folder), cache=str(cache), **RECIPE)
    while not count_of(cache, f"{WORK}/*.json"):
        time.sleep(0.001)
    os.kill(first, signal.SIGSTOP)
    try:
        while not _stands_still(first):
            time.sleep(0.001)
        before = contents(cache)
        with pytest.raises(CacheError, match=f"is being built by process {first}: wait for it or stop it"):
            build(photo_folder, cache, **RECIPE)
        assert contents(cache) == before
    finally:
        os.kill(first, signal.SIGCONT)
    builder.wait()
    assert verify(cache) == []


def test_a_suffix_is_not_changed_under_a_running_build(source: Path, cache: Path) -> None:
    with hold_work_folder(cache), pytest.raises(CacheError, match=f"being built by process {os.getpid()}"):
        rebuild(source, cache, chain=CHAIN + "|brightness(0.1)")


def test_builds_in_turn_each_hold_the_folder_alone(tmp_path: Path) -> None:
    cache, inside, most = tmp_path / "cache", [], []

    def work() -> None:
        for _ in range(200):
            try:
                with hold_work_folder(cache):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except (CacheError, BuildError):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}


# ------------------------------------------------------------------------------------------ what is left behind


def test_builds_leave_no_descriptor_and_no_thread(tmp_path: Path, source: Path) -> None:
    def held() -> tuple[Counter[str], int]:
        links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.exists()]
        return Counter(str(link) for link in links), threading.active_count()

    build(source, tmp_path / "warm", format="tfrecord")
    before = held()
    for kind in ("arrow", "tfrecord"):
        build(source, tmp_path / kind, format=kind, encoding="png", progress=lambda now: None)
        open_manifest(tmp_path / kind)
        read_manifest(tmp_path / kind)
    (source / "cat" / "00.jpg").write_bytes(b"")
    with pytest.raises(BuildError):
        build(source, tmp_path / "arrow", encoding="png", max_reject_rate=0)
    assert held() == before
