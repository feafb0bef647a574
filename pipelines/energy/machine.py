"""What the whole machine has done since it booted: processor time, stolen time, pressure stalls (Linux)."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from joulecache.pipelines.energy.measurement import Contamination
from joulecache.pipelines.energy.process_tree import TICK_S

_PROC = Path("/proc")


@dataclass(frozen=True)
class MachineUse:
    """Seconds since boot; None where this kernel does not say. `Contamination` has the same fields for a window."""

    machine_cpu_s: float | None
    steal_s: float | None
    cpu_stall_s: float | None
    memory_stall_s: float | None
    io_stall_s: float | None


def machine_use(proc: Path = _PROC) -> MachineUse:
    """Return what the machine has done so far, from `/proc/stat` and `/proc/pressure`."""
    busy_s = steal_s = None
    with suppress(OSError, ValueError, IndexError):
        with open(proc / "stat", "rb") as file:  # one line: the file is long on large machines
            user, nice, system, _, _, irq, softirq, steal, *_ = map(int, file.readline().split()[1:])
        # user includes guests; waiting for a disk is idle time
        busy_s, steal_s = (user + nice + system + irq + softirq) * TICK_S, steal * TICK_S
    return MachineUse(busy_s, steal_s, *(_stall_s(proc / "pressure" / name) for name in ("cpu", "memory", "io")))


def _stall_s(path: Path) -> float | None:
    """Return the time during which at least one task stalled; None where the kernel does not account for pressure."""
    with suppress(OSError, UnicodeDecodeError):
        if found := re.search(r"^some .*total=(\d+)$", path.read_text("ascii"), re.MULTILINE):
            return int(found[1]) / 1e6
    return None


def contamination(before: MachineUse, after: MachineUse, duration_s: float) -> Contamination:
    """Return what the machine did between two readings."""

    def gain(name: str) -> float | None:
        first, last = getattr(before, name), getattr(after, name)
        return None if first is None or last is None else max(0.0, last - first)

    processors = os.cpu_count() or 1
    return Contamination(
        capacity_s=processors * duration_s,
        resolution_s=processors * TICK_S,
        machine_cpu_s=gain("machine_cpu_s"),
        steal_s=gain("steal_s"),
        cpu_stall_s=gain("cpu_stall_s"),
        memory_stall_s=gain("memory_stall_s"),
        io_stall_s=gain("io_stall_s"),
    )
