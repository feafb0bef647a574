"""The index: one row per cached record, in an Arrow file."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest import Manifest

INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("key_hash", pa.uint64(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("split", pa.int8(), nullable=False),  # position in SPLITS
        pa.field("source_bytes", pa.int64(), nullable=False),
        pa.field("mtime_ns", pa.int64(), nullable=False),
        pa.field("digest", pa.binary(16), nullable=False),  # the first half of the SHA-256 of the encoded source image
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
    ]
)
"""Rows are ordered by split, shard and row: the order of a split's files, for every variant."""


def read_index(folder: Path, manifest: Manifest) -> pa.RecordBatch:
    """Map the index of a cache as a batch of `INDEX_SCHEMA`.

    Numbers can be read directly, keys and digests only after ``validate(full=True)``, which reads everything: the offsets in a damaged
    file may point anywhere.

    Raises:
        CacheError: The file is missing, damaged, or does not have the rows that the manifest lists.
    """
    path = folder / manifest.index.name
    try:
        with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
            if reader.schema != INDEX_SCHEMA or reader.num_record_batches != 1:
                raise CacheError(f"{path} is not the index of a cache: rebuild the cache")
            batch = reader.get_batch(0)
        batch.validate()
    except (pa.ArrowException, OSError) as error:
        raise CacheError(f"cannot read {path}: {error}") from error
    if batch.num_rows != manifest.records:
        raise CacheError(f"{path} has {batch.num_rows} rows, its manifest says {manifest.records}: rebuild the cache")
    return batch


def write_index(file: BinaryIO, batch: pa.RecordBatch) -> None:
    """Write index rows of `INDEX_SCHEMA` as one uncompressed batch."""
    with pa.ipc.new_file(file, INDEX_SCHEMA) as writer:
        writer.write_batch(batch)
