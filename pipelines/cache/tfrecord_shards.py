"""Shards as TFRecord files of `tf.train.Example`; raw ones are padded to one length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.cache.data_file import ImageLayout
from joulecache.pipelines.cache.rows import Rows
from joulecache.pipelines.core import tfrecord

# The least padding: from here to 16383 a protobuf length takes two bytes, and up to 2 MiB three, so more padding moves nothing else.
_PAD_BYTES, _LARGE_PAD_BYTES = 128, 1 << 14


def write(file: BinaryIO, rows: Rows) -> ImageLayout | None:
    """Write rows; return the layout of raw images, None for encoded ones."""
    if not isinstance(rows.images, np.ndarray):
        for row, image in enumerate(rows.images):
            tfrecord.write_record(file, _example(rows, row, image))
        return None
    # Without its image a record has at least 128 bytes: every length takes two bytes, or three with large targets.
    sizes = [len(_example(rows, row, b"", _PAD_BYTES)) for row in range(len(rows))]
    pad = _PAD_BYTES if max(sizes) < _LARGE_PAD_BYTES else _LARGE_PAD_BYTES
    if pad != _PAD_BYTES:
        sizes = [len(_example(rows, row, b"", pad)) for row in range(len(rows))]
    record = b""
    for row, size in enumerate(sizes):
        before = len(record)
        record = _example(rows, row, rows.images[row].tobytes(), pad + max(sizes) - size)
        if row and len(record) != before:
            raise RuntimeError(f"record {rows.keys[row]!r} has {len(record)} bytes, the ones before it {before}")
        tfrecord.write_record(file, record)
    start = tfrecord.features(record, 0, len(record))["image"].start
    return ImageLayout(tfrecord.HEADER_BYTES + start, tfrecord.record_end(tfrecord.HEADER_BYTES + len(record)))


def _example(rows: Rows, row: int, image: bytes, pad: int | None = None) -> bytes:
    features: dict[str, tfrecord.Value] = {
        "image": image,
        "key": rows.keys[row].encode(),
        "key_hash": int(rows.key_hashes[row]),
    }
    for name, feature in rows.features.items():
        features[name] = feature.example(rows.targets[name], row)
    if pad is not None:
        features["pad"] = bytes(pad)
    return tfrecord.make_example(features)


def encoded_images(mapped: NDArray[np.uint8]) -> Sequence[NDArray[np.uint8]]:
    """Return the encoded images of a mapped file as views; raises ValueError or LookupError if it has none."""
    data = mapped.data
    found = [tfrecord.features(data, start, stop)["image"] for start, stop in tfrecord.records(data)]
    return [mapped[image.start : image.stop] for image in found]
