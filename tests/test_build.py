"""Builds: the pixels of a plain loop, the same bytes however they are made, and what the manifest says about them."""

from __future__ import annotations

import io
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from caches import CHAIN, OPTIONS, build, cached_images, hashes, index_of, is_clean, keys_of, shard_hashes
from conftest import MakeSource
from numpy.typing import NDArray
from PIL import Image
from sources import classes

import joulecache as jc
from joulecache.pipelines.building.config import BuildError, ShardConfig
from joulecache.pipelines.building.precomputing import BuildProgress
from joulecache.pipelines.building.shard import build_shard
from joulecache.pipelines.building.specs import ShardSpec
from joulecache.pipelines.building.work_folder import WORK
from joulecache.pipelines.cache.cache import open_cache
from joulecache.pipelines.cache.manifest_io import open_manifest, read_manifest
from joulecache.pipelines.cache.names import SPLITS
from joulecache.pipelines.cache.shards import read_encoded
from joulecache.pipelines.loading.split import CachedSplit
from joulecache.pipelines.source import open_source, tar_listing
from joulecache.transforms import (
    parse,
)
from joulecache.transforms.randomness import key_hash
from joulecache.transforms.versions import kernel_versions

Pixels = NDArray[np.uint8]

FEW = 12  # photos, where more would only take longer


# The same pixels ------------------------------------------------------------------------------------------------------


def test_variants_are_different_draws(photo_cache: Path) -> None:
    one, other = (np.stack(cached_images(photo_cache, "train", variant)) for variant in range(2))
    assert (one == other).all(axis=(1, 2, 3)).mean() < 0.2


def test_another_seed_gives_other_pixels_but_in_held_out_records(
    tmp_path: Path, photo_folder: Path, photo_cache: Path
) -> None:
    one, other = open_manifest(photo_cache), build(photo_folder, tmp_path / "cache", **{**OPTIONS, "seed": 4})
    assert {file.name for file in one.splits["train"].files}.isdisjoint(
        file.name for file in other.splits["train"].files
    )
    assert one.splits["val"].files == other.splits["val"].files


def test_held_out_records_are_not_augmented(photo_cache: Path, photos: dict[str, bytes]) -> None:
    split = open_manifest(photo_cache).splits["val"]
    assert split.chain == "decode|resize(40)|central_crop(32)"
    assert split.variants == 1
    chain = parse(split.chain)
    for key, image in zip(keys_of(photo_cache, "val"), cached_images(photo_cache, "val", 0), strict=True):
        np.testing.assert_array_equal(image, chain(photos[key]))


def test_held_out_records_get_the_chain_that_is_given(
    tmp_path: Path, photo_folder: Path, photo_cache: Path, photos: dict[str, bytes]
) -> None:
    val = parse("decode(1)|resize((20, 30)) || central_crop(16)")
    build(photo_folder, tmp_path / "cache", "decode|resize(8)", val_chain=str(val), val_fraction=0.3, shards=3)
    split, keys = CachedSplit(open_cache(tmp_path / "cache"), "val"), keys_of(tmp_path / "cache", "val")
    assert split.image_shape == (16, 16, 1)
    for key, image in zip(keys, split.images(np.arange(len(keys)), 0), strict=True):
        np.testing.assert_array_equal(image, val(photos[key]))
    # A record stays in its split whatever else changes.
    assert set(keys) == set(keys_of(photo_cache, "val"))


def test_jpeg_images_have_the_quality_that_is_asked_for(
    tmp_path: Path, photo_folder: Path, photos: dict[str, bytes]
) -> None:
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


# The same bytes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 8},
        {"beam_options": ["--runner=FnApiRunner", "--direct_running_mode=multi_threading", "--direct_num_workers=2"]},
        {"beam_options": PipelineOptions(runner="FnApiRunner")},
    ],
    ids=["threads of a shard", "threads of the runner", "Beam's own options"],
)
def test_the_number_of_workers_does_not_change_a_byte(
    tmp_path: Path, photo_folder: Path, photo_cache: Path, options: dict[str, Any]
) -> None:
    manifest = build(photo_folder, tmp_path / "cache", **OPTIONS, **options)
    assert hashes(manifest) == hashes(open_manifest(photo_cache))
    assert is_clean(tmp_path / "cache")


def test_a_plain_loop_without_beam_gives_the_same_bytes(tmp_path: Path, photo_folder: Path, photo_cache: Path) -> None:
    source, chain = open_source(photo_folder), parse(CHAIN)
    config = ShardConfig(chain, chain.for_validation(), 2, val_fraction=0.3, seed=3)
    (tmp_path / WORK).mkdir()
    files = {}
    for shard in range(4):
        units = tuple(unit for unit in source.units if key_hash(unit.name) * 4 >> 64 == shard)
        result = build_shard(ShardSpec(str(tmp_path), shard, 4, units, classes(3), config))
        files.update({file.name: file.sha256 for file in result.data_files})
    assert files == shard_hashes(open_manifest(photo_cache))


def test_a_tar_gives_the_shards_of_its_folder(
    tmp_path: Path, make_tar: MakeSource, photos: dict[str, bytes], photo_cache: Path
) -> None:
    manifest = build(make_tar(photos), tmp_path / "cache", **OPTIONS)
    assert shard_hashes(manifest) == shard_hashes(open_manifest(photo_cache))


def test_tars_listed_by_several_processes_give_the_shards_of_one(
    tmp_path: Path, make_tar: MakeSource, photos: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tars").mkdir()
    for number in range(3):
        part = dict([*photos.items()][number :: 3 + number])  # of different classes
        make_tar(part).rename(tmp_path / "tars" / f"{number}.tar")
    options = {**OPTIONS, "variants": 1}
    alone = build(f"{tmp_path}/tars/*.tar", tmp_path / "alone", **options)
    monkeypatch.setattr(tar_listing, "LARGE_BYTES", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert shard_hashes(build(f"{tmp_path}/tars/*.tar", tmp_path / "together", **options)) == shard_hashes(alone)
    assert jc.precompute(f"{tmp_path}/tars/*.tar", tmp_path / "alone", **options).unchanged


# The manifest ---------------------------------------------------------------------------------------------------------


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
        labels = [row["label"] for row in index_of(tmp_path / "cache") if row["split"] == SPLITS.index(name)]
        assert split.class_counts == tuple(Counter(labels)[label] for label in range(3))


def test_the_index_is_in_the_order_of_the_shards_of_every_variant(photo_cache: Path, photos: dict[str, bytes]) -> None:
    manifest, rows = open_manifest(photo_cache), index_of(photo_cache)
    for name, split in manifest.splits.items():
        listed = [row for row in rows if row["split"] == SPLITS.index(name)]
        for variant in range(split.variants):
            stored: list[dict[str, Any]] = []
            for file in split.variant_files(variant):
                with pa.ipc.open_file(pa.memory_map(str(photo_cache / file.name))) as reader:
                    stored += reader.read_all().select(["key", "label", "key_hash"]).to_pylist()
            assert stored == [{name: row[name] for name in ("key", "label", "key_hash")} for row in listed]
    assert rows == sorted(rows, key=lambda row: (row["split"], row["shard"], row["row"]))
    for row in rows:
        assert row["key_hash"] == key_hash(row["key"])
        assert manifest.class_names[row["label"]] == row["key"].split("/")[0]
        assert row["source_bytes"] == len(photos[row["key"]])


def test_energy_and_versions_are_kept(photo_cache: Path) -> None:
    manifest = open_manifest(photo_cache)
    assert manifest.energy is not None
    measured = manifest.energy.energy
    assert measured.total_j > 0
    assert measured.written_bytes is None or measured.written_bytes > 0
    assert manifest.energy.provenance.method == measured.method
    assert manifest.versions["numpy"] == np.__version__
    assert manifest.versions.items() >= {"pyarrow": pa.__version__, **kernel_versions()}.items()


def test_a_limit_and_shards_without_records(tmp_path: Path, photo_folder: Path) -> None:
    manifest = build(photo_folder, tmp_path / "cache", limit=3, shards=20, val_fraction=0)
    assert manifest.source.records == manifest.index.records == 3
    assert manifest.shards == 20
    assert 1 <= len(manifest.splits["train"].files) <= 3
    assert manifest.splits["val"].files == ()
    assert len(CachedSplit(open_cache(tmp_path / "cache"), "train")) == 3


# Progress and resources -----------------------------------------------------------------------------------------------


def test_progress_grows_to_the_number_of_records(tmp_path: Path, photo_folder: Path) -> None:
    reports: list[BuildProgress] = []
    manifest = build(photo_folder, tmp_path / "cache", shards=4, progress=reports.append)
    assert [now.done for now in reports] == sorted(now.done for now in reports)
    last = reports[-1]
    assert (last.done, last.records, last.resumed_records, last.rejects) == (30, 30, 0, 0)
    assert last.written_bytes == sum(file.bytes for split in manifest.splits.values() for file in split.files)
    assert last.energy_j is not None
    assert 0 < last.energy_j <= manifest.build_energy.total_j
    assert last.records_per_s > 0


def test_builds_leave_no_descriptor_and_no_thread(
    tmp_path: Path, make_folder: MakeSource, photos: dict[str, bytes]
) -> None:
    def held() -> tuple[Counter[str], int]:
        links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.exists()]
        return Counter(str(link) for link in links), threading.active_count()

    source = make_folder(photos)
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
