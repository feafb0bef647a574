"""The file of --prometheus: what Prometheus' own parser reads from it, after each command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from audits import audit_of, own_audit
from prometheus_client.parser import text_string_to_metric_families

from joulecache.pipelines.report.prometheus import MetricsFile, audit_metrics

Run = Callable[..., tuple[int, str, str]]
Values = dict[tuple[str, ...], float]


def values_of(path: Path, name: str, *labels: str) -> Values:
    """Return the values of a metric, by some of its labels."""
    families = {family.name: family for family in text_string_to_metric_families(path.read_text())}
    assert all(family.type == "gauge" and family.documentation for family in families.values())
    samples = families[name].samples if name in families else []
    return {tuple(sample.labels[label] for label in labels): sample.value for sample in samples}


def test_run_writes_the_energy_that_it_prints(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "nightly.prom"
    file.write_text("old")
    code, out, err = run(
        "run", "--json", "--country", "FRA", "--prometheus", file, "--", sys.executable, "-c", "exit(3)"
    )
    assert (code, err) == (3, f"Metrics: {file}\n")
    energy = json.loads(out)["energy"]
    joules = values_of(file, "joulecache_energy_joules", "task", "command", "part", "component", "method")
    known = {name: part for name, part in energy["components"].items() if part}
    assert joules == {
        ("nightly", "run", "command", name, part["method"]): part["value_j"] for name, part in known.items()
    }
    assert sum(joules.values()) == pytest.approx(energy["total_j"])
    assert values_of(file, "joulecache_exit_code") == {(): 3}
    assert values_of(file, "joulecache_co2_grams") == {(): energy["carbon_g"]}
    assert {path.name for path in tmp_path.iterdir()} == {"nightly.prom"}


def test_a_build_counts_its_images_and_without_work_has_no_energy(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "build.prom"
    build = ("precompute", "synthetic:6", tmp_path / "cache", "--chain", "decode|resize(8)", "--prometheus", file)
    assert run(*build)[0] == 0
    assert values_of(file, "joulecache_images", "part") == {("build",): 6}
    assert values_of(file, "joulecache_active_joules", "command").keys() == {("precompute",)}
    assert run(*build)[0] == 0
    assert values_of(file, "joulecache_images", "part") == {("build",): 0}
    assert values_of(file, "joulecache_active_joules") == {}
    assert values_of(file, "joulecache_finished_timestamp_seconds")


def test_an_audit_has_its_arms_and_labels_are_escaped(tmp_path: Path) -> None:
    file = tmp_path / "audit.prom"
    audit = audit_of()
    MetricsFile(file).write("audit", audit_metrics(audit))
    expected = {(result.workload, arm.name): arm.ratio.value for result in audit.workloads for arm in result.arms}
    assert values_of(file, "joulecache_active_ratio", "workload", "arm") == expected
    assert values_of(file, "joulecache_duration_seconds", "part").keys() == {("audit",), ("build",)}
    odd = 'a"b\\c\nd'
    MetricsFile(file).write("audit", audit_metrics(own_audit(odd, "other")))
    assert ("input", odd) in values_of(file, "joulecache_active_ratio", "workload", "arm")


@pytest.mark.slow
def test_training_and_validation_are_parts(tmp_path: Path, photo_cache: Path, run: Run) -> None:
    file = tmp_path / "train.prom"
    code, _, _ = run(
        "train", photo_cache, "--model", "mlp", "--epochs", 2, "--out", tmp_path / "run", "--prometheus", file
    )
    assert code == 0
    assert values_of(file, "joulecache_energy_low_joules", "part").keys() == {("training",), ("validation",)}


@pytest.mark.parametrize("command", ["run", "train", "audit", "precompute"])
def test_a_bad_path_is_refused_before_any_work(command: str, tmp_path: Path, run: Run) -> None:
    arguments = {
        "run": ("--", "touch", tmp_path / "ran"),
        "train": ("cache", "--epochs", 1, "--out", tmp_path / "run"),
        "audit": ("photos", "--chain", "decode", "--out", tmp_path / "audit"),
        "precompute": ("photos", tmp_path / "cache", "--chain", "decode"),
    }
    for path, expected in (("energy.txt", "ends in .prom"), ("none/energy.prom", "folder that exists")):
        code, _, err = run(command, "--prometheus", tmp_path / path, *arguments[command])
        assert (code, len(err.splitlines())) == (2, 1)
        assert "prometheus must be a file" in err
        assert expected in err
    assert not [*tmp_path.iterdir()]
