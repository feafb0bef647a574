"""Named windows: which are open in this process, and the energy that each has after its end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from joulecache.pipelines.energy.measurement import Energy


class Window:
    """Name a metered `with` block, and hold its `energy` after it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._energy: Energy | None = None
        self._measure: Callable[[], Energy] | None = None
        self._pid = os.getpid()

    @property
    def energy(self) -> Energy:
        """The block's energy; RuntimeError before its end, and in a child forked inside it."""
        if self._energy is None:
            raise RuntimeError(f"window {self.name!r} is open: read its energy after its block, where it was opened")
        return self._energy

    def so_far(self) -> Energy:
        """Return the energy from the block's beginning until now, or until its end; RuntimeError in a forked child."""
        if self._energy is not None:
            return self._energy
        if self._measure is None or os.getpid() != self._pid:
            raise RuntimeError(f"window {self.name!r} was opened in another process: read its energy there")
        return self._measure()

    def begin(self, measure: Callable[[], Energy]) -> None:
        """Give the window what tells its energy until now."""
        self._measure = measure

    def end(self) -> bool:
        """Hold the energy until now; return False, and hold none, in a child forked inside the block."""
        if os.getpid() != self._pid:  # its counters are its own: it would report nonsense
            return False
        self._energy, self._measure = self.so_far(), None
        return True


class OpenWindows:
    """Know the windows that are open, by name, in each process: a forked child has none of its parent's."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, str], Window] = {}

    @contextmanager
    def named(self, name: str) -> Iterator[Window]:
        """Open a window for a `with` block; ValueError for an empty name and for one that is open already."""
        if not isinstance(name, str) or not name:
            raise ValueError(f"window name is {name!r}: give a non-empty text")
        window, key = Window(name), (os.getpid(), name)
        # one step under the interpreter's own lock: a lock of ours could stay held for ever in a forked child
        if self._open.setdefault(key, window) is not window:
            raise ValueError(f"window {name!r} is open already: close it first, or name this one differently")
        try:
            yield window
        finally:
            del self._open[key]

    def count(self) -> int:
        """Return how many are open in this process."""
        pid = os.getpid()
        return sum(owner == pid for owner, _ in list(self._open))
