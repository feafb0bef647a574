"""Data from CodeCarbon against CodeCarbon itself: its tables, its file format, its tracker."""

from __future__ import annotations

import csv
import fcntl
import json
import logging
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from codecarbon import OfflineEmissionsTracker
from codecarbon.input import DataSource
from codecarbon.output import OutputMethod
from codecarbon.output_methods.emissions_data import EmissionsData
from processes import Child, python

from joulecache.pipelines.energy import COMPONENTS, Component, Energy
from joulecache.pipelines.energy.carbon import EmissionsFile, countries, grid_intensity, hardware_of, quiet

COLUMNS = list(EmissionsData.__dataclass_fields__)


def part(value_j: float, method: str = "modelled:cpu-seconds@1") -> Component:
    return Component(value_j, value_j, value_j, method, "a table", "process tree", "1 us")


def energy(duration_s: float = 2.0, carbon_g: float | None = 3.0, **parts: Component) -> Energy:
    return Energy(
        components=dict.fromkeys(COMPONENTS) | (parts or {"cpu": part(36.0), "idle": part(18.0), "dram": part(7.2)}),
        active=part(0.0),
        duration_s=duration_s,
        cpu_s=1.0,
        read_bytes=None,
        written_bytes=None,
        peak_rss_bytes=None,
        carbon_g=carbon_g,
    )


# ---- tables ----


def test_countries_are_codecarbons() -> None:
    table = DataSource().get_global_energy_mix_data()
    assert len(table) > 150
    assert countries() == table
    assert grid_intensity(None) == (None, None)
    code, intensity = grid_intensity(" fra")
    assert code == "FRA"
    assert intensity is not None
    assert 0 < intensity < 200


@pytest.mark.parametrize(
    ("model", "tdp_w"),
    [
        ("Intel(R) Xeon(R) Platinum 8480+", 350.0),
        ("AMD EPYC 7763 64-Core Processor", 280.0),
        ("Intel(R) Xeon(R) Processor", None),
    ],
)
def test_power_of_processors_that_codecarbon_knows_and_no_guess(
    capfd: pytest.CaptureFixture[str], model: str, tdp_w: float | None
) -> None:
    found = hardware_of(model)
    assert (found.name, found.tdp_w) == (model, tdp_w)
    assert capfd.readouterr() == ("", "")


def test_codecarbon_looks_where_linux_has_no_name() -> None:
    assert hardware_of(None).name


# ---- emissions.csv ----


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "emissions.csv", newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == COLUMNS
        return list(reader)


def test_rows_have_codecarbons_format(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = EmissionsFile(tmp_path, "FRA", 1.5)
    file.append("train", energy())
    counted = replace(part(72.0, "modelled:rapl-pue@1"), scope="machine")
    file.append('a, "b"', energy(carbon_g=1.0, cpu=counted, gpu=part(360.0, "measured:nvml")))
    first, second = rows_of(tmp_path)
    assert (first["project_name"], second["project_name"]) == ("train", 'a, "b"')
    assert first["run_id"] == second["run_id"]
    assert float(first["cpu_energy"]) == pytest.approx((36.0 + 18.0) / 3.6e6)
    assert float(first["ram_energy"]) == pytest.approx(7.2 / 3.6e6)
    assert float(first["energy_consumed"]) == pytest.approx(61.2 / 3.6e6)
    assert float(first["emissions"]) == pytest.approx(0.003)
    assert float(first["emissions_rate"]) == pytest.approx(0.0015)
    assert float(first["cpu_power"]) == pytest.approx(27.0)
    assert float(first["ram_power"]) == pytest.approx(3.6)
    assert (first["country_name"], first["country_iso_code"], float(first["pue"])) == ("France", "FRA", 1.5)
    assert (first["tracking_mode"], second["tracking_mode"]) == ("process", "machine")
    assert float(second["gpu_energy"]) == pytest.approx(1e-4)
    assert capfd.readouterr() == ("", "")


def test_what_was_not_measured_is_an_empty_cell(tmp_path: Path) -> None:
    EmissionsFile(tmp_path, None, 1.0).append("train", energy(carbon_g=None, duration_s=0.0, cpu=part(0.0)))
    (row,) = rows_of(tmp_path)
    empty = [
        "emissions",
        "emissions_rate",
        "gpu_energy",
        "gpu_power",
        "ram_energy",
        "cpu_power",
        "country_name",
        "water_consumed",
    ]
    assert {row[name] for name in empty} == {""}
    assert float(row["cpu_energy"]) == 0.0  # measured as 0


def test_rows_and_those_of_codecarbons_tracker_share_a_file(tmp_path: Path) -> None:
    for ours_first in (False, True):
        folder = tmp_path / str(ours_first)
        folder.mkdir()
        if ours_first:
            EmissionsFile(folder, "FRA", 1.0).append("ours", energy())
        tracker = OfflineEmissionsTracker(
            project_name="theirs",
            country_iso_code="FRA",
            output_dir=str(folder),
            output_methods=[OutputMethod.CSV],
            log_level="critical",
        )
        tracker.start()
        tracker.stop()
        if not ours_first:
            EmissionsFile(folder, "FRA", 1.0).append("ours", energy())
        table = pd.read_csv(folder / "emissions.csv")
        assert sorted(path.name for path in folder.iterdir()) == ["emissions.csv"]  # none was renamed
        assert sorted(table.project_name) == ["ours", "theirs"]
        assert table.energy_consumed.sum() > 61.2 / 3.6e6
        assert set(table.country_iso_code) == {"FRA"}
        assert set(table.dtypes[table.dtypes == "float64"].index) >= {"duration", "emissions", "energy_consumed"}


WRITER = """
import json, sys
from joulecache.pipelines.energy import Energy
from joulecache.pipelines.energy.carbon import EmissionsFile
energy = Energy.from_json(json.loads(sys.argv[2]))
EmissionsFile(sys.argv[1], None, 1.0).append("warm", energy)
print(flush=True)
for folder in sys.stdin:
    EmissionsFile(folder.strip(), None, 1.0).append("window", energy)
    print(flush=True)
"""


def test_concurrent_processes_write_whole_rows_and_one_header(tmp_path: Path) -> None:
    writers, written = [], json.dumps(energy(cpu=part(36.0)).to_json())
    for number in range(3):
        (tmp_path / f"warm {number}").mkdir()
        writers.append(Child(*python(WRITER, tmp_path / f"warm {number}", written)))
    assert [writer.receive() for writer in writers] == ["\n"] * 3
    for turn in range(10):
        folder = tmp_path / str(turn)
        folder.mkdir()
        for writer in writers:
            writer.send(folder)
        assert [writer.receive() for writer in writers] == ["\n"] * 3
        rows = rows_of(folder)
        assert len(rows) == len({row["run_id"] for row in rows}) == 3
        assert {float(row["energy_consumed"]) for row in rows} == {1e-5}
        assert [path.name for path in folder.iterdir()] == ["emissions.csv"]
    for writer in writers:
        writer.end()


@pytest.mark.parametrize("folder", ["/no/such/folder", __file__, 3])
def test_a_missing_folder_is_refused(folder: Any) -> None:
    with pytest.raises(ValueError, match="emissions must be a folder that exists"):
        EmissionsFile(folder, None, 1.0)


@contextmanager
def full_disk(most_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size; expect the error of one that should."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("rows_before", [0, 2])
def test_a_row_on_a_full_disk_leaves_nothing_of_it(tmp_path: Path, rows_before: int) -> None:
    file = EmissionsFile(tmp_path, "FRA", 1.0)
    path = tmp_path / "emissions.csv"
    for _ in range(rows_before):
        file.append("before", energy())
    kept = path.read_bytes() if rows_before else b""
    with full_disk(len(kept) + 100):
        file.append("torn", energy())
    assert path.read_bytes() == kept
    file.append("after", energy())
    assert [row["project_name"] for row in rows_of(tmp_path)] == ["before"] * rows_before + ["after"]


def test_a_file_of_another_format_survives_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "emissions.csv").write_text("mine,too\n1,2\n")
    with full_disk(100):
        EmissionsFile(tmp_path, "FRA", 1.0).append("torn", energy())
    assert (tmp_path / "emissions.csv.bak").read_text() == "mine,too\n1,2\n"
    assert (tmp_path / "emissions.csv").read_bytes() == b""


def test_a_row_does_not_continue_a_line_without_an_end(tmp_path: Path) -> None:
    """As editors leave it: mlco2/codecarbon#43."""
    file = EmissionsFile(tmp_path, "FRA", 1.0)
    file.append("one", energy())
    path = tmp_path / "emissions.csv"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    for name in ("two", "three"):
        file.append(name, energy())
    rows = rows_of(tmp_path)
    assert [row["project_name"] for row in rows] == ["one", "two", "three"]
    assert {len(row) for row in rows} == {len(rows[0])}


@pytest.mark.parametrize("content", [b"\xff\xfe\x00binary", b"x" * 200_000])
def test_a_file_that_is_not_csv_is_an_oserror_and_stays(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "emissions.csv").write_bytes(content)
    with pytest.raises(OSError, match=r"emissions\.csv is not a CSV file"):
        EmissionsFile(tmp_path, "FRA", 1.0).append("train", energy())
    assert (tmp_path / "emissions.csv").read_bytes() == content


def test_a_row_waits_for_another_writer(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    writer = threading.Thread(target=EmissionsFile(tmp_path, "FRA", 1.0).append, args=("train", energy()))
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        writer.start()
        writer.join(1.0)
        assert writer.is_alive()
        assert not (tmp_path / "emissions.csv").exists()
    finally:
        os.close(folder)
        writer.join(30)
    assert len(rows_of(tmp_path)) == 1


def test_quiet_blocks_of_threads_end_in_any_order() -> None:
    seen: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = seen.append  # type: ignore[assignment]
    logger = logging.getLogger("codecarbon")
    first, second, level = quiet(), quiet(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR)
    try:
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        logger.error("one is open")
        second.__exit__(None, None, None)
        assert not seen
        logger.error("none is open")
        assert [record.msg for record in seen] == ["none is open"]
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
