"""Shards as Arrow IPC files of one uncompressed record batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from joulecache.pipelines.cache.data_file import ImageLayout
from joulecache.pipelines.cache.rows import Rows

PAGE = 4096


def write(file: BinaryIO, rows: Rows) -> ImageLayout | None:
    """Write rows; return the layout of raw images, None for encoded ones."""
    if not isinstance(rows.images, np.ndarray):
        _write_batch(file, rows, len(rows), 0)
        return None
    # Pad the schema so that the image buffer starts on a page: TensorFlow aborts on misaligned buffers. The sizes of schema and batch
    # header do not depend on the rows, so one row is enough to measure them.
    pad = -_image_offset(_one_row(rows, 0)) % PAGE
    _write_batch(file, rows, len(rows), pad)
    offset = _image_offset(_one_row(rows, pad))
    if offset % PAGE:
        raise RuntimeError(f"the image buffer starts at byte {offset}, not on a page of {PAGE}")
    return ImageLayout(offset, math.prod(rows.images.shape[1:]))


def _one_row(rows: Rows, pad: int) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    _write_batch(sink, rows, 1, pad)
    return sink.getvalue()


def _write_batch(sink: BinaryIO | pa.BufferOutputStream, rows: Rows, count: int, pad: int) -> None:
    if isinstance(rows.images, np.ndarray):
        images = pa.FixedShapeTensorArray.from_numpy_ndarray(rows.images[:count])
    else:
        images = pa.array(rows.images[:count], pa.binary())
    columns = {
        "image": images,
        **{name: column[:count] for name, column in rows.targets.items()},
        "key": pa.array(rows.keys[:count], pa.string()),
        "key_hash": pa.array(rows.key_hashes[:count]),
    }
    fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    schema = pa.schema(fields, {"pad": " " * pad})
    batch = pa.record_batch(list(columns.values()), schema=schema)
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch)


def _image_offset(buffer: pa.Buffer) -> int:
    with pa.ipc.open_file(buffer) as reader:
        values = reader.get_batch(0).column("image").storage.values
    return int(values.buffers()[1].address - buffer.address)


def encoded_images(mapped: NDArray[np.uint8]) -> Sequence[Any]:
    """Return the encoded images of a mapped file as buffers; raises ValueError or ArrowException if it has none."""
    with pa.ipc.open_file(pa.py_buffer(mapped)) as reader:
        column = reader.get_batch(0).column("image")
    if column.type != pa.binary() or column.null_count:
        raise ValueError(f"its images are {column.type} with {column.null_count} nulls, not binary")
    column.validate(full=True)  # offsets outside the file would crash the interpreter
    return _BinaryColumn(column)


class _BinaryColumn(Sequence[Any]):
    """A binary column, whose items are buffers into the map."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: Any) -> Any:
        return self._column[row].as_buffer()
