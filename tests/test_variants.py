"""What is measured of a model's files: by hand where figures are given, against the file itself where they are not."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from joulecache.pipelines.compressing.model_files import Form, Score, measure_files, score
from joulecache.pipelines.compressing.results import ModelFile
from joulecache.pipelines.compressing.tflite import TfliteModel, to_tflite
from joulecache.pipelines.core.statistics import proportion_interval
from joulecache.pipelines.energy import Component, Energy, Meter, Window
from joulecache.pipelines.energy.replay import ReplayMeter
from joulecache.pipelines.models import count_macs

CLASSES = 3


def noise(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)


def labelled(count: int, batch_size: int = 32) -> tf.data.Dataset:
    labels = np.arange(count) % CLASSES
    return tf.data.Dataset.from_tensor_slices((noise(count), labels)).batch(batch_size)


@pytest.fixture(scope="module")
def form() -> Form:
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
    return Form(name="small", model=model, content=to_tflite(model, "float32"))


# ---------------------------------------------------------------------------------------------- accuracy


def test_a_variant_is_measured_on_every_held_out_image(form: Form, tmp_path: Path) -> None:
    images = noise(45, seed=9)
    labels = TfliteModel(form.content).predict(images).argmax(-1)
    labels[:9] = (labels[:9] + 1) % CLASSES  # so that some are wrong, in the last batch none
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(20)
    scored = score(form, data)
    assert scored == Score(36, 45)
    shares = tf.data.Dataset.from_tensor_slices((images, np.eye(CLASSES, dtype=np.float32)[labels])).batch(20)
    assert score(form, shares) == scored
    (variant,) = measure_files([form], [scored], data, folder=tmp_path, meter=Meter(country="FRA"), runs=6)
    assert (variant.name, variant.path) == ("small", tmp_path / "small.tflite")
    assert (variant.images, variant.accuracy) == (45, 36 / 45)
    assert (variant.accuracy_low, variant.accuracy_high) == proportion_interval(36, 45)
    assert (variant.parameters, variant.macs) == (form.model.count_params(), count_macs(form.model))
    assert (variant.file_bytes, variant.runs) == (len(form.content), 6)
    assert 0 < variant.cpu_ms_per_image <= variant.cpu_ms_per_image_median
    # the whole process cannot have used less than its one thread, nor ten times as much
    process_ms = variant.energy_per_image.cpu_s * 1e3
    assert 0.9 * variant.cpu_ms_per_image < process_ms < 10 * variant.cpu_ms_per_image_median
    assert variant.energy_per_image.carbon_g
    written = variant.to_json()
    assert json.loads(json.dumps(written)) == written
    assert written["path"] == "small.tflite"


def test_weights_and_bytes_are_those_that_can_be_counted(form: Form, tmp_path: Path) -> None:
    (variant,) = measure_files([form], [Score(1, 2)], labelled(8), folder=tmp_path, runs=1)
    # kernels, biases and BatchNormalization's four, each with one 0
    assert variant.parameters == 3 * 3 * 3 * 8 + 8 + 4 * 8 + 8 * CLASSES + CLASSES
    assert variant.nonzero_weights == variant.parameters - 8
    assert variant.file_bytes == len(form.content)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = deflate.compress(form.content) + deflate.flush()
    assert variant.gzip_bytes == 10 + len(packed) + 8  # header and trailer of RFC 1952


def test_measuring_needs_images_and_runs(form: Form, tmp_path: Path) -> None:
    spec = (tf.TensorSpec([None, 8, 8, 3], tf.uint8), tf.TensorSpec([None], tf.int64))
    nothing = tf.data.Dataset.from_generator(lambda: iter(()), output_signature=spec)
    with pytest.raises(ValueError, match="test data has no images"):
        score(form, nothing)
    with pytest.raises(ValueError, match=r"test data never ends: leave out \.repeat"):
        score(form, labelled(8).repeat())
    with pytest.raises(ValueError, match="0 runs: time at least 1"):
        measure_files([form], [Score(1, 2)], labelled(8), folder=tmp_path, runs=0)


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


def measured(
    forms: Sequence[Form],
    runs: Sequence[Sequence[tuple[float, float]]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, ModelFile]:
    """Measure forms whose runs took, by round and form, the given (CPU seconds, active joules)."""
    clock = [0.0]
    for one_round in runs:
        for cpu_s, _ in one_round:
            clock += [clock[-1], clock[-1] + cpu_s]
    ticks = iter(clock[1:])
    windows = [
        json.dumps({"window": f"inference of {form.name}", "energy": joules(active_j).to_json()})
        for one_round in runs
        for form, (_, active_j) in zip(forms, one_round, strict=True)
    ]
    recording = folder / "windows.jsonl"
    recording.write_text("\n".join(['{"recording": 1, "passport": {}}', *windows]) + "\n")
    with monkeypatch.context() as patched:
        patched.setattr(time, "thread_time", lambda: next(ticks))
        variants = measure_files(
            forms,
            [Score(1, 2)] * len(forms),
            labelled(8),
            folder=folder,
            meter=ReplayMeter(recording),
            runs=len(runs),
        )
    assert next(ticks, None) is None
    return {variant.name: variant for variant in variants}


def pair(form: Form, *, spent_j: float | None = 90.0, pruned: bool = True) -> list[Form]:
    energy = None if spent_j is None else joules(spent_j)
    return [
        Form(name="dense", model=form.model, content=form.content, finetune_energy=joules(500.0)),
        Form(
            name="small",
            model=form.model,
            content=form.content,
            dense="dense",
            finetune_energy=energy,
            pruned=pruned,
        ),
    ]


def test_times_and_joules_are_those_of_one_image(form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [[(4.0, 30.0), (3.0, 20.0)], [(2.0, 10.0), (1.0, 6.0)], [(9.0, 20.0), (8.0, 10.0)]]
    small = measured(pair(form), runs, tmp_path, monkeypatch)["small"]
    assert small.cpu_ms_per_image == pytest.approx(1.0 / 512 * 1e3)
    assert small.cpu_ms_per_image_median == pytest.approx(3.0 / 512 * 1e3)
    assert small.energy_per_image.active_j == pytest.approx((20.0 + 6.0 + 10.0) / 3 / 512)
    assert (small.runs, small.batch_size) == (3, 32)


@pytest.mark.parametrize(
    ("runs", "faster", "images"),
    [
        # saved: 10, 4 and 10 J in 512 images, 8 on average, against 90 spent
        ([[(4, 30), (3, 20)], [(2, 10), (1, 6)], [(9, 20), (8, 10)]], True, 90 * 512 / 8),
        ([[(4, 30), (3, 20)], [(2, 10), (2, 6)], [(9, 20), (8, 10)]], False, 90 * 512 / 8),
        ([[(4, 30), (3, 20)], [(2, 10), (7, 6)], [(9, 20), (8, 10)]], False, 90 * 512 / 8),
        ([[(4, 30), (3, 20)], [(2, 10), (1, 10)], [(9, 20), (8, 10)]], True, None),
        ([[(4, 30), (3, 20)], [(2, 10), (1, 10.5)], [(9, 20), (8, 10)]], True, None),
        ([[(4, 30), (3, 2)]], True, 90 * 512 / 28),
    ],
    ids=["every run", "one as slow", "one slower", "one saves nothing", "one costs", "a single run"],
)
def test_every_run_must_be_better_than_the_one_beside_it(
    form: Form,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runs: list[list[tuple[float, float]]],
    faster: bool,
    images: float | None,
) -> None:
    variants = measured(pair(form), runs, tmp_path, monkeypatch)
    small, dense = variants["small"], variants["dense"]
    assert (small.dense, small.faster_than_dense) == ("dense", faster)
    assert small.inferences_to_pay_back == (None if images is None else pytest.approx(images))
    assert (dense.dense, dense.faster_than_dense, dense.inferences_to_pay_back) == (None, None, None)


def test_runs_are_compared_round_by_round(form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slows down meets both: 6 s are more than 4, but less than the 7 of the same round."""
    small = measured(pair(form), [[(4, 9), (3, 8)], [(7, 20), (6, 19)]], tmp_path, monkeypatch)["small"]
    assert small.faster_than_dense
    assert small.inferences_to_pay_back == pytest.approx(90 * 512 / 1)


@pytest.mark.parametrize(("spent_j", "pruned"), [(None, True), (90.0, False)])
def test_there_is_nothing_to_pay_back_without_tuning_or_pruning(
    form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spent_j: float | None, pruned: bool
) -> None:
    forms = pair(form, spent_j=spent_j, pruned=pruned)
    small = measured(forms, [[(4, 30), (3, 20)]], tmp_path, monkeypatch)["small"]
    assert small.inferences_to_pay_back is None
    assert small.finetune_energy == forms[1].finetune_energy
    written: Any = small.to_json()
    assert written["finetune_energy"] == (None if spent_j is None else joules(spent_j).to_json())


class Diary(Meter):
    """A meter that notes its windows."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []

    @contextmanager
    def window(self, name: str) -> Iterator[Window]:
        self.opened.append(name)
        with super().window(name) as window:
            yield window


def test_forms_take_turns(form: Form, tmp_path: Path) -> None:
    meter = Diary()
    measure_files(pair(form), [Score(1, 2)] * 2, labelled(8), folder=tmp_path, meter=meter, runs=3)
    assert meter.opened == ["inference of dense", "inference of small"] * 3
