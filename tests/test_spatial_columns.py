"""Masks, boxes and points in the columns of Parquet and TFRecord files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import encoded
from PIL import Image
from sources import example, records, write_tfrecord

from joulecache.pipelines.source import Source, SourceConfig, SourceError, open_source
from joulecache.pipelines.source.features import ClassLabel, MultiLabel
from joulecache.pipelines.source.spatial import Boxes, Mask, Points
from joulecache.transforms.targets import BoxesTarget, MaskTarget

PHOTO = encoded(np.zeros((10, 20, 3), np.uint8), "PNG")
MASK = encoded(np.array([[[3], [9]]], np.uint8), "PNG")
IMAGES = [{"bytes": PHOTO, "path": None}] * 3
MASKS = [{"bytes": MASK, "path": None}] * 3
NAMES = {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"}


def write(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None) -> Path:
    table = pa.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def boxes(source: Source) -> list[tuple[list[list[float]], list[int]] | str | None]:
    """Return boxes and classes of each record, or its problem."""
    [feature] = source.features.values()
    assert isinstance(feature, Boxes)
    found: list[Any] = []
    for record in records(source):
        if record.problem:
            found.append(record.problem)
            continue
        target = feature.decode(record.targets[0])
        assert isinstance(target, BoxesTarget)
        found.append((target.boxes.tolist(), target.classes.tolist()))
    return found


OBJECTS: list[dict[str, Any]] = [
    {"bbox": [[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 1.0, 1.0]], "category": [2, 0], "area": [1, 2]},
    {"bbox": [[1.0, 2.0, 0.0, 4.0]], "category": [1], "area": [0]},
    {"bbox": [[1.0, 2.0, float("nan"), 4.0]], "category": [1], "area": [0]},
]
FOUND = [
    ([[1, 2, 4, 6], [0, 0, 1, 1]], [2, 0]),
    ([], []),
    "its 'boxes' must have four numbers each, left, top, width and height, got [1.0, 2.0, nan, 4.0]",
]


@pytest.mark.parametrize("declared", [{"feature": {"category": NAMES}, "_type": "Sequence"}, None])
def test_boxes_of_hugging_face(tmp_path: Path, declared: dict[str, Any] | None) -> None:
    path = write(
        tmp_path / "0.parquet", {"image": IMAGES, "objects": OBJECTS}, {"objects": declared} if declared else None
    )
    source = open_source(path)
    names = ("cat", "dog", "owl") if declared else ("0", "1", "2")
    assert source.features == {"boxes": Boxes(names)}
    assert boxes(source) == FOUND
    assert source.notes == (
        "images from column image, targets from boxes",
        "2 boxes of 3 classes from column objects: " + ", ".join(map(repr, names)),
        "dropped 1 box of column objects without width or height",
    )
    named = open_source(path, SourceConfig(target="objects"))
    assert [*named.features] == ["objects"]


def test_boxes_of_lists_of_objects(tmp_path: Path) -> None:
    rows = [
        [{"bbox": box, "category": kind} for box, kind in zip(each["bbox"], each["category"], strict=True)]
        for each in OBJECTS
    ]
    features = {"objects": {"feature": {"bbox": {}, "category": NAMES}, "_type": "List"}}
    source = open_source(write(tmp_path / "0.parquet", {"image": IMAGES, "objects": rows}, features))
    assert source.features == {"boxes": Boxes(("cat", "dog", "owl"))}
    assert boxes(source) == FOUND


def test_a_class_is_the_default_and_boxes_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "0.parquet", {"image": IMAGES, "objects": OBJECTS, "label": [0, 1, 1]})
    assert open_source(path).class_names == ("0", "1")
    both = open_source(path, SourceConfig(target=("boxes", "label:class")))
    assert both.features == {"boxes": Boxes(("0", "1", "2")), "label": ClassLabel(("0", "1"))}
    assert [record.targets[1] for record in records(both)[:2]] == [0, 1]


@pytest.mark.parametrize("column", ["annotation", "label", "mask", "segmentation_mask"])
def test_masks_in_a_second_column_of_images(tmp_path: Path, column: str) -> None:
    cells = [MASKS[0], {"bytes": None, "path": "m.png"}, None]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path = write(tmp_path / "0.parquet", {"pixels": IMAGES, column: pa.array(cells, struct)})
    source = open_source(path)
    assert source.features == {"mask": Mask()}
    first, *others = records(source)
    found = Mask().decode(first.targets[0])
    assert isinstance(found, MaskTarget)
    assert found.ids.ravel().tolist() == [3, 9]
    assert [record.problem for record in others] == [
        "its 'mask' must be an encoded image in the file, got {'bytes': None, 'path': 'm.png'}",
        "its 'mask' is empty",
    ]
    assert [*open_source(path, SourceConfig(target=f"{column}:mask")).features] == [column]


def test_binary_masks_have_names(tmp_path: Path) -> None:
    cells = [encoded(np.array([[[0], [255]]], np.uint8), "PNG")] * 3
    source = open_source(write(tmp_path / "0.parquet", {"image": IMAGES, "mask": cells}))
    assert source.features == {"mask": Mask(("background", "foreground"))}
    assert source.notes[-1] == "masks in column mask have the classes background and foreground"
    named = open_source(tmp_path / "0.parquet", SourceConfig(target="mask"))
    assert named.features == source.features


def test_points_in_lists(tmp_path: Path) -> None:
    points = [[[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0]]]
    path = write(tmp_path / "0.parquet", {"image": IMAGES, "joints": points})
    source = open_source(path, SourceConfig(target="joints:points"))
    assert source.features == {"joints": Points(2)}
    assert [record.problem for record in records(source)] == [
        None,
        None,
        "its 'joints' must have 2 points of x, y and visibility, got [[1.0, 2.0]]",
    ]
    with pytest.raises(SourceError, match=r"holds lists: pass --target joints:multilabel or --target joints:value or"):
        open_source(path, SourceConfig(target="joints"))


def test_images_alone_of_any_file(tmp_path: Path) -> None:
    path = write(tmp_path / "0.parquet", {"image": IMAGES, "label": [0, 1, 1]})
    source = open_source(path, SourceConfig(target="none"))
    assert (source.features, [record.targets for record in records(source)]) == ({}, [(), (), ()])


def test_boxes_of_tensorflow_object_detection(tmp_path: Path) -> None:
    sides = {"ymin": [0.0, 0.5], "xmin": [0.25, 0.5], "ymax": [1.0, 0.5], "xmax": [0.5, 1.0]}
    of_two = {f"image/object/bbox/{side}": numbers for side, numbers in sides.items()}
    of_one = {f"image/object/bbox/{side}": numbers[0] for side, numbers in sides.items()}
    texts = "image/object/class/text"
    path = write_tfrecord(
        tmp_path / "0.tfrecord",
        [
            example({"image/encoded": PHOTO, **of_two, texts: [b"owl", b"cat"], "image/object/class/label": [7, 3]}),
            example({"image/encoded": PHOTO, **of_one, texts: b"cat", "image/object/class/label": 3}),
            example({"image/encoded": PHOTO}),
            example({"image/encoded": PHOTO, **of_two, texts: b"cat", "image/object/class/label": 3}),
        ],
    )
    source = open_source(path)
    assert source.features == {"boxes": Boxes(("cat", "owl"))}
    assert boxes(source)[:3] == [([[5, 0, 10, 10]], [1]), ([[5, 0, 10, 10]], [0]), ([], [])]
    assert str(boxes(source)[3]).startswith("must have as many values in each of image/object/bbox/ymin, ")
    assert source.notes[-1] == "dropped 1 box of column image/object/bbox without width or height"


def test_boxes_refer_to_the_upright_image(tmp_path: Path) -> None:
    rotated = Image.Exif()
    rotated[0x0112] = 6
    photo = encoded(Image.new("RGB", (20, 10)), "JPEG", exif=rotated)
    values = {"image": photo, "objects/bbox": [0.0, 0.0, 0.5, 1.0], "objects/label": 1}
    source = open_source(write_tfrecord(tmp_path / "0.tfrecord", [example(values)]))
    assert boxes(source) == [([[0, 0, 10, 10]], [1])]


def test_masks_in_tfrecords(tmp_path: Path) -> None:
    values = {"image/encoded": PHOTO, "image/segmentation/class/encoded": MASK}
    source = open_source(write_tfrecord(tmp_path / "0.tfrecord", [example(values)] * 40))
    assert source.features == {"mask": Mask()}
    assert {record.targets for record in records(source)} == {(MASK,)}
    points = {"image": PHOTO, "at": [1.0, 2.0, 2.0, 3.0, 4.0, 0.0]}
    source = open_source(write_tfrecord(tmp_path / "1.tfrecord", [example(points)]), SourceConfig(target="at:points"))
    assert source.features == {"at": Points(2)}


def test_several_columns_of_masks_are_ambiguous(tmp_path: Path) -> None:
    path = write(tmp_path / "0.parquet", {"image": IMAGES, "mask": MASKS, "instance_mask": MASKS})
    with pytest.raises(
        SourceError, match="2 columns of mask: choose with --target mask:mask or --target instance_mask:mask"
    ):
        open_source(path)
    tags = write(tmp_path / "1.parquet", {"image": IMAGES, "mask": MASKS, "tags": [["a"], ["b"], []]})
    both = open_source(tags, SourceConfig(target=("mask", "tags:multilabel")))
    assert both.features == {"mask": Mask(), "tags": MultiLabel(("a", "b"))}
