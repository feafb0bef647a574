"""Targets besides one class: from a source to what `load` yields, as they were written."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from caches import build, index_of, rejects_of, shard_hashes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sources import add, records

import joulecache as jc
from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.report.describe.cache import describe_manifest
from joulecache.pipelines.report.render.contact_sheet import write_contact_sheet
from joulecache.pipelines.report.render.markdown import to_markdown
from joulecache.pipelines.source import SourceConfig, SourceError, open_source
from joulecache.pipelines.source.features import Value
from joulecache.pipelines.source.targets import read_column

COUNT = 30
CHAIN = "decode|resize(8) || flip_lr"
TARGETS = ("age:value", "tags:multilabel", "kind:class", "caption:text", "embedding:value")
FEATURES = {
    "age": jc.features.Value(),
    "tags": jc.features.MultiLabel(("a", "b", "c")),
    "kind": jc.features.ClassLabel(("x", "y")),
    "caption": jc.features.Text(),
    "embedding": jc.features.Value(shape=(2,)),
}
WriteSource = Callable[[Path], tuple[Path, dict[str, Any]]]


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (9, 9), (number, 2 * number, 0)).save(stream, "PNG")
    return stream.getvalue()


def row(number: int) -> dict[str, Any]:
    """Return the targets of an image."""
    return {
        "age": number + 0.5,
        "tags": ["a", "b"] if number % 3 else ["c"],
        "kind": "xy"[number % 2],
        "caption": f"été {number}",
        "embedding": [number / 4, -1.0],
    }


def images_in(folder: Path) -> Path:
    folder.mkdir()
    for number in range(COUNT):
        (folder / f"{number:02}.png").write_bytes(png(number))
    return folder


def labels_file(folder: Path) -> tuple[Path, dict[str, Any]]:
    lines = [
        f"{number:02}.png;{each['age']};{','.join(each['tags'])};{each['kind']};{each['caption']};{each['embedding']}"
        for number, each in enumerate(map(row, range(COUNT)))
    ]
    (folder / "labels.csv").write_text("\n".join([";".join(["file", *row(0)]), *lines]))
    return images_in(folder / "images"), {"labels": folder / "labels.csv"}


def metadata_jsonl(folder: Path) -> tuple[Path, dict[str, Any]]:
    images = images_in(folder / "images")
    rows = [json.dumps({"file_name": f"{number:02}.png", **row(number)}) for number in range(COUNT)]
    (images / "metadata.jsonl").write_text("\n".join(rows))
    return images, {}


def metadata_parquet(folder: Path) -> tuple[Path, dict[str, Any]]:
    images = images_in(folder / "images")
    rows = [{"file_name": f"{number:02}.png", **row(number)} for number in range(COUNT)]
    pq.write_table(pa.Table.from_pylist(rows), images / "metadata.parquet")
    return images, {}


def parquet(folder: Path) -> tuple[Path, dict[str, Any]]:
    rows = [{"image": png(number), **row(number)} for number in range(COUNT)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet", {}


def tfrecord(folder: Path) -> tuple[Path, dict[str, Any]]:
    def feature(value: Any) -> Any:
        items = value if isinstance(value, list) else [value]
        if isinstance(items[0], float):
            return tf.train.Feature(float_list=tf.train.FloatList(value=items))
        encoded = [item.encode() if isinstance(item, str) else item for item in items]
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=encoded))

    path = folder / "rows.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number in range(COUNT):
            values = {"image": png(number), **row(number)}
            features = tf.train.Features(feature={name: feature(value) for name, value in values.items()})
            writer.write(tf.train.Example(features=features).SerializeToString())
    return path, {}


def webdataset(folder: Path) -> tuple[Path, dict[str, Any]]:
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for number in range(COUNT):
            add(tar, f"{number:02}.png", data=png(number))
            add(tar, f"{number:02}.json", data=json.dumps(row(number)).encode())
    return folder / "shard.tar", {}


SOURCES: Sequence[WriteSource] = (labels_file, metadata_jsonl, metadata_parquet, parquet, tfrecord, webdataset)


def loaded(cache: Path, **options: Any) -> list[Any]:
    return [each for split in ("train", "val") for each in jc.load(cache, split, 4, shuffle=False, **options)]


@pytest.mark.parametrize("write", SOURCES)
@pytest.mark.parametrize("kind", ["arrow", "tfrecord"])
def test_every_source_gives_the_same_targets(tmp_path: Path, write: WriteSource, kind: str) -> None:
    source, options = write(tmp_path)
    manifest = build(source, tmp_path / "cache", CHAIN, format=kind, target=TARGETS, workers=1, **options)
    assert manifest.features == FEATURES
    assert open_manifest(tmp_path / "cache") == manifest
    assert manifest.class_names == ()
    images, targets = zip(*loaded(tmp_path / "cache"), strict=True)
    red = np.concatenate(images)[:, 0, 0, 0]  # a flip of one colour changes nothing
    found = {name: np.concatenate([batch[name] for batch in targets]) for name in FEATURES}
    assert sorted(red.tolist()) == [*range(COUNT)]
    assert {name: (column.dtype.name, column.shape[1:]) for name, column in found.items()} == {
        "age": ("float32", ()),
        "tags": ("float32", (3,)),
        "kind": ("int64", ()),
        "caption": ("object", ()),
        "embedding": ("float32", (2,)),
    }
    for place, number in enumerate(red.tolist()):
        each = row(number)
        assert found["age"][place] == each["age"]
        assert found["tags"][place].tolist() == [float(name in each["tags"]) for name in "abc"]
        assert found["kind"][place] == "xy".index(each["kind"])
        assert found["caption"][place].decode() == each["caption"]
        assert found["embedding"][place].tolist() == each["embedding"]
    again = jc.precompute(source, tmp_path / "cache", chain=CHAIN, format=kind, target=TARGETS, workers=1, **options)  # type: ignore[arg-type]
    assert again.unchanged
    assert jc.verify(tmp_path / "cache") == []


def test_pyarrow_and_tensorflow_read_targets_without_this_library(tmp_path: Path) -> None:
    source, options = parquet(tmp_path)
    arrow = build(source, tmp_path / "arrow", CHAIN, target=TARGETS, workers=1, **options)
    with pa.ipc.open_file(str(tmp_path / "arrow" / arrow.splits["train"].files[0].name)) as reader:
        table = reader.read_all()
    assert table.schema.names == ["image", *FEATURES, "key", "key_hash"]
    assert str(table.schema.field("tags").type) == "extension<arrow.fixed_shape_tensor[value_type=uint8, shape=[3]]>"
    record = build(source, tmp_path / "tfrecord", CHAIN, format="tfrecord", target=TARGETS, workers=1, **options)
    data = tf.data.TFRecordDataset(str(tmp_path / "tfrecord" / record.splits["train"].files[0].name))
    features = tf.train.Example.FromString(next(iter(data)).numpy()).features.feature
    first = table.slice(0, 1).to_pylist()[0]
    assert [*features["tags"].int64_list.value] == [*first["tags"]]
    assert [*features["embedding"].float_list.value] == [*first["embedding"]]
    assert features["caption"].bytes_list.value[0].decode() == first["caption"]


@pytest.mark.parametrize("kind", ["arrow", "tfrecord"])
def test_worker_processes_write_the_same_bytes(tmp_path: Path, kind: str) -> None:
    source, options = labels_file(tmp_path)
    for workers in (1, 2):
        build(source, tmp_path / f"{workers}", CHAIN, format=kind, target=TARGETS, workers=workers, shards=3, **options)
    one, two = (shard_hashes(open_manifest(tmp_path / f"{workers}")) for workers in (1, 2))
    assert one == two


def test_texts_of_any_length_fit_tfrecords(tmp_path: Path) -> None:
    texts = ["a" * (1 << number) for number in range(18)]
    rows = [{"image": png(number), "text": text} for number, text in enumerate(texts)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    build(
        tmp_path / "rows.parquet",
        tmp_path / "cache",
        CHAIN,
        format="tfrecord",
        target="text:text",
        workers=1,
        val_fraction=0,
    )
    batches = jc.load(tmp_path / "cache", "train", 4)
    assert {text.decode() for _, batch in batches for text in batch.numpy()} == {*texts}


def test_selected_targets_and_weights(tmp_path: Path) -> None:
    source, options = parquet(tmp_path)
    cache = tmp_path / "cache"
    build(source, cache, CHAIN, target=TARGETS, workers=1, **options)
    spec = jc.load(cache, "train", 4, targets="age").element_spec
    assert [each.dtype for each in spec] == [tf.uint8, tf.float32]
    assert jc.load(cache, "train", 4, targets=()).element_spec.dtype == tf.uint8
    spec = jc.load(cache, "train", 4, targets=["kind", "tags"], sample_weight="age").element_spec
    assert (*spec[1], spec[2].dtype) == ("kind", "tags", tf.float32)
    assert jc.load(cache, "train", 4, targets="tags").class_names == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"targets must name targets of the cache, 'age', .*, got 'nope'"):
        jc.load(cache, "train", 4, targets="nope")
    with pytest.raises(ValueError, match="sample_weight must name a value of one number, but 'tags' is a multilabel"):
        jc.load(cache, "train", 4, sample_weight="tags")
    resumed = jc.load(cache, "train", 4, targets="age", epochs=2)
    assert len(list(resumed)) == resumed.cardinality()


def test_mixtures_take_classes_and_refuse_values_by_name(tmp_path: Path) -> None:
    source, options = parquet(tmp_path)
    build(source, tmp_path / "cache", "decode|resize(8) || mixup", target=TARGETS, workers=1, **options)
    with pytest.raises(ValueError, match="but not the value 'age': leave it out with targets="):
        jc.load(tmp_path / "cache", "train", 4)
    _, targets = next(iter(jc.load(tmp_path / "cache", "train", 4, targets=["kind", "tags"])))
    assert targets["kind"].shape == (4, 2)
    np.testing.assert_allclose(targets["kind"].numpy().sum(axis=1), 1, rtol=1e-6)
    assert targets["tags"].shape == (4, 3)


def test_an_update_notices_a_changed_target_and_computes_no_image(tmp_path: Path) -> None:
    source, options = labels_file(tmp_path)
    build(source, tmp_path / "cache", CHAIN, target="age", workers=1, **options)
    text = options["labels"].read_text()
    options["labels"].write_text(text.replace("\n03.png;3.5;", "\n03.png;77;"))
    built = jc.precompute(source, tmp_path / "cache", chain=CHAIN, target="age", workers=1, **options)
    assert (built.unchanged, built.transformed) == (False, 0)
    assert [each["age"] for each in index_of(tmp_path / "cache") if each["key"] == "03.png"] == [77]
    fresh = build(source, tmp_path / "fresh", CHAIN, target="age", workers=1, **options)
    assert shard_hashes(fresh) == shard_hashes(built.manifest)


def test_missing_and_malformed_targets_are_rejected_with_the_reason(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"image": png(number), "age": [1.0, number]} for number in range(COUNT)]
    rows[3]["age"], rows[4]["age"], rows[5]["age"] = None, [1.0], [float("nan"), 1.0]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    build(tmp_path / "rows.parquet", tmp_path / "cache", CHAIN, target="age:value", workers=1, max_reject_rate=0.5)
    assert [each["reason"] for each in rejects_of(tmp_path / "cache")] == [
        "its 'age' is empty",
        "its 'age' must have numbers of shape (2,), got (1,)",
        "its 'age' must have finite numbers of type float32",
    ]


def test_images_without_targets_are_loaded_alone(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(number) for number in range(COUNT)]}), tmp_path / "rows.parquet")
    manifest = build(tmp_path / "rows.parquet", tmp_path / "cache", CHAIN, workers=1)
    assert manifest.features == {}
    assert sum(len(batch) for batch in loaded(tmp_path / "cache")) == COUNT
    assert "No targets" in to_markdown(describe_manifest(manifest))


@pytest.mark.parametrize(
    ("cells", "feature"),
    [
        (["1.5", "2", "31"], jc.features.Value()),
        (["a;b", "a", "c"], jc.features.MultiLabel(("a", "b", "c"))),
        (["['a', 'b']", "['a']", "['c']"], jc.features.MultiLabel(("a", "b", "c"))),
    ],
)
def test_unmistakable_columns_need_no_kind(tmp_path: Path, cells: Sequence[str], feature: object) -> None:
    (tmp_path / "images").mkdir()
    for number in range(len(cells)):
        (tmp_path / f"images/{number}.png").write_bytes(png(number))
    lines = [f'{number}.png,"{cell}"' for number, cell in enumerate(cells)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *lines]))
    source = open_source(tmp_path / "images", SourceConfig(labels=tmp_path / "labels.csv"))
    assert source.features == {"label": feature}
    assert "pass --target label:KIND for another kind" in source.notes[-1]


def test_columns_of_0_and_1_are_a_multilabel(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(2):
        (tmp_path / f"images/{number}.png").write_bytes(png(number))
    (tmp_path / "labels.csv").write_text("file,rust,scab\n0.png,1,0\n1.png,1,1\n")
    source = open_source(tmp_path / "images", SourceConfig(labels=tmp_path / "labels.csv"))
    assert source.features == {"labels": jc.features.MultiLabel(("rust", "scab"))}
    assert [record.targets for record in records(source)] == [(b"\1\0",), (b"\1\1",)]


def test_what_needs_classes_refuses_other_targets(tmp_path: Path) -> None:
    source, options = parquet(tmp_path)
    build(source, tmp_path / "cache", CHAIN, target="age", workers=1, **options)
    message = r"the model 'cnn' needs one class or multi-label for each image, but .* has age \(value\): choose one with --target"
    with pytest.raises(ValueError, match=message):
        jc.audit(source, chain="decode|resize(32) || flip_lr", out=tmp_path / "audit", target="age")
    with pytest.raises(ValueError, match=message):
        jc.train(tmp_path / "cache", epochs=1, out=tmp_path / "model")
    write_contact_sheet(tmp_path / "cache", tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize("bad", ["age:", ":value", "age:number", ("age", "age:value"), ()])
def test_malformed_options_are_refused(bad: str | tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="target must"):
        SourceConfig(target=bad)


def test_a_target_called_like_a_column_of_each_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("file,row\n00.png,1.5\n")
    with pytest.raises(SourceError, match="a target cannot be called 'row': rename its column"):
        open_source(images_in(tmp_path / "images"), SourceConfig(labels=tmp_path / "a.csv", target="row"))


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(numbers, min_size=n, max_size=n), min_size=1)))
@settings(max_examples=50)
def test_values_come_back_as_they_were_written(values: list[list[float]]) -> None:
    feature = Value("float32", (len(values[0]),))
    targets = [feature.encode(value) for value in values]
    column = feature.column(targets)
    assert feature.targets(column) == targets
    np.testing.assert_array_equal(feature.array(column), np.array(values, np.float32))


@given(st.sampled_from(["class", "multilabel", "value", "text"]), st.lists(st.none() | st.text(max_size=8)))
@settings(max_examples=300)
def test_any_cell_is_a_target_or_has_a_reason(kind: str, cells: list[str | None]) -> None:
    feature, targets, reasons = read_column("t", kind, cells)
    for place, (cell, target) in enumerate(zip(cells, targets, strict=True)):
        assert (target is None) == (cell is None or place in reasons)
        if target is not None:
            feature.check(target)
    assert feature.targets(feature.column([each for each in targets if each is not None])) is not None


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("write", [labels_file, metadata_jsonl])
def test_mutations_of_a_metadata_file_are_refused_or_rejected(tmp_path: Path, write: WriteSource, count: int) -> None:
    images, options = write(tmp_path)
    path: Path = options.get("labels", images / "metadata.jsonl")
    original = b"\n".join(path.read_bytes().splitlines()[:4])
    for image in sorted(images.glob("*.png"))[4:]:
        image.unlink()
    rng = np.random.default_rng(0)
    pieces = [b"9" * 400, b"[[[[", b"nan", b'"', b"1e999", b"\xff\xfe", b"null", b";", b"-1", b"9223372036854775808"]
    for _ in range(count):
        data = bytearray(original)
        for _ in range(rng.integers(1, 5)):
            place = int(rng.integers(len(data)))
            match rng.integers(3):
                case 0:
                    data[place] = rng.integers(256)
                case 1:
                    del data[place : place + int(rng.integers(1, 9))]
                case _:
                    data[place:place] = pieces[rng.integers(len(pieces))]
        path.write_bytes(data)
        try:
            source = open_source(images, SourceConfig(target=TARGETS, **options))
        except SourceError:
            continue
        assert len(source.units) + len(source.refused) == 4
        for record in records(source):
            for feature, target in zip(source.features.values(), record.targets, strict=True):
                feature.check(target)


def test_columns_of_0_and_1_are_one_multi_label_next_to_other_targets(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(4):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(number))
    table = tmp_path / "table.csv"
    table.write_text("file_name,cat,dog,count\n0.png,1,0,3\n1.png,0,1,5\n2.png,1,1,9\n3.png,0,0,7\n")
    wanted = ("labels:multilabel", "count:value")
    source = open_source(tmp_path / "images", SourceConfig(labels=table, target=wanted))
    assert dict(source.features) == {"count": Value("int64"), "labels": jc.features.MultiLabel(("cat", "dog"))}
    assert [record.targets for unit in source.units for record in unit.read()] == [
        (3, b"\1\0"),
        (5, b"\0\1"),
        (9, b"\1\1"),
        (7, b"\0\0"),
    ]
    table.write_text("file_name,cat,count\n0.png,1,3\n")
    with pytest.raises(SourceError, match="needs a column 'labels', or two or more columns of 0 and 1"):
        open_source(tmp_path / "images", SourceConfig(labels=table, target=wanted))


def test_captions_in_txt_files_of_a_tar_are_texts_next_to_keys_of_json_files(tmp_path: Path) -> None:
    long = "été " * 1000
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for number, caption in enumerate(("a cat\n", long, "", None)):
            add(tar, f"{number}.png", data=png(number))
            add(tar, f"{number}.json", data=json.dumps({"age": number + 0.5}).encode())
            if caption is not None:
                add(tar, f"{number}.txt", data=caption.encode())
    found = open_source(tmp_path / "shard.tar", SourceConfig(target=("txt:text", "age:value")))
    assert {name: feature.kind for name, feature in found.features.items()} == {"txt": "text", "age": "value"}
    targets = [record.targets for unit in found.units for record in unit.read()]
    assert targets == [("a cat", 0.5), (long.strip(), 1.5)]
    assert dict(found.refused) == {"2.png": "its 'txt' is empty", "3.png": "it has no .txt file"}
    alone = open_source(tmp_path / "shard.tar", SourceConfig(target="txt:text"))
    assert [record.targets for unit in alone.units for record in unit.read()] == [("a cat",), (long.strip(),)]
