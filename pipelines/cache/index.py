"""The index: one row per cached record, in an Arrow file."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.source.features import Features

_KEYS = (("key", pa.string()), ("key_hash", pa.uint64()))
_PLACES = (
    ("split", pa.int8()),  # position in SPLITS
    ("source_bytes", pa.int64()),
    ("mtime_ns", pa.int64()),
    ("digest", pa.binary(16)),  # the first half of the SHA-256 of the encoded source image
    ("shard", pa.int32()),
    ("row", pa.int32()),
)


def index_schema(features: Features) -> pa.Schema:
    """Return the columns of an index: rows are ordered by split, shard and row, the order of a split's files, for every variant.

    Args:
        features: The features of the targets, by name.
    """
    targets = ((name, feature.arrow_type) for name, feature in features.items())
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in (*_KEYS, *targets, *_PLACES)])


def empty_index(features: Features) -> pa.RecordBatch:
    """Return an index without rows."""
    schema = index_schema(features)
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def read_index(folder: Path, manifest: Manifest) -> pa.RecordBatch:
    """Map the index of a cache as a batch of `index_schema`.

    Numbers can be read directly, keys and digests only after ``validate(full=True)``, which reads everything: the offsets in a damaged
    file may point anywhere.

    Raises:
        CacheError: The file is missing, damaged, or does not have the rows that the manifest lists.
    """
    path = folder / manifest.index.name
    try:
        with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
            if reader.schema != index_schema(manifest.features) or reader.num_record_batches != 1:
                raise CacheError(f"{path} is not the index of a cache: rebuild the cache")
            batch = reader.get_batch(0)
        batch.validate()
    except (pa.ArrowException, OSError) as error:
        raise CacheError(f"cannot read {path}: {error}") from error
    if batch.num_rows != manifest.records:
        raise CacheError(f"{path} has {batch.num_rows} rows, its manifest says {manifest.records}: rebuild the cache")
    return batch


def write_index(file: BinaryIO, batch: pa.RecordBatch) -> None:
    """Write index rows of an `index_schema` as one uncompressed batch."""
    with pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
