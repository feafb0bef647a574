"""Shards: they can be read back, also by pyarrow and TensorFlow alone, and damage is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from joulecache.pipelines.cache.arrow_shards import PAGE
from joulecache.pipelines.cache.data_file import DataFile, PixelStats
from joulecache.pipelines.cache.encoded_column import EncodedColumn
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.names import FORMATS, SPLITS, Format, ShardName, is_data_file, parse_shard_name
from joulecache.pipelines.cache.rows import Rows
from joulecache.pipelines.cache.shards import map_images, read_encoded, write_shard
from joulecache.pipelines.source.features import LABEL, ClassLabel

COLOUR, GREY = (5, 7, 3), (6, 4, 1)

MakeRows = Callable[[int], Rows]

every_format = pytest.mark.parametrize("kind", FORMATS)
words = st.integers(0, 2**64 - 1)
int64s = st.integers(-(2**63), 2**63 - 1)
# One to four bytes per character, up to 4000 bytes.
keys = st.builds(
    lambda character, length: character * max(1, length // len(character.encode())),
    st.sampled_from("aé中🐕"),
    st.integers(1, 4000),
)


def pixels(count: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)


NO_STATS = PixelStats(0, (0,), (0,))


def raw_rows(count: int, shape: tuple[int, int, int] = COLOUR) -> Rows:
    return with_images(pixels(count, shape))


def encoded_rows(count: int) -> Rows:
    return with_images(EncodedColumn.of([b"\xffimage" * (1 + row * 7) for row in range(count)]))


def with_images(images: NDArray[np.uint8] | EncodedColumn) -> Rows:
    count = len(images)
    names = [f"dog/été {row:03d}.jpg" for row in range(count)]
    hashes = np.random.default_rng(1).integers(0, 2**64, count, np.uint64, endpoint=False)
    return Rows(images, {LABEL: ClassLabel(())}, {LABEL: pa.array(np.arange(count) % 5)}, names, hashes, NO_STATS)


def write(folder: Path, kind: Format, rows: Rows) -> DataFile:
    return write_shard(folder, ShardName("train", 2, 3, 16, "", kind), rows)


def parsed(path: Path) -> list[dict[str, Any]]:
    """Return the records of a TFRecord shard, read with TensorFlow alone."""
    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
        "key": tf.io.FixedLenFeature([], tf.string),
        "key_hash": tf.io.FixedLenFeature([], tf.int64),
    }
    records = tf.data.TFRecordDataset(str(path)).map(lambda record: tf.io.parse_example(record, features))
    return list(records.as_numpy_iterator())


def table(path: Path) -> pa.Table:
    with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
        return reader.read_all()


# ------------------------------------------------------------------------------------------ round trips


@every_format
@pytest.mark.parametrize("count", [1, 37])
def test_encoded_images_are_read_as_they_were_written(tmp_path: Path, kind: Format, count: int) -> None:
    rows = encoded_rows(count)
    file = write(tmp_path, kind, rows)
    assert [bytes(image) for image in read_encoded(tmp_path / file.name, file)] == [*map(bytes, rows.images)]
    assert (file.image_offset, file.image_stride) == (None, None)


@every_format
@pytest.mark.parametrize("make", [raw_rows, encoded_rows])
def test_the_same_rows_give_the_same_bytes_and_an_entry_describes_them(
    tmp_path: Path, kind: Format, make: MakeRows
) -> None:
    file = write(tmp_path, kind, make(9))
    assert write(tmp_path, kind, make(9)) == file
    [path] = tmp_path.iterdir()
    data = path.read_bytes()
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    assert (file.records, file.bytes) == (9, len(data))
    assert file.name == path.name == f"train-v2-00003-of-00016-{file.sha256[:8]}.{kind}"


# ------------------------------------------------------------------------------------------ Arrow, with pyarrow alone


@given(
    st.lists(st.tuples(keys, int64s, words), min_size=1, max_size=6),
    st.sampled_from([COLOUR, GREY, (1, 1, 1)]),
    st.sampled_from(FORMATS),
)
@settings(max_examples=50)
def test_raw_images_are_mapped_and_read_by_other_libraries_whatever_the_rows(
    records: list[tuple[str, int, int]], shape: tuple[int, int, int], kind: Format
) -> None:
    names, labels, hashes = (list(column) for column in zip(*records, strict=True))
    images = pixels(len(records), shape)
    rows = Rows(
        images,
        {LABEL: ClassLabel(())},
        {LABEL: pa.array(labels, pa.int64())},
        names,
        np.array(hashes, np.uint64),
        NO_STATS,
    )
    with TemporaryDirectory() as folder:
        file = write(Path(folder), kind, rows)
        path = Path(folder, file.name)
        np.testing.assert_array_equal(map_images(path, file, shape), images)
        if kind == "arrow":
            read = table(path).select(["key", "label", "key_hash"]).to_pylist()
            assert file.image_offset is not None
            assert file.image_offset % PAGE == 0
            assert [(row["key"], row["label"], row["key_hash"]) for row in read] == records
        else:
            sizes = {len(record.numpy()) for record in tf.data.TFRecordDataset(str(path))}
            assert sizes == {file.bytes // len(rows) - 16}  # 16: the length and the two checksums
            read = parsed(path)
            assert [row["image"] for row in read] == [image.tobytes() for image in images]
            assert [(row["key"].decode(), row["label"], int(row["key_hash"]) % 2**64) for row in read] == records


def test_pyarrow_alone_reads_the_documented_columns(tmp_path: Path) -> None:
    rows = raw_rows(5)
    raw, encoded = (table(tmp_path / write(tmp_path, "arrow", each).name) for each in (rows, encoded_rows(2)))
    for read in (raw, encoded):
        assert read.schema.names == ["image", "label", "key", "key_hash"]
        assert read.schema.types[1:] == [pa.int64(), pa.string(), pa.uint64()]
    image = raw["image"].combine_chunks()
    assert image.type.extension_name == "arrow.fixed_shape_tensor"
    np.testing.assert_array_equal(image.to_numpy_ndarray(), rows.images)
    assert encoded.schema.types[0] == pa.binary()


def test_an_arrow_shard_is_one_uncompressed_batch(tmp_path: Path) -> None:
    file = write(tmp_path, "arrow", raw_rows(50, (64, 64, 3)))
    before = pa.total_allocated_bytes()
    with pa.ipc.open_file(pa.memory_map(str(tmp_path / file.name))) as reader:
        assert reader.num_record_batches == 1
        batch = reader.get_batch(0)
        assert pa.total_allocated_bytes() - before < 4096  # compressed buffers would be inflated here
    assert batch.num_rows == 50


# ------------------------------------------------------------------------------------------ TFRecord, with TensorFlow alone


def test_a_record_is_an_ordinary_example_in_a_fixed_order(tmp_path: Path) -> None:
    rows = encoded_rows(2)
    path = tmp_path / write(tmp_path, "tfrecord", rows).name
    (_, record) = (record.numpy() for record in tf.data.TFRecordDataset(str(path)))
    features = tf.train.Example.FromString(record).features.feature
    assert sorted(features) == ["image", "key", "key_hash", "label"]
    assert features["image"].bytes_list.value == [bytes(rows.images[1])]
    assert features["key"].bytes_list.value == [rows.keys[1].encode()]
    assert features["label"].int64_list.value == [1]
    assert features["key_hash"].int64_list.value == [int(rows.key_hashes[1].astype(np.int64))]
    order = [record.index(b"\x0a" + bytes([len(name)]) + name) for name in (b"image", b"key", b"key_hash", b"label")]
    assert order == sorted(order)


# ------------------------------------------------------------------------------------------ names


names = st.builds(
    ShardName,
    st.sampled_from(SPLITS),
    st.integers(0, 999_999),
    st.integers(0, 99_999_999),
    st.integers(0, 99_999_999),
    st.integers(0, 2**32 - 1).map("{:08x}".format),
    st.sampled_from(FORMATS),
)


@given(names)
def test_a_shard_name_is_parsed_as_it_was_formatted(name: ShardName) -> None:
    assert parse_shard_name(str(name)) == name


@given(names, st.data())
def test_a_shard_name_has_one_spelling(name: ShardName, data: st.DataObject) -> None:
    text = str(name)
    at = data.draw(st.integers(0, len(text)))
    changed = text[:at] + data.draw(st.text("0aZ-./\n٣", max_size=2)) + text[at + data.draw(st.integers(0, 1)) :]
    read = parse_shard_name(changed)
    assert read is None or str(read) == changed


@pytest.mark.parametrize("name", ["index-1a2b3c4d.arrow", "rejected-00000000.jsonl"])
def test_names_of_data_files_have_one_spelling(name: str) -> None:
    assert is_data_file(name)
    for other in ("../" + name, name + "\n", name.upper(), name.replace("0", "").replace("1", ""), name + ".bak"):
        assert not is_data_file(other)


@pytest.mark.parametrize(
    "name",
    [
        *("", "manifest.json", "train.arrow", "index.arrow", "index-1a2b3c4d.tfrecord", "rejected-1a2b3c4d.json"),
        "train-v0-00000-of-00001-1A2B3C4D.arrow",
        "train-v00-00000-of-00001-1a2b3c4d.arrow",
        "train-v0-00000-of-00001-1a2b3c4d.arrow.bak",
        "train-v0-00000-of-00001-1a2b3c4d.parquet",
        "dev-v0-00000-of-00001-1a2b3c4d.arrow",
        "a/train-v0-00000-of-00001-1a2b3c4d.arrow",
    ],
)
def test_any_other_name_is_not_a_data_file(name: str) -> None:
    assert not is_data_file(name)


# ------------------------------------------------------------------------------------------ failures


@every_format
@pytest.mark.parametrize("make", [raw_rows, encoded_rows])
def test_a_failed_write_leaves_no_file(tmp_path: Path, kind: Format, make: MakeRows) -> None:
    unwritable = replace(make(3), keys=["first", "second", "\ud800"])
    with pytest.raises(UnicodeEncodeError):
        write(tmp_path, kind, unwritable)
    assert list(tmp_path.iterdir()) == []


@every_format
def test_a_missing_folder_is_an_os_error(tmp_path: Path, kind: Format) -> None:
    with pytest.raises(OSError, match="No such file or directory"):
        write(tmp_path / "nowhere", kind, raw_rows(1))


def test_pixel_stats_add_up() -> None:
    assert PixelStats(2, (3, 4), (5, 6)) + PixelStats(20, (30, 40), (50, 60)) == PixelStats(22, (33, 44), (55, 66))


small = st.integers(-3, 40)


@given(small, small, st.integers(-1, 5), st.integers(0, 60))
@example(offset=0, stride=6, records=1, size=5)
@example(offset=-1, stride=6, records=1, size=10)
@example(offset=1, stride=7, records=3, size=21)
def test_images_are_mapped_only_where_all_of_them_fit_the_file(
    offset: int, stride: int, records: int, size: int
) -> None:
    file = DataFile("shard", records, size, "", offset, stride, None)
    starts = [offset + row * stride for row in range(records)]
    fit = bool(starts) and stride >= 6 and all(0 <= start <= size - 6 for start in starts)
    with TemporaryDirectory() as folder:
        path = Path(folder, "shard")
        path.write_bytes(bytes(range(size)))
        if fit:
            mapped = map_images(path, file, (2, 1, 3))
            assert mapped.reshape(records, 6).tolist() == [list(range(start, start + 6)) for start in starts]
        else:
            with pytest.raises(CacheError, match="do not fit"):
                map_images(path, file, (2, 1, 3))


@every_format
@pytest.mark.parametrize("change", [-1, 1, -(10**6)], ids=["cut", "grown", "empty"])
def test_a_cut_or_grown_file_is_refused(tmp_path: Path, kind: Format, change: int) -> None:
    for rows in (raw_rows(4), encoded_rows(4)):
        file = write(tmp_path, kind, rows)
        path = tmp_path / file.name
        data = path.read_bytes()
        path.write_bytes(data[:change] if change < 0 else data + bytes(change))
        with pytest.raises(CacheError, match=f"manifest says {len(data)}.*rebuild"):
            _ = read_encoded(path, file) if file.image_offset is None else map_images(path, file, COLOUR)


@every_format
def test_images_of_another_kind_or_number_are_refused(tmp_path: Path, kind: Format) -> None:
    raw, encoded = write(tmp_path, kind, raw_rows(2)), write(tmp_path, kind, encoded_rows(4))
    with pytest.raises(CacheError, match="encoded images"):
        map_images(tmp_path / encoded.name, encoded, COLOUR)
    with pytest.raises(CacheError, match="holds 4 images, its manifest says 5"):
        read_encoded(tmp_path / encoded.name, replace(encoded, records=5))
    if kind == "arrow":
        with pytest.raises(CacheError, match="is damaged"):
            read_encoded(tmp_path / raw.name, raw)
    else:
        assert len(read_encoded(tmp_path / raw.name, raw)) == 2


@pytest.mark.parametrize("end", [b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff"], ids=["far", "negative"])
def test_an_arrow_offset_outside_the_file_is_refused(tmp_path: Path, end: bytes) -> None:
    rows = encoded_rows(4)
    file = write(tmp_path, "arrow", rows)
    path = tmp_path / file.name
    starts = np.cumsum([0, *map(len, rows.images)]).astype(np.int32)
    data = path.read_bytes()
    assert data.count(starts.tobytes()) == 1
    path.write_bytes(data.replace(starts.tobytes(), starts[:2].tobytes() + end + starts[3:].tobytes()))
    with pytest.raises(CacheError, match=r"is damaged .*: rebuild the cache"):  # reading it would crash the interpreter
        read_encoded(path, file)


def test_an_image_that_extends_past_its_tfrecord_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "tfrecord", with_images(EncodedColumn.of([b"image", b"image"])))
    path = tmp_path / file.name
    data = path.read_bytes()
    assert data.count(b"\x0a\x07\x0a\x05image") == 2  # tag and length of the list, then of its value
    path.write_bytes(data.replace(b"\x0a\x07\x0a\x05image", b"\x0a\x07\x0a\x7eimage", 1))
    with pytest.raises(CacheError, match="extends past its message"):
        read_encoded(path, file)


@cache
def encoded_shard(kind: Format) -> tuple[DataFile, bytes]:
    with TemporaryDirectory() as folder:
        file = write(Path(folder), kind, encoded_rows(3))
        return file, Path(folder, file.name).read_bytes()


@given(st.data())
@settings(max_examples=300)
def test_a_damaged_encoded_shard_is_refused_or_gives_bytes(data: st.DataObject) -> None:
    file, whole = encoded_shard(data.draw(st.sampled_from(FORMATS)))
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    with TemporaryDirectory() as folder, suppress(CacheError):
        path = Path(folder, file.name)
        path.write_bytes(damaged)
        images = [bytes(image) for image in read_encoded(path, file)]
        assert len(images) == file.records
