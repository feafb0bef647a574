"""Shards: immutable files of records named by their content.

Both formats keep raw images at ``image_offset + row * image_stride`` in the file, so that one NumPy view maps either; and raw masks alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from joulecache.pipelines.cache import arrow_shards, tfrecord_shards
from joulecache.pipelines.cache.address_space import AddressSpace
from joulecache.pipelines.cache.data_file import DataFile, RawLayout, StoredTarget
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.names import ShardName
from joulecache.pipelines.cache.rows import Rows
from joulecache.pipelines.cache.spatial_columns import BoxRows, StoredColumn
from joulecache.pipelines.core.files import write_named
from joulecache.pipelines.source.spatial import Mask, SpatialFeature

_WRITE = {"arrow": arrow_shards.write, "tfrecord": tfrecord_shards.write}
_ENCODED_IMAGES = {".arrow": arrow_shards.encoded_images, ".tfrecord": tfrecord_shards.encoded_images}
_STORED_TARGETS = {".arrow": arrow_shards.stored_targets, ".tfrecord": tfrecord_shards.stored_targets}


def write_shard(folder: Path, name: ShardName, rows: Rows) -> DataFile:
    """Write one shard durably, named by the hash of its content, and return its manifest entry."""
    layouts: Mapping[str, RawLayout] = {}

    def write(file: BinaryIO) -> None:
        nonlocal layouts
        layouts = _WRITE[name.format](file, rows)

    written = write_named(folder, write, lambda digest: str(replace(name, hash=digest)))
    offset, stride = layouts.get("image", (None, None))
    return DataFile(
        written.name,
        len(rows),
        written.bytes,
        written.sha256,
        offset,
        stride,
        rows.pixel_stats,
        {name: StoredTarget(found, *layouts.get(name, (None, None))) for name, found in rows.summaries.items()} or None,
    )


def map_file(path: Path, size: int) -> NDArray[np.uint8]:
    """Map a file of `size` bytes read-only; raises CacheError if its size differs."""
    space = AddressSpace(size, (1, 1, 1))  # not `mmap`, which keeps a file descriptor for each file
    space.map(path, size, 0, size, 0)
    return np.asarray(space).reshape(-1)


def map_images(path: Path, file: DataFile, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Map a shard's raw images as uint8 ``[N, H, W, C]``; raises CacheError if they do not fit the file."""
    layout = file.image_layout(shape)
    return _raw(map_file(path, file.bytes), file.records, layout, shape)


def _raw(mapped: NDArray[np.uint8], count: int, layout: RawLayout, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    _, width, channels = shape
    strides = layout.stride, width * channels, channels, 1
    return np.ndarray((count, *shape), np.uint8, buffer=mapped, offset=layout.offset, strides=strides)


def read_encoded(path: Path, file: DataFile) -> Sequence[Any]:
    """Map a shard's encoded images as a sequence of buffers; raises CacheError if the file is damaged."""
    mapped = map_file(path, file.bytes)
    with _damages(path):
        images = _ENCODED_IMAGES[path.suffix](mapped)
    _check_length(path, file, "images", images)
    return images


def read_targets(
    path: Path, file: DataFile, features: Mapping[str, SpatialFeature], size: tuple[int, int] | None
) -> dict[str, StoredColumn]:
    """Map a shard's targets that move with the pixels.

    Args:
        path: The file.
        file: Its entry in the manifest.
        features: The features to read, by name.
        size: (height, width) of raw images, None for encoded ones.

    Returns:
        A column for each feature. Masks are views of the mapped file: raw ones as one array, others as a sequence of buffers.

    Raises:
        CacheError: The file is damaged, or does not have what the manifest lists.
    """
    shape = (0, 0, 1) if size is None else (*size, 1)
    masks = [name for name, feature in features.items() if size is not None and isinstance(feature, Mask)]
    layouts = {name: file.mask_layout(name, shape) for name in masks}
    mapped = map_file(path, file.bytes)
    columns: dict[str, StoredColumn] = {
        name: _raw(mapped, file.records, layout, shape) for name, layout in layouts.items()
    }
    with _damages(path):
        columns |= _STORED_TARGETS[path.suffix](
            mapped, {name: feature for name, feature in features.items() if name not in columns}
        )
    for name, column in columns.items():
        _check_length(path, file, f"targets {name!r}", column)
        most = (file.targets or {})[name].summary.most or 0
        if isinstance(column, BoxRows) and column.counts.max() > most:
            raise CacheError(
                f"{path} has an image with {column.counts.max()} boxes, its manifest says at most {most}: rebuild the cache"
            )
    return columns


@contextmanager
def _damages(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, ValueError, OSError, LookupError) as error:
        raise CacheError(f"{path} is damaged ({error}): rebuild the cache") from error


def _check_length(path: Path, file: DataFile, what: str, column: StoredColumn | Sequence[Any]) -> None:
    if len(column) != file.records:
        raise CacheError(f"{path} holds {len(column)} {what}, its manifest says {file.records}: rebuild the cache")
