"""The energy of a build, saved while it runs."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path

from joulecache.pipelines.core import codec
from joulecache.pipelines.core.files import write_text
from joulecache.pipelines.energy import Energy, Meter


class EnergyLog:
    """Meters a build and saves the energy so far, so that a killed build loses only the energy after the last save."""

    def __init__(self, meter: Meter, path: Path) -> None:
        """Start metering, and add the energy that earlier runs of the build saved in `path`."""
        self._path = path
        self._earlier: Energy | None = None
        with suppress(OSError, ValueError):  # missing, or written by a killed run
            self._earlier = codec.loads(Energy, path.read_bytes())
        self._stack = ExitStack()
        self._window = self._stack.enter_context(meter.window("build"))

    def save(self) -> Energy:
        """Save and return the energy so far, including that of earlier runs."""
        energy = self._window.so_far()
        if self._earlier is not None:
            energy += self._earlier
        with suppress(OSError):  # on a full disk the build fails with a better message
            write_text(self._path, codec.dumps(energy), durable=False)
        return energy

    def close(self) -> Energy:
        """Stop metering, and save once more."""
        self._stack.close()
        return self.save()
