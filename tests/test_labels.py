"""Labels outside the images: a CSV file, and WebDataset's `.cls` members."""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MakeSource
from sources import add, labels

from joulecache.pipelines.source import SourceConfig, SourceError, open_source
from joulecache.pipelines.source.labels import read_labels

FLAT = {"1.jpg": b"one", "2.jpg": b"two", "3.png": b"three"}


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "labels.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


WriteCsv = Callable[[str], Path]

# A CSV file


@pytest.mark.parametrize(
    "text",
    [
        "key,label\n1.jpg,cat\n2.jpg,dog\n3.png,cat\n",
        "id,breed\n1,cat\n2,dog\n3,cat\n",
        "file,size,label,date\n1.jpg,7,cat,x\n2.jpg,7,dog,x\n3.png,7,cat,x\n",
        '\ufeffkey,label\r\n"./1.jpg","cat"\r\n2.jpg,dog\r\n\r\n3.png,cat\r\n',
    ],
    ids=["names", "names without suffix", "a column called label", "as a spreadsheet writes it"],
)
def test_labels_come_from_a_file(text: str, make_folder: MakeSource, make_tar: MakeSource, write_csv: WriteCsv) -> None:
    path = write_csv(text)
    for make in (make_folder, make_tar):
        source = open_source(make(FLAT), SourceConfig(labels=path))
        assert source.class_names == ("cat", "dog")
        assert labels(source) == {"1.jpg": "cat", "2.jpg": "dog", "3.png": "cat"}
        assert not source.refused


def test_a_labels_file_takes_precedence_over_folders(make_folder: MakeSource, write_csv: WriteCsv) -> None:
    path = make_folder({"a/1.jpg": b"", "b/2.jpg": b"", "3.jpg": b""})
    source = open_source(path, SourceConfig(labels=write_csv("key,label\na/1.jpg,x\nb/2,y\n3,x\n")))
    assert labels(source) == {"a/1.jpg": "x", "b/2.jpg": "y", "3.jpg": "x"}


def test_numeric_classes_are_sorted_as_numbers(make_folder: MakeSource, write_csv: WriteCsv) -> None:
    files = {f"{number}.jpg": b"" for number in range(12)}
    lines = "".join(f"{number},{number}\n" for number in range(12))
    assert open_source(make_folder(files), SourceConfig(labels=write_csv("id,label\n" + lines))).class_names == tuple(
        map(str, range(12))
    )
    assert open_source(
        make_folder(files), SourceConfig(labels=write_csv("id,label\n" + lines.replace(",3", ",03")))
    ).class_names == (
        *("0", "03", "1", "10", "11", "2"),
        *map(str, range(4, 10)),
    )


def test_an_image_without_a_label_is_refused_and_a_label_without_an_image_counted(
    make_folder: MakeSource, write_csv: WriteCsv
) -> None:
    path = write_csv("key,label\n1.jpg,cat\n2.jpg,dog\n9.jpg,cat\n")
    source = open_source(make_folder(FLAT), SourceConfig(labels=path))
    assert source.records == 2
    assert source.refused == (("3.png", f"it has no label in {path}"),)
    assert source.skipped == Counter({"(label of no image)": 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^a labels file must have a header line, .*column 'label' or the second of two; .* starts with \[\]$"),
        ("key\n1.jpg\n", r"starts with \['key'\]$"),
        ("label,key,size\n", r"starts with \['label', 'key', 'size'\]$"),
        ("key,label\n1.jpg\n", r"line 2: expected a record and its class, as in \['key', 'label'\], got \['1.jpg'\]$"),
        ("key,label\n1.jpg,a,b\n", r"line 2: expected .*, got \['1.jpg', 'a', 'b'\]$"),
        ("key,label\n1.jpg,a\n2.jpg,b\n1.jpg,b\n", r"line 4: '1.jpg' is labelled twice$"),
        ("key,label\n1.jpg,a\n./1.jpg,b\n", r"line 3: '1.jpg' is labelled twice$"),
        (
            "key,label\n7.jpg,a\n",
            r"labels no record: it has names such as '7.jpg', the source has names such as '1.jpg'$",
        ),
        ("key,label\n", r"labels no record: it has no lines, the source has names such as '1.jpg'$"),
        ('key,label\n1.jpg,\0\n"', "cannot read the labels '.*labels.csv' as CSV|expected a record and its class"),
    ],
)
def test_a_file_that_is_not_a_labels_file_is_refused(
    text: str, message: str, make_folder: MakeSource, write_csv: WriteCsv
) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(make_folder(FLAT), SourceConfig(labels=write_csv(text)))


def test_a_line_that_matches_two_images_is_refused(make_folder: MakeSource, write_csv: WriteCsv) -> None:
    path = make_folder({"1.jpg": b"", "1.png": b""})
    with pytest.raises(SourceError, match=r"labels '1', which may be '1.jpg' or '1.png': use names with their suffix$"):
        open_source(path, SourceConfig(labels=write_csv("id,label\n1,cat\n")))


def test_a_missing_labels_file_is_refused(make_folder: MakeSource, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^cannot read the labels '.*none\.csv': No such file or directory$"):
        open_source(make_folder(FLAT), SourceConfig(labels=tmp_path / "none.csv"))
    (tmp_path / "bytes.csv").write_bytes(b"key,label\n\xff,a\n")
    with pytest.raises(SourceError, match=r"bytes\.csv' as CSV: 'utf-8' codec can't decode"):
        read_labels(tmp_path / "bytes.csv")


def test_sources_with_labels_refuse_a_labels_file(write_csv: WriteCsv) -> None:
    with pytest.raises(SourceError, match="labels file is for a folder or tar of images, but 'synthetic:3' has labels"):
        open_source("synthetic:3", SourceConfig(labels=write_csv("key,label\n")))


# WebDataset


def test_cls_members_of_a_tar_define_the_classes(make_tar: MakeSource) -> None:
    files = {
        "000.jpg": b"zero",
        "000.cls": b"2",
        "000.json": b"{}",
        "001.cls": b" 0\n",
        "001.left.png": b"left",
        "001.right.png": b"right",
        "sub.folder/002.jpg": b"two",
        "sub.folder/002.cls": b"10",
    }
    source = open_source(make_tar(files))
    assert source.class_names == tuple(map(str, range(11)))
    assert labels(source) == {"000.jpg": "2", "001.left.png": "0", "001.right.png": "0", "sub.folder/002.jpg": "10"}
    assert source.skipped == Counter({".json": 1})


@pytest.mark.parametrize("text", [b"cat", b"", b"-1", b"1.5", b"1 2", b"1000000", b"9" * 100, b"\xff", "٣".encode()])
def test_a_class_that_is_not_a_number_is_refused_by_name(make_tar: MakeSource, text: bytes) -> None:
    source = open_source(make_tar({"0.jpg": b"", "0.cls": b"1", "1.jpg": b"", "1.cls": text, "2.jpg": b""}))
    assert labels(source) == {"0.jpg": "1"}
    assert dict(source.refused) == {
        "1.jpg": f"its .cls file must have a class from 0 to 999999, got {text[:64]!r}",
        "2.jpg": "it has no .cls file",
    }


def test_a_tar_without_any_valid_class_is_refused(make_tar: MakeSource) -> None:
    with pytest.raises(
        SourceError, match=r"^no images with a class in '.*': 0\.jpg: its \.cls file must .* got b'cat'$"
    ):
        open_source(make_tar({"0.jpg": b"", "0.cls": b"cat"}))
    with pytest.raises(SourceError, match=r"^no images with a class in '.*': 0\.jpg: it has no \.cls file$"):
        open_source(make_tar({"0.jpg": b"", "1.cls": b"1"}))


def test_cls_members_are_checked_like_images(tmp_path: Path) -> None:
    path = tmp_path / "photos.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "0.jpg")
        add(tar, "0.cls", data=b"1")
        add(tar, "../1.cls", data=b"1")
        add(tar, "2.cls", tarfile.SYMTYPE)
        add(tar, ".3.cls", data=b"1")
    assert dict(open_source(path).refused) == {
        "../1.cls": "the name leaves the archive",
        "2.cls": "not a regular file: a link, device or sparse file",
    }
    with tarfile.open(path, "a") as tar:
        add(tar, "./0.cls", data=b"2")
    with pytest.raises(SourceError, match=re.escape("has '0.cls' twice: keys must be unique")):
        open_source(path)


def test_a_labels_file_takes_precedence_over_cls_members(make_tar: MakeSource, write_csv: WriteCsv) -> None:
    tar = make_tar({"0.jpg": b"", "0.cls": b"1", "1.jpg": b"", "1.cls": b"a dog", "2.jpg": b""})
    source = open_source(tar, SourceConfig(labels=write_csv("key,label\n0,cat\n1,dog\n2,cat\n")))
    assert labels(source) == {"0.jpg": "cat", "1.jpg": "dog", "2.jpg": "cat"}
    assert not source.refused


def test_only_the_class_of_the_whole_sample_counts(make_tar: MakeSource) -> None:
    source = open_source(make_tar({"0.jpg": b"", "0.cls": b"1", "0.left.cls": b"2", "0.right.cls": b"3"}))
    assert labels(source) == {"0.jpg": "1"}
    assert source.skipped == Counter({".cls": 2})
