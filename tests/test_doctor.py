"""What a doctor finds on machines that have counters, that hide them, and that have none."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from joulecache.pipelines.cli.diagnosis import Finding, examine, import_tensorflow
from joulecache.pipelines.energy.nvml import Nvml

Run = Callable[..., tuple[int, str, str]]


def found_on(powercap: Path) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine(powercap=powercap, nvml=Nvml())}


@pytest.fixture
def counters(tmp_path: Path) -> Path:
    """A powercap folder with a package and its memory."""
    for number, name in enumerate(("package-0", "dram")):
        folder = tmp_path / f"intel-rapl:{number}"
        folder.mkdir()
        for file, text in (("name", name), ("energy_uj", "1"), ("max_energy_range_uj", "1000000")):
            (folder / file).write_text(text)
    return tmp_path


def test_counters_are_named(counters: Path) -> None:
    finding = found_on(counters)["energy of the processor"]
    assert finding == Finding(finding.what, True, "measured by RAPL: intel-rapl:0, intel-rapl:1")


def test_without_counters_the_coefficients_are_said_with_what_to_do(tmp_path: Path) -> None:
    finding = found_on(tmp_path / "none")["energy of the processor"]
    assert not finding.good
    assert finding.found.startswith("modelled: 2.8 J for a second of CPU time (1.2 to 6.4); no RAPL package counter")
    assert "--watts" in (finding.remedy or "")


def test_a_counter_without_memory_is_said(counters: Path) -> None:
    (counters / "intel-rapl:1" / "name").write_text("core")
    finding = found_on(counters)["energy of the processor"]
    assert (finding.good, finding.remedy) == (False, "RAPL has no DRAM counter: memory is not in the total")


def test_all_is_printed_with_what_to_do(run: Run) -> None:
    code, out, err = run("doctor")
    assert code == 0
    for what in ("energy of the processor", "energy of GPUs", "CO2", "quiet", "TensorFlow", "memory", "disk"):
        assert what in out
    assert "to do: give --country" in out
    assert "Traceback" not in err


def test_the_json_has_every_finding(run: Run) -> None:
    code, out, _ = run("doctor", "--json")
    assert code == 0
    assert {"what", "good", "found", "remedy"} == set(json.loads(out)[0])


def test_a_broken_tensorflow_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert import_tensorflow().startswith("ModuleNotFoundError")
    code, out, _ = run("doctor")
    assert code == 1
    assert "cannot be imported" in out
