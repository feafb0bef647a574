"""The documentation: what it shows runs, and what it lists is there."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import typer
from PIL import Image

from joulecache.pipelines import Recipe, load, open_manifest, precompute
from joulecache.pipelines.models import build_model
from joulecache.transforms import parse
from joulecache.transforms.ops import OPS, ops_of

ROOT = Path(__file__).resolve().parents[1]
TRANSFORMS = (ROOT / "docs" / "transforms.md").read_text("utf-8")


@pytest.mark.parametrize("module", ["transforms.ops.base", "transforms.chain"])
def test_examples_in_docstrings_run(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"joulecache.{module}"))
    assert tried
    assert not failed


def test_every_op_is_documented_with_its_arguments() -> None:
    listed = TRANSFORMS.partition("## Ops\n")[2].partition("## Reproducibility")[0]
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


def test_chains_in_the_documentation_are_chains() -> None:
    for name in ("README.md", "docs/transforms.md", "docs/migration.md", "docs/getting-started.md", "docs/plan.md"):
        text = (ROOT / name).read_text("utf-8")
        chains = re.findall(r'"(decode\|[^"]*)"', text)
        assert chains or name == "README.md"
        for chain in chains:
            if "vignette" not in chain:
                parse(chain)


def test_the_op_that_the_documentation_shows_runs(
    photo: bytes, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, *shown = blocks("transforms.md", "python")
    (tmp_path / "my_documented_ops.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    own = ops_of(importlib.import_module("my_documented_ops"))
    pixels = parse("decode || vignette(0.8)", ops=own)(photo, key="a")
    plain = parse("decode")(photo)
    assert pixels.shape == plain.shape
    assert (pixels <= plain).all()
    assert int(np.sum(pixels[0, 0])) < int(np.sum(plain[0, 0]))

    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(photo)
    names: dict[str, Any] = {"parse": parse, "load": load, "open_manifest": open_manifest, "Vignette": own["vignette"]}
    assert len(shown) == 2
    for block, chain in zip(
        shown, ("decode|resize(72) || random_crop(64)|vignette(0.8)", "decode|resize(72)"), strict=True
    ):
        precompute(photo_folder, "cache", parse(chain, ops=own), replace=True)
        exec(block, names)
    assert next(iter(names["train"]))[0].shape[1:] == (64, 64, 3)
    assert names["pixels"].shape == (72, 72, 3)


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / name).read_text("utf-8"), re.DOTALL)


def test_all_that_the_page_on_loading_shows_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(900):  # small ones: drawing photos takes most of a minute
        Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(tmp_path / "photos" / f"{number}.png")
    precompute("photos", "cache", "decode|resize(8)")
    names: dict[str, object] = {}
    shown = blocks("loading.md", "python")
    assert len(shown) >= 6
    for block in shown:
        exec(block, names)


def test_all_that_the_page_on_energy_shows_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    shown = blocks("energy.md", "python")
    assert len(shown) >= 3
    for block in shown:
        exec(block, names)


@pytest.mark.usefixtures("short_runs")
def test_all_that_the_page_on_audits_shows_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: dict[str, bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, data in photos.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(data)
    module, *shown = blocks("audit.md", "python")
    (tmp_path / "my_pipelines.py").write_text(module)
    assert shown
    names: dict[str, Any] = {}
    for block in shown:
        exec(block, names)
    assert [arm.name for arm in names["result"].workloads[0].arms] == ["plain", "tuned"]


def test_what_the_page_on_migration_gives_instead_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: dict[str, bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, data in photos.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(data)
    precompute("photos", "cache", "decode|resize(8)")
    files = tf.data.Dataset.list_files("photos/*/*.jpg", shuffle=False)
    names = {
        "files": files,
        "prepare": lambda path: tf.image.resize(tf.io.decode_jpeg(tf.io.read_file(path), channels=3), [8, 8]),
    }
    ours = [block for block in blocks("migration.md", "python") if block.startswith("from joulecache")]
    assert len(ours) == 3
    for block in ours:
        exec(block, names)
    assert len(list(names["ds"])) == len(photos)


def test_what_the_page_on_formats_reads_is_what_was_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo_folder: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    arrow = precompute(photo_folder, "cache", "decode|resize(8)")
    precompute(photo_folder, "tfrecord-cache", "decode|resize(8)", format="tfrecord")
    names: dict[str, Any] = {}
    for block in blocks("formats.md", "python"):
        exec(block, names)
    assert names["images"].shape == (arrow.manifest.splits["train"].records, 8, 8, 3)
    pictures, labels = zip(*names["dataset"].as_numpy_iterator(), strict=True)
    assert np.array_equal(np.stack(pictures), names["images"])
    assert np.array_equal(np.stack(labels), names["labels"])
    listed = (ROOT / "docs" / "formats.md").read_text("utf-8").partition("## The manifest")[2]
    fields = set(re.findall(r"`([a-z_]+)`", listed.partition("A manifest is checked")[0]))
    assert fields <= {*names["manifest"], *names["manifest"]["splits"]["train"]}


def test_what_the_first_page_shows_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo_folder: Path) -> None:
    monkeypatch.chdir(tmp_path)
    precompute(photo_folder, "cache", "decode|resize(8)")
    for block in blocks("getting-started.md", "python"):
        exec(block, {})


@pytest.mark.slow
def test_what_the_page_on_compression_shows_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    precompute("synthetic:60", "cache", "decode|resize(20)", val_fraction=0.3)
    build_model("cnn", (20, 20, 3), len(open_manifest("cache").class_names)).save("run.keras")
    (block,) = blocks("compression.md", "python")
    exec(block.replace("run/model.keras", "run.keras"), {})
    assert "pruned-sparse-clustered-int8 " in capsys.readouterr().out


def test_the_names_of_the_page_on_compression_are_there() -> None:
    text = (ROOT / "docs" / "compression.md").read_text("utf-8")
    rows = re.findall(r"^\| `(joulecache\.[\w.]+)` \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) >= 7
    for module, cell in rows:
        for name in re.findall(r"`(\w+)`", cell):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
    recipe = {field.name for field in dataclasses.fields(Recipe)}
    assert set(re.findall(r"`(\w+)=", text)) - {"seeds"} <= recipe
    assert {"prune", "macs", "sparsity", "l1", "clusters", "cluster_per", "quantize"} <= set(
        re.findall(r"`(\w+)=", text)
    )


PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def commands(page: str) -> list[list[str]]:
    """Return the words of every joulecache command in the shell blocks of a page."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0].rpartition("/")[2] == "joulecache":
                found.append(words[1:])
    return found


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_pages_show_are_understood(page: str) -> None:
    from joulecache.pipelines.cli.commands import app

    group: Any = typer.main.get_command(app)
    for name, *arguments in commands(page):
        assert name in group.commands, f"{page} shows joulecache {name}"
        group.commands[name].make_context(name, list(arguments))  # parses, and calls nothing


def test_pages_show_commands() -> None:
    assert sum(bool(commands(page)) for page in PAGES) >= 8
    assert len({name for page in PAGES for name, *_ in commands(page)}) >= 10


def test_what_the_readme_shows_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo_folder: Path) -> None:
    monkeypatch.chdir(tmp_path)
    precompute(photo_folder, "cache", "decode|resize(8)")
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    shown = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert shown
    names: dict[str, Any] = {"model": model}
    for block in shown:
        exec(block.replace("epochs=30", "epochs=2"), names)
    assert model.history.history["energy_j"][1] > 0


@pytest.mark.slow
def test_commands_of_the_readme_run_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo_folder: Path, run: Callable[..., Any]
) -> None:
    """But for those that take minutes at the size that is shown: their own tests run them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(photo_folder)
    (tmp_path / "photo.jpg").symlink_to(next(photo_folder.glob("*/*.jpg")))
    (tmp_path / "train.py").write_text("print('trained')")
    done = set()
    for words in commands("README.md"):
        if words[0] in ("plan", "audit", "compress", "hardware") or words == ["transforms"]:
            continue
        code, _, err = run(*words, *(["--epochs", "1"] if words[0] == "train" else []))
        assert code == 0, f"{shlex.join(words)}: {err}"
        done.add(words[0])
    assert done == {"precompute", "inspect", "verify", "train", "transforms", "run", "doctor"}
