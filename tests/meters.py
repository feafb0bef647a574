"""A meter that records its windows, a stand-in for NVML, and work to meter."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pynvml

from joulecache.pipelines.energy import Meter, Window

THREAD = "joulecache-nvml"
"""The name of the thread that polls power."""
UUIDS = ("GPU-aa11", "GPU-aa22", "GPU-bb33")
NOT_SUPPORTED = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
LOST = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)


class StandIn:
    """An NVML whose GPUs' counters (millijoules) and power (milliwatts) are set by hand; an error there is raised."""

    def __init__(self, *, energy_mj: Any = (), power_mw: Any = (), init: Exception | None = None) -> None:
        self.energy_mj: list[Any] = list(energy_mj)
        self.power_mw: list[Any] = list(power_mw) or [NOT_SUPPORTED] * len(self.energy_mj)
        self.init = init
        self.samples: list[str] = []  # the names of the threads that sampled
        self.gate: threading.Event | None = None  # the polling thread waits for it
        self.at_gate = threading.Event()

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("NVMLError"):
            raise AttributeError(name)
        return getattr(pynvml, name)

    def nvmlInit(self) -> None:
        if self.init:
            raise self.init

    def nvmlDeviceGetCount(self) -> int:
        return len(self.energy_mj)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return f"Stand-in {handle}"

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return UUIDS[handle]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in ("MIG-1", "MIG-2", "MIG-3"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, instance: str) -> int:
        return {"MIG-1": 1, "MIG-2": 1, "MIG-3": 2}[instance]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        return self._given(self.energy_mj[handle])

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        name = threading.current_thread().name
        if self.gate and name == THREAD:
            self.at_gate.set()
            self.gate.wait()
        self.samples.append(name)
        return self._given(self.power_mw[handle])

    def _given(self, value: Any) -> int:
        if isinstance(value, Exception):
            raise value
        return int(value)


class Diary(Meter):
    """A meter that records the names of its windows as they open, and its windows as they close."""

    def __init__(self, country: str | None = None) -> None:
        super().__init__(country=country)
        self.opened: list[str] = []
        self.closed: list[Window] = []

    @contextmanager
    def window(self, name: str) -> Iterator[Window]:
        with super().window(name) as window:
            self.opened.append(name)
            yield window
        self.closed.append(window)

    def left_open(self) -> set[str]:
        return set(Counter(self.opened) - Counter(window.name for window in self.closed))


def burn(cpu_s: float) -> None:
    """Use this thread's processor for some CPU seconds."""
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass
