"""What a doctor finds on machines that have counters, that hide them, and that have none."""

from __future__ import annotations

import configparser
import json
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from joulecache.pipelines.cli.diagnosis import EXTRAS, examine, import_tensorflow
from joulecache.pipelines.energy.nvml import Nvml
from joulecache.pipelines.report.describe.machine import Check
from joulecache.transforms import resizing
from joulecache.transforms.versions import kernel_versions

Run = Callable[..., tuple[int, str, str]]


def processor(powercap: Path) -> Check:
    checks = examine(powercap=powercap, nvml=Nvml(), listen_s=0.01)
    return next(check for check in checks if check.what == "energy of the processor")


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
    finding = processor(counters)
    assert (finding.good, finding.found, finding.remedy) == (True, "measured by RAPL: intel-rapl:0, intel-rapl:1", None)


def test_without_counters_the_coefficients_and_a_remedy_are_shown(tmp_path: Path) -> None:
    finding = processor(tmp_path / "none")
    assert not finding.good
    assert finding.found.startswith("modelled: 2.8 J for a second of CPU time (1.2 to 6.4); no RAPL package counter")
    assert "--watts" in (finding.remedy or "")


def test_a_missing_memory_counter_is_a_problem(counters: Path) -> None:
    (counters / "intel-rapl:1" / "name").write_text("core")
    finding = processor(counters)
    assert not finding.good
    assert "RAPL has no DRAM counter" in (finding.remedy or "")


def test_the_kernels_at_work_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def finding() -> Check:
        checks = examine(powercap=tmp_path, nvml=Nvml(), listen_s=0.01)
        return next(check for check in checks if check.what == "kernels")

    for library, version in kernel_versions().items():
        assert version in finding().found, library
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    resizing._simd.cache_clear()
    slow = finding()
    resizing._simd.cache_clear()
    assert not slow.good
    assert "resizing: NumPy;" in slow.found
    assert "install cykooz-resizer" in (slow.remedy or "")


def test_a_missing_extra_is_said_with_what_it_is_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = configparser.ConfigParser()
    config.read(Path(__file__).resolve().parents[1] / "setup.cfg", encoding="utf-8")
    extras = config["options.extras_require"]
    assert {*EXTRAS} == {*extras} - {"dev", "docs"}
    assert all(package in extras[extra] for extra, (_, package) in EXTRAS.items())
    installed = metadata.version

    def version(name: str) -> str:
        if name == "obstore":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(metadata, "version", version)
    checks = {check.what: check for check in examine(powercap=tmp_path, nvml=Nvml(), listen_s=0.01)}
    missing = checks["s3:// and gs://"]
    assert (missing.good, missing.found) == (False, "obstore is not installed")
    assert missing.remedy == "run `pip install 'joulecache[cloud]'`"
    assert checks["tfds:NAME"].found == f"tensorflow-datasets {installed('tensorflow-datasets')}"


def test_the_json_has_every_finding(run: Run) -> None:
    code, out, _ = run("doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert {"what", "good", "found", "remedy"} == set(found[0])
    names = {
        "energy of the processor",
        "energy of GPUs",
        "CO2",
        "background load",
        "kernels",
        "TensorFlow",
        "s3:// and gs://",
        "memory",
        "disk",
    }
    assert names <= {finding["what"] for finding in found}


def test_a_broken_tensorflow_is_printed_with_all_other_findings(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert import_tensorflow().startswith("ModuleNotFoundError")
    code, out, err = run("doctor")
    assert code == 1
    assert "cannot be imported" in out
    assert "To do: give --country" in " ".join(out.split())
    assert "Traceback" not in err
