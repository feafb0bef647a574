"""The columns of Parquet and TFRecord files that hold the images and the classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from caches import cached_images, index_of
from conftest import encoded
from sources import example, label_of, labels, records, splits, write_parquet, write_tfrecord

from joulecache.pipelines import precompute
from joulecache.pipelines.source import Source, SourceConfig, SourceError, open_source

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def structs(*images: bytes) -> Any:
    return pa.array([{"bytes": image, "path": None} for image in images], STRUCT)


def write(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None) -> Path:
    """Write a Parquet file, with Hugging Face's metadata where there are any; return the path."""
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def class_label(*names: str) -> dict[str, Any]:
    return {"names": list(names), "_type": "ClassLabel"}


def of(source: Source) -> list[tuple[bytes, str]]:
    """Return the images and classes of a source."""
    return [(record.data, source.class_names[label_of(record)]) for record in records(source)]


IMAGES = structs(b"a", b"b", b"c")
PLAIN = pa.array([b"a", b"b", b"c"])
NUMBERS = pa.array([1, 0, 1])
EXPECTED = [(b"a", "1"), (b"b", "0"), (b"c", "1")]


@pytest.mark.parametrize(
    ("columns", "note"),
    [
        ({"image": IMAGES, "label": NUMBERS}, None),
        ({"image": PLAIN, "label": NUMBERS}, None),
        ({"img": IMAGES, "label": NUMBERS}, "images from column img, classes from label (2 names)"),
        (
            {"id": NUMBERS, "picture": PLAIN, "labels": NUMBERS},
            "images from column picture, classes from labels (2 names)",
        ),
        ({"photo": IMAGES, "fine_label": NUMBERS}, "images from column photo, classes from fine_label (2 names)"),
        (
            {"webp": PLAIN.cast(pa.large_binary()), "cls": NUMBERS, "__key__": pa.array(["a", "b", "c"])},
            "images from column webp, classes from cls (2 names)",
        ),
        ({"x-ray": IMAGES, "category": NUMBERS}, "images from column x-ray, classes from category (2 names)"),
        (
            {"img": IMAGES, "label": NUMBERS, "coarse_label": NUMBERS},
            "images from column img, classes from label (2 names), not from coarse_label",
        ),
        (
            {"jpg": PLAIN, "label": NUMBERS, "caption": pa.array([b"x", b"y", b"z"]), "__index_level_0__": NUMBERS},
            "images from column jpg, classes from label (2 names)",
        ),
    ],
)
def test_columns_are_found_by_type_and_name(tmp_path: Path, columns: dict[str, Any], note: str | None) -> None:
    source = open_source(write(tmp_path / "photos.parquet", columns))
    assert of(source) == EXPECTED
    assert [record.key for record in records(source)] == [f"photos.parquet#{row}" for row in range(3)]
    assert source.notes == (() if note is None else (note,))


def test_a_column_of_splits_is_noted_unless_files_are_splits(tmp_path: Path) -> None:
    columns = {"image": IMAGES, "label": NUMBERS, "split": pa.array(["train", "train", "test"])}
    note = "column split is not read, and its test rows, if any, are trained on: give each split its own files"
    write(tmp_path / "train.parquet", columns)
    assert open_source(tmp_path / "train.parquet").notes == (note,)
    write(tmp_path / "test.parquet", columns)
    assert open_source(f"{tmp_path}/*.parquet").notes == ()


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()], ids=str
)
def test_labels_are_integers_of_any_size(tmp_path: Path, kind: Any) -> None:
    for features in (None, {"label": class_label("0", "1")}):
        path = write(tmp_path / "photos.parquet", {"image": IMAGES, "label": NUMBERS.cast(kind)}, features)
        assert of(open_source(path)) == EXPECTED


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ],
    ids=str,
)
def test_text_labels_are_class_names_in_order(tmp_path: Path, kind: Any) -> None:
    animals = pa.array(["owl", "cat", "owl"])
    path = write(tmp_path / "photos.parquet", {"image": IMAGES, "label": animals.cast(kind)})
    source = open_source(path)
    assert source.class_names == ("cat", "owl")
    assert of(source) == [(b"a", "owl"), (b"b", "cat"), (b"c", "owl")]


def test_text_labels_that_are_integers_are_ordered_as_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "photos.parquet", {"image": IMAGES, "label": pa.array(["10", "9", "10"])})
    assert open_source(path).class_names == ("9", "10")


def test_booleans_are_two_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "photos.parquet", {"image": IMAGES, "label": pa.array([True, False, None])})
    source = open_source(path)
    assert source.class_names == ("False", "True")
    assert [(record.targets[0], record.problem) for record in records(source)] == [
        (1, None),
        (0, None),
        (-1, "its row has no label"),
    ]


CIFAR100 = {
    "fine_label": class_label("bee", "cow"),
    "coarse_label": class_label("ant", "ape", "fly"),
    "img": {"_type": "Image"},
}


@pytest.mark.parametrize(
    ("target", "names"), [("fine_label", ("bee", "cow")), ("coarse_label:class", ("ant", "ape", "fly"))]
)
def test_a_choice_between_classes_is_the_users(tmp_path: Path, target: str, names: tuple[str, ...]) -> None:
    columns = {"img": PLAIN, "fine_label": NUMBERS, "coarse_label": pa.array([2, 2, 0])}
    path = write(tmp_path / "cifar100.parquet", columns, CIFAR100)
    with pytest.raises(
        SourceError, match=r"2 columns of classes: choose one with --target fine_label or --target coarse_label$"
    ):
        open_source(path)
    assert open_source(path, SourceConfig(target=target)).class_names == names


def test_names_that_hugging_face_declares_make_any_column_one_of_classes(tmp_path: Path) -> None:
    features = {"species": class_label("cat", "dog"), "mask": {"_type": "Image"}, "image": {"_type": "Image"}}
    path = write(tmp_path / "pets.parquet", {"image": IMAGES, "mask": IMAGES, "species": NUMBERS}, features)
    source = open_source(path)
    assert of(source) == [(b"a", "dog"), (b"b", "cat"), (b"c", "dog")]
    assert source.notes == ("images from column image, classes from species (2 names), not from mask",)


def test_fields_are_named_with_a_dot(tmp_path: Path) -> None:
    rows = pa.array([{"photo": {"data": b"a", "kind": "dog"}}, {"photo": None}, None])
    path = write(tmp_path / "nested.parquet", {"row": rows})
    source = open_source(path, SourceConfig(image="row.photo.data", target="row.photo.kind"))
    assert of(source)[:1] == [(b"a", "dog")]
    assert [record.problem for record in records(source)] == [None, *["its row has no image"] * 2]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            {"img": IMAGES, "picture": IMAGES, "label": NUMBERS},
            {},
            "has 2 columns of images: choose one with --image img or --image picture",
        ),
        ({"label": NUMBERS}, {}, "has no known column of images: name it with --image; it has label (integer)"),
        ({"image": pa.array([{"path": "a"}] * 3), "label": NUMBERS}, {}, "it has image.path (text), label (integer)"),
        (
            {"image": pa.array(["a.jpg"] * 3), "label": NUMBERS},
            {},
            "column 'image' of 'photos.parquet' holds text, not encoded images",
        ),
        (
            {"image": IMAGES, "labels": pa.array([[1], [2, 3], []])},
            {},
            "column 'labels' of 'photos.parquet' holds list, not classes",
        ),
        (
            {"image": IMAGES, "age": pa.array([1.5, 2, 3]), "label": NUMBERS},
            {"target": "age:class"},
            "column 'age' of 'photos.parquet' holds float",
        ),
        (
            {"image": IMAGES, "label": NUMBERS},
            {"target": "lable"},
            "has no column 'lable': it has image (image), label (integer)",
        ),
        (
            {"image": IMAGES, "label": NUMBERS},
            {"image": "label"},
            "column 'label' of 'photos.parquet' holds integer, not encoded images",
        ),
        (
            {"image": IMAGES, "label": pa.array([b"\xff\xd8", b"x", b"y"])},
            {},
            "column 'label' of 'photos.parquet' holds no classes: its label is neither a number nor UTF-8 text",
        ),
    ],
)
def test_other_columns_are_refused_with_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    write(tmp_path / "photos.parquet", columns)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as caught:
        open_source("photos.parquet", SourceConfig(**options))
    assert message in str(caught.value)


def test_captions_are_not_classes(tmp_path: Path) -> None:
    captions = pa.array([f"a photo of {row}" for row in range(30)])
    path = write(tmp_path / "photos.parquet", {"image": structs(*[b"a"] * 30), "caption": captions})
    with pytest.raises(
        SourceError,
        match=r"'caption' of .* has 30 classes for 30 images: name another column with --target, or pass --target caption:text",
    ):
        open_source(path, SourceConfig(target="caption"))


def test_a_row_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    rows = [{"bytes": b"a", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, {"bytes": None, "path": None}, None]
    columns = {"image": pa.array([*rows, *rows[:2]], STRUCT), "label": pa.array(["x", "y", "y", "x", "", None])}
    source = open_source(write(tmp_path / "photos.parquet", columns))
    outside = "its row has no image, but names the file 'b.jpg': only images inside the Parquet file are read"
    assert [record.problem for record in records(source)] == [
        None,
        outside,
        "its row has no image",
        "its row has no image",
        "its label is empty",
        outside,
    ]


def test_text_that_is_not_utf_8_is_a_reject(tmp_path: Path) -> None:
    broken = pa.array([b"cat", b"\xff", b"dog"]).view(pa.string())
    path = write(tmp_path / "photos.parquet", {"image": IMAGES, "label": broken})
    with pytest.raises(SourceError, match=r"column 'label' of .* holds no classes: .*codec can't decode"):
        open_source(path)


# Several files


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"img": IMAGES, "label": NUMBERS},
            r"b\.parquet' has no column 'image', which '.*a\.parquet' has: use files with",
        ),
        ({"image": IMAGES, "class": NUMBERS}, r"'b\.parquet' has no column 'label', which '.*a\.parquet' has"),
        (
            {"image": IMAGES, "label": pa.array(["x", "y", "x"])},
            r"column 'label' holds integer in '.*a\.parquet', but text in '.*b\.parquet'",
        ),
    ],
)
def test_files_of_different_columns_are_refused(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    write(tmp_path / "a.parquet", {"image": IMAGES, "label": NUMBERS})
    write(tmp_path / "b.parquet", other)
    with pytest.raises(SourceError, match=message):
        open_source(f"{tmp_path}/*.parquet")


def test_classes_of_text_are_those_of_all_files(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", {"image": IMAGES, "label": pa.array(["owl", "cat", "owl"])})
    write(tmp_path / "train-1.parquet", {"image": IMAGES, "label": pa.array(["dog", "cat", "owl"])})
    write(tmp_path / "test-0.parquet", {"image": IMAGES, "label": pa.array(["bee", "cat", "owl"])})
    source = open_source(f"{tmp_path}/*.parquet")
    assert source.class_names == ("bee", "cat", "dog", "owl")
    assert [name for _, name in of(source)] == ["bee", "cat", "owl", "owl", "cat", "owl", "dog", "cat", "owl"]


# Hidden labels


HIDDEN: list[Any] = [
    {"image": IMAGES, "label": pa.array([-1, -1, -1])},
    {"image": IMAGES, "label": pa.array([None, None, None], pa.int64())},
    {"image": IMAGES, "label": pa.array([-1, None, -1])},
    {"image": IMAGES},
]


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("features", [None, {"label": class_label("cat", "dog")}], ids=["numbers", "names"])
def test_a_split_without_labels_is_left_out(
    tmp_path: Path, hidden: dict[str, Any], features: dict[str, Any] | None
) -> None:
    write(tmp_path / "train.parquet", {"image": IMAGES, "label": NUMBERS}, features)
    write(tmp_path / "test.parquet", hidden, features)
    source = open_source(f"{tmp_path}/*.parquet")
    assert splits(source) == {f"train.parquet#{row}": None for row in range(3)}
    assert source.notes == ("split test has no labels: its 3 images are left out",)
    assert source.skipped == {"(split test)": 3}
    write(tmp_path / "val.parquet", hidden, features)
    source = open_source(f"{tmp_path}/*.parquet")
    assert not source.holds_out
    assert set(splits(source).values()) == {None}
    write(tmp_path / "val.parquet", {"image": IMAGES, "label": NUMBERS}, features)
    source = open_source(f"{tmp_path}/*.parquet")
    assert source.holds_out
    assert set(splits(source).values()) == {"train", "val"}


@pytest.mark.parametrize("hidden", HIDDEN[:3])
def test_a_source_without_labels_is_refused(tmp_path: Path, hidden: dict[str, Any]) -> None:
    reason = "has no labels: column label is missing, empty or -1 in every row, as in test sets whose labels are not published"
    write(tmp_path / "train.parquet", hidden)
    with pytest.raises(SourceError, match=rf"^'.*train\.parquet' {reason}"):
        open_source(tmp_path / "train.parquet")
    write(tmp_path / "test.parquet", {"image": IMAGES, "label": NUMBERS})
    with pytest.raises(SourceError, match=rf"^split train of '.*' {reason}"):
        open_source(f"{tmp_path}/*.parquet")


def test_rows_without_labels_among_others_are_read(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "photos.parquet", [b"a", b"b"], [-1, 0], class_names=["cat"])
    assert [(record.targets[0], record.problem) for record in records(open_source(path))] == [(-1, None), (0, None)]


# TFRecord


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"img": b"a", "labels": 1, "id": 7}, "images from column img, classes from labels (2 names)"),
        ({"jpeg": b"a", "class": 1, "name": b"x"}, "images from column jpeg, classes from class (2 names)"),
        (
            {"image/encoded": b"a", "image/class/text": b"1"},
            "images from column image/encoded, classes from image/class/text (1 name)",
        ),
        (
            {"image/encoded": b"a", "image/class/label": 1, "image/class/text": b"x", "image/format": b"JPEG"},
            "images from column image/encoded, classes from image/class/label (2 names), not from image/class/text",
        ),
    ],
)
def test_features_are_found_by_kind_and_name(tmp_path: Path, features: dict[str, Any], expected: str) -> None:
    source = open_source(write_tfrecord(tmp_path / "photos", [example(features)]))
    assert labels(source) == {"photos#0": "1"}
    assert [record.data for record in records(source)] == [b"a"]
    assert source.notes == (expected,)


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (
            {"image": b"a", "fine_label": 1, "coarse_label": 2},
            {},
            "2 columns of classes: choose one with --target coarse_label or --target fine_label",
        ),
        ({"image": b"a", "label": [1, 2]}, {}, "column 'label' of 'photos' holds list, not classes"),
        (
            {"image": b"a", "label": 1},
            {"image": "photo"},
            "has no column 'photo': it has image (bytes), label (integer)",
        ),
    ],
)
def test_other_features_are_refused_with_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    write_tfrecord(tmp_path / "photos", [example(features)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as caught:
        open_source("photos", SourceConfig(**options))
    assert message in str(caught.value)


def test_records_with_names_of_classes(tmp_path: Path) -> None:
    names = [b"dog", b"cat", b"", b"\xff", b"dog"]
    source = open_source(
        write_tfrecord(tmp_path / "photos", [example({"image": b"a", "label": name}) for name in names])
    )
    assert source.class_names == ("cat", "dog")
    assert [record.targets[0] for record in records(source)] == [1, 0, -1, -1, 1]
    assert [record.problem for record in records(source)] == [
        None,
        None,
        "its label is empty",
        "its label is neither a number nor UTF-8 text",
        None,
    ]


def test_a_split_of_tfrecords_without_labels_is_left_out(tmp_path: Path) -> None:
    write_tfrecord(tmp_path / "train.tfrecord", [example({"image": b"a", "class": 1})] * 3)
    unlabelled: list[dict[str, Any]] = [{"image": b"a", "id": b"x"}, {"image": b"a", "class": -1}]
    for hidden in unlabelled:
        write_tfrecord(tmp_path / "test.tfrecord", [example(hidden)] * 2)
        source = open_source(f"{tmp_path}/*.tfrecord")
        assert set(splits(source).values()) == {None}
        assert source.notes[1:] == ("split test has no labels: its 2 images are left out",)
    with pytest.raises(SourceError, match=r"^'.*test\.tfrecord' has no labels: column class is missing, empty or -1"):
        open_source(tmp_path / "test.tfrecord", SourceConfig(target="class"))


# Caches


def test_another_column_is_read_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    photos = [encoded(rng.integers(0, 256, (8, 8, 3), np.uint8), "PNG") for _ in range(6)]
    columns = {
        "image": pa.array(photos),
        "img": pa.array(photos[::-1]),
        "fine_label": pa.array([0, 1] * 3),
        "coarse_label": pa.array([1, 0] * 3),
    }
    path = write(tmp_path / "photos.parquet", columns)

    def labels_and_reds(cache: Path) -> tuple[list[int], list[int]]:
        rows = sorted(index_of(cache), key=lambda row: int(row["row"]))
        return [row["label"] for row in rows], [int(image[0, 0, 0]) for image in cached_images(cache, "train", 0)]

    def built(**options: Any) -> tuple[bool, list[int], list[int]]:
        made = precompute(path, tmp_path / "cache", "decode|resize(8)", val_fraction=0, shards=1, **options)
        return made.unchanged, *labels_and_reds(tmp_path / "cache")

    unchanged, fine, reds = built(target="fine_label")
    assert built(target="fine_label") == (True, fine, reds)
    unchanged, coarse, same = built(target="coarse_label")
    assert (unchanged, coarse, same) == (False, [1 - label for label in fine], reds)
    unchanged, _, others = built(target="coarse_label", image="img")
    assert (unchanged, others) == (False, reds[::-1])


def test_synthetic_photos_have_no_columns() -> None:
    with pytest.raises(SourceError, match="--image names a column, but 'synthetic:4' has no columns"):
        open_source("synthetic:4", SourceConfig(image="x"))
