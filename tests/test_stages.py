"""The stages of a recipe: what each makes of a model, what it keeps of the earlier ones, and what stands beside what."""

from __future__ import annotations

import functools
import gzip
import itertools
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from joulecache.pipelines.compressing import compression as package
from joulecache.pipelines.compressing import steps as stages
from joulecache.pipelines.compressing.batch_norm import reestimate_batch_norm
from joulecache.pipelines.compressing.clustering import distinct_values
from joulecache.pipelines.compressing.compression import compress_on
from joulecache.pipelines.compressing.model_files import Form, Score
from joulecache.pipelines.compressing.pruning import prune_channels
from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.compressing.results import Compression
from joulecache.pipelines.compressing.sparsity import (
    copy_of,
    magnitude_masks,
    prunable_layers,
    sparsity_by_layer,
)
from joulecache.pipelines.compressing.steps import Budget, count_batches, make_forms
from joulecache.pipelines.energy import Energy, Meter, Window
from joulecache.pipelines.models import compile_model, count_macs, load_model, run_epochs

CLASSES = 3
EPOCHS, BATCHES = 2, 6
FLOATS = ("baseline", "control", "pruned-float32", "pruned-sparse-float32", "pruned-sparse-clustered-float32")
INT8 = ("control-int8", "pruned-sparse-clustered-int8")
AWARE = ("control-int8-aware", "pruned-sparse-clustered-int8-aware")


def blobs(count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noise with one brighter square, whose colour is the class."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 120, (count, 20, 20, 3), np.uint8)
    labels = generator.integers(0, CLASSES, count)
    for image, label, (top, left) in zip(images, labels, generator.integers(0, 12, (count, 2)), strict=True):
        image[top : top + 8, left : left + 8, label] += 130
    return images, labels


def batches(count: int, seed: int = 0) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(blobs(count, seed)).batch(32)


def network() -> keras.Model:
    pixels = keras.Input((20, 20, 3))
    x = layers.Rescaling(1 / 255)(pixels)
    x = layers.Conv2D(16, 3, strides=2, use_bias=False, name="first")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Conv2D(24, 3, strides=2, activation="relu", name="second")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(pixels, layers.Dense(CLASSES, name="logits")(x), name="small")


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = network()
    compile_model(model, 1e-2)
    run_epochs(model, batches(320), epochs=4)
    return model


def weights_of(model: keras.Model) -> list[bytes]:
    return [weight.tobytes() for weight in model.get_weights()]


def statistics(model: keras.Model) -> NDArray[Any]:
    norm = model.get_layer("norm")
    return np.stack([norm.moving_mean, norm.moving_variance])


class Diary(Meter):
    """A meter that keeps its windows."""

    def __init__(self) -> None:
        super().__init__()
        self.closed: list[Window] = []

    @contextmanager
    def window(self, name: str) -> Iterator[Window]:
        with super().window(name) as window:
            yield window
        self.closed.append(window)


@dataclass
class Made:
    """All stages of a model: the forms as they were before the files, the record, what fine-tuning told and used."""

    compression: Compression
    forms: dict[str, Form]
    before: list[bytes]
    after: list[bytes]
    told: list[tuple[str, int, int]] = field(default_factory=list)
    l1: list[float] = field(default_factory=list)
    tunings: list[Energy] = field(default_factory=list)


@pytest.fixture(scope="module")
def made(trained: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Made:
    recipe = Recipe(prune=0.5, sparsity=0.5, l1=1e-4, clusters=8, quantize="int8", finetune_epochs=EPOCHS)
    told: list[tuple[str, int, int]] = []
    l1: list[float] = []
    kept: list[Form] = []
    meter = Diary()

    def make(*arguments: Any, **more: Any) -> Any:
        forms, scores = make_forms(*arguments, **more)
        kept.extend(forms)
        return forms, scores

    def run(model: keras.Model, *arguments: Any, **more: Any) -> Any:
        regularizers = [getattr(layer, "kernel_regularizer", None) for layer in model.layers]
        l1.append(sum(float(each.l1) for each in regularizers if each is not None))
        return run_epochs(model, *arguments, **more)

    before = weights_of(trained)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(package, "make_forms", make)
        patched.setattr(stages, "run_epochs", run)
        patched.setattr(stages, "MOST_LOST", -2.0)
        compression = compress_on(
            trained,
            batches(32 * BATCHES),
            batches(96, seed=5),
            recipe,
            out=tmp_path_factory.mktemp("made") / "out",
            meter=meter,
            progress=lambda what, done, total: told.append((what, done, total)),
        )
    tunings = [window.energy for window in meter.closed if window.name == "fine-tuning"]
    forms = {form.name: form for form in kept}
    return Made(compression, forms, before, weights_of(trained), told, l1, tunings)


@pytest.mark.slow
def test_each_stage_stands_beside_the_dense_one_of_its_precision(made: Made) -> None:
    assert [(variant.name, variant.dense) for variant in made.compression.model_files] == [
        ("baseline", None),
        ("control", None),
        ("pruned-float32", "control"),
        ("pruned-sparse-float32", "control"),
        ("pruned-sparse-clustered-float32", "control"),
        ("control-int8", "control"),
        ("pruned-sparse-clustered-int8", "control-int8"),
        ("control-int8-aware", "control"),
        ("pruned-sparse-clustered-int8-aware", "control-int8-aware"),
    ]
    assert tuple(made.forms) == FLOATS + INT8 + AWARE
    for variant in made.compression.model_files:
        assert (variant.faster_than_dense is None) == (variant.dense is None)
        assert (variant.finetune_energy is None) == (variant.name == "baseline")
        assert variant.accuracy > 0.8
    assert {name for name, form in made.forms.items() if form.pruned} == {
        name for name in made.forms if name.startswith("pruned")
    }


@pytest.mark.slow
def test_the_given_model_is_untouched_bit_for_bit(made: Made) -> None:
    assert made.after == made.before


@pytest.mark.slow
def test_the_control_has_the_epochs_of_all_stages(made: Made) -> None:
    assert made.told == [
        *(("fine-tuning the control", epoch, 3 * EPOCHS) for epoch in range(3 * EPOCHS)),
        *(("fine-tuning the pruned model", epoch, EPOCHS) for epoch in range(EPOCHS)),
        *(("fine-tuning the sparse model", epoch, EPOCHS) for epoch in range(EPOCHS)),
        *(("fine-tuning the clustered model", epoch, EPOCHS) for epoch in range(EPOCHS)),
        *(("fine-tuning small with int8's rounding", epoch, EPOCHS) for epoch in range(EPOCHS)),
        *(("fine-tuning small with int8's rounding", epoch, EPOCHS) for epoch in range(EPOCHS)),
    ]
    steps = {name: int(made.forms[name].model.optimizer.iterations) for name in ("control", "pruned-float32")}
    assert steps == {"control": 3 * EPOCHS * BATCHES, "pruned-float32": EPOCHS * BATCHES}
    for name in steps:
        assert float(made.forms[name].model.optimizer.learning_rate) == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_each_form_has_the_energy_of_all_tuning_on_the_way_to_it(made: Made) -> None:
    control, pruned, sparse, clustered, control_aware, aware = made.tunings
    expected = {
        "control": [control],
        "pruned-float32": [pruned],
        "pruned-sparse-float32": [pruned, sparse],
        "pruned-sparse-clustered-float32": [pruned, sparse, clustered],
        "control-int8": [control],
        "pruned-sparse-clustered-int8": [pruned, sparse, clustered],
        "control-int8-aware": [control, control_aware],
        "pruned-sparse-clustered-int8-aware": [pruned, sparse, clustered, aware],
    }
    for name, parts in expected.items():
        assert made.forms[name].finetune_energy == functools.reduce(operator.add, parts), name
        assert made.compression.model_file(name).finetune_energy == made.forms[name].finetune_energy
        if not name.startswith("pruned"):
            assert made.compression.model_file(name).inferences_to_pay_back is None


@pytest.mark.slow
def test_channels_go_and_stay_away(made: Made, trained: keras.Model) -> None:
    assert made.compression.widths == {"first": (16, 8), "second": (24, 16)}
    whole = count_macs(trained)
    for name, form in made.forms.items():
        widths = [form.model.get_layer(layer).kernel.shape[-1] for layer in ("first", "second", "logits")]
        assert widths == ([8, 16, CLASSES] if form.pruned else [16, 24, CLASSES]), name
        assert (made.compression.model_file(name).macs < whole) == form.pruned


@pytest.mark.slow
def test_every_later_stage_is_as_sparse(made: Made) -> None:
    later = [name for name in made.forms if "sparse" in name]
    assert len(later) == 4
    for name in later:
        for layer, share in sparsity_by_layer(made.forms[name].model).items():
            assert share == pytest.approx(0.5, abs=0.005), (name, layer)
        variant = made.compression.model_file(name)
        assert variant.nonzero_weights == sum(
            np.count_nonzero(weight) for weight in made.forms[name].model.get_weights()
        )
        assert variant.nonzero_weights < 0.6 * variant.parameters
    for name in set(made.forms) - set(later):
        assert max(sparsity_by_layer(made.forms[name].model).values()) < 0.005, name


@pytest.mark.slow
def test_every_later_stage_shares_its_values(made: Made) -> None:
    for name, form in made.forms.items():
        values = distinct_values(form.model)
        assert set(values) == {"first", "second", "logits"}
        if "clustered" in name:
            assert max(values.values()) <= 8, name
        else:
            assert min(values.values()) > 8, name


@pytest.mark.slow
def test_the_last_stage_is_saved_with_its_zeros_and_shared_values(made: Made) -> None:
    folder, last = made.compression.folder, AWARE[-1]
    assert {path.name for path in folder.iterdir()} == {
        *(f"{name}.tflite" for name in made.forms),
        *(f"{last}.keras", "compression.json"),
    }
    saved = load_model(folder / f"{last}.keras")
    assert weights_of(saved) == weights_of(made.forms[last].model)
    assert weights_of(saved) != weights_of(made.forms[INT8[-1]].model)  # it was trained on
    assert list(sparsity_by_layer(saved).values()) == pytest.approx([0.5, 0.5], abs=0.005)
    assert max(distinct_values(saved).values()) <= 8
    assert not keras.saving.load_model(folder / f"{last}.keras").compiled


@pytest.mark.slow
def test_l1_is_there_while_weights_are_pruned_and_in_no_saved_model(made: Made) -> None:
    assert made.l1[:4] == pytest.approx([0, 0, 2e-4, 0])  # control, pruned, sparse with two kernels, clustered
    saved = load_model(made.compression.folder / f"{AWARE[-1]}.keras")
    for model in (saved, *(form.model for form in made.forms.values())):
        assert all(getattr(layer, "kernel_regularizer", None) is None for layer in model.layers)


@pytest.mark.slow
def test_gzip_finds_less_to_keep_after_each_stage(made: Made) -> None:
    stages_bytes = [
        made.compression.model_file(name).gzip_bytes
        for name in ("control", "pruned-float32", "pruned-sparse-float32", "pruned-sparse-clustered-float32")
    ]
    assert all(less < more for more, less in itertools.pairwise(stages_bytes))
    for variant in made.compression.model_files:
        assert variant.gzip_bytes == len(gzip.compress(variant.path.read_bytes(), 9, mtime=0))
        assert variant.path.read_bytes() == made.forms[variant.name].content


@pytest.mark.slow
def test_statistics_are_those_of_the_tuned_weights(made: Made) -> None:
    for name in FLOATS[1:]:
        model = copy_of(made.forms[name].model)
        before = statistics(model)
        reestimate_batch_norm(model, batches(32 * BATCHES))
        np.testing.assert_array_equal(statistics(model), before, err_msg=name)


# ---------------------------------------------------------------------- the models alone, without their files


@pytest.fixture
def right(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Make no files, and score by name: so many of 1000 images are right, of forms that are not named all."""
    counts: dict[str, int] = {}
    monkeypatch.setattr(stages, "to_tflite", lambda *arguments, **more: b"")
    monkeypatch.setattr(stages, "score", lambda form, data: Score(counts.get(form.name, 1000), 1000))
    return counts


def forms_of(model: keras.Model, recipe: Recipe, **more: Any) -> dict[str, Form]:
    data = batches(32 * BATCHES)
    budget = Budget(data=data, batches=BATCHES, seed=0, meter=Meter(), tell=lambda *told: None)
    forms, _ = make_forms(model, recipe, budget, data, **({"control": True, "calibration": None} | more))
    return {form.name: form for form in forms}


@pytest.mark.usefixtures("right")
def test_without_tuning_statistics_are_taken_anew(trained: keras.Model) -> None:
    forms = forms_of(trained, Recipe(prune=0.5, finetune_epochs=0))
    assert [(name, form.dense) for name, form in forms.items()] == [("baseline", None), ("pruned-float32", "baseline")]
    pruned = forms["pruned-float32"]
    expected = prune_channels(trained, 0.5)
    trailing = statistics(expected)
    reestimate_batch_norm(expected, batches(32 * BATCHES))
    assert weights_of(pruned.model) == weights_of(expected)
    assert np.abs(statistics(expected) - trailing).max() > 1e-4
    assert pruned.finetune_energy is not None
    assert pruned.finetune_energy.total_j > 0


@pytest.mark.usefixtures("right")
def test_frozen_statistics_stay(trained: keras.Model) -> None:
    model = copy_of(trained)
    model.get_layer("norm").trainable = False
    pruned = forms_of(model, Recipe(prune=0.5, finetune_epochs=0))["pruned-float32"]
    assert weights_of(pruned.model) == weights_of(prune_channels(model, 0.5))
    assert pruned.finetune_energy is None


@pytest.mark.usefixtures("right")
def test_without_tuning_the_smallest_weights_become_zeros(trained: keras.Model) -> None:
    before = weights_of(trained)
    sparse = forms_of(trained, Recipe(sparsity=0.7, finetune_epochs=0))["sparse-float32"].model
    kernels = {name: np.asarray(layer.kernel) for name, layer in prunable_layers(trained).items()}
    for name, mask in magnitude_masks(kernels, 0.7).items():
        assert mask.mean() == pytest.approx(0.3, abs=0.005)
        expected = np.where(mask, kernels[name], np.float32(0))
        assert np.asarray(sparse.get_layer(name).kernel).tobytes() == expected.tobytes()  # no zero is negative
    np.testing.assert_array_equal(sparse.get_layer("logits").kernel, trained.get_layer("logits").kernel)
    assert np.abs(statistics(sparse) - statistics(trained)).max() > 1e-4
    assert weights_of(trained) == before


@pytest.mark.usefixtures("right")
def test_the_criterion_and_protected_layers_reach_the_pruning(trained: keras.Model) -> None:
    model = copy_of(trained)
    norm = model.get_layer("norm")
    weakest = np.argsort(np.abs(model.get_layer("first").kernel).sum((0, 1, 2)), kind="stable")[:8]
    gamma = np.full(16, 0.1, np.float32)
    gamma[weakest] = 1.0  # so that the criteria disagree on every channel
    norm.gamma.assign(gamma)
    recipe = Recipe(prune=0.5, criterion="gamma", protected=("second",), finetune_epochs=0)
    pruned = forms_of(model, recipe)["pruned-float32"].model
    assert pruned.get_layer("second").kernel.shape[-1] == 24
    kept = np.sort(weakest)
    np.testing.assert_array_equal(
        pruned.get_layer("first").kernel, np.asarray(model.get_layer("first").kernel)[..., kept]
    )
    by_norm = forms_of(model, Recipe(prune=0.5, finetune_epochs=0))["pruned-float32"].model
    assert by_norm.get_layer("second").kernel.shape[-1] == 16
    np.testing.assert_array_equal(by_norm.get_layer("norm").gamma, gamma[np.setdiff1d(np.arange(16), weakest)])


@pytest.mark.usefixtures("right")
def test_a_share_of_macs_is_a_ratio_of_the_same_stage(trained: keras.Model) -> None:
    pruned = forms_of(trained, Recipe(macs=0.5, finetune_epochs=0))["pruned-float32"].model
    assert 0.25 < count_macs(pruned) / count_macs(trained) <= 0.5


@pytest.mark.usefixtures("right")
def test_values_are_shared_in_each_channel_where_that_is_asked_for(trained: keras.Model) -> None:
    recipe = Recipe(clusters=4, cluster_per="channel", finetune_epochs=0)
    clustered = forms_of(trained, recipe)["clustered-float32"].model
    assert max(distinct_values(clustered, per="channel").values()) <= 4
    assert max(distinct_values(clustered).values()) > 16


# ---------------------------------------------------------------------------------------- int8's rounding


@pytest.fixture
def no_work(right: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Nor change any model."""
    monkeypatch.setattr(stages, "_tune", lambda *arguments, **more: None)
    monkeypatch.setattr(stages, "_tune_aware", lambda *arguments, **more: None)
    monkeypatch.setattr(stages, "prune_channels", lambda model, ratio, **more: model)
    return right


@pytest.mark.parametrize("lost", [5, 6])
@pytest.mark.parametrize("losing", ["control-int8", "pruned-int8"])
def test_more_than_half_a_point_is_too_much_in_either_model(
    trained: keras.Model, no_work: dict[str, int], losing: str, lost: int
) -> None:
    no_work[losing] = 1000 - lost
    names = list(forms_of(trained, Recipe(prune=0.5, quantize="int8")))
    aware = ["control-int8-aware", "pruned-int8-aware"] if lost > 5 else []
    assert names == ["baseline", "control", "pruned-float32", "control-int8", "pruned-int8", *aware]


def test_losing_is_against_the_same_model_before_it_is_rounded(trained: keras.Model, no_work: dict[str, int]) -> None:
    no_work.update({"control": 900, "control-int8": 900, "pruned-float32": 800, "pruned-int8": 801})
    assert "pruned-int8-aware" not in forms_of(trained, Recipe(prune=0.5, quantize="int8"))


@pytest.mark.parametrize("quantize", ["float16", "dynamic", "int8"])
@pytest.mark.parametrize("control", [True, False])
@pytest.mark.parametrize("epochs", [0, 1])
@pytest.mark.parametrize("prune", [0.0, 0.5])
def test_names_say_what_was_done(
    trained: keras.Model, no_work: dict[str, int], quantize: Any, control: bool, epochs: int, prune: float
) -> None:
    whole = "control" if control and epochs and prune else "baseline"
    no_work[f"{whole}-{quantize}"] = 0
    recipe = Recipe(prune=prune, quantize=quantize, finetune_epochs=epochs)
    forms = forms_of(trained, recipe, control=control)
    expected: list[tuple[str, str | None]] = [("baseline", None)]
    expected += [("control", None)] * (whole == "control")
    expected += [("pruned-float32", whole)] * bool(prune)
    expected += [(f"{whole}-{quantize}", whole)]
    expected += [(f"pruned-{quantize}", f"{whole}-{quantize}")] * bool(prune)
    if quantize == "int8" and epochs:
        expected += [("control", None)] * (control and not prune)
        expected += [(f"{whole}-int8-aware", whole)]
        expected += [("pruned-int8-aware", f"{whole}-int8-aware")] * bool(prune)
    assert [(name, form.dense) for name, form in forms.items()] == expected
    assert {name for name, form in forms.items() if form.pruned} == {name for name in forms if name[0] == "p"}


@pytest.mark.parametrize("aware", [True, False])
def test_further_seeds_do_as_the_first_did(trained: keras.Model, no_work: dict[str, int], aware: bool) -> None:
    no_work["baseline-int8"] = 1000 if aware else 0
    forms = forms_of(trained, Recipe(quantize="int8"), aware=aware)
    assert ("baseline-int8-aware" in forms) == aware


def hidden(form: Form) -> NDArray[np.float32]:
    return np.asarray(form.model.get_layer("hidden").kernel)


@pytest.mark.slow
def test_training_with_rounding_keeps_zeros_and_takes_the_loss_of_the_models_output(
    right: dict[str, int],
) -> None:
    keras.utils.set_random_seed(0)
    pixels = keras.Input((20, 20, 3))
    x = layers.Flatten()(layers.Rescaling(1 / 255)(pixels))
    logits = layers.Dense(CLASSES)(layers.Dense(8, activation="relu", name="hidden")(x))
    dense, shares = (keras.Model(pixels, outputs) for outputs in (logits, layers.Softmax()(logits)))
    right["sparse-int8"] = 0
    rounded = forms_of(dense, Recipe(sparsity=0.5, quantize="int8", finetune_epochs=1), control=False)
    sparse, aware = hidden(rounded["sparse-int8"]), hidden(rounded["sparse-int8-aware"])
    assert (sparse == 0).mean() == pytest.approx(0.5, abs=0.005)
    np.testing.assert_array_equal(aware == 0, sparse == 0)
    assert np.abs(aware - sparse).max() > 1e-5
    of_logits = hidden(rounded["baseline-int8-aware"])
    assert not (of_logits == 0).any()

    right["baseline-int8"] = 0
    forms = forms_of(shares, Recipe(quantize="int8", finetune_epochs=1), control=False)
    assert list(forms) == ["baseline", "baseline-int8", "baseline-int8-aware"]
    was = hidden(forms["baseline"])
    moved = np.linalg.norm(of_logits - was)
    assert moved > 1e-3
    assert np.linalg.norm(hidden(forms["baseline-int8-aware"]) - of_logits) < 0.08 * moved


# ------------------------------------------------------------------------------------------------- batches


def test_batches_are_counted_where_tensorflow_does_not_know() -> None:
    assert count_batches(batches(70)) == 3
    unknown = batches(70).filter(lambda images, labels: True)
    assert int(unknown.cardinality()) == tf.data.UNKNOWN_CARDINALITY
    assert count_batches(unknown) == 3
