"""Names of many images as an Arrow column, in half the memory of a list."""

from __future__ import annotations

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
        column: They, as one array.
    """

    def __init__(self, column: pa.Array) -> None:
        self.column = column

    @classmethod
    def of(cls, names: Sequence[str]) -> Names:
        """Return names as an Arrow column."""
        return names if isinstance(names, Names) else cls(pa.array(names, pa.string()))

    @classmethod
    def joined(cls, parts: Sequence[tuple[str, Sequence[str]]]) -> Names:
        """Return the names of several parts, each with the part's prefix before it."""
        columns = [
            pc.binary_join_element_wise(prefix, Names.of(names).column, "") if prefix else Names.of(names).column
            for prefix, names in parts
        ]
        return cls(columns[0] if len(columns) == 1 else pa.concat_arrays(columns))

    def __len__(self) -> int:
        return len(self.column)

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _ROWS_AT_ONCE):
            yield from self.column.slice(first, _ROWS_AT_ONCE).to_pylist()

    def __getitem__(self, row: Any) -> Any:
        return self.column[row].to_pylist() if isinstance(row, slice) else self.column[row].as_py()

    def sorted_rows(self) -> NDArray[np.int64]:
        """Return the rows in the order of the names, int64 ``[N]``."""
        rows: NDArray[np.int64] = pc.array_sort_indices(self.column).to_numpy().view(np.int64)
        return rows


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
