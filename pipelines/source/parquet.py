"""Parquet files in the ``image: struct<bytes, path>, label`` layout."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from joulecache.pipelines.core.object_store import is_remote, open_binary
from joulecache.pipelines.source.records import MAX_CLASSES, Archive, Record, SourceError
from joulecache.pipelines.source.rows import RowFile, RowRange

_ROWS_AT_ONCE = 16
_BUFFER_BYTES = 1 << 20  # per column, so that columns are not read whole


@dataclass(frozen=True, slots=True)
class RowGroup(RowRange):
    """The first `count` rows of a Parquet row group."""

    index: int

    def read(self) -> Iterator[Record]:
        """Yield the rows. Only a few are in memory at a time if the file's pages allow it."""
        keys, left = self.record_keys(), self.count
        with pq.ParquetFile(_opened(self.path), buffer_size=_BUFFER_BYTES, pre_buffer=False) as parquet:
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, row_groups=[self.index], columns=["image", "label"]):
                data, labels = pc.struct_field(batch.column("image"), "bytes"), batch.column("label").to_pylist()
                for row, key in zip(range(min(left, batch.num_rows)), keys, strict=False):
                    image, label = data[row].as_py(), labels[row]
                    missing = "image" if image is None else "label" if label is None else None
                    problem = f"its row has no {missing}" if missing else None
                    yield Record(key, -1 if label is None else int(label), image or b"", self.mtime_ns, problem)
                left -= batch.num_rows
                if left <= 0:
                    break


def _opened(location: str) -> Any:
    """Return what pyarrow opens: a local path, or a file object for a remote one."""
    return open_binary(location) if is_remote(location) else location


def list_parquet(file: Archive, key: str) -> RowFile:
    """List the row groups of a file; SourceError if it is damaged or has another layout."""
    try:
        with pq.ParquetFile(_opened(file.location)) as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
            rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            if not _holds_images(schema):
                raise SourceError(
                    f"{file.name!r} must have columns `image: struct<bytes, path>` and `label` (an integer), got {schema.names}"
                )
            names = _class_names(schema)
            last = -1
            if names is None:
                for batch in parquet.iter_batches(columns=["label"]):
                    labels = batch.column(0)
                    largest = pc.max(labels.filter(pc.less(labels, MAX_CLASSES))).as_py()
                    last = max(last, -1 if largest is None else largest)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot read {file.name!r} as Parquet: {error}") from error
    firsts = itertools.accumulate(rows, initial=0)
    groups = [
        RowGroup(f"{key}#{index}", file.location, key, first, file.mtime_ns, count, None, index)
        for index, (first, count) in enumerate(zip(firsts, rows, strict=False))
    ]
    return RowFile(key, groups, names, last)


def _holds_images(schema: Any) -> bool:
    if not {"image", "label"} <= set(schema.names):
        return False
    image, label = schema.field("image").type, schema.field("label").type
    place = image.get_field_index("bytes") if pa.types.is_struct(image) else -1
    return place >= 0 and image[place].type in (pa.binary(), pa.large_binary()) and pa.types.is_integer(label)


def _class_names(schema: Any) -> tuple[str, ...] | None:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features["label"]["names"])
    except (KeyError, ValueError, TypeError):
        return None
