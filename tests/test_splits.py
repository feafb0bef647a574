"""Splits that the source gives by its folders or files, and patterns of many files, down to the cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from caches import keys_of
from conftest import MakeSource
from sources import labels, records, splits, write_parquet

from joulecache.pipelines import load, precompute, verify
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.cache.names import SPLITS
from joulecache.pipelines.source import SourceConfig, SourceError, open_source

CHAIN = "decode|resize(8)"


def write_tar(path: Path, files: Mapping[str, bytes], make_tar: MakeSource) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    make_tar(files).rename(path)


# By folder


@pytest.mark.parametrize("above", ["", "set/v1/"])
@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("train", "val"), ("train", "val")),
        (("train", "valid", "test"), ("train", "val", "test")),
        (("Training", "Validation"), ("train", "val")),
        (("train", "test"), (None, "test")),
        (("train",), (None,)),
    ],
)
def test_folders_named_like_splits_are_splits(
    above: str,
    folders: tuple[str, ...],
    expected: tuple[str | None, ...],
    make_folder: MakeSource,
    make_tar: MakeSource,
) -> None:
    wanted = {
        f"{above}{folder}/{kind}/1.jpg": split
        for folder, split in zip(folders, expected, strict=True)
        for kind in ("cat", "dog")
    }
    for make in (make_folder, make_tar):
        source = open_source(make(dict.fromkeys(wanted, b"")))
        assert splits(source) == wanted
        given = any(expected) or len(folders) == 1
        assert source.class_names == (("cat", "dog") if given else tuple(sorted(folders)))


def test_splits_share_their_classes(make_folder: MakeSource, make_tar: MakeSource) -> None:
    flat = open_source(make_tar({"train/1.jpg": b"", "test/2.jpg": b""}))
    assert labels(flat) == {"train/1.jpg": "all", "test/2.jpg": "all"}
    files = {"train/cat/1.jpg": b"", "train/dog/2.jpg": b"", "train/emu/3.jpg": b"", "test/dog/4.jpg": b""}
    source = open_source(make_folder(files))
    assert labels(source) == {name: name.split("/")[1] for name in files}


# By file, and patterns


def test_a_pattern_of_parquet_files_is_one_source(tmp_path: Path) -> None:
    for name in ("b/photos.parquet", "a/photos.parquet", "a/notes.txt"):
        write_parquet(tmp_path / name, [f"{row} {name}".encode() for row in range(3)], range(3))
    source = open_source(f"{tmp_path}/*/*.parquet")
    read = records(source)
    assert [record.key for record in read] == [f"{folder}/photos.parquet#{row}" for folder in "ab" for row in range(3)]
    assert [record.data.decode() for record in read] == [f"{row} {f}/photos.parquet" for f in "ab" for row in range(3)]
    assert source.class_names == ("0", "1", "2")
    assert set(splits(source).values()) == {None}


def test_a_pattern_of_tars_is_one_source(tmp_path: Path, make_tar: MakeSource) -> None:
    write_tar(tmp_path / "set" / "0.tar", {"cat/1.jpg": b"one", "dog/1.jpg": b"two"}, make_tar)
    write_tar(tmp_path / "set" / "1.tar", {"cat/1.jpg": b"three", "../2.jpg": b"", "notes.txt": b""}, make_tar)
    source = open_source(tmp_path / "set" / "*.tar")
    assert {record.key: record.data for record in records(source)} == {
        "0.tar/cat/1.jpg": b"one",
        "0.tar/dog/1.jpg": b"two",
        "1.tar/cat/1.jpg": b"three",
    }
    assert labels(source) == {"0.tar/cat/1.jpg": "cat", "0.tar/dog/1.jpg": "dog", "1.tar/cat/1.jpg": "cat"}
    assert source.refused == (("1.tar/../2.jpg", "the name leaves the archive"),)
    assert source.skipped == Counter({".txt": 1})


def test_patterns_cross_folders_and_keys_do_not_depend_on_how_many_files_match(
    tmp_path: Path, make_tar: MakeSource
) -> None:
    write_tar(tmp_path / "set" / "0.tar", {"cat/1.jpg": b"one"}, make_tar)
    assert set(splits(open_source(f"{tmp_path}/set/**/*.tar"))) == {"0.tar/cat/1.jpg"}
    write_tar(tmp_path / "set" / "a" / "b" / "1.tar", {"cat/1.jpg": b"two"}, make_tar)
    assert set(splits(open_source(f"{tmp_path}/set/**/*.tar"))) == {"0.tar/cat/1.jpg", "a/b/1.tar/cat/1.jpg"}
    write_tar(tmp_path / "[set]" / "0*.tar", {"cat/1.jpg": b"one"}, make_tar)  # a file, not a pattern
    assert set(splits(open_source(f"{tmp_path}/[set]/0*.tar"))) == {"cat/1.jpg"}


def test_a_pattern_may_be_in_a_folder_with_wildcards_in_its_name(
    tmp_path: Path, make_tar: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As users have them: huggingface/datasets#7468."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write_tar(tmp_path / "[raw] 50%*" / "deep" / f"{name}.tar", {"cat/1.jpg": name.encode()}, make_tar)
    write_tar(tmp_path / "r" / "deep" / "c.tar", {"cat/1.jpg": b"c"}, make_tar)
    for root in ("[raw] 50%*", tmp_path / "[raw] 50%*"):
        assert set(splits(open_source(f"{root}/**/*.tar"))) == {"deep/a.tar/cat/1.jpg", "deep/b.tar/cat/1.jpg"}


def test_a_pattern_must_match_files_of_one_kind(tmp_path: Path, make_tar: MakeSource) -> None:
    with pytest.raises(SourceError, match=r"^no source at '.*none-\*': expected a folder of images"):
        open_source(f"{tmp_path}/none-*")
    write_tar(tmp_path / "set" / "0.tar", {"cat/1.jpg": b"one"}, make_tar)
    write_parquet(tmp_path / "set" / "1.parquet", [b"one"], [0])
    with pytest.raises(
        SourceError, match=r"of two kinds, '.*0\.tar' \(tar\) and '.*1\.parquet' \(parquet\): use one kind"
    ):
        open_source(f"{tmp_path}/set/*")
    with pytest.raises(SourceError, match=r"matches the folder '.*/set': it may match only \.tar, Parquet or TFRecord"):
        open_source(f"{tmp_path}/s*")


def test_files_named_like_splits_are_splits(tmp_path: Path, make_tar: MakeSource) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001", "test"):
        write_parquet(tmp_path / "data" / f"{name}.parquet", [b"", b""], [0, 1])
    source = open_source(f"{tmp_path}/data/*.parquet")
    assert Counter(splits(source).values()) == Counter(train=4, val=2, test=2)
    write_tar(tmp_path / "tars" / "train_0.tar", {"cat/1.jpg": b"", "dog/1.jpg": b""}, make_tar)
    write_tar(tmp_path / "tars" / "test.tar", {"cat/1.jpg": b""}, make_tar)
    source = open_source(f"{tmp_path}/tars/*.tar")
    assert Counter(splits(source).values()) == Counter({None: 2, "test": 1})
    assert source.class_names == ("cat", "dog")
    write_tar(tmp_path / "tars" / "more.tar", {"cat/1.jpg": b""}, make_tar)
    with pytest.raises(
        SourceError, match=r"^'test' and 'train' are splits, but 'more' is not: name the splits, like --splits train"
    ):
        open_source(f"{tmp_path}/tars/*.tar")


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_folders_above_the_files_of_a_pattern_are_splits(kind: str, tmp_path: Path, make_tar: MakeSource) -> None:
    for folder in ("train", "validation"):
        for number in range(2):
            path = tmp_path / "data" / folder / f"{number}.{kind}"
            if kind == "parquet":
                write_parquet(path, [b"", b""], [0, 1])
            else:
                write_tar(path, {"cat/1.jpg": b"", "dog/1.jpg": b""}, make_tar)
    source = open_source(f"{tmp_path}/data/*/*.{kind}")
    assert Counter(splits(source).values()) == Counter(train=4, val=4)
    assert all(key.startswith("train" if split == "train" else "validation") for key, split in splits(source).items())


def test_a_limit_takes_the_same_share_of_every_file(tmp_path: Path) -> None:
    for name, rows in (("a", 60), ("b", 30), ("c", 1)):
        write_parquet(tmp_path / f"{name}.parquet", [b""] * rows, [0] * rows)
    for limit in (1, 9, 45, 90, 91, 1000):
        source = open_source(f"{tmp_path}/*.parquet", SourceConfig(limit=limit))
        assert source.records == min(limit, 91)
    counts = Counter(key.split("#")[0] for key in splits(open_source(f"{tmp_path}/*.parquet", SourceConfig(limit=45))))
    assert counts == Counter({"a.parquet": 29, "b.parquet": 15, "c.parquet": 1})


def test_files_with_different_classes_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [b""], [0])
    write_parquet(tmp_path / "b.parquet", [b""], [0], class_names=["cat"])
    with pytest.raises(SourceError, match=r"^'a\.parquet' and 'b\.parquet' have different classes"):
        open_source(f"{tmp_path}/*.parquet")


# In a cache


def split_photos(photos: Mapping[str, bytes], *folders: str) -> dict[str, bytes]:
    """Deal photos to folders, in turn."""
    return {f"{folders[place % len(folders)]}/{name}": data for place, (name, data) in enumerate(photos.items())}


def test_a_cache_has_the_splits_of_its_source(
    tmp_path: Path, make_folder: MakeSource, photos: Mapping[str, bytes]
) -> None:
    source = make_folder(split_photos(photos, "train", "val", "test", "train"))
    chain = "decode|resize(10)|random_crop(8)"
    manifest = precompute(source, tmp_path / "cache", chain, shards=2, variants=3).manifest
    assert verify(tmp_path / "cache") == []
    assert {name: split.records for name, split in manifest.splits.items()} == {"train": 15, "val": 8, "test": 7}
    assert manifest.val_fraction is None
    for name in SPLITS:
        assert {key.split("/")[0] for key in keys_of(tmp_path / "cache", name)} == {name}
        assert sum(len(images) for images, _ in load(tmp_path / "cache", name, 4)) == manifest.splits[name].records
    train, val, test = (manifest.splits[name] for name in SPLITS)
    assert (train.variants, val.variants, test.variants) == (3, 1, 1)
    assert test.chain == val.chain == "decode|resize(10)|central_crop(8)"
    one, other = ([images.numpy().tobytes() for images, _ in load(tmp_path / "cache", "test", 7)] for _ in range(2))
    assert one == other  # neither shuffled nor augmented


def test_test_data_is_never_trained_on(tmp_path: Path, make_folder: MakeSource, photos: Mapping[str, bytes]) -> None:
    source = make_folder(split_photos(photos, "train", "test"))
    manifest = precompute(source, tmp_path / "cache", CHAIN, val_fraction=0.3).manifest
    assert manifest.val_fraction == 0.3
    assert manifest.splits["val"].records > 0
    assert {key.split("/")[0] for name in ("train", "val") for key in keys_of(tmp_path / "cache", name)} == {"train"}
    assert {key.split("/")[0] for key in keys_of(tmp_path / "cache", "test")} == {"test"}
    assert manifest.splits["test"].records == 15


def test_val_fraction_is_refused_where_the_source_has_a_val_split(
    tmp_path: Path, make_folder: MakeSource, photos: Mapping[str, bytes]
) -> None:
    source = make_folder(split_photos(photos, "train", "val"))
    with pytest.raises(SourceError, match=r"has a validation split: val_fraction must not be given, got 0\.1$"):
        precompute(source, tmp_path / "cache", CHAIN, val_fraction=0.1)


@pytest.mark.slow
def test_an_update_moves_records_to_their_new_split(
    tmp_path: Path, make_folder: MakeSource, photos: Mapping[str, bytes]
) -> None:
    def sums(manifest: Manifest) -> list[str]:
        return [file.sha256 for file in manifest.files()]

    source = make_folder(split_photos(photos, "train", "test"))
    built = precompute(source, tmp_path / "cache", CHAIN, shards=4)
    assert precompute(source, tmp_path / "cache", CHAIN, shards=4).unchanged
    for path in sorted((source / "test").rglob("*.jpg"))[:5]:
        path.rename(source / "train" / path.relative_to(source / "test"))
    updated = precompute(source, tmp_path / "cache", CHAIN, shards=4)
    assert 0 < updated.transformed <= 5
    assert updated.manifest.splits["test"].records == built.manifest.splits["test"].records - 5
    assert sums(updated.manifest) == sums(precompute(source, tmp_path / "new", CHAIN, shards=4).manifest)


def test_a_new_val_split_needs_replace(tmp_path: Path, make_folder: MakeSource, photos: Mapping[str, bytes]) -> None:
    source = make_folder(split_photos(photos, "train"))
    precompute(source, tmp_path / "cache", CHAIN)
    (source / "val" / "cat").mkdir(parents=True)
    (source / "val" / "cat" / "1.jpg").write_bytes(next(iter(photos.values())))
    with pytest.raises(CacheError, match=r"was built with val_fraction 0\.1, not None: pass --replace"):
        precompute(source, tmp_path / "cache", CHAIN)
    manifest = precompute(source, tmp_path / "cache", CHAIN, replace=True).manifest
    assert {name: split.records for name, split in manifest.splits.items()} == {"train": 30, "val": 1, "test": 0}


def test_a_cache_may_not_contain_a_file_of_its_source(
    tmp_path: Path, make_tar: MakeSource, photos: Mapping[str, bytes]
) -> None:
    write_tar(tmp_path / "set" / "a" / "0.tar", photos, make_tar)
    with pytest.raises(CacheError, match=r"^source '.*0\.tar' and cache '.*/a' overlap"):
        precompute(f"{tmp_path}/set/*/*.tar", tmp_path / "set" / "a", CHAIN, replace=True)
    assert precompute(f"{tmp_path}/set/*/*.tar", tmp_path / "set" / "cache", CHAIN).manifest.index.records == 30
