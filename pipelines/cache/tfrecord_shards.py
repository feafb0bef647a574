"""Shards as TFRecord files of `tf.train.Example`; raw ones are padded to one length."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.cache.data_file import RawLayout
from joulecache.pipelines.cache.rows import Rows
from joulecache.pipelines.cache.spatial_columns import BoxRows, StoredColumn
from joulecache.pipelines.core import tfrecord
from joulecache.pipelines.source.spatial import Boxes, Mask, Points, SpatialFeature

# The least padding: from each to the next, the length of the padding takes equally many bytes, so more of it moves nothing else.
_PADS = (1 << 7, 1 << 14, 1 << 21, 1 << 28)

# Writing --------------------------------------------------------------------------------------------------------------


def write(file: BinaryIO, rows: Rows) -> dict[str, RawLayout]:
    """Write rows; return the layouts of raw images and masks, by column."""
    if not isinstance(rows.images, np.ndarray):
        for row, image in enumerate(rows.images):
            masks = {name: bytes(column[row]) for name, column in rows.masks.items()}
            tfrecord.write_record(file, _example(rows, row, {"image": bytes(image), **masks}))
        return {}
    arrays = {"image": rows.images, **rows.masks}
    # Without its image a record has at least 128 bytes: every length takes two bytes, or more with large targets.
    nothing = dict.fromkeys(arrays, b"")
    pad = _PADS[0]
    sizes = [len(_example(rows, row, nothing, pad)) for row in range(len(rows))]
    if max(sizes) >= _PADS[1]:
        pad = next(least for least, most in itertools.pairwise(_PADS) if max(sizes) < most)
        sizes = [len(_example(rows, row, nothing, pad)) for row in range(len(rows))]
    record = b""
    for row, size in enumerate(sizes):
        before = len(record)
        raw = {name: bytes(array[row]) for name, array in arrays.items()}
        record = _example(rows, row, raw, pad + max(sizes) - size)
        if row and len(record) != before:
            raise RuntimeError(f"record {rows.keys[row]!r} has {len(record)} bytes, the ones before it {before}")
        tfrecord.write_record(file, record)
    found = tfrecord.features(record, 0, len(record))
    stride = tfrecord.record_end(tfrecord.HEADER_BYTES + len(record))
    return {name: RawLayout(tfrecord.HEADER_BYTES + found[name].start, stride) for name in arrays}


def _example(rows: Rows, row: int, images: Mapping[str, bytes], pad: int | None = None) -> bytes:
    """Return a record; `images` are its image and masks, which come first: those of raw records are at the same place in each."""
    features: dict[str, tfrecord.Value] = {
        **images,
        "key": rows.keys[row].encode(),
        "key_hash": int(rows.key_hashes[row]),
    }
    for name, feature in rows.features.items():
        if name in rows.targets:
            features[name] = feature.example(rows.targets[name], row)
            continue
        column = rows.spatial[name]
        if isinstance(column, BoxRows):
            found = column[row]
            features |= zip(feature.columns(name), (found.boxes, found.classes.tolist()), strict=True)
        elif name not in rows.masks:
            features[name] = np.asarray(column[row], np.float32)
    if pad is not None:
        features["pad"] = bytes(pad)
    return tfrecord.make_example(features)


# Reading --------------------------------------------------------------------------------------------------------------


def encoded_images(mapped: NDArray[np.uint8]) -> Sequence[NDArray[np.uint8]]:
    """Return the encoded images of a mapped file as views; raises ValueError or LookupError if it has none."""
    return [mapped[found["image"].start : found["image"].stop] for found in _examples(mapped)]


def stored_targets(mapped: NDArray[np.uint8], features: Mapping[str, SpatialFeature]) -> dict[str, StoredColumn]:
    """Return the targets of a mapped file: masks as views, others as copies.

    Raises:
        LookupError: A feature is missing.
        ValueError: It is not a TFRecord file, or a feature has another type.
    """
    if not features:
        return {}
    examples = list(_examples(mapped))
    return {name: _column(mapped, examples, name, feature) for name, feature in features.items()}


def _examples(mapped: NDArray[np.uint8]) -> Iterator[dict[str, tfrecord.Feature]]:
    data = mapped.data
    return (tfrecord.features(data, start, stop) for start, stop in tfrecord.records(data))


def _column(
    mapped: NDArray[np.uint8], examples: Sequence[dict[str, tfrecord.Feature]], name: str, feature: SpatialFeature
) -> StoredColumn:
    match feature:
        case Mask():
            masks: list[Any] = [mapped[found[name].start : found[name].stop] for found in examples]
            return masks
        case Boxes():
            places, numbers = feature.columns(name)
            boxes = [tfrecord.floats(mapped.data, found.get(places)).reshape(-1, 4) for found in examples]
            classes = [tfrecord.integers(mapped.data, found.get(numbers)) for found in examples]
            if list(map(len, boxes)) != list(map(len, classes)):
                raise ValueError(f"its {places!r} and {numbers!r} have different lengths")
            return BoxRows(np.array(list(map(len, classes)), np.int64), np.concatenate(boxes), np.concatenate(classes))
        case Points(n):
            points = [tfrecord.floats(mapped.data, found[name]).reshape(n, 3) for found in examples]
            return np.stack(points)
    raise TypeError(f"cannot read {feature}")
