"""metadata.csv, .jsonl and .parquet as Hugging Face's ImageFolder has them, with masks, boxes and points; the same columns in --labels."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import encoded, write_files
from mutations import damaged
from sources import records

from joulecache.pipelines.source import Source, SourceConfig, SourceError, open_source
from joulecache.pipelines.source.spatial import Boxes, Mask, Points
from joulecache.transforms.targets import BoxesTarget, MaskTarget, PointsTarget, SpatialTarget

MASK = encoded(np.array([[[3], [9]]], np.uint8), "PNG")


def targets(source: Source, place: int = 0) -> dict[str, SpatialTarget]:
    """Return the decoded target of each record."""
    feature = [*source.features.values()][place]
    assert isinstance(feature, Mask | Boxes | Points)
    return {record.key: feature.decode(record.targets[place]) for record in records(source)}


def write_table(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    """Write metadata next to the images that it names."""
    write_files(folder, {row["file_name"]: b"x" for row in rows})
    path = folder / f"metadata.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_masks_in_columns(tmp_path: Path, suffix: str) -> None:
    rows = [{"file_name": f"images/{n}.jpg", "mask_file_name": f"masks/{n}.png", "note": "x"} for n in range(3)]
    write_table(tmp_path, suffix, rows)
    write_files(tmp_path / "masks", {f"{n}.png": MASK for n in range(2)})
    source = open_source(tmp_path)
    assert source.features == {"mask": Mask()}
    assert [*targets(source)] == ["images/0.jpg", "images/1.jpg"]
    assert source.refused == (
        ("images/2.jpg", f"its 'mask' 'masks/2.png' is missing: there is no such file in {tmp_path}"),
    )
    assert any(
        note.startswith("masks with ") and note.endswith(f" from {tmp_path / f'metadata.{suffix}'}")
        for note in source.notes
    )
    assert any("1 column not used: 'note'" in note for note in source.notes)
    named = open_source(tmp_path, SourceConfig(target=("mask", "note:text")))
    assert [*named.features] == ["mask", "note"]


def test_a_class_stays_the_default(tmp_path: Path) -> None:
    rows = [{"file_name": f"{n}.jpg", "mask_file_name": f"masks/{n}.png", "label": "ab"[n % 2]} for n in range(4)]
    write_files(write_table(tmp_path, "jsonl", rows) / "masks", {f"{n}.png": MASK for n in range(4)})
    both = open_source(tmp_path, SourceConfig(target=("mask", "label")))
    assert [*both.features] == ["mask", "label"]
    assert [record.targets[1] for record in records(both)] == [0, 1, 0, 1]
    [note] = [note for note in open_source(tmp_path).notes if "not used" in note]
    assert note.endswith("1 column not used: 'mask_file_name'")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../m.png", r"its 'mask' '../m.png' must be a path relative to the folder of "),
        ("a/../../m.png", r"its 'mask' 'a/../../m.png' must be a path relative to "),
        ("/etc/passwd", r"its 'mask' '/etc/passwd' must be a path relative to the folder of "),
        ("C:\\m.png", r"its 'mask' 'C:\\m.png' must be a path relative to "),
        ("s3://bucket/m.png", r"its 'mask' 's3://bucket/m.png' must be a path relative to "),
        ("", "its 'mask' is empty"),
        ("m\0.png", r"its 'mask' 'm\x00.png' must be a path relative"),
        ("masks", "its 'mask' 'masks' is missing"),
    ],
)
def test_paths_that_leave_the_folder_reject_their_image(tmp_path: Path, path: str, reason: str) -> None:
    (tmp_path / "m.png").write_bytes(MASK)
    rows = [{"file_name": "0.jpg", "mask_file_name": "masks/0.png"}, {"file_name": "1.jpg", "mask_file_name": path}]
    write_files(write_table(tmp_path / "set", "jsonl", rows) / "masks", {"0.png": MASK})
    source = open_source(tmp_path / "set")
    [(key, why)] = source.refused
    assert (key, why[: len(reason)]) == ("1.jpg", reason)
    assert source.records == 1


def test_masks_of_a_labels_file_outside_the_source(tmp_path: Path) -> None:
    images = write_files(tmp_path / "images", {"0.jpg": b"x", "1.jpg": b"x"})
    write_files(tmp_path / "truth" / "m", {"0.png": MASK, "1.png": MASK})
    table = tmp_path / "truth" / "table.csv"
    table.write_text("file,seg_file_name\n0.jpg,m/0.png\n1.jpg,m/1.png\n")
    source = open_source(images, SourceConfig(labels=table))
    assert source.features == {"seg": Mask()}
    found = targets(source)["1.jpg"]
    assert isinstance(found, MaskTarget)
    assert found.ids.ravel().tolist() == [3, 9]
    table.write_text("file,seg_file_name\n0.jpg,n/0.png\n1.jpg,n/1.png\n")
    with pytest.raises(SourceError, match=r"table.csv names no mask in column 'seg': its 'seg' 'n/0.png' is missing"):
        open_source(images, SourceConfig(labels=table))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_boxes_in_objects(tmp_path: Path, suffix: str) -> None:
    found = {"bbox": [[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 0.0, 1.0]], "categories": [2, 0]}
    rows: list[dict[str, Any]] = [
        {"file_name": "0.jpg", "objects": found},
        {"file_name": "1.jpg", "objects": {"bbox": [], "categories": []}},
        {"file_name": "2.jpg", "objects": {"bbox": [[1.0, 2.0, -3.0, 4.0]], "categories": [1]}},
    ]
    source = open_source(write_table(tmp_path, suffix, rows))
    assert source.features == {"boxes": Boxes(("0", "1", "2"))}
    boxes = targets(source)
    assert [len(found.boxes) for found in boxes.values() if isinstance(found, BoxesTarget)] == [1, 0]
    assert boxes["0.jpg"].boxes.tolist() == [[1, 2, 4, 6]]  # type: ignore[union-attr]
    assert boxes["0.jpg"].classes.tolist() == [2]  # type: ignore[union-attr]
    assert source.refused == (
        ("2.jpg", "its 'boxes' must have a positive width and height each, got [1.0, 2.0, -3.0, 4.0]"),
    )
    path = tmp_path / f"metadata.{suffix}"
    assert source.notes == (
        f"1 box of 3 classes from {path}: '0', '1', '2'",
        f"dropped 1 box of {path} without width or height",
    )


def test_boxes_of_a_list_of_objects_with_names(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "file_name": "0.jpg",
            "objects": [{"bbox": [0, 0, 1, 1], "category": "owl"}, {"bbox": [0, 0, 2, 1], "category": "cat"}],
        },
        {"file_name": "1.jpg", "objects": []},
    ]
    source = open_source(write_table(tmp_path, "jsonl", rows))
    assert source.features == {"boxes": Boxes(("cat", "owl"))}
    rows = [{"file_name": "0.jpg", "objects": {"bbox": [[0, 0, 1, 1]]}}]
    assert open_source(write_table(tmp_path, "jsonl", rows)).features == {"boxes": Boxes(("object",))}


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([[1, 2], [3, 4.5]], [[1, 2, 2], [3, 4.5, 2]]),
        ([[1, 2, 0], [3, 4, 1]], [[1, 2, 0], [3, 4, 1]]),
        ([1, 2, 2, 3, 4, 1], [[1, 2, 2], [3, 4, 1]]),
        ([1, 2, 7, 8, 5, 6], [[1, 2, 2], [7, 8, 2], [5, 6, 2]]),
    ],
)
def test_points_of_x_and_y_and_visibility(tmp_path: Path, points: list[Any], expected: list[list[float]]) -> None:
    rows: list[dict[str, Any]] = [
        {"file_name": "0.jpg", "joints": points},
        {"file_name": "1.jpg", "joints": [[1, 2], [3]]},
    ]
    write_table(tmp_path, "jsonl", rows)
    with pytest.raises(SourceError, match=r"column 'joints' .* has lists.*: pass --target joints:"):
        open_source(tmp_path)
    source = open_source(tmp_path, SourceConfig(target="joints:points"))
    assert source.features == {"joints": Points(len(expected))}
    found = targets(source)["0.jpg"]
    assert isinstance(found, PointsTarget)
    assert found.points.tolist() == expected
    assert source.refused[0][1].startswith(f"its 'joints' must have {len(expected)} points of x, y and visibility")


def test_each_folder_may_have_metadata(tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = [{"file_name": f"{n}.jpg", "mask_file_name": f"m/{n}.png"} for n in range(2)]
        write_files(write_table(tmp_path / split, "csv", rows) / "m", {f"{n}.png": MASK for n in range(2)})
    source = open_source(tmp_path)
    assert [*targets(source)] == ["test/0.jpg", "test/1.jpg", "train/0.jpg", "train/1.jpg"]
    assert "csv" not in "".join(source.skipped)
    (tmp_path / "test" / "metadata.csv").write_text("file_name,other\n0.jpg,1\n")
    with pytest.raises(SourceError, match="have different columns: use files with the same columns"):
        open_source(tmp_path)


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_metadata_are_refused_or_reject_images(tmp_path: Path, count: int) -> None:
    rows = [
        {
            "file_name": f"{n}.jpg",
            "mask_file_name": f"masks/{n}.png",
            "objects": {"bbox": [[n, 0, 4, 4.5]], "categories": [n]},
            "joints": [[1, 2, 2], [3, 4, 1]],
            "age": n + 0.5,
        }
        for n in range(3)
    ]
    write_files(write_table(tmp_path, "jsonl", rows) / "masks", {f"{n}.png": MASK for n in range(3)})
    path = tmp_path / "metadata.jsonl"
    rng = random.Random(0)
    rejected = 0
    refused: list[str] = []
    kept = [json.dumps(row).encode() for row in rows]
    for number in range(count):
        lines = [*kept]
        lines[number % 3] = damaged(rows[number % 3], rng)
        path.write_bytes(b"\n".join(lines))
        target = ("mask", "boxes", "joints:points", "age:value") if number % 4 else None
        try:
            source = open_source(tmp_path, SourceConfig(target=target, labels=path if number % 2 else None))
        except SourceError as error:
            refused.append(str(error))
            continue
        masks = "mask" in source.features and source.skipped["(mask)"]
        assert source.records + len(source.refused) + masks == 6
        assert all(reason and "\n" not in reason for _, reason in source.refused)
        rejected += bool(source.refused)
        for record in records(source):
            for feature, target_of in zip(source.features.values(), record.targets, strict=True):
                feature.check(target_of)
    assert not any("\n" in message for message in refused)
    assert len(refused) > count / 20
    assert rejected > count / 10


def test_a_table_that_is_too_large_or_too_deep_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path / "images", {"0.jpg": b"x"})
    table = tmp_path / "table.jsonl"
    table.write_text(f'{{"file": "0.jpg", "age": {"[" * 100_000}{"]" * 100_000}}}')
    with pytest.raises(SourceError, match=r"^cannot read the labels '.*': maximum recursion depth"):
        open_source(tmp_path / "images", SourceConfig(labels=table))
    table.write_text(f'{{"file": "0.jpg", "age": {"[" * 700}{"]" * 700}}}')
    with pytest.raises(SourceError, match=r"0.jpg: its 'age' must have numbers, got "):
        open_source(tmp_path / "images", SourceConfig(labels=table, target="age:value"))
    with table.open("r+b") as file:
        file.truncate(2_000_000_000)  # sparse
    with pytest.raises(SourceError, match=r"^the labels '.*' must have at most 1.50 GB, got 2.00 GB"):
        open_source(tmp_path / "images", SourceConfig(labels=table))


def test_masks_may_be_called_by_any_name_but_that_of_a_column_of_each_cache(tmp_path: Path) -> None:
    rows = [{"file_name": "0.jpg", "key_file_name": "m.png"}]
    write_files(write_table(tmp_path, "csv", rows), {"m.png": MASK})
    with pytest.raises(SourceError, match="a target cannot be called 'key': rename its column"):
        open_source(tmp_path)


def test_a_cell_of_boxes_that_is_no_json_rejects_its_image(tmp_path: Path) -> None:
    cells = ["null", "{", "[]"]
    write_files(tmp_path, {f"{n}.jpg": b"x" for n in range(3)})
    (tmp_path / "metadata.csv").write_text(
        "file_name,x\n" + "".join(f"{n}.jpg,{cell}\n" for n, cell in enumerate(cells))
    )
    source = open_source(tmp_path, SourceConfig(target="x:boxes"))
    assert [*targets(source)] == ["2.jpg"]
    assert [why for _, why in source.refused] == [
        f"its 'x' must have an object with lists of bbox and category, got {cell!r}" for cell in cells[:2]
    ]


def test_the_number_of_points_is_that_of_most_images(tmp_path: Path) -> None:
    points = [[], [[1, 2], [3, 4]], [[1, 2]], [[5, 6, 1], [7, 8, 0]]]
    source = open_source(
        write_table(tmp_path, "jsonl", [{"file_name": f"{n}.jpg", "x": each} for n, each in enumerate(points)]),
        SourceConfig(target="x:points"),
    )
    assert source.features == {"x": Points(2)}
    assert [*targets(source)] == ["1.jpg", "3.jpg"]
    assert [key for key, _ in source.refused] == ["0.jpg", "2.jpg"]
