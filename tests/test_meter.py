"""The meter against real processes: what a window includes, and its provenance."""

from __future__ import annotations

import csv
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest

from joulecache.pipelines.core.codec import dumps, from_json, to_json
from joulecache.pipelines.energy import Component, Meter, Provenance, Window, available_cpus
from joulecache.pipelines.energy.machine import contamination, machine_use
from joulecache.pipelines.energy.model import coefficients
from joulecache.pipelines.energy.nvml import GpuReading, Nvml
from joulecache.pipelines.energy.process_tree import (
    TICK_S,
    ProcessUse,
    descendants,
    io_bytes,
    listed_children,
    process_use,
    searched_children,
)

MODEL = "modelled:cpu-seconds@1"
TABLE = coefficients()

# A child that works up to a given CPU second for each line of input, and answers with its CPU time.
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


def isclose(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-300)


def own_cpu_s() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code]
    # the installed package, or the path that pytest was given
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)


class Burner:
    """A live child that works on demand."""

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


# ---- coefficients ----


def test_every_coefficient_has_bounds_and_a_source() -> None:
    assert f"modelled:cpu-seconds@{TABLE.version}" == MODEL
    assert set(TABLE.providers) == {"generic", "aws", "gcp", "azure"}
    for provider, rows in TABLE.providers.items():
        for row in (rows["active_j_per_cpu_s"], rows["idle_w_per_vcpu"], TABLE.memory_w_per_gb):
            assert row.low is not None
            assert row.high is not None
            assert 0 <= row.low <= row.central <= row.high
        if provider != "generic":
            span = rows["full_w_per_vcpu"].central - rows["idle_w_per_vcpu"].central
            assert isclose(rows["active_j_per_cpu_s"].central, round(span, 2))
        # "; " joins the sources of a sum
        assert all(row.source and "; " not in row.source for row in rows.values())
    for row in (TABLE.memory_w_per_gb, TABLE.storage_w_per_tb, TABLE.rapl_update_s, TABLE.rapl_domain_limit_w):
        assert row.source
        assert "; " not in row.source
    storage = TABLE.storage_w_per_tb
    assert (storage.low, storage.central) == (6.5 / 10, 6 / 5)
    assert storage.high == round(6 / (5 / 1.27**5), 2)


# ---- the model ----


@pytest.mark.parametrize(("provider", "pue"), [("generic", 1.0), ("gcp", 1.5)])
def test_model_is_the_formula(provider: str, pue: float, tmp_path: Path) -> None:
    with Meter(provider=provider, pue=pue, powercap=tmp_path).window("burn") as window:
        burn(0.05)
    seen = window.energy
    rows = TABLE.providers[provider]
    cpu, dram, idle = seen.components["cpu"], seen.components["dram"], seen.components["idle"]
    assert cpu is not None
    assert dram is not None
    assert idle is not None
    for bound, name in (("central", "value_j"), ("low", "low_j"), ("high", "high_j")):
        assert isclose(getattr(cpu, name), pue * getattr(rows["active_j_per_cpu_s"], bound) * seen.cpu_s)
        watts = getattr(rows["idle_w_per_vcpu"], bound) * available_cpus()
        assert isclose(getattr(idle, name), pue * watts * seen.duration_s)
    assert seen.peak_rss_bytes is not None
    most_j = pue * TABLE.memory_w_per_gb.central * seen.peak_rss_bytes / 2**30 * seen.duration_s
    assert 0.9 * most_j < dram.value_j <= most_j * (1 + 1e-9)
    assert isclose(seen.active_j, cpu.value_j + dram.value_j)
    assert isclose(seen.total_j, seen.active_j + idle.value_j)
    assert seen.components["gpu"] is None
    assert seen.method == cpu.method == dram.method == idle.method == seen.active.method == MODEL
    assert seen.cpu_s >= 0.05


def test_given_watts_replace_the_coefficients_without_memory(tmp_path: Path) -> None:
    with Meter(idle_w=12, full_w=65, pue=1.5, powercap=tmp_path).window("burn") as window:
        burn(0.05)
    seen, processors = window.energy, os.cpu_count() or 1
    assert seen.components["dram"] is None  # part of the machine's watts
    assert isclose(seen.active_j, 1.5 * (65 - 12) / processors * seen.cpu_s)
    assert isclose(seen.total_j, seen.active_j + 1.5 * 12 / processors * available_cpus() * seen.duration_s)
    assert (seen.low_j, seen.high_j) == (seen.total_j, seen.total_j)
    assert seen.method == seen.active.method == "user"
    assert "12 idle and 65" in seen.active.source


@contextmanager
def bounded() -> Iterator[Window]:
    """Meter a block, and check its CPU seconds against getrusage just inside and just outside."""
    outer_s = own_cpu_s()
    with Meter().window("bounded") as window:
        inner_s = own_cpu_s()
        yield window
        inner_s = own_cpu_s() - inner_s
    outer_s = own_cpu_s() - outer_s
    assert inner_s <= window.energy.cpu_s <= outer_s


def test_cpu_seconds_include_all_threads() -> None:
    with bounded() as window:
        threads = [threading.Thread(target=burn, args=(0.05,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert window.energy.cpu_s >= 0.15


def test_cpu_seconds_include_short_lived_children() -> None:
    used_s = 0.0
    with bounded() as window:
        for _ in range(4):
            pid = os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", "sum(range(10**6))"], {})
            _, _, usage = os.wait4(pid, 0)
            used_s += usage.ru_utime + usage.ru_stime
    assert window.energy.cpu_s >= used_s


def test_cpu_seconds_of_a_child_that_outlives_the_window(burner: Burner) -> None:
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
    # getrusage alone counts all of the child here, also what it used before the window
    assert reaped_s - own_s >= end_s - 0.005
    assert window.energy.cpu_s - own_s == pytest.approx(end_s - start_s, abs=3.5 * TICK_S)


def test_cpu_seconds_of_live_grandchildren() -> None:
    grandchild = Burner(("sh", "-c", '"$@"; true', "sh"))
    start_s = grandchild.to(0.01)
    with Meter().window("child") as window:
        end_s = grandchild.to(start_s + 0.1)
    assert window.energy.cpu_s >= end_s - start_s - 2.5 * TICK_S
    grandchild.end()


def test_cpu_seconds_of_grandchildren_reaped_by_a_live_child() -> None:
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


def test_a_child_reaped_while_the_tree_is_read_is_counted_once() -> None:
    child, before = Burner(), descendants()
    end_s, reads = child.to(0.2), 0

    def reaped_meanwhile(pid: int) -> ProcessUse | None:
        nonlocal reads
        if pid == child.popen.pid:
            reads += 1
            if reads == 1:  # its seconds move to those of the ended, which were read before
                child.end()
        return process_use(pid)

    found = descendants(use_of=reaped_meanwhile)
    assert reads == 1
    assert found.cpu_s - before.cpu_s == pytest.approx(end_s, abs=3.5 * TICK_S + 0.1)


@pytest.mark.slow
def test_forty_short_children_are_not_lost() -> None:
    code = "import time\nwhile time.process_time() < 0.2: pass"
    used_s = 0.0
    with Meter().window("children") as window:
        for _ in range(20):
            pair = [os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", code], {}) for _ in range(2)]
            for pid in pair:
                _, _, usage = os.wait4(pid, 0)
                used_s += usage.ru_utime + usage.ru_stime
    assert used_s >= 40 * 0.2
    assert window.energy.cpu_s >= 0.97 * used_s


def identity(pid: int) -> tuple[int, int]:
    return pid, int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_a_reused_process_id_is_another_process() -> None:
    parent = identity(os.getppid())
    assert parent in descendants([parent]).living
    assert os.getppid() not in {pid for pid, _ in descendants([(parent[0], parent[1] + 1)]).living}


@pytest.mark.parametrize("children_of", [listed_children, searched_children])
def test_the_tree_is_found_whatever_its_processes_are_named(
    tmp_path: Path, children_of: Callable[[int], list[int]]
) -> None:
    odd = tmp_path / "a) 0 (b"
    odd.symlink_to("/bin/sh")
    before = descendants()
    with subprocess.Popen([odd, "-c", "sleep 60 & wait"], stdin=subprocess.DEVNULL) as shell:
        while len(found := psutil.Process(shell.pid).children()) < 1:
            time.sleep(0.01)
        seen = descendants(children_of=children_of).living - before.living
        assert seen == {identity(shell.pid), identity(found[0].pid)}
        found[0].kill()
    assert not descendants(seen).living & seen


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
    # a shell whose background child inherits its pipes and outlives it
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
                burn(0.4)  # opening a window takes a few milliseconds on a busy machine, which count only in the whole
            parts.append(part.energy)
    total = parts[0] + parts[1] + parts[2]
    assert 0.97 * whole.energy.active_j <= total.active_j <= whole.energy.active_j * (1 + 1e-9)
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
    # a process is metered as a whole: work of either thread while both were open is in both windows
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
        with pytest.raises(ValueError, match="window name must be a non-empty string"), meter.window(name):  # type: ignore[arg-type]
            pass


def test_forked_child_does_not_report_its_parents_window() -> None:
    done = python("""
import os
from joulecache.pipelines.energy import Meter
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


# ---- bytes, memory, processors ----


def test_bytes_read_and_written_include_the_page_cache_and_children(tmp_path: Path) -> None:
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


def test_bytes_of_a_live_child_count_only_inside_the_window(tmp_path: Path) -> None:
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
    assert io_bytes(["self"]) is not None
    assert io_bytes(["self", 2**30]) is None


def test_peak_memory_is_that_of_the_window_not_of_the_process_or_its_parent() -> None:
    ballast = bytearray(b"x") * 150_000_000
    done = python("""
import psutil
from joulecache.pipelines.energy import Meter
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


def test_peak_memory_includes_live_children() -> None:
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


# ---- contamination ----


def test_work_of_other_processes_is_separated_from_that_of_the_tree() -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", OTHERS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    ) as metering:
        assert metering.stdin is not None
        assert metering.stdout is not None
        metering.stdout.readline()
        burn(0.5)  # this process is not a descendant of that one
        print(file=metering.stdin, flush=True)
        seen = json.loads(metering.stdout.readline())
    used_s = seen["machine_cpu_s"] - seen["cpu_s"]
    assert 0.5 - seen["resolution_s"] - 0.1 <= used_s <= seen["capacity_s"] + seen["resolution_s"]
    assert seen["share"] == pytest.approx(used_s / seen["capacity_s"])
    if used_s > 0.06 * seen["capacity_s"] + seen["resolution_s"]:  # unless the machine paused
        assert f"other processes used {seen['share']:.0%} of the processors" in seen["flags"]


OTHERS = """
import json
from joulecache.pipelines.energy import Meter
with Meter().window("waiting") as window:
    print(flush=True)
    input()
energy = window.energy
seen = energy.contamination
print(json.dumps({
    "cpu_s": energy.cpu_s, "machine_cpu_s": seen.machine_cpu_s, "capacity_s": seen.capacity_s,
    "resolution_s": seen.resolution_s, "flags": energy.flags, "share": energy.contamination_shares["others"],
}))
"""


def test_work_of_the_tree_is_not_that_of_other_processes() -> None:
    with Meter().window("work") as window:
        burn(0.3)
        subprocess.run([sys.executable, "-S", "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    seen = window.energy.contamination
    assert seen is not None
    assert seen.machine_cpu_s is not None
    assert seen.machine_cpu_s >= 0.6 - seen.resolution_s - 0.1
    others_s = window.energy.contamination_shares["others"]
    assert others_s is not None
    assert others_s * seen.capacity_s <= seen.machine_cpu_s - 0.5


def made_proc(root: Path, stat: str | None, pressure: dict[str, str]) -> Path:
    root.mkdir()
    if stat is not None:
        (root / "stat").write_text(f"{stat}\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    (root / "pressure").mkdir()
    for name, text in pressure.items():
        (root / "pressure" / name).write_text(text)
    return root


def some(total_us: int) -> str:
    return f"some avg10=0.00 avg60=0.57 avg300=1.87 total={total_us}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"


def test_contamination_is_read_from_proc(tmp_path: Path) -> None:
    before = made_proc(tmp_path / "a", "cpu  100 10 50 9000 70 1 2 30 5 0", {"cpu": some(1_000_000), "io": some(5)})
    after = made_proc(tmp_path / "b", "cpu  200 20 80 9900 99 2 4 40 9 0", {"cpu": some(1_500_000), "io": some(5)})
    seen = contamination(machine_use(before), machine_use(after), 10.0)
    # user, nice, system, irq and softirq; not idle, iowait, steal, nor guests, which are in user
    assert seen.machine_cpu_s == pytest.approx((100 + 10 + 30 + 1 + 2) * TICK_S)
    assert seen.steal_s == pytest.approx(10 * TICK_S)
    assert (seen.cpu_stall_s, seen.memory_stall_s, seen.io_stall_s) == (0.5, None, 0.0)
    assert seen.capacity_s == 10.0 * (os.cpu_count() or 1)


@pytest.mark.parametrize("stat", [None, "", "cpu  1 2 3", "cpu a b c d e f g h"])
def test_values_that_the_kernel_does_not_have_are_none(tmp_path: Path, stat: str | None) -> None:
    use = machine_use(made_proc(tmp_path / "proc", stat, {"cpu": "none\n", "memory": "some total=x"}))
    assert use.machine_cpu_s is use.steal_s is use.cpu_stall_s is use.memory_stall_s is use.io_stall_s is None


# ---- GPUs ----


class MadeGpu(Nvml):
    """A stand-in for the counters of one GPU."""

    def __init__(self, readings: Sequence[float | None]) -> None:
        self.names, self.problem, self.update_s = ("A GPU",), "", 0.1
        self._readings = iter(readings)
        self.watched = 0

    def read(self) -> tuple[GpuReading, ...] | None:
        value_j = next(self._readings)
        return None if value_j is None else (GpuReading(value_j, value_j, value_j),)

    def gained(
        self, before: Sequence[GpuReading], after: Sequence[GpuReading], duration_s: float, pue: float = 1.0
    ) -> Component | None:
        gain_j = (after[0].value_j - before[0].value_j) * pue
        return None if gain_j < 0 else Component(gain_j, gain_j, gain_j, "measured:nvml", "NVML", "1 GPU", "1 mJ")

    def watching(self) -> AbstractContextManager[None]:
        self.watched += 1
        return nullcontext()


def test_a_gpu_is_a_separate_component_and_all_active(tmp_path: Path) -> None:
    gpu = MadeGpu([100.0, 350.0])
    meter = Meter(powercap=tmp_path, nvml=gpu)
    with meter.window("work") as window:
        burn(0.01)
    seen = window.energy
    assert seen.components["gpu"] is not None
    assert seen.components["gpu"].value_j == 250.0
    assert seen.active_j > 250.0
    assert seen.total_j > seen.active_j
    assert seen.method == f"{MODEL}+measured:nvml"
    assert seen.active.method == f"{MODEL}+measured:nvml"
    assert (seen.update_s, gpu.watched) == (0.1, 1)
    assert "too short" in seen.flags[0] or seen.duration_s >= 1
    assert meter.provenance().gpus == ("A GPU",)


@pytest.mark.parametrize("readings", [[None, 3.0], [3.0, None], [3.0, 2.0]])
def test_a_gpu_that_cannot_be_read_is_not_in_the_total_and_noted(tmp_path: Path, readings: list[float | None]) -> None:
    meter = Meter(powercap=tmp_path, nvml=MadeGpu(readings))
    with meter.window("work") as window:
        pass
    assert window.energy.components["gpu"] is None
    assert window.energy.method == MODEL
    assert meter.notes[-1] == "NVML failed or went backwards in some windows: GPUs are not in their totals"


# ---- files ----


def test_outermost_windows_become_rows_for_codecarbons_dashboards(tmp_path: Path) -> None:
    meter = Meter(emissions=tmp_path, country="FRA")
    with meter.window("whole") as whole, meter.window("part"):
        burn(0.01)
    with pytest.raises(KeyError), meter.window("failed"):
        raise KeyError
    with open(tmp_path / "emissions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["project_name"] for row in rows] == ["whole", "failed"]
    assert float(rows[0]["energy_consumed"]) * 3.6e6 == pytest.approx(whole.energy.total_j)
    assert rows[0]["country_iso_code"] == "FRA"


def test_a_failed_write_is_noted_and_the_window_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    meter = Meter(emissions=folder, record=folder / "windows.jsonl")
    shutil.rmtree(folder)
    with meter.window("work") as window:
        pass
    assert window.energy.duration_s > 0
    assert "windows are missing in a file" in meter.notes[-1]


# ---- carbon ----


def test_carbon_uses_the_grams_per_kwh_of_the_country(tmp_path: Path) -> None:
    meter = Meter(country="fra", powercap=tmp_path)
    with meter.window("work") as window:
        burn(0.01)
    grams = meter.provenance().carbon_g_per_kwh
    assert meter.provenance().country == "FRA"
    assert grams is not None
    assert 0 < grams < 200  # nuclear
    assert window.energy.carbon_g is not None
    assert isclose(window.energy.carbon_g, window.energy.total_j / 3.6e6 * grams)
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
from joulecache.pipelines.energy import Meter
heavy = {"pandas", "numpy", "codecarbon", "tensorflow", "apache_beam", "pyarrow"}
meter = Meter()
with meter.window("a") as window:
    pass
assert not heavy & set(sys.modules), heavy & set(sys.modules)
with Meter(country="DEU").window("a") as window:
    pass
assert window.energy.carbon_g > 0
meter.provenance()
assert "codecarbon" in sys.modules
""")
    assert done.returncode == 0, done.stderr


# ---- arguments ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pue": math.nan}, "pue must be a finite number of at least 1, got nan"),
        ({"pue": math.inf}, "pue must be"),
        ({"pue": True}, "pue must be"),
        ({"pue": "1.2"}, "pue must be"),
        ({"pue": 0.99}, "pue must be .*, got 0.99"),
        ({"provider": "AWS "}, "provider must be one of generic, aws, gcp, azure, got 'AWS '"),
        ({"provider": None}, "provider must be one of .*, got None"),
        ({"provider": []}, r"provider must be one of .*, got \[\]"),
        (
            {"country": "france"},
            r"unknown country 'france': did you mean FRA \(France\)",
        ),
        ({"country": "DEV"}, r"DEU \(Germany\)"),
        ({"country": "12345"}, "unknown country '12345': expected an ISO 3166 alpha-3 code"),
        ({"country": True}, "country must be .*, got True"),
        ({"idle_w": -1, "full_w": 50}, "idle_w must be a finite number of at least 0, got -1"),
        ({"idle_w": 5, "full_w": math.nan}, "full_w must be .*, got nan"),
        ({"idle_w": math.inf, "full_w": math.inf}, "idle_w must be .*, got inf"),
        ({"idle_w": 5}, "full_w must be .*, got None"),
        ({"full_w": 5}, "idle_w must be .*, got None"),
        ({"idle_w": 50, "full_w": 5}, "full_w must be at least idle_w, 50, got 5"),
        ({"idle_w": 5, "full_w": 50, "provider": "aws"}, "provider and watts exclude each other"),
        ({"emissions": "/no/such/folder"}, "/no/such/folder"),
        ({"emissions": __file__}, "test_meter.py"),
        ({"record": "/no/such/folder/windows.jsonl"}, "record must be a file in a folder that exists"),
    ],
)
def test_meter_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Meter(**arguments)


def test_a_recording_never_replaces_a_file(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for record in (file, tmp_path):
        with pytest.raises(ValueError, match="record must be a new or empty file"):
            Meter(record=record)
    assert file.read_text() == "mine"


def test_the_provenance_names_all_that_determines_the_values(tmp_path: Path) -> None:
    meter = Meter(provider="aws", pue=1.2, powercap=tmp_path)
    found = meter.provenance()
    assert found.method == MODEL
    assert found.coefficients == {**TABLE.providers["aws"], "memory_w_per_gb": TABLE.memory_w_per_gb}
    assert found.coefficients_version == TABLE.version
    assert (found.provider, found.pue, found.country) == ("aws", 1.2, None)
    assert (found.carbon_g_per_kwh, found.carbon_source) == (None, None)
    assert found.vcpus == available_cpus()
    assert found.memory_gb == pytest.approx(psutil.virtual_memory().total / 2**30)
    assert found.rapl == ()
    assert str(tmp_path) in found.notes[0]
    assert from_json(Provenance, json.loads(dumps(found))) == found
    assert list(to_json(TABLE.memory_w_per_gb)) == ["low", "central", "high", "source"]
