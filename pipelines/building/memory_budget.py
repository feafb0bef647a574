"""A limit on the memory of decoded images in all threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

LIMIT_BYTES = 256 << 20


class MemoryBudget:
    """Bytes that threads may hold at the same time. A request for more than the limit waits until no other thread holds any."""

    def __init__(self, limit: int = LIMIT_BYTES) -> None:
        self._limit = self._free = limit
        self._queue = threading.Lock()  # held while waiting, so that small requests do not starve a large one
        self._released = threading.Condition()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes are free, and hold them for the block."""
        taken = min(size, self._limit)
        with self._queue, self._released:
            self._released.wait_for(lambda: self._free >= taken)
            self._free -= taken
        try:
            yield
        finally:
            with self._released:
                self._free += taken
                self._released.notify_all()
