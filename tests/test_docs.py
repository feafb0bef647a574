"""The documentation: its code runs, and what it lists exists."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import functools
import importlib
import re
import shlex
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np
import pytest
import tensorflow as tf
from commands import group, parameters
from PIL import Image

import joulecache as jc
from joulecache.pipelines.compressing.tflite import to_tflite
from joulecache.pipelines.report.prometheus import HELP
from joulecache.pipelines.training.callback import ADDED
from joulecache.transforms import ops_of
from joulecache.transforms.ops import OPS

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]

Names = dict[str, Any]


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def blocks(page: str, language: str = "python") -> list[str]:
    """Return the code blocks of a page."""
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), re.DOTALL)


def run_blocks(code: list[str], **names: Any) -> Names:
    """Run code blocks one after the other; return the names that they define."""
    assert code
    for block in code:
        exec(block, names)
    return names


@pytest.fixture(scope="module")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Path:
    """A cache of `photos` at 8x8 pixels; only to be copied."""
    folder = tmp_path_factory.mktemp("tiny") / "cache"
    jc.precompute(photo_folder, folder, "decode|resize(8)")
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo_folder: Path, photo: bytes, tiny_cache: Path) -> Path:
    """The current folder, as the pages assume it: with `photos/`, `photo.jpg` and `cache/`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(photo_folder, tmp_path / "photos")
    shutil.copytree(tiny_cache, tmp_path / "cache")
    (tmp_path / "photo.jpg").write_bytes(photo)
    return tmp_path


# Python ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["transforms.ops.base", "transforms.chain"])
def test_examples_in_docstrings_run(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"joulecache.{module}"))
    assert tried
    assert not failed


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("page", ["docs/energy.md", "docs/getting-started.md", "docs/monitoring.md"])
def test_code_that_needs_nothing_else_runs(page: str) -> None:
    run_blocks(blocks(page))


def test_the_readme_runs(folder: Path) -> None:
    shutil.rmtree(folder / "cache")  # the first block builds it
    model = keras.Sequential([keras.Input((64, 64, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    run_blocks([block.replace("epochs=30", "epochs=2") for block in blocks("README.md")], model=model)
    assert model.history.history["energy_j"][1] > 0


def test_the_op_of_the_page_on_transforms_runs(folder: Path, photo: bytes) -> None:
    source, *shown = blocks("docs/transforms.md")
    (folder / "my_documented_ops.py").write_text(source)
    custom = ops_of(importlib.import_module("my_documented_ops"))
    pixels = jc.parse("decode || vignette(0.8)", ops=custom)(photo, key="a")
    plain = jc.parse("decode")(photo)
    assert pixels.shape == plain.shape
    assert (pixels <= plain).all()
    assert int(np.sum(pixels[0, 0])) < int(np.sum(plain[0, 0]))
    names: Names = {
        "parse": jc.parse,
        "load": jc.load,
        "open_cache": jc.open_cache,
        "Vignette": custom["vignette"],
    }
    loaded, applied = shown
    chains = ("decode|resize(72) || random_crop(64)|vignette(0.8)", "decode|resize(72)")
    for block, chain in zip((loaded, applied), chains, strict=True):
        jc.precompute("photos", "cache", jc.parse(chain, ops=custom), replace=True)
        exec(block, names)
    assert next(iter(names["train"]))[0].shape[1:] == (64, 64, 3)
    assert names["pixels"].shape == (72, 72, 3)


@pytest.mark.slow
def test_the_pages_on_loading_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("cat", "dog"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for number in range(450):  # batches of 512
            Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(
                tmp_path / "photos" / kind / f"{number}.png"
            )
    jc.precompute("photos", "cache", "decode|resize(8)")
    shutil.copytree("cache", "more")
    code = [block for page in ("loading", "selecting", "large-caches") for block in blocks(f"docs/{page}.md")]
    assert len(code) >= 6
    run_blocks(code)


@pytest.mark.usefixtures("folder")
def test_the_page_on_consumers_runs_and_says_where_its_loops_run() -> None:
    """scripts/test_consumers.py runs the others, whose packages are not installed here."""
    marked = re.findall(r"<!-- run: (\w+) -->\n```python\n(.*?)```", text_of("docs/consumers.md"), re.DOTALL)
    assert [code for _, code in marked] == blocks("docs/consumers.md")
    assert {consumer for consumer, _ in marked} == {"numpy", "torch", "jax", "keras", "grain"}
    for _, code in marked:
        compile(code, "consumers.md", "exec")
    run_blocks([code for consumer, code in marked if consumer == "numpy"])


def test_the_page_on_targets_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jc.precompute("synthetic:40", "cache", "decode|resize(8)", target=["mask", "tags"])
    names = run_blocks(blocks("docs/targets.md"))
    assert {*next(iter(names["train"]))[1]} == {"mask", "tags"}


def test_mlflow_logs_what_the_page_on_monitoring_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/runs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own
        run_blocks([*blocks("docs/monitoring.md"), *blocks("docs/monitoring.md", "py")])
    logged = {path.name for path in tmp_path.glob("runs/*/*/metrics/*")}
    assert {"loss", "energy_j", "energy_low_j", "energy_high_j", "energy_j_per_1000_images", "cpu_s"} <= logged


def test_every_metric_and_key_of_the_page_on_monitoring_exists() -> None:
    text = text_of("docs/monitoring.md")
    assert set(re.findall(r"`(joulecache_\w+)`", text)) == {*HELP}
    keys = {key for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)}
    assert keys - {*HELP} == {*ADDED, "val_energy_j", "val_co2eq_g"}


def test_every_feature_is_documented() -> None:
    table = text_of("docs/targets.md").partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)\(", table, re.MULTILINE)) == {
        kind.__name__ for kind in get_args(jc.features.AnyFeature)
    }


@pytest.mark.usefixtures("short_runs")
def test_the_page_on_audits_runs(folder: Path) -> None:
    module, *shown = blocks("docs/audit.md")
    (folder / "my_pipelines.py").write_text(module)
    names = run_blocks(shown)
    assert [arm.name for arm in names["result"].workloads[0].arms] == ["plain", "tuned"]


@pytest.mark.usefixtures("folder")
def test_the_page_on_migration_runs(photos: dict[str, bytes]) -> None:
    names = {
        "files": tf.data.Dataset.list_files("photos/*/*.jpg", shuffle=False),
        "prepare": lambda path: tf.image.resize(tf.io.decode_jpeg(tf.io.read_file(path), channels=3), [8, 8]),
    }
    code = [*blocks("docs/migration.md"), *blocks("docs/migration-pytorch.md")]
    ours = [block for block in code if block.startswith("from joulecache")]
    assert len(ours) == 3
    assert len(list(run_blocks(ours, **names)["ds"])) == len(photos)


@pytest.mark.usefixtures("folder")
def test_the_page_on_formats_reads_what_was_cached() -> None:
    jc.precompute("photos", "tfrecord-cache", "decode|resize(8)", format="tfrecord")
    shapes = functools.partial(
        jc.precompute, "synthetic:8", chain="decode|resize(16)", target=("mask", "boxes", "points")
    )
    shapes("shapes")
    shapes("tfrecord-shapes", format="tfrecord")
    names = run_blocks(blocks("docs/formats.md"))
    assert names["images"].shape == (jc.open_manifest("cache").splits["train"].records, 8, 8, 3)
    images, labels = zip(*names["dataset"].as_numpy_iterator(), strict=True)
    assert np.array_equal(np.stack(images), names["images"])
    assert np.array_equal(np.stack(labels), names["labels"])
    masks, boxes, classes, points = zip(*names["targets"].as_numpy_iterator(), strict=True)
    assert np.array_equal(np.stack(masks), names["masks"])
    assert np.array_equal(np.stack(points), names["points"])
    assert (boxes[0].tolist(), classes[0].tolist()) == (names["boxes"], names["classes"])
    listed = text_of("docs/formats.md").partition("## The manifest")[2].partition("A manifest is checked")[0]
    fields = set(re.findall(r"`([a-z_]+)`", listed))
    assert fields <= {*names["manifest"], *names["manifest"]["splits"]["train"]}


def test_the_page_on_beam_runs(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = keras.Sequential([keras.Input((56, 56, 3)), keras.layers.AveragePooling2D(28), keras.layers.Flatten()])
    model.add(keras.layers.Dense(3))
    (folder / "model.tflite").write_bytes(to_tflite(model, "float32"))
    run_blocks(blocks("docs/beam.md"))
    assert "20 records, " in capfd.readouterr().out
    assert set(jc.open_cache("pictures").rows("train")["label"].to_pylist()) == {0, 1}


@pytest.mark.slow
def test_the_page_on_compression_runs(
    folder: Path, small_run: Path, photo_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(small_run, folder / "run")
    shutil.rmtree(folder / "cache")
    shutil.copytree(photo_cache, folder / "cache")
    run_blocks(blocks("docs/compression.md"))
    assert "pruned-sparse-clustered-int8 " in capsys.readouterr().out


# What is listed -------------------------------------------------------------------------------------------------------


def test_every_op_is_documented_with_its_arguments() -> None:
    listed = text_of("docs/transforms.md").partition("## Ops\n")[2].partition("\n## ")[0]
    cells = [line.split(" | ")[0] for line in listed.splitlines() if line.startswith("| `")]
    shown = {}
    for span in re.findall(r"`([^`]+)`", " ".join(cells)):
        if span.partition("(")[0] in OPS:
            call = ast.parse(span if "(" in span else f"{span}()", mode="eval").body
            assert isinstance(call, ast.Call)
            names = [ast.unparse(argument) for argument in call.args] + [str(keyword.arg) for keyword in call.keywords]
            shown[span.partition("(")[0]] = [name for name in names if name != "probability"]
    fields = {name: [field.name for field in dataclasses.fields(kind)] for name, kind in OPS.items()}  # type: ignore[arg-type]
    assert shown == {name: [one for one in names if one != "probability"] for name, names in fields.items()}


@pytest.mark.parametrize("page", PAGES)
def test_chains_are_valid(page: str) -> None:
    for chain in re.findall(r'"(decode\|[^"]*)"', text_of(page)):
        if "vignette" not in chain:
            jc.parse(chain)


def test_the_names_of_the_page_on_compression_exist() -> None:
    text = text_of("docs/compression.md")
    rows = re.findall(r"^\| `(joulecache\.[\w.]+)` \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) >= 7
    for module, cell in rows:
        for name in re.findall(r"`(\w+)`", cell):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
    recipe = {field.name for field in dataclasses.fields(jc.Recipe)}
    options = set(re.findall(r"`(\w+)=", text))
    assert options - {"seeds"} <= recipe
    assert {"prune", "macs", "sparsity", "l1", "clusters", "cluster_per", "quantize"} <= options


def test_the_files_that_contributors_are_told_of_exist() -> None:
    paths = re.findall(
        r"`(?:\./)?((?:pipelines|transforms|joulecache|tests|scripts|docs|\.ci)/[\w./-]*)", text_of("CONTRIBUTING.md")
    )
    assert len(paths) > 10
    assert not [path for path in paths if not (ROOT / path).exists()]


# Commands -------------------------------------------------------------------------------------------------------------


def commands(page: str) -> list[list[str]]:
    """Return the words of every joulecache command in the shell blocks of a page, and in cells of its tables."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += [
        line.removeprefix("$ ")
        for block in blocks(page, "console")
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    lines += [cell.replace("\\|", "|") for cell in re.findall(r"\| `(joulecache [^`]+)` \|", text_of(page))]
    words = [shlex.split(line, comments=True) for line in lines]
    return [each[1:] for each in words if each and each[0].rpartition("/")[2] == "joulecache"]


def test_commands_are_valid() -> None:
    names = set()
    for page in PAGES:
        for name, *arguments in commands(page):
            assert name in group().commands, f"{page} shows joulecache {name}"
            parameters(name, arguments)
            names.add(name)
    assert len(names) >= 10
    audit = re.search(r"AUDIT: audit (.*)", text_of(".github/workflows/energy-regression.yml"))
    assert audit is not None
    parameters("audit", shlex.split(audit[1]))


@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_their_order(folder: Path, run: Callable[..., Any]) -> None:
    """All but those that take minutes at that size, which have their own tests."""
    shutil.rmtree(folder / "cache")
    (folder / "train.py").write_text("print('trained')")
    done = set()
    for words in commands("README.md"):
        if words[0] in ("plan", "audit", "compress"):
            continue
        code, _, err = run(*words, *(["--epochs", "1"] if words[0] == "train" else []))
        assert code == 0, f"{shlex.join(words)}: {err}"
        done.add(words[0])
    assert done == {"precompute", "inspect", "verify", "train", "run", "doctor"}
