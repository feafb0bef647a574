"""Sources: what is an image, its key and label, and what each kind of source refuses."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import re
import subprocess
import tarfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MakeSource
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sources import add, labels, records, write_parquet

from joulecache.pipelines.source import (
    IMAGE_SUFFIXES,
    SYNTHETIC_CLASSES,
    Source,
    SourceConfig,
    SourceError,
    open_source,
    select,
    store_units,
    synthetic_photo,
    tar_listing,
)
from joulecache.pipelines.source.spatial import Boxes, Mask, Points
from joulecache.pipelines.source.tar import _Member

# What all kinds share: class folders


LAYOUTS = [
    pytest.param({"cat/1.jpg": "cat", "dog/1.jpg": "dog"}, id="class folders"),
    pytest.param({"b/1.jpg": "b", "a/1.jpg": "a", "B/1.jpg": "B"}, id="classes in the order of bytes"),
    pytest.param({"cat/tabby/1.jpg": "cat", "cat/2.jpg": "cat", "dog/3.jpg": "dog"}, id="folders below classes"),
    pytest.param({"set/v1/cat/1.jpg": "cat", "set/v1/dog/1.jpg": "dog"}, id="common folders above classes"),
    pytest.param({"cat/1.jpg": "cat", "cat/2.jpg": "cat"}, id="one class"),
    pytest.param({"1.jpg": "all", "2.png": "all"}, id="flat"),
    pytest.param({"Kätzchen/ü ö.JPG": "Kätzchen", "犬/a#b?.jpeg": "犬"}, id="names of any script"),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_class_is_the_first_folder_that_differs(
    layout: dict[str, str], make_folder: MakeSource, make_tar: MakeSource
) -> None:
    files = {name: name.encode() for name in layout}
    for path in (make_folder(files), make_tar(files)):
        source = open_source(path)
        assert source.class_names == tuple(sorted(set(layout.values())))
        assert labels(source) == layout
        assert {record.key: record.data for record in records(source)} == files
        assert source.records == len(layout)


def test_sidecars_are_skipped_and_counted(make_folder: MakeSource, make_tar: MakeSource) -> None:
    names = ("cat/1.jpg", "cat/1.txt", "dog/2.TXT", "README", "labels.json", "cat/.DS_Store", "cat/._1.jpg")
    hidden = (".thumbnails/1.jpg", "cat/.old/2.jpg")
    for make in (make_folder, make_tar):
        source = open_source(make(dict.fromkeys((*names, *hidden), b"")))
        assert [unit.name for unit in source.units] == ["cat/1.jpg"]
        assert source.skipped.items() >= Counter({".txt": 2, "README": 1, ".json": 1, ".DS_Store": 1}).items()


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_image_suffixes_match_in_any_case(suffix: str, make_folder: MakeSource) -> None:
    assert open_source(make_folder({f"a{suffix}": b"", f"b{suffix.upper()}": b""})).records == 2


@pytest.mark.parametrize("files", [{"notes.txt": b"", "cat/.1.jpg": b""}, {}])
def test_a_source_without_images_is_refused(
    files: dict[str, bytes], make_folder: MakeSource, make_tar: MakeSource, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    for make in (make_folder, make_tar):
        with pytest.raises(
            SourceError, match=rf"^no images in '.*' \({len(files)} other files\): expected .* \.avif, \.bmp"
        ):
            open_source(make(files))


@pytest.mark.parametrize("location", ["/nowhere/photos", "synthetic"])
def test_a_missing_source_is_refused_with_what_is_expected(location: str) -> None:
    with pytest.raises(SourceError, match=f"^no source at '{location}': expected a folder of images, a .tar, Parquet"):
        open_source(location)


def test_braces_in_a_pattern_are_refused_with_what_to_use() -> None:
    with pytest.raises(
        SourceError, match=r"^no source at .*; braces are not expanded, use \* or \[0-9\] in their place$"
    ):
        open_source("shard-{000000..000003}.tar")


def test_a_file_of_unknown_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    for data in (b"no tar", gzip.compress(b"photo")):
        path.write_bytes(data)
        with pytest.raises(SourceError, match=r"^unsupported source '.*photo\.jpg': expected a folder of images, a \."):
            open_source(path)


# Limit


@pytest.mark.parametrize("limit", [0, -1, True])
def test_a_limit_below_1_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match=f"^limit must be an integer of at least 1, got {limit}$"):
        open_source("synthetic:4", SourceConfig(limit=limit))


def test_a_limit_takes_the_same_share_of_every_class(make_folder: MakeSource, make_tar: MakeSource) -> None:
    files = {f"{kind}/{number:03d}.jpg": b"" for kind in ("cat", "dog", "emu") for number in range(40)} | {
        "fox/1.jpg": b""
    }
    for make in (make_folder, make_tar):
        source = open_source(make(files), SourceConfig(limit=31))
        assert Counter(labels(source).values()) == Counter(cat=10, dog=10, emu=10, fox=1)
        assert source.class_names == ("cat", "dog", "emu", "fox")
        assert [unit.name for unit in source.units] == sorted(unit.name for unit in source.units)


def test_a_larger_limit_takes_a_superset(make_folder: MakeSource) -> None:
    path = make_folder({f"{kind}/{number:03d}.jpg": b"" for kind in ("cat", "dog") for number in range(40)})
    taken = [
        {unit.name for unit in open_source(path, SourceConfig(limit=limit)).units} for limit in (10, 20, 79, 80, 1000)
    ]
    assert [len(names) for names in taken] == [10, 20, 79, 80, 80]
    assert taken[0] < taken[1] < taken[2] < taken[3]
    numbers = [int(name[4:7]) for name in taken[1]]
    assert min(numbers) < 10  # no neighbours
    assert max(numbers) >= 30


# Units


def test_units_have_the_same_order_on_every_file_system(
    make_folder: MakeSource, make_tar: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["b/2.jpg", "a/10.jpg", "b/1.jpg", "a/9.jpg"]
    files = dict.fromkeys(names, b"")
    tar, folder = open_source(make_tar(files)), open_source(make_folder(files))
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *args, **options: list(walk(*args, **options))[::-1])
    for source in (tar, folder, open_source(folder.location)):
        assert [unit.name for unit in source.units] == sorted(names)


@pytest.fixture(params=["folder", "tar", "parquet", "synthetic"])
def source(request: pytest.FixtureRequest, make_folder: MakeSource, make_tar: MakeSource, tmp_path: Path) -> Source:
    files = {
        f"{kind}/{number}.jpg": f"{kind} {number}".encode() * number for kind in ("cat", "dog") for number in range(4)
    }
    match request.param:
        case "folder":
            return open_source(make_folder(files))
        case "tar":
            return open_source(make_tar(files))
        case "parquet":
            return open_source(
                write_parquet(tmp_path / "photos.parquet", list(files.values()), [0, 1] * 4, row_group_size=3)
            )
        case _:
            return open_source("synthetic:8")


def test_units_read_the_same_in_any_order_and_after_pickling(source: Source) -> None:
    straight = {record.key: record for record in records(source)}
    units = list(source.units) * 2
    random.Random(0).shuffle(units)
    for unit in units:
        for record in pickle.loads(pickle.dumps(unit)).read():  # noqa: S301 - as Beam does
            assert record == straight[record.key]
    assert len(straight) == source.records == 8


def test_units_know_their_keys_without_reading(source: Source) -> None:
    for unit in source.units:
        read = list(unit.read())
        assert list(unit.record_keys()) == [record.key for record in read]
        assert unit.count == len(read)
        assert {record.mtime_ns for record in read} == {unit.mtime_ns}


def test_a_relative_location_can_be_read_from_any_working_directory(
    make_folder: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder({"1.jpg": b"one"})
    monkeypatch.chdir(tmp_path)
    source = open_source("folder")
    monkeypatch.chdir("/")
    assert [record.data for record in records(source)] == [b"one"]


def test_stored_units_equal_the_units(make_folder: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder({f"{kind}/{number}.jpg": f"{kind} {number}".encode() for kind in ("cat", "dog") for number in range(5)})
    monkeypatch.chdir(tmp_path)
    units = open_source("folder").units
    parts = [select(units, rows) for rows in ([1, 3, 5, 7], [], [0, 9])]
    stored = pickle.loads(pickle.dumps(store_units(parts, Path("units.arrow"), str(Path("units.arrow").absolute()))))  # noqa: S301 - as Beam does
    monkeypatch.chdir("/")
    assert [list(part) for part in stored] == [list(part) for part in parts]
    assert [len(part) for part in stored] == [4, 0, 2]
    assert [record.key for unit in stored[2] for record in unit.read()] == ["cat/0.jpg", "dog/4.jpg"]


def test_mtime_is_that_of_the_file(make_folder: MakeSource, make_tar: MakeSource) -> None:
    folder, tar = make_folder({"1.jpg": b""}), make_tar({"1.jpg": b""})
    os.utime(folder / "1.jpg", ns=(1, 123_456_789))
    os.utime(tar, ns=(1, 987_654_321))
    assert [unit.mtime_ns for unit in open_source(folder).units] == [123_456_789]
    assert [unit.mtime_ns for unit in open_source(tar).units] == [987_654_321]


def test_times_that_64_bits_cannot_hold_are_the_last_that_they_can(
    make_folder: MakeSource, make_tar: MakeSource
) -> None:
    folder, tar = make_folder({"1.jpg": b""}), make_tar({"1.jpg": b""})
    for source, path in ((folder, folder / "1.jpg"), (tar, tar)):
        os.utime(path, (0, 1.37e10))  # the year 2404, which some file systems do not have
        assert [unit.mtime_ns for unit in open_source(source).units] == [min(path.stat().st_mtime_ns, 2**63 - 1)]


def test_a_deleted_file_is_an_os_error(make_folder: MakeSource) -> None:
    path = make_folder({"1.jpg": b""})
    [unit] = open_source(path).units
    (path / "1.jpg").unlink()
    with pytest.raises(FileNotFoundError):
        list(unit.read())


# Folders


def test_links_to_files_are_followed_and_special_files_are_counted(make_folder: MakeSource, tmp_path: Path) -> None:
    root = make_folder({"cat/1.jpg": b"one"})
    (tmp_path / "link").symlink_to(root)
    (root / "cat" / "loop").symlink_to(root)
    (tmp_path / "elsewhere.jpg").write_bytes(b"two")
    (root / "cat" / "2.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    (root / "cat" / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(root / "cat" / "pipe.jpg")
    for location in (root, tmp_path / "link"):
        source = open_source(location)
        assert {record.key: record.data for record in records(source)} == {"cat/1.jpg": b"one", "cat/2.jpg": b"two"}
        assert source.skipped == Counter({"(no regular file)": 2, "(link to a folder above)": 1})
        assert (
            "skipped 2 files (broken links, pipes or devices named like images), such as 'cat/gone.jpg'" in source.notes
        )


def test_a_folder_that_cannot_be_listed_is_refused(make_folder: MakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder({"cat/1.jpg": b"", "dog/1.jpg": b""})
    list_folder = os.scandir

    def closed(path: Any) -> Any:  # root may read every folder, so that its rights cannot be taken away
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(SourceError, match=r"^cannot list '.*/dog' \(Permission denied\)"):
        open_source(root)


def test_names_that_are_not_utf8_are_refused_one_by_one(make_folder: MakeSource, tmp_path: Path) -> None:
    root = make_folder({"caf/1.jpg": b"one"})
    with open(os.fsencode(root) + b"/caf/caf\xe9.jpg", "wb") as file:
        file.write(b"two")
    with tarfile.open(tmp_path / "photos.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        add(tar, "caf/1.jpg", data=b"one")
        add(tar, "caf/café.jpg", data=b"two")
    for source in map(open_source, (root, tmp_path / "photos.tar")):
        assert source.refused == (("caf/caf\\xe9.jpg", "the name is not UTF-8"),)
        assert labels(source) == {"caf/1.jpg": "caf"}


# Tar


NOT_REGULAR = "not a regular file: a link, device or sparse file"


def test_members_that_are_not_regular_files_inside_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "photos.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "./cat", tarfile.DIRTYPE)
        add(tar, "./cat/1.jpg", data=b"one")
        add(tar, "cat/soft.jpg", tarfile.SYMTYPE, link="/etc/passwd")
        add(tar, "cat/hard.jpg", tarfile.LNKTYPE, link="cat/1.jpg")
        add(tar, "cat/device.jpg", tarfile.CHRTYPE)
        add(tar, "../out.jpg", data=b"out")
        add(tar, "cat/../../out.jpg", data=b"out")
        add(tar, "/etc/root.jpg", data=b"out")
    source = open_source(path)
    assert {record.key: record.data for record in records(source)} == {"cat/1.jpg": b"one"}
    assert dict(source.refused) == {
        "cat/soft.jpg": NOT_REGULAR,
        "cat/hard.jpg": NOT_REGULAR,
        "cat/device.jpg": NOT_REGULAR,
        "../out.jpg": "the name leaves the archive",
        "cat/../../out.jpg": "the name leaves the archive",
        "/etc/root.jpg": "the name leaves the archive",
    }


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "photos.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "1.jpg", data=b"one")
        member = tarfile.TarInfo("2.bmp")
        member.size = 3
        member.pax_headers = {"GNU.sparse.map": "4096,3", "GNU.sparse.size": "8192", "GNU.sparse.numblocks": "1"}
        tar.addfile(member, io.BytesIO(b"two"))
    source = open_source(path)
    assert dict(source.refused) == {"2.bmp": NOT_REGULAR}
    assert source.records == 1


def test_a_name_that_appears_twice_in_a_tar_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "photos.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "cat/1.jpg", data=b"one")
        add(tar, "./cat/1.jpg", data=b"two")
    with pytest.raises(SourceError, match=r"photos\.tar' has 'cat/1\.jpg' twice: keys must be unique$"):
        open_source(path)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_is_refused_with_what_to_do(tmp_path: Path, mode: Any) -> None:
    path = tmp_path / "photos.tar"
    with tarfile.open(path, mode) as tar:
        add(tar, "cat/1.jpg", data=b"one")
    with pytest.raises(SourceError, match=r"^cannot read '.*photos\.tar' as an uncompressed tar \(.*\): decompress it"):
        open_source(path)


def test_a_tar_truncated_anywhere_is_refused(make_tar: MakeSource, tmp_path: Path) -> None:
    whole = make_tar({f"cat/{number}.jpg": bytes([number]) * 700 for number in range(3)}).read_bytes()
    path, members_end = tmp_path / "short.tar", 3 * (512 + 1024)
    for size in (*range(100, members_end + 1, 100), *range(512, members_end + 1, 512)):
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError, match=r"copy it again if it was truncated$|^unsupported source"):
            open_source(path)


def test_a_tar_with_a_damaged_header_is_refused(make_tar: MakeSource) -> None:
    path = make_tar({f"{number}.jpg": b"photo" for number in range(3)})
    damaged = bytearray(path.read_bytes())
    damaged[1024 + 150] ^= 1  # the checksum of the second header
    path.write_bytes(damaged)
    with pytest.raises(SourceError, match="no end mark after its members"):
        open_source(path)


def test_a_tar_truncated_after_listing_is_an_os_error(make_tar: MakeSource) -> None:
    path = make_tar({"1.jpg": b"photo"})
    [unit] = open_source(path).units
    os.truncate(path, 514)
    with pytest.raises(OSError, match=r"ends inside 1\.jpg: the tar was truncated"):
        list(unit.read())


# Parquet


def test_parquet_rows_are_keyed_by_file_and_row(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "photos.parquet", [b"a", b"b", b"c"], [1, 0, 1], class_names=["cat", "dog"], row_group_size=2
    )
    source = open_source(path)
    assert [unit.name for unit in source.units] == ["photos.parquet#0", "photos.parquet#1"]
    assert labels(source) == {"photos.parquet#0": "dog", "photos.parquet#1": "cat", "photos.parquet#2": "dog"}
    assert [record.data for record in records(source)] == [b"a", b"b", b"c"]


@pytest.mark.parametrize("metadata", [{}, {"huggingface": "{"}, {"huggingface": "[]"}, {"huggingface": '{"info": {}}'}])
def test_other_metadata_is_ignored(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = write_parquet(tmp_path / "photos.parquet", [b"a"], [1])
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    assert open_source(path).class_names == ("0", "1")


def test_a_limit_may_end_inside_a_row_group(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "photos.parquet", [bytes([row]) for row in range(10)], [0, 1] * 5, row_group_size=4)
    source = open_source(path, SourceConfig(limit=6))
    assert [unit.count for unit in source.units] == [4, 2]
    assert source.records == 6
    assert [record.key for record in records(source)] == [f"photos.parquet#{row}" for row in range(6)]
    assert [record.data for record in records(source)] == [bytes([row]) for row in range(6)]


def test_a_missing_image_is_empty_and_a_missing_label_is_no_class(tmp_path: Path) -> None:
    images, classes = [b"a", None, b"c", b"d"], [0, 1, None, 2**40]
    source = open_source(write_parquet(tmp_path / "photos.parquet", images, classes))
    assert [record.data for record in records(source)] == [b"a", b"", b"c", b"d"]
    assert [record.targets[0] for record in records(source)] == [0, 1, -1, 2**40]
    assert source.class_names == ("0", "1")  # a label too large for a class adds none


def test_large_binary_images_are_read(tmp_path: Path) -> None:
    image = pa.array([{"bytes": b"a"}], pa.struct([("bytes", pa.large_binary())]))
    pq.write_table(pa.table({"image": image, "label": pa.array([0], pa.uint8())}), tmp_path / "large.parquet")
    assert [record.data for record in records(open_source(tmp_path / "large.parquet"))] == [b"a"]


def test_parquet_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"photos\.parquet' has no rows$"):
        open_source(write_parquet(tmp_path / "photos.parquet", [], []))


def test_damaged_parquet_is_refused_or_fails_with_expected_errors(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "photos.parquet", [b"photo"] * 20, [0, 1] * 10, row_group_size=7)
    whole = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole[: rng.choice([len(whole), rng.randrange(len(whole))])])
        for _ in range(rng.randrange(3) if damaged else 0):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            source = open_source(path)
        except SourceError:
            refused += 1
            continue
        for unit in source.units:
            try:
                list(unit.read())
            except (OSError, pa.ArrowInvalid):
                refused += 1
    assert refused > 50


# Synthetic photos


def test_synthetic_photos_are_named_like_files_in_class_folders() -> None:
    source = open_source("synthetic:6")
    assert source.class_names == SYNTHETIC_CLASSES == ("bar", "cross", "disc", "square")
    assert [unit.name for unit in source.units][:2] == ["bar/00000000.jpg", "cross/00000001.jpg"]
    assert labels(source)["cross/00000005.jpg"] == "cross"
    assert [record.targets[0] for record in records(open_source("synthetic:100", SourceConfig(limit=6)))] == [
        0,
        1,
        2,
        3,
        0,
        1,
    ]
    assert open_source("synthetic:3", SourceConfig(limit=6)).records == 3


@pytest.mark.parametrize(
    "count",
    ["", "0", "-1", "1.5", "many", " 5", "1e3", "٣", "²", "100000001", "9" * 5000, "5x"],
    ids=lambda text: text[:9],
)
def test_a_count_out_of_range_is_refused(count: str) -> None:
    with pytest.raises(SourceError, match=r"^synthetic:N needs a count from 1 to 100000000, got 'synthetic:"):
        open_source(f"synthetic:{count}")


def test_a_photo_is_deterministic() -> None:
    assert synthetic_photo(5) == synthetic_photo(5)
    assert len({synthetic_photo(index) for index in range(8)}) == 8


def test_photos_have_the_size_of_real_ones_in_pixels_and_bytes() -> None:
    for index in range(12):
        data = synthetic_photo(index)
        width, height = Image.open(io.BytesIO(data)).size
        assert 476 <= width <= 524
        assert 351 <= height <= 399
        assert 20_000 <= len(data) <= 60_000


def test_neighbouring_pixels_correlate_and_distant_ones_do_not() -> None:
    for index in range(4):
        grey = np.asarray(Image.open(io.BytesIO(synthetic_photo(index))).convert("L")).astype(float)
        centred = grey - grey.mean()
        near = (centred[:, 1:] * centred[:, :-1]).mean() / centred.var()
        far = (centred[:, 250:] * centred[:, :-250]).mean() / centred.var()
        assert near > 0.8
        assert far < 0.6


def test_a_photo_gives_each_target_of_its_shape() -> None:
    source = open_source("synthetic:8", SourceConfig(target=["label", "mask", "boxes", "points", "tags", "area"]))
    assert [feature.kind for feature in source.features.values()] == [
        "class",
        "mask",
        "boxes",
        "points",
        "multilabel",
        "value",
    ]
    for record in records(source):
        label, ids, box, points, tags, area = record.targets
        assert isinstance(label, int)
        assert record.key.startswith(SYNTHETIC_CLASSES[label])
        mask = Mask(("background", *SYNTHETIC_CLASSES)).decode(ids).ids[:, :, 0]
        assert np.unique(mask).tolist() == [0, 1 + label]
        photo = np.asarray(Image.open(io.BytesIO(record.data)))
        assert mask.shape == photo.shape[:2]
        assert np.abs(photo[mask > 0].mean(axis=0) - photo[mask == 0].mean(axis=0)).max() > 10
        assert area == pytest.approx((mask > 0).mean())
        ys, xs = np.nonzero(mask)
        left, top, right, bottom = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
        boxes = Boxes(SYNTHETIC_CLASSES).decode(box)
        assert (boxes.boxes.tolist(), boxes.classes.tolist()) == ([[left, top, right, bottom]], [label])
        x, y = (left + right) / 2, (top + bottom) / 2
        ends = [[x, y, 2], [left, y, 2], [x, top, 2], [right, y, 2], [x, bottom, 2]]
        assert Points(5).decode(points).points.tolist() == ends
        assert isinstance(tags, bytes)
        assert [*tags][1:] == [label >= 2, SYNTHETIC_CLASSES[label] != "disc"]
        assert tags[0] == (right - left >= 0.55 * len(mask))


def test_the_class_alone_is_the_default_and_is_known_before_a_photo_is_drawn() -> None:
    default, named, others = (
        open_source("synthetic:5", SourceConfig(target=target)) for target in (None, "label", ["label", "mask"])
    )
    assert default == named
    assert [unit.targets for unit in default.units] == [(0,), (1,), (2,), (3,), (0,)]
    assert {unit.targets for unit in others.units} == {None}
    assert [record.data for record in records(default)] == [record.data for record in records(others)]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("x", "'synthetic:4' has no target 'x': its targets are label, mask, boxes, points, tags, area"),
        ("area:class", "target 'area' of 'synthetic:4' is of kind value, got 'class'"),
    ],
)
def test_a_target_that_synthetic_photos_lack_is_refused(target: str, message: str) -> None:
    with pytest.raises(SourceError, match=f"^{re.escape(message)}$"):
        open_source("synthetic:4", SourceConfig(target=target))


# Headers and processes ------------------------------------------------------------------------------------------------

NAMES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=130).map(
    lambda text: f"{text}.jpg"
)


@given(
    st.lists(NAMES, unique=True, max_size=8),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.integers(0, 2**33),
)
def test_members_are_those_that_tarfile_reads(names: list[str], kind: int, mtime: int) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = 700 * number, mtime
            with suppress(ValueError):  # a name or time that the format cannot have
                tar.addfile(member, io.BytesIO(bytes(member.size)))
    found = []
    for member_type in (tarfile.TarInfo, _Member):
        with tarfile.open(fileobj=io.BytesIO(stream.getvalue()), mode="r:", tarinfo=member_type) as tar:
            found.append([(each.name, each.size, each.offset_data, each.type) for each in tar])
    assert found[0] == found[1]


def test_a_damaged_header_is_found(make_tar: MakeSource) -> None:
    path = make_tar({"cat/1.jpg": b"one", "dog/1.jpg": b"two"})
    data = bytearray(path.read_bytes())
    data[1024 + 3] ^= 1  # in the name of the second image
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"^cannot read '.*' as an uncompressed tar"):
        open_source(path)


def test_an_impossible_size_is_found(tmp_path: Path) -> None:
    member = tarfile.TarInfo("cat/1.jpg")
    member.size = 2**64
    path = tmp_path / "photos.tar"
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(SourceError, match=r"^cannot read '.*' as an uncompressed tar"):
        open_source(path)


@pytest.fixture
def tars(tmp_path: Path) -> str:
    """Three tars with different classes."""
    for number, name in enumerate(("cat", "dog", "cat")):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for image in range(5):
                add(tar, f"{name}/{number}-{image}.jpg", data=bytes([image]))
                add(tar, f"{name}/{number}-{image}.xml", data=b"")
    return f"{tmp_path}/*.tar"


@pytest.mark.parametrize("dies", [False, True])
def test_several_processes_list_the_same(tars: str, monkeypatch: pytest.MonkeyPatch, dies: bool) -> None:
    alone = open_source(tars)
    started = Mock(wraps=subprocess.Popen)
    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(tar_listing, "LARGE_BYTES", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    if dies:
        monkeypatch.setattr(tar_listing, "_BOOT", "import os; os._exit(9)")
    together = open_source(tars)
    assert started.call_count == 2
    assert list(together.units) == list(alone.units)
    assert (together.features, together.skipped, together.notes) == (alone.features, alone.skipped, alone.notes)


def test_a_damaged_tar_fails_the_same_in_several_processes(tars: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(tars.replace("*", "1")).open("r+b") as file:
        file.truncate(2000)
    monkeypatch.setattr(tar_listing, "LARGE_BYTES", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(SourceError, match=r"^cannot read '.*1.tar' as an uncompressed tar"):
        open_source(tars)
