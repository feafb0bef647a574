"""Caches and sources in object stores: an S3 server in another process; what differs between stores also on Google's API."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from caches import contents as files_in
from conftest import MakeSource, encoded, write_files
from google_storage import google_storage
from processes import CLI, environment, python, wait_until
from sources import example, label_of, write_parquet, write_tfrecord

import joulecache as jc
from joulecache.pipelines import load, open_manifest, precompute, verify
from joulecache.pipelines.building import shard_builder
from joulecache.pipelines.building.config import BuildError
from joulecache.pipelines.building.energy_log import EnergyLog
from joulecache.pipelines.building.metering import Metering, ProcessLog
from joulecache.pipelines.building.results import BuildProgress, Built
from joulecache.pipelines.building.shard import TransformedShard, finish_shard
from joulecache.pipelines.building.specs import ShardResult
from joulecache.pipelines.building.workspace import Workspace
from joulecache.pipelines.cache.cache import open_cache
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.core.object_store import ConflictError, ObjectFolder, StoreError, open_binary
from joulecache.pipelines.source import Source, SourceConfig, SourceError, open_source
from joulecache.pipelines.source.stored import _in_parts, find_stored

CHAIN = "decode|resize(32)|random_crop(28) || flip_lr"
SECRET = "never-to-be-shown"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def google_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run a server of Google's API, with its URL in the environment; return the URL of a bucket."""
    with google_storage() as url:
        account = {"gcs_base_url": url, "disable_oauth": True}
        account |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        (tmp_path / "account.json").write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
        monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("JOULECACHE_STAGE", str(tmp_path / "staged"))
        yield f"gs://b{os.urandom(8).hex()}"


@pytest.fixture(params=["bucket", "google_bucket"])
def any_bucket(request: pytest.FixtureRequest) -> str:
    """Return the URL of a new bucket of S3 or Google's store."""
    return str(request.getfixturevalue(request.param))


def upload(url: str, files: Mapping[str, bytes]) -> str:
    for name, data in files.items():
        ObjectFolder(url).write(name, data)
    return url


def listed(url: str) -> dict[str, int]:
    return {stored.name: stored.size_bytes for stored in ObjectFolder(url).list()}


def names(built: Built) -> list[str]:
    return [file.name for file in built.manifest.files()]


# ---- objects ----


def test_objects_are_written_read_listed_and_deleted(any_bucket: str, tmp_path: Path) -> None:
    folder = ObjectFolder(f"{any_bucket}/some/where/")
    data = os.urandom(700_000)
    names = ["a", "in/side", "with space.jpg", "été/ü+%20&=.jpg", "#hash?.png"]
    for name in names:
        folder.write(name, data)
    ObjectFolder(f"{any_bucket}/some/where-else").write("other", b"x")
    assert listed(folder.url) == dict.fromkeys(names, len(data))
    assert [stored.name for stored in folder.list("in")] == ["in/side"]
    for name in names:
        assert folder.read(name)[0] == data
        assert folder.read_range(name, 3, 5) == data[3:8]
    assert folder.read_range("a", len(data) - 2, 10) == data[-2:]
    folder.fetch("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == data
    assert folder.find("b") is None
    with pytest.raises(FileNotFoundError, match=f"no object at {folder.url}/b$"):
        folder.read("b")
    folder.delete(["a", "in/side", "never there"])
    assert set(listed(folder.url)) == set(names[2:])


def test_an_object_is_read_like_a_file(any_bucket: str) -> None:
    data = os.urandom(1_000_000)
    ObjectFolder(any_bucket).write("data", data)
    with open_binary(f"{any_bucket}/data") as file:
        assert file.read(10) == data[:10]
        assert file.seek(-5, os.SEEK_END) == len(data) - 5
        assert file.read() == data[-5:]
        assert file.read(1) == b""
        file.seek(600_000)
        assert file.read(300_000) == data[600_000:900_000]
    with pytest.raises(FileNotFoundError):
        open_binary(f"{any_bucket}/other")


def test_only_the_last_version_can_be_overwritten(any_bucket: str) -> None:
    folder = ObjectFolder(any_bucket)
    folder.write_if("one", b"1", None)
    first = folder.find("one")
    with pytest.raises(ConflictError, match="modified concurrently"):
        folder.write_if("one", b"2", None)
    folder.write_if("one", b"3", first)
    with pytest.raises(ConflictError):
        folder.write_if("one", b"4", first)
    with pytest.raises(ConflictError):
        folder.write_if("two", b"5", first)
    assert folder.read("one")[0] == b"3"
    assert set(listed(any_bucket)) == {"one"}


def test_other_urls_and_credentials_are_refused() -> None:
    for url in ("s3://", "s3:///folder", "s3://bucket/a?b=c", "gs://bucket/a#b", "ftp://bucket/a"):
        with pytest.raises(ValueError, match="an object store URL must be"):
            ObjectFolder(url)
    with pytest.raises(ValueError, match="pass credentials and endpoints in the environment") as caught:
        ObjectFolder(f"s3://tester:{SECRET}@bucket/folder")
    assert SECRET not in str(caught.value)


# ---- sources ----


def contents(source: Source) -> list[tuple[str, int, bytes, str | None]]:
    return [(record.key, label_of(record), record.data, unit.split) for unit in source.units for record in unit.read()]


def test_every_kind_of_source_equals_the_one_on_disk(
    bucket: str, tmp_path: Path, photos: Mapping[str, bytes], make_tar: MakeSource
) -> None:
    data, images, classes = tmp_path / "data", list(photos.values()), [number % 3 for number in range(len(photos))]
    others = {name.replace("/", "/x"): image for name, image in list(photos.items())[20:]}
    write_files(data / "folder", {**photos, "notes.txt": b"not an image", ".hidden/a.jpg": b"hidden"})
    parts = {"photos.tar": photos, "tars/train/one.tar": dict(list(photos.items())[:20]), "tars/val/two.tar": others}
    for name, part in parts.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        make_tar(part).rename(data / name)
    write_parquet(data / "rows.parquet", images, classes, row_group_size=7)
    examples = [example({"image": image, "label": label}) for image, label in zip(images, classes, strict=True)]
    write_tfrecord(data / "records.tfrecord", examples)
    write_tfrecord(data / "compressed.tfrecord", examples, "GZIP")
    upload(f"{bucket}/data", {name: found for name, found in files_in(data).items() if found is not None})
    for name in (
        "folder",
        "photos.tar",
        "rows.parquet",
        "records.tfrecord",
        "compressed.tfrecord",
        "tars/**/*.tar",
        "tars/*/[ot]*.tar",
    ):
        here, there = open_source(tmp_path / "data" / name), open_source(f"{bucket}/data/{name}")
        assert contents(there) == contents(here)
        assert (there.class_names, there.records, there.holds_out) == (here.class_names, here.records, here.holds_out)
    given = SourceConfig(splits={"train": "cat", "test": "dog"})
    here, there = (open_source(f"{data}/data/folder", given) for data in (tmp_path, bucket))
    assert contents(there) == contents(here)
    assert [unit.split for unit in there.units] == [unit.split for unit in here.units]
    assert there.notes == here.notes != ()
    assert open_source(f"{bucket}/data/folder").skipped == {".txt": 1, "(hidden)": 1}
    assert open_source(f"{bucket}/data/folder", SourceConfig(limit=5)).records == 5
    table = "file,label\n" + "".join(f"{key},{number % 2}\n" for number, key in enumerate(files_in(data / "folder")))
    upload(bucket, {"labels.csv": table.encode()})
    assert open_source(f"{bucket}/data/folder", SourceConfig(labels=f"{bucket}/labels.csv")).class_names == ("0", "1")
    with pytest.raises(SourceError, match=r"^cannot read the labels 's3://.*/none\.csv': "):
        open_source(f"{bucket}/data/folder", SourceConfig(labels=f"{bucket}/none.csv"))
    for name in ("nothing", "tars/*/t*.parquet"):
        with pytest.raises(SourceError, match="no source at 's3://"):
            open_source(f"{bucket}/data/{name}")
    with pytest.raises(SourceError, match=r"unsupported source '.*notes\.txt'"):
        open_source(f"{bucket}/data/folder/notes.txt")


def test_a_large_folder_is_listed_by_the_folders_in_it(any_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"train/{folder}/{number}.jpg" for folder in ("a", "b#c d", "%20[é]*") for number in range(7)]
    names += ["a.jpg", "train.jpg", "train/a.jpg", "train/a/notes.txt", "train0.jpg", "val/x/y/1.jpg"]
    small = [f"many/{number}/{number}.jpg" for number in range(12)]
    upload(f"{any_bucket}/photos", dict.fromkeys([*names, *small], b"1"))
    upload(any_bucket, {"photos2/1.jpg": b"1"})
    folder = ObjectFolder(f"{any_bucket}/photos")
    [whole] = _in_parts(folder, list)
    monkeypatch.setattr("joulecache.pipelines.core.object_store.PAGE_OBJECTS", 5)
    parts = [*_in_parts(folder, list)]
    assert [stored for part in parts for stored in part] == sorted(whole, key=lambda stored: stored.name)
    assert len({*names, *small}) == len(whole) == sum(map(len, parts))
    assert max(map(len, parts)) == 8  # train/a
    assert sum(map(bool, parts)) > 7
    monkeypatch.setattr("joulecache.pipelines.source.stored._MOST_FOLDERS", 4)  # less than in a page of many/
    assert 12 in map(len, _in_parts(folder, list))
    listing, _ = find_stored(folder.url)
    assert listing is not None
    assert [*listing().names] == sorted({*names, *small} - {"train/a/notes.txt"})


def test_masks_and_metadata_of_a_folder_in_a_store(bucket: str, photos: Mapping[str, bytes]) -> None:
    images = {f"images/{number}.jpg": data for number, data in enumerate([*photos.values()][:3])}
    masks = {f"masks/{number}.png": encoded(np.full((3, 2, 1), number, np.uint8), "PNG") for number in range(3)}
    rows = "".join(f"images/{number}.jpg,masks/{number}.png\n" for number in range(3))
    boxes = {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in range(3)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
    }
    upload(f"{bucket}/set", {**images, **masks, "instances.json": json.dumps(boxes).encode()})
    coco = open_source(f"{bucket}/set/images", SourceConfig(coco=f"{bucket}/set/instances.json"))
    assert coco.features == {"boxes": jc.features.Boxes(("cat",))}
    for location in ("set", "set/images"):
        source = open_source(f"{bucket}/{location}", SourceConfig(masks=f"{bucket}/set/masks"))
        assert [record.targets for unit in source.units for record in unit.read()] == [
            (mask,) for mask in masks.values()
        ]
    upload(f"{bucket}/set", {"metadata.csv": f"file_name,mask_file_name\n{rows}".encode()})
    named = open_source(f"{bucket}/set")
    assert named.features == {"mask": jc.features.Mask()}
    assert [record.targets for unit in named.units for record in unit.read()] == [(mask,) for mask in masks.values()]


# ---- builds ----


def test_a_remote_cache_has_the_bytes_of_a_local_one(
    any_bucket: str, tmp_path: Path, photo_folder: Path, photos: Mapping[str, bytes]
) -> None:
    here = precompute(photo_folder, tmp_path / "here", CHAIN, shards=3, variants=2)
    there = precompute(upload(f"{any_bucket}/photos", photos), f"{any_bucket}/cache", CHAIN, shards=3, variants=2)
    assert [file for split in there.manifest.splits.values() for file in split.files] == [
        file for split in here.manifest.splits.values() for file in split.files
    ]
    assert there.manifest.rejected == here.manifest.rejected
    assert there.manifest.energy is not None
    assert there.manifest.source.location == f"{any_bucket}/photos"
    assert listed(f"{any_bucket}/cache") == {
        "manifest.json": len(ObjectFolder(f"{any_bucket}/cache").read("manifest.json")[0]),
        **{file.name: file.bytes for file in there.manifest.files()},
    }
    assert open_manifest(f"{any_bucket}/cache") == there.manifest
    assert verify(f"{any_bucket}/cache") == []
    again = precompute(f"{any_bucket}/photos", f"{any_bucket}/cache", CHAIN, shards=3, variants=2)
    assert again.unchanged


def test_workers_elsewhere_report_their_energy_through_the_store(
    bucket: str, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Metering, "metered_by", lambda _: "")  # as in a process that the launcher did not start
    logs: list[ProcessLog] = []

    def save(self: EnergyLog, **options: bool) -> list[ProcessLog]:
        logs[:] = original(self, **options)
        return logs

    original = EnergyLog.save
    monkeypatch.setattr(EnergyLog, "save", save)
    energy = precompute(photo_folder, f"{bucket}/cache", CHAIN, shards=3).manifest.energy
    launcher, worker = logs
    assert (launcher.is_launcher, worker.is_launcher, worker.is_complete) == (True, False, True)
    assert energy is not None
    assert energy.energy.cpu_s == pytest.approx(launcher.energy.cpu_s + worker.energy.cpu_s)
    assert energy.unmetered_shards == ()


def test_a_remote_cache_is_loaded_like_a_local_one(bucket: str, tmp_path: Path, photo_folder: Path, run: Run) -> None:
    precompute(photo_folder, tmp_path / "here", CHAIN)
    precompute(photo_folder, f"{bucket}/cache", CHAIN)
    train, test = (load(cache, "train", 8) for cache in (tmp_path / "here", f"{bucket}/cache"))
    for _ in range(2):
        for (images, labels), (others, other_labels) in zip(train, test, strict=True):
            np.testing.assert_array_equal(images, others)
            np.testing.assert_array_equal(labels, other_labels)
    [copy] = (tmp_path / "staged").iterdir()
    inodes = {path.name: path.stat().st_ino for path in copy.iterdir()}
    load(f"{bucket}/cache/", "val", 8)
    assert {path.name: path.stat().st_ino for path in copy.iterdir() if path.name != "manifest.json"} == {
        name: inode for name, inode in inodes.items() if name != "manifest.json"
    }
    # a replaced cache replaces its copy
    fresh = precompute(photo_folder, f"{bucket}/cache", "decode|resize(16)", replace=True)
    assert load(f"{bucket}/cache", "train", 8).element_spec[0].shape[1:] == (16, 16, 3)
    left = {path.name for path in copy.iterdir() if path.suffix != ".lease"}
    assert left == {*names(fresh), "manifest.json", "lock"}
    code, _, _ = run("inspect", f"{bucket}/cache", "--sheet", tmp_path / "sheet.png")
    assert code == 0
    assert (tmp_path / "sheet.png").exists()


def test_copies_have_a_limit_and_checksums(bucket: str, photo_folder: Path, run: Run) -> None:
    built = precompute(photo_folder, f"{bucket}/cache", CHAIN)
    with pytest.raises(CacheError, match="raise stage_limit_bytes"):
        load(f"{bucket}/cache", "train", 8, stage_limit_bytes=10_000)
    [file] = built.manifest.splits["train"].files
    folder = ObjectFolder(f"{bucket}/cache")
    data = bytearray(folder.read(file.name)[0])
    data[-1000] ^= 1
    folder.write(file.name, bytes(data))
    with pytest.raises(CacheError, match=f"{file.name} arrived with SHA-256"):
        load(f"{bucket}/cache", "train", 8)
    code, _, err = run("verify", f"{bucket}/cache")
    assert code == 1
    assert f"{file.name}: its bytes changed" in err
    folder.write(file.name, bytes(data[:-1]))
    with pytest.raises(CacheError, match=f"has {len(data) - 1} bytes, its manifest says {len(data)}"):
        load(f"{bucket}/cache", "train", 8)
    folder.delete([file.name])
    with pytest.raises(CacheError, match="has no bytes"):
        open_manifest(f"{bucket}/cache")
    with pytest.raises(CacheError, match="no cache at 's3://"):
        open_manifest(f"{bucket}/other")


def test_an_update_builds_what_changed_and_deletes_what_it_replaced(
    bucket: str, tmp_path: Path, photos: Mapping[str, bytes]
) -> None:
    source = upload(f"{bucket}/photos", photos)
    first = precompute(source, f"{bucket}/cache", CHAIN, shards=4, val_fraction=0)
    upload(source, {"cat/00.jpg": photos["dog/01.jpg"]})
    second = precompute(source, f"{bucket}/cache", CHAIN, val_fraction=0)
    assert second.transformed == 1
    assert len(set(names(first)) - set(names(second))) == 2  # one shard, and the index
    assert set(listed(f"{bucket}/cache")) == {*names(second), "manifest.json"}
    assert verify(f"{bucket}/cache") == []
    other_cut = precompute(source, f"{bucket}/cache", "decode|resize(32)|random_crop(28)", val_fraction=0)
    assert other_cut.unchanged
    assert open_manifest(f"{bucket}/cache").chain == "decode|resize(32)|random_crop(28)"
    photo_folder = write_files(tmp_path / "photos", {**photos, "cat/00.jpg": photos["dog/01.jpg"]})
    whole = precompute(photo_folder, tmp_path / "cache", CHAIN, shards=4, val_fraction=0)
    assert other_cut.manifest.splits["train"].files == whole.manifest.splits["train"].files


def read_all(targets: Mapping[str, Any]) -> list[Any]:
    boxes = targets["boxes"]
    return [targets["mask"].views(np.arange(len(boxes))), boxes.counts, boxes.boxes, boxes.classes, targets["points"]]


def test_a_remote_cache_has_masks_boxes_and_points(bucket: str, tmp_path: Path) -> None:
    there, here = f"{bucket}/cache", tmp_path / "cache"
    for count, variants in ((6, 1), (9, 2)):  # built, then updated
        options: dict[str, Any] = {"target": ("mask", "boxes", "points"), "shards": 3, "variants": variants}
        for cache in (there, here):
            built = precompute(f"synthetic:{count}", cache, "decode|resize(32)|random_crop(28)", **options)
        assert open_manifest(there).splits == built.manifest.splits
    assert 0 < built.transformed < 18
    assert verify(there) == []
    far, near = (read_all(open_cache(cache).targets("train", 1)) for cache in (there, here))
    for one, other in zip(far, near, strict=True):
        np.testing.assert_array_equal(one, other)


def test_of_two_concurrent_builds_one_wins(bucket: str, photo_folder: Path) -> None:
    cache = f"{bucket}/cache"
    theirs: list[Built] = []

    def meanwhile(now: BuildProgress) -> None:
        if not theirs:
            theirs.append(precompute(photo_folder, cache, CHAIN, seed=2, shards=2))

    with pytest.raises(CacheError, match="was modified concurrently"):
        precompute(photo_folder, cache, CHAIN, seed=1, shards=2, progress=meanwhile)
    assert open_manifest(cache) == theirs[0].manifest
    assert verify(cache) == []
    third = precompute(photo_folder, cache, CHAIN, seed=3, replace=True)
    assert set(listed(cache)) == {*names(third), "manifest.json"}  # files of the loser are deleted too
    later: list[Built] = []

    def replaced(now: BuildProgress) -> None:
        if not later:
            later.append(precompute(photo_folder, cache, CHAIN, seed=5, replace=True))

    with pytest.raises(CacheError, match="was modified concurrently"):
        precompute(photo_folder, cache, CHAIN, seed=4, replace=True, progress=replaced)
    assert open_manifest(cache) == later[0].manifest


def write_in_a_pipeline(source: str, cache: str) -> None:
    read = jc.ReadRecords(source)
    with beam.Pipeline(runner=FnApiRunner(bundle_repeat=1)) as pipeline:
        _ = pipeline | read | jc.WriteCache(cache, CHAIN, features=read.features, shards=3)


def test_a_beam_pipeline_reads_and_writes_a_store(bucket: str, photos: Mapping[str, bytes]) -> None:
    source, cache = upload(f"{bucket}/photos", photos), f"{bucket}/piped"
    added = "cat/new.jpg"
    for _ in range(2):  # then an update
        write_in_a_pipeline(source, cache)
        expected = names(precompute(source, f"{bucket}/cache", CHAIN, shards=3))
        assert listed(cache).keys() == {*expected, "manifest.json"}
        assert verify(cache) == []
        ObjectFolder(source).write(added, photos["dog/01.jpg"])
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        keys = pipeline | jc.ReadCache(cache) | beam.Map(lambda record: record.key) | beam.combiners.ToList()
        _ = keys | beam.Map(check_keys)


def check_keys(keys: list[str]) -> None:
    assert "cat/new.jpg" in keys


def test_of_two_pipelines_into_a_store_one_wins(bucket: str, photos: Mapping[str, bytes]) -> None:
    cache, features = f"{bucket}/cache", {"label": jc.features.ClassLabel(("cat", "dog", "été"))}
    records = [{"key": key, "image": data, "label": key.split("/")[0]} for key, data in photos.items()]
    first, second = (beam.Pipeline(runner=FnApiRunner()) for _ in range(2))
    for pipeline, given in ((first, records), (second, records[:9])):
        _ = pipeline | beam.Create(given) | jc.WriteCache(cache, CHAIN, features=features, shards=2)
    first.run().wait_until_finish()
    before = listed(cache)
    with pytest.raises(CacheError, match="modified concurrently"):
        second.run().wait_until_finish()
    assert before.items() <= listed(cache).items()
    assert verify(cache) == []


@pytest.mark.slow
def test_a_killed_build_resumes_with_the_missing_shards(bucket: str, tmp_path: Path) -> None:
    cache = f"{bucket}/cache"
    command = python(CLI, "precompute", "synthetic:60", cache, "--chain", CHAIN, "--shards", "20", "--workers", "1")
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as build:
        wait_until(lambda: any(name.endswith(".json") for name in listed(cache)), build)
        build.send_signal(signal.SIGKILL)
    with pytest.raises(CacheError, match="no cache at"):
        open_manifest(cache)
    rest = precompute("synthetic:60", cache, CHAIN, shards=20, workers=2)
    assert 0 < rest.resumed_shards < 20
    assert names(rest) == names(precompute("synthetic:60", tmp_path / "whole", CHAIN, shards=20))
    assert verify(cache) == []
    assert set(listed(cache)) == {*names(rest), "manifest.json"}


def test_a_shard_that_failed_is_built_by_the_next_build(
    bucket: str, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(workspace: Workspace, shard: TransformedShard) -> ShardResult:
        if workspace.spec.shard == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return finish_shard(workspace, shard)

    with monkeypatch.context() as patch:
        patch.setattr(shard_builder, "finish_shard", full)
        with pytest.raises(BuildError, match="1 of 4 shards could not be written: No space left on device"):
            precompute(photo_folder, f"{bucket}/cache", CHAIN, shards=4)
    again = precompute(photo_folder, f"{bucket}/cache", CHAIN, shards=4)
    assert again.resumed_shards == 3
    assert verify(f"{bucket}/cache") == []


def test_a_build_trusts_no_object_by_its_name_and_size(bucket: str, tmp_path: Path, photo_folder: Path) -> None:
    built, cache = precompute(photo_folder, tmp_path / "here", CHAIN, shards=2), f"{bucket}/cache"
    for _ in ("left by a build that failed", "damaged in a cache"):
        for file in built.manifest.files():
            ObjectFolder(cache).write(file.name, bytes(file.bytes))
        assert names(precompute(photo_folder, cache, CHAIN, shards=2)) == names(built)
        assert verify(cache) == []


def test_other_files_are_left_alone(bucket: str, photo_folder: Path) -> None:
    upload(f"{bucket}/cache", {"precious.txt": b"x"})
    with pytest.raises(CacheError, match=r"is not empty and not a joulecache cache, since it holds 'precious.txt'"):
        precompute(photo_folder, f"{bucket}/cache", CHAIN, replace=True)
    assert set(listed(f"{bucket}/cache")) == {"precious.txt"}
    upload(f"{bucket}/ours", {})
    precompute(photo_folder, f"{bucket}/ours", CHAIN)
    upload(f"{bucket}/ours", {"precious.txt": b"x", ".building/precious.txt": b"x"})
    precompute(photo_folder, f"{bucket}/ours", "decode|resize(8)", replace=True)
    assert {"precious.txt", ".building/precious.txt"} <= set(listed(f"{bucket}/ours"))


@pytest.mark.parametrize(("source", "cache"), [("/a", "/a"), ("/a", "/a/b"), ("/a/b", "/a"), ("/a/", "/a/b/")])
def test_source_and_cache_must_not_overlap(bucket: str, photos: Mapping[str, bytes], source: str, cache: str) -> None:
    with pytest.raises(CacheError, match="overlap"):
        precompute(f"{bucket}{source}", f"{bucket}{cache}", CHAIN)


def test_credentials_are_never_written_or_printed(bucket: str, photo_folder: Path, run: Run) -> None:
    code, out, err = run("precompute", photo_folder, f"{bucket}/cache", "--chain", CHAIN, "--json")
    assert code == 0
    assert json.loads(out)["manifest"]["source"]["records"] == 30
    said = out + err + "".join(run("inspect", f"{bucket}/cache")[1:])
    assert SECRET not in said
    assert all(
        SECRET.encode() not in ObjectFolder(f"{bucket}/cache").read(name)[0] for name in listed(f"{bucket}/cache")
    )


def test_a_store_error_is_one_line(bucket: str, photo_folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run("precompute", photo_folder, "s3://no-such-bucket-here/cache", "--chain", CHAIN)
    assert code == 1
    [line] = [line for line in err.splitlines() if line.startswith("joulecache: ")]
    assert "s3://no-such-bucket-here" in line
    assert SECRET not in err
    assert "Traceback" not in err
    with pytest.raises(StoreError, match="s3://no-such-bucket-here"):
        open_source("s3://no-such-bucket-here/photos")
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(StoreError, match=r"pip install 'joulecache\[cloud\]'"):
        open_source(f"{bucket}/photos")
