"""The meter: the energy of named windows, measured by counters where there are any, modelled elsewhere."""

from __future__ import annotations

import functools
import logging
import operator
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import psutil

from joulecache.pipelines.core.checks import check_number
from joulecache.pipelines.energy.carbon import J_PER_KWH, EmissionsFile, cpu_hardware, cpu_name, grid_intensity
from joulecache.pipelines.energy.machine import MachineUse, contamination, machine_use
from joulecache.pipelines.energy.measurement import COMPONENTS, Component, Energy
from joulecache.pipelines.energy.model import coefficients, given_model, published_model
from joulecache.pipelines.energy.nvml import GpuReading, Nvml
from joulecache.pipelines.energy.process_tree import (
    TICK_S,
    Descendants,
    available_cpus,
    descendants,
    io_bytes,
    memory_bytes,
)
from joulecache.pipelines.energy.provenance import Provenance
from joulecache.pipelines.energy.rapl import Rapl
from joulecache.pipelines.energy.recording import append_window, begin_recording
from joulecache.pipelines.energy.windows import OpenWindows, Window

_GB_BYTES = 2**30  # memory is sold, and its watts published, in binary gigabytes
_GETRUSAGE_S = 1e-6  # resolution
_NVIDIA_DRIVER = Path("/proc/driver/nvidia")
_NOTES = logging.getLogger("joulecache")


@dataclass(frozen=True)
class _Counters:
    """Readings taken as close to the edge of a window as possible."""

    time_s: float
    cpu_s: float
    rapl_uj: Mapping[Path, int] | None
    gpus: tuple[GpuReading, ...] | None


@dataclass(frozen=True)
class _Edge:
    """One edge of a window: what the process tree and the machine used so far."""

    counters: _Counters
    tree: Descendants
    machine: MachineUse
    rss_bytes: int
    high_water_bytes: int
    io_bytes: tuple[int, int] | None


class Meter:
    """Measures the energy of named windows with counters, or models it where there are none.

    The model covers the process and its descendants. It misses daemons that outlive their parent and end in the window, and children of a
    process that ignores SIGCHLD. RAPL covers the machine with all its processes: the counters give the total, the model its active share,
    ``a * CPU_s / (a * CPU_s + w_idle * CPUs * T)``. All energy of a GPU is active, even if the GPU is idle.

    Args:
        country: ISO 3166 alpha-3 code for the grams of CO2; None omits them.
        provider: Whose published coefficients to use: ``generic``, ``aws``, ``gcp`` or ``azure``.
        pue: Power usage effectiveness of the data center, at least 1; multiplies every joule.
        idle_w: Watts of your machine when idle. With `full_w` it replaces RAPL and the published coefficients; the method is ``user``.
        full_w: Watts of your machine with all processors busy.
        emissions: A folder whose emissions.csv, in CodeCarbon's format, gets a row for each outermost window.
        record: A new file that records the windows, for `ReplayMeter`.
        powercap: The folder of the RAPL counters.
        nvml: The GPU counters; None for those of this machine.

    Raises:
        ValueError: An argument is not allowed.
    """

    def __init__(
        self,
        *,
        country: str | None = None,
        provider: str = "generic",
        pue: float = 1.0,
        idle_w: float | None = None,
        full_w: float | None = None,
        emissions: str | os.PathLike[str] | None = None,
        record: str | os.PathLike[str] | None = None,
        powercap: Path = Path("/sys/class/powercap"),
        nvml: Nvml | None = None,
    ) -> None:
        check_number("pue", pue, 1)
        self._provider, self._pue, self._cpus = provider, pue, available_cpus()
        self._model = published_model(provider, self._cpus)
        self._rapl: Rapl | None = Rapl(Path(powercap))
        if idle_w is not None or full_w is not None:
            if provider != "generic":
                raise ValueError(f"provider and watts exclude each other, got provider {provider!r} and watts")
            self._model, self._rapl = given_model(idle_w, full_w, self._cpus), None
        self._country, self._g_per_kwh = grid_intensity(country)
        self._nvml = nvml or Nvml()
        # a machine needs no GPU, but a driver whose GPUs cannot be read is a problem, even if a container hides them
        gpu_problem = self._nvml.problem if _NVIDIA_DRIVER.exists() else ""
        problems = (self._rapl.problem if self._rapl else "", gpu_problem)
        self._notes = {problem: None for problem in problems if problem}
        self._windows = OpenWindows()
        self._emissions = None if emissions is None else EmissionsFile(emissions, self._country, pue)
        self._record = None if record is None else begin_recording(record, self.quick_provenance())

    @property
    def emissions(self) -> EmissionsFile | None:
        """The file that gets a row for each outermost window."""
        return self._emissions

    def __reduce__(self) -> NoReturn:
        """Raise TypeError: the windows of a meter are those of its process."""
        raise TypeError("a meter belongs to its process: make one in every process, and add up their Energy")

    def __copy__(self) -> Meter:
        """Return this meter, like `copy.deepcopy`."""
        return self

    def __deepcopy__(self, memo: object) -> Meter:
        """Return this meter: tuners of hyperparameters copy callbacks, and counters, windows and files stay the same."""
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be measured so far, with reasons and remedies."""
        return tuple(self._notes)

    @contextmanager
    def window(self, name: str) -> Iterator[Window]:
        """Measure a `with` block. Blocks nest and overlap, also across threads.

        Raises:
            ValueError: On entering: the name is empty, or a window of this name is open.
        """
        with self._windows.named(name) as window, self._nvml.watching():
            outermost = self._windows.count() == 1
            first = self._edge(None)
            window.begin(lambda: self._energy(first, self._edge(first)))
            try:
                yield window
            finally:
                if window.end():
                    self._write(window, outermost)

    @contextmanager
    def laps(self) -> Iterator[Callable[[], Energy]]:
        """Measure consecutive parts of a `with` block.

        Yields:
            A function that returns the energy since its last call, or since the block began. The parts share their edges: their sum is
            the energy of the whole. Call it from one thread at a time.
        """
        with self._nvml.watching():
            first = self._edge(None)

            def lap() -> Energy:
                nonlocal first
                last = self._edge(first)
                energy, first = self._energy(first, last), last
                return energy

            yield lap

    def _write(self, window: Window, outermost: bool) -> None:
        """Write a closed window to the requested files; a failure becomes a note."""
        try:
            if self._record is not None:
                append_window(self._record, window.name, window.energy)
            if self._emissions is not None and outermost:
                self._emissions.append(window.name, window.energy)
        except OSError as error:
            note = f"windows are missing in a file: {error}"
            if note not in self._notes:
                _NOTES.warning("%s", note)
            self._notes[note] = None

    def provenance(self) -> Provenance:
        """Return what determines the values of this meter: method, coefficients, machine, notes."""
        return replace(self.quick_provenance(), tdp_w=cpu_hardware().tdp_w)

    def quick_provenance(self) -> Provenance:
        """Return the provenance without the thermal design power, which imports CodeCarbon (0.5 s)."""
        return Provenance(
            method="measured:rapl" if self._rapl and self._rapl.domains else self._model.method,
            formula=coefficients().formula,
            coefficients_version=coefficients().version,
            coefficients=self._model.rows,
            provider=None if self._model.method == "user" else self._provider,
            pue=self._pue,
            country=self._country,
            carbon_g_per_kwh=self._g_per_kwh,
            carbon_source=self._country and f"codecarbon {version('codecarbon')}, offline table",
            rapl=tuple(str(folder) for folder in self._rapl.domains) if self._rapl else (),
            gpus=tuple(self._nvml.names),
            cpu=cpu_name(),
            tdp_w=None,
            vcpus=self._cpus,
            memory_gb=psutil.virtual_memory().total / _GB_BYTES,
            notes=self.notes,
        )

    def _edge(self, first: _Edge | None) -> _Edge:
        def counters() -> _Counters:
            rapl_uj = self._rapl.read_uj() if self._rapl else None
            return _Counters(time.monotonic(), time.process_time(), rapl_uj, self._nvml.read())

        # the slow part stays outside the window: before its first counter readings, after its last ones
        at_end = (counters(), machine_use()) if first else None
        tree = descendants(first.tree.living if first else ())
        rss_bytes, high_water_bytes = memory_bytes()
        passed = io_bytes(["self", *(pid for pid, _ in tree.living)])
        machine, now = (machine_use(), counters()) if at_end is None else at_end[::-1]
        return _Edge(now, tree, machine, rss_bytes + tree.rss_bytes, high_water_bytes, passed)

    def _energy(self, first: _Edge, last: _Edge) -> Energy:
        duration_s = last.counters.time_s - first.counters.time_s
        # orphans that ended are missing from the later sum: they must not reduce the seconds of the process
        cpu_s = last.counters.cpu_s - first.counters.cpu_s + max(0.0, last.tree.cpu_s - first.tree.cpu_s)
        read_bytes = written_bytes = None
        if first.io_bytes and last.io_bytes:
            read_bytes = max(0, last.io_bytes[0] - first.io_bytes[0])
            written_bytes = max(0, last.io_bytes[1] - first.io_bytes[1])
        rose = last.high_water_bytes > first.high_water_bytes
        peak_bytes = max(first.rss_bytes, last.rss_bytes, last.high_water_bytes if rose else 0)
        parts, active, update_s = self._joules(first, last, duration_s, cpu_s)
        total_j = sum(part.value_j for part in parts.values())
        return Energy(
            components={name: parts.get(name) for name in COMPONENTS},
            active=active,
            duration_s=duration_s,
            cpu_s=cpu_s,
            read_bytes=read_bytes,
            written_bytes=written_bytes,
            peak_rss_bytes=peak_bytes,
            carbon_g=None if self._g_per_kwh is None else total_j / J_PER_KWH * self._g_per_kwh,
            contamination=contamination(first.machine, last.machine, duration_s),
            update_s=update_s,
        )

    def _joules(
        self, first: _Edge, last: _Edge, duration_s: float, cpu_s: float
    ) -> tuple[dict[str, Component], Component, float]:
        """Return the components, the active part, and the update period of the slowest counter."""
        parts = self._counted(first.counters, last.counters, duration_s)
        if parts is not None and self._rapl:
            active, update_s = self._active_share(parts, cpu_s, duration_s), self._rapl.update_s
        else:
            parts = {
                "cpu": self._model.cpu * (self._pue * cpu_s),
                "idle": self._model.idle * (self._pue * duration_s * self._cpus),
            }
            active = parts["cpu"]
            if self._model.dram is not None:
                held_gb = (first.rss_bytes + last.rss_bytes) / 2 / _GB_BYTES
                parts["dram"] = self._model.dram * (self._pue * duration_s * held_gb)
                active += parts["dram"]
            update_s = TICK_S if first.tree.living or last.tree.living else _GETRUSAGE_S
        if self._nvml.names:
            gpu = None
            if first.counters.gpus and last.counters.gpus:
                gpu = self._nvml.gained(first.counters.gpus, last.counters.gpus, duration_s, self._pue)
            if gpu is None:
                self._notes["NVML failed or went backwards in some windows: GPUs are not in their totals"] = None
            else:
                parts["gpu"], active, update_s = gpu, active + gpu, max(update_s, self._nvml.update_s)
        return parts, active, update_s

    def _counted(self, first: _Counters, last: _Counters, duration_s: float) -> dict[str, Component] | None:
        """Return what RAPL counted; None, with a note, if it cannot be used."""
        if self._rapl is None or not self._rapl.domains:
            return None
        parts = None
        if first.rapl_uj and last.rapl_uj:
            parts = self._rapl.gained(first.rapl_uj, last.rapl_uj, duration_s, self._pue)
            for folder, other in self._rapl.mirrors(first.rapl_uj, last.rapl_uj).items():
                self._notes[f"RAPL: {folder.name} repeats {other.name}, and is not counted"] = None
        if parts is None:
            self._notes["RAPL failed or went backwards in some windows: these are modelled"] = None
        return parts

    def _active_share(self, gained: Mapping[str, Component], cpu_s: float, duration_s: float) -> Component:
        # only the ratio of a to w_idle comes from the model: it transfers between machines better than watts do
        cpu, idle = self._model.cpu * cpu_s, self._model.idle * (duration_s * (os.cpu_count() or 1))
        whole = functools.reduce(operator.add, gained.values())
        return replace(
            whole,
            value_j=whole.value_j * cpu.value_j / ((cpu.value_j + idle.value_j) or 1.0),
            low_j=whole.low_j * cpu.low_j / ((cpu.low_j + idle.high_j) or 1.0),
            high_j=whole.high_j * cpu.high_j / ((cpu.high_j + idle.low_j) or 1.0),
            method=f"modelled:rapl-share@{coefficients().version}",
            source=f"{whole.source}; {cpu.source}",
        )
