"""GPU energy against a hand-driven stand-in for NVML, whose errors are pynvml's own, and brute-force arithmetic."""

from __future__ import annotations

import math
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meters import LOST, NOT_SUPPORTED, THREAD, StandIn
from processes import wait_until

from joulecache.pipelines.energy import Component
from joulecache.pipelines.energy.nvml import GpuReading, Nvml, PowerIntegral

NEVER_S = 1000.0  # polls that no test waits for: then only read() samples
joules = st.floats(0, 1e12)


def polled(*power_w: float) -> StandIn:
    return StandIn(energy_mj=[NOT_SUPPORTED] * len(power_w), power_mw=[watts * 1000 for watts in power_w])


def read(nvml: Nvml) -> tuple[GpuReading, ...]:
    readings = nvml.read()
    assert readings is not None
    return readings


def gain(
    nvml: Nvml, before: Sequence[GpuReading], after: Sequence[GpuReading], duration_s: float, pue: float = 1.0
) -> Component:
    found = nvml.gained(before, after, duration_s, pue)
    assert found is not None
    return found


def threads() -> int:
    return sum(thread.name == THREAD for thread in threading.enumerate())


class Stopwatch:
    """The readings at both edges of a block, and the least and most seconds that lie between them."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml

    def __enter__(self) -> Stopwatch:
        self._outer = time.monotonic()
        self.before = read(self._nvml)
        self._inner = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.least_s = time.monotonic() - self._inner
        self.after = read(self._nvml)
        self.most_s = time.monotonic() - self._outer

    def holds(self, watts: float, bound: str, gpu: int = 0) -> bool:
        """Return whether a bound gained what so many watts give, but for rounding."""
        gain_j: float = getattr(self.after[gpu], bound) - getattr(self.before[gpu], bound)
        return watts * self.least_s * (1 - 1e-9) <= gain_j <= watts * self.most_s * (1 + 1e-9)


@pytest.fixture(autouse=True)
def all_visible(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield
    wait_until(lambda: threads() == 0)


# ---- counters ----


def test_counters_of_two_gpus_are_summed() -> None:
    library = StandIn(energy_mj=[5_000, 7_000_000])
    nvml = Nvml(library)
    assert (nvml.names, nvml.problem, nvml.update_s) == (("Stand-in 0", "Stand-in 1"), "", 0.1)
    with nvml.watching():
        assert threads() == 0  # only polled power needs one
        before = read(nvml)
        assert before == (GpuReading(5, 5, 5), GpuReading(7000, 7000, 7000))
        library.energy_mj = [15_000, 7_030_001]
        gained = gain(nvml, before, read(nvml), 20.0)
    assert gained.value_j == pytest.approx(10 + 30.001)
    assert gained.low_j == pytest.approx(40.001 * (1 - 0.1 / 20))
    assert gained.high_j == pytest.approx(40.001 * (1 + 0.1 / 20))
    provenance = gained.method, gained.source, gained.scope, gained.resolution
    assert provenance == ("measured:nvml", "NVML energy counter", "2 GPUs, all their processes", "1 mJ, 0.1 s")


@given(st.lists(st.tuples(joules, joules), min_size=1, max_size=8), st.floats(0, 1e6), st.floats(1, 3))
def test_gain_is_the_sum_and_its_bounds_one_update(
    pairs: list[tuple[float, float]], duration_s: float, pue: float
) -> None:
    nvml = Nvml(StandIn(energy_mj=[0] * len(pairs)))
    before = tuple(GpuReading(start, start, start) for start, _ in pairs)
    after = tuple(GpuReading(start + gain, start + gain, start + gain) for start, gain in pairs)
    gained = gain(nvml, before, after, duration_s, pue)
    total_j = pue * sum(last.value_j - first.value_j for first, last in zip(before, after, strict=True))
    # a whole update hides at the edges: of a window shorter than one, all that was gained
    hidden = min(1.0, 0.1 / duration_s) if duration_s else 1.0
    found = gained.value_j, gained.low_j, gained.high_j
    expected = total_j, total_j * (1 - hidden), total_j * (1 + hidden)
    assert found == pytest.approx(expected, rel=1e-9, abs=max(1e-9, 1e-9 * total_j))
    assert gained.method == ("measured:nvml" if pue == 1 else "modelled:nvml-pue@1")
    assert gained.source == "NVML energy counter" + (" times PUE" if pue > 1 else "")


def test_rounding_of_long_sums_does_not_swap_bounds() -> None:
    nvml = Nvml(StandIn(energy_mj=[0]))
    before, bit_j = (GpuReading(1, 1, 1),), 2.0**-50
    for value_j, low_j, high_j in ((1, 1 + bit_j, 1), (1 + bit_j, 1, 1)):
        gained = gain(nvml, before, (GpuReading(value_j, low_j, high_j),), 1e9)
        assert gained.low_j <= gained.value_j == value_j - 1 <= gained.high_j


def test_backward_counter_and_other_gpus_are_not_measured() -> None:
    library = StandIn(energy_mj=[5_000, 5_000])
    nvml = Nvml(library)
    before = read(nvml)
    library.energy_mj = [9_000_000, 4_999]  # what the other one gained does not hide it
    assert nvml.gained(before, read(nvml), 1.0) is None
    assert nvml.gained(before, before, 1.0) is not None
    assert nvml.gained(before, before[:1], 1.0) is None
    assert nvml.gained(before[:1], before[:1], 1.0) is None
    assert nvml.gained((), (), 1.0) is None


def test_a_counter_that_fails_once_returns_none() -> None:
    library = StandIn(energy_mj=[1, 2])
    nvml = Nvml(library)
    library.energy_mj[1] = LOST
    assert nvml.read() is None
    library.energy_mj[1] = 3
    assert nvml.read() is not None


# ---- polled power ----


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1000)), max_size=20))
def test_integral_is_the_trapezoids(steps: list[tuple[float, float]]) -> None:
    integral = PowerIntegral()
    times = [math.fsum(span for span, _ in steps[: place + 1]) for place in range(len(steps))]
    found = [integral.reading]
    for time_s, (_, power_w) in zip(times, steps, strict=True):
        integral.add(time_s, power_w)
        found.append(integral.reading)
    for earlier, later in pairwise(found):
        assert earlier.value_j <= later.value_j
        assert earlier.low_j <= later.low_j
        assert earlier.high_j <= later.high_j
    powers = [power_w for _, power_w in steps]
    parts = [(times[i + 1] - times[i], powers[i], powers[i + 1]) for i in range(len(steps) - 1)]
    whole = integral.reading
    assert whole.value_j == pytest.approx(sum(span * (one + two) / 2 for span, one, two in parts), abs=1e-6)
    assert whole.low_j == pytest.approx(sum(span * 0.95 * min(one, two) for span, one, two in parts), abs=1e-6)
    assert whole.high_j == pytest.approx(sum(span * 1.05 * max(one, two) for span, one, two in parts), abs=1e-6)


def test_constant_power_is_integrated_between_reads() -> None:
    nvml = Nvml(polled(200, 30), NEVER_S)
    assert (nvml.problem, nvml.update_s) == ("", NEVER_S)
    with nvml.watching(), Stopwatch(nvml) as window:
        time.sleep(0.05)
    for gpu, watts in enumerate((200, 30)):
        assert window.holds(watts, "value_j", gpu)
        assert window.holds(watts * 0.95, "low_j", gpu)
        assert window.holds(watts * 1.05, "high_j", gpu)
    gained = gain(nvml, window.before, window.after, 10.0)
    # constant power has bounds of 5%, and what a lag of 0.1 s hides of 10 s
    assert gained.low_j == pytest.approx(0.94 * gained.value_j)
    assert gained.high_j == pytest.approx(1.06 * gained.value_j)
    assert (gained.method, gained.scope) == ("measured:nvml", "2 GPUs, all their processes")
    assert gained.source == "NVML power polled every 1000 s, accurate to 5%"
    assert gained.resolution == "1 mW, 1000 s"


def test_thread_sees_power_between_reads() -> None:
    library = polled(100)
    nvml = Nvml(library, 0.001)
    with nvml.watching(), Stopwatch(nvml) as window:
        for watts in (900, 100):
            library.power_mw[0] = watts * 1000
            library.samples.clear()
            wait_until(lambda: len(library.samples) >= 5)
    value_j, high_j = (getattr(window.after[0], b) - getattr(window.before[0], b) for b in ("value_j", "high_j"))
    assert value_j > 100 * window.most_s
    assert high_j < 900 * 1.05 * window.most_s


def test_counters_and_polled_power_are_summed() -> None:
    library = StandIn(energy_mj=[NOT_SUPPORTED, 1_000], power_mw=[50_000, LOST])
    nvml = Nvml(library, NEVER_S)
    with nvml.watching(), Stopwatch(nvml) as window:
        library.energy_mj[1] = 3_000
        time.sleep(0.01)
    assert window.holds(50, "value_j")
    assert (window.before[1], window.after[1]) == (GpuReading(1, 1, 1), GpuReading(3, 3, 3))
    gained = gain(nvml, window.before, window.after, 1.0)
    assert gained.value_j == pytest.approx(2 + window.after[0].value_j)
    assert gained.source == "NVML energy counter; NVML power polled every 1000 s, accurate to 5%"
    assert gained.resolution == "1 mJ, 0.1 s; 1 mW, 1000 s"


def test_failed_samples_are_spanned_by_the_next() -> None:
    library = polled(100, 10)
    nvml = Nvml(library, 0.001)
    with nvml.watching(), Stopwatch(nvml) as window:
        library.power_mw[0] = LOST
        library.samples.clear()
        wait_until(lambda: library.samples.count(THREAD) >= 10)
        assert nvml.read() is None
        library.power_mw[0] = 100_000
        assert threads() == 1
    assert window.holds(100, "value_j", 0)
    assert window.holds(10, "value_j", 1)


def test_thread_runs_only_while_watching() -> None:
    library = polled(100)
    nvml = Nvml(library, 0.001)
    assert threads() == 0
    assert nvml.read() is None
    with suppress(ZeroDivisionError), nvml.watching():
        wait_until(lambda: library.samples.count(THREAD) >= 3)
        _ = 1 / 0  # it ends with a failing block, too
    wait_until(lambda: threads() == 0)
    assert nvml.read() is None
    library.power_mw[0], seen = 50_000, len(library.samples)
    with nvml.watching(), Stopwatch(nvml) as window:
        wait_until(lambda: len(library.samples) >= seen + 3)  # a new one
    assert window.holds(50, "value_j")  # the time between the two is left out


def test_overlapping_watchers_share_one_thread_and_one_integral() -> None:
    nvml = Nvml(polled(100), 0.005)
    one, two = ExitStack(), ExitStack()
    one.enter_context(nvml.watching())
    with Stopwatch(nvml) as first:
        time.sleep(0.02)
        two.enter_context(nvml.watching())
        assert threads() == 1
        with Stopwatch(nvml) as second, Stopwatch(nvml) as nested:
            time.sleep(0.02)
    one.close()
    assert threads() == 1
    with Stopwatch(nvml) as rest:
        time.sleep(0.02)
    two.close()
    for window in (first, second, nested, rest):
        assert window.holds(100, "value_j")


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # it is what is tested
def test_forked_child_watches_with_its_own_thread() -> None:
    library = polled(100)
    nvml = Nvml(library, 0.001)
    library.gate = threading.Event()

    def child() -> bool:
        library.gate = None
        parents.close()  # what unwinding does
        if nvml.read() is not None or threads():
            return False
        with nvml.watching(), Stopwatch(nvml) as window:
            library.samples.clear()
            wait_until(lambda: library.samples.count(THREAD) >= 3)
        return window.holds(100, "value_j")

    with ExitStack() as parents:
        parents.enter_context(nvml.watching())
        # the polling thread holds its lock there: the child's copy stays locked for ever
        assert library.at_gate.wait(30)
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            os._exit(7 if child() else 1)
        library.gate.set()
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        seen = library.samples.count(THREAD)
        wait_until(lambda: library.samples.count(THREAD) > seen)  # the parent's goes on


# ---- which GPUs ----


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, [0, 1, 2]),
        ("", []),
        (" 2 , 0 ", [2, 0]),
        ("0,2,-1,1", [0, 2]),
        ("0,3,1", [0]),
        ("1,1", [1]),
        ("GPU-bb33", [2]),
        ("GPU-b,GPU-aa1", [2, 0]),
        ("GPU-aa", []),
        ("GPU-cc,0", []),
        ("aa11", []),
        ("MIG-1,MIG-2", [1]),
        ("MIG-3,MIG-1", [2, 1]),
        ("MIG-9,MIG-1", []),
        ("MIG-GPU-bb33/1/0", [2]),
    ],
)
def test_gpus_are_those_that_cuda_sees(
    monkeypatch: pytest.MonkeyPatch, listed: str | None, expected: list[int]
) -> None:
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    nvml = Nvml(StandIn(energy_mj=[1_000, 2_000, 3_000]))
    assert nvml.names == tuple(f"Stand-in {index}" for index in expected)
    found = nvml.read()
    if expected:
        assert nvml.problem == ""
        assert [reading.value_j for reading in found or ()] == [index + 1 for index in expected]
        gained = gain(nvml, read(nvml), read(nvml), 1.0)
        assert gained.scope.endswith("and MIG instances") == ("MIG" in str(listed))
    else:
        assert found is None
        assert nvml.problem.startswith(f"no NVIDIA GPU: NVML lists none that CUDA_VISIBLE_DEVICES={listed!r} allows")


def test_failing_mig_lookup_is_a_problem_not_a_hidden_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forbidding(StandIn):
        def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,MIG-1")
    nvml = Nvml(Forbidding(energy_mj=[1, 2]))
    assert nvml.names == ()
    assert "Insufficient Permissions" in nvml.problem


# ---- where there is none ----


@pytest.mark.parametrize(
    ("code", "begins", "remedy"),
    [
        ("LIBRARY_NOT_FOUND", "no NVIDIA GPU: NVML Shared Library Not Found", "install and load its driver"),
        ("DRIVER_NOT_LOADED", "no NVIDIA GPU: Driver Not Loaded", "install and load its driver"),
        ("NO_PERMISSION", "the NVIDIA GPU cannot be read", "access to /dev/nvidia*"),
        ("LIB_RM_VERSION_MISMATCH", "the NVIDIA GPU cannot be read", "reboot"),
        ("UNKNOWN", "the NVIDIA GPU cannot be read: Unknown Error", "nvidia-smi"),
    ],
)
def test_missing_driver_is_a_problem_with_a_remedy(code: str, begins: str, remedy: str) -> None:
    nvml = Nvml(StandIn(energy_mj=[1], init=pynvml.NVMLError(getattr(pynvml, f"NVML_ERROR_{code}"))))
    assert nvml.problem.startswith(begins)
    assert remedy in nvml.problem
    assert "\n" not in nvml.problem
    assert (nvml.names, nvml.read(), nvml.gained((), (), 1.0)) == ((), None, None)
    with nvml.watching():
        assert threads() == 0


@pytest.mark.parametrize(
    ("energy_mj", "power_mw", "remedy"),
    [
        (LOST, 1, "nvidia-smi"),
        (pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION), 1, "access to /dev/nvidia*"),
        (NOT_SUPPORTED, NOT_SUPPORTED, "no power sensor"),
    ],
)
def test_one_unreadable_gpu_leaves_none(energy_mj: Any, power_mw: Any, remedy: str) -> None:
    nvml = Nvml(StandIn(energy_mj=[1, energy_mj], power_mw=[1, power_mw]))
    assert (nvml.names, nvml.read()) == ((), None)
    assert remedy in nvml.problem


def test_driver_older_than_the_counter_is_polled() -> None:
    nvml = Nvml(StandIn(energy_mj=[pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)], power_mw=[1]), 0.01)
    assert (nvml.names, nvml.problem, nvml.update_s) == (("Stand-in 0",), "", 0.1)


def test_no_gpu_and_no_library_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Nvml(StandIn()).problem == "no NVIDIA GPU: NVML lists none"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Nvml(StandIn(energy_mj=[1])).problem == ""  # it is imported only when needed
    nvml = Nvml()
    assert nvml.problem.startswith("no NVIDIA GPU: pynvml is not installed")
    assert (nvml.names, nvml.read()) == ((), None)


@pytest.mark.parametrize("poll_s", [0, -1, math.nan, math.inf, 1e300, True, "1", None])
def test_bad_poll_period_is_refused(poll_s: Any) -> None:
    with pytest.raises(ValueError, match="poll_s must be"):
        Nvml(StandIn(), poll_s)


# ---- the script that checks counters against power ----


@pytest.mark.parametrize(("counted", "agrees"), [(1.0, True), (1.5, False)])
def test_the_check_of_counters_compares_them_with_integrated_power(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], counted: float, agrees: bool
) -> None:
    scripts = Path(__file__).parents[1] / "scripts"
    monkeypatch.syspath_prepend(str(scripts))
    script = runpy.run_path(str(scripts / "check_gpu_meter.py"))
    standin, began = StandIn(energy_mj=[0, NOT_SUPPORTED], power_mw=[100_000, 50_000]), time.monotonic()
    count = standin.nvmlDeviceGetTotalEnergyConsumption

    def ticking(handle: int) -> int:
        return round(100_000 * counted * (time.monotonic() - began)) if handle == 0 else count(handle)

    monkeypatch.setattr(standin, "nvmlDeviceGetTotalEnergyConsumption", ticking)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", standin.nvmlDeviceGetPowerUsage)
    # seconds enough that a busy machine does not make 5% of them
    assert script["compare"](Nvml(standin, poll_s=NEVER_S), "idle", 1.0, settle_s=0.0) == [agrees]
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [row[0].removeprefix("| ") for row in rows] == ["Stand-in 0", "Stand-in 1"]
    assert float(rows[0][3]) == pytest.approx(100.0, rel=0.1)
    assert rows[1][2] == "has none"
