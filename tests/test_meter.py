"""The meter against real processes, made powercap trees, and brute-force arithmetic."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulecache.pipelines import meter as meter_module
from joulecache.pipelines.meter import (
    COMPONENTS,
    Component,
    Energy,
    Meter,
    Rapl,
    Window,
    available_cpus,
    counter_gain,
)

relaxed = settings(deadline=None)  # others may share the machine
MODEL = "modelled:cpu-seconds@1"
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
TABLE: dict[str, Any] = json.loads(Path(meter_module.__file__).with_name("coefficients.json").read_text("utf-8"))

# A child that burns to a given CPU second on each line of its input, and answers with where it stands.
BURNER = """
import sys, time
for line in sys.stdin:
    while time.process_time() < float(line):
        pass
    print(time.process_time(), flush=True)
"""


def burn(cpu_s: float) -> None:
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass


def own_cpu_s() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code]
    # the installed package, or what pytest was told to read it from
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)


class Burner:
    """A live child that burns on demand."""

    def __init__(self, prefix: tuple[str, ...] = ()) -> None:
        self.popen = subprocess.Popen(
            [*prefix, sys.executable, "-c", BURNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def to(self, cpu_s: float) -> float:
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        print(cpu_s, file=self.popen.stdin, flush=True)
        return float(self.popen.stdout.readline())

    def end(self) -> None:
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.popen.stdin.close()
        self.popen.wait(30)
        self.popen.stdout.close()


@pytest.fixture
def burner() -> Iterator[Burner]:
    child = Burner()
    yield child
    child.end()


# ---- arithmetic ----

joules = st.floats(0, 1e12)
texts = st.sampled_from(["x", "y", "x; y", "z"])
methods = st.sampled_from(["measured:rapl", "measured:nvml", MODEL, "user"])
maybe = st.none() | st.integers(0, 10**12) | joules


@st.composite
def components(draw: st.DrawFn) -> Component:
    low, value, high = sorted(draw(st.tuples(joules, joules, joules)))
    return Component(value, low, high, draw(methods), draw(texts), draw(texts), draw(texts))


@st.composite
def energies(draw: st.DrawFn) -> Energy:
    parts: dict[str, Component | None] = {name: draw(st.none() | components()) for name in COMPONENTS}
    parts["cpu"] = parts["cpu"] or (draw(components()) if not any(parts.values()) else None)
    active = next(part for part in parts.values() if part is not None)
    rest = {name: draw(maybe) for name in ("read_bytes", "written_bytes", "peak_rss_bytes", "carbon_g")}
    return Energy(components=parts, active=active, duration_s=draw(joules), cpu_s=draw(joules), **rest)


def close(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-300)


@relaxed
@given(energies(), energies())
def test_sum_adds_every_figure(a: Energy, b: Energy) -> None:
    total = a + b
    for name in ("total_j", "low_j", "high_j", "active_j", "active_low_j", "active_high_j", "duration_s", "cpu_s"):
        assert close(getattr(total, name), getattr(a, name) + getattr(b, name))
    for name in ("read_bytes", "written_bytes", "carbon_g"):
        left, right = getattr(a, name), getattr(b, name)
        known = left is not None and right is not None
        assert getattr(total, name) == (left + right if known else None)
    peaks = (a.peak_rss_bytes, b.peak_rss_bytes)
    assert total.peak_rss_bytes == (None if None in peaks else max(peak for peak in peaks if peak is not None))
    assert total == b + a
    assert total.low_j <= total.total_j <= total.high_j


@relaxed
@given(energies(), energies())
def test_sum_with_a_modelled_part_is_modelled_and_partial_components_say_so(a: Energy, b: Energy) -> None:
    total = a + b
    assert set(total.method.split("+")) == set(a.method.split("+")) | set(b.method.split("+"))
    assert total.method.startswith("modelled") == ("modelled" in a.method or "modelled" in b.method)
    for name in COMPONENTS:
        left, right, part = a.components[name], b.components[name], total.components[name]
        assert (part is None) == (left is None and right is None)
        if part is not None:
            assert ("only part measured" in part.source) == (left is None or right is None)
    assert len((total + total).method) == len(total.method)


@relaxed
@given(energies(), st.integers(1, 10**6))
def test_division_divides_all_but_the_peak(a: Energy, n: int) -> None:
    each = a / n
    for name in ("total_j", "low_j", "high_j", "active_j", "active_high_j", "duration_s", "cpu_s"):
        assert close(getattr(each, name) * n, getattr(a, name))
    for name in ("read_bytes", "written_bytes", "carbon_g"):
        value = getattr(a, name)
        assert getattr(each, name) == (None if value is None else value / n)
    assert each.peak_rss_bytes == a.peak_rss_bytes
    assert each.method == a.method


@relaxed
@given(energies())
def test_json_round_trips_to_the_last_bit(a: Energy) -> None:
    assert Energy.from_json(json.loads(json.dumps(a.to_json(), allow_nan=False))) == a


def component(value_j: float = 12.3, low_j: float = 8.1, high_j: float = 20.2, method: str = MODEL) -> Component:
    return Component(value_j, low_j, high_j, method, "a table", "process tree", "1 us")


def energy(part: Component | None = None, **changes: Any) -> Energy:
    part = part or component()
    figures: dict[str, Any] = {
        "components": {"cpu": part, "dram": None, "gpu": None, "idle": None},
        "active": part,
        "duration_s": 2.0,
        "cpu_s": 1.0,
        "read_bytes": 10,
        "written_bytes": None,
        "peak_rss_bytes": 5,
        "carbon_g": None,
    }
    return Energy(**figures | changes)


def test_energy_prints_value_bounds_and_method() -> None:
    assert str(energy()) == "12.3 J (8.1 to 20.2, modelled:cpu-seconds@1)"
    assert str(energy(component(1234.5, 0, 2000))) == "1234.5 J (0.0 to 2000.0, modelled:cpu-seconds@1)"
    small = component(0.00123, 0.001, 0.002, "measured:rapl")
    assert str(energy(small)) == "0.00123 J (0.00100 to 0.00200, measured:rapl)"
    assert str(energy(component(0, 0, 0))) == "0.0 J (0.0 to 0.0, modelled:cpu-seconds@1)"


@pytest.mark.parametrize("count", [0, -3, True, 2.0, "2", None])
def test_division_refuses_what_is_not_a_count(count: Any) -> None:
    with pytest.raises(ValueError, match="whole count of at least 1"):
        energy() / count
    with pytest.raises(ValueError, match="whole count of at least 1"):
        component() / count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low_j": 13.0}, "low_j <= value_j"),
        ({"high_j": 12.0}, "low_j <= value_j"),
        ({"low_j": -1.0}, "low_j is -1"),
        ({"value_j": math.nan}, "value_j is nan"),
        ({"high_j": math.inf}, "high_j is inf"),
        ({"high_j": 10**400}, "high_j is 1000"),
        ({"value_j": True}, "value_j is True"),
        ({"value_j": "12"}, "value_j is '12'"),
        ({"method": "guessed"}, "allowed are measured:rapl"),
        ({"method": "measured:rapl+guessed"}, "allowed are measured:rapl"),
        ({"source": ""}, "source is ''"),
        ({"scope": None}, "scope is None"),
    ],
)
def test_component_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(component(), **changes)


NOTHING: dict[str, None] = dict.fromkeys(COMPONENTS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"components": NOTHING}, "components are all None"),
        ({"components": {"cpu": component()}}, "exactly the keys"),
        ({"duration_s": None}, "duration_s is None"),
        ({"cpu_s": -1.0}, "cpu_s is -1"),
        ({"carbon_g": math.nan}, "carbon_g is nan"),
        ({"peak_rss_bytes": "5"}, "peak_rss_bytes is '5'"),
        ({"active": component(99, 99, 99)}, "give a part of the total"),
    ],
)
def test_energy_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        energy(**changes)


def spoil(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda obj: obj | changes


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (spoil(total_j=99.0), "total_j is 99.0: the components give 12.3"),
        (spoil(method="measured:rapl"), "method is 'measured:rapl'"),
        (spoil(watts=1), "exactly the keys"),
        (lambda obj: {key: obj[key] for key in obj if key != "cpu_s"}, "exactly the keys"),
        (lambda obj: [obj], "exactly the keys"),
        (spoil(components=None), "components is None"),
        (spoil(active=None), "active is None"),
        (spoil(active={}), "active is"),
        (lambda obj: obj | {"components": obj["components"] | {"cpu": 3}}, "cpu is 3"),
        (lambda obj: obj | {"components": obj["components"] | {"cpu": {**obj["active"], "low_j": -1}}}, "low_j"),
        (spoil(duration_s=True), "duration_s is True"),
    ],
)
def test_from_json_refuses(spoiled: Callable[[dict[str, Any]], object], message: str) -> None:
    good = json.loads(json.dumps(energy().to_json()))
    assert Energy.from_json(good) == energy()
    with pytest.raises(ValueError, match=message):
        Energy.from_json(spoiled(good))


# ---- coefficients ----


def test_every_coefficient_has_bounds_and_a_source() -> None:
    assert f"modelled:cpu-seconds@{TABLE['version']}" == MODEL
    assert set(TABLE["providers"]) == {"generic", "aws", "gcp", "azure"}
    for provider, rows in TABLE["providers"].items():
        for row in (rows["active_j_per_cpu_s"], rows["idle_w_per_vcpu"], TABLE["memory_w_per_gb"]):
            assert 0 <= row["low"] <= row["central"] <= row["high"]
        if provider != "generic":
            span = rows["full_w_per_vcpu"]["central"] - rows["idle_w_per_vcpu"]["central"]
            assert close(rows["active_j_per_cpu_s"]["central"], round(span, 2))
        # "; " joins the sources of a sum
        assert all(row["source"] and "; " not in row["source"] for row in rows.values())
    assert all(TABLE[name]["source"] for name in ("memory_w_per_gb", "rapl_update_s", "rapl_domain_limit_w"))


# ---- the model ----


@pytest.mark.parametrize(("provider", "pue"), [("generic", 1.0), ("gcp", 1.5)])
def test_model_is_the_formula(provider: str, pue: float, tmp_path: Path) -> None:
    with Meter(provider=provider, pue=pue, powercap=tmp_path).window("burn") as window:
        burn(0.05)
    seen = window.energy
    rows = TABLE["providers"][provider]
    cpu, dram, idle = seen.components["cpu"], seen.components["dram"], seen.components["idle"]
    assert cpu is not None
    assert dram is not None
    assert idle is not None
    for bound, name in (("central", "value_j"), ("low", "low_j"), ("high", "high_j")):
        assert close(getattr(cpu, name), pue * rows["active_j_per_cpu_s"][bound] * seen.cpu_s)
        watts = rows["idle_w_per_vcpu"][bound] * available_cpus()
        assert close(getattr(idle, name), pue * watts * seen.duration_s)
    assert seen.peak_rss_bytes is not None
    most_j = pue * TABLE["memory_w_per_gb"]["central"] * seen.peak_rss_bytes / 2**30 * seen.duration_s
    assert 0.9 * most_j < dram.value_j <= most_j * (1 + 1e-9)
    assert close(seen.active_j, cpu.value_j + dram.value_j)
    assert close(seen.total_j, seen.active_j + idle.value_j)
    assert seen.components["gpu"] is None
    assert seen.method == cpu.method == dram.method == idle.method == seen.active.method == MODEL
    assert seen.cpu_s >= 0.05


@contextmanager
def bounded() -> Iterator[Window]:
    """Meter a block and hold its CPU seconds between getrusage read just inside and just outside."""
    outer_s = own_cpu_s()
    with Meter().window("bounded") as window:
        inner_s = own_cpu_s()
        yield window
        inner_s = own_cpu_s() - inner_s
    outer_s = own_cpu_s() - outer_s
    assert inner_s <= window.energy.cpu_s <= outer_s


def test_cpu_seconds_hold_all_threads() -> None:
    with bounded() as window:
        threads = [threading.Thread(target=burn, args=(0.05,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert window.energy.cpu_s >= 0.15


def test_cpu_seconds_hold_children_that_come_and_go() -> None:
    used_s = 0.0
    with bounded() as window:
        for _ in range(4):
            pid = os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", "sum(range(10**6))"], {})
            _, _, usage = os.wait4(pid, 0)
            used_s += usage.ru_utime + usage.ru_stime
    assert window.energy.cpu_s >= used_s


def test_cpu_seconds_of_a_child_that_lives_through_the_window(burner: Burner) -> None:
    start_s = burner.to(0.05)
    with Meter().window("child") as window:
        own_s = time.process_time()
        end_s = burner.to(start_s + 0.15)
        own_s = time.process_time() - own_s
    assert window.energy.cpu_s - own_s == pytest.approx(end_s - start_s, abs=2.5 * TICK_S)


def test_cpu_seconds_of_a_child_that_ends_in_the_window_are_counted_once() -> None:
    child = Burner()
    start_s = child.to(0.1)
    with Meter().window("child") as window:
        own_s, reaped_s = time.process_time(), own_cpu_s()
        end_s = child.to(start_s + 0.1)
        child.end()
        own_s = time.process_time() - own_s
        reaped_s = own_cpu_s() - reaped_s
    # getrusage alone books all of the child here, what it used before the window too
    assert reaped_s - own_s >= end_s - 0.005
    assert window.energy.cpu_s - own_s == pytest.approx(end_s - start_s, abs=3.5 * TICK_S)


def test_cpu_seconds_of_live_grandchildren() -> None:
    grandchild = Burner(("sh", "-c", '"$@"; true', "sh"))
    start_s = grandchild.to(0.01)
    with Meter().window("child") as window:
        end_s = grandchild.to(start_s + 0.1)
    assert window.energy.cpu_s >= end_s - start_s - 2.5 * TICK_S
    grandchild.end()


def test_cpu_seconds_of_grandchildren_that_a_live_child_has_reaped() -> None:
    code = "import time\nwhile time.process_time() < 0.1: pass"
    with subprocess.Popen(
        ["sh", "-c", 'while read line; do "$@"; echo; done', "sh", sys.executable, "-S", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        with Meter().window("child") as window:
            print(file=shell.stdin, flush=True)
            shell.stdout.readline()
        assert shell.poll() is None
        assert window.energy.cpu_s >= 0.1 - 2.5 * TICK_S


def test_a_child_reaped_while_the_meter_looks_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    child, looks = Burner(), []
    start_s = child.to(0.01)
    look = psutil.Process.children

    def reap_meanwhile(self: psutil.Process, recursive: bool = False) -> list[psutil.Process]:
        found = look(self, recursive)
        looks.append(len(found))
        if len(looks) == 2:  # the closing edge
            child.end()
        return found

    monkeypatch.setattr(psutil.Process, "children", reap_meanwhile)
    with Meter().window("race") as window:
        own_s = time.process_time()
        end_s = child.to(start_s + 0.1)
        own_s = time.process_time() - own_s
    assert looks == [1, 1]
    assert window.energy.cpu_s - own_s == pytest.approx(end_s - start_s, abs=3.5 * TICK_S)


def test_the_meter_keeps_its_own_work_out_of_the_window(burner: Burner) -> None:
    burner.to(0.01)
    meter, inside_s = Meter(), 0.0
    whole_s = time.process_time()
    for _ in range(20):
        with meter.window("empty") as window:
            pass
        inside_s += window.energy.cpu_s
    whole_s = time.process_time() - whole_s
    assert inside_s < whole_s / 4


def test_cpu_seconds_of_orphans() -> None:
    # a shell whose background child inherits its pipes, and outlives it
    shell = subprocess.Popen(
        ["sh", "-c", 'exec 3<&0; "$@" <&3 & echo $!; wait', "sh", sys.executable, "-c", BURNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert shell.stdin is not None
    assert shell.stdout is not None
    pid = int(shell.stdout.readline())
    print(0.1, file=shell.stdin, flush=True)
    start_s = float(shell.stdout.readline())
    meter = Meter()
    with meter.window("orphaned") as window:
        shell.kill()
        shell.wait(30)
        print(start_s + 0.1, file=shell.stdin, flush=True)
        end_s = float(shell.stdout.readline())
    assert psutil.pid_exists(pid)
    assert end_s - start_s - 2.5 * TICK_S <= window.energy.cpu_s <= end_s - start_s + 0.1 + 2.5 * TICK_S
    shell.stdin.close()
    shell.stdout.read()
    shell.stdout.close()


def test_windows_nest_and_parts_sum_to_the_whole() -> None:
    meter = Meter()
    with meter.window("whole") as whole:
        parts = []
        for name in ("input", "train", "input"):
            with meter.window(name) as part:
                burn(1.0)  # opening a window takes some milliseconds on a busy machine, which are in the whole only
            parts.append(part.energy)
    total = parts[0] + parts[1] + parts[2]
    assert 0.99 * whole.energy.active_j <= total.active_j <= whole.energy.active_j * (1 + 1e-9)
    assert total.cpu_s <= whole.energy.cpu_s
    assert total.duration_s <= whole.energy.duration_s


def test_windows_overlap_across_threads() -> None:
    meter, opened, closed = Meter(), threading.Event(), threading.Event()
    seen = []

    def other() -> None:
        with meter.window("other") as window:
            opened.set()
            closed.wait(30)
            burn(0.05)
        seen.append(window.energy)

    thread = threading.Thread(target=other)
    with meter.window("main") as window:
        thread.start()
        assert opened.wait(30)
        with pytest.raises(ValueError, match="'other' is open already"), meter.window("other"):
            pass
        burn(0.05)
    closed.set()
    thread.join()
    # the process is one: what either thread burnt while both were open is in both windows
    assert seen[0].cpu_s >= 0.1
    assert 0.05 <= window.energy.cpu_s <= seen[0].cpu_s + 0.05


def test_window_names() -> None:
    meter = Meter()
    with meter.window("train") as window:
        with pytest.raises(RuntimeError, match="window 'train' is open: read its energy after its block"):
            _ = window.energy
        with pytest.raises(ValueError, match="'train' is open already"), meter.window("train"):
            pass
    with pytest.raises(KeyError), meter.window("train") as failed:
        raise KeyError
    assert failed.energy.duration_s > 0
    for name in ("", None, 3):
        with pytest.raises(ValueError, match="give a non-empty text"), meter.window(name):  # type: ignore[arg-type]
            pass


def test_forked_child_does_not_report_its_parents_window() -> None:
    done = python("""
import os
from joulecache.pipelines.meter import Meter
meter, child = Meter(), None
with meter.window("parent") as window:
    child = os.fork()
    if child == 0:
        with meter.window("parent") as own:  # the parent's name is free in the child
            pass
        assert own.energy.duration_s >= 0
if child == 0:
    try:
        window.energy
    except RuntimeError:
        os._exit(7)
    os._exit(1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
assert window.energy.duration_s > 0
""")
    assert done.returncode == 0, done.stderr


# ---- what is seen beside joules ----


def test_bytes_read_and_written_hold_the_page_cache_and_children(tmp_path: Path) -> None:
    file, size = tmp_path / "data", 3_000_000
    file.write_bytes(bytes(size))
    meter = Meter()
    with meter.window("idle") as idle:
        pass
    assert idle.energy.read_bytes is not None
    assert idle.energy.read_bytes < 10_000  # the meter's own reading
    assert idle.energy.written_bytes == 0
    with meter.window("read") as read:
        file.read_bytes()
    assert read.energy.read_bytes is not None
    assert size <= read.energy.read_bytes < size + 10_000
    with meter.window("write") as write:
        file.write_bytes(bytes(size))
    assert write.energy.written_bytes == size
    with meter.window("child") as child:
        subprocess.run(["cp", str(file), str(tmp_path / "copy")], check=True)
    assert child.energy.read_bytes is not None
    assert child.energy.read_bytes >= size


def test_bytes_of_a_live_child_are_only_those_of_the_window(tmp_path: Path) -> None:
    file, size = tmp_path / "data", 3_000_000
    file.write_bytes(bytes(size))
    code = "import sys\nfor line in sys.stdin: print(len(open(sys.argv[1], 'rb').read()), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for _ in range(2):
            with Meter().window("child") as window:
                print(file=child.stdin, flush=True)
                assert int(child.stdout.readline()) == size
            assert window.energy.read_bytes is not None
            assert size <= window.energy.read_bytes < 1.5 * size


def test_bytes_are_none_where_a_process_hides_them() -> None:
    assert meter_module._io_bytes(["self"]) is not None
    assert meter_module._io_bytes(["self", 2**30]) is None


def test_peak_memory_is_the_windows_not_the_processes_nor_its_parents() -> None:
    ballast = bytearray(b"x") * 150_000_000
    done = python("""
import psutil
from joulecache.pipelines.meter import Meter
meter, size = Meter(), 80_000_000
before = psutil.Process().memory_info().rss
with meter.window("large") as large:
    block = bytearray(b"x") * size
    del block
with meter.window("small") as small:
    pass
# the kernel counts resident pages in batches
assert before + 0.98 * size <= large.energy.peak_rss_bytes <= before + 1.1 * size, large.energy.peak_rss_bytes
assert small.energy.peak_rss_bytes < before + 0.1 * size, small.energy.peak_rss_bytes
""")
    del ballast
    assert done.returncode == 0, done.stderr


def test_peak_memory_holds_live_children() -> None:
    size = 60_000_000
    code = f"block = bytearray(b'x') * {size}\nprint(flush=True)\ninput()"
    own_bytes = psutil.Process().memory_info().rss
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        with Meter().window("child") as window:
            pass
        print(file=child.stdin, flush=True)
    assert window.energy.peak_rss_bytes is not None
    assert window.energy.peak_rss_bytes >= own_bytes + 0.95 * size


def test_available_cpus_follow_affinity_and_quota(tmp_path: Path) -> None:
    affinity = len(os.sched_getaffinity(0))
    assert available_cpus(tmp_path) == affinity
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert available_cpus(tmp_path) == affinity
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert available_cpus(tmp_path) == 0.5
    (tmp_path / "cpu.max").write_text("99900000 100000\n")
    assert available_cpus(tmp_path) == affinity
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert available_cpus(tmp_path) == affinity
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("25000\n")
    assert available_cpus(tmp_path) == 0.25


# ---- carbon ----


def test_carbon_is_the_countrys_grams_per_kwh(tmp_path: Path) -> None:
    meter = Meter(country="fra", powercap=tmp_path)
    with meter.window("work") as window:
        burn(0.01)
    grams = meter.passport()["carbon_g_per_kwh"]
    assert meter.passport()["country"] == "FRA"
    assert isinstance(grams, float)
    assert 0 < grams < 200  # nuclear
    assert window.energy.carbon_g is not None
    assert close(window.energy.carbon_g, window.energy.total_j / 3.6e6 * grams)
    with Meter(powercap=tmp_path).window("work") as nowhere:
        pass
    assert nowhere.energy.carbon_g is None


def test_no_socket_and_nothing_heavy() -> None:
    done = python("""
import sys
def refuse(event, args):
    if event.startswith("socket."):
        raise SystemExit(f"{event} {args}")
sys.addaudithook(refuse)
from joulecache.pipelines.meter import Meter
heavy = {"pandas", "numpy", "codecarbon", "tensorflow", "apache_beam", "pyarrow"}
meter = Meter()
with meter.window("a") as window:
    pass
assert not heavy & set(sys.modules), heavy & set(sys.modules)
with Meter(country="DEU").window("a") as window:
    pass
assert window.energy.carbon_g > 0
meter.passport()
assert "codecarbon" in sys.modules
""")
    assert done.returncode == 0, done.stderr


# ---- arguments ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pue": math.nan}, "pue is nan: give a finite number of at least 1"),
        ({"pue": math.inf}, "pue is inf"),
        ({"pue": True}, "pue is True"),
        ({"pue": "1.2"}, "pue is '1.2'"),
        ({"pue": 0.99}, "pue is 0.99"),
        ({"pue": -1}, "pue is -1"),
        ({"provider": "AWS "}, "unknown provider 'AWS ': allowed are generic, aws, gcp, azure"),
        ({"provider": None}, "unknown provider None"),
        ({"provider": []}, r"unknown provider \[\]"),
        (
            {"country": "france"},
            r"unknown country 'france': give an ISO 3166 alpha-3 code; close to it: FRA \(France\)",
        ),
        ({"country": "DEV"}, r"DEU \(Germany\)"),
        ({"country": "12345"}, "close to it: none"),
        ({"country": True}, "country is True"),
    ],
)
def test_meter_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Meter(**arguments)


def test_passport_names_all_that_shapes_the_figures(tmp_path: Path) -> None:
    passport = json.loads(json.dumps(Meter(provider="aws", pue=1.2, powercap=tmp_path).passport(), allow_nan=False))
    assert passport["method"] == MODEL
    assert passport["coefficients"]["active_j_per_cpu_s"] == TABLE["providers"]["aws"]["active_j_per_cpu_s"]
    assert passport["coefficients"]["idle_w_per_vcpu"] == TABLE["providers"]["aws"]["idle_w_per_vcpu"]
    assert passport["coefficients"]["memory_w_per_gb"] == TABLE["memory_w_per_gb"]
    assert passport["coefficients_version"] == TABLE["version"]
    assert (passport["provider"], passport["pue"], passport["country"]) == ("aws", 1.2, None)
    assert passport["carbon_g_per_kwh"] is passport["carbon_source"] is None
    assert passport["vcpus"] == available_cpus()
    assert passport["memory_gb"] == pytest.approx(psutil.virtual_memory().total / 2**30)
    assert passport["rapl"] == []
    assert str(tmp_path) in passport["notes"][0]


# ---- RAPL, on made trees ----

SPAN_UJ = 262_143_328_850


class Tree:
    """A powercap folder with the shape of a two-socket machine."""

    def __init__(self, root: Path, *, dram: bool = True) -> None:
        self.root = root
        names = {"0": "package-0", "0:0": "core", "1": "package-1", "1:0": "uncore", "2": "psys"}
        if dram:
            names |= {"0:1": "dram", "1:1": "dram"}
        for number, name in names.items():
            folder = root / f"intel-rapl:{number}"
            folder.mkdir()
            (folder / "name").write_text(f"{name}\n")
            (folder / "max_energy_range_uj").write_text(f"{SPAN_UJ}\n")
        (root / "intel-rapl").mkdir()
        for number in names:
            self.set(number, 1_000_000)

    def set(self, number: str, uj: int) -> None:
        self.file(number).write_text(f"{uj}\n")

    def file(self, number: str) -> Path:
        return self.root / f"intel-rapl:{number}" / "energy_uj"

    def add(self, **joules: float) -> None:
        for key, gain_j in joules.items():
            number = key.removeprefix("d").replace("_", ":")
            self.set(number, int(self.file(number).read_text()) + round(gain_j * 1e6))


@relaxed
@given(st.integers(1, 2**48), st.data())
def test_counter_gain_survives_one_wrap(span: int, data: st.DataObject) -> None:
    before, gain = data.draw(st.integers(0, span - 1)), data.draw(st.integers(0, span - 1))
    assert counter_gain(before, (before + gain) % span, span) == gain


def test_counter_gain_of_a_whole_span_is_not_lost() -> None:
    assert counter_gain(0, 100, 100) == 100


def test_rapl_sums_packages_and_dram_and_leaves_out_what_they_hold(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    rapl = Rapl(tmp_path)
    assert rapl.problem == ""
    before = rapl.read_uj()
    tree.add(d0=10, d1=20, d0_1=3, d1_1=4, d0_0=100, d1_0=100, d2=1000)
    after = rapl.read_uj()
    assert before is not None
    assert after is not None
    parts = rapl.gained(before, after, 2.0)
    assert parts is not None
    assert {name: part.value_j for name, part in parts.items()} == {"cpu": 30.0, "dram": 7.0}
    assert close(parts["cpu"].low_j, 30 * (1 - 0.001 / 2))
    assert close(parts["cpu"].high_j, 30 * (1 + 0.001 / 2))
    assert {part.method for part in parts.values()} == {"measured:rapl"}
    assert {part.scope for part in parts.values()} == {"machine"}


@relaxed
@given(gain_uj=st.integers(0, 9_000_000), before_uj=st.integers(SPAN_UJ - 5_000_000, SPAN_UJ - 1))
def test_rapl_survives_wraparound(gain_uj: int, before_uj: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        tree = Tree(Path(root), dram=False)
        rapl = Rapl(tree.root)
        tree.set("0", before_uj)
        before = rapl.read_uj()
        tree.set("0", (before_uj + gain_uj) % SPAN_UJ)
        after = rapl.read_uj()
        assert before is not None
        assert after is not None
        parts = rapl.gained(before, after, 1.0)
        assert parts is not None
        assert parts["cpu"].value_j == pytest.approx(gain_uj / 1e6, abs=1e-9)


def test_rapl_tells_a_backward_counter_and_a_long_window(tmp_path: Path) -> None:
    tree = Tree(tmp_path, dram=False)
    rapl = Rapl(tmp_path)
    before = rapl.read_uj()
    tree.add(d0=-0.5)
    after = rapl.read_uj()
    assert before is not None
    assert after is not None
    # as a wrap it would be 262 kJ in a second
    assert rapl.gained(before, after, 1.0) is None
    # in an hour at up to 500 W each counter may have turned 6 times unseen: one that wrapped once, 5 more
    parts = rapl.gained(before, before, 3600.0)
    assert parts is not None
    assert parts["cpu"].high_j == pytest.approx(2 * 6 * SPAN_UJ / 1e6)
    assert parts["cpu"].value_j == 0


def test_meter_measures_with_rapl_and_models_only_the_split(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    meter = Meter(powercap=tmp_path)
    with meter.window("work") as window:
        tree.add(d0=10, d1=20, d0_1=3, d1_1=4)
        burn(0.05)
    seen = window.energy
    cpu, dram = seen.components["cpu"], seen.components["dram"]
    assert cpu is not None
    assert dram is not None
    assert (cpu.value_j, dram.value_j, seen.total_j) == (30.0, 7.0, 37.0)
    assert (cpu.scope, seen.method) == ("machine", "measured:rapl")
    assert seen.components["idle"] is None
    assert seen.active.method == "modelled:rapl-share@1"
    rows = TABLE["providers"]["generic"]

    def share(active: str, idle: str) -> float:
        active_j = rows["active_j_per_cpu_s"][active] * seen.cpu_s
        return float(active_j / (active_j + rows["idle_w_per_vcpu"][idle] * (os.cpu_count() or 1) * seen.duration_s))

    assert close(seen.active_j, 37 * share("central", "central"))
    assert close(seen.active_low_j, seen.low_j * share("low", "high"))
    assert close(seen.active_high_j, seen.high_j * share("high", "low"))
    assert 0 < seen.active_low_j < seen.active_j < seen.active_high_j < seen.high_j
    assert meter.passport()["method"] == "measured:rapl"
    assert meter.notes == ()


def test_measured_joules_times_a_given_pue_are_modelled(tmp_path: Path) -> None:
    tree = Tree(tmp_path, dram=False)
    meter = Meter(powercap=tmp_path, pue=1.5)
    with meter.window("work") as window:
        tree.add(d0=10)
    assert window.energy.total_j == pytest.approx(15)
    assert window.energy.method == "modelled:rapl-pue@1"
    assert window.energy.components["dram"] is None
    assert meter.notes == ("RAPL has no DRAM counter: memory is not in the total",)


@pytest.mark.parametrize("fault", ["missing", "backwards", "text"])
def test_windows_whose_counter_fails_are_modelled_and_noted(tmp_path: Path, fault: str) -> None:
    tree = Tree(tmp_path)
    meter = Meter(powercap=tmp_path)
    with meter.window("work") as window:
        if fault == "missing":
            tree.file("0").unlink()
        elif fault == "backwards":
            tree.add(d0=-0.5)
        else:
            tree.file("0").write_text("none")
    assert window.energy.method == MODEL
    assert "these are modelled" in meter.notes[0]
    with meter.window("again") as window:
        pass
    assert len(meter.notes) == 1


def test_unreadable_counters_are_not_used_and_the_remedy_is_noted() -> None:
    # as another user when root runs the tests: root may read everything
    with tempfile.TemporaryDirectory() as root:
        tree = Tree(Path(root))
        Path(root).chmod(0o755)
        for path in Path(root).glob("*/energy_uj"):
            path.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            meter = Meter(powercap=tree.root)
        finally:
            os.seteuid(user)
    with meter.window("work") as window:
        pass
    assert window.energy.method == MODEL
    assert "Permission denied" in meter.notes[0]
    assert f"sudo chmod a+r {root}/intel-rapl:*/energy_uj" in meter.notes[0]


def test_a_tree_without_a_package_or_with_a_broken_counter_is_not_used(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.file("1:1").write_text("")
    assert Rapl(tmp_path).domains == {}
    assert "cannot be read" in Rapl(tmp_path).problem
    for number in ("0", "1"):
        (tmp_path / f"intel-rapl:{number}" / "name").write_text("psys\n")
    tree.set("1:1", 5)
    assert Rapl(tmp_path).domains == {}
    assert "no RAPL package counter" in Rapl(tmp_path).problem
    assert Rapl(tmp_path / "nowhere").read_uj() is None
