"""Names of many images as an Arrow column, in half the memory of a list."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_ROWS_AT_ONCE = 4096


class Names(Sequence[str]):
    """A sequence of names.

    Attributes:
        column: The names, as one array.
    """

    def __init__(self, column: pa.Array) -> None:
        self.column = column

    @classmethod
    def of(cls, names: Sequence[str]) -> Names:
        """Return names as an Arrow column."""
        return names if isinstance(names, Names) else cls(pa.array(names, pa.string()))

    def __len__(self) -> int:
        return len(self.column)

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _ROWS_AT_ONCE):
            yield from self.column.slice(first, _ROWS_AT_ONCE).to_pylist()

    def __getitem__(self, row: Any) -> Any:
        return self.column[row].to_pylist() if isinstance(row, slice) else self.column[row].as_py()


class Keys(Sequence[str]):
    """The names of several parts, each with the part's prefix before it: keys are joined when they are read."""

    def __init__(self, parts: Sequence[tuple[str, Sequence[str]]]) -> None:
        self._parts = [(prefix, Names.of(names)) for prefix, names in parts]
        self._starts = [0, *itertools.accumulate(len(names) for _, names in self._parts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[str]:
        for prefix, names in self._parts:
            yield from (map(prefix.__add__, names) if prefix else names)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        part = bisect_right(self._starts, row) - 1
        prefix, names = self._parts[part]
        return prefix + names[row - self._starts[part]]

    def sorted_rows(self) -> NDArray[np.int64]:
        """Return the rows in the order of the keys, int64 ``[N]``."""
        order = sorted(range(len(self._parts)), key=lambda part: self._parts[part][0])
        prefixes = [self._parts[part][0] for part in order]
        if any(after.startswith(before) for before, after in itertools.pairwise(prefixes)):
            keys = [*self]
            return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
        # no prefix starts another one, so prefixes decide first; Arrow sorts by UTF-8, which is the order of strings
        rows = np.empty(len(self), np.int64)
        filled = 0
        for part in order:
            names = self._parts[part][1]
            rows[filled : filled + len(names)] = pc.array_sort_indices(names.column)
            rows[filled : filled + len(names)] += self._starts[part]
            filled += len(names)
        return rows

    def columns(self) -> dict[str, pa.ChunkedArray]:
        """Return the column of names, ``key``, and that of the prefixes before them, ``prefix``, if there are any."""
        columns = {"key": pa.chunked_array([names.column for _, names in self._parts], pa.string())}
        if any(prefix for prefix, _ in self._parts):
            numbers = np.repeat(np.arange(len(self._parts), dtype=np.int32), np.diff(self._starts))
            prefixes = pa.array([prefix for prefix, _ in self._parts], pa.string())
            columns["prefix"] = pa.chunked_array([pa.DictionaryArray.from_arrays(numbers, prefixes)])
        return columns


class NamesBuilder:
    """Collects names one by one."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._columns: list[pa.Array] = []

    def append(self, name: str) -> None:
        """Add a name."""
        self._names.append(name)
        if len(self._names) == _ROWS_AT_ONCE:
            self._columns.append(pa.array(self._names, pa.string()))
            self._names.clear()

    def extend(self, names: NamesBuilder) -> None:
        """Add the names that another builder has collected."""
        if names._columns:
            self._columns += [pa.array(self._names, pa.string()), *names._columns]
            self._names.clear()
        for name in names._names:
            self.append(name)

    def build(self) -> Names:
        """Return all names."""
        column = pa.concat_arrays([*self._columns, pa.array(self._names, pa.string())])
        self._columns.clear()
        pa.default_memory_pool().release_unused()  # else it keeps the memory of the parts
        return Names(column)


def first_duplicate(names: Names) -> str | None:
    """Return a name that occurs twice; None if all differ."""
    hashes = np.fromiter(map(hash, names), np.int64, len(names))  # a sixth of the memory of counting names
    hashes.sort()
    if (hashes[1:] != hashes[:-1]).all():
        return None
    counts = pc.value_counts(names.column)
    if len(counts) == len(names):
        return None
    return str(counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0].as_py())
