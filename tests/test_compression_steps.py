"""The steps of a recipe: what each makes of a model, what it keeps of earlier ones, and what is compared with what."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from blobs import CLASSES, batches, network, weights_of
from keras import layers
from meters import Diary
from numpy.typing import NDArray

from joulecache.pipelines.compressing.batch_norm import reestimate_batch_norm
from joulecache.pipelines.compressing.clustering import distinct_values
from joulecache.pipelines.compressing.compression import calibration_images, write_models
from joulecache.pipelines.compressing.kernels import copy_of, prunable_layers
from joulecache.pipelines.compressing.measuring import ConvertedModel, Score, measure_files
from joulecache.pipelines.compressing.pruning import prune_channels
from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.compressing.results import ModelFile
from joulecache.pipelines.compressing.sparsity import magnitude_masks, sparsity_by_layer
from joulecache.pipelines.compressing.steps import Job, StepRunner, count_batches
from joulecache.pipelines.energy import Energy, Meter
from joulecache.pipelines.models.classifiers import load_model
from joulecache.pipelines.models.macs import count_macs

EPOCHS, BATCHES = 2, 6
FLOATS = ("baseline", "control", "pruned-float32", "pruned-sparse-float32", "pruned-sparse-clustered-float32")
INT8 = ("control-int8", "pruned-sparse-clustered-int8")
AWARE = ("control-int8-aware", "pruned-sparse-clustered-int8-aware")


def statistics(model: keras.Model) -> NDArray[Any]:
    norm = model.get_layer("norm")
    return np.stack([norm.moving_mean, norm.moving_variance])


@dataclass
class Made:
    """All steps of a model: the models, their files, what fine-tuning reported and used."""

    models: dict[str, ConvertedModel]
    files: dict[str, ModelFile]
    folder: Path
    is_untouched: bool
    reported: list[tuple[str, int, int]] = field(default_factory=list)
    tunings: list[Energy] = field(default_factory=list)


@pytest.fixture(scope="module")
def made(blob_model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Made:
    recipe = Recipe(prune=0.5, sparsity=0.5, l1=1e-4, clusters=8, quantize="int8", finetune_epochs=EPOCHS)
    train_data, test_data = batches(32 * BATCHES), batches(96, seed=5)
    reported: list[tuple[str, int, int]] = []
    meter = Diary()
    before = weights_of(blob_model)
    job = Job(
        model=blob_model,
        recipe=recipe,
        train_data=train_data,
        batches=BATCHES,
        test_data=test_data,
        calibration=calibration_images(train_data, test_data),
        meter=meter,
        progress=lambda what, done, total: reported.append((what, done, total)),
    )
    scores = StepRunner(job, 0).run(aware=True)
    tunings = [window.energy for window in meter.closed]
    files = {file.name: file for file in measure_files(scores, test_data, meter=meter, runs=1)}
    folder = tmp_path_factory.mktemp("made")
    write_models(folder, list(scores), blob_model)
    models = {model.name: model for model in scores}
    return Made(models, files, folder, weights_of(blob_model) == before, reported, tunings)


@pytest.mark.slow
def test_each_model_is_compared_with_the_dense_one_of_its_precision(made: Made) -> None:
    assert [(file.name, file.dense) for file in made.files.values()] == [
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
    assert tuple(made.models) == FLOATS + INT8 + AWARE
    for file in made.files.values():
        assert (file.faster_than_dense is None) == (file.dense is None)
        assert (file.finetune_energy is None) == (file.name == "baseline")
        assert file.accuracy > 0.8
    assert {name for name, model in made.models.items() if model.pruned} == {
        name for name in made.models if name.startswith("pruned")
    }
    assert made.is_untouched


@pytest.mark.slow
def test_the_control_has_the_epochs_of_all_steps(made: Made) -> None:
    assert made.reported == [
        *(("fine-tuning the control", epoch, 3 * EPOCHS) for epoch in range(3 * EPOCHS)),
        *(("fine-tuning the pruned model", epoch, EPOCHS) for epoch in range(EPOCHS)),
        *(("fine-tuning the sparse model", epoch, EPOCHS) for epoch in range(EPOCHS)),
        *(("fine-tuning the clustered model", epoch, EPOCHS) for epoch in range(EPOCHS)),
        *(("fine-tuning small with int8's rounding", epoch, EPOCHS) for _ in range(2) for epoch in range(EPOCHS)),
    ]
    steps = {name: int(made.models[name].model.optimizer.iterations) for name in ("control", "pruned-float32")}
    assert steps == {"control": 3 * EPOCHS * BATCHES, "pruned-float32": EPOCHS * BATCHES}
    for name in steps:
        assert float(made.models[name].model.optimizer.learning_rate) == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_each_model_has_the_energy_of_all_tuning_on_the_way_to_it(made: Made) -> None:
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
        assert made.files[name].finetune_energy == functools.reduce(operator.add, parts), name
        if not name.startswith("pruned"):
            assert made.files[name].inferences_to_pay_back is None


@pytest.mark.slow
def test_channels_go_and_stay_away(made: Made, blob_model: keras.Model) -> None:
    whole = count_macs(blob_model)
    for name, model in made.models.items():
        widths = [model.model.get_layer(layer).kernel.shape[-1] for layer in ("first", "second", "logits")]
        assert widths == ([8, 16, CLASSES] if model.pruned else [16, 24, CLASSES]), name
        assert ((made.files[name].macs or whole) < whole) == model.pruned


@pytest.mark.slow
def test_every_later_model_is_as_sparse(made: Made) -> None:
    later = [name for name in made.models if "sparse" in name]
    assert len(later) == 4
    for name in later:
        for layer, share in sparsity_by_layer(made.models[name].model).items():
            assert share == pytest.approx(0.5, abs=0.005), (name, layer)
        assert made.files[name].nonzero_weights < 0.6 * made.files[name].parameters
    for name in set(made.models) - set(later):
        assert max(sparsity_by_layer(made.models[name].model).values()) < 0.005, name


@pytest.mark.slow
def test_every_later_model_shares_its_values(made: Made) -> None:
    for name, model in made.models.items():
        values = distinct_values(model.model)
        assert set(values) == {"first", "second", "logits"}
        if "clustered" in name:
            assert max(values.values()) <= 8, name
        else:
            assert min(values.values()) > 8, name


@pytest.mark.slow
def test_the_last_model_is_saved_with_its_zeros_and_shared_values(made: Made) -> None:
    last = AWARE[-1]
    assert {path.name for path in made.folder.iterdir()} == {
        *(f"{name}.tflite" for name in made.models),
        f"{last}.keras",
    }
    saved = load_model(made.folder / f"{last}.keras")
    assert weights_of(saved) == weights_of(made.models[last].model)
    assert weights_of(saved) != weights_of(made.models[INT8[-1]].model)  # it was trained on
    assert list(sparsity_by_layer(saved).values()) == pytest.approx([0.5, 0.5], abs=0.005)
    assert max(distinct_values(saved).values()) <= 8
    assert not keras.saving.load_model(made.folder / f"{last}.keras").compiled
    for model in (saved, *(each.model for each in made.models.values())):
        assert all(getattr(layer, "kernel_regularizer", None) is None for layer in model.layers)


@pytest.mark.slow
def test_gzip_finds_less_to_keep_after_each_step(made: Made) -> None:
    sizes = [
        made.files[name].gzip_bytes
        for name in ("control", "pruned-float32", "pruned-sparse-float32", "pruned-sparse-clustered-float32")
    ]
    assert all(less < more for more, less in itertools.pairwise(sizes))


@pytest.mark.slow
def test_statistics_are_those_of_the_tuned_weights(made: Made) -> None:
    for name in FLOATS[1:]:
        model = copy_of(made.models[name].model)
        before = statistics(model)
        reestimate_batch_norm(model, batches(32 * BATCHES))
        np.testing.assert_array_equal(statistics(model), before, err_msg=name)


# ---------------------------------------------------------------------- the models alone, without their files


class Unconverted(StepRunner):
    """Makes no files, and scores by name: so many of 1000 images are right, all for models that are not named."""

    correct: Mapping[str, int] = {}

    def file_of(self, model: keras.Model, kind: str) -> bytes:
        return b""

    def score(self, model: ConvertedModel) -> Score:
        return Score(self.correct.get(model.name, 1000), 1000, 500)


class Untuned(Unconverted):
    """Nor fine-tunes."""

    def finetune(
        self, model: keras.Model, what: str, epochs: int, callbacks: Sequence[keras.callbacks.Callback] = ()
    ) -> None:
        return None

    def finetune_aware(self, model: keras.Model, callbacks: Sequence[keras.callbacks.Callback]) -> None:  # type: ignore[override]
        return None


def models_of(
    model: keras.Model,
    recipe: Recipe,
    *,
    runner: type[Unconverted] = Unconverted,
    correct: Mapping[str, int] | None = None,
    control: bool = True,
    aware: bool | None = None,
) -> dict[str, ConvertedModel]:
    data = batches(32 * BATCHES)
    job = Job(
        model=model, recipe=recipe, train_data=data, batches=BATCHES, test_data=data, control=control, meter=Meter()
    )
    run = runner(job, 0)
    run.correct = correct or {}
    return {converted.name: converted for converted in run.run(aware=aware)}


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return network()


def test_without_tuning_statistics_are_re_estimated(model: keras.Model) -> None:
    models = models_of(model, Recipe(prune=0.5, finetune_epochs=0))
    assert [(name, each.dense) for name, each in models.items()] == [
        ("baseline", None),
        ("pruned-float32", "baseline"),
    ]
    pruned = models["pruned-float32"]
    expected = prune_channels(model, 0.5)
    trailing = statistics(expected)
    reestimate_batch_norm(expected, batches(32 * BATCHES))
    assert weights_of(pruned.model) == weights_of(expected)
    assert np.abs(statistics(expected) - trailing).max() > 1e-4
    assert pruned.finetune_energy is not None
    assert pruned.finetune_energy.total_j > 0


def test_frozen_statistics_stay(model: keras.Model) -> None:
    frozen = copy_of(model)
    frozen.get_layer("norm").trainable = False
    pruned = models_of(frozen, Recipe(prune=0.5, finetune_epochs=0))["pruned-float32"]
    assert weights_of(pruned.model) == weights_of(prune_channels(frozen, 0.5))
    assert pruned.finetune_energy is None


def test_without_tuning_the_smallest_weights_become_zeros(model: keras.Model) -> None:
    before = weights_of(model)
    recipe = Recipe(sparsity=0.7, finetune_epochs=0)
    sparse = models_of(model, recipe, runner=Untuned)["sparse-float32"].model
    kernels = {name: np.asarray(layer.kernel) for name, layer in prunable_layers(model).items()}
    for name, mask in magnitude_masks(kernels, 0.7).items():
        assert mask.mean() == pytest.approx(0.3, abs=0.005)
        expected = np.where(mask, kernels[name], np.float32(0))
        assert np.asarray(sparse.get_layer(name).kernel).tobytes() == expected.tobytes()  # no zero is negative
    np.testing.assert_array_equal(sparse.get_layer("logits").kernel, model.get_layer("logits").kernel)
    assert weights_of(model) == before


def test_l1_pulls_weights_to_zero_while_they_are_pruned() -> None:
    keras.utils.set_random_seed(0)
    model = keras.Model(
        pixels := keras.Input((20, 20, 3)),
        layers.Dense(CLASSES)(layers.Dense(8, name="hidden")(layers.GlobalAveragePooling2D()(pixels))),
    )
    plain, pulled = (
        models_of(model, Recipe(sparsity=0.5, l1=l1, finetune_epochs=1), control=False)["sparse-float32"].model
        for l1 in (0.0, 10.0)
    )
    assert np.abs(kernel_of(pulled)).sum() < np.abs(kernel_of(plain)).sum()
    assert pulled.get_layer("hidden").kernel_regularizer is None


def kernel_of(model: keras.Model, name: str = "hidden") -> NDArray[np.float32]:
    return np.asarray(model.get_layer(name).kernel)


def test_the_criterion_and_protected_layers_reach_the_pruning(model: keras.Model) -> None:
    model = copy_of(model)
    weakest = np.argsort(np.abs(model.get_layer("first").kernel).sum((0, 1, 2)), kind="stable")[:8]
    gamma = np.full(16, 0.1, np.float32)
    gamma[weakest] = 1.0  # the criteria disagree on every channel
    model.get_layer("norm").gamma.assign(gamma)
    recipe = Recipe(prune=0.5, criterion="gamma", protected=("second",), finetune_epochs=0)
    pruned = models_of(model, recipe, runner=Untuned)["pruned-float32"].model
    assert pruned.get_layer("second").kernel.shape[-1] == 24
    np.testing.assert_array_equal(kernel_of(pruned, "first"), kernel_of(model, "first")[..., np.sort(weakest)])
    by_norm = models_of(model, Recipe(prune=0.5, finetune_epochs=0), runner=Untuned)["pruned-float32"].model
    assert by_norm.get_layer("second").kernel.shape[-1] == 16
    np.testing.assert_array_equal(by_norm.get_layer("norm").gamma, gamma[np.setdiff1d(np.arange(16), weakest)])


def test_a_share_of_macs_is_a_ratio_of_the_same_step(model: keras.Model) -> None:
    recipe = Recipe(macs=0.5, finetune_epochs=0)
    pruned = models_of(model, recipe, runner=Untuned)["pruned-float32"].model
    assert 0.25 < count_macs(pruned) / count_macs(model) <= 0.5


def test_values_are_shared_per_channel_if_asked_for(model: keras.Model) -> None:
    recipe = Recipe(clusters=4, cluster_per="channel", finetune_epochs=0)
    clustered = models_of(model, recipe, runner=Untuned)["clustered-float32"].model
    assert max(distinct_values(clustered, per="channel").values()) <= 4
    assert max(distinct_values(clustered).values()) > 16


# ---------------------------------------------------------------------------------------- int8's rounding


@pytest.mark.parametrize(("losing", "lost"), [("control-int8", 5), ("control-int8", 6), ("pruned-int8", 6)])
def test_more_than_half_a_point_is_too_much_in_either_model(losing: str, lost: int) -> None:
    recipe = Recipe(prune=0.5, quantize="int8")
    models = models_of(network(), recipe, runner=Untuned, correct={losing: 1000 - lost})
    aware = ["control-int8-aware", "pruned-int8-aware"] if lost > 5 else []
    assert list(models) == ["baseline", "control", "pruned-float32", "control-int8", "pruned-int8", *aware]


def test_loss_is_against_the_same_model_before_it_is_rounded() -> None:
    correct = {"control": 900, "control-int8": 900, "pruned-float32": 800, "pruned-int8": 801}
    models = models_of(network(), Recipe(prune=0.5, quantize="int8"), runner=Untuned, correct=correct)
    assert "pruned-int8-aware" not in models


@pytest.mark.parametrize("quantize", ["float16", "int8"])
@pytest.mark.parametrize("control", [True, False])
@pytest.mark.parametrize("epochs", [0, 1])
@pytest.mark.parametrize("prune", [0.0, 0.5])
def test_names_say_what_was_done(quantize: Any, control: bool, epochs: int, prune: float) -> None:
    whole = "control" if control and epochs and prune else "baseline"
    recipe = Recipe(prune=prune, quantize=quantize, finetune_epochs=epochs)
    models = models_of(network(), recipe, runner=Untuned, correct={f"{whole}-{quantize}": 0}, control=control)
    expected: list[tuple[str, str | None]] = [("baseline", None)]
    expected += [("control", None)] * (whole == "control")
    expected += [("pruned-float32", whole)] * bool(prune)
    expected += [(f"{whole}-{quantize}", whole)]
    expected += [(f"pruned-{quantize}", f"{whole}-{quantize}")] * bool(prune)
    if quantize == "int8" and epochs:
        expected += [("control", None)] * (control and not prune)
        expected += [(f"{whole}-int8-aware", whole)]
        expected += [("pruned-int8-aware", f"{whole}-int8-aware")] * bool(prune)
    assert [(name, each.dense) for name, each in models.items()] == expected
    assert {name for name, each in models.items() if each.pruned} == {name for name in models if name[0] == "p"}


@pytest.mark.parametrize("aware", [True, False])
def test_further_seeds_do_as_the_first_did(aware: bool) -> None:
    correct = {"baseline-int8": 1000 if aware else 0}
    models = models_of(network(), Recipe(quantize="int8"), runner=Untuned, correct=correct, aware=aware)
    assert ("baseline-int8-aware" in models) == aware


@pytest.mark.slow
def test_training_with_rounding_keeps_zeros_and_takes_the_loss_of_the_models_output() -> None:
    keras.utils.set_random_seed(0)
    pixels = keras.Input((20, 20, 3))
    x = layers.Flatten()(layers.Rescaling(1 / 255)(pixels))
    logits = layers.Dense(CLASSES)(layers.Dense(8, activation="relu", name="hidden")(x))
    dense, shares = (keras.Model(pixels, outputs) for outputs in (logits, layers.Softmax()(logits)))
    recipe = Recipe(sparsity=0.5, quantize="int8", finetune_epochs=1)
    rounded = models_of(dense, recipe, control=False, aware=True)
    sparse, aware = (kernel_of(rounded[name].model) for name in ("sparse-int8", "sparse-int8-aware"))
    assert (sparse == 0).mean() == pytest.approx(0.5, abs=0.005)
    np.testing.assert_array_equal(aware == 0, sparse == 0)
    assert np.abs(aware - sparse).max() > 1e-5
    of_logits = kernel_of(rounded["baseline-int8-aware"].model)
    assert not (of_logits == 0).any()

    models = models_of(shares, Recipe(quantize="int8", finetune_epochs=1), control=False, aware=True)
    assert list(models) == ["baseline", "baseline-int8", "baseline-int8-aware"]
    moved = np.linalg.norm(of_logits - kernel_of(models["baseline"].model))
    assert moved > 1e-3
    assert np.linalg.norm(kernel_of(models["baseline-int8-aware"].model) - of_logits) < 0.08 * moved


# ------------------------------------------------------------------------------------------------- batches


def test_batches_are_counted_where_tensorflow_does_not_know() -> None:
    assert count_batches(batches(70)) == 3
    assert count_batches(batches(70).filter(lambda images, labels: True)) == 3
