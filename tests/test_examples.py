"""The examples: each runs as it is, in an empty folder."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import environment

import joulecache as jc

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PRINTS = {
    "cache_in_a_beam_pipeline.py": "written: 100 records, ",
    "train_from_a_cache.py": "epoch 2: loss ",
    "audit_your_own_pipelines.py": "kept: ",
    "compress_for_a_small_device.py": "pruned-int8: ",
    "predict_masks.py": "mean IoU ",
    "predict_boxes.py": "IoU ",
    "predict_tags.py": "AUC ",
    "predict_numbers.py": "R2 ",
}
LEARNED = {"predict_masks.py": 0.4, "predict_boxes.py": 0.4, "predict_tags.py": 0.7, "predict_numbers.py": 0.25}
"""The least that the printed metric must be, far above chance."""


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {*PRINTS, "audit.ipynb"}


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTS)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line = next((line for line in done.stdout.splitlines() if line.startswith(PRINTS[name])), None)
    assert line is not None, done.stdout
    if name in LEARNED:
        assert float(line.removeprefix(PRINTS[name]).split()[0].rstrip(",")) >= LEARNED[name], done.stdout


@pytest.mark.slow
def test_the_notebook_runs_and_shows_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "audit.ipynb").read_text("utf-8"))
    names: dict[str, Any] = {}
    shown = []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == []
        parsed = ast.parse("".join(cell["source"]))
        last = parsed.body[-1]
        if isinstance(last, ast.Expr):
            parsed.body.pop()
        exec(compile(parsed, "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names)._repr_html_())
    plan, built, energy, audit = shown
    assert "joulecache precompute" in plan
    assert "random_crop(64)" in built
    assert "CPU time" in energy
    assert "A/A control" in audit
    assert "\x1b" not in plan + audit


def test_a_notebook_escapes_what_it_shows(tmp_path: Path, photo: bytes) -> None:
    name = "<img src=x onerror=alert(1)>"
    for folder in (name, "other"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        (tmp_path / "photos" / folder / "a.jpg").write_bytes(photo)
    built = jc.precompute(tmp_path / "photos", tmp_path / "cache", "decode|resize(8)", val_fraction=0)
    shown = built._repr_html_() or ""
    assert "<img" not in shown
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown
    with jc.Meter().window("work") as window:
        pass
    assert "not measured" in (window.energy._repr_html_() or "")
