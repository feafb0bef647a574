"""Rows of the index, and rejected records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from joulecache.pipelines.cache.index import INDEX_SCHEMA
from joulecache.pipelines.cache.names import SPLITS


@dataclass(frozen=True)
class Reject:
    """A record that is not in the cache.

    Attributes:
        key: The record's key.
        reason: Why it was rejected.
        source_bytes: Its encoded size; None if it could not be read.
        mtime_ns: Modification time of its file; None if it could not be read.
    """

    key: str
    reason: str
    source_bytes: int | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class IndexRow:
    """A row of the index; see `INDEX_SCHEMA`."""

    key: str
    hash: int
    label: int
    split: str
    source_bytes: int
    mtime_ns: int
    digest: bytes
    row: int


def index_rows(index: pa.RecordBatch) -> Iterator[IndexRow]:
    """Yield the rows of a validated index or a part of it."""
    names = ("key", "key_hash", "label", "split", "source_bytes", "mtime_ns", "digest", "row")
    for key, hashed, label, split, *others in zip(*(index[name].to_pylist() for name in names), strict=True):
        yield IndexRow(key, hashed, label, SPLITS[split], *others)


def index_batch(rows: Sequence[IndexRow], shard: int) -> pa.RecordBatch:
    """Return the rows of one shard as a batch of `INDEX_SCHEMA`."""
    columns = {
        "key": [row.key for row in rows],
        "key_hash": [row.hash for row in rows],
        "label": [row.label for row in rows],
        "split": [SPLITS.index(row.split) for row in rows],
        "source_bytes": [row.source_bytes for row in rows],
        "mtime_ns": [row.mtime_ns for row in rows],
        "digest": [row.digest for row in rows],
        "shard": [shard] * len(rows),
        "row": [row.row for row in rows],
    }
    return pa.RecordBatch.from_pydict(columns, INDEX_SCHEMA)
