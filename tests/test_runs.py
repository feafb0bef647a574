"""Runs of an audit are kept as they are done: one that was stopped goes on, and what was measured stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_audits import audit, energy
from small_audits import logged as all_logged

from joulecache.pipelines.energy import Meter
from joulecache.pipelines.experiment.runs import Run, RunLog, Slot
from joulecache.pipelines.source import synthetic_photo

CHAIN = "decode|resize(40) || random_crop(32)|flip_lr"
ARMS = ("naive", "tf_cache", "tf_cache_file", "tfrecord", "optimized")
EACH = (*ARMS, "naive")  # the control


def run_of(arm: str, block: int, attempt: int = 1, workload: str = "input", active_j: float = 1.0) -> Run:
    return Run(
        attempt=attempt,
        workload=workload,
        block=block,
        place=0,
        arm=arm,
        images=10,
        energy=energy(active_j),
        score=None,
    )


def test_runs_come_back_from_the_file_as_they_were(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "runs.jsonl")
    assert (log.runs, log.attempt) == ([], 1)
    runs = [run_of(arm, block, active_j=0.1 * block + 0.3) for block in range(2) for arm in "ab"]
    for run in runs:
        log.add(run)
    again = RunLog(tmp_path / "runs.jsonl")
    assert again.runs == runs
    assert again.attempt == 2
    assert again.block("input", 1, [Slot("b"), Slot("a")]) == runs[2:]
    assert again.block("train", 1, [Slot("a"), Slot("b")]) is None


@given(st.integers(0, 400))
def test_a_line_that_was_cut_short_is_dropped(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("log") / "runs.jsonl"
    log = RunLog(path)
    for arm in "ab":
        log.add(run_of(arm, 0))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 1 - cut])
    again = RunLog(path)
    assert again.runs == [run_of("a", 0)]
    again.add(run_of("b", 0, attempt=again.attempt))
    assert RunLog(path).runs == [run_of("a", 0), run_of("b", 0, attempt=2)]


def test_a_block_counts_when_all_its_arms_ran_in_one_attempt(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "runs.jsonl")
    log.add(run_of("a", 0))
    assert log.block("input", 0, [Slot("a"), Slot("b")]) is None
    later = RunLog(tmp_path / "runs.jsonl")
    later.add(run_of("b", 0, attempt=2))
    assert (
        later.block("input", 0, [Slot("a"), Slot("b")]) is None
    )  # half a block and half a block, hours apart, are no block
    later.add(run_of("a", 0, attempt=2))
    assert later.block("input", 0, [Slot("a"), Slot("b")]) == [run_of("b", 0, attempt=2), run_of("a", 0, attempt=2)]
    assert later.block("input", 0, [Slot("a")]) == [run_of("a", 0)]


def test_a_block_needs_its_control_and_its_parts(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "runs.jsonl")
    whole = run_of("a", 0)
    runs = [whole, replace(whole, role="control"), replace(whole, role="part", part="input")]
    each = [Slot("a"), Slot("a", "control"), Slot("a", "part", "input")]
    for run, wanted in zip(runs, (each[:1], each[:2], each), strict=True):
        assert log.block("input", 0, each) is None
        log.add(run)
        assert log.block("input", 0, wanted) == log.runs
    assert RunLog(log.path).block("input", 0, each) == runs


def test_logs_without_roles_are_read(tmp_path: Path) -> None:
    """Earlier versions put the role into the name of the arm: those blocks run again."""
    log = RunLog(tmp_path / "runs.jsonl")
    for arm in ("a", "a again", "a, input alone"):
        log.add(run_of(arm, 0))
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    for line in lines:
        del line["role"], line["part"], line["waited_s"]
    log.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    old = RunLog(log.path)
    assert old.runs == log.runs
    assert old.attempt == 2
    assert old.block("input", 0, [Slot("a"), Slot("a", "control")]) is None


def test_what_is_no_log_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text('{"arm": 3}\n')
    with pytest.raises(ValueError, match="line 1: not a run: at attempt: field required"):
        RunLog(tmp_path / "runs.jsonl")


def logged(out: Path) -> list[dict[str, Any]]:
    return all_logged(out, stages=False)


def stopping_at(block: int) -> Any:
    def progress(what: str, done: int, total: int) -> None:
        if (
            what.startswith(f"input: block {block} ") and done % 4 == 2
        ):  # neither the first nor the last run of any of these audits
            raise KeyboardInterrupt

    return progress


@pytest.mark.slow
def test_an_audit_that_was_stopped_goes_on(photo_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"arms": ARMS, "workloads": ("input",), "batch_size": 8, "pairs": 3}
    out = tmp_path / "audit"
    with pytest.raises(KeyboardInterrupt):
        audit(photo_folder, CHAIN, out, progress=stopping_at(3), **settings)
    before = logged(out)
    assert {(run["workload"], run["attempt"]) for run in before} == {("fill", 1), ("input", 1)}
    cut = [run for run in before if (run["workload"], run["block"]) == ("input", 2)]
    assert 0 < len(cut) < len(EACH)
    filled = out / ".audit" / "shuffled"
    (filled / "tf_cache_file.index").rename(
        filled / "tf_cache_file_0.lockfile"
    )  # as if it was killed while it filled it
    result = audit(photo_folder, CHAIN, out, **settings)
    after = logged(out)
    assert after[: len(before)] == before
    again = after[len(before) :]
    assert [(run["workload"], run["block"], run["attempt"]) for run in again] == [("input", 2, 2)] * len(EACH)
    assert sorted(run["arm"] for run in again) == sorted(EACH)
    counted = [run for run in after if run["workload"] == "input" and run not in cut]
    optimized = [run["energy"]["active_j"] / run["images"] for run in counted if run["arm"] == "optimized"]
    shown = {arm.name: arm for arm in result.workloads[0].arms}
    assert shown["optimized"].active_j_per_1000.value == pytest.approx(1000 * sum(optimized) / 3)
    assert shown["optimized"].runs == 3
    assert min(shown[name].one_time.value for name in ARMS[1:]) > 0
    assert sorted(path.name for path in out.rglob("*.json*")) == ["cache.json", "runs.jsonl", "settings.json"]
    assert not [path for path in (out / ".audit").iterdir() if path.is_dir()]  # neither its files nor its cache


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"batch_size": 4},
        {"seed": 1},
        {"chain": "decode|resize(40)|central_crop(32)"},
        {"meter": Meter(idle_w=5, full_w=20)},
    ],
    ids=["batch", "seed", "chain", "watts"],
)
def test_an_audit_of_something_else_begins_anew(photo_folder: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"arms": ("naive", "optimized"), "workloads": ("input",), "batch_size": 8, "pairs": 2}
    out = tmp_path / "audit"
    with pytest.raises(KeyboardInterrupt):
        audit(photo_folder, CHAIN, out, progress=stopping_at(2), **settings)
    audit(photo_folder, out=out, **{"chain": CHAIN, **settings, **changed})
    assert {run["attempt"] for run in logged(out)} == {1}
    assert len(logged(out)) == 2 * 3


@pytest.mark.slow
def test_a_source_that_changed_meanwhile_begins_anew(tmp_path: Path) -> None:
    source, out = tmp_path / "photos", tmp_path / "audit"
    source.mkdir()
    for index in range(12):
        (source / f"{index}.jpg").write_bytes(synthetic_photo(index))
    settings: dict[str, Any] = {"arms": ("naive", "optimized"), "workloads": ("input",), "batch_size": 4, "pairs": 2}
    with pytest.raises(KeyboardInterrupt):
        audit(source, CHAIN, out, progress=stopping_at(2), **settings)
    (source / "another.jpg").write_bytes(synthetic_photo(99))
    audit(source, CHAIN, out, **settings)
    assert {run["attempt"] for run in logged(out)} == {1}


@pytest.mark.slow
def test_the_order_of_a_block_does_not_depend_on_what_ran_before(photo_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"arms": ("naive", "optimized"), "workloads": ("input",), "batch_size": 8}
    audit(photo_folder, CHAIN, tmp_path / "two", pairs=2, **settings)
    audit(photo_folder, CHAIN, tmp_path / "four", pairs=4, **settings)
    orders = [[run["arm"] for run in logged(tmp_path / name)] for name in ("two", "four")]
    assert orders[1][: len(orders[0])] == orders[0]
    assert len({tuple(orders[1][start : start + 3]) for start in range(0, 12, 3)}) > 1


@pytest.mark.slow
def test_an_audit_that_was_killed_goes_on(photo_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "audit"
    options = (
        "--chain",
        CHAIN,
        "--out",
        str(out),
        "--workload",
        "input",
        "--pairs",
        "6",
        "--batch-size",
        "8",
        "--json",
    )
    command = [
        sys.executable,
        "-c",
        "import functools; from joulecache.pipelines.auditing import auditor, config; "
        "budget = config.Budget(shortest_run_s=0.1, stage_run_s=0.0); "
        "auditor.audit = functools.partial(auditor.audit, budget=budget); "
        "from joulecache.pipelines.cli import main; main()",
        "audit",
        str(photo_folder),
        *options,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "runs.jsonl").exists() or len((out / "runs.jsonl").read_bytes().splitlines()) < 15:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = (out / "runs.jsonl").read_bytes().splitlines()
    assert not (out / "report.json").exists()
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    after = (out / "runs.jsonl").read_bytes().splitlines()
    assert after[: len(before) - 1] == before[:-1]  # the last one may have been cut
    assert {json.loads(line)["attempt"] for line in after} == {1, 2}
    (shown,) = json.loads(done.stdout)["workloads"]
    assert [arm["runs"] for arm in shown["arms"]] == [12, 6, 6, 6, 6]
