"""Measure or model the energy of named windows: each figure with its bounds and where it comes from.

Where the processor's own counters (RAPL) can be read they are used. Elsewhere energy is modelled as

    PUE * (a * CPU_s + w_idle * vCPU * T + m * GB * T)

with CPU_s the user and system seconds of the process and its descendants, vCPU the processors it may use, GB its
tree's resident memory (2**30 bytes, mean of the window's edges; a page that two processes share counts twice) and
T the window's seconds. a, w_idle and m, each low, central, high and with its source, are in coefficients.json.
low and high hold the error of the coefficients. It is one error, common to all windows: it does not average out,
so bounds add linearly, and it cancels in the ratio of two figures of one component.
"""

from __future__ import annotations

import difflib
import functools
import json
import operator
import os
import re
import resource
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from joulecache.pipelines.meter.energy import COMPONENTS, Component, Energy, check_number

__all__ = ["COMPONENTS", "Component", "Energy", "Meter", "Rapl", "Window", "available_cpus", "counter_gain"]

_J_PER_KWH = 3.6e6
_GB_BYTES = 2**30  # memory is sold, and its watts published, in binary gigabytes


@functools.cache
def _table() -> dict[str, Any]:
    return dict(json.loads(Path(__file__).with_name("coefficients.json").read_text("utf-8")))


def counter_gain(before: int, after: int, span: int) -> int:
    """Return what a counter gained between two readings, if it wrapped at `span` at most once."""
    return after - before if after >= before else after - before + span


class Rapl:
    """Read the package and DRAM energy counters in a Linux powercap folder; they are of the whole machine.

    `domains` maps the folder of a counter to its component (cpu or dram) and its span in microjoules. It is
    empty unless every package and DRAM counter there can be read. `problem` says what is missing and what to do.
    """

    def __init__(self, root: Path) -> None:
        self.domains: dict[Path, tuple[str, int]] = {}
        self.problem = f"no RAPL package counter in {root}: virtual machines and containers often have none"
        domains = {}
        try:
            for folder in sorted(root.glob("intel-rapl:*")):
                name = (folder / "name").read_text("utf-8").strip()
                # core and uncore are inside the package, psys is around it: they would count joules twice
                if name == "dram" or name.startswith("package-"):
                    int((folder / "energy_uj").read_text("utf-8"))
                    span_uj = int((folder / "max_energy_range_uj").read_text("utf-8"))
                    domains[folder] = ("dram" if name == "dram" else "cpu", span_uj)
        except (OSError, ValueError) as error:
            self.problem = f"RAPL is there but cannot be read: {error}"
            if isinstance(error, PermissionError):
                self.problem += f"; run `sudo chmod a+r {root}/intel-rapl:*/energy_uj` (until the next boot)"
        else:
            found = {component for component, _ in domains.values()}
            if "cpu" in found:
                self.domains = domains
                self.problem = "" if "dram" in found else "RAPL has no DRAM counter: memory is not in the total"

    def read_uj(self) -> dict[Path, int] | None:
        """Return the microjoules of each counter; None where there is none, or one cannot be read now."""
        try:
            return {folder: int((folder / "energy_uj").read_text("utf-8")) for folder in self.domains} or None
        except (OSError, ValueError):
            return None

    def gained(
        self, before_uj: Mapping[Path, int], after_uj: Mapping[Path, int], duration_s: float, pue: float = 1.0
    ) -> dict[str, Component] | None:
        """Return the components between two readings, times `pue`; None where a counter went backwards.

        The bounds hold one update of the counter at the edges, and high also turns of the counter that a long
        window may hide. The counter's own calibration is in neither: its error is not published.
        """
        update_s, limit_w = (_table()[name]["central"] for name in ("rapl_update_s", "rapl_domain_limit_w"))
        method, source = ("measured:rapl", "powercap") if pue == 1 else ("modelled:rapl-pue@1", "powercap times PUE")
        most_j = limit_w * (duration_s + update_s)
        parts: dict[str, Component] = {}
        for folder, (name, span_uj) in self.domains.items():
            before, after = before_uj[folder], after_uj[folder]
            gain_j = counter_gain(before, after, span_uj) / 1e6
            if gain_j < 0 or (after < before and gain_j > most_j):
                return None
            lag_j = gain_j * update_s / max(duration_s, update_s)
            hidden_j = max(0, (most_j - gain_j) * 1e6 // span_uj) * span_uj / 1e6
            low_j, high_j = gain_j - lag_j, gain_j + lag_j + hidden_j
            part = Component(gain_j, low_j, high_j, method, source, "machine", f"1 uJ, {update_s:g} s") * pue
            parts[name] = parts[name] + part if name in parts else part
        return parts


@dataclass(frozen=True)
class _Edge:
    """One edge of a window: what the process tree and the machine have used since they began."""

    time_s: float
    cpu_s: float
    counters_uj: Mapping[Path, int] | None
    descendants_cpu_s: float
    descendants: frozenset[psutil.Process]
    rss_bytes: int
    high_water_bytes: int
    io_bytes: tuple[int, int] | None


def _descendants(also: Iterable[psutil.Process]) -> tuple[float, int, frozenset[psutil.Process]]:
    """Return CPU seconds of all descendants so far; resident bytes and identity of those alive.

    One that ends moves from the live to the reaped, with all that it used, when its parent waits for it: the sum
    neither loses nor repeats it. `also` are those of the window's beginning, which may be orphans by now.
    """
    for _ in range(5):
        reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = {process for process in also if process.is_running()}
        with suppress(ChildProcessError):
            # asks for any child without reaping it: 2 us, where the walk over all processes costs 500 and more
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            found.update(psutil.Process().children(recursive=True))
        cpu_s, rss_bytes, live = reaped.ru_utime + reaped.ru_stime, 0, set()
        for process in found:
            with suppress(psutil.NoSuchProcess):
                times, memory = process.cpu_times(), process.memory_info()
                cpu_s += times.user + times.system + times.children_user + times.children_system
                rss_bytes += memory.rss
                live.add(process)
        # no one instant: a child that was reaped meanwhile may be in both or in neither
        if resource.getrusage(resource.RUSAGE_CHILDREN) == reaped:
            break
    return cpu_s, rss_bytes, frozenset(live)


def _io_bytes(pids: Iterable[int | str]) -> tuple[int, int] | None:
    """Return bytes read and written by processes and the children they reaped; None where one hides them."""
    read_bytes = written_bytes = 0
    try:
        for pid in pids:
            rows = dict(row.split(": ") for row in Path(f"/proc/{pid}/io").read_text("utf-8").splitlines())
            read_bytes, written_bytes = read_bytes + int(rows["rchar"]), written_bytes + int(rows["wchar"])
    except OSError:
        return None
    return read_bytes, written_bytes


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Return how many processors this process may use: its affinity, or its container's quota where less."""
    affinity = len(os.sched_getaffinity(0))
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError):  # absent, or "max": no quota
            quota, period = (int(word) for name in names for word in (cgroup / name).read_text().split())
            return min(affinity, quota / period) if quota > 0 else affinity
    return affinity


def _grid(country: object) -> tuple[str | None, float | None]:
    """Return a country's ISO code and grams of CO2 per kWh, from CodeCarbon's table, without network."""
    if country is None:
        return None, None
    if not isinstance(country, str):
        raise ValueError(f"country is {country!r}: give an ISO 3166 alpha-3 code such as 'FRA', or None")
    from codecarbon.input import DataSource  # pulls pandas: 0.5 s

    table = DataSource().get_global_energy_mix_data()
    code = country.strip().upper()
    if code not in table:
        names = {row["country_name"].upper(): iso for iso, row in table.items()} | {iso: iso for iso in table}
        close = dict.fromkeys(names[name] for name in difflib.get_close_matches(code, names, n=3))
        listed = ", ".join(f"{iso} ({table[iso]['country_name']})" for iso in close) or "none"
        raise ValueError(f"unknown country {country!r}: give an ISO 3166 alpha-3 code; close to it: {listed}")
    return code, float(table[code]["carbon_intensity"])


class Window:
    """Name a metered `with` block, and hold its `energy` after it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._energy: Energy | None = None

    @property
    def energy(self) -> Energy:
        """The block's energy; RuntimeError before its end, and in a child forked inside it."""
        if self._energy is None:
            raise RuntimeError(f"window {self.name!r} is open: read its energy after its block, where it was opened")
        return self._energy


class Meter:
    """Meter windows: measured where counters can be read, modelled elsewhere.

    `country` is an ISO 3166 alpha-3 code (None: carbon is None), `provider` a column of coefficients.json, `pue`
    the building's power usage effectiveness, at least 1, which multiplies every joule, `powercap` the folder of
    the RAPL counters. Bad arguments raise ValueError.

    The model covers the process and its descendants; it loses daemons that outlive their parent and end in the
    window, and children of a process that ignores SIGCHLD. RAPL covers the machine, others' work included: its
    total is the counter, its active part a*CPU_s / (a*CPU_s + w_idle*CPUs*T) of it, which is a model.
    """

    def __init__(
        self,
        *,
        country: str | None = None,
        provider: str = "generic",
        pue: float = 1.0,
        powercap: Path = Path("/sys/class/powercap"),
    ) -> None:
        table = _table()
        if not isinstance(provider, str) or provider not in table["providers"]:
            raise ValueError(f"unknown provider {provider!r}: allowed are {', '.join(table['providers'])}")
        check_number("pue", pue, at_least=1.0)
        self._code, self._g_per_kwh = _grid(country)
        self._provider, self._pue, self._cpus = provider, pue, available_cpus()
        self._rows = {**table["providers"][provider], "memory_w_per_gb": table["memory_w_per_gb"]}
        self._model = f"modelled:cpu-seconds@{table['version']}"
        tick_ms = 1000 / os.sysconf("SC_CLK_TCK")
        fine = f"1 us, and {tick_ms:g} ms for each descendant alive at an edge"
        self._cpu = self._unit("active_j_per_cpu_s", "process tree", fine)
        self._idle = self._unit("idle_w_per_vcpu", f"{self._cpus:g} vCPUs", "1 us")
        self._dram = self._unit("memory_w_per_gb", "process tree", "resident memory at both edges")
        self._rapl = Rapl(Path(powercap))
        self._notes = {self._rapl.problem: None} if self._rapl.problem else {}
        self._open: dict[tuple[int, str], Window] = {}

    def _unit(self, name: str, scope: str, resolution: str) -> Component:
        """Return the joules of one CPU-second, vCPU-second or GB-second."""
        row = self._rows[name]
        return Component(row["central"], row["low"], row["high"], self._model, row["source"], scope, resolution)

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be measured so far, with reasons and remedies."""
        return tuple(self._notes)

    @contextmanager
    def window(self, name: str) -> Iterator[Window]:
        """Meter a `with` block; blocks nest and overlap, also across threads.

        Raises ValueError, on entering, for an empty name and for one that is open already.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(f"window name is {name!r}: give a non-empty text")
        window, key = Window(name), (os.getpid(), name)
        # one step under the interpreter's own lock: a lock of ours could stay held for ever in a forked child
        if self._open.setdefault(key, window) is not window:
            raise ValueError(f"window {name!r} is open already: close it first, or name this one differently")
        first = self._edge(None)
        try:
            yield window
        finally:
            # a child forked inside the block has counters of its own: it would report nonsense
            if os.getpid() == key[0]:
                window._energy = self._energy(first, self._edge(first))
                del self._open[key]

    def passport(self) -> dict[str, object]:
        """Return what shapes the figures, as JSON values: method, coefficients, sources, machine, notes."""
        cpu = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return {
            "method": "measured:rapl" if self._rapl.domains else self._model,
            "formula": _table()["formula"],
            "coefficients_version": _table()["version"],
            "coefficients": {name: dict(row) for name, row in self._rows.items()},
            "provider": self._provider,
            "pue": self._pue,
            "country": self._code,
            "carbon_g_per_kwh": self._g_per_kwh,
            "carbon_source": self._code and f"codecarbon {version('codecarbon')}, offline table",
            "rapl": [str(folder) for folder in self._rapl.domains],
            "cpu": cpu and cpu[1],
            "vcpus": self._cpus,
            "memory_gb": psutil.virtual_memory().total / _GB_BYTES,
            "notes": list(self.notes),
        }

    def _edge(self, first: _Edge | None) -> _Edge:
        def quick() -> tuple[float, float, Mapping[Path, int] | None]:
            return time.monotonic(), time.process_time(), self._rapl.read_uj()

        # the slow part stays out of the window: before the clock at its beginning, after the clock at its end
        edge = quick() if first else None
        cpu_s, rss_bytes, live = _descendants(first.descendants if first else ())
        # not ru_maxrss: that begins with the high-water mark of the process that started this one
        memory_kib = dict(re.findall(r"(VmHWM|VmRSS):\s*(\d+)", Path("/proc/self/status").read_text("utf-8")))
        rss_bytes += int(memory_kib["VmRSS"]) * 1024
        high_water_bytes = int(memory_kib["VmHWM"]) * 1024
        io_bytes = _io_bytes(["self", *(process.pid for process in live)])
        return _Edge(*(edge or quick()), cpu_s, live, rss_bytes, high_water_bytes, io_bytes)

    def _energy(self, first: _Edge, last: _Edge) -> Energy:
        duration_s = last.time_s - first.time_s
        # orphans that ended are gone from the later sum: they must not take from the process's own seconds
        cpu_s = last.cpu_s - first.cpu_s + max(0.0, last.descendants_cpu_s - first.descendants_cpu_s)
        read_bytes = written_bytes = None
        if first.io_bytes and last.io_bytes:
            read_bytes = max(0, last.io_bytes[0] - first.io_bytes[0])
            written_bytes = max(0, last.io_bytes[1] - first.io_bytes[1])
        rose = last.high_water_bytes > first.high_water_bytes
        peak_bytes = max(first.rss_bytes, last.rss_bytes, last.high_water_bytes if rose else 0)
        cpu, idle = self._cpu * (self._pue * cpu_s), self._idle * (self._pue * duration_s * self._cpus)
        dram = self._dram * (self._pue * duration_s * (first.rss_bytes + last.rss_bytes) / 2 / _GB_BYTES)
        parts, active = {"cpu": cpu, "dram": dram, "idle": idle}, cpu + dram
        if self._rapl.domains:
            gained = None
            if first.counters_uj and last.counters_uj:
                gained = self._rapl.gained(first.counters_uj, last.counters_uj, duration_s, self._pue)
            if gained is None:
                self._notes["RAPL failed or went backwards in some windows: these are modelled"] = None
            else:
                parts, active = gained, self._share(gained, cpu_s, duration_s)
        total_j = sum(part.value_j for part in parts.values())
        return Energy(
            components={name: parts.get(name) for name in COMPONENTS},
            active=active,
            duration_s=duration_s,
            cpu_s=cpu_s,
            read_bytes=read_bytes,
            written_bytes=written_bytes,
            peak_rss_bytes=peak_bytes,
            carbon_g=None if self._g_per_kwh is None else total_j / _J_PER_KWH * self._g_per_kwh,
        )

    def _share(self, gained: Mapping[str, Component], cpu_s: float, duration_s: float) -> Component:
        """Return the active part of the machine's counters."""
        # of the model only the ratio of a to w_idle: it travels between machines better than watts do
        cpu, idle = self._cpu * cpu_s, self._idle * (duration_s * (os.cpu_count() or 1))
        whole = functools.reduce(operator.add, gained.values())
        return replace(
            whole,
            value_j=whole.value_j * cpu.value_j / ((cpu.value_j + idle.value_j) or 1.0),
            low_j=whole.low_j * cpu.low_j / ((cpu.low_j + idle.high_j) or 1.0),
            high_j=whole.high_j * cpu.high_j / ((cpu.high_j + idle.low_j) or 1.0),
            method=f"modelled:rapl-share@{_table()['version']}",
            source=f"{whole.source}; {self._cpu.source}",
        )
