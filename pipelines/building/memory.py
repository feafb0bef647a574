"""A limit on the decoded images that lie in memory at once, however many threads there are and however large the photos."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

LIMIT_BYTES = 256 << 20


class MemoryBudget:
    """Bytes that threads may hold at once. One always may, even more than all of them, when no other holds any."""

    def __init__(self, limit: int = LIMIT_BYTES) -> None:
        self._limit = self._free = limit
        self._door = threading.Lock()  # who waits holds it, or a stream of small images would never let a large one in
        self._change = threading.Condition()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Wait until there is room for so many bytes, and hold them."""
        taken = min(size, self._limit)
        with self._door, self._change:
            self._change.wait_for(lambda: self._free >= taken)
            self._free -= taken
        try:
            yield
        finally:
            with self._change:
                self._free += taken
                self._change.notify_all()
