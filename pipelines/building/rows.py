"""Rows of the index, and rejected records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

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
