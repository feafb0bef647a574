"""Two audits compared: ratios against scipy's Welch interval, what differed, and an exit code for CI."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audits import audit_of
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from joulecache.pipelines import cli
from joulecache.pipelines.auditing.changes import compare_audits
from joulecache.pipelines.auditing.results import Audit
from joulecache.pipelines.experiment.statistics import unpaired_ratio

positive = st.floats(1e-3, 1e3)
series = st.lists(positive, min_size=2, max_size=20)


@given(series, series)
def test_the_interval_of_a_ratio_is_welchs(numerators: list[float], denominators: list[float]) -> None:
    ratio = unpaired_ratio(numerators, denominators)
    logs = [np.log(numerators), np.log(denominators)]
    assert ratio.value == pytest.approx(math.exp(logs[0].mean() - logs[1].mean()))
    assert ratio.low is not None
    assert ratio.high is not None
    if min(each.std() for each in logs) < 1e-6:
        return  # scipy warns of what it divides by
    expected = stats.ttest_ind(*logs, equal_var=False).confidence_interval()
    assert math.log(ratio.low) == pytest.approx(expected.low, abs=1e-6)
    assert math.log(ratio.high) == pytest.approx(expected.high, abs=1e-6)


def test_what_does_not_vary_has_no_width_and_one_value_no_interval() -> None:
    same = unpaired_ratio([3.0, 3.0], [2.0, 2.0, 2.0])
    assert (same.low, same.value, same.high) == pytest.approx((1.5, 1.5, 1.5))
    single = unpaired_ratio([3.0], [2.0, 4.0])
    assert (single.low, single.high, single.blocks) == (None, None, 1)
    for bad in ([], [0.0], [-1.0, 2.0]):
        with pytest.raises(ValueError, match="a ratio needs positive values"):
            unpaired_ratio(bad, [1.0])


BEFORE = audit_of()


def changed(factor: float = 1.0) -> Audit:
    """Return an audit in which the cache used `factor` times the energy of `BEFORE`, and some settings differ."""
    result, *others = BEFORE.workloads
    optimized = result.arm("optimized")
    blocks = tuple(factor * each for each in optimized.active_j_per_1000_by_block)
    costs = dataclasses.replace(optimized, active_j_per_1000_by_block=blocks, finding="costs")
    arms = tuple(costs if arm is optimized else arm for arm in result.arms)
    run = BEFORE.provenance
    assert BEFORE.build is not None
    return dataclasses.replace(
        BEFORE,
        workloads=(dataclasses.replace(result, arms=arms), *others),
        build=dataclasses.replace(BEFORE.build, variants=3),
        provenance=dataclasses.replace(run, batch_size=8, versions={**run.versions, "keras": "3.0.0"}),
    )


def test_the_change_of_each_arm_and_of_the_settings() -> None:
    found = compare_audits(BEFORE, changed(1.5))
    naive, optimized = found.arms[0], found.arms[3]
    assert (naive.arm, naive.ratio.value) == ("naive", 1)
    assert (optimized.arm, optimized.workload) == ("optimized", "input")
    assert optimized.ratio.value == pytest.approx(1.5)
    assert (optimized.before.finding, optimized.after.finding) == ("saves", "costs")
    assert found.settings == {"batch_size": (64, 8), "keras": (None, "3.0.0"), "variants": (1, 3)}
    assert found.above(1.4) == (optimized,)
    assert found.above(1.6) == ()
    assert json.loads(json.dumps(found.to_json()))["arms"][3]["ratio"]["blocks"] == 5


def test_arms_of_one_audit_alone_are_named() -> None:
    (result, _) = BEFORE.workloads
    naive, tuned = result.arms[:2]
    before = dataclasses.replace(BEFORE, workloads=(dataclasses.replace(result, arms=(naive,)),))
    after = dataclasses.replace(BEFORE, workloads=(dataclasses.replace(result, arms=(naive, tuned)),))
    found = compare_audits(before, after)
    assert ([arm.arm for arm in found.arms], found.only_before, found.only_after) == (["naive"], (), ("input, tuned",))
    only = dataclasses.replace(BEFORE, workloads=(dataclasses.replace(result, arms=(tuned,)),))
    with pytest.raises(ValueError, match="no arm of a workload in common: input, naive in the first, input, tuned in"):
        compare_audits(before, only)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return written(BEFORE, tmp_path / "before.json")


def written(audit: Audit, path: Path) -> Path:
    path.write_text(json.dumps(audit.to_json()))
    return path


def joulecache(monkeypatch: pytest.MonkeyPatch, capfd: Any, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["joulecache", "audit", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), *capfd.readouterr()


def test_the_command_fails_above_a_ratio(
    report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    after = written(changed(1.5), tmp_path / "after.json")
    code, out, err = joulecache(monkeypatch, capfd, "--compare", report, after)
    assert (code, err) == (0, "")
    assert "keras: none before, 3.0.0 after" in out
    assert "1.500" in out
    assert "input, optimized: saves before, costs after" in out
    code, out, err = joulecache(monkeypatch, capfd, "--compare", report, after, "--fail-above", 1.4)
    assert code == 1
    assert err.splitlines() == ["input, optimized: 1.500 times the active energy, above 1.4"]
    assert "Arms that use more energy: 1; less: 0; no difference shown: 7." in out
    code, out, _ = joulecache(monkeypatch, capfd, "--compare", report, after, "--fail-above", 1.6, "--json")
    assert code == 0
    assert json.loads(out)["arms"][3]["arm"] == "optimized"


def test_the_comment_for_a_pull_request_names_the_arms_that_changed(
    report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    after = written(changed(1.5), tmp_path / "after.json")
    code, out, err = joulecache(monkeypatch, capfd, "--compare", report, after, "--markdown", "--fail-above", 1.4)
    assert (code, len(err.splitlines())) == (1, 1)
    lines = out.splitlines()
    assert lines[:4] == [
        "# joulecache: changes",
        "",
        "**Arms that use more energy: 1; less: 0; no difference shown: 7.**",
        "",
    ]
    assert lines[4] == "input, optimized: **1.500 (1.500 to 1.500) times the active energy**"
    assert "> The two audits differ in batch_size, variants, keras: the ratios include the effect of that." in lines
    assert "| input | optimized | 0.125 | 0.125 | 1.500 (1.500 to 1.500) | 0.036 | 0.036 |" in lines
    less = written(changed(0.5), tmp_path / "less.json")
    assert "more energy: 0; less: 1;" in joulecache(monkeypatch, capfd, "--compare", report, less, "--markdown")[1]
    same = joulecache(monkeypatch, capfd, "--compare", report, report, "--markdown")[1]
    assert "more energy: 0; less: 0; no difference shown: 8." in same
    assert "differ in" not in same


def test_the_folders_of_audits_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / "before", tmp_path / "after"]
    for folder, audit in zip(folders, (BEFORE, changed(1.5)), strict=True):
        folder.mkdir()
        written(audit, folder / "report.json")
    code, out, err = joulecache(monkeypatch, capfd, "--compare", *folders)
    assert (code, err) == (0, "")
    assert "1.500" in out


def test_what_cannot_be_compared_is_one_line_and_code_2(
    report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.json").write_text('{"report_version": 1}')
    (tmp_path / "text.json").write_text("hello")
    for bad in ("other.json", "text.json"):
        code, _, err = joulecache(monkeypatch, capfd, "--compare", report, tmp_path / bad)
        assert code == 2
        assert f"{bad}' is not the report of an audit" in err
        assert len(err.splitlines()) == 1
    code, _, err = joulecache(monkeypatch, capfd, "--compare", report, tmp_path / "none.json")
    assert code == 2
    assert "none.json" in err
    for arguments in (
        ("photos/", "--compare", report, report),
        ("photos/",),
        ("--fail-above", 1.1),
        ("--markdown",),
        (),
    ):
        code, _, err = joulecache(monkeypatch, capfd, *arguments)
        assert code == 2, arguments
        assert "--compare" in err
