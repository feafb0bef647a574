"""Shards with masks, boxes and points: read back, read without joulecache, and refused when damaged."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image
from spatial_sources import FEATURES, png

from joulecache.pipelines.cache.data_file import DataFile, PixelStats, TargetSummary
from joulecache.pipelines.cache.encoded_column import EncodedColumn
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.mapped_images import MappedImages
from joulecache.pipelines.cache.mapped_targets import map_targets
from joulecache.pipelines.cache.names import FORMATS, Format, ShardName
from joulecache.pipelines.cache.rows import Rows
from joulecache.pipelines.cache.shards import map_images, read_targets, write_shard
from joulecache.pipelines.cache.spatial_columns import BoxRows
from joulecache.pipelines.cache.target_summaries import summary_of_boxes, summary_of_points
from joulecache.pipelines.source.features import Features, spatial_features
from joulecache.pipelines.source.spatial import Boxes
from joulecache.transforms.targets import BoxesTarget

SHAPE = (6, 5, 3)
SPATIAL = spatial_features(FEATURES)

every_format = pytest.mark.parametrize("kind", FORMATS)
every_storage = pytest.mark.parametrize("raw", [True, False], ids=["raw", "encoded"])


def some_boxes(counts: list[int]) -> BoxRows:
    rng = np.random.default_rng(sum(counts))
    return BoxRows.of([BoxesTarget(rng.random((count, 4), np.float32), rng.integers(0, 3, count)) for count in counts])


def rows_with(counts: list[int], *, raw: bool, features: Features = FEATURES) -> Rows:
    """Return rows with this many boxes, all features, and keys of different lengths."""
    rng = np.random.default_rng(len(counts))
    number = len(counts)
    images = rng.integers(0, 256, (number, *SHAPE), np.uint8)
    masks = rng.integers(0, 3, (number, 6, 5, 1), np.uint8)
    boxes, points = some_boxes(counts), rng.random((number, 4, 3), np.float32)
    return Rows(
        images if raw else EncodedColumn.of([png(image) for image in images]),
        features,
        {"label": pa.array(np.arange(number) % 2), "age": pa.array(np.arange(number), pa.float32())},
        [f"{'k' * row}.png" for row in range(number)],
        np.arange(number, dtype=np.uint64),
        PixelStats(0, (0,), (0,)),
        {
            "area": masks if raw else EncodedColumn.of([png(mask[:, :, 0]) for mask in masks]),
            "objects": boxes,
            "joints": points,
        },
        {
            "area": TargetSummary((1, 2, 3), empty=0),
            "objects": summary_of_boxes(cast("Boxes", FEATURES["objects"]), boxes),
            "joints": summary_of_points(points),
        },
    )


def write(folder: Path, kind: Format, rows: Rows) -> DataFile:
    return write_shard(folder, ShardName("train", 0, 0, 1, "", kind), rows)


def size(*, raw: bool) -> tuple[int, int] | None:
    return SHAPE[:2] if raw else None


def masks_of(images: MappedImages, count: int) -> list[NDArray[np.uint8]]:
    """Return masks, decoded where they are encoded."""
    found = images.views(np.arange(count))
    return [each if each.ndim == 3 else decoded(each) for each in map(np.asarray, found)]


def decoded(encoded: Any) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(bytes(encoded))))[:, :, None]


@every_format
@every_storage
@pytest.mark.parametrize("counts", [[1], [0, 0], [3, 0, 1, 7, 0], [0, 2000, 1]])
def test_targets_are_read_as_they_were_written(tmp_path: Path, kind: Format, raw: bool, counts: list[int]) -> None:
    rows = rows_with(counts, raw=raw)
    file = write(tmp_path, kind, rows)
    other = write(tmp_path, kind, rows_with([2, 1], raw=raw))  # targets are read over several files
    targets = map_targets(tmp_path, [file, other], SPATIAL, size(raw=raw))
    order = np.array([len(counts) + 1, *reversed(range(len(counts)))])

    masks, boxes, points = targets["area"], targets["objects"], targets["joints"]
    assert isinstance(masks, MappedImages)
    assert isinstance(boxes, BoxRows)
    assert isinstance(points, np.ndarray)
    expected = rows.masks["area"]
    for found, one in zip(masks_of(masks, len(counts)), expected, strict=True):
        np.testing.assert_array_equal(found, one if raw else decoded(one))
    np.testing.assert_array_equal(points[: len(counts)], cast("Any", rows.spatial["joints"]))
    stored = cast("BoxRows", rows.spatial["objects"])
    for row, count in enumerate(counts):
        assert len(boxes[row].classes) == count
        np.testing.assert_array_equal(boxes[row].boxes, stored[row].boxes)
        np.testing.assert_array_equal(boxes[row].classes, stored[row].classes)
    chosen = boxes.take(order)
    assert chosen.counts.tolist() == [1, *reversed(counts)]
    for place, row in enumerate(order.tolist()):
        np.testing.assert_array_equal(chosen[place].boxes, boxes[row].boxes)
    if raw:
        out = np.empty((len(order), 6, 5, 1), np.uint8)
        masks.take(order, out)
        np.testing.assert_array_equal(out, masks.views(order))
        np.testing.assert_array_equal(map_images(tmp_path / file.name, file, SHAPE), cast("Any", rows.images))


@every_format
@every_storage
def test_the_same_rows_give_the_same_bytes(tmp_path: Path, kind: Format, raw: bool) -> None:
    one, other = (write(tmp_path, kind, rows_with([3, 0, 1], raw=raw)) for _ in range(2))
    assert one == other


@every_storage
def test_pyarrow_alone_reads_the_documented_columns(tmp_path: Path, raw: bool) -> None:
    rows = rows_with([3, 0, 1], raw=raw)
    file = write(tmp_path, "arrow", rows)
    with pa.ipc.open_file(pa.memory_map(str(tmp_path / file.name))) as reader:
        batch = reader.get_batch(0)
    names = ["image", "area", "label", "objects", "objects_classes", "age", "joints", "key", "key_hash"]
    assert batch.schema.names == names
    mask = batch["area"].to_numpy_ndarray() if raw else batch["area"].to_pylist()
    masks = rows.masks["area"]
    np.testing.assert_array_equal(mask, masks if isinstance(masks, np.ndarray) else [*map(bytes, masks)])
    np.testing.assert_array_equal(batch["joints"].to_numpy_ndarray(), cast("Any", rows.spatial["joints"]))
    stored = cast("BoxRows", rows.spatial["objects"])
    for row in range(3):
        assert batch["objects"][row].as_py() == stored[row].boxes.tolist()
        assert batch["objects_classes"][row].as_py() == stored[row].classes.tolist()
    assert batch["age"].to_pylist() == [0, 1, 2]


@every_storage
def test_tensorflow_alone_reads_the_documented_features(tmp_path: Path, raw: bool) -> None:
    rows = rows_with([3, 0, 1], raw=raw)
    file = write(tmp_path, "tfrecord", rows)
    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "area": tf.io.FixedLenFeature([], tf.string),
        "objects": tf.io.VarLenFeature(tf.float32),
        "objects_classes": tf.io.VarLenFeature(tf.int64),
        "joints": tf.io.FixedLenFeature([4, 3], tf.float32),
        "age": tf.io.FixedLenFeature([], tf.float32),
    }
    records = tf.data.TFRecordDataset(str(tmp_path / file.name)).map(
        lambda record: tf.io.parse_single_example(record, features)
    )
    stored = cast("BoxRows", rows.spatial["objects"])
    for row, found in enumerate(records):
        area = rows.masks["area"][row]
        assert found["area"].numpy() == bytes(area)
        boxes = tf.reshape(tf.sparse.to_dense(found["objects"]), [-1, 4]).numpy()
        np.testing.assert_array_equal(boxes, stored[row].boxes)
        np.testing.assert_array_equal(tf.sparse.to_dense(found["objects_classes"]).numpy(), stored[row].classes)
        np.testing.assert_array_equal(found["joints"].numpy(), np.asarray(rows.spatial["joints"])[row])
        assert found["age"].numpy() == row


@every_format
@every_storage
def test_damaged_files_are_refused_and_never_crash(tmp_path: Path, kind: Format, raw: bool) -> None:
    """Bytes are changed everywhere but in the pixels: offsets and lengths may then point anywhere."""
    rows = rows_with([3, 0, 1], raw=raw)
    file = write(tmp_path, kind, rows)
    path = tmp_path / file.name
    content = path.read_bytes()
    refused = 0
    rng = np.random.default_rng(1)
    for at in rng.permutation(len(content))[:300].tolist():
        changed = bytearray(content)
        changed[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            columns = read_targets(path, file, SPATIAL, size(raw=raw))
        except CacheError:
            refused += 1
            continue
        boxes = cast("BoxRows", columns["objects"])
        everything: Mapping[str, object] = {name: list(cast("Any", column)) for name, column in columns.items()}
        assert everything
        assert boxes.take(np.arange(3)).counts.sum() == len(boxes.boxes)
    assert refused > 10


@every_format
def test_more_boxes_than_the_manifest_says_are_refused(tmp_path: Path, kind: Format) -> None:
    file = write(tmp_path, kind, rows_with([3, 0], raw=True))
    stored = dict(file.targets or {})
    stored["objects"] = replace(stored["objects"], summary=replace(stored["objects"].summary, most=2))
    with pytest.raises(CacheError, match="has an image with 3 boxes, its manifest says at most 2"):
        map_targets(tmp_path, [replace(file, targets=stored)], SPATIAL, SHAPE[:2])


@every_format
@pytest.mark.parametrize(("offset", "stride"), [(2**40, 30), (0, 2**40), (0, 29), (None, 30)])
def test_masks_outside_the_file_are_refused(tmp_path: Path, kind: Format, offset: int | None, stride: int) -> None:
    file = write(tmp_path, kind, rows_with([3, 0], raw=True))
    stored = dict(file.targets or {})
    stored["area"] = replace(stored["area"], offset=offset, stride=stride)
    with pytest.raises(CacheError, match="masks"):
        map_targets(tmp_path, [replace(file, targets=stored)], SPATIAL, SHAPE[:2])
