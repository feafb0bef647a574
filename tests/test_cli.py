"""The command line: one line and an exit code for every error, and results on stdout."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from caches import contents
from PIL import Image
from processes import CLI, environment, python, run_python

from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.cli.commands import COMMANDS
from joulecache.pipelines.cli.errors import explained
from joulecache.pipelines.cli.terminal import show
from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.core import codec
from joulecache.pipelines.core.files import LockHeldError
from joulecache.pipelines.report.describe.machine import describe_ops
from joulecache.pipelines.report.render.contact_sheet import write_contact_sheet
from joulecache.transforms import parse
from joulecache.transforms.ops import OPS

CHAIN = "decode|resize(16) || random_crop(12)"

Run = Callable[..., tuple[int, str, str]]


# Errors ---------------------------------------------------------------------------------------------------------------

BUILD = ("precompute", "{photos}", "cache", "--chain")
COMPRESS = ("compress", "notes.keras", "--data", "cache", "--out", "small")
AUDIT = ("audit", "{photos}", "--chain", CHAIN, "--out", "out")
COMPARE = ("--compare", "notes.txt", "notes.txt")
PLAN = ("plan", "{photos}", "--chain", CHAIN, "--epochs", "3")
PREVIEW = ("transforms", "--preview", "{photo}", "--chain")
REFUSED: dict[str, tuple[Sequence[str], int, str]] = {
    "missing source": (["precompute", "nowhere", "cache", "--chain", CHAIN], 2, "nowhere"),
    "unknown op": ([*BUILD, "decode|flip_rl"], 2, "unknown op 'flip_rl'"),
    "missing option": (BUILD[:3], 2, "Missing option '--chain'"),
    "unknown option": ([*BUILD, CHAIN, "--colour", "red"], 2, "No such option: --colour"),
    "unknown Beam option": ([*BUILD, CHAIN, "--", "--runnr=x"], 2, "did you mean --runner?"),
    "not a number": ([*BUILD, CHAIN, "--variants", "many"], 2, "--variants"),
    "number out of range": ([*BUILD, CHAIN, "--workers", "0"], 2, "workers"),
    "not a choice": ([*BUILD, CHAIN, "--format", "zip"], 2, "--format"),
    "options that do not fit": ([*BUILD, CHAIN, "--quality", "90"], 2, "quality"),
    "unknown country": ([*BUILD, CHAIN, "--country", "XXX"], 2, "XXX"),
    "unknown provider": ([*BUILD, CHAIN, "--provider", "acme"], 2, "acme"),
    "one number of watts": ([*BUILD, CHAIN, "--watts", "65"], 2, "IDLE:FULL"),
    "watts that are not a number": ([*BUILD, CHAIN, "--watts", "nan:65"], 2, "idle_w"),
    "watts in the wrong order": ([*BUILD, CHAIN, "--watts", "65:12"], 2, "full_w"),
    "pue below 1": ([*BUILD, CHAIN, "--pue", "0.9"], 2, "pue"),
    "no folder for emissions": ([*BUILD, CHAIN, "--emissions", "/no/such/folder"], 2, "/no/such/folder"),
    "missing labels": ([*BUILD, CHAIN, "--labels", "none.csv"], 2, "none.csv"),
    "overlapping folders": (["precompute", "{photos}", "{photos}/cache", "--chain", CHAIN], 2, "photos"),
    "missing cache": (["verify", "nowhere"], 2, "nowhere"),
    "missing cache of a model": (["train", "nowhere", "--epochs", "1", "--out", "run"], 2, "nowhere"),
    "missing report": (["audit", "--compare", "nowhere.json", "nowhere"], 2, "nowhere"),
    "folder without a report": (["audit", "--compare", ".", "."], 2, "it has no report.json"),
    "broken images": (["precompute", "broken", "cache", "--chain", CHAIN], 1, "--max-reject-rate 0.25"),
    "not a cache": (["inspect", "."], 2, "cache"),
    "no batch size": (["audit", "{photos}", "--chain", CHAIN, "--out", "out", "--batch-size", "0"], 2, "batch"),
    "missing module of ops": (
        [*AUDIT, "--ops", "no_such_ops"],
        2,
        "cannot import --ops 'no_such_ops': ModuleNotFoundError",
    ),
    "ops without a chain": (
        ["audit", "--pipeline", "a:b", "--ops", "a", "--out", "a"],
        2,
        "leave out SOURCE, --chain and --ops",
    ),
    "unknown model of an audit": ([*AUDIT, "--model", "resnet50"], 2, "did you mean 'resnet8'"),
    "audit that cannot be written": ([*AUDIT[:-1], "/proc/out"], 2, "out must be a folder that can be written to"),
    "comparison of an audit": ([*AUDIT, *COMPARE], 2, "--compare reads two reports"),
    "comparison with settings": (["audit", *COMPARE, "--epochs", "3"], 2, "--compare reads two reports"),
    "no ratio to fail above": (["audit", *COMPARE, "--fail-above", "0"], 2, "--fail-above must be"),
    "ratio that is no number": (["audit", *COMPARE, "--fail-above", "nan"], 2, "--fail-above must be"),
    "ratio without a comparison": ([*AUDIT, "--fail-above", "1.1"], 2, "--fail-above and --markdown need --compare"),
    "plan into its source": ([*PLAN, "--apply", "{photos}/cache"], 2, "overlap"),
    "plan that cannot be written": ([*PLAN, "--apply", "/proc/cache"], 2, "--apply must be a folder"),
    "emissions that cannot be written": (["run", "--emissions", "/proc", "--", "true"], 2, "emissions must be"),
    "missing model": (["compress", "none.keras", *COMPRESS[2:], "--prune", "0.5"], 2, "none.keras"),
    "unreadable model": ([*COMPRESS, "--quantize", "int8"], 2, "cannot be loaded as a Keras model"),
    "not a model's name": (["compress", "notes.txt", *COMPRESS[2:], "--quantize", "int8"], 2, "notes.txt"),
    "no class weight": (["train", "none", "--epochs", "1", "--out", "run", "--class-weight", "cat"], 2, "CLASS=WEIGHT"),
    "share out of range": ([*COMPRESS, "--prune", "1"], 2, "prune"),
    "too few clusters": ([*COMPRESS, "--cluster", "1"], 2, "clusters"),
    "unknown criterion": ([*COMPRESS, "--criterion", "l2", "--prune", "0.5"], 2, "--criterion"),
    "no seed": ([*COMPRESS, "--seeds", "0", "--prune", "0.5"], 2, "--seeds"),
    "nothing to compress": (COMPRESS, 2, "the recipe is empty"),
    "preview without chain": (["transforms", "--preview", "{photo}"], 2, "--preview IMAGE and --chain"),
    "chain without preview": (["transforms", "--chain", "decode"], 2, "--preview IMAGE and --chain"),
    "targets without preview": (["transforms", "--target", "age"], 2, "--target needs --preview"),
    "targets of one image": ([*PREVIEW, "decode", "--target", "age"], 2, "is one image: drop --target"),
    "missing image": (["transforms", "--preview", "nowhere.jpg", "--chain", "decode"], 2, "nowhere.jpg"),
    "not an image": (["transforms", "--preview", "notes.txt", "--chain", "decode"], 2, "not an image"),
    "crop larger than the image": ([*PREVIEW, "decode|random_crop(9999)"], 2, "is larger than the image"),
    "missing module": (["transforms", "--ops", "no_such_module"], 2, "cannot import --ops 'no_such_module'"),
    "module without ops": (["transforms", "--ops", "json"], 2, "defines no op"),
    "no command to run": (["run"], 2, "Missing argument"),
    "unknown option before the command": (["run", "--no-such-option", "true"], 2, "No such option"),
}


@pytest.mark.parametrize(("arguments", "code", "message"), REFUSED.values(), ids=REFUSED)
def test_errors_are_one_line_and_leave_nothing(
    run: Run,
    photo_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: Sequence[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    first, *photos = sorted(photo_folder.glob("*/*.jpg"))[:4]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / first.name).write_bytes(b"broken")
    for path in photos:
        (tmp_path / "broken" / path.name).write_bytes(path.read_bytes())
    for name in ("notes.keras", "notes.txt"):
        (tmp_path / name).write_text("no model")
    before = contents(tmp_path)
    got, out, err = run(*(word.format(photos=photo_folder, photo=first) for word in arguments))
    assert (got, out) == (code, ""), err
    # progress, on a busy machine, and notes
    [line] = [line for line in err.splitlines() if not line.startswith(("records: ", "joulecache: note: "))]
    assert line.startswith("joulecache: ")
    assert message in line
    left = {name: data for name, data in contents(tmp_path).items() if not name.startswith("cache")}
    assert left == before
    assert not (tmp_path / "cache" / "manifest.json").exists()


def test_a_cache_of_another_chain_is_kept(run: Run, photo_folder: Path, photo_cache: Path) -> None:
    before = contents(photo_cache)
    code, _, err = run("precompute", photo_folder, photo_cache, "--chain", "decode|resize(20)")
    assert code == 2
    assert "--replace" in err
    assert contents(photo_cache) == before


def test_another_backend_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    got, _, err = run("train", str(tmp_path), "--epochs", "1", "--out", str(tmp_path / "run"))
    assert (got, err.strip()) == (
        2,
        "joulecache: KERAS_BACKEND is 'jax', but joulecache needs Keras on TensorFlow: unset it",
    )


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("bad"), 2, "bad"),
        (typer.BadParameter("bad"), 2, "bad. See `joulecache --help`."),
        (OSError("full"), 1, "full"),
        (RuntimeError("lost"), 1, "lost"),
        (LockHeldError(Path("cache"), "host:1"), 1, "host:1"),
        (KeyboardInterrupt(), 130, "stopped"),
        (typer.Abort(), 130, "stopped"),
        (KeyError("x"), 1, "KeyError: 'x'; this is a bug"),
    ],
)
def test_every_exception_has_a_message_and_an_exit_code(error: BaseException, code: int, message: str) -> None:
    text, got = explained(error)
    assert got == code
    assert message in text


def test_an_interrupted_build_can_be_resumed(tmp_path: Path) -> None:
    # Ctrl-C is ignored where the tests run in the background: the handler is set again.
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{CLI}"
    cache = tmp_path / "cache"
    options = ("--chain", "decode|resize(8)", "--shards", 100)
    command = python(code, "precompute", "synthetic:2000", cache, *options)
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment(), text=True) as process:
        try:
            # Until its first shard is finished: an import that is interrupted may swallow the exception.
            while not any(cache.glob(".building/*.json")):
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "stopped" in err
    assert "a build or an audit resumes" in err
    assert not (cache / "manifest.json").exists()


# Options --------------------------------------------------------------------------------------------------------------


class Asked(ValueError):
    """Raised by stand-ins for the public functions, which note their arguments instead of working."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of `precompute`, `train` and `compress`, which do nothing."""
    calls: list[dict[str, Any]] = []

    def ask(*arguments: Any, **more: Any) -> Any:
        calls.append({"arguments": arguments, **more})
        raise Asked("asked")

    for function in ("building.precomputing.precompute", "compressing.compression.compress", "training.trainer.train"):
        monkeypatch.setattr(f"joulecache.pipelines.{function}", ask)
    return calls


def test_options_of_a_build(run: Run, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    many = ("--variants", 3, "--format", "tfrecord", "--encoding", "jpeg", "--quality", 90, "--val-fraction", 0)
    more = ("--seed", 7, "--shards", 4, "--workers", 2, "--limit", 5, "--labels", "names.csv", "--max-reject-rate", 0.5)
    flags = ("--replace", "--rehash", "--val-chain", "decode|resize(16)", "--country", "FRA", "--watts", "12:65")
    beam = ("--", "--runner=FlinkRunner")
    run("precompute", "photos", "cache", "--chain", CHAIN, *many, *more, *flags, *beam)
    run("precompute", "photos", "cache", "--chain", CHAIN)
    full, plain = asked
    for call in asked:
        assert call.pop("arguments") == ("photos", "cache", parse(CHAIN))
        del call["progress"]
    provenance = full.pop("meter").provenance()
    assert (provenance.country, provenance.method) == ("FRA", "user")
    assert full == {
        "val_chain": parse("decode|resize(16)"),
        "variants": 3,
        "format": "tfrecord",
        "encoding": "jpeg",
        "quality": 90,
        "val_fraction": 0.0,
        "seed": 7,
        "shards": 4,
        "workers": 2,
        "limit": 5,
        "labels": Path("names.csv"),
        "max_reject_rate": 0.5,
        "replace": True,
        "rehash": True,
        "beam_options": ["--runner=FlinkRunner"],
    }
    assert {name: value for name, value in plain.items() if value and name != "meter"} == {}


def test_options_of_a_compression(run: Run, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    steps = ("--sparsity", 0.5, "--cluster", 16, "--quantize", "float16")
    details = ("--macs", 0.4, "--criterion", "gamma", "--protect", "a", "--protect", "b", "--l1", "1e-5")
    more = ("--cluster-per", "channel", "--finetune-epochs", 5, "--seeds", 3, "--seed", 7)
    model = tmp_path / "m.keras"
    model.touch()
    run("compress", model, "--data", "cache", "--out", tmp_path, *steps, *details, *more)
    run("compress", model, "--data", "cache", "--out", tmp_path, "--prune", 0.25)
    run("train", "cache", "--epochs", 1, "--out", tmp_path, "--learning-rate", 0.002)
    run("train", "cache", "--epochs", 1, "--out", tmp_path, "--prune", 0.25, *steps)
    everything, prune, plain, trained = asked
    recipe = Recipe(
        macs=0.4,
        criterion="gamma",
        protected=("a", "b"),
        sparsity=0.5,
        l1=1e-5,
        clusters=16,
        cluster_per="channel",
        quantize="float16",
        finetune_epochs=5,
    )
    assert everything["arguments"] == (model, "cache", recipe)
    assert (everything["seeds"], everything["seed"]) == (3, 7)
    assert prune["arguments"][2] == Recipe(prune=0.25)
    assert (prune["seeds"], prune["seed"]) == (1, 0)
    assert (plain["recipe"], plain["learning_rate"]) == (None, 0.002)
    assert trained["recipe"] == Recipe(prune=0.25, sparsity=0.5, clusters=16, quantize="float16")
    assert trained["learning_rate"] is None


def test_help_names_every_command_and_an_example_and_fits_a_screen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = run("--help")
    assert code == 0
    for command, examples in COMMANDS.items():
        name = command.__name__
        assert f" {name} " in out
        text = run(name, "--help")[1]
        assert len(text.splitlines()) <= 64, name
        assert all(f"Example: joulecache {example}"[:80] in text for example in examples)


def test_help_shows_defaults_and_the_order_of_compression(run: Run) -> None:
    assert "JPEG quality. Default: 95." in run("precompute", "--help")[1]
    order = ("--prune", "--sparsity", "--cluster", "--quantize")
    for command in ("train", "compress"):
        panel = run(command, "--help")[1].partition("Compression, in this order")[2].partition("╰")[0]
        places = [panel.find(f"{option} ") for option in order]
        assert -1 not in places
        assert places == sorted(places)


# Results --------------------------------------------------------------------------------------------------------------


def test_a_build_is_printed_as_json_and_found_up_to_date(run: Run, photo_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    code, out, _ = run("precompute", photo_folder, cache, "--chain", CHAIN, "--json")
    body = json.loads(out)
    assert (code, body["unchanged"], body["manifest"]["chain"]) == (0, False, CHAIN)
    before = contents(cache)
    code, out, _ = run("precompute", photo_folder, cache, "--chain", CHAIN)
    assert code == 0
    assert "Up to date" in out
    assert contents(cache) == before


@pytest.mark.slow
def test_beams_log_is_shown_on_request(photo_folder: Path, tmp_path: Path) -> None:
    done = run_python(CLI, "precompute", photo_folder, tmp_path / "cache", "--chain", CHAIN, "--verbose")
    assert done.returncode == 0
    assert "INFO apache_beam." in done.stderr


def test_inspect_shows_what_a_cache_holds(run: Run, photo_cache: Path, tmp_path: Path) -> None:
    code, out, err = run("inspect", photo_cache, "--sheet", tmp_path / "sheet.png")
    manifest = open_manifest(photo_cache)
    assert (code, err) == (0, "")
    assert manifest.chain in out
    assert "32x32x3" in out
    assert "modelled:cpu-seconds" in out or "measured:rapl" in out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert len(sheet.convert("RGB").getcolors(1 << 24) or []) > 1000
    assert f"Contact sheet: {tmp_path / 'sheet.png'}" in out.splitlines()
    written = json.loads((photo_cache / "manifest.json").read_text())
    del written["format_version"], written["digest"]
    _, out, err = run("inspect", photo_cache, "--json", "--sheet", tmp_path / "sheet.png")
    assert json.loads(out) == written
    assert err == f"Contact sheet: {tmp_path / 'sheet.png'}\n"


def test_rows_added_to_emissions_are_counted(run: Run, photo_folder: Path, tmp_path: Path) -> None:
    said = f"{tmp_path / 'emissions.csv'}\n"
    options = ("--emissions", tmp_path, "--country", "FRA")
    assert run("run", *options, "--", "true")[2].startswith(f"Emissions: 1 row added to {said}")
    _, out, err = run("precompute", photo_folder, tmp_path / "cache", "--chain", CHAIN, *options, "--json")
    assert json.loads(out)
    assert err.endswith(f"Emissions: 1 row added to {said}")


def test_verify_finds_a_changed_byte(run: Run, photo_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert run("precompute", photo_folder, cache, "--chain", CHAIN)[0] == 0
    assert run("verify", cache)[0] == 0
    shard = next(cache.glob("train-*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    code, _, err = run("verify", cache)
    assert code == 1
    assert shard.name in err
    assert json.loads(run("verify", cache, "--json")[1])["problems"]


@pytest.mark.parametrize("damage", ["truncated", "missing", "folder", "manifest"])
def test_damage_is_a_problem_of_a_cache_and_not_of_the_command(
    run: Run, photo_cache: Path, tmp_path: Path, damage: str
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(photo_cache, cache)
    file = cache / "manifest.json" if damage == "manifest" else next(cache.glob("train-*"))
    data = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage != "missing":
        file.write_bytes(data[: len(data) // 2])
    code, out, err = run("verify", cache)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert file.name in err


@pytest.mark.slow
def test_train_then_compress(run: Run, photo_cache: Path, tmp_path: Path) -> None:
    options = ("--epochs", 1, "--model", "mlp", "--quantize", "dynamic")
    code, out, err = run("train", photo_cache, *options, "--out", tmp_path / "run", "--json")
    assert code == 0
    assert any(line.startswith("epoch 1 of 1: loss ") for line in err.splitlines())
    trained = json.loads(out)
    assert trained["loss"] == trained["epochs"][0]["loss"]
    assert trained["compression"]["recipe"]["quantize"] == "dynamic"
    assert [file["name"] for file in trained["compression"]["variants"]] == ["baseline", "baseline-dynamic"]
    steps = ("--prune", 0.5, "--cluster", 8, "--quantize", "int8", "--finetune-epochs", 0, "--seed", 3)
    small = tmp_path / "small"
    code, out, _ = run("compress", trained["model"], "--data", photo_cache, *steps, "--out", small, "--json")
    assert code == 0
    compression = json.loads(out)
    record = json.loads((small / "compression.json").read_text())
    assert compression == {name: value for name, value in record.items() if name not in ("format", "versions", "files")}
    recipe = Recipe(prune=0.5, clusters=8, quantize="int8", finetune_epochs=0)
    assert (compression["recipe"], compression["seed"]) == (codec.to_json(recipe), 3)
    sizes = {file["name"]: file["file_bytes"] for file in compression["variants"]}
    floats = ["baseline", "pruned-float32", "pruned-clustered-float32"]
    assert list(sizes) == [*floats, "baseline-int8", "pruned-clustered-int8"]
    assert sizes["pruned-clustered-int8"] < sizes["pruned-float32"] < sizes["baseline"]
    files = {f"{name}.tflite" for name in sizes}
    assert {path.name for path in small.iterdir()} == files | {"pruned-clustered-int8.keras", "compression.json"}


@pytest.mark.usefixtures("short_runs")
def test_an_audit_writes_its_report(run: Run, photo_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "audit"
    options = ("--out", out, "--workload", "input", "--pairs", 1, "--batch-size", 8)
    code, text, _ = run("audit", photo_folder, "--chain", CHAIN, *options)
    assert code == 0
    assert "inconclusive" in text
    assert text.splitlines()[-1] == f"Report: {out / 'report.html'}"
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json", "report.md", "runs.jsonl"]
    assert json.loads((out / "report.json").read_text())["chain"] == CHAIN


def test_hardware_shows_throughputs_and_recommends_a_precision(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from joulecache.pipelines.auditing import hardware

    code, out, _ = run("hardware", "--rounds", 1, "--seconds", 0.01, "--json")
    body = json.loads(out)
    assert (code, len(body["throughputs"])) == (0, 6)
    assert body["recommendation"]["training"] in ("float32", "bfloat16")
    assert body["passport"]["method"] == body["throughputs"][0]["energy"]["method"]
    found = hardware.measure_hardware(seconds=0.01, rounds=1)
    monkeypatch.setattr(hardware, "measure_hardware", lambda **_: found)
    code, out, _ = run("hardware")
    assert code == 0
    assert out.count("LiteRT") == 2
    assert "infer in " in out


@pytest.mark.slow
def test_transforms_lists_every_op_with_its_cost(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("transforms", "--json")
    rows = json.loads(out)
    assert (code, [row["op"] for row in rows]) == (0, list(OPS))
    assert all(row["cpu_us_per_image"] > 0 and row["does"] for row in rows)
    assert next(row["usage"] for row in rows if row["op"] == "pad") == "pad(padding, fill=0, padding_mode='constant')"
    show(describe_ops(rows))  # as the command does: measuring all of them again takes seconds
    out = capfd.readouterr().out
    assert {line.partition("(")[0].strip().split(" ")[0] for line in out.splitlines()} >= set(OPS)


@pytest.mark.parametrize(
    ("chain", "tiles"),
    [
        ("decode|resize(20)|random_crop(16) || flip_lr|to_float|mixup", 32),
        ("decode|resize(20) || random_crop(16)", 26),
        ("decode|resize(20) || resize(16)", 3),
    ],
)
def test_a_preview_shows_what_is_cached_and_what_epochs_see(
    run: Run, synthetic_folder: Path, tmp_path: Path, chain: str, tiles: int
) -> None:
    image, sheet = synthetic_folder / "even" / "0.jpg", tmp_path / "sheet.png"
    code, out, err = run("transforms", "--preview", image, "--chain", chain, "--sheet", sheet)
    assert (code, err) == (0, "")
    assert str(sheet) in out
    with Image.open(sheet) as drawn:
        pixels = np.asarray(drawn)
    rows, columns = -(-tiles // 8), min(tiles, 8)
    assert pixels.shape == (rows * 152 + 6, 8 * 134 + 6, 3)
    last = pixels[(rows - 1) * 152 + 6 :, (columns - 1 if rows == 1 else (tiles - 1) % 8) * 134 + 6 :][:128, :128]
    assert last.std() > 10  # an image, and nothing after it
    beyond = pixels[(rows - 1) * 152 + 6 :, ((tiles - 1) % 8 + 1) * 134 + 6 :]
    assert (beyond == 255).all()


@pytest.mark.parametrize("sheet", ["sheet.txt", "missing/sheet.png"])
def test_a_sheet_is_a_png_file_in_a_folder_that_exists(
    run: Run, synthetic_folder: Path, tmp_path: Path, sheet: str
) -> None:
    path = tmp_path / sheet
    preview = ("transforms", "--preview", synthetic_folder / "even" / "0.jpg", "--chain", "decode")
    expected = f"joulecache: sheet must be a .png file in a folder that exists, got {str(path)!r}\n"
    assert run(*preview, "--sheet", path) == (2, "", expected)
    with pytest.raises(ValueError, match="sheet must be"):
        write_contact_sheet("cache", path)


@pytest.mark.parametrize("wrong", [("--format", "zip"), ("--seed", -1)])
def test_a_wrong_option_is_said_without_the_words_of_the_parser(run: Run, wrong: tuple[object, ...]) -> None:
    code, out, err = run("precompute", "photos", "cache", "--chain", "decode", *wrong)
    assert (code, out) == (2, "")
    assert err.startswith("joulecache: ")
    assert "Value error" not in err
    assert "Input should" not in err


def test_a_preview_is_repeatable_and_overwrites_only_the_file_that_is_named(
    run: Run, synthetic_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    preview = ("transforms", "--preview", synthetic_folder / "even" / "0.jpg", "--chain")
    sheet = tmp_path / "0-preview.png"
    assert run(*preview, "decode|random_crop(64)")[0] == 0
    before = sheet.read_bytes()
    code, _, err = run(*preview, "decode|resize(8)")
    assert code == 1
    assert "--sheet" in err
    assert sheet.read_bytes() == before
    assert run(*preview, "decode|random_crop(64)", "--sheet", sheet.name)[0] == 0
    assert sheet.read_bytes() == before
    assert run(*preview, "decode|resize(8)", "--sheet", sheet.name)[0] == 0
    assert sheet.read_bytes() != before


def test_a_preview_of_a_source_draws_its_first_record_with_its_targets(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    preview = ("transforms", "--preview", "synthetic:2", "--chain", "decode|resize(32)", "--json")
    drawn = {}
    for target in ("label", "mask"):
        code, out, err = run(*preview, "--target", target, "--sheet", f"{target}.png")
        assert (code, err) == (0, "")
        assert json.loads(out)["key"] == "bar/00000000.jpg"
        drawn[target] = Path(f"{target}.png").read_bytes()
    assert drawn["label"] != drawn["mask"]
    assert run(*preview, "--target", "mask")[0] == 0
    assert Path("00000000-preview.png").read_bytes() == drawn["mask"]


CUSTOM_OPS = '''
from dataclasses import dataclass

from joulecache.transforms import Op


@dataclass(frozen=True)
class Negative(Op):
    """Invert the image."""

    random_words = 1

    def pixels(self, image, draw):
        return 255 - image if draw[0] < 2**31 else image
'''


@pytest.mark.slow
def test_custom_ops_work_from_the_build_to_training(photo_folder: Path, tmp_path: Path) -> None:
    """In child processes that run in the folder of the module."""
    (tmp_path / "my_ops.py").write_text(CUSTOM_OPS)
    chain = "decode|resize(24) || random_crop(20)|negative"

    def joulecache(*arguments: object) -> subprocess.CompletedProcess[str]:
        return run_python(CLI, *arguments, cwd=tmp_path, strict=False)  # Keras warns

    done = joulecache("precompute", photo_folder, "cache", "--chain", chain, "--ops", "my_ops")
    assert done.returncode == 0, done.stderr
    assert "negative" in joulecache("inspect", "cache").stdout  # without the module, none of whose code runs
    assert joulecache("verify", "cache").returncode == 0
    refused = joulecache("train", "cache", "--epochs", 1, "--out", "run")
    assert refused.returncode == 2
    assert "unknown op 'negative'" in refused.stderr
    assert "--ops" in refused.stderr
    done = joulecache("train", "cache", "--epochs", 1, "--out", "run", "--ops", "my_ops", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == open_manifest(tmp_path / "cache").splits["train"].records
    row = json.loads(joulecache("transforms", "--ops", "my_ops", "--json").stdout)[-1]
    assert row == {"op": "negative", "usage": "negative", "does": "Invert the image.", "cpu_us_per_image": None}
