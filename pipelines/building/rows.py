"""Rows of the index, and rejected records."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from joulecache.pipelines.cache.names import SPLITS
from joulecache.pipelines.source.feature import Target
from joulecache.pipelines.source.features import Features


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
    """A row of the index; see `index_schema`."""

    key: str
    hash: int
    split: str
    source_bytes: int
    mtime_ns: int
    digest: bytes
    row: int
    targets: tuple[Target, ...]


def index_rows(index: pa.RecordBatch, features: Features) -> Iterator[IndexRow]:
    """Yield the rows of a validated index or a part of it."""
    names = ("key", "key_hash", "split", "source_bytes", "mtime_ns", "digest", "row")
    columns = [feature.targets(index[name]) for name, feature in features.items()]
    targets = zip(*columns, strict=True) if columns else itertools.repeat(())
    facts = zip(*(index[name].to_pylist() for name in names), strict=True)
    for (key, hashed, split, size, mtime_ns, digest, row), of_record in zip(facts, targets, strict=False):
        yield IndexRow(key, hashed, SPLITS[split], size, mtime_ns, digest, row, of_record)
