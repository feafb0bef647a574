"""Shards as Arrow IPC files of one uncompressed record batch."""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from joulecache.pipelines.cache.data_file import RawLayout
from joulecache.pipelines.cache.encoded_column import EncodedColumn
from joulecache.pipelines.cache.rows import Rows
from joulecache.pipelines.cache.spatial_columns import BoxRows, StoredColumn
from joulecache.pipelines.source.feature import as_numbers
from joulecache.pipelines.source.spatial import Boxes, Mask, Points, SpatialFeature

PAGE = 4096
_ALIGNMENT = 8  # of the buffers in a file
MOST_BYTES = 2**31 - 1
"""Encoded images of one file: Arrow's offsets of binary columns are int32."""

# Writing --------------------------------------------------------------------------------------------------------------


def write(file: BinaryIO, rows: Rows) -> dict[str, RawLayout]:
    """Write rows; return the layouts of raw images and masks, by column."""
    if not isinstance(rows.images, np.ndarray):
        _write_batch(file, rows, len(rows), 0)
        return {}
    # Pad the schema so that the image buffer starts on a page: TensorFlow aborts on misaligned buffers. The sizes of schema and batch
    # header do not depend on the rows, so one row is enough to measure them.
    pad = -_offset(_one_row(rows, 0), "image") % PAGE
    _write_batch(file, rows, len(rows), pad)
    written = _one_row(rows, pad)
    start = _offset(written, "image")
    if start % PAGE:
        raise RuntimeError(f"the image buffer starts at byte {start}, not on a page of {PAGE}")
    for name, layout in _layouts(rows, start, 1).items():
        if layout.offset != _offset(written, name):
            raise RuntimeError(f"the buffer of {name!r} starts at byte {_offset(written, name)}, not {layout.offset}")
    return _layouts(rows, start, len(rows))


def _layouts(rows: Rows, start: int, count: int) -> dict[str, RawLayout]:
    """Return where images and masks are in a file of `count` rows whose images start at `start`: masks directly follow."""
    layouts = {}
    for name, column in {"image": rows.images, **rows.masks}.items():
        assert isinstance(column, np.ndarray)
        stride = math.prod(column.shape[1:])
        layouts[name] = RawLayout(start, stride)
        start += -(-count * stride // _ALIGNMENT) * _ALIGNMENT
    return layouts


def _one_row(rows: Rows, pad: int) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    _write_batch(sink, rows, 1, pad)
    return sink.getvalue()


def _write_batch(sink: BinaryIO | pa.BufferOutputStream, rows: Rows, count: int, pad: int) -> None:
    columns = {
        "image": _images(rows.images, count),
        **{name: _images(column, count) for name, column in rows.masks.items()},
        **{name: column[:count] for name, column in _targets(rows).items()},
        "key": pa.array(rows.keys[:count], pa.string()),
        "key_hash": pa.array(rows.key_hashes[:count]),
    }
    fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    schema = pa.schema(fields, {"pad": " " * pad})
    batch = pa.record_batch(list(columns.values()), schema=schema)
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch)


def _images(column: NDArray[np.uint8] | EncodedColumn, count: int) -> pa.Array:
    if isinstance(column, np.ndarray):
        return pa.FixedShapeTensorArray.from_numpy_ndarray(column[:count])
    if column.ends[-1] > MOST_BYTES:
        raise OSError(errno.EFBIG, "its encoded images have more than 2 GiB: build the cache with more --shards")
    buffers = [None, pa.py_buffer(column.ends.astype(np.int32)), pa.py_buffer(column.values)]
    return pa.Array.from_buffers(pa.binary(), len(column), buffers)


def _targets(rows: Rows) -> dict[str, pa.Array]:
    """Return the columns of all targets but masks, in the order of the features."""
    columns: dict[str, pa.Array] = {}
    for name, feature in rows.features.items():
        if name in rows.targets:
            columns[name] = rows.targets[name]
            continue
        column = rows.spatial[name]
        if isinstance(column, BoxRows):
            offsets = pa.array(np.concatenate([[0], np.cumsum(column.counts)]), pa.int32())
            corners = pa.FixedSizeListArray.from_arrays(pa.array(column.boxes.reshape(-1)), 4)
            lists = (pa.ListArray.from_arrays(offsets, values) for values in (corners, pa.array(column.classes)))
            columns |= zip(feature.columns(name), lists, strict=True)
        elif name not in rows.masks:
            columns[name] = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(column))
    return columns


def _offset(buffer: pa.Buffer, column: str) -> int:
    with pa.ipc.open_file(buffer) as reader:
        values = reader.get_batch(0).column(column).storage.values
    return int(values.buffers()[1].address - buffer.address)


# Reading --------------------------------------------------------------------------------------------------------------


def encoded_images(mapped: NDArray[np.uint8]) -> Sequence[Any]:
    """Return the encoded images of a mapped file as buffers; raises ValueError or ArrowException if it has none."""
    return _encoded(_batch(mapped), "image")


def stored_targets(mapped: NDArray[np.uint8], features: Mapping[str, SpatialFeature]) -> dict[str, StoredColumn]:
    """Return the targets of a mapped file: masks as buffers, others as copies.

    Raises:
        ArrowException: It is not an Arrow file, or is damaged.
        LookupError: A column is missing.
        ValueError: A column has another type.
    """
    batch = _batch(mapped)
    return {name: _column(batch, name, feature) for name, feature in features.items()}


def _batch(mapped: NDArray[np.uint8]) -> pa.RecordBatch:
    with pa.ipc.open_file(pa.py_buffer(mapped)) as reader:
        return reader.get_batch(0)


def _column(batch: pa.RecordBatch, name: str, feature: SpatialFeature) -> StoredColumn:
    match feature:
        case Mask():
            return _encoded(batch, name)
        case Boxes():
            places, numbers = feature.columns(name)
            corners = _checked(batch, places, pa.list_(pa.list_(pa.float32(), 4)))
            classes = _checked(batch, numbers, pa.list_(pa.int64()))
            counts = np.diff(as_numbers(corners.offsets)).astype(np.int64)
            if not np.array_equal(counts, np.diff(as_numbers(classes.offsets))):
                raise ValueError(f"its {places!r} and {numbers!r} have different lengths")
            boxes = as_numbers(corners.flatten().flatten()).reshape(-1, 4)
            return BoxRows(counts, boxes.copy(), as_numbers(classes.flatten()).copy())
        case Points(n):
            column = _checked(batch, name, pa.fixed_shape_tensor(pa.float32(), (n, 3)))
            points: NDArray[np.float32] = as_numbers(column.storage.flatten()).reshape(-1, n, 3).copy()
            return points
    raise TypeError(f"cannot read {feature}")


def _checked(batch: pa.RecordBatch, name: str, kind: pa.DataType) -> pa.Array:
    """Return a column whose values can be read; ValueError or ArrowException if it has nulls, another type, or is damaged."""
    column = batch.column(name)
    if column.type != kind:
        raise ValueError(f"its {name!r} are {column.type}, not {kind}")
    column.validate(full=True)  # offsets outside the file would crash the interpreter
    values = column.storage if isinstance(column, pa.ExtensionArray) else column
    while values is not None:
        if values.null_count:
            raise ValueError(f"its {name!r} have {values.null_count} nulls")
        values = values.flatten() if pa.types.is_nested(values.type) else None
    return column


def _encoded(batch: pa.RecordBatch, name: str) -> EncodedColumn:
    column = _checked(batch, name, pa.binary())
    _, offsets, values = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset :][: len(column) + 1]
    return EncodedColumn(
        np.frombuffer(values, np.uint8) if values is not None and values.size else np.empty(0, np.uint8), ends
    )
