"""TFRecord reading and writing against TensorFlow's, and TFRecord files as a source."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import example, records, write_tfrecord

from joulecache.pipelines.core import tfrecord
from joulecache.pipelines.source import SourceConfig, SourceError, open_source

names = st.text(min_size=1, max_size=200)
payloads = st.binary(max_size=300)
integers = st.integers(-(2**63), 2**63 - 1)
values = st.dictionaries(names, payloads | integers, max_size=8)


@given(values)
def test_tensorflow_parses_our_examples(written: dict[str, bytes | int]) -> None:
    read = tf.train.Example.FromString(tfrecord.make_example(written)).features.feature
    assert {
        name: feature.bytes_list.value[0] if feature.HasField("bytes_list") else feature.int64_list.value[0]
        for name, feature in read.items()
    } == written


@given(values, st.binary(max_size=5), st.binary(max_size=5))
def test_tensorflows_examples_are_parsed_at_any_offset(
    written: dict[str, bytes | int], before: bytes, after: bytes
) -> None:
    data = before + example(written) + after
    found = tfrecord.features(data, len(before), len(data) - len(after))
    assert {
        name: data[feature.start : feature.stop] if feature.kind == tfrecord.BYTES else tfrecord.integer(data, feature)
        for name, feature in found.items()
    } == written


def test_the_first_of_many_values_counts_and_floats_are_ignored() -> None:
    data = example({"many": [7, -1, 300], "none": [], "real": 1.5})
    found = tfrecord.features(data, 0, len(data))
    assert {name: tfrecord.integer(data, feature) for name, feature in found.items()} == {"many": 7}


def test_unpacked_integers_are_read() -> None:
    # Feature {int64_list {value: 300}} with a separate tag for the value, as older writers have it
    unpacked = bytes([0x0A, 11, 0x0A, 9, 0x0A, 1, ord("n"), 0x12, 4, 0x1A, 2, 0x08, 42])
    assert tf.train.Example.FromString(unpacked).features.feature["n"].int64_list.value == [42]
    assert tfrecord.integer(unpacked, tfrecord.features(unpacked, 0, len(unpacked))["n"]) == 42


@settings(deadline=None)  # TensorFlow's first call is slow
@given(st.lists(payloads, max_size=5))
def test_records_match_tensorflows(tmp_path_factory: Any, written: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("records") / "ours"
    with open(path, "wb") as file:
        for data in written:
            tfrecord.write_record(file, data)
    assert list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()) == written
    whole = path.read_bytes()
    assert [whole[start:stop] for start, stop in tfrecord.records(whole)] == written
    with open(path, "rb") as file:
        assert [tfrecord.read_record(file, len(whole)) for _ in written] == [(data, True) for data in written]


def test_a_damaged_example_is_refused_or_parsed_within_bounds() -> None:
    whole = example({"image": b"photo" * 20, "label": 3, "other": b"x"})
    rng = random.Random(0)
    refused = 0
    for _ in range(5000):
        damaged = bytearray(whole[: rng.choice([len(whole), rng.randrange(len(whole))])])
        for _ in range(rng.randrange(4) if damaged else 0):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            found = tfrecord.features(damaged, 0, len(damaged))
            for feature in found.values():
                assert 0 <= feature.start <= feature.stop <= len(damaged)
                if feature.kind == tfrecord.INTEGER:
                    tfrecord.integer(damaged, feature)
        except ValueError:
            refused += 1
    assert 1000 < refused < 4900


# As a source


@pytest.mark.parametrize(
    ("image", "label"), [("image", "label"), ("image/encoded", "image/class/label"), ("image_raw", "label")]
)
def test_records_are_keyed_by_file_and_row(tmp_path: Path, image: str, label: str) -> None:
    written = [example({image: f"photo {row}".encode(), label: row % 3, "width": 5}) for row in range(150)]
    source = open_source(write_tfrecord(tmp_path / "photos.tfrecord", written))
    assert source.class_names == ("0", "1", "2")
    assert [unit.count for unit in source.units] == [64, 64, 22]
    read = records(source)
    assert [record.key for record in read] == [f"photos.tfrecord#{row}" for row in range(150)]
    assert [key for unit in source.units for key in unit.record_keys()] == [record.key for record in read]
    assert [record.data for record in read] == [f"photo {row}".encode() for row in range(150)]
    assert [record.label for record in read] == [row % 3 for row in range(150)]


def test_a_limit_takes_the_first_records(tmp_path: Path) -> None:
    path = write_tfrecord(tmp_path / "photos", [example({"image": b"photo", "label": row}) for row in range(100)])
    source = open_source(path, SourceConfig(limit=70))
    assert [unit.count for unit in source.units] == [64, 6]
    assert [record.label for record in records(source)] == list(range(70))


def test_an_unusable_record_has_a_reason(tmp_path: Path) -> None:
    path = write_tfrecord(
        tmp_path / "photos",
        [
            example({"image": b"photo", "label": 1}),
            example({"image": b"photo"}),
            example({"label": 1, "size": 3}),
            example({"image": 7, "label": 1}),
            b"no Example",
            example({"image": b"marked", "label": 0}),
        ],
    )
    data = path.read_bytes()
    path.write_bytes(data.replace(b"marked", b"MARKED"))
    problems = [record.problem for record in records(open_source(path))]
    assert problems[0] is None
    assert problems[1:4] == [
        "an Example must have an integer label named label or image/class/label, got image",
        "an Example must have an encoded image named image or image/encoded or image_raw, got label, size",
        "an Example must have an encoded image named image or image/encoded or image_raw, got image, label",
    ]
    assert problems[4] is not None
    assert problems[5] == "its bytes do not match their checksum"


def test_a_file_of_other_examples_is_refused_with_their_features(tmp_path: Path) -> None:
    path = write_tfrecord(tmp_path / "sounds", [example({"audio": b"sound", "label": 1})])
    with pytest.raises(SourceError, match=r"no records with an image and a label in '.*sounds': .*, got audio, label$"):
        open_source(path)


@pytest.mark.parametrize("compression", ["GZIP", "ZLIB"])
def test_a_compressed_file_is_refused(tmp_path: Path, compression: str) -> None:
    path = write_tfrecord(tmp_path / "photos.tfrecord", [example({"image": b"photo", "label": 1})], compression)
    with pytest.raises(SourceError, match=r"^unsupported source .*; tar and TFRecord files must not be compressed$"):
        open_source(path)


def test_a_file_truncated_anywhere_is_refused(tmp_path: Path) -> None:
    path = write_tfrecord(tmp_path / "photos", [example({"image": b"photo" * 9, "label": row}) for row in range(3)])
    whole = path.read_bytes()
    ends = [end + 4 for _, end in tfrecord.records(whole)]
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        if size in ends:
            assert open_source(path).records == ends.index(size) + 1
        else:
            with pytest.raises(SourceError):
                open_source(path)


def test_a_file_that_changed_since_it_was_listed_is_an_os_error(tmp_path: Path) -> None:
    path = write_tfrecord(tmp_path / "photos", [example({"image": b"photo" * 9, "label": row}) for row in range(100)])
    first, second = open_source(path).units
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 3)
    assert len(list(first.read())) == 64
    with pytest.raises(OSError, match=r"has changed since it was listed: the file ends inside a record of \d+ bytes"):
        list(second.read())
    with open(path, "r+b") as file:
        file.write(bytes(8))
    with pytest.raises(OSError, match="has changed since it was listed: no record starts here"):
        list(first.read())
