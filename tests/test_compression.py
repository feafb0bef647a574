"""A compression as a whole: its folder, its record, and what is refused before any work."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from audits import COMPRESSION
from blobs import CLASSES, batches, blobs, weights_of
from keras import layers
from numpy.typing import NDArray

from joulecache.pipelines.compressing.compression import calibration_images, compress, compress_on
from joulecache.pipelines.compressing.litert import TfliteModel
from joulecache.pipelines.compressing.output import discard_output, staged_output, write_record
from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.compressing.results import Compression, read_compression
from joulecache.pipelines.compressing.steps import Job, StepRunner
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.models.classifiers import load_model
from joulecache.pipelines.models.macs import count_macs

HALF = Recipe(prune=0.5, quantize="int8")


def never(what: str, done: int, total: int) -> None:
    raise AssertionError(f"{what}: work has begun")


# ------------------------------------------------------------------------------------------- compressing


@dataclass(frozen=True)
class Compressed:
    """A compression and its folder."""

    out: Path
    done: Compression


@pytest.fixture(scope="module")
def compressed(blob_model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Compressed:
    out = tmp_path_factory.mktemp("compressed") / "deep" / "out"
    before = weights_of(blob_model)
    done = compress_on(
        blob_model,
        batches(320),
        batches(150, seed=5),
        Recipe(prune=0.5, quantize="int8", finetune_epochs=1),
        out=out,
        meter=Meter(),
        int8_tolerance=0.1,  # half a point is less than one of these few images
    )
    assert weights_of(blob_model) == before
    return Compressed(out, done)


@pytest.mark.slow
def test_compressing_prunes_tunes_quantizes_and_keeps_a_control(
    compressed: Compressed, blob_model: keras.Model
) -> None:
    done = compressed.done
    names = ["baseline", "control", "pruned-float32", "control-int8", "pruned-int8"]
    assert [file.name for file in done.model_files] == names
    baseline, control, pruned, control_int8, int8 = done.model_files
    assert done.widths == {"first": (16, 8), "second": (24, 16)}
    assert done.chance == np.bincount(blobs(150, seed=5)[1]).max() / 150
    assert not any(done.is_at_chance(file) for file in done.model_files)
    assert control_int8.macs == control.macs == baseline.macs == count_macs(blob_model)
    assert int8.macs == pruned.macs
    assert (pruned.macs or 0) < 0.5 * count_macs(blob_model)
    assert int8.parameters == pruned.parameters < 0.5 * baseline.parameters
    assert control_int8.file_bytes < control.file_bytes
    for file in done.model_files:
        assert file.images == 150
        assert file.accuracy >= 0.9
        assert done.accuracies[file.name] == (file.accuracy,)
        assert (compressed.out / file.file_name).stat().st_size == file.file_bytes
    for tuned in (control, pruned):
        assert tuned.finetune_energy is not None
        assert tuned.finetune_energy.total_j > 0
    assert baseline.finetune_energy is None
    assert done.calibration_images == 200


@pytest.mark.slow
def test_fine_tuning_changes_the_control_too(compressed: Compressed, blob_model: keras.Model) -> None:
    images = blobs(10, seed=7)[0]
    baseline, control = (
        TfliteModel(compressed.out / f"{name}.tflite").predict(images) for name in ("baseline", "control")
    )
    np.testing.assert_allclose(baseline, blob_model(images), atol=1e-4)
    assert np.abs(baseline - control).max() > 0.01


@pytest.mark.slow
def test_the_folder_holds_what_was_compressed(compressed: Compressed) -> None:
    files = {path.name for path in compressed.out.iterdir()}
    assert files == {
        *("baseline.tflite", "control.tflite", "pruned-float32.tflite", "control-int8.tflite", "pruned-int8.tflite"),
        *("pruned-int8.keras", "compression.json"),
    }
    assert [path.name for path in compressed.out.parent.iterdir()] == ["out"]
    record = json.loads((compressed.out / "compression.json").read_text())
    assert record == {**compressed.done.to_json(), **{key: record[key] for key in ("format", "versions", "files")}}
    assert record["format"] == "joulecache.compression/1"
    assert set(record["files"]) == files
    assert record["versions"]["tensorflow"] == tf.__version__
    assert read_compression(compressed.out / "compression.json") == compressed.done
    images = blobs(10)[0]
    np.testing.assert_allclose(
        load_model(compressed.out / "pruned-int8.keras")(images),
        TfliteModel(compressed.out / "pruned-float32.tflite").predict(images),
        atol=1e-4,
    )
    assert not keras.saving.load_model(compressed.out / "pruned-int8.keras").compiled


def test_quantizing_alone_needs_no_tuning_and_replaces_what_was_there(tmp_path: Path) -> None:
    model = tiny()
    out = tmp_path / "out"
    out.mkdir()
    train, test = batches(90), batches(60, seed=5)
    first = compress_on(model, train, test, Recipe(quantize="float16"), out=out)
    assert [file.name for file in first.model_files] == ["baseline", "baseline-float16"]
    assert [file.finetune_energy for file in first.model_files] == [None, None]
    assert (first.calibration_images, first.widths) == (0, {})
    (out / "notes.txt").write_text("mine")
    second = compress_on(model, train, test, Recipe(quantize="int8", finetune_epochs=0), out=out)
    assert second.calibration_images == 90  # all that there are
    assert {path.name for path in out.iterdir()} == {
        *("baseline.tflite", "baseline-int8.tflite", "compression.json", "notes.txt"),
    }


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        yield blobs(4)
        raise RuntimeError("the disk is gone")

    spec = (tf.TensorSpec([None, 20, 20, 3], tf.uint8), tf.TensorSpec([None], tf.int64))
    test_data = tf.data.Dataset.from_generator(broken, output_signature=spec)
    with pytest.raises(tf.errors.UnknownError, match="the disk is gone"):
        compress_on(tiny(), batches(40, seed=1), test_data, Recipe(quantize="float16"), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_folders_of_others_are_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "photos" / "compression.json").write_text('{"format": "another/1", "files": ["cat.jpg"]}')
    with pytest.raises(ValueError, match=r"photos' is not empty and not .* joulecache's compression\.json"):
        compress_on(tiny(), batches(40), batches(20, seed=1), HALF, out=tmp_path / "photos")
    with pytest.raises(ValueError, match=r"cat\.jpg' is not a folder"):
        compress_on(tiny(), batches(40), batches(20, seed=1), HALF, out=tmp_path / "photos" / "cat.jpg")
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 0}, "seeds must be .* at least 1, got 0"),
        ({"train_data": batches(8).map(lambda x, y: (x[:, :10], y))}, "training data has images of 10x20x3, but"),
        ({"test_data": batches(8).repeat()}, "test data never ends"),
    ],
)
def test_bad_settings_are_refused_before_any_work(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    given_data = {"train_data": batches(8), "test_data": batches(8, seed=1)}
    with pytest.raises(ValueError, match=message):
        compress_on(tiny(), recipe=HALF, out=tmp_path / "out", progress=never, **(given_data | settings))
    assert list(tmp_path.iterdir()) == []


def test_testing_on_the_training_data_is_refused(tmp_path: Path) -> None:
    data = batches(8)
    with pytest.raises(ValueError, match="training and test data are the same"):
        compress_on(tiny(), data, data, HALF, out=tmp_path / "out")


def chain_with(*inner: keras.Layer) -> keras.Model:
    return keras.Sequential([keras.Input((6, 6, 3)), layers.Conv2D(16, 3, name="first"), *inner, layers.Conv2D(2, 1)])


class OfMyOwn(keras.Model):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return x


class Mine(layers.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return x * 2


def of_any_size() -> keras.Model:
    pixels = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, name="conv")(pixels))
    return keras.Model(pixels, layers.Dense(CLASSES)(x))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: keras.Sequential([keras.Input((20, 20, 3)), layers.Flatten()], name="none"), "'none' has no weights"),
        (of_any_size, "accepts images of any size: fix the image size"),
        (lambda: OfMyOwn(name="mine"), "model 'mine' is not functional"),
    ],
)
def test_a_model_that_cannot_be_compressed_is_refused_first(
    tmp_path: Path, build: Callable[[], keras.Model], message: str
) -> None:
    for recipe in (HALF, Recipe(quantize="int8")):
        with pytest.raises(ValueError, match=message):
            compress_on(build(), batches(8), batches(8, seed=1), recipe, out=tmp_path / "out", progress=never)
    assert list(tmp_path.iterdir()) == []


def test_what_the_cache_is_not_needed_for_is_said_first(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "broken.keras").write_bytes(b"no zip")
    mine = OfMyOwn(name="mine")
    for model, message in (
        (tmp_path / "notes.txt", r"must end in .* got .*notes\.txt'"),
        (tmp_path / "broken.keras", r"broken\.keras' cannot be loaded as a Keras model"),
        (mine, "model 'mine' is not functional"),
        (object(), r"model must be a Keras 3 model or the path of its file, got object"),
    ):
        with pytest.raises(ValueError, match=message):
            compress(model, tmp_path / "no cache", HALF, out=tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "broken.keras"}


# ------------------------------------------------------------------------------------------- calibrating


def with_shared(count: int, shared: int, place: int = 0) -> tuple[Any, NDArray[np.uint8]]:
    """Training images, `shared` of which from `place` on are the first test images (those of seed 5)."""
    images, labels = blobs(count, seed=3)
    images[place : place + shared] = blobs(150, seed=5)[0][:shared]
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(32), images


@pytest.mark.parametrize(
    ("count", "shared", "place"), [(100, 0, 0), (100, 5, 40), (40, 2, 38), (300, 10, 0), (300, 100, 200), (1, 0, 0)]
)
def test_training_images_that_are_test_images_never_calibrate(count: int, shared: int, place: int) -> None:
    train, images = with_shared(count, shared, place)
    found = calibration_images(train, batches(150, seed=5))
    kept = np.delete(images, range(place, place + shared), axis=0)
    np.testing.assert_array_equal(found, kept[:200])


@pytest.mark.parametrize(
    ("count", "shared", "said"),
    [
        (100, 6, "6 of the first 100"),
        (40, 3, "3 of the first 40"),
        (300, 11, "11 of the first 11"),
        (300, 150, "11 of the first 11"),
        (1, 1, "1 of the first 1"),
    ],
)
def test_calibrating_on_the_test_set_is_refused(count: int, shared: int, said: str) -> None:
    train, _ = with_shared(count, shared)
    with pytest.raises(ValueError, match=f"overlaps the test set: {said} training images equal test images"):
        calibration_images(train, batches(150, seed=5))


def test_an_overlap_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the calibration set overlaps the test set"):
        compress_on(tiny(), batches(32), batches(32), HALF, out=tmp_path / "out", progress=never)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- seeds


def tiny() -> keras.Model:
    keras.utils.set_random_seed(0)
    pixels = keras.Input((20, 20, 3))
    x = layers.Flatten()(layers.AveragePooling2D(5)(layers.Rescaling(1 / 255)(pixels)))
    x = layers.Dropout(0.2)(layers.Dense(16, activation="relu", name="hidden")(x))
    return keras.Model(pixels, layers.Dense(CLASSES, name="logits")(x), name="tiny")


@pytest.mark.slow
def test_further_seeds_add_accuracies_and_change_no_file(tmp_path: Path) -> None:
    model, recipe = tiny(), Recipe(prune=0.5, finetune_epochs=1)
    before = weights_of(model)
    train_data, test_data = batches(160), batches(97, seed=5)
    first, both = (
        compress_on(model, train_data, test_data, recipe, out=tmp_path / out, seed=4, seeds=seeds, control=False)
        for out, seeds in (("first", 1), ("both", 2))
    )
    job = Job(
        model=model,
        recipe=recipe,
        train_data=train_data,
        batches=5,
        test_data=test_data,
        control=False,
        meter=Meter(),
    )
    second = {converted.name: scored.accuracy for converted, scored in StepRunner(job, 5).run().items()}
    assert weights_of(model) == before
    assert list(second) == ["baseline", "pruned-float32"]
    for name, accuracy in second.items():
        assert (tmp_path / "both" / f"{name}.tflite").read_bytes() == (
            tmp_path / "first" / f"{name}.tflite"
        ).read_bytes()
        assert both.accuracies[name] == (*first.accuracies[name], accuracy)
        assert both.model_file(name).accuracy == first.accuracies[name][0]
    of_first, of_both = (load_model(tmp_path / out / "pruned-float32.keras") for out in ("first", "both"))
    assert weights_of(of_first) == weights_of(of_both)
    assert both.accuracy_lost == {}  # without a control


def with_accuracies(accuracies: dict[str, tuple[float, ...]]) -> Compression:
    return Compression(
        model_files=(),
        recipe=HALF,
        seed=0,
        widths={},
        calibration_images=0,
        accuracies=accuracies,
    )


def test_what_is_lost_is_a_t_interval_over_the_seeds() -> None:
    done = with_accuracies({"control": (0.90, 0.92, 0.94), "small": (0.88, 0.91, 0.90), "same": (0.89, 0.91, 0.93)})
    # differences of 2, 1 and 4 points: mean 7/3, standard deviation sqrt(7/3); t of 2 degrees of freedom is 4.302653
    reach = 4.302653 * math.sqrt(7 / 3) / math.sqrt(3)
    assert done.accuracy_lost["small"] == pytest.approx(
        ((7 / 3) / 100, (7 / 3 - reach) / 100, (7 / 3 + reach) / 100), rel=1e-6
    )
    assert done.accuracy_lost["same"] == pytest.approx((0.01, 0.01, 0.01))
    assert done.to_json()["lost"] == {name: list(done.accuracy_lost[name]) for name in ("small", "same")}
    assert with_accuracies({"control": (0.9, 0.9), "small": (0.8, 0.9)}).accuracy_lost["small"] == pytest.approx(
        (0.05, 0.05 - 12.7062047 * 0.05, 0.05 + 12.7062047 * 0.05)
    )
    assert with_accuracies({"control": (0.9,), "small": (0.8,)}).accuracy_lost == {}
    assert with_accuracies({"baseline": (0.9, 0.9), "small": (0.8, 0.8)}).accuracy_lost == {}


# ------------------------------------------------------------------------------------------------ records


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "compression.json"
    write_record(path, COMPRESSION.to_json())
    assert read_compression(path) == COMPRESSION
    assert COMPRESSION.model_file("control").name == "control"
    with pytest.raises(ValueError, match="no model file 'int8': choose one of baseline, control"):
        COMPRESSION.model_file("int8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "joulecache.history/1"}, "its format is not 'joulecache.compression/1'"),
        ({"variants": []}, "at variants"),
        ({"seed": "0"}, "at seed: must be 0, got .0.$"),
        ({"recipe": {"prune": 1.5}}, "at recipe"),
        ({"more": 1}, "at more: unknown key"),
    ],
)
def test_records_of_something_else_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "compression.json"
    write_record(path, COMPRESSION.to_json())
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=f"compression.json' is not a joulecache compression: {message}"):
        read_compression(path)


# ----------------------------------------------------------------------------------------------- folders


def test_records_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    outside = tmp_path / "precious.txt"
    outside.write_text("mine")
    out = tmp_path / "out"
    with staged_output(out, "run.json") as folder:
        (folder / "a.bin").write_bytes(b"a")
        write_record(folder / "run.json", {})
    record = json.loads((out / "run.json").read_text())
    record["files"] += ["../precious.txt", str(outside)]
    (out / "run.json").write_text(json.dumps(record))
    with staged_output(out, "run.json") as folder:
        write_record(folder / "run.json", {})
    assert {path.name for path in out.iterdir()} == {"run.json"}
    assert outside.read_text() == "mine"


def test_the_folder_of_now_can_be_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    with staged_output(Path(), "run.json") as folder:
        assert folder.absolute().parent == tmp_path
        write_record(folder / "run.json", {})
    assert [path.name for path in out.iterdir()] == ["run.json"]


def test_discarding_takes_only_what_is_ours(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged_output(out, "run.json") as folder:
        (folder / "a.bin").write_bytes(b"a")
        write_record(folder / "run.json", {})
    discard_output(out, "other.json")
    assert (out / "a.bin").exists()
    (out / "notes.txt").write_text("mine")
    discard_output(out, "run.json")
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    discard_output(tmp_path / "none", "run.json")
