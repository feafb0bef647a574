"""TFRecord reading and writing against TensorFlow's, and TFRecord files as a source."""

from __future__ import annotations

import gc
import gzip
import hashlib
import pickle
import random
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from caches import build, shard_hashes
from conftest import encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_python
from sources import example, records, write_tfrecord

from joulecache.pipelines import precompute
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


def test_kinds_and_lists_are_distinguished() -> None:
    data = example({"many": [7, -1, 300], "none": [], "one": [-5], "real": 1.5, "text": b""})
    found = tfrecord.features(data, 0, len(data))
    assert {name: (feature.kind, feature.single) for name, feature in found.items()} == {
        "many": (tfrecord.INTEGER, False),
        "one": (tfrecord.INTEGER, True),
        "real": (tfrecord.FLOAT, True),
        "text": (tfrecord.BYTES, True),
    }
    assert tfrecord.integer(data, found["many"]) == 7


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
    assert [record.targets[0] for record in read] == [row % 3 for row in range(150)]


def test_a_limit_takes_the_first_records(tmp_path: Path) -> None:
    path = write_tfrecord(tmp_path / "photos", [example({"image": b"photo", "label": row}) for row in range(100)])
    source = open_source(path, SourceConfig(limit=70))
    assert [unit.count for unit in source.units] == [64, 6]
    assert [record.targets[0] for record in records(source)] == list(range(70))


def test_an_unusable_record_has_a_reason(tmp_path: Path) -> None:
    path = write_tfrecord(
        tmp_path / "photos",
        [
            *[example({"image": b"photo", "label": 1})] * 64,  # those that tell the features
            example({"image": b"photo"}),
            example({"label": 1, "size": 3}),
            example({"image": 7, "label": 1}),
            example({"image": b"photo", "label": [1, 2]}),
            b"no Example",
            example({"image": b"marked", "label": 0}),
        ],
    )
    data = path.read_bytes()
    path.write_bytes(data.replace(b"marked", b"MARKED"))
    problems = [record.problem for record in records(open_source(path))][63:]
    assert problems[0] is None
    assert problems[1:5] == [
        "its example must have one class in label (integer), got image (bytes)",
        "its example must have one encoded image in image, got label (integer), size (integer)",
        "its example must have one encoded image in image, got image (integer), label (integer)",
        "its example must have one class in label (integer), got image (bytes), label (list)",
    ]
    assert problems[5] is not None
    assert problems[6] == "its bytes do not match their checksum"


def test_a_file_of_other_examples_is_refused_with_their_features(tmp_path: Path) -> None:
    path = write_tfrecord(tmp_path / "sounds", [example({"audio": b"sound", "label": 1})])
    with pytest.raises(
        SourceError, match=r"sounds' has no known column of images: .*; it has audio \(bytes\), label \(integer\)$"
    ):
        open_source(path)


# Compressed


@pytest.fixture(scope="module")
def photo_examples() -> list[bytes]:
    photos = [encoded(np.random.default_rng(row).integers(0, 256, (12, 9, 3), np.uint8), "JPEG") for row in range(150)]
    return [example({"image": photo, "label": row % 3}) for row, photo in enumerate(photos)]


@pytest.mark.parametrize("compression", ["GZIP", "ZLIB"])
def test_a_compressed_file_gives_the_cache_of_the_file(
    tmp_path: Path, photo_examples: list[bytes], compression: str
) -> None:
    plain = write_tfrecord(tmp_path / "plain" / "photos", photo_examples)
    compressed = write_tfrecord(tmp_path / "compressed" / "photos", photo_examples, compression)
    assert records(open_source(compressed)) != []
    built = [
        build(path, path.parent / "cache", chain="decode|resize(8)", shards=3, val_fraction=0.3)
        for path in (plain, compressed)
    ]
    assert shard_hashes(built[0]) == shard_hashes(built[1])
    again = precompute(compressed, compressed.parent / "cache", "decode|resize(8)", val_fraction=0.3)
    assert again.unchanged


def test_a_compressed_file_of_several_streams_and_padding_is_read(tmp_path: Path, photo_examples: list[bytes]) -> None:
    whole = write_tfrecord(tmp_path / "photos", photo_examples).read_bytes()
    parts = [whole[:1000], whole[1000:1001], b"", whole[1001:]]
    (tmp_path / "parts" / "photos").parent.mkdir()
    (tmp_path / "parts" / "photos").write_bytes(b"".join(map(gzip.compress, parts)) + bytes(100))
    read = records(open_source(tmp_path / "parts" / "photos"))
    assert [record.data for record in read] == [record.data for record in records(open_source(tmp_path / "photos"))]


READ_UNITS = """
import hashlib, pickle, sys
from pathlib import Path
for unit in pickle.loads(Path(sys.argv[1]).read_bytes()):
    print(unit.name, hashlib.sha256(b"".join(record.data for record in unit.read())).hexdigest())
"""


def test_units_of_a_compressed_file_are_read_in_any_order_and_process(
    tmp_path: Path, photo_examples: list[bytes]
) -> None:
    source = open_source(write_tfrecord(tmp_path / "photos", photo_examples, "GZIP"))
    (tmp_path / "photos").rename(tmp_path / "moved")  # it is not decompressed again
    images = {unit.name: b"".join(record.data for record in unit.read()) for unit in source.units}
    for unit in reversed(pickle.loads(pickle.dumps(source.units))):  # noqa: S301
        assert b"".join(record.data for record in unit.read()) == images[unit.name]
    (tmp_path / "moved").rename(tmp_path / "photos")
    (tmp_path / "units").write_bytes(pickle.dumps(source.units[::-1]))
    read = run_python(READ_UNITS, tmp_path / "units").stdout
    assert dict(map(str.split, read.splitlines())) == {
        name: hashlib.sha256(data).hexdigest() for name, data in images.items()
    }


def test_a_damaged_compressed_file_is_refused(tmp_path: Path, photo_examples: list[bytes]) -> None:
    path = write_tfrecord(tmp_path / "photos", photo_examples, "GZIP")
    whole = path.read_bytes()
    for damaged, message in (
        (whole[: len(whole) // 2], "the file is truncated"),
        (whole[:-1], "the file is truncated"),
        (whole[: len(whole) // 2] + bytes(64) + whole[len(whole) // 2 + 64 :], "invalid|incorrect"),
        (whole + b"more", "incorrect header check"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(SourceError, match=rf"^cannot decompress '.*photos': .*({message})"):
            open_source(path)


@pytest.mark.parametrize("content", [b"", b"text", bytes(500)])
def test_other_compressed_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "photos").write_bytes(gzip.compress(content))
    with pytest.raises(SourceError, match=r"^unsupported source .*; a tar must not be compressed$"):
        open_source(tmp_path / "photos")


def test_a_full_disk_says_where_it_is(
    tmp_path: Path, photo_examples: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tfrecord(tmp_path / "photos", photo_examples, "GZIP")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(
            SourceError, match=r"^cannot decompress '.*photos' into '.*' \(File too large\): set TMPDIR"
        ):
            open_source(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_the_temporary_file_goes_with_the_source(tmp_path: Path, photo_examples: list[bytes]) -> None:
    def temporary_files() -> list[str]:
        gc.collect()
        links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return [str(link) for link in links if link.name.endswith(" (deleted)")]

    before = temporary_files()
    source = open_source(write_tfrecord(tmp_path / "photos", photo_examples, "GZIP"))
    records(source)
    assert len(temporary_files()) == len(before) + 1
    del source
    assert temporary_files() == before


# Damage


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
