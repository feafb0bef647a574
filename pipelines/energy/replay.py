"""A meter that measures nothing and gives recorded energies again: audits are tested by it, on any machine."""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager

from joulecache.pipelines.energy import Energy, Meter, Window
from joulecache.pipelines.energy.recording import read_recording
from joulecache.pipelines.energy.windows import OpenWindows


class ReplayMeter(Meter):
    """Give the windows of a recording (`Meter(record=...)`) again: those of one name in the order of the recording.

    `passport` and `notes` are those of the recording. Raises what `read_recording` raises; a window that the recording does not
    have, or not so often, raises RuntimeError when it is opened. `so_far` gives the energy of the whole window.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._passport, windows = read_recording(path)
        self._notes = dict.fromkeys(self._passport.get("notes", ()))
        self._windows = OpenWindows()
        self._left: defaultdict[str, deque[Energy]] = defaultdict(deque)
        for name, energy in windows:
            self._left[name].append(energy)

    @contextmanager
    def window(self, name: str) -> Iterator[Window]:
        """Open the next recorded window of a name."""
        with self._windows.named(name) as window:
            if not self._left[name]:
                known = ", ".join(sorted(repr(other) for other, left in self._left.items() if left)) or "none"
                raise RuntimeError(f"{self._path} has no more windows named {name!r}: those left are {known}")
            energy = self._left[name].popleft()
            window.begin(lambda: energy)
            try:
                yield window
            finally:
                window.end()

    def passport(self) -> dict[str, object]:
        """Return what shaped the recorded figures."""
        return dict(self._passport)
