"""Helpers that write and inspect sources."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from joulecache.pipelines.source import Record, Source
from joulecache.pipelines.source.features import LABEL, ClassLabel, Features


def records(source: Source) -> list[Record]:
    """Read all records, in the order of the units."""
    return [record for unit in source.units for record in unit.read()]


def label_of(record: Record) -> int:
    """Return the class number of a record."""
    [label] = record.targets
    assert isinstance(label, int)
    return label


def labels(source: Source) -> dict[str, str]:
    """Return {key: class name}."""
    return {record.key: source.class_names[label_of(record)] for record in records(source)}


def classes(count: int) -> Features:
    """Return the features of a source with `count` classes."""
    return {LABEL: ClassLabel(tuple(map(str, range(count))))}


def splits(source: Source) -> dict[str, str | None]:
    """Return {key: split}."""
    return {key: unit.split for unit in source.units for key in unit.record_keys()}


def add(tar: tarfile.TarFile, name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", link: str = "") -> None:
    """Add a member to a tar."""
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, len(data), link
    tar.addfile(member, io.BytesIO(data))


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[int | None],
    *,
    class_names: Sequence[str] | None = None,
    row_group_size: int = 100,
) -> Path:
    """Write images and labels as Hugging Face does, with the class names where there are any; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [None if data is None else {"bytes": data, "path": None} for data in images]
    table = pa.table({"image": pa.array(rows, kind), "label": pa.array(labels, pa.int64())})
    if class_names is not None:
        features = {"info": {"features": {"label": {"names": class_names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def example(values: Mapping[str, object]) -> bytes:
    """Serialize an Example as TensorFlow does."""
    import tensorflow as tf

    features = {}
    for name, value in values.items():
        items: list[Any] = value if isinstance(value, list) else [value]
        if items and isinstance(items[0], bytes):
            features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=items))
        elif items and isinstance(items[0], float):
            features[name] = tf.train.Feature(float_list=tf.train.FloatList(value=items))
        else:
            features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=items))
    data: bytes = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
    return data


def write_tfrecord(path: Path, examples: Sequence[bytes], compression: str = "") -> Path:
    """Write records as TensorFlow does; return the path."""
    import tensorflow as tf

    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for data in examples:
            writer.write(data)
    return path
