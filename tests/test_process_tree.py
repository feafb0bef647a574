"""What the meter counts of real process trees: CPU seconds, bytes, memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from meters import burn
from processes import Child, run_python

from joulecache.pipelines.energy import Meter, Window, available_cpus
from joulecache.pipelines.energy.process_tree import (
    TICK_S,
    ProcessUse,
    descendants,
    io_bytes,
    listed_children,
    process_use,
    searched_children,
)

# Works up to a given CPU second for each line of input, and answers with its CPU time.
WORKER = """
import sys, time
for line in sys.stdin:
    while time.process_time() < float(line):
        pass
    print(time.process_time(), flush=True)
"""


def worker(*prefix: str) -> Child:
    return Child(*prefix, sys.executable, "-c", WORKER)


def work_to(child: Child, cpu_s: float) -> float:
    """Have a worker work up to a CPU second; return its CPU time."""
    return float(child.ask(cpu_s))


def own_cpu_s() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


# CPU seconds ----------------------------------------------------------------------------------------------------------


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
    code = "import time\nwhile time.process_time() < 0.05: pass"
    with bounded() as window:
        for _ in range(8):
            subprocess.run([sys.executable, "-S", "-c", code], check=True)
    assert window.energy.cpu_s >= 8 * 0.05


def test_cpu_seconds_of_a_child_that_outlives_the_window() -> None:
    with worker() as child:
        start_s = work_to(child, 0.05)
        with Meter().window("child") as window:
            own_s = time.process_time()
            end_s = work_to(child, start_s + 0.15)
            own_s = time.process_time() - own_s
    assert window.energy.cpu_s - own_s == pytest.approx(end_s - start_s, abs=2.5 * TICK_S)


def test_cpu_seconds_of_a_child_that_ends_in_the_window_are_counted_once() -> None:
    child = worker()
    start_s = work_to(child, 0.1)
    with Meter().window("child") as window:
        own_s, reaped_s = time.process_time(), own_cpu_s()
        end_s = work_to(child, start_s + 0.1)
        child.end()
        own_s = time.process_time() - own_s
        reaped_s = own_cpu_s() - reaped_s
    # getrusage alone counts all of the child here, also what it used before the window
    assert reaped_s - own_s >= end_s - 0.005
    assert window.energy.cpu_s - own_s == pytest.approx(end_s - start_s, abs=3.5 * TICK_S)


def test_cpu_seconds_of_grandchildren_reaped_by_a_live_child() -> None:
    code = "import time\nwhile time.process_time() < 0.1: pass"
    loop = 'while read line; do "$@"; echo; done'
    with Child("sh", "-c", loop, "sh", sys.executable, "-S", "-c", code) as shell:
        with Meter().window("child") as window:
            shell.ask()
        assert shell.process.poll() is None
        assert window.energy.cpu_s >= 0.1 - 2.5 * TICK_S


def test_cpu_seconds_of_orphans() -> None:
    # the shell's background child inherits its pipes and outlives it
    shell = worker("sh", "-c", 'exec 3<&0; "$@" <&3 & echo $!; wait', "sh")
    pid = int(shell.receive())
    start_s = work_to(shell, 0.1)
    with Meter().window("orphaned") as window:
        shell.process.kill()
        shell.process.wait(30)
        end_s = work_to(shell, start_s + 0.1)
    assert psutil.pid_exists(pid)
    assert end_s - start_s - 2.5 * TICK_S <= window.energy.cpu_s <= end_s - start_s + 0.1 + 2.5 * TICK_S
    shell.end()


def test_a_child_reaped_while_the_tree_is_read_is_counted_once() -> None:
    child, before = worker(), descendants()
    end_s, reads = work_to(child, 0.2), 0

    def reaped_meanwhile(pid: int) -> ProcessUse | None:
        nonlocal reads
        if pid == child.process.pid:
            reads += 1
            child.end()  # its seconds move to those of the ended, which were read before
        return process_use(pid)

    found = descendants(use_of=reaped_meanwhile)
    assert reads == 1
    assert found.cpu_s - before.cpu_s == pytest.approx(end_s, abs=3.5 * TICK_S + 0.1)


def test_the_meter_keeps_its_own_work_out_of_the_window() -> None:
    with worker() as child:
        work_to(child, 0.01)
        meter, inside_s = Meter(), 0.0
        whole_s = time.process_time()
        for _ in range(20):
            with meter.window("empty") as window:
                pass
            inside_s += window.energy.cpu_s
        whole_s = time.process_time() - whole_s
    assert inside_s < whole_s / 4


# The tree -------------------------------------------------------------------------------------------------------------


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


# Bytes, memory, processors --------------------------------------------------------------------------------------------


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
    with Child(sys.executable, "-c", code, file) as child:
        for _ in range(2):
            with Meter().window("child") as window:
                assert int(child.ask()) == size
            assert window.energy.read_bytes is not None
            assert size <= window.energy.read_bytes < 1.5 * size


def test_bytes_are_none_where_a_process_hides_them() -> None:
    assert io_bytes(["self"]) is not None
    assert io_bytes(["self", 2**30]) is None


def test_peak_memory_is_that_of_the_window_not_of_the_process_or_its_parent() -> None:
    ballast = bytearray(b"x") * 150_000_000
    done = run_python("""
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
    size, own_bytes = 60_000_000, psutil.Process().memory_info().rss
    with Child(sys.executable, "-c", f"block = bytearray(b'x') * {size}\nprint(flush=True)\ninput()") as child:
        child.receive()
        with Meter().window("child") as window:
            pass
        child.ask()
    assert window.energy.peak_rss_bytes is not None
    assert window.energy.peak_rss_bytes >= own_bytes + 0.95 * size


def test_available_cpus_follow_affinity_and_quota(tmp_path: Path) -> None:
    affinity = len(os.sched_getaffinity(0))
    assert available_cpus(tmp_path) == affinity
    for quota, expected in (("max", affinity), ("50000", 0.5), ("99900000", affinity)):
        (tmp_path / "cpu.max").write_text(f"{quota} 100000\n")
        assert available_cpus(tmp_path) == expected
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    for quota, expected in (("-1", affinity), ("25000", 0.25)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        assert available_cpus(tmp_path) == expected
