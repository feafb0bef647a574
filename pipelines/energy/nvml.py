"""Energy of NVIDIA GPUs through NVML: everything that a GPU draws, regardless of which process uses it.

GPUs from Volta on have energy counters. The power of older ones is polled inside `Nvml.watching`, and integrated with the trapezoidal
rule. Both come from one sensor, which on some models samples only part of the time (25% on A100 and H100: Yang, Adamek and Armour,
"Part-time Power Measurements", arXiv 2312.02741).
"""

from __future__ import annotations

import functools
import operator
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from joulecache.pipelines.core.checks import check_number
from joulecache.pipelines.energy.measurement import Component

# The longest period published: "updated every 20-100ms" (PETSc's manual, PetscLogGpuEnergyMeter), "approximately every 100 ms"
# (ml.energy, Thermally Stable Profiling). Power readings are updated at least as often (Yang, Adamek and Armour).
_UPDATE_S = 0.1
# "On Fermi and Kepler GPUs the reading is accurate to within +/- 5% of current power draw" (NVIDIA's manual on
# nvmlDeviceGetPowerUsage, which does not mention Maxwell and Pascal: they are assumed to be no worse).
_POWER_ERROR = 0.05


@dataclass(frozen=True)
class GpuReading:
    """Joules of one GPU since some fixed moment; the bounds are those of the integration."""

    value_j: float
    low_j: float
    high_j: float


class PowerIntegral:
    """The integral of a GPU's power, which is assumed to lie between adjacent samples.

    Attributes:
        reading: The integral so far.
        last: Time and watts of the last sample; None skips the time until the next one.
    """

    def __init__(self) -> None:
        self.reading = GpuReading(0.0, 0.0, 0.0)
        self.last: tuple[float, float] | None = None

    def add(self, time_s: float, power_w: float) -> None:
        """Add a sample."""
        if self.last:
            span_s, so_far = time_s - self.last[0], self.reading
            low_w, high_w = sorted((self.last[1], power_w))
            self.reading = GpuReading(
                so_far.value_j + span_s * (low_w + high_w) / 2,
                so_far.low_j + span_s * low_w * (1 - _POWER_ERROR),
                so_far.high_j + span_s * high_w * (1 + _POWER_ERROR),
            )
        self.last = time_s, power_w


class _Poller:
    """Polls the power of GPUs in one process, inside `watching`."""

    def __init__(self, library: Any, handles: Sequence[Any], poll_s: float) -> None:
        self._library, self._poll_s, self._pid = library, poll_s, os.getpid()
        self._lock, self._stop, self._watchers = threading.Lock(), threading.Event(), 0
        self._integrals = [(handle, PowerIntegral()) for handle in handles]

    def sample(self) -> list[GpuReading] | None:
        """Sample all GPUs and return their integrals; None if one fails, or outside `watching`."""
        with self._lock:
            whole = self._watchers > 0
            for handle, integral in self._integrals if whole else ():
                try:
                    integral.add(time.monotonic(), self._library.nvmlDeviceGetPowerUsage(handle) / 1e3)
                except self._library.NVMLError:
                    whole = False  # the next sample covers the gap
            return [integral.reading for _, integral in self._integrals] if whole else None

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(self._poll_s):
            self.sample()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Poll during a `with` block."""
        with self._lock:
            if not self._watchers:
                self._stop = threading.Event()
                threading.Thread(target=self._run, args=(self._stop,), name="joulecache-nvml", daemon=True).start()
            self._watchers += 1
        try:
            yield
        finally:
            # a child forked inside has no such thread, and its copy of the lock may never be released
            if os.getpid() == self._pid:
                with self._lock:
                    self._watchers -= 1
                    if not self._watchers:
                        self._stop.set()
                        for _, integral in self._integrals:
                            integral.last = None


def _is_polled(library: Any, handle: Any) -> bool:
    """Return whether a GPU has a power reading but no energy counter; raises NVMLError if it has neither."""
    try:
        library.nvmlDeviceGetTotalEnergyConsumption(handle)
    except (library.NVMLError_NotSupported, library.NVMLError_FunctionNotFound):
        library.nvmlDeviceGetPowerUsage(handle)
        return True
    return False


def _visible(library: Any) -> tuple[list[Any], bool]:
    """Return the handles of the GPUs that CUDA_VISIBLE_DEVICES allows, and whether it names MIG instances."""
    handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return handles, False
    uuids = [library.nvmlDeviceGetUUID(handle) for handle in handles]
    chosen: dict[int, bool] = {}
    for entry in map(str.strip, listed.split(",")):
        # before driver 470 an instance is MIG-<UUID of its GPU>/<GPU instance>/<compute instance>
        name = entry.removeprefix("MIG-").partition("/")[0] if entry.startswith("MIG-GPU-") else entry
        if name.startswith("MIG-"):
            try:
                instance = library.nvmlDeviceGetHandleByUUID(name)
                name = library.nvmlDeviceGetUUID(library.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance))
            except (library.NVMLError_NotFound, library.NVMLError_InvalidArgument):
                break
        by_uuid = name.startswith("GPU-")
        found = [i for i, uuid in enumerate(uuids) if (uuid.startswith(name) if by_uuid else name == str(i))]
        # unknown or ambiguous: CUDA ignores it and all entries after it (CUDA's guide, section on environment variables)
        if len(found) != 1:
            break
        chosen[found[0]] = entry.startswith("MIG-")
    return [handles[index] for index in chosen], any(chosen.values())


class Nvml:
    """Reads the energy of the GPUs that CUDA_VISIBLE_DEVICES allows when this object is made.

    All the energy of a GPU counts, idle power and other processes included; that of a MIG instance too, since only the whole GPU has a
    sensor. Indices in CUDA_VISIBLE_DEVICES are read as NVML's, which follow the PCI bus: they are CUDA's with
    CUDA_DEVICE_ORDER=PCI_BUS_ID, or where all GPUs are alike.

    Args:
        library: pynvml, or an object with its functions; None imports it.
        poll_s: Seconds between polls of GPUs without an energy counter.

    Attributes:
        names: Names of the GPUs that are read: empty unless all of them can be.
        gpus: NVML's handle of each, and whether its power is polled.
        problem: What is missing and what to do about it; "" if nothing is.
        update_s: Update period of the slowest counter.

    Raises:
        ValueError: `poll_s` is not above 0.
    """

    def __init__(self, library: Any = None, poll_s: float = 1.0) -> None:
        check_number("poll_s", poll_s, high=threading.TIMEOUT_MAX, above=0)
        self._library, self._poll_s = library, poll_s
        self.names: tuple[str, ...] = ()
        self.gpus: list[tuple[Any, bool]] = []
        self._mig = False
        self.problem = self._find()
        self._polled = [handle for handle, is_polled in self.gpus if is_polled]
        self.update_s = max(_UPDATE_S, poll_s) if self._polled else _UPDATE_S
        # by process: a forked child has no polling thread, and its copy of a lock may be locked
        self._pollers: dict[int, _Poller] = {}

    def _find(self) -> str:
        if self._library is None:
            try:
                import pynvml  # 22 ms, and most machines have no GPU
            except ImportError:
                return "no NVIDIA GPU: pynvml is not installed; if there is one, run `pip install nvidia-ml-py`"
            self._library = pynvml
        library = self._library
        try:
            library.nvmlInit()  # never shut down: other code in the process may use it
            handles, self._mig = _visible(library)
            gpus = [(handle, _is_polled(library, handle)) for handle in handles]
            self.names, self.gpus = tuple(library.nvmlDeviceGetName(handle) for handle in handles), gpus
        except (library.NVMLError_LibraryNotFound, library.NVMLError_DriverNotLoaded) as error:
            remedy = "install and load its driver; in a container, NVIDIA_DRIVER_CAPABILITIES must name utility"
            return f"no NVIDIA GPU: {error}; if there is one, {remedy}"
        except library.NVMLError as error:
            remedies = {
                library.NVMLError_NoPermission: "give this user access to /dev/nvidia*",
                library.NVMLError_NotSupported: "it has no power sensor, like many virtual GPUs: use a whole GPU",
            }
            remedy = remedies.get(type(error), "check that `nvidia-smi` works; after a driver update, reboot")
            return f"the NVIDIA GPU cannot be read: {error}; {remedy}"
        listed = os.environ.get("CUDA_VISIBLE_DEVICES")
        left = "" if listed is None else f" that CUDA_VISIBLE_DEVICES={listed!r} allows; if there is one, unset it"
        return "" if self.gpus else f"no NVIDIA GPU: NVML lists none{left}"

    def _poller(self) -> _Poller:
        # atomic under the interpreter's lock, which a fork leaves intact
        return self._pollers.setdefault(os.getpid(), _Poller(self._library, self._polled, self._poll_s))

    def read(self) -> tuple[GpuReading, ...] | None:
        """Return the joules of each GPU so far, of polled ones only inside `watching`; None if one cannot be read."""
        polled = self._poller().sample() if self._polled else []
        if polled is None or not self.gpus:
            return None
        integrals, count_mj = iter(polled), self._library.nvmlDeviceGetTotalEnergyConsumption
        try:
            return tuple(
                next(integrals) if is_polled else GpuReading(*[count_mj(handle) / 1e3] * 3)
                for handle, is_polled in self.gpus
            )
        except self._library.NVMLError:
            return None

    def gained(
        self, before: Sequence[GpuReading], after: Sequence[GpuReading], duration_s: float, pue: float = 1.0
    ) -> Component | None:
        """Return the sum over the GPUs between two readings, times `pue`; None if a counter went backwards.

        Counters do that when the driver is reloaded. The bounds include one counter update at the edges and, for polled power, NVIDIA's
        5% and changes between samples. The error of a counter is not published: neither bound has it. Both readings must be of the same
        process and, for polled GPUs, inside the same `watching`.
        """
        if not self.gpus or not len(self.gpus) == len(before) == len(after):
            return None
        method, times = ("measured:nvml", "") if pue == 1 else ("modelled:nvml-pue@1", " times PUE")
        scope = "1 GPU, all its processes" if len(before) == 1 else f"{len(before)} GPUs, all their processes"
        scope += " and MIG instances" if self._mig else ""
        counted = "NVML energy counter", f"1 mJ, {_UPDATE_S:g} s"
        integrated = f"NVML power polled every {self._poll_s:g} s, accurate to 5%", f"1 mW, {self._poll_s:g} s"
        parts = []
        for (_, is_polled), first, last in zip(self.gpus, before, after, strict=True):
            gain_j = last.value_j - first.value_j
            if gain_j < 0:
                return None
            lag_j = gain_j * _UPDATE_S / max(duration_s, _UPDATE_S)
            low_j = min(gain_j, max(0.0, last.low_j - first.low_j - lag_j))  # min and max because of rounding
            high_j = max(gain_j, last.high_j - first.high_j + lag_j)
            source, resolution = integrated if is_polled else counted
            parts.append(Component(gain_j, low_j, high_j, method, source + times, scope, resolution) * pue)
        return functools.reduce(operator.add, parts)

    def watching(self) -> AbstractContextManager[None]:
        """Poll the GPUs that have no counter during a `with` block; blocks nest and overlap, also across threads."""
        return self._poller().watching() if self._polled else nullcontext()
