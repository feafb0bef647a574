"""The manifest: it is read back whole, and nothing in it is trusted."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from joulecache.pipelines.building.precomputing import precompute
from joulecache.pipelines.cache.cache import Cache, verify
from joulecache.pipelines.cache.cleanup import delete_unlisted
from joulecache.pipelines.cache.data_file import DataFile
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.index import empty_index, read_index, write_index
from joulecache.pipelines.cache.manifest import FORMAT_VERSION, MANIFEST, Manifest
from joulecache.pipelines.cache.manifest_io import find_manifest, open_manifest, read_manifest, write_manifest
from joulecache.pipelines.cache.mapped_images import MappedImages
from joulecache.pipelines.cache.shards import map_images, read_encoded
from joulecache.pipelines.report.describe.cache import describe_manifest


@dataclasses.dataclass(frozen=True)
class Built:
    """A cache; each test leaves its files as they were."""

    folder: Path
    manifest: Manifest = dataclasses.field(repr=False)
    body: dict[str, Any] = dataclasses.field(repr=False)

    def write(self, body: object) -> None:
        (self.folder / MANIFEST).write_text(json.dumps(body))

    def restore(self) -> None:
        write_manifest(self.folder, self.manifest)


def build(folder: Path, source: Path, **options: Any) -> Built:
    manifest = precompute(source, folder, seed=2**64 - 1, val_fraction=0.3, **options).manifest
    return Built(folder, manifest, json.loads((folder / MANIFEST).read_bytes()))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Built:
    source = tmp_path_factory.mktemp("source") / "photos"
    shutil.copytree(photo_folder, source)
    (source / "cat" / "broken.jpg").write_bytes(b"no image")
    return build(
        tmp_path_factory.mktemp("raw"), source, chain="decode|random_crop(24) || flip_lr", variants=2, shards=2
    )


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Built:
    folder = tmp_path_factory.mktemp("encoded")
    return build(folder, photo_folder, chain="decode(1)", encoding="png", format="tfrecord", shards=1)


@pytest.fixture(scope="module", params=["arrow", "tfrecord"])
def spatial(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Built:
    """A raw cache with masks, boxes and points."""
    return build(
        tmp_path_factory.mktemp("spatial"),
        Path("synthetic:8"),
        chain="decode|resize(24)",
        target=("mask", "boxes", "points", "label"),
        format=request.param,
        shards=2,
    )


@pytest.fixture
def cache(raw: Built) -> Iterator[Built]:
    """Return the raw cache; restore it after the test."""
    whole = {path: path.read_bytes() for path in raw.folder.iterdir()}
    yield raw
    shutil.rmtree(raw.folder)
    raw.folder.mkdir()
    for path, data in whole.items():
        path.write_bytes(data)


def digest_of(body: dict[str, Any]) -> str:
    """Return the digest by its definition: of the compact JSON of all other keys, sorted."""
    rest = {key: value for key, value in body.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "digest": digest_of(body)}


def read_all(folder: Path, manifest: Manifest) -> None:
    """Read every number, image and target that a manifest leads to, and describe the cache."""
    describe_manifest(manifest)
    opened = Cache(str(folder), folder, manifest)
    for name in (name for name, split in manifest.splits.items() if split.records):
        for target in opened.targets(name).values():
            if isinstance(target, MappedImages):
                assert target.views(np.arange(manifest.split(name).records))
    read_index(folder, manifest)["label"].to_numpy().sum()
    for split in manifest.splits.values():
        for file in split.files:
            if manifest.encoding == "raw":
                height, width, channels = split.image_shape
                assert height is not None
                assert width is not None
                map_images(folder / file.name, file, (height, width, channels)).sum()
            else:
                assert all(bytes(image) for image in read_encoded(folder / file.name, file))


# ------------------------------------------------------------------------------------------ round trip


@pytest.mark.parametrize("which", ["raw", "encoded"])
def test_a_manifest_is_read_as_it_was_written(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    built: Built = request.getfixturevalue(which)
    assert open_manifest(built.folder) == built.manifest
    assert open_manifest(str(built.folder)) == built.manifest
    write_manifest(tmp_path, built.manifest)
    assert read_manifest(tmp_path) == built.manifest
    assert (tmp_path / MANIFEST).read_bytes() == (built.folder / MANIFEST).read_bytes()


def test_the_digest_follows_its_definition(raw: Built) -> None:
    assert raw.body["digest"] == digest_of(raw.body)
    assert raw.body["format_version"] == FORMAT_VERSION


def test_an_intact_cache_has_no_problems(raw: Built, encoded: Built) -> None:
    assert verify(raw.folder) == verify(encoded.folder) == []


def test_a_variant_has_its_own_files_in_the_order_of_their_shards(raw: Built) -> None:
    split = raw.manifest.split("train")
    of_variants = [[file.name[:14] for file in split.variant_files(variant)] for variant in range(2)]
    assert of_variants == [[f"train-v{variant}-0000{shard}" for shard in range(2)] for variant in range(2)]
    assert sum(file.records for file in split.variant_files(1)) == split.records


def test_a_split_without_records_is_refused_by_name(raw: Built) -> None:
    with pytest.raises(CacheError, match=r"no records in split 'test': this cache has train, val"):
        raw.manifest.split("test")


# ------------------------------------------------------------------------------------------ a manifest that cannot be read


def test_a_folder_without_a_manifest_is_no_cache(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CacheError, match=r"no cache at .* build one with `joulecache precompute`"):
            open_manifest(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"format_version": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[]", "expected a JSON object"),
    ],
    ids=["empty", "binary", "deep", "long number", "list"],
)
def test_text_that_is_not_a_json_object_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / MANIFEST).write_bytes(text)
    with pytest.raises(CacheError, match=message):
        open_manifest(tmp_path)


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0, None, "1", [1]])
def test_another_format_version_is_refused_by_number(cache: Built, version: object) -> None:
    cache.write(sealed({**cache.body, "format_version": version}))
    with pytest.raises(CacheError, match=r"reads manifests of format version 3, got .*: upgrade"):
        open_manifest(cache.folder)


def test_a_manifest_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="File name too long"):
        open_manifest(tmp_path / ("x" * 5000))


def test_a_long_value_gives_a_short_message(cache: Built) -> None:
    body = copy.deepcopy(cache.body)
    body["chain"] = body["splits"]["train"]["chain"] = "decode|" + "(" * 100_000
    cache.write(sealed(body))
    with pytest.raises(CacheError) as caught:
        open_manifest(cache.folder)
    assert len(str(caught.value)) < 1000


# ------------------------------------------------------------------------------------------ files that differ from the manifest


def test_a_missing_file_and_one_of_another_size_are_named(cache: Built) -> None:
    for file in cache.manifest.files():
        path = cache.folder / file.name
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(CacheError, match=f"{file.name} cannot be read .*rebuild the cache"):
            open_manifest(cache.folder)
        for changed in {data[:-1], data + b"x"} - {data}:
            path.write_bytes(changed)
            with pytest.raises(CacheError, match=f"{file.name} has {len(changed)} bytes.*says {len(data)}"):
                open_manifest(cache.folder)
        path.write_bytes(data)
    open_manifest(cache.folder)


def test_a_folder_in_place_of_a_file_is_refused(cache: Built) -> None:
    body = copy.deepcopy(cache.body)
    place = cache.folder / body["rejected"]["name"]
    place.unlink()
    place.mkdir()
    body["rejected"]["bytes"] = place.stat().st_size
    cache.write(sealed(body))
    with pytest.raises(CacheError, match="truncated or changed"):
        open_manifest(cache.folder)


# ------------------------------------------------------------------------------------------ forgeries


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*path, key)
        yield from places(item, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


VALUES: list[Any] = [
    *(None, True, False, [], {}, [[]], {"a": 1}, "", "x", "0", "../x", "/etc/passwd", "a/b", "x\0", "x\n", "\ud800"),
    *(-1, 0, 1, 2, 3, 255, 4096, 2**31, 2**32, 2**53, 2**53 + 1, 2**63, 2**64, 10**30),
    *(-0.5, 0.0, 0.5, 1.0, 1e308, float("nan"), float("inf"), float("-inf")),
]


def changes(value: Any) -> list[Any]:
    """Return changes that are close to a value."""
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, int | float):
        return [value + 1, value - 1, -value, value * 2, value // 2, float(value), str(value), [value]]
    if isinstance(value, str):
        return ["../" + value, "/" + value, "./" + value, value + "\n", value + "/..", value[1:], value[::-1], [value]]
    if isinstance(value, list):
        return [
            value[1:],
            value[:-1],
            value[::-1],
            value + value[:1],
            [*value, None],
            {str(number): item for number, item in enumerate(value)},
        ]
    return [{**value, "extra": 1}, list(value)]


@st.composite
def forgeries(draw: st.DrawFn, body: dict[str, Any]) -> dict[str, Any]:
    """Draw a manifest with one to three changes; most have a valid digest."""
    forged = body
    for _ in range(draw(st.integers(1, 3))):
        forged = json.loads(json.dumps(forged))
        there = [path for path in places(forged) if path[0] != "energy" or len(path) < 3]
        path = draw(st.sampled_from(there))
        *parent, key = path
        old, home = at(forged, path), at(forged, tuple(parent))
        kind = draw(st.sampled_from(["any", "close", "close", "close", "swap", "drop"]))
        if kind == "any":
            home[key] = draw(st.sampled_from(VALUES))
        elif kind == "close" and changes(old):
            home[key] = draw(st.sampled_from(changes(old)))
        elif kind == "drop":
            del home[key]
        elif kind == "swap":
            others = [other for other in there if type(at(forged, other)) is type(old) and other[: len(path)] != path]
            others = [other for other in others if path[: len(other)] != other]
            if others:
                other = draw(st.sampled_from(others))
                home[key], at(forged, other[:-1])[other[-1]] = at(forged, other), old
    if draw(st.sampled_from([True, True, True, False])):
        forged["digest"] = digest_of(forged)
    return forged


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of other files with similar names."""
    folder = tmp_path_factory.mktemp("others")
    for name in ("photo.jpg", "index.arrow", "train-v0-00000-of-00002.arrow", ".hidden.tmp", "rejected.jsonl"):
        (folder / name).write_bytes(b"mine")
    return folder


def check_forgery(built: Built, others: Path, data: st.DataObject) -> None:
    """Check that a forgery is refused; or equals the original, or has a valid digest and can be read without a crash."""
    forged = data.draw(forgeries(built.body))
    before = sorted(others.iterdir())
    (others / MANIFEST).write_text(json.dumps(forged))
    with suppress(CacheError):
        delete_unlisted(others, find_manifest(others))
    (others / MANIFEST).unlink()
    assert sorted(others.iterdir()) == before
    built.write(forged)
    try:
        manifest = open_manifest(built.folder)
        verify(built.folder)
    except CacheError:
        return
    finally:
        built.restore()
    assert manifest == built.manifest or sealed(forged) == forged
    with suppress(CacheError):
        read_all(built.folder, manifest)


@given(st.data())
@settings(max_examples=100)
def test_a_forged_manifest_of_masks_boxes_and_points_is_refused_or_harmless(
    spatial: Built, others: Path, data: st.DataObject
) -> None:
    check_forgery(spatial, others, data)


@given(st.data())
@settings(max_examples=250)
def test_a_forged_manifest_is_refused_or_harmless(
    raw: Built, encoded: Built, others: Path, data: st.DataObject
) -> None:
    check_forgery(data.draw(st.sampled_from([raw, raw, encoded])), others, data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(st.data())
@settings(max_examples=10_000, suppress_health_check=list(HealthCheck))
def test_ten_thousand_forgeries_are_refused_or_harmless(
    raw: Built, encoded: Built, others: Path, data: st.DataObject
) -> None:
    check_forgery(data.draw(st.sampled_from([raw, encoded])), others, data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("files", 0, "targets", "mask", "offset"), 2**40, "masks of .* do not fit"),
        (("files", 0, "targets", "mask", "stride"), 575, "masks of .* do not fit"),
        (("files", 0, "targets", "mask", "offset"), None, "encoded masks: they cannot be mapped"),
        (("files", 0, "targets", "boxes", "summary", "most"), 2, "do not have the target 'boxes' as its split says"),
        (("targets", "boxes", "most"), 2**50, "do not have the target 'boxes' as its split says"),
        (("files", 0, "targets"), {}, "do not have the target 'mask' as its split says"),
        (("targets", "points", "counts"), [1], "do not have the target 'points' as its split says"),
    ],
)
def test_targets_that_do_not_fit_their_files_are_refused(
    spatial: Built, path: tuple[Any, ...], value: object, message: str
) -> None:
    body = copy.deepcopy(spatial.body)
    at(body, ("splits", "train", *path[:-1]))[path[-1]] = value
    spatial.write(sealed(body))
    with pytest.raises(CacheError, match=message):
        open_manifest(spatial.folder)
    spatial.restore()


def test_more_boxes_than_an_image_may_have_are_refused(spatial: Built) -> None:
    """`load` allocates as many for each image."""
    body = copy.deepcopy(spatial.body)
    split = body["splits"]["train"]
    split["files"][0]["targets"]["boxes"]["summary"]["most"] = split["targets"]["boxes"]["most"] = 2**50
    spatial.write(sealed(body))
    with pytest.raises(CacheError, match="an image has at most 65,536 boxes, got 1,125,899,906,842,624"):
        open_manifest(spatial.folder)
    spatial.restore()


def test_every_value_is_covered_by_the_digest(raw: Built) -> None:
    for path in places(raw.body):
        if isinstance(at(raw.body, path), int | float | str) and path != ("digest",):
            forged = copy.deepcopy(raw.body)
            at(forged, path[:-1])[path[-1]] = changes(at(forged, path))[0]
            raw.write(forged)
            with pytest.raises(CacheError):
                open_manifest(raw.folder)
    raw.restore()


FIRST = ("splits", "train", "files", 0)
HASH = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("shards",), 2.0),
        (("seed",), 2**64),
        (("variants",), 3),
        (("chain",), "decode|sudo(24)"),
        (("format",), "tfrecord"),
        (("encoding",), "png "),
        (("val_fraction",), float("nan")),
        (("class_names",), ["cat", "dog"]),
        (("energy", "energy", "cpu_s"), -1.0),
        (("energy", "energy", "components", "cpu", "method"), "guessed"),
        (("energy", "passport", "method"), 3),
        (("energy", "passport", "pue"), 0.5),
        (("source", "records"), -1),
        (("source", "skipped"), {".md": "4"}),
        (("splits",), {}),
        (("splits", "train", "mean", 0), float("nan")),
        (("splits", "train", "std"), []),
        (("splits", "train", "records"), 1),
        (("splits", "train", "variants"), 1),
        (("splits", "val", "variants"), 999_999),
        (("splits", "train", "image_shape", 0), 25),
        (("splits", "train", "image_shape"), [None, None, 3]),
        (("splits", "train", "image_shape", 2), 1),
        (("splits", "train", "fingerprint"), HASH + "\n"),
        (("splits", "train", "class_counts", 0), 10**9),
        ((*FIRST, "name"), "../train-v0-00000-of-00002-1a2b3c4d.arrow"),
        ((*FIRST, "name"), "manifest.json"),
        ((*FIRST, "sha256"), HASH),
        ((*FIRST, "records"), 10**6),
        ((*FIRST, "image_offset"), 10**9),
        ((*FIRST, "image_offset"), None),
        ((*FIRST, "image_stride"), 1),
        ((*FIRST, "bytes"), 2**53),
        (("index", "sha256"), HASH + "\n"),
        (("rejected", "name"), "rejected-1a2b3c4d.jsonl/../manifest.json"),
    ],
)
def test_a_forgery_with_a_valid_digest_is_refused(cache: Built, path: tuple[Any, ...], value: object) -> None:
    body = copy.deepcopy(cache.body)
    assert at(body, path) != value or isinstance(value, float)
    at(body, path[:-1])[path[-1]] = value
    cache.write(sealed(body))
    with pytest.raises(CacheError):
        open_manifest(cache.folder)


def test_files_that_are_listed_twice_or_out_of_order_are_refused(cache: Built) -> None:
    files = cache.body["splits"]["train"]["files"]
    for forged, message in (([files[0], *files[:1], *files[2:]], "listed twice"), (files[::-1], "out of order")):
        body = copy.deepcopy(cache.body)
        body["splits"]["train"]["files"] = forged
        cache.write(sealed(body))
        with pytest.raises(CacheError, match=message):
            open_manifest(cache.folder)


# ------------------------------------------------------------------------------------------ verify


def test_verify_finds_a_changed_whitespace(cache: Built) -> None:
    text = (cache.folder / MANIFEST).read_text()
    (cache.folder / MANIFEST).write_text(text.replace(" ", "\t", 1))
    assert open_manifest(cache.folder) == cache.manifest
    assert MANIFEST in verify(cache.folder)[0]


def test_verify_names_every_damaged_file(cache: Built) -> None:
    damaged, rng = [file.name for file in cache.manifest.files() if file.bytes][::2], random.Random(0)
    for name in damaged:
        data = bytearray((cache.folder / name).read_bytes())
        data[rng.randrange(len(data))] ^= 1
        (cache.folder / name).write_bytes(data)
    assert [problem.split(":")[0] for problem in verify(cache.folder)] == damaged


# ------------------------------------------------------------------------------------------ commit


def test_a_manifest_without_a_json_form_leaves_the_old_one(cache: Built) -> None:
    before = {path.name: path.read_bytes() for path in cache.folder.iterdir()}
    with pytest.raises(ValueError, match="val_fraction: must be a finite number"):
        write_manifest(cache.folder, dataclasses.replace(cache.manifest, val_fraction=float("nan")))
    assert {path.name: path.read_bytes() for path in cache.folder.iterdir()} == before


# ------------------------------------------------------------------------------------------ the index


def relisted(built: Built, path: Path) -> Manifest:
    """Return the manifest with another file as its index."""
    return dataclasses.replace(
        built.manifest, index=DataFile(path.name, 0, path.stat().st_size, HASH, None, None, None)
    )


def test_an_index_of_other_columns_or_length_is_refused(raw: Built, tmp_path: Path) -> None:
    path = tmp_path / "index.arrow"
    batch = pa.RecordBatch.from_pydict({"key": ["a"]})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(CacheError, match="not the index of a cache"):
        read_index(tmp_path, relisted(raw, path))
    with open(path, "wb") as file:
        write_index(file, empty_index(raw.manifest.features))
    with pytest.raises(CacheError, match="has 0 rows"):
        read_index(tmp_path, relisted(raw, path))


@given(st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=3))
@example([(0, 0)])
@settings(max_examples=200)
def test_a_damaged_index_is_refused_or_gives_numbers(
    raw: Built, tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    data = bytearray((raw.folder / raw.manifest.index.name).read_bytes())
    for place, byte in flips:
        data[place % len(data)] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.arrow"
    path.write_bytes(data)
    try:
        index = read_index(path.parent, relisted(raw, path))
    except CacheError:
        return
    records = raw.manifest.records
    assert len(index["label"].to_numpy().copy()) == len(index["key_hash"].to_numpy().copy()) == records
    try:
        index.validate(full=True)
    except pa.ArrowInvalid:
        return
    assert len(index["key"].to_pylist()) == records


@pytest.mark.parametrize(("split", "draw"), [("train", 1), ("train", -1), ("val", 1), ("test", 1)])
def test_a_forged_first_draw_is_refused(raw: Built, split: str, draw: int) -> None:
    body = copy.deepcopy(raw.body)
    body["splits"][split]["first_draw"] = draw
    raw.write(sealed(body))
    with pytest.raises(CacheError):
        open_manifest(raw.folder)
    raw.restore()
