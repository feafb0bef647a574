"""Arguments that cannot work are refused before anything long begins, and what was measured outlives a step that fails later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf
from caches import contents
from keras import layers
from small_audits import NO_STAGES, audit, logged

from joulecache.pipelines.compressing.compression import compress
from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.core.files import check_writable
from joulecache.pipelines.report.files import write_report
from joulecache.pipelines.training.trainer import train

CHAIN = "decode|resize(40) || random_crop(32)|flip_lr"
UNWRITABLE = Path("/proc/joulecache")  # for root too
INT8 = Recipe(sparsity=0.5, quantize="int8")


def never(what: str, done: int, total: int) -> None:
    raise AssertionError(f"{what}: work has begun")


class Never(keras.callbacks.Callback):  # type: ignore[misc]
    def on_train_begin(self, logs: Any = None) -> None:
        raise AssertionError("training began")


def save_model(
    folder: Path, side: int = 32, classes: int = 3, dtype: str = "float32", activation: str = "relu", **norm: Any
) -> Path:
    """Save a small model that fits `CHAIN` and `photos` by default."""
    pixels = keras.Input((side, side, 3))
    x = layers.Rescaling(1 / 255)(pixels)
    x = layers.Conv2D(16, 3, activation=activation, dtype=dtype, name="conv")(x)
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization(name="norm", **norm)(x))
    keras.Model(pixels, layers.Dense(classes)(x), name="mine").save(folder / "mine.keras")
    return folder / "mine.keras"


# Folders --------------------------------------------------------------------------------------------------------------


def test_a_folder_that_can_be_written_to_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "new", tmp_path / "deep" / "new"):
        check_writable(folder, "out")
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    with pytest.raises(ValueError, match="out must be a folder on this machine, not in an object store"):
        check_writable(Path("s3://bucket/run"), "out")
    for folder in (UNWRITABLE, UNWRITABLE / "deep", tmp_path / "notes.txt" / "below"):
        with pytest.raises(ValueError, match=r"out must be a folder that can be written to \(.*\), got '/"):
            check_writable(folder, "out")


# Audits ---------------------------------------------------------------------------------------------------------------

UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "other classes": ({"classes": 5}, "has images of 32x32x3 in 3 classes, but .* maps 32x32x3 to 5 outputs"),
    "other size": ({"side": 48}, "has images of 32x32x3, but .* expects 48x48x3: resize the images"),
}
UNCOMPRESSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "not for int8": ({"activation": "squareplus"}, "layers that int8 does not support: use float16 or dynamic"),
    "batches renormalized": ({"renorm": True}, r"layer 'norm'.* renormalizes"),
}
AUDITS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown model": ({"model": "resnet50"}, "unknown model 'resnet50': .* did you mean 'resnet8'"),
    "unknown width": ({"model": "mobilenet:0.3"}, "the width of 'mobilenet' must be one of"),
    "images too small": ({"chain": "decode|resize(16)"}, "images of 16x16 are too small for 'cnn'"),
    "images of any size": ({"chain": "decode || flip_lr"}, "return images of varying size"),
    "seed of no use": ({"seed": 2**32}, "seed must be an integer from 0 to 4294967295"),
    "folder": ({"out": UNWRITABLE}, "out must be a folder that can be written to"),
}


@pytest.mark.parametrize(("changes", "message"), AUDITS.values(), ids=AUDITS)
def test_an_audit_that_cannot_work_is_refused_before_its_source_is_read(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    arguments = {"chain": CHAIN, "out": tmp_path / "out", **changes}
    if "out" in changes:
        arguments["source"] = tmp_path
    with pytest.raises(ValueError, match=message):
        audit(**{"source": "synthetic:100000000", "progress": never, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_an_audit_of_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no model file"):
        audit("synthetic:100000000", CHAIN, tmp_path / "out", model=str(tmp_path / "none.keras"), progress=never)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"), [*UNFIT.values(), *UNCOMPRESSIBLE.values()], ids=[*UNFIT, *UNCOMPRESSIBLE]
)
def test_a_model_that_does_not_fit_is_refused_before_anything_is_built(
    photo_folder: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    model = save_model(tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        audit(photo_folder, CHAIN, tmp_path / "out", model=str(model), progress=never)
    assert list(tmp_path.iterdir()) == [model]


def test_the_model_of_an_audit_of_pipelines_is_checked_before_an_epoch(tmp_path: Path) -> None:
    def fails() -> tf.data.Dataset:
        images = tf.data.Dataset.from_tensors((tf.zeros((4, 32, 32, 3), tf.uint8), tf.zeros(4, tf.int64)))
        return images.map(
            lambda images, labels: (tf.debugging.check_numerics(tf.cast(images, tf.float32) / 0.0, ""), labels)
        )

    big = save_model(tmp_path, side=48)
    for model, message in ((str(big), "expects 48x48x3"), ("resnet50", "unknown model 'resnet50'")):
        with pytest.raises(ValueError, match=message):
            audit(out=tmp_path / "out", datasets={"fails": fails}, model=model, progress=never)
    assert list(tmp_path.iterdir()) == [big]


# Training and compressing ---------------------------------------------------------------------------------------------

TRAININGS: dict[str, tuple[dict[str, Any], str]] = {
    "folder": ({"out": UNWRITABLE}, "out must be a folder that can be written to"),
    "no rate": ({"learning_rate": 0}, "learning_rate must be a finite number above 0, got 0"),
    "a rate that is no number": ({"learning_rate": float("nan")}, "learning_rate must be .* got nan"),
    "seed of no use": ({"seed": 2**32}, "seed must be an integer from 0 to 4294967295"),
    "too many clusters": ({"recipe": Recipe(clusters=10**6)}, r"clusters must be at most \d+, half of the weights"),
}


@pytest.mark.parametrize(("changes", "message"), TRAININGS.values(), ids=TRAININGS)
def test_a_training_that_cannot_work_is_refused_first(
    photo_cache: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(photo_cache, **{"out": tmp_path / "out", "epochs": 1, "callbacks": [Never()], **changes})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("options", "message"), UNCOMPRESSIBLE.values(), ids=UNCOMPRESSIBLE)
def test_a_model_that_cannot_be_compressed_is_refused_before_it_is_trained(
    photo_cache: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    model, out = save_model(tmp_path, **options), tmp_path / "out"
    with pytest.raises(ValueError, match=message):
        train(photo_cache, out=out, epochs=1, model=model, recipe=INT8, callbacks=[Never()])
    with pytest.raises(ValueError, match=message):
        compress(model, photo_cache, INT8, out=out, progress=never)
    assert list(tmp_path.iterdir()) == [model]


def test_what_a_run_folder_holds_of_others_is_found_before_training(
    photo_cache: Path, small_run: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "run" / "compressed"
    theirs.mkdir(parents=True)
    for name in ("model.keras", "history.json"):
        (tmp_path / "run" / name).write_bytes((small_run / name).read_bytes())
    (theirs / "thesis.tex").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="compressed' is not empty"):
        train(photo_cache, out=tmp_path / "run", epochs=1, recipe=INT8, callbacks=[Never()])
    assert contents(tmp_path) == before


def test_results_are_not_written_into_the_cache(photo_cache: Path, small_run: Path) -> None:
    before = contents(photo_cache)
    calls: list[Callable[[], object]] = [
        lambda: train(photo_cache, out=photo_cache / "run", epochs=1, callbacks=[Never()]),
        lambda: compress(small_run / "model.keras", photo_cache, INT8, out=photo_cache / "small", progress=never),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="overlap: choose a folder outside the cache"):
            call()
    assert contents(photo_cache) == before


# What is kept ---------------------------------------------------------------------------------------------------------


def test_an_audit_whose_report_cannot_be_written_continues(photo_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"arms": ("naive", "optimized"), "batch_size": 8, "pairs": 1, "budget": NO_STAGES}
    settings |= {"model": "mlp", "train_epochs": 1}
    out = tmp_path / "audit"
    first = audit(photo_folder, CHAIN, out, workloads=("input",), **settings)
    runs = logged(out)
    (out / "report.html").mkdir()
    with pytest.raises(IsADirectoryError, match=r"report\.html"):
        write_report(first, out)
    (out / "report.html").rmdir()
    again = audit(photo_folder, CHAIN, out, workloads=("input", "train"), **settings)
    assert again.workloads[0].control == first.workloads[0].control
    assert logged(out)[: len(runs)] == runs
    assert {run["workload"] for run in logged(out)[len(runs) :]} == {"train"}
    write_report(again, out)
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json", "report.md", "runs.jsonl"]


def test_a_trained_model_outlives_its_compression(
    photo_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        RuntimeError, match=r"cannot be compressed: .* weights that are not finite: its training diverged"
    ):
        train(photo_cache, out=tmp_path / "run", epochs=1, model="mlp", learning_rate=1e30, recipe=INT8)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"model.keras", "history.json"}
    assert f"the trained model is kept in {tmp_path / 'run' / 'model.keras'}" in caplog.text
