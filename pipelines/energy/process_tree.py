"""Resource usage of a process and its descendants: CPU time, memory, bytes read and written (Linux)."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MOST_TRIES = 5

Identity = tuple[int, int]
"""A process: its id, which is reused, and the tick in which it started."""


@dataclass(frozen=True)
class ProcessUse:
    """What one process used; its CPU time includes that of the children it waited for."""

    identity: Identity
    cpu_s: float
    rss_bytes: int


def _read(path: str) -> bytes:
    # open() and decoding cost three times as much, and each process has several files
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, 1 << 16)
    finally:
        os.close(file)


def process_use(pid: int) -> ProcessUse | None:
    """Return what a process used, zombies included; None if there is none."""
    try:
        # fields are counted from the end of the name, which is in parentheses and may contain anything
        words = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    ticks = sum(map(int, words[11:15]))  # utime, stime, cutime, cstime
    return ProcessUse((pid, int(words[19])), ticks * TICK_S, int(words[21]) * _PAGE_BYTES)


def listed_children(pid: int) -> list[int]:
    """Return the children of a process as the kernel lists them."""
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in os.scandir(f"/proc/{pid}/task"):
            with suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, _read(f"{task.path}/children").split())
    return found


def searched_children(pid: int) -> list[int]:
    """Return the children of a process by looking at every process: several ms where there are hundreds."""
    with suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children()]
    return []


find_children = listed_children if Path("/proc/thread-self/children").exists() else searched_children


@dataclass(frozen=True)
class Descendants:
    """CPU time of all descendants of this process, and memory and identities of the living ones."""

    cpu_s: float
    rss_bytes: int
    living: frozenset[Identity]


def descendants(
    also: Iterable[Identity] = (),
    *,
    use_of: Callable[[int], ProcessUse | None] = process_use,
    children_of: Callable[[int], list[int]] = find_children,
) -> Descendants:
    """Return what the descendants of this process used so far; `also` names earlier ones, which may be orphans by now.

    When a parent waits for an ended child, the child's usage moves to the parent's counters: the sum neither loses nor repeats it.
    """
    also = tuple(also)
    for _ in range(_MOST_TRIES):
        waited = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = {use.identity: use for pid, start in also if (use := use_of(pid)) and use.identity == (pid, start)}
        queue = [pid for pid, _ in found]
        with suppress(ChildProcessError):
            # checks for children without reaping any, in 2 us; listing children costs as much for each thread
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            queue.append(os.getpid())
        while queue:
            for pid in children_of(queue.pop()):
                if (use := use_of(pid)) and use.identity not in found:
                    found[use.identity] = use
                    queue.append(pid)
        # not atomic: a child that was waited for meanwhile may be in both or in neither
        if resource.getrusage(resource.RUSAGE_CHILDREN) == waited:
            break
    cpu_s = waited.ru_utime + waited.ru_stime + sum(use.cpu_s for use in found.values())
    return Descendants(cpu_s, sum(use.rss_bytes for use in found.values()), frozenset(found))


def memory_bytes() -> tuple[int, int]:
    """Return the resident bytes of this process: current and peak."""
    # not ru_maxrss: it starts with the high-water mark of the process that started this one
    kib = dict(re.findall(r"(VmHWM|VmRSS):\s*(\d+)", _read("/proc/self/status").decode()))
    return int(kib["VmRSS"]) * 1024, int(kib["VmHWM"]) * 1024


def io_bytes(pids: Iterable[int | str]) -> tuple[int, int] | None:
    """Return the bytes read and written by processes and the children they waited for; None if one is not readable."""
    read_bytes = written_bytes = 0
    try:
        for pid in pids:
            rows = dict(row.split(b": ") for row in _read(f"/proc/{pid}/io").splitlines())
            read_bytes, written_bytes = read_bytes + int(rows[b"rchar"]), written_bytes + int(rows[b"wchar"])
    except OSError:
        return None
    return read_bytes, written_bytes


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Return how many processors this process may use: its affinity or, if less, the quota of its container."""
    affinity = len(os.sched_getaffinity(0))
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError):  # absent, or "max": no quota
            quota, period = (int(word) for name in names for word in (cgroup / name).read_text().split())
            return min(affinity, quota / period) if quota > 0 else affinity
    return affinity
