"""Parquet files with a column of encoded images and a column of classes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from joulecache.pipelines.core.object_store import is_remote, open_binary
from joulecache.pipelines.source.annotations import BOX_KEYS, CATEGORY_KEYS, first_of
from joulecache.pipelines.source.columns import BOOLEAN, BOXES, BYTES, FLOAT, IMAGE, INTEGER, LIST, TEXT, Choice, Column
from joulecache.pipelines.source.feature import Target
from joulecache.pipelines.source.records import MAX_CLASSES, Archive, Record, SourceError
from joulecache.pipelines.source.row_targets import RowTarget, ValuesSeen, encode_row, row_target
from joulecache.pipelines.source.rows import NO_LABEL, LabelsSeen, RowFile, RowRange

_LEAST_ROWS, _MOST_ROWS, _BATCH_BYTES = 16, 1024, 1 << 20  # a batch amortizes its cost over small rows
_BUFFER_BYTES = 1 << 20  # per column, so that columns are not read whole
_BOOLEANS = ("False", "True")
_INDEX = "__index_level_0__"  # the row names of a pandas table

_KINDS: Mapping[str, tuple[Callable[[Any], bool], ...]] = {
    INTEGER: (pt.is_integer,),
    TEXT: (pt.is_string, pt.is_large_string, pt.is_string_view),
    BOOLEAN: (pt.is_boolean,),
    BYTES: (pt.is_binary, pt.is_large_binary, pt.is_binary_view),
    FLOAT: (pt.is_floating, pt.is_decimal),
    LIST: (pt.is_list, pt.is_large_list, pt.is_fixed_size_list, pt.is_list_view, pt.is_large_list_view),
}


@dataclass(frozen=True, slots=True)
class RowGroup(RowRange):
    """The first `count` rows of a Parquet row group."""

    index: int

    def read(self) -> Iterator[Record]:
        """Yield the rows. Only a few are in memory at a time if the file's pages allow it."""
        keys, left = self.record_keys(), self.count
        names = self.columns.names
        with pq.ParquetFile(_opened(self.path), buffer_size=_BUFFER_BYTES, pre_buffer=False) as parquet:
            rows_at_once = _rows_at_once(parquet.metadata.row_group(self.index))
            for batch in parquet.iter_batches(rows_at_once, row_groups=[self.index], columns=names):
                images, *labels = (_column(batch, name) for name in names)
                data = pc.struct_field(images, "bytes") if pt.is_struct(images.type) else images
                encoded = data.to_pylist()
                for row, key in zip(range(min(left, batch.num_rows)), keys, strict=False):
                    image, problem = encoded[row], None
                    targets: tuple[Target, ...] = (NO_LABEL,) if self.columns.features is None else ()
                    try:
                        targets = self._targets([column[row] for column in labels])
                    except ValueError as error:
                        problem = str(error)
                    if image is None:
                        problem = _why_missing(images[row])
                    yield Record(key, targets, image or b"", self.mtime_ns, problem)
                left -= batch.num_rows
                if left <= 0:
                    break

    def _targets(self, cells: Sequence[Any]) -> tuple[Target, ...]:
        if self.columns.features is None:
            return (self._label(cells[0]),)
        try:
            values = [cell.as_py() for cell in cells]
        except UnicodeDecodeError:
            raise ValueError("its targets are not UTF-8 text") from None
        return encode_row(self.columns.features, dict(zip(self.columns.features, values, strict=True)))

    def _label(self, cell: Any) -> int:
        if not cell.is_valid:
            raise ValueError("its row has no label")
        try:
            return self.columns.number(cell.as_py())
        except UnicodeDecodeError:
            raise ValueError("its label is not UTF-8 text") from None


def _rows_at_once(group: Any) -> int:
    fitting: int = _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)
    return max(_LEAST_ROWS, min(_MOST_ROWS, fitting))


def _why_missing(image: Any) -> str:
    path = image["path"].as_py() if pt.is_struct(image.type) and image.is_valid and "path" in image else None
    if path is None:
        return "its row has no image"
    return f"its row has no image, but names the file {path!r}: only images inside the Parquet file are read"


def _opened(location: str) -> Any:
    """Return what pyarrow opens: a local path, or a file object for a remote one."""
    return open_binary(location) if is_remote(location) else location


@contextmanager
def _open(file: Archive) -> Iterator[Any]:
    """Open a file to list it; errors become SourceError."""
    try:
        with pq.ParquetFile(_opened(file.location)) as parquet:
            yield parquet
    except SourceError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SourceError(f"cannot read {file.name!r} as Parquet: {error}") from error


# Columns --------------------------------------------------------------------------------------------------------------


def parquet_columns(file: Archive) -> list[Column]:
    """Return the columns of a file; SourceError if it is damaged."""
    with _open(file) as parquet:
        return _columns_of(parquet.schema_arrow)


def _columns_of(schema: Any) -> list[Column]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        features = {}
    fields = [field for field in schema if field.name != _INDEX]
    return [column for field in fields for column in _flattened(field.name, field.type, _entry(features, field.name))]


def _entry(features: Any, name: str) -> Any:
    """Return what Hugging Face's metadata say of a column; an empty entry without."""
    entry = features.get(name) if isinstance(features, dict) else None
    return entry if isinstance(entry, dict) else {}


def _flattened(name: str, kind: Any, feature: Any) -> Iterator[Column]:
    """Yield a column; for a struct that is not an image, yield one column for each field."""
    kind = kind.value_type if pt.is_dictionary(kind) else kind
    if pt.is_struct(kind):
        data = kind.get_field_index("bytes")
        if data >= 0 and _kind(kind[data].type) == BYTES:
            yield Column(name, "audio" if feature.get("_type") == "Audio" else IMAGE)
            return
        feature = _inner(feature)
        if boxes := _boxes(name, {field.name: field.type for field in kind}, feature):
            yield boxes
        for field in kind:
            yield from _flattened(f"{name}.{field.name}", field.type, _entry(feature, field.name))
        return
    if _kind(kind) == LIST and pt.is_struct(kind.value_type):
        of_items = {field.name: pa.list_(field.type) for field in kind.value_type}
        if boxes := _boxes(name, of_items, _inner(feature)):
            yield boxes
            return
    names = _inner(feature).get("names")
    declared = (
        tuple(map(str, names)) if isinstance(names, list) and (pt.is_integer(kind) or _kind(kind) == LIST) else None
    )
    is_image = feature.get("_type") == "Image" and _kind(kind) == BYTES
    yield Column(name, IMAGE if is_image else _kind(kind), declared)


def _inner(feature: Any) -> Any:
    """Return what Hugging Face's metadata say of the items of a sequence, or of a column that is none."""
    while isinstance(feature, dict) and "feature" in feature:
        feature = feature["feature"]
    if isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    return feature if isinstance(feature, dict) else {}


def _boxes(name: str, fields: Mapping[str, Any], feature: Any) -> Column | None:
    """Return a column of boxes if the lists in a struct have them, as Hugging Face's ``objects``; None without."""
    boxes = first_of(fields, BOX_KEYS)
    if boxes is None or _kind(fields[boxes]) != LIST or _kind(fields[boxes].value_type) != LIST:
        return None
    classes = first_of(fields, CATEGORY_KEYS)
    names = _inner(_entry(feature, classes)).get("names") if classes else None
    return Column(name, BOXES, tuple(map(str, names)) if isinstance(names, list) else None)


def _kind(kind: Any) -> str:
    return next((name for name, tests in _KINDS.items() if any(test(kind) for test in tests)), str(kind))


def _column(batch: Any, name: str) -> Any:
    """Return a column of a batch, or a field in it: ``a.b`` is field b of column a."""
    if name in batch.schema.names:
        return batch.column(name)
    parent, _, field = name.rpartition(".")
    return pc.struct_field(_column(batch, parent), field)


# Listing --------------------------------------------------------------------------------------------------------------


def list_parquet(file: Archive, key: str, choice: Choice) -> RowFile:
    """List the row groups of a file; SourceError if it is damaged or has other columns than the ones chosen."""
    with _open(file) as parquet:
        columns = {column.name: column for column in _columns_of(parquet.schema_arrow)}
        metadata = parquet.metadata
        rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        for wanted in (choice.image, choice.target):
            found = columns.get(wanted.name)
            if found and found.kind != wanted.kind:
                raise SourceError(
                    f"column {wanted.name!r} holds {wanted.kind} in {choice.file!r}, but {found.kind} in {file.name!r}: use files with "
                    "the same columns"
                )
        if choice.image.name not in columns:
            raise SourceError(
                f"{file.name!r} has no column {choice.image.name!r}, which {choice.file!r} has: use files with the same columns"
            )
        target = columns.get(choice.target.name)
        labels = seen = None
        targets: list[RowTarget] = []
        if choice.wanted is not None:
            targets = [row_target(file.name, list(columns.values()), wanted) for wanted in choice.wanted]
            seen = [_values_of(parquet, each) for each in targets]
        elif target:
            labels = _labels_of(parquet, file.name, target)
    firsts = itertools.accumulate(rows, initial=0)
    groups = [
        RowGroup(f"{key}#{index}", file.location, key, first, file.mtime_ns, count, None, choice.columns, index)
        for index, (first, count) in enumerate(zip(firsts, rows, strict=False))
    ]
    names = None if target is None else _BOOLEANS if target.kind == BOOLEAN else target.class_names
    return RowFile(key, groups, names, labels, seen, targets)


def _values_of(parquet: Any, target: RowTarget) -> ValuesSeen:
    """Return what values a target has. Those of a text, and of declared classes, need not be read; of numbers, the first."""
    seen = ValuesSeen()
    if target.kind in ("mask", "points"):
        for batch in parquet.iter_batches(_LEAST_ROWS, columns=[target.column.name]):
            for value in _column(batch, target.column.name).to_pylist():
                seen.add_sample(value)
            if seen.sampled:
                break
        return seen
    if target.kind == "boxes":
        for batch in parquet.iter_batches(columns=[target.column.name]):
            for value in _column(batch, target.column.name).to_pylist():
                seen.add_boxes(value)
        return seen
    if target.kind == "text" or (target.column.class_names and target.kind != "value"):
        return seen
    for batch in parquet.iter_batches(columns=[target.column.name]):
        column = _column(batch, target.column.name)
        for value in column if target.kind == "value" else pc.unique(column) if target.kind == "class" else column:
            try:
                seen.add(value.as_py())
            except UnicodeDecodeError:
                continue
            if target.kind == "value" and seen.shape is not None:
                return seen
    return seen


def _labels_of(parquet: Any, file: str, target: Column) -> LabelsSeen:
    """Return what labels a file has; only its footer is read if that says enough."""
    seen = LabelsSeen()
    if target.kind == BOOLEAN or target.class_names is not None:
        for largest in _largest_values(parquet.metadata, target.name):
            seen.add(largest)
        if seen.labelled:
            return seen
    for batch in parquet.iter_batches(columns=[target.name]):
        labels = _column(batch, target.name)
        if target.kind == INTEGER and not pt.is_dictionary(labels.type):
            seen.add(pc.max(labels).as_py())
            seen.add(pc.max(labels.filter(pc.less(labels, MAX_CLASSES))).as_py())
        else:
            try:
                for label in pc.unique(labels).to_pylist():
                    seen.add(label)
            except ValueError as error:
                raise SourceError(f"column {target.name!r} of {file!r} holds no classes: {error}") from error
    return seen


def _largest_values(metadata: Any, name: str) -> Iterator[Any]:
    """Yield the largest value of a column in each row group whose statistics have it."""
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for index in range(row_group.num_columns):
            column = row_group.column(index)
            if column.path_in_schema == name and column.is_stats_set and column.statistics.has_min_max:
                yield column.statistics.max
