"""`ReadRecords`, `WriteCache` and `ReadCache` in Beam pipelines: the bytes of `precompute`, rejects, faults and concurrent builds."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing import test_stream as streams
from apache_beam.transforms.window import FixedWindows
from caches import (
    OPTIONS,
    build,
    cached_images,
    contents,
    hashes,
    index_of,
    is_clean,
    keys_of,
    rejects_of,
    shard_hashes,
)
from conftest import MakeSource
from processes import run_python
from sources import write_parquet

import joulecache as jc
from joulecache.pipelines.building.config import BuildConfig, BuildError
from joulecache.pipelines.building.piped import Plan, build_records, commit_shards, make_plan
from joulecache.pipelines.building.records import checked
from joulecache.pipelines.building.results import WriteResult
from joulecache.pipelines.building.work_folder import hold_work_folder
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.source.features import Features
from joulecache.transforms.ops import Photometric

CLASSES: Features = {"label": jc.features.ClassLabel(("cat", "dog", "été"))}
CHAIN = "decode|resize(8)"

collected: list[Any] = []


def collect(element: Any) -> None:
    """Keep an element: Beam pickles functions of modules by their name."""
    collected.append(element)


def elements(transform: Any, runner: FnApiRunner | None = None) -> list[Any]:
    """Run a pipeline; return the elements of its last PCollection."""
    collected.clear()
    with beam.Pipeline(runner=runner or FnApiRunner()) as pipeline:
        _ = pipeline | transform | "Collect" >> beam.Map(collect)
    return list(collected)


def write(
    records: Iterable[Any], cache: Path, chain: str = CHAIN, features: Features = CLASSES, **options: Any
) -> WriteResult:
    """Write records with `WriteCache`."""
    [result] = elements(beam.Create([*records]) | jc.WriteCache(cache, chain, features=features, **options))
    assert isinstance(result, WriteResult)
    return result


def copy(source: Path, cache: Path, **options: Any) -> WriteResult:
    """Write the records of a source with `WriteCache`, as `photo_cache` was built."""
    read = jc.ReadRecords(source)
    [result] = elements(read | jc.WriteCache(cache, features=read.features, **{**OPTIONS, **options}))
    assert isinstance(result, WriteResult)
    return result


def dicts(photos: Mapping[str, bytes]) -> list[dict[str, Any]]:
    return [{"key": key, "image": image, "label": key.split("/")[0]} for key, image in photos.items()]


# The same bytes -------------------------------------------------------------------------------------------------------


def test_a_pipeline_writes_the_files_of_precompute(tmp_path: Path, make_folder: MakeSource, photos: Any) -> None:
    source = make_folder({**photos, "cat/broken.jpg": b"no image"})
    expected = build(source, tmp_path / "here", **OPTIONS)
    result = copy(source, tmp_path / "there")
    assert hashes(result.manifest) == hashes(expected)
    assert result.manifest.splits == expected.splits
    assert [reject.key for reject in result.rejects] == ["cat/broken.jpg"]
    assert (result.records, result.transformed) == (30, expected.splits["train"].records + 30)
    assert is_clean(tmp_path / "there")
    assert jc.verify(tmp_path / "there") == []


@pytest.mark.parametrize("options", [{"encoding": "png"}, {"format": "tfrecord"}], ids=str)
def test_in_every_format(tmp_path: Path, photo_folder: Path, options: dict[str, Any]) -> None:
    expected = build(photo_folder, tmp_path / "here", **OPTIONS, **options)
    assert hashes(copy(photo_folder, tmp_path / "there", **options).manifest) == hashes(expected)


def test_row_groups_and_their_problems_stay_together(tmp_path: Path, photos: Any) -> None:
    rows = [None, *photos.values()]
    labels = [0, *(n % 3 for n in range(29)), 7]
    source = write_parquet(tmp_path / "photos.parquet", rows, labels, class_names=("a", "b", "c"), row_group_size=5)
    expected = build(source, tmp_path / "here", max_reject_rate=0.1, **OPTIONS)
    result = copy(source, tmp_path / "there", max_reject_rate=0.1)
    assert hashes(result.manifest) == hashes(expected)
    assert [reject.reason for reject in result.rejects] == [
        "its row has no image",
        "label 7 is not one of the 3 classes",
    ]


def test_the_splits_of_a_source_are_kept(tmp_path: Path, make_folder: MakeSource, photos: Any) -> None:
    source = make_folder(
        {f"{('train', 'val', 'test')[n // 3 % 3]}/{key}": data for n, (key, data) in enumerate(photos.items())}
    )
    options = {**OPTIONS, "val_fraction": None}
    expected = build(source, tmp_path / "here", **options)
    result = copy(source, tmp_path / "there", **options)
    assert hashes(result.manifest) == hashes(expected)
    assert result.manifest.val_fraction is None
    assert jc.precompute(source, tmp_path / "there", **options).unchanged


@pytest.mark.parametrize("as_records", [True, False])
def test_dicts_and_records_in_any_order_give_the_shards_of_a_folder(
    tmp_path: Path, photos: Any, photo_cache: Path, as_records: bool
) -> None:
    given: list[Any] = dicts(photos)[::-1]
    if as_records:
        numbers = CLASSES["label"].names.index  # type: ignore[union-attr]
        given = [jc.Record(each["key"], each["image"], {"label": np.int64(numbers(each["label"]))}) for each in given]
    result = write(given, tmp_path / "cache", **{**OPTIONS, "features": CLASSES})
    assert shard_hashes(result.manifest) == shard_hashes(jc.open_manifest(photo_cache))


def test_records_of_several_windows_make_one_cache(tmp_path: Path, photos: Any, photo_cache: Path) -> None:
    windowed = (
        beam.Create(dicts(photos))
        | beam.Map(lambda record: beam.window.TimestampedValue(record, len(record["image"])))
        | beam.WindowInto(FixedWindows(100))
    )
    [result] = elements(windowed | jc.WriteCache(tmp_path / "cache", features=CLASSES, **OPTIONS))
    assert shard_hashes(result.manifest) == shard_hashes(jc.open_manifest(photo_cache))


def test_every_scalar_target_is_written_as_load_reads_it(tmp_path: Path, photo: bytes) -> None:
    features: Features = {
        "tags": jc.features.MultiLabel(("a", "b", "c")),
        "age": jc.features.Value("float32"),
        "place": jc.features.Value("float32", (2,)),
        "caption": jc.features.Text(),
    }
    targets: dict[str, Any] = {
        "tags": ("c", "a"),
        "age": np.float32(0.5),
        "place": np.array([1, 2], np.float32),
        "caption": "süß",
    }
    record = jc.Record("one", photo, {**targets, "other": 3}, "train")
    write([record], tmp_path / "cache", features=features)
    images, found = next(iter(jc.load(tmp_path / "cache", "train", batch_size=1)))
    assert images.shape == (1, 8, 8, 3)
    assert found["tags"].numpy().tolist() == [[1, 0, 1]]
    assert (found["age"].numpy().tolist(), found["place"].numpy().tolist()) == ([0.5], [[1, 2]])
    assert found["caption"].numpy()[0].decode() == "süß"
    [back] = elements(jc.ReadCache(tmp_path / "cache"))
    assert (back.targets["tags"], back.targets["age"], back.targets["caption"]) == (("a", "c"), 0.5, "süß")
    assert back.targets["place"].tolist() == [1, 2]


@pytest.mark.parametrize("options", [{}, {"encoding": "png", "format": "tfrecord"}], ids=["raw", "png"])
def test_masks_boxes_and_points_are_those_of_precompute(tmp_path: Path, options: dict[str, Any]) -> None:
    given = {**OPTIONS, **options, "chain": "decode(shorter=60)|resize(60)|random_crop(48) || flip_lr"}
    target = ["mask:mask", "boxes:boxes", "points:points", "tags", "area"]
    expected = build("synthetic:12", tmp_path / "here", target=target, **given)
    read = jc.ReadRecords("synthetic:12", target=target)
    [result] = elements(read | jc.WriteCache(tmp_path / "there", features=read.features, **given))
    assert hashes(result.manifest) == hashes(expected)
    cache = jc.open_cache(tmp_path / "there")
    stored = cache.targets("train", 1)
    records = {record.key: record for record in elements(jc.ReadCache(cache, variant=1))}
    for row, key in enumerate(keys_of(tmp_path / "there", "train")):
        found = records[key].targets
        assert found["mask"].shape == (48, 48, 1)
        np.testing.assert_array_equal(found["boxes"]["boxes"], stored["boxes"][row].boxes)  # type: ignore[index]
        assert len(found["boxes"]["classes"]) == len(found["boxes"]["boxes"])
        np.testing.assert_array_equal(found["points"], stored["points"][row])  # type: ignore[index]
        box, mask = found["boxes"]["boxes"], found["mask"]
        assert len(box) == 0 or abs((mask[..., 0] > 0).any(axis=0).sum() - (box[0, 2] - box[0, 0])) < 3


def test_an_update_copies_the_images_that_the_cache_has(tmp_path: Path, make_folder: MakeSource, photos: Any) -> None:
    source = make_folder({key: photos[key] for key in list(photos)[3:]})
    build(source, tmp_path / "cache", **OPTIONS)
    make_folder(photos)
    result = copy(source, tmp_path / "cache", shards=None)
    assert result.copied > 20
    assert 3 <= result.transformed <= 6
    assert hashes(result.manifest) == hashes(build(source, tmp_path / "new", **OPTIONS))
    assert is_clean(tmp_path / "cache")
    again = copy(source, tmp_path / "cache")
    assert (again.transformed, again.manifest) == (0, result.manifest)
    assert jc.precompute(source, tmp_path / "cache", **OPTIONS).unchanged


# Rejects --------------------------------------------------------------------------------------------------------------


def test_rejects_have_reasons_in_the_result_and_in_the_cache(tmp_path: Path, photos: Any, photo: bytes) -> None:
    bad: list[Any] = [
        {"key": "twice", "image": photo, "label": "cat"},
        {"key": "twice", "image": photo, "label": 0},
        {"key": "other", "image": photo, "label": "cat"},
        {"key": "other", "image": photo, "label": "dog"},
        {"image": photo, "label": "cat"},
        {"key": 5, "image": photo, "label": "cat"},
        jc.Record("\udc80", photo, {"label": "cat"}),
        {"key": "cow", "image": photo, "label": "cow"},
        {"key": "seven", "image": photo, "label": 7},
        {"key": "unlabelled", "image": photo},
        {"key": "empty", "label": "cat"},
        {"key": "damaged", "image": photo[:300], "label": "cat"},
        {"key": "split", "image": photo, "label": "cat", "split": "valid"},
        jc.Record("decoded", np.zeros((8, 8, 3), np.uint8), {"label": "cat"}),
        jc.Record("unread", None, problem="cannot be read: it is gone"),
    ]
    result = write([*dicts(photos), *bad], tmp_path / "cache", max_reject_rate=0.5)
    reasons = [(reject.key, reject.reason) for reject in result.rejects]
    assert reasons == [(each["key"], each["reason"]) for each in rejects_of(tmp_path / "cache")]
    assert len(reasons) == 14
    assert result.records == 31
    assert reasons[0][0].startswith("(no key: image ")
    assert dict(reasons) == {
        reasons[0][0]: "it has no key",
        "5": "its key must be a text, got 5",
        "\\x80": "the name is not UTF-8",
        "cow": "its 'label': label 'cow' is not one of the 3 classes",
        "damaged": "OSError: Truncated File Read",
        "decoded": "its image must be encoded bytes, got decoded pixels",
        "empty": "it has no image",
        "other": "its key occurs 2 times, with different images or targets",
        "seven": "its 'label': label 7 is not one of the 3 classes",
        "split": "its split must be train, val, test or None, got 'valid'",
        "twice": "its key occurs 2 times",
        "unlabelled": "it has no 'label'",
        "unread": "cannot be read: it is gone",
    }
    assert {row["key"] for row in index_of(tmp_path / "cache")} == {*photos, "twice"}


def test_too_many_rejects_fail_the_pipeline_and_leave_nothing(tmp_path: Path, photos: Any) -> None:
    bad = [{"key": f"x{n}", "image": b"", "label": "cat"} for n in range(4)]
    with pytest.raises(BuildError, match=r"4 of 34 records rejected, .* pass max_reject_rate=0\.118 \[while"):
        write([*dicts(photos), *bad], tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(BuildError, match="max_reject_rate"):
        write([*dicts(photos), *bad], tmp_path / "empty")
    assert contents(tmp_path / "empty") == {}
    write(dicts(photos), tmp_path / "old")
    before = contents(tmp_path / "old")
    with pytest.raises(BuildError, match="max_reject_rate"):
        write([*dicts(photos)[5:], *bad], tmp_path / "old")
    assert contents(tmp_path / "old") == before


def test_without_records_the_pipeline_fails(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no records reached WriteCache"):
        write([], tmp_path / "cache")


# What is refused before the pipeline runs -----------------------------------------------------------------------------


def refused(read: Any, sink: jc.WriteCache, error: type[Exception], match: str) -> None:
    pipeline = beam.Pipeline(runner=FnApiRunner())
    with pytest.raises(error, match=match):
        _ = pipeline | "Given" >> read | sink


def test_wrong_inputs_are_refused_when_the_pipeline_is_made(tmp_path: Path, photo_folder: Path, photos: Any) -> None:
    sink = jc.WriteCache(tmp_path / "cache", CHAIN, features=CLASSES)
    refused(
        streams.TestStream(),
        sink,
        ValueError,
        "WriteCache needs a bounded PCollection, got the unbounded one of 'Given'",
    )
    refused(beam.Create(["photo.jpg"]), sink, Exception, "expected Union.*Record.*got <class 'str'>")
    inside = jc.WriteCache(photo_folder / "cache", CHAIN, features=CLASSES)
    refused(jc.ReadRecords(photo_folder), inside, CacheError, "overlap")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    mine = jc.WriteCache(tmp_path / "mine", CHAIN, features=CLASSES)
    refused(beam.Create(dicts(photos)), mine, CacheError, "not empty and not a joulecache cache")
    write(dicts(photos), tmp_path / "cache")
    other = jc.WriteCache(tmp_path / "cache", "decode|resize(9)", features=CLASSES)
    refused(beam.Create(dicts(photos)), other, CacheError, "pass --replace")
    write(dicts(photos), tmp_path / "cache", "decode|resize(9)", replace=True)
    assert jc.open_manifest(tmp_path / "cache").chain == "decode|resize(9)"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"features": {"label": ("cat", "dog")}}, "features must be a dict such as .*ClassLabel"),
        ({"features": {"image": jc.features.Text()}}, "a target cannot be called 'image'"),
        ({"features": {}, "shards": 0}, "shards must be an integer"),
        ({"features": {}, "chain": "decode"}, "raw needs one size"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        jc.WriteCache(tmp_path, **{"chain": CHAIN, **arguments})
    with pytest.raises(CacheError, match="no cache at"):
        jc.ReadCache(tmp_path)


# What runners show ----------------------------------------------------------------------------------------------------


def test_metrics_display_data_and_step_names(tmp_path: Path, photo_folder: Path) -> None:
    read = jc.ReadRecords(photo_folder)
    sink = jc.WriteCache(tmp_path / "cache", features=CLASSES, **OPTIONS)
    pipeline = beam.Pipeline(runner=FnApiRunner())
    written = pipeline | read | sink
    assert written.element_type is WriteResult
    steps = {label for label in pipeline.applied_labels if label.startswith("WriteCache/")}
    named = {"Check records", "Group by shard", "Build shards", "Gather shards", "Commit"}
    assert {f"WriteCache/{name}" for name in named} <= steps
    shown = sink.display_data()
    assert (shown["cache"], shown["variants"], shown["targets"]) == (str(tmp_path / "cache"), 2, "label (class)")
    assert read.display_data()["records"] == 30
    done = pipeline.run()
    done.wait_until_finish()
    found = done.metrics().query(MetricsFilter().with_namespace("joulecache"))
    counters = {each.key.metric.name: each.committed for each in found["counters"]}
    manifest = jc.open_manifest(tmp_path / "cache")
    assert counters["records"] == 30
    assert counters["bytes"] == sum(file.bytes for file in manifest.files()[:-2])
    assert manifest.energy is not None
    [host] = manifest.energy.parts
    assert (host.launcher, host.worker_processes, manifest.energy.unmetered_shards) == (None, 1, ())
    assert counters["energy_mj"] == pytest.approx(manifest.build_energy.active_j * 1000, abs=len(manifest.files()))
    [distribution] = found["distributions"]
    assert distribution.key.metric.name == "us_per_record"
    assert distribution.committed.count == 4


def test_a_source_is_read_as_records(photo_folder: Path, photos: Any) -> None:
    records = elements(jc.ReadRecords(photo_folder))
    assert {record.key: record.image for record in records} == photos
    assert all(record.targets == {"label": record.key.split("/")[0]} for record in records)


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_a_cache_is_read_as_decoded_images(tmp_path: Path, photo_folder: Path, encoding: str) -> None:
    build(photo_folder, tmp_path / "cache", **OPTIONS, encoding=encoding)
    records = {record.key: record for record in elements(jc.ReadCache(tmp_path / "cache", variant=1))}
    for key, image in zip(
        keys_of(tmp_path / "cache", "train"), cached_images(tmp_path / "cache", "train", 1), strict=True
    ):
        np.testing.assert_array_equal(records[key].image, image)
        assert (records[key].targets["label"], records[key].split) == (key.split("/")[0], "train")
    pipeline = beam.Pipeline(runner=FnApiRunner())
    _ = pipeline | jc.ReadCache(tmp_path / "cache")
    build(photo_folder, tmp_path / "cache", limit=9, **OPTIONS, encoding=encoding)
    with pytest.raises(CacheError, match="was modified after the pipeline was made"):
        pipeline.run().wait_until_finish()
    with pytest.raises(ValueError, match="variant must be an integer from 0 to 0"):
        jc.ReadCache(tmp_path / "cache", "val", variant=1)


# Faults ---------------------------------------------------------------------------------------------------------------


def test_a_bundle_that_runs_twice_changes_nothing(tmp_path: Path, photo_folder: Path, photo_cache: Path) -> None:
    """Runners repeat bundles whose worker they take for lost, that of the commit too."""
    sink = jc.WriteCache(tmp_path / "cache", features=CLASSES, **OPTIONS)
    first, *others = elements(jc.ReadRecords(photo_folder) | sink, FnApiRunner(bundle_repeat=2))
    assert others == [first, first]
    assert hashes(first.manifest) == hashes(jc.open_manifest(photo_cache))
    assert is_clean(tmp_path / "cache")


@dataclass(frozen=True)
class FailsOnce(Photometric):
    """Raises the first time that it runs."""

    flag: str

    def pixels(self, image: Any, drawn: Any) -> Any:
        if not Path(self.flag).exists():
            Path(self.flag).touch()
            raise MemoryError("no memory for this image")
        return image


def test_a_pipeline_that_fails_leaves_no_cache_and_the_next_one_builds_it(tmp_path: Path, photos: Any) -> None:
    chain = jc.Chain((*jc.parse(CHAIN).ops, FailsOnce(str(tmp_path / "flag"))), cut=3)
    sink = jc.WriteCache(tmp_path / "cache", chain, features=CLASSES, shards=3)
    with pytest.raises(Exception, match="no memory for this image"):
        elements(beam.Create(dicts(photos)) | sink)
    assert not (tmp_path / "cache" / "manifest.json").exists()
    [result] = elements(beam.Create(dicts(photos)) | sink)
    assert result.records == 30
    assert is_clean(tmp_path / "cache")


KILLED = """
import os, sys
import apache_beam as beam
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
import joulecache as jc
from joulecache.pipelines.building import piped

written = piped.write_files
def killed(shard):
    done = written(shard)
    if shard.spec.shard == 2:
        os._exit(9)
    return done
piped.write_files = killed
read = jc.ReadRecords(sys.argv[1])
with beam.Pipeline(runner=FnApiRunner()) as pipeline:
    sink = jc.WriteCache(
        sys.argv[2], "decode|resize(40)|random_crop(32) || flip_lr", features=read.features, variants=2, shards=4,
        val_fraction=0.3, seed=3,
    )
    pipeline | read | sink
"""


def test_a_process_killed_in_the_midst_leaves_a_folder_that_the_next_build_accepts(
    tmp_path: Path, photo_folder: Path, photo_cache: Path
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert run_python(KILLED, photo_folder, one, strict=False).returncode == 9
    assert damaged_leftovers(one)
    shutil.copytree(one, other)
    manifests = [copy(photo_folder, one).manifest, build(photo_folder, other, **OPTIONS)]
    assert [hashes(manifest) for manifest in manifests] == [hashes(jc.open_manifest(photo_cache))] * 2
    for cache in (one, other):
        assert is_clean(cache)
        assert jc.verify(cache) == []


def damaged_leftovers(cache: Path) -> list[Path]:
    """Change the bytes of all data files that no manifest lists, but neither names nor sizes; return them."""
    listed = hashes(jc.open_manifest(cache)) if (cache / "manifest.json").exists() else {}
    found = [path for path in cache.glob("*.arrow") if path.name not in listed]
    for path in found:
        path.write_bytes(bytes(path.stat().st_size))
    return found


LOST = """
import os, pickle, sys
from pathlib import Path
from joulecache.pipelines.building import piped

piped.write_files = lambda shard: os._exit(9)
piped.build_records(*pickle.loads(Path(sys.argv[1]).read_bytes()))
"""


def test_the_shards_of_a_worker_that_is_lost_are_unmetered(tmp_path: Path, photos: Any) -> None:
    plan = plan_for(tmp_path / "cache")
    units = [unit for shard, unit in (checked(photo, CLASSES, 2) for photo in dicts(photos)) if shard == 1]
    (tmp_path / "shard").write_bytes(pickle.dumps((plan, 1, units)))
    assert run_python(LOST, tmp_path / "shard").returncode == 9
    result = commit_shards(plan, build_some(plan, dicts(photos)))
    assert result.manifest.energy is not None
    assert result.manifest.energy.unmetered_shards == (1,)
    assert is_clean(tmp_path / "cache")


def plan_for(cache: Path) -> Plan:
    return make_plan(str(cache), BuildConfig(chain=jc.parse(CHAIN), shards=2), CLASSES, ())


def build_some(plan: Plan, photos: list[dict[str, Any]]) -> Any:
    groups: dict[int, list[Any]] = {}
    for photo in photos:
        shard, unit = checked(photo, CLASSES, 2)
        groups.setdefault(shard, []).append(unit)
    return [build_records(plan, shard, units) for shard, units in groups.items()]


def test_an_update_that_never_commits_leaves_the_cache_and_the_next_build_trusts_none_of_its_files(
    tmp_path: Path, make_folder: MakeSource, photos: Any, photo: bytes
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    before = build(make_folder(photos), one, CHAIN, shards=2)
    changed = {**photos, "cat/00.jpg": photo, "dog/new.jpg": photo}
    build_some(plan_for(one), dicts(changed))
    assert damaged_leftovers(one)
    assert jc.verify(one) == []
    assert jc.open_manifest(one) == before
    shutil.copytree(one, other)
    source = make_folder(changed)
    expected = shard_hashes(build(source, tmp_path / "new", CHAIN, shards=2))
    assert shard_hashes(build(source, one, CHAIN, shards=2)) == expected != shard_hashes(before)
    assert shard_hashes(write(dicts(changed), other, shards=2).manifest) == expected
    for cache in (one, other):
        assert is_clean(cache)
        assert jc.verify(cache) == []


def test_of_two_pipelines_the_first_to_commit_wins(tmp_path: Path, photos: Any) -> None:
    records = dicts(photos)
    ours, theirs = plan_for(tmp_path / "cache"), plan_for(tmp_path / "cache")
    some, all_ = build_some(theirs, records[:20]), build_some(ours, records)
    commit_shards(ours, all_)
    assert is_clean(tmp_path / "cache")
    with pytest.raises(CacheError, match="modified concurrently: run the pipeline again"):
        commit_shards(theirs, some)
    assert is_clean(tmp_path / "cache")
    assert jc.open_manifest(tmp_path / "cache").records == 30
    assert commit_shards(ours, all_).records == 30  # a second try of the commit


def test_a_pipeline_whose_files_another_build_deleted_fails(tmp_path: Path, photos: Any) -> None:
    plan = plan_for(tmp_path / "cache")
    shards = build_some(plan, dicts(photos))
    next((tmp_path / "cache").glob("train-*")).unlink()
    with pytest.raises(CacheError, match="modified concurrently"):
        commit_shards(plan, shards)
    assert not (tmp_path / "cache" / "manifest.json").exists()


def test_a_pipeline_does_not_commit_into_a_build_that_runs(tmp_path: Path, photos: Any) -> None:
    with hold_work_folder(tmp_path / "cache"), pytest.raises(CacheError, match="is being built by process"):
        write(dicts(photos), tmp_path / "cache")


def test_one_record_in_two_shards_is_refused(tmp_path: Path, photos: Any) -> None:
    plan = plan_for(tmp_path / "cache")
    first, second = build_some(plan, dicts(photos)[:2]), build_some(plan, dicts(photos))
    with pytest.raises(BuildError, match=r"record '.*' is in 2 shards"):
        commit_shards(plan, [*first, *second])
