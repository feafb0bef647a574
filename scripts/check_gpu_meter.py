#!/usr/bin/env python3
"""Check the energy counters of the GPUs against their power, polled 20 times a second and integrated, and print both as Markdown.

    scripts/check_gpu_meter.py [--seconds 60]

First under load, matrix products in TensorFlow on every GPU, then idle. Exit code 1 where counter and integral differ by more than 5%, else
0: also where there is no GPU to check, which is then said.
"""

import argparse
import math
import os
import platform
import subprocess
import sys
import time
from importlib import metadata

from environment import enter

POLL_S, TOLERANCE, SIDE = 0.05, 0.05, 4096
SETTLE_S = 5  # before a phase: from Ampere on a power reading is the mean of the last second


def main(seconds: float) -> int:
    """Print both phases; return the exit code."""
    from joulecache.pipelines.energy.nvml import Nvml

    nvml = Nvml()
    if not nvml.names:
        print(nvml.problem)
        return 0
    import pynvml

    names = ("joulecache", "nvidia-ml-py", "tensorflow")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    print(
        f"{', '.join(nvml.names)}, driver {pynvml.nvmlSystemGetDriverVersion()}, Python {platform.python_version()}, {versions}\n"
    )
    print(
        f"| GPU | {seconds:g} s of | counter, J | integrated power, J | ratio | within {TOLERANCE:.0%} |\n|---|---|---:|---:|---:|---|"
    )
    right = []
    with Load(2 * SETTLE_S + seconds) as load:
        if not load.problem:
            right += compare(nvml, "load", seconds)
    right += compare(nvml, "idle", seconds)
    if load.problem:
        print(f"\nNo load: {load.problem}")
    return 0 if all(right) else 1


def compare(nvml, phase: str, seconds: float, settle_s: float = SETTLE_S) -> list[bool]:
    """Measure all GPUs in both ways, print a row for each, and return which agree."""
    time.sleep(settle_s)
    with nvml.watching():
        before, joules = nvml.read(), integrate([handle for handle, _ in nvml.gpus], seconds)
        after = nvml.read()
    if before is None or after is None:
        print(f"| all | {phase} | cannot be read | | | no |", flush=True)
        return [False]
    right = []
    for (_, is_polled), name, first, last, integral_j in zip(nvml.gpus, nvml.names, before, after, joules, strict=True):
        if is_polled:
            print(f"| {name} | {phase} | has none | {integral_j:.1f} | | |", flush=True)
            continue
        counter_j = last.value_j - first.value_j
        ratio = counter_j / integral_j if integral_j else math.inf
        right.append(abs(ratio - 1) <= TOLERANCE)
        said = "yes" if right[-1] else "no"
        print(f"| {name} | {phase} | {counter_j:.1f} | {integral_j:.1f} | {ratio:.3f} | {said} |", flush=True)
    return right


def integrate(handles: list, seconds: float) -> list[float]:
    """Return the joules of each GPU in so many seconds from now, by trapezoids."""
    import pynvml

    joules, last = [0.0] * len(handles), None
    end = time.monotonic() + seconds
    while last is None or last[0] < end:
        if last:
            time.sleep(min(POLL_S, max(0.0, end - time.monotonic())))
        now = time.monotonic(), [pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3 for handle in handles]
        if last:
            for place, powers in enumerate(zip(last[1], now[1], strict=True)):
                joules[place] += (now[0] - last[0]) * sum(powers) / 2
        last = now
    return joules


class Load:
    """Keep the GPUs busy during a `with` block, in a process of its own: idle is to be without a CUDA context."""

    def __init__(self, at_most_s: float) -> None:
        self._command = [sys.executable, __file__, "--load", str(at_most_s)]  # it ends alone, should we be killed

    def __enter__(self) -> "Load":
        """Start it, and wait until it runs or says what is wrong."""
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2")}
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True, env=environment)
        said = self._process.stdout.readline().strip()
        self.problem = (
            "" if said == "running" else said or f"the process that makes it ended with {self._process.wait()}"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._process.stdout.close()


def burn(seconds: float) -> None:
    """Multiply matrices on all GPUs for so many seconds; first say that this runs, or why it cannot."""
    import tensorflow as tf

    gpus = [gpu.name for gpu in tf.config.list_logical_devices("GPU")]
    if not gpus:
        built = "with" if tf.test.is_built_with_cuda() else "without"
        print(
            f"TensorFlow {tf.__version__}, built {built} CUDA, sees no GPU: `pip install tensorflow[and-cuda]` brings the libraries"
        )
        return
    matrices = []
    for gpu in gpus:
        with tf.device(gpu):
            matrices.append(tf.random.normal([SIDE, SIDE]))
    running, end = False, time.monotonic() + seconds
    while time.monotonic() < end:
        sums = []
        for matrix in matrices:  # the GPUs work at the same time: only the sums are waited for
            for _ in range(20):
                product = matrix @ matrix
            sums.append(tf.reduce_sum(product))
        for total in sums:
            total.numpy()
        if not running:  # the first round also loads what it needs
            running, end = True, time.monotonic() + seconds
            print("running", flush=True)


def positive(text: str) -> float:
    """Return a number of seconds above 0."""
    if not 0 < (seconds := float(text)) < math.inf:
        raise ValueError(text)
    return seconds


if __name__ == "__main__":
    enter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=positive, default=60.0, help="of each phase")
    parser.add_argument("--load", type=positive, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load:
        burn(given.load)
    else:
        sys.exit(main(given.seconds))
