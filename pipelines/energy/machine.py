"""The whole machine: its identity, and its activity since boot: processor time, stolen time, pressure stalls (Linux)."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from joulecache.pipelines.energy.measurement import Contamination
from joulecache.pipelines.energy.process_tree import TICK_S

_PROC = Path("/proc")


def machine_id(proc: Path = _PROC) -> str:
    """Return an id of the running machine, the same in all its containers: that of its boot, or its name."""
    with suppress(OSError, UnicodeDecodeError):
        return (proc / "sys/kernel/random/boot_id").read_text("ascii").strip()
    return socket.gethostname()


@dataclass(frozen=True)
class MachineUse:
    """The fields of `Contamination` that the kernel counts since boot."""

    machine_cpu_s: float | None
    steal_s: float | None
    cpu_stall_s: float | None
    memory_stall_s: float | None
    io_stall_s: float | None


def machine_use(proc: Path = _PROC) -> MachineUse:
    """Read `/proc/stat` and `/proc/pressure`."""
    busy_s = steal_s = None
    with suppress(OSError, ValueError, IndexError):
        with open(proc / "stat", "rb") as file:  # only one line: the file is long on large machines
            user, nice, system, _, _, irq, softirq, steal, *_ = map(int, file.readline().split()[1:])
        # user includes guests; waiting for a disk is idle time
        busy_s, steal_s = (user + nice + system + irq + softirq) * TICK_S, steal * TICK_S
    return MachineUse(busy_s, steal_s, *(_stall_s(proc / "pressure" / name) for name in ("cpu", "memory", "io")))


def _stall_s(path: Path) -> float | None:
    """Return the time during which some task stalled; None if the kernel does not account for pressure."""
    with suppress(OSError, UnicodeDecodeError):
        if found := re.search(r"^some .*total=(\d+)$", path.read_text("ascii"), re.MULTILINE):
            return int(found[1]) / 1e6
    return None


def contamination(before: MachineUse, after: MachineUse, duration_s: float) -> Contamination:
    """Return the activity between two readings."""

    def gain(name: str) -> float | None:
        first, last = getattr(before, name), getattr(after, name)
        return None if first is None or last is None else max(0.0, last - first)

    processors = os.cpu_count() or 1
    gains = {each.name: gain(each.name) for each in fields(MachineUse)}
    return Contamination(capacity_s=processors * duration_s, resolution_s=processors * TICK_S, **gains)
