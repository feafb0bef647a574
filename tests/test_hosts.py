"""Sums of processes and hosts: CPU time adds up, and what belongs to a machine counts once, however the windows overlap."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulecache.pipelines.building.energy_log import host_energies, total_energy
from joulecache.pipelines.building.metering import ProcessLog
from joulecache.pipelines.energy import Component, Contamination, Energy, Meter
from joulecache.pipelines.energy.hosts import Span, host_energy, process_energies

A_J, IDLE_W, MEMORY_W = (
    2.0,
    3.0,
    0.5,
)  # of a CPU-second, of the idle machine in a second, of a process's memory in a second
POWER_W = 40.0
CPUS = 4
MODEL = "modelled:cpu-seconds@1"


def component(value_j: float, method: str, scope: str) -> Component:
    return Component(value_j, value_j / 2, value_j * 3, method, "a table", scope, "1 us")


def energy(duration_s: float, cpu_s: float, *, counted: bool) -> Energy:
    """Return what a meter says about a process of a machine that draws `POWER_W`, with counters or without."""
    if counted:
        total = component(POWER_W * duration_s, "measured:rapl", "machine")
        share = A_J * cpu_s / (A_J * cpu_s + IDLE_W * duration_s)
        parts, active = {"cpu": total}, component(total.value_j * share, "modelled:rapl-share@1", "machine")
    else:
        cpu = component(A_J * cpu_s, MODEL, "process tree")
        dram = component(MEMORY_W * duration_s, MODEL, "process tree")
        parts = {"cpu": cpu, "dram": dram, "idle": component(IDLE_W * duration_s, MODEL, "4 vCPUs")}
        active = cpu + dram
    seen = Contamination(
        capacity_s=CPUS * duration_s,
        resolution_s=0.04,
        machine_cpu_s=CPUS * duration_s / 2,
        steal_s=0.0,
        cpu_stall_s=0.0,
        memory_stall_s=0.0,
        io_stall_s=None,
    )
    return Energy(
        components={name: parts.get(name) for name in ("cpu", "dram", "gpu", "idle")},
        active=active,
        duration_s=duration_s,
        cpu_s=cpu_s,
        read_bytes=7,
        written_bytes=None,
        peak_rss_bytes=5,
        carbon_g=sum(part.value_j for part in parts.values()) / 100,
        contamination=seen,
        update_s=0.001,
    )


def span(start_s: float, end_s: float, cpu_s: float, *, counted: bool = False) -> Span:
    return Span(start_s, end_s, energy(end_s - start_s, cpu_s, counted=counted))


@st.composite
def spans(draw: st.DrawFn, counted: bool | None = None) -> Span:
    start, length = draw(st.integers(0, 50)), draw(st.integers(1, 50))
    kind = draw(st.booleans()) if counted is None else counted
    return span(start, start + length, draw(st.floats(0.01, CPUS)) * length, counted=kind)


def covered_s(found: Sequence[Span]) -> float:
    """Return for how many of the seconds some span was open: all edges are whole seconds."""
    return sum(any(one.start_s <= second < one.end_s for one in found) for second in range(101))


def sum_j(found: Sequence[Span], name: str) -> float:
    parts = (one.energy.components[name] for one in found)
    return sum(part.value_j for part in parts if part)


def close(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-9)


@given(st.lists(spans(), min_size=1, max_size=6), st.randoms())
def test_cpu_time_adds_up_and_the_order_does_not_matter(found: list[Span], random: object) -> None:
    whole = host_energy(found)
    assert close(whole.cpu_s, sum(one.energy.cpu_s for one in found))
    assert close(whole.duration_s, covered_s(found))
    assert whole.active_j <= whole.total_j * (1 + 1e-9)
    assert whole.active_low_j <= whole.active_j <= whole.active_high_j
    again = host_energy(found[::-1])
    for name in ("total_j", "low_j", "high_j", "active_j", "cpu_s", "duration_s", "carbon_g"):
        assert close(getattr(whole, name), getattr(again, name)), name
    assert whole.carbon_g is not None
    assert close(whole.carbon_g, whole.total_j / 100)
    seen = whole.contamination
    assert seen is not None
    assert close(seen.capacity_s, CPUS * covered_s(found))  # the machine counts once


@given(st.lists(spans(), min_size=1, max_size=6))
def test_the_parts_of_processes_are_their_memory_and_the_rest_by_cpu_time(found: list[Span]) -> None:
    whole, parts = host_energy(found), process_energies(found)
    for name in ("total_j", "low_j", "high_j", "active_j", "cpu_s", "duration_s", "carbon_g", "read_bytes"):
        assert close(sum(getattr(part, name) for part in parts), getattr(whole, name)), name
    for one, part in zip(found, parts, strict=True):
        assert close(part.cpu_s, one.energy.cpu_s)
        if not any(other.is_counted for other in found):
            assert close(sum_j([Span(0, 1, part)], "dram"), sum_j([one], "dram"))
            assert close(sum_j([Span(0, 1, part)], "cpu"), sum_j([one], "cpu"))


@given(st.lists(spans(counted=False), min_size=1, max_size=6))
def test_the_idle_share_of_a_host_counts_once_and_the_work_of_every_process(found: list[Span]) -> None:
    whole = host_energy(found)
    work_j = A_J * sum(one.energy.cpu_s for one in found) + sum_j(found, "dram")
    assert close(whole.active_j, work_j)
    assert close(whole.total_j, work_j + IDLE_W * covered_s(found))
    assert whole.method == MODEL


@given(st.lists(spans(counted=True), min_size=1, max_size=6))
def test_a_counter_of_the_machine_counts_once_and_is_shared_by_cpu_time(found: list[Span]) -> None:
    whole, seconds = host_energy(found), covered_s(found)
    assert close(whole.total_j, POWER_W * seconds)
    work = A_J * sum(one.energy.cpu_s for one in found)
    assert close(whole.active_j, whole.total_j * work / (work + IDLE_W * seconds))
    assert whole.method == "measured:rapl"


@given(st.lists(spans(counted=False), max_size=5))
def test_a_counter_covers_processes_that_cannot_read_it(workers: list[Span]) -> None:
    launcher = span(0, 100, 10.0, counted=True)
    whole = host_energy([*workers, launcher])
    assert close(whole.total_j, POWER_W * 100)
    assert whole.method == "measured:rapl"
    work = A_J * (10.0 + sum(one.energy.cpu_s for one in workers))
    assert close(whole.active_j, whole.total_j * work / (work + IDLE_W * 100))


def test_what_no_counter_covers_is_modelled() -> None:
    whole = host_energy([span(0, 10, 4.0, counted=True), span(5, 25, 8.0)])
    uncovered = 15 / 20
    modelled_j = uncovered * (A_J * 8 + MEMORY_W * 20 + IDLE_W * 20)
    assert close(whole.total_j, POWER_W * 10 + modelled_j)
    assert whole.method.startswith("modelled")


@given(st.lists(spans(), min_size=1, max_size=4), st.integers(2, 5))
def test_consecutive_parts_of_a_window_are_worth_the_window(found: list[Span], parts: int) -> None:
    split = [
        Span(one.start_s + part * step, one.start_s + (part + 1) * step, one.energy / parts)
        for one in found
        for step in [(one.end_s - one.start_s) / parts]
        for part in range(parts)
    ]
    whole, again = host_energy(found), host_energy(split)
    for name in ("total_j", "active_j", "cpu_s", "duration_s"):
        assert math.isclose(getattr(whole, name), getattr(again, name), rel_tol=1e-6), name


def test_gpus_of_a_host_count_once_and_one_that_only_some_can_read_is_said() -> None:
    gpu = component(100.0, "measured:nvml", "1 GPU, all its processes")
    plain = energy(10.0, 1.0, counted=False)
    seen = Energy(
        **{
            name: getattr(plain, name)
            for name in ("duration_s", "cpu_s", "read_bytes", "written_bytes", "peak_rss_bytes", "carbon_g")
        },
        components={**plain.components, "gpu": gpu},
        active=plain.active + gpu,
    )
    both = host_energy([Span(0, 10, seen), Span(0, 10, seen)])
    assert both.components["gpu"] is not None
    assert both.components["gpu"].value_j == 100
    assert close(both.active_j, 100 + 2 * plain.active_j)
    later = host_energy([Span(0, 10, seen), Span(20, 30, plain)]).components["gpu"]
    assert later is not None
    assert "only part measured" in later.source


# Logs -----------------------------------------------------------------------------------------------------------------


def log(process: str, *found: Span, machine: str = "boot", **changes: object) -> ProcessLog:
    values = {"is_complete": True, "spans": found} | changes
    return ProcessLog(process=process, machine=machine, **values)  # type: ignore[arg-type]


@st.composite
def builds(draw: st.DrawFn) -> list[ProcessLog]:
    """Return the logs of a build: a launcher, workers that it meters, and workers here and on other machines that it does not."""
    launcher = log("here:1", span(0, 100, 100.0), is_launcher=True)
    local = [
        log(f"here:{10 + number}", one, metered_by="here:1")
        for number, one in enumerate(draw(st.lists(spans(counted=False), max_size=3)))
        if one.energy.cpu_s <= 30
    ]
    others = [
        log(f"{machine}:{20 + number}", *found, machine=machine if machine != "here" else "boot")
        for number, (machine, found) in enumerate(
            draw(
                st.lists(
                    st.tuples(
                        st.sampled_from(["here", "north", "south"]),
                        st.lists(spans(), min_size=1, max_size=2, unique_by=id),
                    ),
                    max_size=4,
                )
            )
        )
    ]
    return draw(st.permutations([launcher, *local, *others]))


@given(builds())
def test_hosts_and_their_parts_add_up_to_the_whole(logs: list[ProcessLog]) -> None:
    whole = total_energy(logs, [], PROVENANCE)
    roots = [one for one in logs if not one.metered_by]
    assert close(whole.energy.cpu_s, sum(one.energy.cpu_s for one in roots))  # local workers are in the launcher's
    for name in ("total_j", "active_j", "cpu_s"):
        parts = [part for host in whole.parts for part in (host.launcher, host.workers) if part is not None]
        assert close(getattr(whole.energy, name), sum(getattr(part, name) for part in parts)), name
    workers = [one for one in logs if not one.is_launcher]
    by_workers = sum(host.workers.cpu_s for host in whole.parts if host.workers)
    assert close(by_workers, sum(one.energy.cpu_s for one in workers))
    assert sum(host.worker_processes for host in whole.parts) == len(workers)
    assert sorted(host.name for host in whole.parts) == sorted({one.host for one in logs})
    assert whole.unmetered_shards == ()


@given(builds())
def test_builds_add_up(logs: list[ProcessLog]) -> None:
    first = total_energy(logs, [], PROVENANCE)
    both = first + total_energy([log("here:1", span(0, 9, 3.0), is_launcher=True)], [], PROVENANCE)
    assert close(both.energy.cpu_s, first.energy.cpu_s + 3)
    assert close(functools.reduce(operator.add, (host.energy for host in both.parts)).total_j, both.energy.total_j)


def test_what_a_worker_did_not_report_is_said() -> None:
    launcher = log("here:1", span(0, 100, 100.0), is_launcher=True)
    dead = log("north:5", span(0, 50, 9.0), machine="north", is_complete=False, shards=(3, 7))
    late = log("north:6", machine="north", is_complete=False, shards=(7, 9))  # it reported nothing
    local = log("here:9", span(0, 50, 9.0), is_complete=False, shards=(11,), metered_by="here:1")
    found = total_energy([launcher, dead, late, local], [], PROVENANCE)
    assert found.unmetered_shards == (3, 7, 9)  # the launcher metered its own worker to the end
    killed = log("here:1", span(0, 100, 100.0), is_launcher=True, is_complete=False)
    assert total_energy([killed, dead, local], [], PROVENANCE).unmetered_shards == (3, 7, 11)


def test_a_worker_whose_launcher_left_no_log_counts_itself() -> None:
    [host] = host_energies([log("here:9", span(0, 50, 9.0), metered_by="here:1")])
    assert host.launcher is None
    assert host.energy.cpu_s == pytest.approx(9)


PROVENANCE = Meter().provenance()
