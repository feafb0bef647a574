#!/usr/bin/env python3
"""Check the energy counters of the GPUs against their power, polled 20 times a second, and print both as Markdown.

    scripts/check_gpu_meter.py [--seconds 60]

First under load, matrix products in TensorFlow on every GPU, then idle. The exit code is 1 where a counter and the integrated power
differ by more than 5%, else 0, also on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from environment import argument_parser, describe, enter
from tables import print_head, print_row

if TYPE_CHECKING:
    from joulecache.pipelines.energy.nvml import Nvml

POLL_S, TOLERANCE, SIDE = 0.05, 0.05, 4096
SETTLE_S = 5.0  # before a phase: from Ampere on a power reading is the mean of the last second
RUNNING = "running"


def main(seconds: float) -> int:
    """Print both phases; return the exit code."""
    from joulecache.pipelines.energy.nvml import Nvml

    nvml = Nvml()
    if not nvml.names:
        print(nvml.problem)
        return 0
    import pynvml

    driver = pynvml.nvmlSystemGetDriverVersion()
    print(f"{', '.join(nvml.names)}, driver {driver}; {describe('nvidia-ml-py', 'tensorflow')}\n")
    figures = ("counter, J", "integrated power, J", "ratio", f"within {TOLERANCE:.0%}")
    print_head("GPU", f"{seconds:g} s of", *figures, text_columns=2)
    agreed = []
    with load(2 * SETTLE_S + seconds) as problem:
        if not problem:
            agreed += compare(nvml, "load", seconds)
    agreed += compare(nvml, "idle", seconds)
    if problem:
        print(f"\nNo load: {problem}")
    return 0 if all(agreed) else 1


def compare(nvml: Nvml, phase: str, seconds: float, settle_s: float = SETTLE_S) -> list[bool]:
    """Measure all GPUs both ways and print a row for each; return which of those with a counter agree."""
    time.sleep(settle_s)
    with nvml.watching():
        before, joules = nvml.read(), integrate([handle for handle, _ in nvml.gpus], seconds)
        after = nvml.read()
    if before is None or after is None:
        print_row("all", phase, "cannot be read", "", "", "no")
        return [False]
    agreed = []
    for (_, is_polled), name, first, last, integral_j in zip(nvml.gpus, nvml.names, before, after, joules, strict=True):
        if is_polled:
            print_row(name, phase, "has none", f"{integral_j:.1f}", "", "")
            continue
        counter_j = last.value_j - first.value_j
        ratio = counter_j / integral_j if integral_j else math.inf
        agreed.append(abs(ratio - 1) <= TOLERANCE)
        verdict = "yes" if agreed[-1] else "no"
        print_row(name, phase, f"{counter_j:.1f}", f"{integral_j:.1f}", f"{ratio:.3f}", verdict)
    return agreed


def integrate(handles: Sequence[Any], seconds: float) -> list[float]:
    """Return the joules of each GPU over some seconds from now, by the trapezoidal rule."""
    import pynvml

    joules, last = [0.0] * len(handles), None
    end = time.monotonic() + seconds
    while last is None or last[0] < end:
        if last:
            time.sleep(min(POLL_S, max(0.0, end - time.monotonic())))
        now = time.monotonic(), [pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3 for handle in handles]
        if last:
            for gpu, powers_w in enumerate(zip(last[1], now[1], strict=True)):
                joules[gpu] += (now[0] - last[0]) * sum(powers_w) / 2
        last = now
    return joules


@contextmanager
def load(limit_s: float) -> Iterator[str]:
    """Keep the GPUs busy during the block; yield why that is not possible, else "".

    A child process does so, since idle GPUs should not have a CUDA context. It ends by itself after `limit_s` of work.
    """
    command = [sys.executable, __file__, "--load", str(limit_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        try:
            yield "" if line == RUNNING else line or f"the process that loads them ended with {process.wait()}"
        finally:
            process.terminate()


def burn(seconds: float) -> None:
    """Multiply matrices on all GPUs for some seconds; print first that it started, or why it cannot."""
    import tensorflow as tf

    gpus = [gpu.name for gpu in tf.config.list_logical_devices("GPU")]
    if not gpus:
        cuda = "with" if tf.test.is_built_with_cuda() else "without"
        remedy = "`pip install tensorflow[and-cuda]` installs the libraries"
        print(f"TensorFlow {tf.__version__}, built {cuda} CUDA, sees no GPU: {remedy}")
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
        if not running:  # the first round also loads libraries
            running, end = True, time.monotonic() + seconds
            print(RUNNING, flush=True)


def positive(text: str) -> float:
    """Parse a number of seconds above 0."""
    if not 0 < (seconds := float(text)) < math.inf:
        raise ValueError(text)
    return seconds


if __name__ == "__main__":
    enter()
    parser = argument_parser(__doc__)
    parser.add_argument("--seconds", type=positive, default=60.0, help="of each phase")
    parser.add_argument("--load", type=positive, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load:
        burn(given.load)
    else:
        sys.exit(main(given.seconds))
