"""The meter: the model, windows, contamination, GPUs, files and provenance."""

from __future__ import annotations

import copy
import csv
import json
import math
import os
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from meters import LOST, NOT_SUPPORTED, StandIn, burn
from processes import Child, python, run_python

from joulecache.pipelines.core.codec import dumps, from_json, to_json
from joulecache.pipelines.energy import Energy, Meter, Provenance, available_cpus
from joulecache.pipelines.energy.machine import contamination, machine_use
from joulecache.pipelines.energy.model import coefficients
from joulecache.pipelines.energy.nvml import Nvml
from joulecache.pipelines.energy.process_tree import TICK_S

MODEL = "modelled:cpu-seconds@1"
TABLE = coefficients()


def isclose(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-300)


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


def test_a_meter_is_not_sent_to_other_processes() -> None:
    meter = Meter()
    assert copy.copy(meter) is copy.deepcopy(meter) is meter
    with pytest.raises(TypeError, match="a meter belongs to its process: make one in every process, and add up"):
        pickle.dumps(meter)


def test_forked_child_does_not_report_its_parents_window() -> None:
    done = run_python("""
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


# ---- contamination ----


def test_work_of_other_processes_is_separated_from_that_of_the_tree() -> None:
    with Child(*python(WAITING)) as metering:
        metering.receive()
        burn(0.5)  # this process is not a descendant of that one
        seen = Energy.from_json(json.loads(metering.ask()))
    machine, share = seen.contamination, seen.contamination_shares["others"]
    assert machine is not None
    assert machine.machine_cpu_s is not None
    assert share is not None
    used_s = machine.machine_cpu_s - seen.cpu_s
    assert 0.5 - machine.resolution_s - 0.1 <= used_s <= machine.capacity_s + 2 * machine.resolution_s
    assert share == pytest.approx(min(1.0, used_s / machine.capacity_s))  # ticks can add up to more than the time
    if used_s > 0.06 * machine.capacity_s + machine.resolution_s:  # unless the machine paused
        assert f"other processes used {share:.0%} of the processors" in seen.flags


WAITING = """
import json
from joulecache.pipelines.energy import Meter
with Meter().window("waiting") as window:
    print(flush=True)
    input()
print(json.dumps(window.energy.to_json()))
"""


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


def test_a_gpu_is_a_separate_component_and_all_active(tmp_path: Path) -> None:
    library = StandIn(energy_mj=[100_000])
    meter = Meter(powercap=tmp_path, nvml=Nvml(library))
    with meter.window("work") as window:
        library.energy_mj[0] = 350_000
        burn(0.01)
    seen = window.energy
    assert seen.components["gpu"] is not None
    assert seen.components["gpu"].value_j == 250.0
    assert seen.active_j > 250.0
    assert seen.total_j > seen.active_j
    assert seen.method == seen.active.method == f"{MODEL}+measured:nvml"
    assert seen.update_s == 0.1
    assert "too short" in seen.flags[0] or seen.duration_s >= 1
    assert meter.provenance().gpus == ("Stand-in 0",)


def test_a_gpu_is_polled_inside_windows(tmp_path: Path) -> None:
    library = StandIn(energy_mj=[NOT_SUPPORTED], power_mw=[100_000])
    with Meter(powercap=tmp_path, nvml=Nvml(library)).window("work") as window:
        pass
    assert window.energy.components["gpu"] is not None


@pytest.mark.parametrize("readings", [(LOST, 3), (3, LOST), (3, 2)])
def test_a_gpu_that_cannot_be_read_is_not_in_the_total_and_noted(tmp_path: Path, readings: tuple[Any, Any]) -> None:
    library = StandIn(energy_mj=[1])
    meter = Meter(powercap=tmp_path, nvml=Nvml(library))
    library.energy_mj[0] = readings[0]
    with meter.window("work") as window:
        library.energy_mj[0] = readings[1]
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
    done = run_python("""
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
        ({"provider": "AWS "}, "provider must be one of generic, aws, gcp, azure, got 'AWS '"),
        ({"country": "france"}, r"unknown country 'france': did you mean FRA \(France\)"),
        ({"country": "DEV"}, r"DEU \(Germany\)"),
        ({"country": "12345"}, "unknown country '12345': expected an ISO 3166 alpha-3 code"),
        ({"country": True}, "country must be .*, got True"),
        ({"idle_w": -1, "full_w": 50}, "idle_w must be a finite number of at least 0, got -1"),
        ({"idle_w": 5, "full_w": math.nan}, "full_w must be .*, got nan"),
        ({"idle_w": 5}, "full_w must be .*, got None"),
        ({"full_w": 5}, "idle_w must be .*, got None"),
        ({"idle_w": 50, "full_w": 5}, "full_w must be at least idle_w, 50, got 5"),
        ({"idle_w": 5, "full_w": 50, "provider": "aws"}, "provider and watts exclude each other"),
        ({"emissions": "/no/such/folder"}, "/no/such/folder"),
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
