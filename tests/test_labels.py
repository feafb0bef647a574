"""Labels outside the images: a CSV file, and WebDataset's `.cls` members."""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MakeSource
from sources import add, labels, records

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


COLUMN = "column 'label' of the labels '.*labels.csv' has "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            r"^the labels '.*' have fewer than two columns: expected a header line such as 'file,label', .* got \[\]$",
        ),
        ("key\n1.jpg\n", r"fewer than two columns: .* got \['key'\]$"),
        (
            "1.jpg 0\n2.jpg 1\n",
            r"fewer than two columns: .*, separated by commas, semicolons or tabs, got \['1.jpg 0'\]$",
        ),
        ("key,label\n1.jpg\n", r"line 2: expected 2 values, as in \['key', 'label'\], got \['1.jpg'\]$"),
        ("key,label\n1.jpg,a,b\n", r"line 2: expected .*, got \['1.jpg', 'a', 'b'\]$"),
        ("key,label\n1.jpg,a\n,b\n", r"line 3: expected the name of an image, got \['', 'b'\]$"),
        ("key,label\n1.jpg,a\n2.jpg,b\n1.jpg,b\n", r"line 4: '1.jpg' is labelled twice, first in line 2$"),
        ("key,label\n1.jpg,a\n./1.jpg,b\n", r"line 3: './1.jpg' is labelled twice, first in line 2$"),
        ("key,label\n7.jpg,a\n", r"name no image of the source: got such as '7.jpg', expected names such as '1.jpg'$"),
        ("key,label\n", r"name no image of the source: got no lines, expected names such as '1.jpg'$"),
        (
            'key,label\n1.jpg,\0\n"',
            r"cannot read the labels '.*labels.csv': got UTF-16 or a binary file, save them as CSV",
        ),
        ('key,label\n1.jpg,"a\n2.jpg,b\n', "cannot read the labels '.*' as CSV in UTF-8: unexpected end of data"),
        (
            '{"file_name": "1.jpg", "label": 0}\n',
            "cannot read the labels '.*': got JSON, save them as CSV in UTF-8$",
        ),
        (
            "1.jpg,cat\n2.jpg,dog\n",
            "no header line, their first line is about the image '1.jpg': expected a header line such",
        ),
        ("1,cat\n2,dog\n", "no header line, their first line is about the image '1.jpg'"),
        (
            "file,cat,dog\n1.jpg,1,2\n",
            r"no column .* is called 'label', .*: name the columns of the targets, such as --target cat --target dog; got",
        ),
        (
            "file,label,class\n1.jpg,a,0\n",
            "may have the classes in 'label' and 'class': name one column with --target, or each of several",
        ),
        (
            "file;label\n1.jpg;27,5\n2.jpg;31\n",
            COLUMN + "several numbers in one cell: pass --target label:multilabel or",
        ),
        (
            "file,label\n1.jpg,-1\n2.jpg,0\n",
            COLUMN + "integers that are no classes, such as -1: pass --target label:value or",
        ),
        ("file,label\n1.jpg,16 0\n2.jpg,5\n", COLUMN + "several numbers in one cell: pass"),
        (
            'file,label\n1.jpg,"a, b"\n2.jpg,a\n3.png,b\n',
            COLUMN + "several names in one cell: pass --target label:multilabel or",
        ),
        ("file,label\n1.jpg,scab rust\n2.jpg,scab\n3.png,rust\n", COLUMN + "several names in one cell"),
        ("a,b,label\n1,2,x\n2,1,y\n", "name different images in the columns 'a' and 'b': choose one with --image$"),
    ],
)
def test_a_file_that_is_not_a_labels_file_is_refused(
    text: str, message: str, make_folder: MakeSource, write_csv: WriteCsv
) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(make_folder(FLAT), SourceConfig(labels=write_csv(text)))


def test_commas_and_spaces_in_class_names_are_no_lists(make_folder: MakeSource, write_csv: WriteCsv) -> None:
    path = write_csv('file,label\n1.jpg,"tench, Tinca tinca"\n2.jpg,golden retriever\n3.png,retriever\n')
    source = open_source(make_folder(FLAT), SourceConfig(labels=path))
    assert source.class_names == ("golden retriever", "retriever", "tench, Tinca tinca")


def test_a_column_of_splits_is_refused_unless_the_classes_are_named(
    make_folder: MakeSource, write_csv: WriteCsv
) -> None:
    path = write_csv("file,split,label\n1.jpg,train,a\n2.jpg,train,b\n3.png,test,a\n")
    with pytest.raises(
        SourceError, match=r"column 'split' .* such as test and train, or pass --target label to ignore"
    ):
        open_source(make_folder(FLAT), SourceConfig(labels=path))
    assert open_source(make_folder(FLAT), SourceConfig(labels=path, target="label")).records == 3


@pytest.mark.parametrize("labels", [[str(number) for number in range(20)]])
def test_a_column_whose_values_do_not_repeat_has_no_classes(
    labels: list[str], make_folder: MakeSource, write_csv: WriteCsv
) -> None:
    path = make_folder(dict.fromkeys((f"{number}.jpg" for number in range(20)), b""))
    lines = "".join(f"{number}.jpg,{label}\n" for number, label in enumerate(labels))
    with pytest.raises(
        SourceError,
        match=r"column 'age' of .* has integers, 20 classes for 20 images: pass --target age:value or --target",
    ):
        open_source(path, SourceConfig(labels=write_csv(f"file,age\n{lines}")))


def test_the_columns_of_a_labels_file_can_be_named(make_folder: MakeSource, write_csv: WriteCsv) -> None:
    path = write_csv("a,b,label,class\n1,2,x,u\n2,1,y,v\n")
    folder = make_folder({"1.jpg": b"", "2.jpg": b""})
    source = open_source(folder, SourceConfig(labels=path, image="b", target="class:class"))
    assert labels(source) == {"1.jpg": "v", "2.jpg": "u"}
    assert not source.notes
    for config, option in [
        (SourceConfig(labels=path, target="c"), "target"),
        (SourceConfig(labels=path, target="label", image="c"), "image"),
    ]:
        with pytest.raises(
            SourceError, match=rf"must have one column 'c' for --{option}, got \['a', 'b', 'label', 'class'\]$"
        ):
            open_source(folder, config)
    for config, message in [
        (
            SourceConfig(target="class"),
            "--target must name a key of the .json files in a tar, or a column of a --labels table$",
        ),
        (SourceConfig(image="b"), "^--image names a column, but '.*' has no columns: drop it, or pass a table"),
    ]:
        with pytest.raises(SourceError, match=message):
            open_source(folder, config)


@pytest.mark.parametrize(
    "text",
    [
        ",file,label\n7,1.jpg,cat\n8,2.jpg,dog\n9,3.png,cat\n",
        "Unnamed: 0,photo,kind\n1,1.jpg,cat\n3,2.jpg,dog\n2,3.png,cat\n",
        ",kind\n1.jpg,cat\n2.jpg,dog\n3.png,cat\n",
        "kind,photo\ncat,1.jpg\ndog,2.jpg\ncat,3.png\n",
        "Image ID\tBreed\r\n1\tcat\r\n2\tdog\r\n3\tcat\r\n",
        "file_name; Category;\n1.jpg ; cat;\n 2.jpg;dog;\n'3.png';cat;\n".replace("'", '"'),
        "id,file,label\n3,1.jpg,cat\n8,2.jpg,dog\n9,3.png,cat\n",
        "file,label\r1.jpg,cat\r2.jpg,dog\r3.png,cat\r",
        "\n\nfile,label,\n1.jpg,cat,\n,,\n2.jpg,dog,\n3.png,cat,,,\n",
    ],
    ids=[
        "index",
        "named index",
        "index of names",
        "classes first",
        "tabs",
        "semicolons",
        "numbers and names",
        "CR",
        "empty cells",
    ],
)
def test_labels_are_read_in_many_dialects(text: str, make_folder: MakeSource, write_csv: WriteCsv) -> None:
    source = open_source(make_folder(FLAT), SourceConfig(labels=write_csv(text)))
    assert labels(source) == {"1.jpg": "cat", "2.jpg": "dog", "3.png": "cat"}
    assert not source.notes


def test_columns_that_are_not_used_are_noted(make_folder: MakeSource, write_csv: WriteCsv) -> None:
    path = write_csv("file,size,label,date\n1.jpg,7,cat,x\n2.jpg,7,dog,x\n3.png,7,cat,x\n")
    note = f"targets are in column 'label' of {path}; 2 columns not used: 'size', 'date'"
    assert open_source(make_folder(FLAT), SourceConfig(labels=path)).notes == (note,)


# Paths


@pytest.mark.parametrize(
    ("name", "csv"),
    [
        ("{folder}/a/{file}", "labels.csv"),
        ("folder/a/{file}", "labels.csv"),
        ("a/{file}", "folder/labels.csv"),
        ("./{file}", "folder/a/labels.csv"),
        ("../a/{file}", "folder/b/labels.csv"),
        ("a\\{file}", "labels.csv"),
    ],
)
def test_paths_mean_the_files_that_they_name(name: str, csv: str, make_folder: MakeSource, tmp_path: Path) -> None:
    folder = make_folder(dict.fromkeys(("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"), b""))
    path = tmp_path / csv
    lines = [name.format(folder=folder, file=file) + f",{file}\n" for file in ("1.jpg", "2.jpg")]
    path.write_text("path,label\n" + "".join(lines))
    source = open_source(folder, SourceConfig(labels=path))
    assert labels(source) == {"a/1.jpg": "1.jpg", "a/2.jpg": "2.jpg"}
    assert not source.notes


def test_the_ends_of_paths_are_matched_if_nothing_else_is(
    make_folder: MakeSource, make_tar: MakeSource, write_csv: WriteCsv
) -> None:
    files = {"images/1.jpg": b"", "images/2.jpg": b""}
    path = write_csv("path,label\nC:\\data\\images\\1.jpg,cat\n2,dog\nother/3.jpg,cat\n")
    for make in (make_folder, make_tar):
        source = open_source(make(files), SourceConfig(labels=path))
        assert labels(source) == {"images/1.jpg": "cat", "images/2.jpg": "dog"}
        assert source.notes == (
            f"{path} was matched by the ends of paths, such as 'C:\\\\data\\\\images\\\\1.jpg' with 'images/1.jpg'",
            f"{path} has labels for 1 image that the source does not have, such as 'other/3.jpg'",
        )
    path = write_csv("path,label\ntrain/1.jpg,cat\ntest/1.jpg,dog\n")
    with pytest.raises(SourceError, match=r"line 3: 'test/1.jpg' is labelled twice, first in line 2$"):
        open_source(make_folder({"1.jpg": b""}), SourceConfig(labels=path))


@pytest.mark.parametrize("files", [("1.jpg", "1.png"), ("a/1.jpg", "b/1.jpg")])
def test_a_line_that_matches_two_images_is_refused(
    files: tuple[str, str], make_folder: MakeSource, write_csv: WriteCsv
) -> None:
    path = make_folder(dict.fromkeys(files, b""))
    with pytest.raises(
        SourceError, match=rf"2: '1' may be '{files[0]}' or '{files[1]}': use longer paths, with suffix$"
    ):
        open_source(path, SourceConfig(labels=write_csv("id,label\n1,cat\n")))


def test_an_image_whose_label_is_empty_is_refused(make_folder: MakeSource, write_csv: WriteCsv) -> None:
    path = write_csv("key,label\n1.jpg,cat\n2.jpg,\n3.png,NaN\n")
    source = open_source(make_folder(FLAT), SourceConfig(labels=path))
    assert labels(source) == {"1.jpg": "cat"}
    assert dict(source.refused) == dict.fromkeys(("2.jpg", "3.png"), f"its label in {path} is empty")


def test_a_file_that_is_missing_or_not_utf8_is_refused(make_folder: MakeSource, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^cannot read the labels '.*none\.csv': No such file or directory$"):
        open_source(make_folder(FLAT), SourceConfig(labels=tmp_path / "none.csv"))
    with pytest.raises(SourceError, match=r"^cannot read the labels '~/none\.csv': only shells expand '~'"):
        open_source(make_folder(FLAT), SourceConfig(labels="~/none.csv"))
    for data, message in [
        (b"key,label\n\xff,a\n", r"bytes\.csv' as CSV in UTF-8: 'utf-8' codec can't decode"),
        (
            "key,label\n1.jpg,a\n".encode("utf-16"),
            r"bytes\.csv': got UTF-16 or a binary file, save them as CSV in UTF-8$",
        ),
        (
            "key,label\n1.jpg,a\n".encode("utf-16-le"),
            r"bytes\.csv': got UTF-16 or a binary file, save them as CSV in UTF-8$",
        ),
    ]:
        (tmp_path / "bytes.csv").write_bytes(data)
        with pytest.raises(SourceError, match=message):
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


NEITHER = "must have a class name or a number from 0 to 999999, got "


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"cat", "must have a number as most others have, got 'cat'"),
        ("٣".encode(), "must have a number as most others have, got '٣'"),
        (b"", NEITHER + "''"),
        (b"-1", NEITHER + "'-1'"),
        (b"1.5", NEITHER + "'1.5'"),
        (b"1 2", NEITHER + "'1 2'"),
        (b"nan", NEITHER + "'nan'"),
        (b"cat\ndog", NEITHER + r"'cat\ndog'"),
        (b"1000000", NEITHER + "'1000000'"),
        (b"\xff", r"must be UTF-8, got b'\xff'"),
        (b"a" * 1025, "must have at most 1,024 bytes"),
    ],
)
def test_an_image_without_a_valid_class_is_refused_by_name(make_tar: MakeSource, text: bytes, problem: str) -> None:
    files = {"0.jpg": b"", "0.cls": b"1\r\n", "1.jpg": b"", "1.cls": text, "2.jpg": b"", "3.jpg": b"", "3.cls": b" 0 "}
    source = open_source(make_tar(files))
    assert labels(source) == {"0.jpg": "1", "3.jpg": "0"}
    assert dict(source.refused) == {"1.jpg": f"its .cls file {problem}", "2.jpg": "it has no .cls file"}


def test_most_files_decide_between_numbers_and_names(make_tar: MakeSource) -> None:
    files = {"0.jpg": b"", "0.cls": b"dog\n", "1.jpg": b"", "1.cls": b"3", "2.jpg": b"", "2.cls": "été".encode()}
    source = open_source(make_tar(files))
    assert labels(source) == {"0.jpg": "dog", "2.jpg": "été"}
    assert dict(source.refused) == {"1.jpg": "its .cls file must have a name as most others have, got 3"}


def test_a_tar_without_any_valid_class_is_refused(make_tar: MakeSource) -> None:
    with pytest.raises(SourceError, match=r"^no images with a class in '.*': 0\.jpg: its \.cls file must .* got '-1'$"):
        open_source(make_tar({"0.jpg": b"", "0.cls": b"-1"}))
    with pytest.raises(SourceError, match=r"^no labels found in '.*', but '1\.cls': pass a table .* as --labels$"):
        open_source(make_tar({"0.jpg": b"", "1.cls": b"1"}))


def test_cls_members_must_be_regular_files_inside(tmp_path: Path) -> None:
    path = tmp_path / "photos.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(4):
            add(tar, f"{number}.jpg")
        add(tar, "0.cls", data=b"1")
        add(tar, "../1.cls", data=b"1")
        add(tar, "2.cls", tarfile.SYMTYPE)
        add(tar, ".3.cls", data=b"1")
    missing = "it has no .cls file"
    irregular = "its .cls file is not a regular file: a link, device or sparse file"
    assert dict(open_source(path).refused) == {"1.jpg": missing, "2.jpg": irregular, "3.jpg": missing}
    with tarfile.open(path, "a") as tar:
        add(tar, "./0.cls", data=b"2")
    with pytest.raises(SourceError, match=r"no images with a class in .*$"):
        open_source(path)


@pytest.mark.parametrize(
    ("image", "label_file"),
    [
        ("img.0001.jpg", "img.0001.cls"),
        ("img.0001.jpg", "img.cls"),
        ("a.b/0.1.2.JPG", "a.b/0.1.2.CLS"),
        ("000.img.jpg", "000.cls"),
        ("000.image.PNG", "000.image.cls"),
        ("0.jpeg", "0.cls"),
        ("0.webp", "./0.cls"),
    ],
)
def test_a_label_file_is_named_like_the_start_of_its_image(image: str, label_file: str, make_tar: MakeSource) -> None:
    source = open_source(make_tar({image: b"", label_file: b"cat"}))
    assert labels(source) == {image: "cat"}
    assert not source.skipped


def test_the_label_file_with_the_longest_name_counts(make_tar: MakeSource) -> None:
    files = {f"img.{number:04}.jpg": b"" for number in range(3)} | {
        f"img.{number:04}.cls": b"%d" % number for number in range(2)
    }
    source = open_source(make_tar(files | {"img.cls": b"2"}))
    assert labels(source) == {"img.0000.jpg": "0", "img.0001.jpg": "1", "img.0002.jpg": "2"}


@pytest.mark.parametrize(
    ("zero", "one", "target", "names"),
    [
        ('{"label": 1, "width": 7}', '{"label": 0}', None, ("0", "1")),
        ('{"class": "dog"}', '{"class": "cat"}', None, ("cat", "dog")),
        ('\ufeff{"CLS": "3"}', '{"cls": 1}', None, ("0", "1", "2", "3")),
        ('{"label": 1, "kind": true}', '{"label": 0, "kind": false}', "kind:class", ("False", "True")),
    ],
)
def test_classes_are_read_from_json_members(
    zero: str, one: str, target: str | None, names: tuple[str, ...], make_tar: MakeSource
) -> None:
    path = make_tar(
        {"0.jpg": b"", "0.json": zero.encode(), "1.jpg": b"", "1.json": one.encode(), "0.txt": b"a caption"}
    )
    source = open_source(path, SourceConfig(target=target))
    assert source.class_names == names
    assert [record.targets[0] for record in records(source)] == [
        len(names) - 1,
        names.index(names[0]) if len(names) < 4 else 1,
    ]
    assert source.skipped == Counter({".txt": 1})
    assert source.notes[-1:] == (f"classes are read from the .json files in {path}",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", r"must have a key label, class, cls, category, target, breed or species, got {}"),
        ('{"url": 1, "x": 2}', r"must have a key label, .* or species, got \['url', 'x'\]"),
        ('{"label": 1, "class": "a"}', "has the keys 'label' and 'class': name one with --target"),
        ('{"label": [1, 2]}', r"must have a class name or number for 'label', got \[1, 2\]"),
        ('{"label": null}', "must have a class name or number for 'label', got None"),
        ('{"label": 0.5}', NEITHER + "'0.5'"),
        ('{"label": -1}', NEITHER + "'-1'"),
        ('{"label": ', "is not JSON: Expecting value.*"),
        ("[" * 100_000, "is not JSON: maximum recursion depth exceeded.*"),
        ('{"label": 1' + "0" * 5000 + "}", "is not JSON: Exceeds the limit .*"),
        (" " * (1 << 20) + "1", "must have at most 1,048,576 bytes"),
    ],
)
def test_json_members_without_a_class_are_refused(text: str, problem: str, make_tar: MakeSource) -> None:
    files = {"0.jpg": b"", "0.json": text.encode()}
    with pytest.raises(
        SourceError, match=rf"^no labels found in '.*', but '0\.json' \(0: its \.json file {problem}\): pass a t"
    ):
        open_source(make_tar(files))
    source = open_source(make_tar(files | {"1.jpg": b"", "1.json": b'{"label": 1}'}))
    assert labels(source) == {"1.jpg": "1"}
    [(key, reason)] = source.refused
    assert key == "0.jpg"
    assert re.fullmatch(f"its .json file {problem}", reason)


def test_a_target_that_no_json_member_has_is_refused(make_tar: MakeSource) -> None:
    tar = make_tar({"0.jpg": b"", "0.cls": b"1", "0.json": b'{"label": 1}'})
    problem = r"no image in '.*' has a class under 'kind' \(0: its \.json file must have the key 'kind', got \['label'\]\): --target"
    with pytest.raises(SourceError, match=problem):
        open_source(tar, SourceConfig(target="kind"))


def test_class_names_are_read_from_txt_members(make_tar: MakeSource) -> None:
    path = make_tar({"0.jpg": b"", "0.txt": b"dog\n", "1.jpg": b"", "1.TXT": b"cat", "README.txt": b"two\nlines"})
    source = open_source(path)
    assert labels(source) == {"0.jpg": "dog", "1.jpg": "cat"}
    assert source.skipped == Counter({".txt": 1})
    assert source.notes[-1:] == (f"classes are read from the .txt files in {path}",)
    files = {f"{number}{suffix}": b"photo %d" % number for number in range(20) for suffix in (".jpg", ".txt")}
    with pytest.raises(
        SourceError, match=r"^the \.txt files in '.*' seem to be captions, not classes, as nearly each is differ"
    ):
        open_source(make_tar(files))


@pytest.mark.parametrize(
    ("name", "text"),
    [("0.xml", "<annotation/>"), ("0.txt", "0 0.5 0.5 0.1 0.1\n"), ("labels.csv", "file,label\n0.jpg,1\n")],
)
def test_a_flat_tar_whose_labels_are_not_read_is_refused(name: str, text: str, make_tar: MakeSource) -> None:
    with pytest.raises(SourceError, match=rf"^no labels found in '.*', but '{name}'.*: pass a table .* as --labels$"):
        open_source(make_tar({"0.jpg": b"", name: text.encode()}))


def test_label_files_that_are_not_used_are_noted(make_folder: MakeSource, make_tar: MakeSource) -> None:
    files = {
        "a/0.jpg": b"",
        "b/1.jpg": b"",
        "a/0.json": b'{"label": 1}',
        "b/1.json": b"{}",
        "b/1.xml": b"",
        "notes.txt": b"",
    }
    pass_table = "pass a table with the name and class of each image as --labels if these have the labels"
    for make in (make_folder, make_tar):
        source = open_source(make(files))
        assert labels(source) == {"a/0.jpg": "a", "b/1.jpg": "b"}
        [note] = [note for note in source.notes if note.startswith("label files")]
        assert "'b/1.xml'" in note
        assert "2 .json files such as 'a/0.json'" in note
        assert "notes" not in note
        assert note.endswith(f"): {pass_table}")
    flat = make_folder({"flat/0.jpg": b"", "flat/metadata.csv": b"", "flat/.labels.csv": b""}) / "flat"
    note = f"label files are not used ('metadata.csv'): {pass_table}"
    assert note in open_source(flat).notes


def test_more_classes_than_half_the_images_are_noted(make_folder: MakeSource, make_tar: MakeSource) -> None:
    note = "11 classes for 20 images: check that these are classes, a model needs many images of each"
    names = {f"{number}.jpg": number % 11 for number in range(20)}
    for path in (
        make_folder({f"{label}/{name}": b"" for name, label in names.items()}),
        make_tar({f"{name[:-3]}{end}": b"%d" % label for name, label in names.items() for end in ("jpg", "cls")}),
    ):
        assert open_source(path, SourceConfig(limit=5)).notes == (note,)


def test_masks_of_a_sample_are_no_images(make_tar: MakeSource) -> None:
    files = {
        "0.jpg": b"",
        "0.seg.png": b"",
        "0.cls": b"1",
        "1.0.png": b"",
        "1.0.mask.PNG": b"",
        "1.0.cls": b"0",
        "2.seg.png": b"",
    }
    source = open_source(make_tar(files | {"2.cls": b"1"}))
    assert labels(source) == {"0.jpg": "1", "1.0.png": "0", "2.seg.png": "1"}
    assert source.skipped == Counter({"(mask)": 2})


def test_a_labels_file_takes_precedence_over_cls_members(make_tar: MakeSource, write_csv: WriteCsv) -> None:
    tar = make_tar({"0.jpg": b"", "0.cls": b"1", "1.jpg": b"", "1.cls": b"a dog", "2.jpg": b""})
    source = open_source(tar, SourceConfig(labels=write_csv("key,label\n0,cat\n1,dog\n2,cat\n")))
    assert labels(source) == {"0.jpg": "cat", "1.jpg": "dog", "2.jpg": "cat"}
    assert not source.refused


def test_only_the_class_of_the_whole_sample_counts(make_tar: MakeSource) -> None:
    source = open_source(make_tar({"0.jpg": b"", "0.cls": b"1", "0.left.cls": b"2", "0.right.cls": b"3"}))
    assert labels(source) == {"0.jpg": "1"}
    assert source.skipped == Counter({".cls": 2})
