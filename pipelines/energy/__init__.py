"""Measure or model the energy of named windows: each figure with its bounds and where it comes from.

Where counters of the processor (RAPL) and of GPUs (NVML) can be read they are used, at the edges of a window. Elsewhere
energy is modelled as

    PUE * (a * CPU_s + w_idle * vCPU * T + m * GB * T)

with CPU_s the user and system seconds of the process and its descendants, vCPU the processors it may use, GB its
tree's resident memory (2**30 bytes, mean of the window's edges; a page that two processes share counts twice) and
T the window's seconds. a, w_idle and m, each low, central, high and with its source, are in coefficients.json.
low and high hold the error of the coefficients. It is one error, common to all windows: it does not average out,
so bounds add linearly, and it cancels in the ratio of two figures of one component.
"""

from __future__ import annotations

import functools
import operator
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import psutil

from joulecache.pipelines.energy.carbon import J_PER_KWH, EmissionsFile, cpu_hardware, cpu_name, grid_intensity
from joulecache.pipelines.energy.machine import MachineUse, contamination, machine_use
from joulecache.pipelines.energy.measurement import COMPONENTS, Component, Contamination, Energy, check_number
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
from joulecache.pipelines.energy.rapl import Rapl
from joulecache.pipelines.energy.recording import append_window, begin_recording
from joulecache.pipelines.energy.windows import OpenWindows, Window

__all__ = ["COMPONENTS", "Component", "Contamination", "Energy", "Meter", "Window", "available_cpus"]

_GB_BYTES = 2**30  # memory is sold, and its watts published, in binary gigabytes
_FINEST_S = 1e-6  # of getrusage
_NVIDIA_DRIVER = Path("/proc/driver/nvidia")


@dataclass(frozen=True)
class _Quick:
    """What is read closest to a window's edge."""

    time_s: float
    cpu_s: float
    rapl_uj: Mapping[Path, int] | None
    gpus: tuple[GpuReading, ...] | None


@dataclass(frozen=True)
class _Edge:
    """One edge of a window: what the process tree and the machine have used since they began."""

    quick: _Quick
    tree: Descendants
    machine: MachineUse
    rss_bytes: int
    high_water_bytes: int
    io_bytes: tuple[int, int] | None


class Meter:
    """Meter windows: measured where counters can be read, modelled elsewhere.

    `country` is an ISO 3166 alpha-3 code (None: carbon is None), `provider` a column of coefficients.json, `pue`
    the building's power usage effectiveness, at least 1, which multiplies every joule. `idle_w` and `full_w`, the watts
    of your machine when idle and when all its processors are busy, replace the published coefficients and RAPL: the
    method is then `user`. `emissions` is a folder whose emissions.csv, in CodeCarbon's format, gets a row for each window
    that was opened inside no other; `record` is a new file for `ReplayMeter`. `powercap` is the folder of the RAPL counters,
    `nvml` those of the GPUs. Bad arguments raise ValueError.

    The model covers the process and its descendants; it loses daemons that outlive their parent and end in the
    window, and children of a process that ignores SIGCHLD. RAPL covers the machine, others' work included: its
    total is the counter, its active part a*CPU_s / (a*CPU_s + w_idle*CPUs*T) of it, which is a model. A GPU's
    energy is active as a whole: one that waits is held by the window all the same.
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
        check_number("pue", pue, at_least=1.0)
        self._provider, self._pue, self._cpus = provider, pue, available_cpus()
        self._model = published_model(provider, self._cpus)
        self._rapl: Rapl | None = Rapl(Path(powercap))
        if idle_w is not None or full_w is not None:
            if provider != "generic":
                raise ValueError(f"provider is {provider!r} and watts are given: give one of them")
            self._model, self._rapl = given_model(idle_w, full_w, self._cpus), None
        self._code, self._g_per_kwh = grid_intensity(country)
        self._nvml = nvml or Nvml()
        # that there is no GPU is no problem; a driver whose GPUs cannot be read is, also in a container that hides them
        gpu_problem = self._nvml.problem if _NVIDIA_DRIVER.exists() else ""
        problems = (self._rapl.problem if self._rapl else "", gpu_problem)
        self._notes = {problem: None for problem in problems if problem}
        self._windows = OpenWindows()
        self._emissions = None if emissions is None else EmissionsFile(emissions, self._code, pue)
        self._record = None if record is None else begin_recording(record, self._settings())

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be measured so far, with reasons and remedies."""
        return tuple(self._notes)

    @contextmanager
    def window(self, name: str) -> Iterator[Window]:
        """Meter a `with` block; blocks nest and overlap, also across threads.

        Raises ValueError, on entering, for an empty name and for one that is open already.
        """
        with self._windows.named(name) as window, self._nvml.watching():
            outermost = self._windows.count() == 1
            first = self._edge(None)
            window.begin(lambda: self._energy(first, self._edge(first)))
            try:
                yield window
            finally:
                if window.end():
                    self._keep(window, outermost)

    def _keep(self, window: Window, outermost: bool) -> None:
        """Write a closed window to the files that were asked for; what is metered goes on where that fails."""
        try:
            if self._record is not None:
                append_window(self._record, window.name, window.energy)
            if self._emissions is not None and outermost:
                self._emissions.append(window.name, window.energy)
        except OSError as error:
            self._notes[f"windows are missing in a file: {error}"] = None

    def passport(self) -> dict[str, object]:
        """Return what shapes the figures, as JSON values: method, coefficients, sources, machine, notes."""
        return self._settings() | {"tdp_w": cpu_hardware().tdp_w}

    def _settings(self) -> dict[str, object]:
        return {
            "method": "measured:rapl" if self._rapl and self._rapl.domains else self._model.method,
            "formula": coefficients()["formula"],
            "coefficients_version": coefficients()["version"],
            "coefficients": {name: dict(row) for name, row in self._model.rows.items()},
            "provider": None if self._model.method == "user" else self._provider,
            "pue": self._pue,
            "country": self._code,
            "carbon_g_per_kwh": self._g_per_kwh,
            "carbon_source": self._code and f"codecarbon {version('codecarbon')}, offline table",
            "rapl": [str(folder) for folder in self._rapl.domains] if self._rapl else [],
            "gpus": list(self._nvml.names),
            "cpu": cpu_name(),
            "tdp_w": None,
            "vcpus": self._cpus,
            "memory_gb": psutil.virtual_memory().total / _GB_BYTES,
            "notes": list(self.notes),
        }

    def _edge(self, first: _Edge | None) -> _Edge:
        def quick() -> _Quick:
            rapl_uj = self._rapl.read_uj() if self._rapl else None
            return _Quick(time.monotonic(), time.process_time(), rapl_uj, self._nvml.read())

        # the slow part stays out of the window: before the clock at its beginning, after the clock at its end
        edge = quick() if first else None
        machine = machine_use()
        tree = descendants(first.tree.living if first else ())
        rss_bytes, high_water_bytes = memory_bytes()
        passed = io_bytes(["self", *(pid for pid, _ in tree.living)])
        return _Edge(edge or quick(), tree, machine, rss_bytes + tree.rss_bytes, high_water_bytes, passed)

    def _energy(self, first: _Edge, last: _Edge) -> Energy:
        duration_s = last.quick.time_s - first.quick.time_s
        # orphans that ended are gone from the later sum: they must not take from the process's own seconds
        cpu_s = last.quick.cpu_s - first.quick.cpu_s + max(0.0, last.tree.cpu_s - first.tree.cpu_s)
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
        """Return the components, the active part of their sum, and the period of the slowest counter."""
        parts = self._counted(first.quick, last.quick, duration_s)
        if parts is not None and self._rapl:
            active, update_s = self._share(parts, cpu_s, duration_s), self._rapl.update_s
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
            update_s = TICK_S if first.tree.living or last.tree.living else _FINEST_S
        if self._nvml.names:
            gpu = None
            if first.quick.gpus and last.quick.gpus:
                gpu = self._nvml.gained(first.quick.gpus, last.quick.gpus, duration_s, self._pue)
            if gpu is None:
                self._notes["NVML failed or went backwards in some windows: GPUs are not in their totals"] = None
            else:
                parts["gpu"], active, update_s = gpu, active + gpu, max(update_s, self._nvml.update_s)
        return parts, active, update_s

    def _counted(self, first: _Quick, last: _Quick, duration_s: float) -> dict[str, Component] | None:
        """Return what RAPL counted, None where it cannot be used; say why in the notes."""
        if self._rapl is None or not self._rapl.domains:
            return None
        parts = None
        if first.rapl_uj and last.rapl_uj:
            parts = self._rapl.gained(first.rapl_uj, last.rapl_uj, duration_s, self._pue)
            for folder, other in self._rapl.mirrors(first.rapl_uj, last.rapl_uj).items():
                self._notes[f"RAPL: {folder.name} shows {other.name} again, and is not counted"] = None
        if parts is None:
            self._notes["RAPL failed or went backwards in some windows: these are modelled"] = None
        return parts

    def _share(self, gained: Mapping[str, Component], cpu_s: float, duration_s: float) -> Component:
        """Return the active part of the machine's counters."""
        # of the model only the ratio of a to w_idle: it travels between machines better than watts do
        cpu, idle = self._model.cpu * cpu_s, self._model.idle * (duration_s * (os.cpu_count() or 1))
        whole = functools.reduce(operator.add, gained.values())
        return replace(
            whole,
            value_j=whole.value_j * cpu.value_j / ((cpu.value_j + idle.value_j) or 1.0),
            low_j=whole.low_j * cpu.low_j / ((cpu.low_j + idle.high_j) or 1.0),
            high_j=whole.high_j * cpu.high_j / ((cpu.high_j + idle.low_j) or 1.0),
            method=f"modelled:rapl-share@{coefficients()['version']}",
            source=f"{whole.source}; {cpu.source}",
        )
