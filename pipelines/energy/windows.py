"""Named windows, and which of them are open in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from joulecache.pipelines.core.checks import check_text
from joulecache.pipelines.energy.measurement import Energy


class Window:
    """A metered `with` block."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._energy: Energy | None = None
        self._measure: Callable[[], Energy] | None = None
        self._pid = os.getpid()

    @property
    def energy(self) -> Energy:
        """The block's energy; RuntimeError before its end, and in a child forked inside it."""
        if self._energy is None:
            raise RuntimeError(f"window {self.name!r} is open: read its energy after its block, in the same process")
        return self._energy

    def so_far(self) -> Energy:
        """Return the energy since the block began, until now or its end; RuntimeError in a child forked inside it."""
        if self._energy is not None:
            return self._energy
        if self._measure is None or os.getpid() != self._pid:
            raise RuntimeError(f"window {self.name!r} was opened in another process: read its energy there")
        return self._measure()

    def begin(self, measure: Callable[[], Energy]) -> None:
        """Set the function that returns the energy so far."""
        self._measure = measure

    def end(self) -> bool:
        """Keep the energy so far; return False, and keep none, in a child forked inside the block."""
        if os.getpid() != self._pid:  # the child's counters are not those of the window
            return False
        self._energy, self._measure = self.so_far(), None
        return True


class OpenWindows:
    """The open windows of each process by name; a forked child has none of its parent's."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, str], Window] = {}

    @contextmanager
    def named(self, name: str) -> Iterator[Window]:
        """Open a window for a `with` block; ValueError for an empty name and for one that is open already."""
        check_text("window name", name)
        window, key = Window(name), (os.getpid(), name)
        # atomic under the interpreter's lock: a forked child might never release a lock of this class
        if self._open.setdefault(key, window) is not window:
            raise ValueError(f"window {name!r} is open already: close it first, or choose another name")
        try:
            yield window
        finally:
            del self._open[key]

    def count(self) -> int:
        """Return how many windows are open in this process."""
        return sum(pid == os.getpid() for pid, _ in list(self._open))
