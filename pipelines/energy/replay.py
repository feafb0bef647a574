"""A meter that replays recorded energies, for tests of audits on any machine."""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager

from joulecache.pipelines.energy.measurement import Energy
from joulecache.pipelines.energy.meter import Meter
from joulecache.pipelines.energy.provenance import Provenance
from joulecache.pipelines.energy.recording import read_recording
from joulecache.pipelines.energy.windows import OpenWindows, Window


class ReplayMeter(Meter):
    """Replays the windows of a file that ``Meter(record=...)`` wrote; those of the same name in recorded order.

    `provenance` and `notes` are those of the recording. `Window.so_far` returns the energy of the whole window.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a recording.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._provenance, windows = read_recording(path)
        self._notes = dict.fromkeys(self._provenance.notes)
        self._windows = OpenWindows()
        self._left: defaultdict[str, deque[Energy]] = defaultdict(deque)
        for name, energy in windows:
            self._left[name].append(energy)

    @contextmanager
    def window(self, name: str) -> Iterator[Window]:
        """Open the next recorded window of a name; raises RuntimeError if there is none."""
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

    def provenance(self) -> Provenance:
        """Return the provenance of the recorded values."""
        return self._provenance
