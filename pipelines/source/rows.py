"""Files of many records with their labels, such as Parquet and TFRecord: what they have in common."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from joulecache.pipelines.source.naming import file_splits
from joulecache.pipelines.source.records import Source, SourceError, Unit


@dataclass(frozen=True, slots=True)
class RowRange:
    """`count` consecutive records of a file, the first of which is its row `first_row`."""

    name: str
    path: str
    file_key: str
    first_row: int
    mtime_ns: int
    count: int
    split: str | None

    @property
    def size_bytes(self) -> None:
        """None: what one record takes is not known without reading."""
        return

    def record_keys(self) -> Iterator[str]:
        """Yield ``file#row`` for each record."""
        return (f"{self.file_key}#{row}" for row in range(self.first_row, self.first_row + self.count))


@dataclass(frozen=True)
class RowFile:
    """One file, listed. `class_names` are None where it gives only numbers, of which the largest that is a class is `last_label`."""

    key: str
    groups: Sequence[Any]  # units, each of them a RowRange
    class_names: tuple[str, ...] | None
    last_label: int


def joined(
    location: str,
    files: Sequence[RowFile],
    limit: int | None,
    splits: Sequence[str | None] | None = None,
) -> Source:
    """Make one source of files; of each the same share of `limit` records, its first ones.

    `splits` are the files' (default: what their names say). Raises SourceError for files whose classes differ, or that hold no rows.
    """
    names = {file.class_names for file in files}
    if len(names) > 1:
        other = next(file for file in files if file.class_names != files[0].class_names)
        raise SourceError(
            f"{files[0].key!r} and {other.key!r} name other classes: a source has one list of them, so give one at a time"
        )
    class_names = files[0].class_names
    if class_names is None:
        class_names = tuple(map(str, range(max(file.last_label for file in files) + 1)))
    counts = [sum(group.count for group in file.groups) for file in files]
    if not sum(counts):
        raise SourceError(f"{location!r} holds no rows")
    taken = min(sum(counts), sum(counts) if limit is None else limit)
    splits = splits or file_splits([file.key for file in files]) or [None] * len(files)
    units: list[Unit] = []
    before = 0
    for file, count, split in zip(files, counts, splits, strict=True):
        left = taken * (before + count) // sum(counts) - taken * before // sum(counts)
        before += count
        for group in file.groups:
            rows = min(group.count, left)
            left -= rows
            if rows:
                units.append(dataclasses.replace(group, count=rows, split=split))
    return Source(location, class_names, tuple(units), taken, "val" in splits, Counter())
