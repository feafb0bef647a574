"""What a process and its descendants have used so far: CPU seconds, memory, bytes read and written (Linux)."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_KERNEL_LISTS_CHILDREN = Path("/proc/thread-self/children").exists()

Identity = tuple[int, int]
"""A process: its number, which is used again, and the tick in which it was started."""


@dataclass(frozen=True)
class _Stat:
    identity: Identity
    cpu_s: float  # with the children that it has waited for
    rss_bytes: int


def _read(path: str) -> bytes:
    # open() and decoding cost three times as much, and there are several files for each process
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, 1 << 16)
    finally:
        os.close(file)


def _stat(pid: int) -> _Stat | None:
    """Return what /proc says of a process, also of one that has ended but was not waited for; None when it is gone."""
    try:
        # the name stands in brackets and may hold anything: fields are counted from its end
        words = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    ticks = sum(map(int, words[11:15]))  # utime, stime, cutime, cstime
    return _Stat((pid, int(words[19])), ticks * TICK_S, int(words[21]) * _PAGE_BYTES)


def _children(pid: int) -> list[int]:
    """Return the children of a process, one level."""
    found: list[int] = []
    if not _KERNEL_LISTS_CHILDREN:
        # every process of the machine is looked at: several ms where there are hundreds
        with suppress(psutil.NoSuchProcess):
            found += (child.pid for child in psutil.Process(pid).children())
        return found
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in os.scandir(f"/proc/{pid}/task"):
            with suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, _read(f"{task.path}/children").split())
    return found


@dataclass(frozen=True)
class Descendants:
    """All descendants so far: CPU seconds, those of the ended included, and memory and identity of the living."""

    cpu_s: float
    rss_bytes: int
    living: frozenset[Identity]


def descendants(also: Iterable[Identity] = ()) -> Descendants:
    """Return what the descendants of this process have used so far.

    One that ends moves from the living to the waited for, with all that it used, when its parent waits for it: the sum
    neither loses nor repeats it. `also` are those of a window's beginning, which may be orphans by now.
    """
    for _ in range(5):
        waited = resource.getrusage(resource.RUSAGE_CHILDREN)
        stats = {stat.identity: stat for pid, start in also if (stat := _stat(pid)) and stat.identity == (pid, start)}
        queue = [pid for pid, _ in stats]
        with suppress(ChildProcessError):
            # asks for any child without waiting for it: 2 us, where listing the children takes that for every thread
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            queue.append(os.getpid())
        while queue:
            for pid in _children(queue.pop()):
                if (stat := _stat(pid)) and stat.identity not in stats:
                    stats[stat.identity] = stat
                    queue.append(pid)
        # no one instant: a child that was waited for meanwhile may be in both or in neither
        if resource.getrusage(resource.RUSAGE_CHILDREN) == waited:
            break
    cpu_s = waited.ru_utime + waited.ru_stime + sum(stat.cpu_s for stat in stats.values())
    return Descendants(cpu_s, sum(stat.rss_bytes for stat in stats.values()), frozenset(stats))


def memory_bytes() -> tuple[int, int]:
    """Return this process's resident bytes, and the most that it ever had."""
    # not ru_maxrss: that begins with the high-water mark of the process that started this one
    kib = dict(re.findall(r"(VmHWM|VmRSS):\s*(\d+)", _read("/proc/self/status").decode()))
    return int(kib["VmRSS"]) * 1024, int(kib["VmHWM"]) * 1024


def io_bytes(pids: Iterable[int | str]) -> tuple[int, int] | None:
    """Return bytes read and written by processes and the children they waited for; None where one hides them."""
    read_bytes = written_bytes = 0
    try:
        for pid in pids:
            rows = dict(row.split(b": ") for row in _read(f"/proc/{pid}/io").splitlines())
            read_bytes, written_bytes = read_bytes + int(rows[b"rchar"]), written_bytes + int(rows[b"wchar"])
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
