#!/usr/bin/env python3
"""Print the cost of the meter and the accuracy of its counts, as Markdown.

    scripts/bench_meter.py

Takes about 2 minutes; nothing else should run. Times are medians, with the worst of 20 next to them. Counts are ratios to what
the kernel reports of the same processes, or to the same work done differently.
"""

from __future__ import annotations

import os
import random
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from environment import argument_parser, describe, enter, run_python
from tables import print_head, print_row

import joulecache as jc

if TYPE_CHECKING:
    from joulecache.pipelines.energy.nvml import Nvml

BURN = "import time\nwhile time.process_time() < {}: pass"
POLLED_S = 30
WINDOWS, WARM_UP, BEST_OF = 220, 20, 20
BATCHES = 20_000


def main() -> None:
    """Print all parts."""
    meter = jc.Meter()
    print(describe("codecarbon", "psutil", meter=meter))
    print_construction()
    print_windows(meter)
    print_polling()
    print_counting(meter)
    print_parallel(meter)
    print_others()
    print_timing(meter)


CONSTRUCT = """
import time
at = time.perf_counter()
from joulecache.pipelines import Meter
Meter
imported = time.perf_counter()
Meter({0})
first = time.perf_counter()
Meter({0})
print(imported - at, first - imported, time.perf_counter() - first)
"""


def print_construction() -> None:
    """Print the time to make a meter, in fresh processes."""
    print()
    print_head("a meter, ms", "import", "the first", "one more")
    for arguments in ("", "country='FRA'"):
        runs = [run_python(CONSTRUCT.format(arguments)).split() for _ in range(5)]
        times = (statistics.median(float(run[column]) * 1e3 for run in runs) for column in range(3))
        print_row(f"`Meter({arguments})`", *(f"{time_ms:.1f}" for time_ms in times))


def print_windows(meter: jc.Meter) -> None:
    """Print the cost of a window, against reading the clock and getrusage at both ends."""

    def plain() -> None:
        for _ in range(2):
            time.monotonic()
            resource.getrusage(resource.RUSAGE_SELF)
            resource.getrusage(resource.RUSAGE_CHILDREN)

    def window() -> None:
        with meter.window("empty"):
            pass

    print()
    print_head("opening and closing a window", "median, us", f"worst of {BEST_OF}")
    print_row("reading clock and getrusage, twice", *times_us(plain))
    print_row("no child processes", *times_us(window))
    with children(8):
        print_row("8 live children", *times_us(window))
        with threads(64):
            print_row("8 live children, 64 more threads", *times_us(window))


@contextmanager
def children(count: int) -> Iterator[None]:
    """Keep some idle child processes during the block."""
    started = [subprocess.Popen(["sleep", "60"]) for _ in range(count)]
    try:
        yield
    finally:
        for child in started:
            child.kill()
            child.wait()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Keep some idle threads during the block."""
    stop = threading.Event()
    for _ in range(count):
        threading.Thread(target=stop.wait).start()
    try:
        yield
    finally:
        stop.set()


def times_us(act: Callable[[], None]) -> tuple[str, str]:
    """Return the median time of a call and the worst of 20, each in microseconds."""
    measured = []
    for _ in range(WINDOWS):
        at = time.perf_counter()
        act()
        measured.append((time.perf_counter() - at) * 1e6)
    warm = measured[WARM_UP:]
    worst = statistics.median(max(warm[start : start + BEST_OF]) for start in range(0, len(warm), BEST_OF))
    return f"{statistics.median(warm):.0f}", f"{worst:.0f}"


def print_polling() -> None:
    """Print the cost of the thread that polls GPUs without an energy counter."""
    from joulecache.pipelines.energy.nvml import Nvml

    nvml, what = Nvml(poll_s=1.0), "the GPUs here"
    if not is_polled(nvml):
        nvml, what = Nvml(library=stand_in_for_nvml(), poll_s=1.0), "a stand-in for NVML: without the driver's own work"
    with nvml.watching():
        nvml.read()
        at, before_s = time.monotonic(), time.process_time()
        time.sleep(POLLED_S)
        share = (time.process_time() - before_s) / (time.monotonic() - at)
    print(f"\nPolling at 1 Hz ({what}): {share:.3%} of a core. Nothing else in the meter samples.", flush=True)


def is_polled(nvml: Nvml) -> bool:
    """Return whether some GPU has no energy counter."""
    return any(polled for _, polled in nvml.gpus)


def stand_in_for_nvml() -> Any:
    """Return a stand-in for pynvml with one GPU that has no energy counter."""
    import pynvml

    def refuse(handle: int) -> float:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    return SimpleNamespace(
        **vars(pynvml)
        | {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: 1,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetUUID": lambda handle: "GPU-0",
            "nvmlDeviceGetName": lambda handle: "stand-in",
            "nvmlDeviceGetTotalEnergyConsumption": refuse,
            "nvmlDeviceGetPowerUsage": lambda handle: random.randint(50_000, 60_000),
        }
    )


def print_counting(meter: jc.Meter) -> None:
    """Compare the CPU time of a window with what wait4 reports of every child, and nested windows with their sum."""
    from joulecache.pipelines.energy.cross_check import cross_checked

    used_s = 0.0
    with cross_checked(None, 1.0) as check, meter.window("children") as window:
        for _ in range(20):
            for child in [burn(0.2) for _ in range(2)]:
                _, _, usage = os.wait4(child.pid, 0)
                child.returncode = 0
                used_s += usage.ru_utime + usage.ru_stime
    energy, codecarbon = window.energy, check.result
    print(f"\n40 children of 0.2 s: the window counts {energy.cpu_s / used_s:.1%} of their CPU time: {energy}")
    assert codecarbon is not None
    ratio = energy.total_j / codecarbon.energy_j
    print(f"CodeCarbon: {codecarbon.energy_j:.1f} J ({codecarbon.method}), joulecache: {ratio:.2f} times that")
    with meter.window("whole") as whole:
        parts = []
        for name in ("a", "b", "c"):
            with meter.window(name) as part:
                spin(1.0)
            parts.append(part.energy)
    share = sum(part.active_j for part in parts) / whole.energy.active_j
    print(f"Three nested windows of 1 s: {share:.2%} of the active energy of the window around them", flush=True)


def print_parallel(meter: jc.Meter) -> None:
    """Compare 8 CPU-seconds in one process with 8 in two parallel processes."""
    active_j: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(3):
        for processes in random.Random(turn).sample([1, 2], 2):
            with meter.window(f"{processes} processes") as window:
                for child in [burn(8 / processes) for _ in range(processes)]:
                    child.wait()
            active_j[processes].append(window.energy.active_j)
    one, two = (statistics.median(values) for values in active_j.values())
    print(
        f"8 CPU-seconds, active energy: as 1x8 {one:.2f} J, as 2x4 {two:.2f} J, ratio {two / one:.3f} (median of 3)",
        flush=True,
    )


WAIT = """
import time
from joulecache.pipelines import Meter
with Meter().window("waiting") as window:
    time.sleep(3)
print(window.energy.contamination_shares["others"], *window.energy.flags, sep="; ")
"""


def print_others() -> None:
    """Print the CPU time of other processes that the meter reports."""
    quiet = run_python(WAIT)
    burner = burn(30)
    busy = run_python(WAIT)
    burner.kill()
    burner.wait()
    print(
        f"Others, seen by a process that waits for 3 s: {quiet.strip()} when quiet, {busy.strip()} next to a busy one"
    )


def print_timing(meter: jc.Meter) -> None:
    """Print the cost of timing the waits for batches in TensorFlow's graph, against the same batches untimed."""
    import tensorflow as tf

    plain = tf.data.Dataset.from_tensors(tf.zeros((64, 32, 32, 3), tf.uint8)).repeat(BATCHES)
    datasets = {"plain": plain, "timed": jc.EnergyCallback(meter).timed(plain)}
    counts = {
        name: tf.function(lambda data=data: data.reduce(0, lambda n, _: n + 1)) for name, data in datasets.items()
    }
    wall_us: dict[str, list[float]] = {name: [] for name in datasets}
    cpu_us: dict[str, list[float]] = {name: [] for name in datasets}
    for turn in range(6):
        for name in random.Random(turn).sample(list(datasets), 2):
            at, cpu_s = time.perf_counter(), time.process_time()
            assert int(counts[name]()) == BATCHES
            if turn:  # the first round traces the graph
                wall_us[name].append((time.perf_counter() - at) / BATCHES * 1e6)
                cpu_us[name].append((time.process_time() - cpu_s) / BATCHES * 1e6)
    wall, cpu = ({name: statistics.median(runs) for name, runs in times.items()} for times in (wall_us, cpu_us))
    print(
        f"Timing the input: {wall['timed']:.1f} us a batch against {wall['plain']:.1f}, CPU {cpu['timed']:.1f} us against "
        f"{cpu['plain']:.1f} (in the graph, {BATCHES:,} batches, median of 5)"
    )


def burn(cpu_s: float) -> subprocess.Popen[bytes]:
    """Start a process that uses some CPU seconds."""
    return subprocess.Popen([sys.executable, "-S", "-c", BURN.format(cpu_s)])


def spin(cpu_s: float) -> None:
    """Use some CPU seconds in this thread."""
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass


if __name__ == "__main__":
    enter()
    argument_parser(__doc__).parse_args()
    main()
