"""What is measured of a model's files: by hand where figures are given, against the file itself where they are not."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from meters import Diary
from numpy.typing import NDArray

from joulecache.pipelines.compressing.litert import TfliteModel
from joulecache.pipelines.compressing.measuring import ConvertedModel, Score, measure_files, score
from joulecache.pipelines.compressing.results import ModelFile
from joulecache.pipelines.compressing.tflite import to_tflite
from joulecache.pipelines.core import codec
from joulecache.pipelines.core.statistics import proportion_interval
from joulecache.pipelines.energy import Component, Energy, Meter
from joulecache.pipelines.energy.recording import append_window, begin_recording
from joulecache.pipelines.energy.replay import ReplayMeter
from joulecache.pipelines.models.macs import count_macs

CLASSES = 3


def noise(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)


def labelled(count: int) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((noise(count), np.arange(count) % CLASSES)).batch(32)


@pytest.fixture(scope="module")
def small() -> ConvertedModel:
    """A small model that decides by colour, with a weight that is 0 in each layer."""
    pixels = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="conv")(layers.Rescaling(1 / 255)(pixels))
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x))
    model = keras.Model(pixels, layers.Dense(CLASSES)(x))
    generator = np.random.default_rng(1)
    weights = [generator.uniform(0.5, 1.0, weight.shape).astype(np.float32) for weight in model.get_weights()]
    for weight in weights:
        weight.flat[0] = 0
    model.set_weights(weights)
    return ConvertedModel(name="small", model=model, content=to_tflite(model, "float32"))


# ---------------------------------------------------------------------------------------------- the file itself


def test_every_held_out_image_is_scored(small: ConvertedModel) -> None:
    images = noise(45, seed=9)
    labels = TfliteModel(small.content).predict(images).argmax(-1)
    labels[:9] = (labels[:9] + 1) % CLASSES  # some are wrong, none in the last batch
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(20)
    scored = score(small, data)
    assert scored == Score(36, 45, int(np.bincount(labels).max()))
    shares = tf.data.Dataset.from_tensor_slices((images, np.eye(CLASSES, dtype=np.float32)[labels])).batch(20)
    assert score(small, shares) == scored
    (file,) = measure_files({small: scored}, data, meter=Meter(country="FRA"), runs=6)
    assert (file.name, file.file_name) == ("small", "small.tflite")
    assert (file.images, file.accuracy) == (45, 36 / 45)
    assert (file.accuracy_low, file.accuracy_high) == proportion_interval(36, 45)
    assert (file.parameters, file.macs) == (small.model.count_params(), count_macs(small.model))
    assert (file.file_bytes, file.runs) == (len(small.content), 6)
    assert 0 < file.cpu_ms_per_image <= file.cpu_ms_per_image_median
    # the whole process cannot have used less than its one thread, nor ten times as much
    process_ms = file.energy_per_image.cpu_s * 1e3
    assert 0.9 * file.cpu_ms_per_image < process_ms < 10 * file.cpu_ms_per_image_median
    assert file.energy_per_image.carbon_g
    assert codec.to_json(file)["path"] == "small.tflite"
    assert codec.from_json(ModelFile, json.loads(codec.dumps(file))) == file


def test_weights_and_bytes_are_those_that_can_be_counted(small: ConvertedModel) -> None:
    (file,) = measure_files({small: Score(1, 2, 1)}, labelled(8), runs=1)
    # kernels, biases and BatchNormalization's four, each with one 0
    assert file.parameters == 3 * 3 * 3 * 8 + 8 + 4 * 8 + 8 * CLASSES + CLASSES
    assert file.nonzero_weights == file.parameters - 8
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = deflate.compress(small.content) + deflate.flush()
    assert file.gzip_bytes == 10 + len(packed) + 8  # header and trailer of RFC 1952


def test_measuring_needs_images_and_runs(small: ConvertedModel) -> None:
    spec = (tf.TensorSpec([None, 8, 8, 3], tf.uint8), tf.TensorSpec([None], tf.int64))
    nothing = tf.data.Dataset.from_generator(lambda: iter(()), output_signature=spec)
    with pytest.raises(ValueError, match="test data has no images"):
        score(small, nothing)
    with pytest.raises(ValueError, match="test data never ends"):
        score(small, labelled(8).repeat())
    with pytest.raises(ValueError, match=r"runs must be .* at least 1, got 0"):
        measure_files({small: Score(1, 2, 1)}, labelled(8), runs=0)


# -------------------------------------------------------------------------- against the dense one, by hand


def joules(active_j: float) -> Energy:
    part = Component(active_j, active_j, active_j, "measured:rapl", "powercap", "machine", "1 uJ")
    return Energy(
        components={"cpu": part, "dram": None, "gpu": None, "idle": None},
        active=part,
        duration_s=1.0,
        cpu_s=1.0,
        read_bytes=None,
        written_bytes=None,
        peak_rss_bytes=None,
        carbon_g=None,
    )


Runs = Sequence[Sequence[tuple[float, float]]]
"""By round and model: CPU seconds and active joules."""


def measured(models: Sequence[ConvertedModel], runs: Runs, folder: Path) -> dict[str, ModelFile]:
    """Measure models whose runs used the given CPU seconds and joules."""
    clock = [0.0]
    for one_round in runs:
        for cpu_s, _ in one_round:
            clock += [clock[-1], clock[-1] + cpu_s]
    ticks = iter(clock[1:])
    recording = begin_recording(folder / "windows.jsonl", Meter().provenance())
    for one_round in runs:
        for model, (_, active_j) in zip(models, one_round, strict=True):
            append_window(recording, f"inference of {model.name}", joules(active_j))
    files = measure_files(
        dict.fromkeys(models, Score(1, 2, 1)),
        labelled(8),
        meter=ReplayMeter(recording),
        runs=len(runs),
        cpu_clock=lambda: next(ticks),
    )
    assert next(ticks, None) is None
    return {file.name: file for file in files}


def pair(model: ConvertedModel, *, spent_j: float | None = 90.0, pruned: bool = True) -> list[ConvertedModel]:
    energy = None if spent_j is None else joules(spent_j)
    return [
        dataclasses.replace(model, name="dense", finetune_energy=joules(500.0)),
        dataclasses.replace(model, name="small", dense="dense", finetune_energy=energy, pruned=pruned),
    ]


def test_times_and_joules_are_those_of_one_image(small: ConvertedModel, tmp_path: Path) -> None:
    runs = [[(4.0, 30.0), (3.0, 20.0)], [(2.0, 10.0), (1.0, 6.0)], [(9.0, 20.0), (8.0, 10.0)]]
    file = measured(pair(small), runs, tmp_path)["small"]
    assert file.cpu_ms_per_image == pytest.approx(1.0 / 512 * 1e3)
    assert file.cpu_ms_per_image_median == pytest.approx(3.0 / 512 * 1e3)
    assert file.energy_per_image.active_j == pytest.approx((20.0 + 6.0 + 10.0) / 3 / 512)
    assert (file.runs, file.batch_size) == (3, 32)


@pytest.mark.parametrize(
    ("runs", "faster", "images"),
    [
        # saved: 10, 4 and 10 J in 512 images, 8 on average, against 90 spent
        ([[(4, 30), (3, 20)], [(2, 10), (1, 6)], [(9, 20), (8, 10)]], True, 90 * 512 / 8),
        ([[(4, 30), (3, 20)], [(2, 10), (2, 6)], [(9, 20), (8, 10)]], False, 90 * 512 / 8),
        ([[(4, 30), (3, 20)], [(2, 10), (1, 10)], [(9, 20), (8, 10)]], True, None),
        # 6 s are more than 4, but less than the 7 of the same round
        ([[(4, 9), (3, 8)], [(7, 20), (6, 19)]], True, 90 * 512 / 1),
    ],
    ids=["every run", "one as slow", "one saves nothing", "a machine that slows down"],
)
def test_every_run_must_be_better_than_the_one_next_to_it(
    small: ConvertedModel, tmp_path: Path, runs: Runs, faster: bool, images: float | None
) -> None:
    files = measured(pair(small), runs, tmp_path)
    file, dense = files["small"], files["dense"]
    assert (file.dense, file.faster_than_dense) == ("dense", faster)
    assert file.inferences_to_pay_back == (None if images is None else pytest.approx(images))
    assert (dense.dense, dense.faster_than_dense, dense.inferences_to_pay_back) == (None, None, None)


@pytest.mark.parametrize(("spent_j", "pruned"), [(None, True), (90.0, False)])
def test_there_is_nothing_to_pay_back_without_tuning_or_pruning(
    small: ConvertedModel, tmp_path: Path, spent_j: float | None, pruned: bool
) -> None:
    models = pair(small, spent_j=spent_j, pruned=pruned)
    file = measured(models, [[(4, 30), (3, 20)]], tmp_path)["small"]
    assert file.inferences_to_pay_back is None
    assert file.finetune_energy == models[1].finetune_energy


def test_models_take_turns(small: ConvertedModel) -> None:
    meter = Diary()
    measure_files(dict.fromkeys(pair(small), Score(1, 2, 1)), labelled(8), meter=meter, runs=3)
    assert meter.opened == ["inference of dense", "inference of small"] * 3
