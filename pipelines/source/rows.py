"""Files of many records with their labels, such as Parquet and TFRecord."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from joulecache.pipelines.source.records import Record, Source, SourceError, Unit
from joulecache.pipelines.source.splits import held_out


@dataclass(frozen=True, slots=True)
class RowRange:
    """A `Unit` of consecutive records of a file, whose keys are ``file_key#row``."""

    name: str
    path: str
    file_key: str
    first_row: int
    mtime_ns: int
    count: int
    split: str | None

    @property
    def size_bytes(self) -> None:
        """None: not known before reading."""
        return

    @property
    def label(self) -> None:
        """None: not known before reading."""
        return

    def record_keys(self) -> Iterator[str]:
        """Yield ``file#row`` for each record."""
        return (f"{self.file_key}#{row}" for row in range(self.first_row, self.first_row + self.count))

    def read(self) -> Iterator[Record]:
        """Yield the records."""
        raise NotImplementedError


@dataclass(frozen=True)
class RowFile:
    """A listed file.

    Attributes:
        key: Start of the keys of its records.
        ranges: Its units.
        class_names: Names of the classes; None if the file has only numbers.
        last_label: The largest label that is a class.
    """

    key: str
    ranges: Sequence[RowRange]
    class_names: tuple[str, ...] | None
    last_label: int


def join_files(
    location: str,
    files: Sequence[RowFile],
    limit: int | None,
    splits: Sequence[str | None],
) -> Source:
    """Return one source of several files; SourceError if they have different classes, or no rows.

    A `limit` on the number of records takes the same fraction of each file, from its start.
    """
    names = {file.class_names for file in files}
    if len(names) > 1:
        other = next(file for file in files if file.class_names != files[0].class_names)
        raise SourceError(f"{files[0].key!r} and {other.key!r} have different classes: use files with the same classes")
    class_names = files[0].class_names
    if class_names is None:
        class_names = tuple(map(str, range(max(file.last_label for file in files) + 1)))
    counts = [sum(rows.count for rows in file.ranges) for file in files]
    if not sum(counts):
        raise SourceError(f"{location!r} has no rows")
    taken = min(sum(counts), sum(counts) if limit is None else limit)
    splits = held_out(splits)
    units: list[Unit] = []
    before = 0
    for file, count, split in zip(files, counts, splits, strict=True):
        left = taken * (before + count) // sum(counts) - taken * before // sum(counts)
        before += count
        for rows in file.ranges:
            used = min(rows.count, left)
            left -= used
            if used:
                units.append(dataclasses.replace(rows, count=used, split=split))
    return Source(location, class_names, tuple(units), taken, "val" in splits, Counter())
