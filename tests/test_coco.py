"""COCO's instances JSON: boxes and keypoints of images, what is dropped with a note, rejected or refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_files
from mutations import damaged
from sources import records, splits

from joulecache.pipelines.source import Source, SourceConfig, SourceError, documents, open_source
from joulecache.pipelines.source.spatial import Boxes, Points
from joulecache.transforms.targets import BoxesTarget, PointsTarget

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 9, "name": "owl"}]


def annotation(image: Any, box: Any, category: Any = 2, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "bbox": box, "category_id": category, "segmentation": [[0, 1, 2]], **more}


def coco(*annotations: Any, images: int = 3, categories: Any = CATEGORIES) -> dict[str, Any]:
    listed = [{"id": 10 + number, "file_name": f"{number}.jpg", "width": 9, "height": 9} for number in range(images)]
    return {"images": listed, "categories": categories, "annotations": list(annotations)}


def write(folder: Path, content: Any, images: int = 3) -> Path:
    """Write a folder of images and its COCO file next to it; return the folder."""
    write_files(folder / "images", {f"{number}.jpg": b"x" for number in range(images)})
    (folder / "instances.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / "images"


def opened(folder: Path, content: Any, target: Any = None) -> Source:
    images = write(folder, content)
    return open_source(images, SourceConfig(coco=folder / "instances.json", target=target))


def boxes(source: Source) -> dict[str, tuple[list[list[float]], list[int]]]:
    """Return {key: (boxes, classes)}."""
    feature = source.features["boxes"]
    assert isinstance(feature, Boxes)
    found = {}
    for record in records(source):
        target = feature.decode(record.targets[0])
        assert isinstance(target, BoxesTarget)
        found[record.key] = target.boxes.tolist(), target.classes.tolist()
    return found


def test_boxes_are_corners_with_classes_in_the_order_of_ids(tmp_path: Path) -> None:
    source = opened(
        tmp_path, coco(annotation(10, [1, 2, 3, 4.5]), annotation(10, [0, 0, 1, 1], 9), annotation(12, [5, 5, 1, 1], 7))
    )
    assert source.features == {"boxes": Boxes(("cat", "dog", "owl"))}
    assert boxes(source) == {
        "0.jpg": ([[1, 2, 4, 6.5], [0, 0, 1, 1]], [0, 2]),
        "1.jpg": ([], []),
        "2.jpg": ([[5, 5, 6, 6]], [1]),
    }
    assert source.notes == (f"3 boxes of 3 classes from {tmp_path / 'instances.json'}: 'cat', 'dog', 'owl'",)
    assert all(unit.targets == record.targets for unit, record in zip(source.units, records(source), strict=True))


def test_crowds_and_empty_boxes_are_dropped_and_counted(tmp_path: Path) -> None:
    source = opened(
        tmp_path,
        coco(
            annotation(10, [1, 2, 3, 4]),
            annotation(10, [1, 2, 0, 4]),
            annotation(11, [1, 2, 3, 0]),
            annotation(11, [1e7, 2, 1e-3, 4]),
            annotation(11, "RLE", iscrowd=1),
            annotation(99, [1, 2, 3, 4]),
        ),
    )
    assert {key: len(found) for key, (found, _) in boxes(source).items()} == {"0.jpg": 1, "1.jpg": 0, "2.jpg": 0}
    path = tmp_path / "instances.json"
    assert source.notes[1:] == (
        f"dropped 3 boxes of {path} without width or height",
        f"dropped 1 box of crowds in {path} (iscrowd)",
        f"dropped 1 annotation of images that {path} does not list",
    )


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (annotation(10, [1, 2, -3, 4]), "its boxes must have a positive width and height each, got [1, 2, -3, 4]"),
        (
            annotation(10, [1, 2, float("nan"), 4]),
            "its boxes must have four numbers each, left, top, width and height, got [1, 2, nan, 4]",
        ),
        (annotation(10, [1, 2, 3]), "its boxes must have four numbers each"),
        (annotation(10, [1, 2, 3, "4"]), "its boxes must have four numbers each"),
        (annotation(10, [1, 2, 3, True]), "its boxes must have four numbers each"),
        (annotation(10, [1, 2, 3, 1e308]), "its boxes must have four numbers each"),
        (annotation(10, None), "its boxes must have four numbers each, left, top, width and height, got None"),
        (annotation(10, [1, 2, 3, 4], 8), "a box has category_id 8, which "),
        (annotation(10, [1, 2, 3, 4], [2]), "a box has category_id [2], which "),
    ],
)
def test_a_malformed_annotation_rejects_its_image(tmp_path: Path, bad: Any, reason: str) -> None:
    source = opened(tmp_path, coco(bad, annotation(11, [1, 2, 3, 4])))
    [(key, why)] = source.refused
    assert key == "0.jpg"
    assert why.startswith(reason)
    assert [*boxes(source)] == ["1.jpg", "2.jpg"]


def test_an_image_that_the_file_does_not_list_is_rejected_and_one_that_is_not_there_is_counted(tmp_path: Path) -> None:
    images = write(tmp_path, coco(annotation(10, [1, 2, 3, 4]), images=5), images=3)
    (images / "new.jpg").write_bytes(b"x")
    source = open_source(images, SourceConfig(coco=tmp_path / "instances.json"))
    assert source.refused == (("new.jpg", f"it is not in {tmp_path / 'instances.json'}"),)
    assert source.skipped["(label of no image)"] == 2
    assert (
        source.notes[-1]
        == f"{tmp_path / 'instances.json'} lists 2 images that the source does not have, such as '3.jpg'"
    )


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot read the COCO file '.*' as JSON in UTF-8: Expecting value"),
        (DEEP, "cannot read the COCO file '.*' as JSON in UTF-8: maximum recursion depth"),
        (f'{{"images": {DEEP}}}', "maximum recursion depth"),
        ("[]", r"it must have images, annotations and categories, got \[\]"),
        ({"images": [], "info": 1}, r"it must have images, annotations and categories, got \['images', 'info'\]"),
        (coco(3), r"annotations\[0\] must be an object, got 3"),
        (coco({"bbox": [0, 0, 1, 1]}), r"annotations\[0\] must have image_id, a number or text, got None"),
        (coco(annotation([10], [0, 0, 1, 1])), r"annotations\[0\] must have image_id, a number or text, got \[10\]"),
        (coco(categories=[]), "it has no categories"),
        (coco(categories={"id": 1}), "categories must be a list"),
        (coco(categories=[*CATEGORIES, {"id": 2, "name": "x"}]), r"categories\[3\] has the id 2 of another category"),
        (coco(categories=[*CATEGORIES, {"id": 3, "name": "cat"}]), r"categories\[3\] has the name 'cat' of another"),
        (coco(categories=[{"id": 3, "name": "a\nb"}]), r"categories\[0\] must have a name"),
        ({**coco(), "images": [{"id": 1}]}, r"images\[0\] must have a file_name"),
        ({**coco(), "images": [{"id": 1, "file_name": "0.jpg"}] * 2}, r"images\[1\] has the id 1 of images\[0\]"),
        (
            {**coco(), "images": [{"id": number, "file_name": "0.jpg"} for number in (1, 2)]},
            "lists '0.jpg' twice",
        ),
        (
            {**coco(), "images": [{"id": 1, "file_name": "other.jpg"}]},
            "names no image of the source: got names such as 'other.jpg'",
        ),
        ({**coco(), "images": []}, "names no image of the source: got none"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message) as raised:
        opened(tmp_path, content)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    images = write(tmp_path, coco())
    with open(tmp_path / "instances.json", "r+b") as file:
        file.truncate(2_000_000_000)  # sparse
    with pytest.raises(
        SourceError, match=r"^the COCO file '.*' must have at most 1.50 GB, got 2.00 GB: split the file"
    ):
        open_source(images, SourceConfig(coco=tmp_path / "instances.json"))
    assert documents.LARGEST_DOCUMENT == 1_500_000_000


def test_a_pattern_has_a_file_for_each_split(tmp_path: Path) -> None:
    for split in ("train", "valid"):  # as Roboflow exports them: the names are the same in both
        content = coco(annotation(10, [1, 2, 3, 4 + len(split)]))
        write_files(tmp_path / split, {f"{number}.jpg": b"x" for number in range(3)})
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(content))
    source = open_source(tmp_path, SourceConfig(coco=f"{tmp_path}/*/_annotations.coco.json"))
    assert boxes(source)["train/0.jpg"][0] == boxes(source)["valid/0.jpg"][0] == [[1, 2, 4, 11]]
    assert {*splits(source).values()} == {"train", "val"}
    assert not source.skipped
    with pytest.raises(SourceError, match=r"no COCO file at '.*': the pattern matches none"):
        open_source(tmp_path, SourceConfig(coco=f"{tmp_path}/*.json"))
    (tmp_path / "train" / "_annotations.coco.json").write_text(json.dumps(coco(categories=CATEGORIES[:1])))
    with pytest.raises(SourceError, match="have different categories"):
        open_source(tmp_path, SourceConfig(coco=f"{tmp_path}/*/_annotations.coco.json"))


def test_keypoints_are_points_of_images_with_one_annotation(tmp_path: Path) -> None:
    person = [{"id": 2, "name": "person", "keypoints": ["nose", "ear"]}]
    one = annotation(10, [0, 0, 9, 9], keypoints=[1, 2, 2, 0, 0, 0], num_keypoints=1)
    small = annotation(10, [0, 0, 1, 1], keypoints=[0] * 6, num_keypoints=0)
    twice = [annotation(11, [0, 0, 9, 9], keypoints=[1, 2, 2, 3, 4, 1])] * 2
    content = coco(one, small, *twice, annotation(12, [0, 0, 9, 9], keypoints=[1, 2]), categories=person)
    source = opened(tmp_path, content, target="keypoints:points")
    assert source.features == {"keypoints": Points(2)}
    [record] = records(source)
    target = Points(2).decode(record.targets[0])
    assert isinstance(target, PointsTarget)
    np.testing.assert_array_equal(target.points, [[1, 2, 2], [0, 0, 0]])
    assert [key for key, _ in source.refused] == ["1.jpg", "2.jpg"]
    assert source.refused[0][1].startswith("it must have one annotation with keypoints in ")
    assert source.refused[1][1] == "its keypoints must have 2 points of x, y and visibility, got [1, 2]"
    with pytest.raises(SourceError, match="--target must name boxes or keypoints of the COCO file, a key"):
        opened(tmp_path, content, target="nose")
    both = open_source(
        tmp_path / "images", SourceConfig(coco=tmp_path / "instances.json", target=("boxes", "keypoints"))
    )
    assert [*both.features] == ["boxes", "keypoints"]
    with pytest.raises(SourceError, match="target 'boxes' of a COCO file is of kind boxes, got 'mask'"):
        opened(tmp_path, content, target="boxes:mask")
    with pytest.raises(SourceError, match="has no keypoints: drop --target keypoints"):
        opened(tmp_path, coco(), target="keypoints")


def test_boxes_come_with_targets_of_a_table(tmp_path: Path) -> None:
    images = write(tmp_path, coco(annotation(10, [1, 2, 3, 4])))
    (tmp_path / "ages.csv").write_text("file,age\n0.jpg,1.5\n1.jpg,2.5\n")
    config = SourceConfig(coco=tmp_path / "instances.json", labels=tmp_path / "ages.csv", target="age:value")
    source = open_source(images, config)
    assert [*source.features] == ["boxes", "age"]
    assert [record.targets[1] for record in records(source)] == [1.5, 2.5]
    assert source.refused == (("2.jpg", f"it has no label in {tmp_path / 'ages.csv'}"),)


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_or_reject_images(tmp_path: Path, count: int) -> None:
    person = [{**each, "keypoints": ["nose", "ear"]} for each in CATEGORIES]
    joints = [1, 2, 2, 3, 4, 1]
    of_images = [annotation(10 + n, [n, 0, 4, 4.5], [2, 7, 9][n], keypoints=joints, id=n, iscrowd=0) for n in range(3)]
    content = coco(*of_images, categories=person)
    images = write(tmp_path, content)
    rng = random.Random(0)
    rejected = 0
    refused: list[str] = []
    for number in range(count):
        (tmp_path / "instances.json").write_bytes(damaged(content, rng))
        target = ("boxes", "keypoints:points") if number % 2 else None
        try:
            source = open_source(images, SourceConfig(coco=tmp_path / "instances.json", target=target))
        except SourceError as error:
            refused.append(str(error))
            continue
        assert source.records + len(source.refused) == 3
        assert all(reason and "\n" not in reason for _, reason in source.refused)
        rejected += bool(source.refused)
        for record in records(source):
            for feature, target_of in zip(source.features.values(), record.targets, strict=True):
                feature.check(target_of)
    assert not any("\n" in message for message in refused)
    assert len(refused) > count / 10
    assert rejected > count / 10
