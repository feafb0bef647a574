"""The order of some rows of a split."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from joulecache.pipelines.loading.order import Order, Rows


@dataclass(frozen=True)
class Subset(Order):
    """The order of some rows in an epoch; all other attributes are about these rows only.

    Attributes:
        digest: Of `chosen`.
        chosen: The rows, ascending.
    """

    digest: str = ""
    chosen: Rows = field(default_factory=lambda: np.empty(0, np.int64), compare=False, repr=False)

    def rows(self, epoch: int, start: int, stop: int) -> Rows:
        """Return the rows at positions `start` to `stop` - 1, int64 ``[stop - start]``."""
        return self.chosen[super().rows(epoch, start, stop)]

    def read_ahead(self, epoch: int, start: int, stop: int, *, first: bool) -> list[tuple[int, int]]:
        """Return the ranges of rows that hold those which `Order.read_ahead` describes."""
        ranges = super().read_ahead(epoch, start, stop, first=first)
        return [(int(self.chosen[begin]), int(self.chosen[end - 1]) + 1) for begin, end in ranges]


def digest(rows: Rows) -> str:
    """Return a short digest of rows."""
    return hashlib.sha256(np.ascontiguousarray(rows, "<i8").tobytes()).hexdigest()[:16]
