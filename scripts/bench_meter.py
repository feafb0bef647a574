#!/usr/bin/env python3
"""Print what the meter itself costs, and how well it counts, as Markdown.

    scripts/bench_meter.py

Takes about 2 minutes; nothing else should run. Times are medians, with the worst of 20 beside them; what is counted is given
as a ratio to what the kernel says of the same processes, or of the same work done in another way.
"""

import os
import platform
import random
import statistics
import subprocess
import sys
import threading
import time
from importlib import metadata

from environment import enter

BURN = "import time\nwhile time.process_time() < {}: pass"
POLLED_S = 30


def main() -> None:
    """Print all tables."""
    from joulecache.pipelines import Meter

    meter = Meter()
    cores = len(os.sched_getaffinity(0))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("joulecache", "codecarbon", "psutil"))
    passport = meter.passport()
    print(f"{passport['cpu']}, {cores} CPUs, Python {platform.python_version()}, {versions}; {passport['method']}")
    print_construction()
    print_windows(meter)
    print_polling()
    print_counting(meter)
    print_shape(meter)
    print_others(meter)
    print_timing(meter)


def print_construction() -> None:
    """Measure what it takes to make a meter, in fresh processes."""
    code = """
import time
at = time.perf_counter()
from joulecache.pipelines import Meter
Meter
imported = time.perf_counter()
Meter({})
first = time.perf_counter()
Meter({})
print(imported - at, first - imported, time.perf_counter() - first)
"""
    print("\n| a meter, ms | import | the first | one more |\n|---|---:|---:|---:|")
    for arguments in ("", "country='FRA'"):
        runs = [output(code.format(arguments, arguments)).split() for _ in range(5)]
        middles = (statistics.median(float(run[place]) * 1e3 for run in runs) for place in range(3))
        print(f"| `Meter({arguments})` | {' | '.join(f'{middle:.1f}' for middle in middles)} |", flush=True)


def print_windows(meter) -> None:
    """Measure opening and closing a window, against reading the clock and getrusage at both edges."""
    import resource

    def plain() -> None:
        for _ in range(2):
            time.monotonic(), resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)

    def window() -> None:
        with meter.window("empty"):
            pass

    print("\n| opening and closing a window | median, us | worst of 20 |\n|---|---:|---:|")
    print(f"| reading clock and getrusage, twice | {row(plain)} |")
    print(f"| no child processes | {row(window)} |")
    children = [subprocess.Popen(["sleep", "60"]) for _ in range(8)]
    print(f"| 8 live children | {row(window)} |")
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(64)]
    for thread in threads:
        thread.start()
    print(f"| 8 live children, 64 more threads | {row(window)} |", flush=True)
    stop.set()
    for child in children:
        child.kill()
        child.wait()


def row(act) -> str:
    """Return the median and the worst of the best 20 of 200, in microseconds."""
    times_us = []
    for _ in range(220):
        at = time.perf_counter()
        act()
        times_us.append((time.perf_counter() - at) * 1e6)
    warm = times_us[20:]
    worst = statistics.median(max(warm[place : place + 20]) for place in range(0, 200, 20))
    return f"{statistics.median(warm):.0f} | {worst:.0f}"


def print_polling() -> None:
    """Measure the thread that polls GPUs without a counter, on a stand-in for NVML: the thread's own cost."""
    from joulecache.pipelines.energy.nvml import Nvml

    nvml = Nvml(poll_s=1.0)
    what = "the GPUs here"
    if not nvml.names or not nvml._polled:
        nvml, what = Nvml(library=made_nvml(), poll_s=1.0), "a stand-in for NVML: without the driver's own work"
    with nvml.watching():
        nvml.read()
        at, before_s = time.monotonic(), time.process_time()
        time.sleep(POLLED_S)
        share = (time.process_time() - before_s) / (time.monotonic() - at)
    print(f"\nPolling at 1 Hz ({what}): {share:.3%} of a core. Nothing else in the meter samples.", flush=True)


def made_nvml():
    """Return a stand-in for pynvml with one GPU that has no energy counter."""
    import pynvml

    class Made:
        NVMLError = pynvml.NVMLError

        def __getattr__(self, name):
            return getattr(pynvml, name)

        def nvmlInit(self):
            pass

        def nvmlDeviceGetCount(self):
            return 1

        def nvmlDeviceGetHandleByIndex(self, index):
            return index

        def nvmlDeviceGetUUID(self, handle):
            return "GPU-0"

        def nvmlDeviceGetName(self, handle):
            return "made"

        def nvmlDeviceGetTotalEnergyConsumption(self, handle):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        def nvmlDeviceGetPowerUsage(self, handle):
            return random.randint(50_000, 60_000)

    return Made()


def print_counting(meter) -> None:
    """Compare what a window counts with what wait4 says of every child, and parts with their whole."""
    from joulecache.pipelines.energy.cross_check import cross_checked

    used_s = 0.0
    with cross_checked(None, 1.0) as theirs, meter.window("children") as window:
        for _ in range(20):
            for child in [subprocess.Popen([sys.executable, "-S", "-c", BURN.format(0.2)]) for _ in range(2)]:
                _, _, usage = os.wait4(child.pid, 0)
                child.returncode = 0
                used_s += usage.ru_utime + usage.ru_stime
    ours, other = window.energy, theirs.result
    print(f"\n40 children of 0.2 s: {ours.cpu_s / used_s:.1%} of their CPU time is in the window: {ours}")
    print(
        f"CodeCarbon beside it: {other.energy_j:.1f} J ({other.method}), ours is {ours.total_j / other.energy_j:.2f} times that"
    )
    with meter.window("whole") as whole:
        parts = []
        for name in ("a", "b", "c"):
            with meter.window(name) as part:
                spin(1.0)
            parts.append(part.energy)
    share = sum(part.active_j for part in parts) / whole.energy.active_j
    print(f"Three nested windows of 1 s: {share:.2%} of the active energy of the one around them", flush=True)


def print_shape(meter) -> None:
    """Compare 8 CPU-seconds one after the other with the same in two processes at once."""
    found = {}
    for turn in range(3):
        for processes in random.Random(turn).sample([1, 2], 2):
            with meter.window(f"{processes} processes") as window:
                code = BURN.format(8 / processes)
                children = [subprocess.Popen([sys.executable, "-S", "-c", code]) for _ in range(processes)]
                for child in children:
                    child.wait()
            found.setdefault(processes, []).append(window.energy)
    one, two = (statistics.median(energy.active_j for energy in found[count]) for count in (1, 2))
    print(
        f"8 CPU-seconds, active energy: as 1x8 {one:.2f} J, as 2x4 {two:.2f} J, ratio {two / one:.3f} (median of 3)",
        flush=True,
    )


def print_others(meter) -> None:
    """Say what the meter sees of work that is not its own."""
    code = """
import time
from joulecache.pipelines import Meter
with Meter().window("waiting") as window:
    time.sleep(3)
print(window.energy.contamination_shares["others"], *window.energy.flags, sep="; ")
"""
    quiet = output(code)
    burner = subprocess.Popen([sys.executable, "-S", "-c", BURN.format(30)])
    busy = output(code)
    burner.kill()
    burner.wait()
    print(
        f"Others, as a process sees them that waits for 3 s: {quiet.strip()} when quiet, {busy.strip()} beside one that burns"
    )


def print_timing(meter) -> None:
    """Measure what counting the waits for batches costs, in TensorFlow's graph, against the same batches untimed."""
    import tensorflow as tf

    from joulecache.pipelines import EnergyCallback

    batches = 20_000
    bare = tf.data.Dataset.from_tensors(tf.zeros((64, 32, 32, 3), tf.uint8)).repeat(batches)
    ways = {"bare": bare, "timed": EnergyCallback(meter).timed(bare)}
    counts = {name: tf.function(lambda data=data: data.reduce(0, lambda n, _: n + 1)) for name, data in ways.items()}
    found = {name: [] for name in ways}
    for turn in range(6):
        for name in random.Random(turn).sample(list(ways), 2):
            at, cpu_s = time.perf_counter(), time.process_time()
            assert int(counts[name]()) == batches
            if turn:  # the first traces
                found[name].append(
                    [
                        (now - before) / batches * 1e6
                        for now, before in ((time.perf_counter(), at), (time.process_time(), cpu_s))
                    ]
                )
    wall, cpu = (
        {name: statistics.median(run[place] for run in runs) for name, runs in found.items()} for place in (0, 1)
    )
    print(
        f"Timing the input: {wall['timed']:.1f} us a batch against {wall['bare']:.1f}, CPU {cpu['timed']:.1f} us against {cpu['bare']:.1f} "
        f"(in the graph, {batches:,} batches, median of 5)"
    )


def spin(cpu_s: float) -> None:
    """Use so many CPU seconds in this thread."""
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass


def output(code: str) -> str:
    """Run Python code in a process of its own and return what it prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    enter()
    if sys.argv[1:]:
        sys.exit(__doc__)
    main()
