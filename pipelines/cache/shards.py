"""Shards: immutable files of records named by their content.

Both formats keep raw images at ``image_offset + row * image_stride`` in the file, so that one NumPy view maps either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from joulecache.pipelines.cache import arrow_shards, tfrecord_shards
from joulecache.pipelines.cache.address_space import AddressSpace
from joulecache.pipelines.cache.data_file import DataFile, ImageLayout
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.names import ShardName
from joulecache.pipelines.cache.rows import Rows
from joulecache.pipelines.core.files import write_named

_WRITE = {"arrow": arrow_shards.write, "tfrecord": tfrecord_shards.write}
_ENCODED_IMAGES = {".arrow": arrow_shards.encoded_images, ".tfrecord": tfrecord_shards.encoded_images}


def write_shard(folder: Path, name: ShardName, rows: Rows) -> DataFile:
    """Write one shard durably, named by the hash of its content, and return its manifest entry."""
    layout: ImageLayout | None = None

    def write(file: BinaryIO) -> None:
        nonlocal layout
        layout = _WRITE[name.format](file, rows)

    written = write_named(folder, write, lambda digest: str(replace(name, hash=digest)))
    offset, stride = layout or (None, None)
    return DataFile(written.name, len(rows), written.bytes, written.sha256, offset, stride, rows.pixel_stats)


def map_file(path: Path, size: int) -> NDArray[np.uint8]:
    """Map a file of `size` bytes read-only; raises CacheError if its size differs."""
    space = AddressSpace(size, (1, 1, 1))  # not `mmap`, which keeps a file descriptor for each file
    space.map(path, size, 0, size, 0)
    return np.asarray(space).reshape(-1)


def map_images(path: Path, file: DataFile, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Map a shard's raw images as uint8 ``[N, H, W, C]``; raises CacheError if they do not fit the file."""
    offset, stride = file.image_layout(shape)
    _, width, channels = shape
    return np.ndarray(
        (file.records, *shape),
        np.uint8,
        buffer=map_file(path, file.bytes),
        offset=offset,
        strides=(stride, width * channels, channels, 1),
    )


def read_encoded(path: Path, file: DataFile) -> Sequence[Any]:
    """Map a shard's encoded images as a sequence of buffers; raises CacheError if the file is damaged."""
    mapped = map_file(path, file.bytes)
    try:
        images = _ENCODED_IMAGES[path.suffix](mapped)
    except (pa.ArrowException, ValueError, OSError, LookupError) as error:
        raise CacheError(f"{path} is damaged ({error}): rebuild the cache") from error
    if len(images) != file.records:
        raise CacheError(f"{path} holds {len(images)} images, its manifest says {file.records}: rebuild the cache")
    return images
