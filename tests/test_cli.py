"""The command line: one clear line and an exit code for every bad input, and the whole path on a few photos."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.cli.terminal import print_ops
from joulecache.pipelines.energy import Energy
from joulecache.pipelines.source import synthetic_photo
from joulecache.transforms.ops import OPS

CHAIN = "decode|resize(16) || random_crop(12)"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(40):
        path = folder / ("a", "b")[index % 2] / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(synthetic_photo(index))
    return folder


@pytest.fixture(scope="module")
def cache(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from joulecache.pipelines.building.precomputing import precompute

    folder = tmp_path_factory.mktemp("caches") / "cache"
    precompute(photos, folder, CHAIN)
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_missing_source(run: Run, tmp_path: Path) -> None:
    code, out, err = run("precompute", tmp_path / "nowhere", tmp_path / "cache", "--chain", CHAIN)
    assert (code, out) == (2, "")
    assert "no source at" in err
    assert not (tmp_path / "cache").exists()


BAD = {
    "unknown op": (["--chain", "decode|flip_rl"], "unknown op 'flip_rl'"),
    "wrong argument type": (
        ["--chain", "decode|resize('big')"],
        "size must be an integer from 1 to 65535, got 'big'",
    ),
    "crop larger than the image": (["--chain", "decode|resize(8)|random_crop(9)"], "9x9 is larger than the image 8x8"),
    "no chain": ([], "Missing option '--chain'"),
    "unknown option": (["--chain", CHAIN, "--colour", "red"], "No such option: --colour"),
    "unknown Beam option": (
        ["--chain", CHAIN, "--", "--runnr=x"],
        "unknown Beam option '--runnr=x': did you mean --runner?",
    ),
    "no number": (["--chain", CHAIN, "--variants", "many"], "--variants"),
    "unknown format": (["--chain", CHAIN, "--format", "zip"], "--format"),
    "quality without jpeg": (["--chain", CHAIN, "--quality", "90"], "quality needs encoding jpeg"),
    "unknown country": (["--chain", CHAIN, "--country", "XXX"], "XXX"),
    "unknown provider": (["--chain", CHAIN, "--provider", "acme"], "acme"),
    "watts of one kind": (["--chain", CHAIN, "--watts", "65"], "give two numbers, IDLE:FULL, like 12:65"),
    "watts that are none": (["--chain", CHAIN, "--watts", "nan:65"], "idle_w is nan"),
    "watts the wrong way round": (["--chain", CHAIN, "--watts", "65:12"], "full_w is 12.0: give at least idle_w, 65.0"),
    "pue below 1": (["--chain", CHAIN, "--pue", "0.9"], "pue is 0.9"),
    "no folder for emissions": (["--chain", CHAIN, "--emissions", "/no/such/folder"], "/no/such/folder"),
    "varying sizes as raw": (["--chain", "decode || resize(8)"], "raw needs one size"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_one_line(run: Run, photos: Path, tmp_path: Path, options: list[str], message: str) -> None:
    code, out, err = run("precompute", photos, tmp_path / "cache", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("joulecache: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "cache").exists()


def test_empty_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "README").write_text("none yet")
    code, _, err = run("precompute", tmp_path / "photos", tmp_path / "cache", "--chain", CHAIN)
    assert code == 2
    assert "holds no image (1 other files)" in err


def test_a_file_that_is_no_source(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    code, _, err = run("precompute", tmp_path / "notes.txt", tmp_path / "cache", "--chain", CHAIN)
    assert code == 2
    assert "is a file but no source" in err


def test_broken_images_are_listed(run: Run, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for path in photos.rglob("*.jpg"):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / path.parent.name / path.name).write_bytes(path.read_bytes())
    (folder / "a" / "0.jpg").write_bytes(b"no image at all")
    code, out, _ = run("precompute", folder, tmp_path / "cache", "--chain", CHAIN, "--json")
    assert code == 0
    rejected = json.loads(out)["manifest"]["rejected"]
    lines = (tmp_path / "cache" / rejected["name"]).read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["a/0.jpg"]


def test_too_many_broken_images_fail_the_job(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "a"
    folder.mkdir(parents=True)
    for index in range(4):
        (folder / f"{index}.jpg").write_bytes(synthetic_photo(index) if index else b"broken")
    code, _, err = run("precompute", tmp_path / "photos", tmp_path / "cache", "--chain", CHAIN)
    assert code == 1
    assert "1 of 4 records rejected" in err
    assert "--max-reject-rate 0.25" in err
    assert not (tmp_path / "cache" / "manifest.json").exists()


def test_a_cache_of_another_chain_is_kept(run: Run, photos: Path, cache: Path) -> None:
    before = snapshot(cache)
    code, _, err = run("precompute", photos, cache, "--chain", "decode|resize(20)")
    assert code == 2
    assert "pass --replace" in err
    assert snapshot(cache) == before


def test_a_full_folder_that_is_no_cache_is_kept(run: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for options in ([], ["--replace"]):
        code, _, err = run("precompute", photos, tmp_path, "--chain", CHAIN, *options)
        assert code == 2
        assert "not a joulecache cache" in err
    assert snapshot(tmp_path) == {str(tmp_path / "thesis.txt"): b"mine"}


@pytest.mark.parametrize("inside", [True, False])
def test_source_and_cache_may_not_contain_each_other(run: Run, photos: Path, inside: bool) -> None:
    before = snapshot(photos)
    code, _, err = run("precompute", photos, photos / "cache" if inside else photos.parent, "--chain", CHAIN)
    assert code == 2
    assert "overlap" in err
    assert snapshot(photos) == before


def test_batch_size_zero(run: Run, photos: Path, tmp_path: Path) -> None:
    code, _, err = run("audit", photos, "--chain", CHAIN, "--out", tmp_path / "out", "--batch-size", 0)
    assert code == 2
    assert "--batch-size" in err


def test_an_unchanged_source_builds_nothing(run: Run, photos: Path, cache: Path) -> None:
    before = snapshot(cache)
    code, out, _ = run("precompute", photos, cache, "--chain", CHAIN)
    assert code == 0
    assert "up to date" in out
    assert snapshot(cache) == before


def test_labels_in_a_file_name_the_classes(run: Run, photos: Path, tmp_path: Path) -> None:
    lines = [
        "key,label",
        *(f"{path.relative_to(photos)},{'odd' if int(path.stem) % 2 else 'even'}" for path in photos.rglob("*.jpg")),
    ]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    code, _, err = run(
        "precompute",
        photos,
        tmp_path / "cache",
        "--chain",
        CHAIN,
        "--labels",
        tmp_path / "labels.csv",
        "--val-fraction",
        0,
    )
    assert code == 0, err  # which may have lines of progress, on a busy machine
    manifest = open_manifest(tmp_path / "cache")
    assert manifest.class_names == ("even", "odd")
    assert manifest.splits["train"].class_counts == (20, 20)
    code, _, err = run("precompute", photos, tmp_path / "other", "--chain", CHAIN, "--labels", tmp_path / "none.csv")
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot read the labels" in err


def test_what_beam_says_is_shown_when_asked_for(photos: Path, tmp_path: Path) -> None:
    program = "import sys; from joulecache.pipelines.cli import main; sys.argv[0] = 'joulecache'; main()"
    command = [sys.executable, "-c", program, "precompute", str(photos), str(tmp_path / "cache")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    said = subprocess.run(
        [*command, "--chain", CHAIN, "--verbose"], env=environment, capture_output=True, text=True, check=True
    ).stderr
    assert "INFO apache_beam." in said


def test_inspect_says_what_is_in_a_cache(run: Run, cache: Path) -> None:
    code, out, err = run("inspect", cache)
    assert (code, err) == (0, "")
    assert CHAIN in out
    assert "16x16x3" in out
    assert "modelled:cpu-seconds" in out or "measured:rapl" in out


def test_inspect_writes_a_contact_sheet(run: Run, cache: Path, tmp_path: Path) -> None:
    code, _, _ = run("inspect", cache, "--sheet", tmp_path / "sheet.png")
    assert code == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert len(sheet.convert("RGB").getcolors(1 << 24) or []) > 1000


def test_inspect_of_no_cache(run: Run, tmp_path: Path) -> None:
    code, _, err = run("inspect", tmp_path)
    assert code == 2
    assert "no cache at" in err


def test_verify_finds_a_flipped_byte(run: Run, photos: Path, tmp_path: Path) -> None:
    assert run("precompute", photos, tmp_path / "cache", "--chain", CHAIN)[0] == 0
    assert run("verify", tmp_path / "cache")[0] == 0
    shard = next((tmp_path / "cache").glob("train-*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    code, _, err = run("verify", tmp_path / "cache")
    assert code == 1
    assert f"{shard.name}: its bytes changed" in err


@pytest.mark.slow
def test_train_then_compress(run: Run, photos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert run("precompute", photos, cache, "--chain", "decode|resize(32)", "--val-fraction", 0.3)[0] == 0
    options = ("--epochs", 1, "--model", "mlp", "--quantize", "dynamic")
    code, out, _ = run("train", cache, *options, "--out", tmp_path / "run", "--json")
    assert code == 0
    trained = json.loads(out)
    assert trained["compression"]["recipe"]["quantize"] == "dynamic"
    assert [variant["name"] for variant in trained["compression"]["variants"]] == ["baseline", "baseline-dynamic"]
    stages = ("--prune", 0.5, "--cluster", 8, "--quantize", "int8", "--finetune-epochs", 0, "--seed", 3)
    small = tmp_path / "small"
    code, out, _ = run("compress", trained["model"], "--data", cache, *stages, "--out", small, "--json")
    assert code == 0
    compression = json.loads(out)
    assert compression == {
        name: value
        for name, value in json.loads((small / "compression.json").read_text()).items()
        if name not in ("format", "versions", "files")
    }
    assert compression["recipe"] == {
        "prune": 0.5,
        "macs": None,
        "criterion": "l1",
        "protected": [],
        "sparsity": 0.0,
        "l1": 0.0,
        "clusters": 8,
        "cluster_per": "layer",
        "quantize": "int8",
        "finetune_epochs": 0,
    }
    assert compression["seed"] == 3
    sizes: dict[str, Any] = {variant["name"]: variant["file_bytes"] for variant in compression["variants"]}
    assert list(sizes) == [
        *("baseline", "pruned-float32", "pruned-clustered-float32", "baseline-int8", "pruned-clustered-int8"),
    ]
    assert sizes["pruned-clustered-int8"] < sizes["pruned-float32"] < sizes["baseline"]
    assert {path.name for path in small.iterdir()} == {
        *(f"{name}.tflite" for name in sizes),
        *("pruned-clustered-int8.keras", "compression.json"),
    }


class Asked(ValueError):
    """Carries what a command was asked to do, in place of doing it."""


def test_every_option_reaches_the_recipe(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from joulecache.pipelines.compressing import compression
    from joulecache.pipelines.compressing.recipe import Recipe
    from joulecache.pipelines.training import trainer

    asked: list[dict[str, Any]] = []

    def ask(*arguments: Any, **more: Any) -> Any:
        asked.append({"arguments": arguments, **more})
        raise Asked("asked")

    monkeypatch.setattr(compression, "compress", ask)
    monkeypatch.setattr(trainer, "train", ask)
    stages = ("--sparsity", 0.5, "--cluster", 16, "--quantize", "float16")
    details = ("--macs", 0.4, "--criterion", "gamma", "--protect", "a", "--protect", "b", "--l1", "1e-5")
    more = ("--cluster-per", "channel", "--finetune-epochs", 5, "--seeds", 3, "--seed", 7)
    assert run("compress", "m.keras", "--data", "cache", "--out", tmp_path, *stages, *details, *more)[0] == 2
    assert run("compress", "m.keras", "--data", "cache", "--out", tmp_path, "--prune", 0.25)[0] == 2
    assert run("train", "cache", "--epochs", 1, "--out", tmp_path, "--learning-rate", 0.002)[0] == 2
    assert run("train", "cache", "--epochs", 1, "--out", tmp_path, "--prune", 0.25, *stages)[0] == 2
    everything, prune, nothing, trained = asked
    assert everything["arguments"] == (
        Path("m.keras"),
        "cache",
        Recipe(
            macs=0.4,
            criterion="gamma",
            protected=("a", "b"),
            sparsity=0.5,
            l1=1e-5,
            clusters=16,
            cluster_per="channel",
            quantize="float16",
            finetune_epochs=5,
        ),
    )
    assert (everything["seeds"], everything["seed"]) == (3, 7)
    assert prune["arguments"][2] == Recipe(prune=0.25)
    assert (prune["seeds"], prune["seed"]) == (1, 0)
    assert (nothing["recipe"], nothing["learning_rate"]) == (None, 0.002)
    assert (trained["recipe"], trained["learning_rate"]) == (
        Recipe(prune=0.25, sparsity=0.5, clusters=16, quantize="float16"),
        1e-3,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["notes.keras", "--quantize", "int8"], "notes.keras' cannot be loaded as a Keras model"),
        (["notes.txt", "--quantize", "int8"], "notes.txt' is not named like a Keras model file"),
        (["notes.keras", "--prune", "1"], "prune ratio 1.0: give a share to drop, at least 0 and below 1"),
        (["notes.keras", "--prune", "1.5"], "--prune"),
        (["notes.keras", "--sparsity", "-0.1"], "--sparsity"),
        (["notes.keras", "--sparsity", "1"], "sparsity 1.0: give a share to drop"),
        (["notes.keras", "--macs", "0"], "share 0.0 of the multiply-accumulates: give one above 0"),
        (["notes.keras", "--cluster", "1"], "--cluster"),
        (["notes.keras", "--quantize", "int4"], "--quantize"),
        (["notes.keras", "--criterion", "l2", "--prune", "0.5"], "--criterion"),
        (["notes.keras", "--l1", "0.1"], "L1 strength 0.1: it works while weights are pruned"),
        (["notes.keras", "--seeds", "0", "--prune", "0.5"], "--seeds"),
        (["notes.keras"], "nothing to do: give a prune ratio above 0"),
    ],
)
def test_what_cannot_be_compressed_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("notes.keras", "notes.txt"):
        (tmp_path / name).write_text("no model")
    code, out, err = run("compress", *options, "--data", "cache", "--out", "small")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert {path.name for path in tmp_path.iterdir()} == {"notes.keras", "notes.txt"}


def test_a_missing_model_is_one_line(run: Run, tmp_path: Path) -> None:
    options = ("--data", tmp_path / "cache", "--prune", 0.5, "--out", tmp_path / "small")
    code, out, err = run("compress", tmp_path / "none.keras", *options)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "no model file at" in err


def test_help_shows_what_is_done_in_its_order(run: Run) -> None:
    order = ("--prune", "--sparsity", "--cluster", "--quantize")
    for command in ("train", "compress"):
        _, out, _ = run(command, "--help")
        panel = out.partition("Compression, in this order")[2].partition("╰")[0]
        places = [panel.find(f"{option} ") for option in order]
        assert -1 not in places
        assert places == sorted(places)
        details = out.partition("Compression, in detail")[2].partition("╰")[0]
        for option in ("--macs", "--criterion", "--protect", "--l1", "--cluster-per", "--finetune-epochs", "--seeds"):
            assert (f"{option} " in details) == (command == "compress"), option
    assert "--learning-rate" in run("train", "--help")[1]


@pytest.mark.usefixtures("short_runs")
def test_audit_writes_its_report(run: Run, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "audit"
    options = ("--out", out, "--workload", "input", "--pairs", 1, "--batch-size", 8)
    code, text, _ = run("audit", photos, "--chain", CHAIN, *options)
    assert code == 0
    assert "inconclusive" in text
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json", "report.md", "runs.jsonl"]
    assert json.loads((out / "report.json").read_text())["chain"] == CHAIN


COMMANDS = (
    "precompute",
    "inspect",
    "verify",
    "train",
    "compress",
    "plan",
    "audit",
    "transforms",
    "run",
    "hardware",
    "doctor",
)


def test_help_names_every_command_and_an_example(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in COMMANDS:
        assert command in out
        assert "Example: joulecache " + command in run(command, "--help")[1]


def test_help_fits_a_screen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for command in COMMANDS:
        assert len(run(command, "--help")[1].splitlines()) <= 50, command


def test_an_interrupted_build_says_so_and_shows_nothing(tmp_path: Path) -> None:
    program = (
        # Where the tests run in the background, Ctrl-C is ignored, and so it would be here.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys; sys.argv = ['joulecache', 'precompute', 'synthetic:2000', sys.argv[1], '--chain', 'decode|resize(8)',"
        " '--shards', '100']\n"
        "from joulecache.pipelines.cli import main; main()"
    )
    cache = tmp_path / "cache"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program, str(cache)], stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        try:
            # Until its first shard stands: an import that is interrupted may swallow that.
            while not any(cache.glob(".building/*.json")):
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "stopped" in err
    assert "the same command goes on" in err
    assert not (cache / "manifest.json").exists()


# ------------------------------------------------------------------------------------------ run


PROGRAM = "from joulecache.pipelines.cli import main; main()"


def joulecache(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run joulecache in a process of its own, which adopts orphans and handles signals."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "COLUMNS": "200"}
    command = [sys.executable, "-W", "error", "-c", PROGRAM, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False, **options)


def burning(cpu_s: float) -> str:
    return f"import time\nwhile time.process_time() < {cpu_s}: pass"


def test_run_measures_a_command_and_takes_its_exit_code(tmp_path: Path) -> None:
    code = burning(0.3) + "\nimport sys\nprint(sys.stdin.read()[::-1])\nsys.exit(3)"
    done = joulecache("run", "--country", "FRA", "--emissions", tmp_path, "--", sys.executable, "-c", code, input="abc")
    assert (done.returncode, done.stdout) == (3, "cba\n")  # its streams are its own
    assert "energy: " in done.stderr
    assert "modelled:cpu-seconds@1" in done.stderr
    assert "CO2: " in done.stderr
    with open(tmp_path / "emissions.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["project_name"] == Path(sys.executable).name
    assert row["country_iso_code"] == "FRA"


def test_run_prints_json_alone_on_stdout() -> None:
    done = joulecache("run", "--json", "--watts", "10:50", sys.executable, "-c", "print('out')")  # -- may be left out
    body = json.loads(done.stdout)
    energy = Energy.from_json(body["energy"])
    assert (body["exit_code"], body["command"][1:], body["cross_check"]) == (0, ["-c", "print('out')"], None)
    assert (energy.method, energy.carbon_g, body["passport"]["provider"]) == ("user", None, None)
    assert done.stderr == "out\n"


def test_run_counts_processes_whose_parents_are_gone() -> None:
    orphan = f'("$0" -c "{burning(0.5)}" &) ; sleep 2'
    done = joulecache("run", "--json", "sh", "-c", orphan, sys.executable)
    assert Energy.from_json(json.loads(done.stdout)["energy"]).cpu_s >= 0.5 - 0.03


@pytest.mark.slow
def test_run_checks_itself_against_codecarbon() -> None:
    done = joulecache("run", "--json", "--cross-check", sys.executable, "-c", burning(1.0))
    body = json.loads(done.stdout)
    assert body["cross_check"]["energy_j"] > 0
    assert done.stderr == ""
    done = joulecache("run", "--cross-check", sys.executable, "-c", burning(1.0))
    assert "CodeCarbon: " in done.stderr
    assert "times that" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run"], 2, "Missing argument"),
        (["run", "--", "no-such-command"], 127, "cannot run 'no-such-command': No such file or directory"),
        (["run", "--no-such-option", "true"], 2, "No such option"),
        (["run", "--country", "XXX", "true"], 2, "unknown country 'XXX'"),
    ],
)
def test_run_refuses(arguments: list[str], code: int, message: str) -> None:
    done = joulecache(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_run_passes_signals_on_and_still_says_what_was_used(tmp_path: Path, number: signal.Signals) -> None:
    ready = tmp_path / "ready"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PROGRAM, "run", "--json", "sh", "-c", 'touch "$0"; exec sleep 60', str(ready)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        try:
            while not ready.exists():
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(number)
            out, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 128 + number
    assert json.loads(out)["exit_code"] == 128 + number


def test_ctrl_c_ends_the_command_and_still_says_what_was_used(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + PROGRAM
    child = f"import pathlib, time; pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    command = [sys.executable, "-c", code, "run", "--json", "--", sys.executable, "-c", child]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True, start_new_session=True
    ) as process:
        try:
            while not ready.exists():
                assert process.poll() is None
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to both
            out, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert json.loads(out)["exit_code"] == process.returncode == 128 + signal.SIGINT


# ------------------------------------------------------------------------------------------ hardware


def test_hardware_says_what_the_machine_achieves_and_what_to_use(run: Run) -> None:
    code, out, _ = run("hardware", "--rounds", 1, "--seconds", 0.01, "--watts", "10:50")
    assert code == 0
    assert out.count("LiteRT") == 2
    assert "Watts: active, user" in out
    assert "infer in " in out
    code, out, _ = run("hardware", "--rounds", 1, "--seconds", 0.01, "--json")
    body = json.loads(out)
    assert (code, len(body["throughputs"])) == (0, 6)
    assert body["recommendation"]["training"] in ("float32", "bfloat16")
    assert body["passport"]["method"] == body["throughputs"][0]["energy"]["method"]


# ------------------------------------------------------------------------------------------ transforms, and ops of one's own


@pytest.mark.slow
def test_transforms_lists_every_op_with_its_cost(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("transforms", "--json")
    rows = json.loads(out)
    assert (code, [row["op"] for row in rows]) == (0, list(OPS))
    assert all(row["cpu_us_per_image"] > 0 and row["does"] for row in rows)
    assert next(row["usage"] for row in rows if row["op"] == "pad") == "pad(padding, fill=0, padding_mode='constant')"
    print_ops(rows)  # what the command does with them for people; measuring all of them again takes seconds
    out = capfd.readouterr().out
    assert {line.partition("(")[0].strip().split(" ")[0] for line in out.splitlines()} >= set(OPS)


@pytest.mark.parametrize(
    ("chain", "tiles"),
    [
        ("decode|resize(20)|random_crop(16) || flip_lr|to_float|mixup", 32),
        ("decode|random_resized_crop(16)", 32),
        ("decode|resize(20) || random_crop(16)", 26),
        ("decode|resize(20) || resize(16)", 3),
        ("decode", 2),
    ],
)
def test_a_preview_shows_what_is_cached_and_what_epochs_see(
    run: Run, photos: Path, tmp_path: Path, chain: str, tiles: int
) -> None:
    image, sheet = photos / "a" / "0.jpg", tmp_path / "sheet.png"
    code, out, err = run("transforms", "--preview", image, "--chain", chain, "--sheet", sheet)
    assert (code, err) == (0, "")
    assert str(sheet) in out
    with Image.open(sheet) as drawn:
        pixels = np.asarray(drawn)
    rows, columns = -(-tiles // 8), min(tiles, 8)
    assert pixels.shape == (rows * 152 + 6, 8 * 134 + 6, 3)
    last = pixels[(rows - 1) * 152 + 6 :, (columns - 1 if rows == 1 else (tiles - 1) % 8) * 134 + 6 :][:128, :128]
    assert last.std() > 10  # there is a picture, and nothing beside it
    beyond = pixels[(rows - 1) * 152 + 6 :, ((tiles - 1) % 8 + 1) * 134 + 6 :]
    assert (beyond == 255).all()
    again = tmp_path / "again.png"
    run("transforms", "--preview", image, "--chain", chain, "--sheet", again)
    assert again.read_bytes() == sheet.read_bytes()


def test_a_preview_overwrites_only_what_is_named(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = photos / "a" / "0.jpg"
    assert run("transforms", "--preview", image, "--chain", "decode")[0] == 0
    before = snapshot(tmp_path)
    assert list(before) == [str(tmp_path / "0-preview.png")]
    code, _, err = run("transforms", "--preview", image, "--chain", "decode|resize(8)")
    assert (code, err) == (1, "joulecache: 0-preview.png exists: name the file to write by --sheet\n")
    assert snapshot(tmp_path) == before
    assert run("transforms", "--preview", image, "--chain", "decode|resize(8)", "--sheet", "0-preview.png")[0] == 0
    assert snapshot(tmp_path) != before


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--preview", "x.jpg"], 2, "--preview IMAGE and --chain go together"),
        (["--chain", "decode"], 2, "--preview IMAGE and --chain go together"),
        (["--preview", "nowhere.jpg", "--chain", "decode"], 1, "nowhere.jpg"),
        (["--preview", "{broken}", "--chain", "decode"], 2, "not an image"),
        (["--preview", "{photo}", "--chain", "decode|random_crop(9999)"], 2, "is larger than the image"),
        (["--preview", "{photo}", "--chain", "decode|to_float"], 2, "to_float must come after the cut"),
        (["--ops", "no_such_module"], 2, "cannot import --ops 'no_such_module': ModuleNotFoundError"),
        (["--ops", "json"], 2, "module json defines no op"),
    ],
)
def test_a_preview_that_cannot_be_drawn_is_one_line(
    run: Run, photos: Path, tmp_path: Path, options: list[str], code: int, message: str
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"hello")
    given = [option.format(broken=broken, photo=photos / "a" / "0.jpg") for option in options]
    got, out, err = run("transforms", *given, "--sheet", tmp_path / "sheet.png")
    assert (got, out, err.count("\n")) == (code, "", 1)
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["broken.jpg"]


OWN_OPS = """
from dataclasses import dataclass

from joulecache.transforms import Op


@dataclass(frozen=True)
class Negative(Op):
    \"\"\"Turn light into dark.\"\"\"

    words = 1

    def pixels(self, image, draw):
        return 255 - image if draw[0] < 2**31 else image
"""


@pytest.mark.slow
def test_ops_of_ones_own_go_from_the_build_to_training(photos: Path, tmp_path: Path) -> None:
    """In processes of their own, standing where the module lies, as people do."""
    (tmp_path / "my_ops.py").write_text(OWN_OPS)
    command = [sys.executable, "-c", "from joulecache.pipelines.cli import main; main()"]
    chain = "decode|resize(24) || random_crop(20)|negative"

    def joulecache(*arguments: object) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(filter(None, sys.path[1:]))
        return subprocess.run(
            [*command, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )

    done = joulecache("precompute", photos, "cache", "--chain", chain, "--ops", "my_ops")
    assert done.returncode == 0, done.stderr
    assert "negative" in joulecache("inspect", "cache").stdout  # without the module: nothing of it is run
    assert joulecache("verify", "cache").returncode == 0
    refused = joulecache("train", "cache", "--epochs", 1, "--out", "run")
    assert refused.returncode == 2
    assert "unknown op 'negative'" in refused.stderr
    assert "--ops" in refused.stderr
    done = joulecache("train", "cache", "--epochs", 1, "--out", "run", "--ops", "my_ops", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == open_manifest(tmp_path / "cache").splits["train"].records
    listed = joulecache("transforms", "--ops", "my_ops", "--json")
    assert json.loads(listed.stdout)[-1] == {
        "op": "negative",
        "usage": "negative",
        "does": "Turn light into dark.",
        "cpu_us_per_image": None,
    }
