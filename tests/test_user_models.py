"""Models that the user's code makes, and targets besides one class, in trainings and audits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from caches import build
from conftest import small_photo, write_files
from small_audits import NO_STAGES, arms_in_order, audit

import joulecache as jc
from joulecache.pipelines.auditing.results import Audit
from joulecache.pipelines.building.config import BuildConfig
from joulecache.pipelines.building.precomputing import build_cache
from joulecache.pipelines.cache.cache import open_cache
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.experiment.claims import inferiority, margin_of
from joulecache.pipelines.experiment.files import list_files
from joulecache.pipelines.experiment.names import ARMS, DEFAULT_ARMS
from joulecache.pipelines.models.metrics import ACCURACY, Metric, first_metric
from joulecache.pipelines.models.user_models import TrainingData, batch_spec, make_user_model
from joulecache.pipelines.report.describe.audit import describe_audit
from joulecache.pipelines.report.describe.training import describe_training
from joulecache.pipelines.report.render.markdown import to_markdown
from joulecache.pipelines.source import open_source
from joulecache.pipelines.training.results import TrainedModel
from joulecache.transforms import parse

COUNT = 24
CHAIN = "decode|resize(24)|random_crop(20) || flip_lr"
KINDS = {"tags": "multilabel", "age": "value", "kind": "class", "caption": "text", "weight": "value"}


@pytest.fixture(scope="module")
def photos_with_targets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return a folder of photos, and options that name the file of their targets."""
    folder = tmp_path_factory.mktemp("targets")
    write_files(folder / "images", {f"{number:02}.jpg": small_photo(number) for number in range(COUNT)})
    rows = [
        f"{number:02}.jpg,{'a;b' if number % 3 else 'c'},{number / 10 + 0.05},{'xy'[number % 2]},photo {number},{1 + number % 2}.5"
        for number in range(COUNT)
    ]
    (folder / "labels.csv").write_text("\n".join([",".join(["file", *KINDS]), *rows]))
    return folder / "images", {"labels": folder / "labels.csv"}


@pytest.fixture(scope="module")
def cache_with_targets(
    tmp_path_factory: pytest.TempPathFactory, photos_with_targets: tuple[Path, dict[str, Any]]
) -> Path:
    """Return a cache of the photos with all of their targets."""
    source, options = photos_with_targets
    cache = tmp_path_factory.mktemp("cache") / "cache"
    build(source, cache, CHAIN, target=named(*KINDS), variants=2, workers=1, **options)
    return cache


def named(*names: str) -> list[str]:
    return [f"{name}:{KINDS[name]}" for name in names]


def pooled(data: TrainingData, units: int = 1) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    inputs = keras.Input(data.image_shape)
    means = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    return inputs, keras.layers.Dense(units)(means)


def regressor(data: TrainingData) -> keras.Model:
    model = keras.Model(*pooled(data))
    model.compile("adam", "mse", metrics=["mae"])
    return model


def heads(data: TrainingData) -> keras.Model:
    """Make a model of two targets, whose outputs are named like them."""
    tags, age = data.features["tags"], data.features["age"]
    assert isinstance(tags, jc.features.MultiLabel)
    assert isinstance(age, jc.features.Value)
    inputs, means = pooled(data, 8)
    outputs = {
        "tags": keras.layers.Dense(len(tags.names), "sigmoid", name="tags")(means),
        "age": keras.layers.Dense(1, name="age")(means),
    }
    model = keras.Model(inputs, outputs)
    model.compile(
        "adam", {"tags": "binary_crossentropy", "age": "mse"}, metrics={"tags": keras.metrics.F1Score("macro")}
    )
    return model


# ---- the metric ----


def difference(true: Any, predicted: Any) -> Any:
    return keras.ops.abs(true - keras.ops.squeeze(predicted, -1))


@pytest.mark.parametrize(
    ("metrics", "name", "higher"),
    [
        (["mae"], "mae", False),
        (["mse", "mae"], "mse", False),
        ([keras.metrics.R2Score()], "r2_score", True),
        ([keras.metrics.MeanAbsoluteError(name="years")], "years", False),
        ([keras.metrics.MeanMetricWrapper(difference, "my_dice")], "my_dice", True),
        ([keras.metrics.MeanMetricWrapper(difference, "my_error")], "my_error", False),
        ([keras.metrics.MeanMetricWrapper(difference, "wonder")], "wonder", None),
        ([], "loss", False),
    ],
)
def test_the_first_metric_says_which_values_are_better(metrics: list[Any], name: str, higher: bool | None) -> None:
    def function(data: TrainingData) -> keras.Model:
        model = keras.Model(*pooled(data))
        model.compile("adam", "mse", metrics=metrics)
        return model

    made = make_user_model(function, TrainingData(batch_spec((4, 4, 3), tf.uint8, {"age": jc.features.Value()})))
    assert made.metric == Metric(name, higher)


def test_losses_of_outputs_are_no_metric() -> None:
    data = TrainingData(
        batch_spec((4, 4, 3), tf.uint8, {"tags": jc.features.MultiLabel(("a", "b")), "age": jc.features.Value()}),
        {"tags": jc.features.MultiLabel(("a", "b")), "age": jc.features.Value()},
    )
    made = make_user_model(heads, data)
    assert made.metric == Metric("tags_f1_score", higher_is_better=True)
    assert first_metric(["age_loss", "loss", "tags_loss"], made.network) == Metric("loss", higher_is_better=False)


@pytest.mark.parametrize(
    ("differences", "metric", "found", "why"),
    [
        ([0.010, 0.011, 0.012], Metric("mae", False), "inferior", "the interval lies above +0.00500"),
        ([-0.010, -0.011, -0.012], Metric("mae", False), "not inferior", "the interval lies below +0.00500"),
        ([-0.001, 0.005, 0.012], Metric("mae", False), "not shown", "the interval contains +0.00500"),
        ([-0.010, -0.011, -0.012], Metric("iou", True), "inferior", "the interval lies below -0.00500"),
        ([0.010, 0.011, 0.012], Metric("wonder", None), "not shown", "whether a higher wonder is better is unknown"),
        ([0.010, 0.011, 0.012], ACCURACY, "not inferior", "the interval lies above -0.5 points"),
    ],
)
def test_inferiority_knows_the_direction(differences: list[float], metric: Metric, found: str, why: str) -> None:
    assert inferiority(differences, 0.005, metric)[1:] == (found, why)


# ---- training ----


def trained(cache: Path, out: Path, **options: Any) -> TrainedModel:
    done = jc.train(cache, out=out, epochs=2, batch_size=8, **options)
    body = json.loads((out / "history.json").read_text("utf-8"))
    assert len(body["epochs"]) == 2
    assert done.training.images == 2 * open_cache(cache).manifest.splits["train"].records
    return done


def test_a_named_model_learns_multi_labels(cache_with_targets: Path, tmp_path: Path) -> None:
    done = trained(cache_with_targets, tmp_path / "run", model="mlp", targets="tags")
    assert done.training.metric == Metric("binary_accuracy", higher_is_better=True)
    model = keras.models.load_model(done.path, compile=False)
    assert model.output_shape == (None, 3)
    data = jc.load(cache_with_targets, "val", 8, shuffle=False, targets="tags")
    images, tags = (np.concatenate(parts) for parts in zip(*data.as_numpy_iterator(), strict=True))
    # the share of right answers over all classes, of logits: not that of images whose highest class is right
    assert done.training.val_score == pytest.approx(((model.predict(images, verbose=0) > 0) == tags).mean())


def test_a_function_s_model_learns_a_value_with_weights(cache_with_targets: Path, tmp_path: Path) -> None:
    done = trained(cache_with_targets, tmp_path / "run", model=regressor, targets="age", sample_weight="weight")
    assert done.training.metric == Metric("mae", higher_is_better=False)
    assert done.training.score == done.training.history["mae"][-1]
    body = json.loads((tmp_path / "run" / "history.json").read_text("utf-8"))
    assert body["mae"] == done.training.score
    assert body["model"] == "test_user_models:regressor"
    assert body["learning_rate"] is None
    assert body["optimizer"]["class_name"] == "Adam"
    text = to_markdown(describe_training(done))
    assert "Held-out mae" in text
    assert "ccuracy" not in text


def test_a_function_s_model_learns_several_targets(cache_with_targets: Path, tmp_path: Path) -> None:
    done = trained(cache_with_targets, tmp_path / "run", model=heads, targets=["tags", "age"], sample_weight="weight")
    assert done.training.metric == Metric("tags_f1_score", higher_is_better=True)
    assert {"energy_j", "input_wait_s", "age_loss", "val_tags_f1_score"} <= set(done.training.history)


def plain(data: TrainingData) -> keras.Model:
    return keras.Model(*pooled(data))


def fails(data: TrainingData) -> keras.Model:
    raise KeyError("years")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "several targets": ({"model": "mlp"}, r"'mlp' needs one class or multi-label .* has tags \(multilabel\), age \(value\)"),
    "a value": ({"model": "mlp", "targets": "age"}, r"has age \(value\): choose one with --target, or .* --model MODULE:FUNCTION"),
    "not compiled": ({"model": plain, "targets": "age"}, "test_user_models:plain returned a model that is not compiled"),
    "raises": ({"model": fails, "targets": "age"}, r"test_user_models:fails failed: KeyError: 'years' \(.*test_user_models.py:\d+\)"),
    "no model": ({"model": lambda data: 3, "targets": "age"}, "must return a compiled keras.Model, got int"),
    "text": ({"model": regressor, "targets": "caption"}, r"does not fit batches of uint8 \[\?, 20, 20, 3\], string \[\?\]"),
    "a recipe": ({"model": regressor, "recipe": jc.Recipe(prune=0.5)}, "a recipe compresses a classifier"),
    "a learning rate": ({"model": regressor, "learning_rate": 0.1}, "a function compiles its model"),
    "an optimizer": ({"model": regressor, "optimizer": keras.optimizers.SGD()}, "a function compiles its model"),
    "a weight": ({"model": regressor, "sample_weight": "tags"}, "sample_weight must name a value of one number"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_does_not_fit_is_refused_in_one_line(case: str, cache_with_targets: Path, tmp_path: Path) -> None:
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as refused:
        jc.train(cache_with_targets, out=tmp_path / "run", epochs=1, **options)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


# ---- audits ----


@pytest.mark.parametrize("names", [("tags",), ("age",), ("age", "caption", "kind", "tags"), ()])
def test_all_arms_yield_the_targets_of_the_cache(
    names: tuple[str, ...], photos_with_targets: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    source, options = photos_with_targets
    cache = tmp_path / "cache"
    config = BuildConfig(chain=parse(CHAIN), workers=1, **({"target": named(*names), **options} if names else {}))
    listed = open_source(source, config)
    build_cache(listed, cache, config, Meter())
    opened = open_cache(cache)
    files = list_files(source, opened, 2)
    arms = [*arms_in_order(ARMS[::-1], listed, config, files, opened, 8).values()]
    spec = arms[0].dataset.element_spec
    for arm in arms[1:]:
        tf.nest.assert_same_structure(arm.dataset.element_spec, spec)
        for epoch in range(2):
            arm.start_epoch(epoch)
            expected = jc.load(cache, "train", 8, shuffle=False, start=(epoch, 0))
            for batch, wanted in zip(arm.dataset, expected, strict=False):
                for part, same in zip(tf.nest.flatten(batch)[1:], tf.nest.flatten(wanted)[1:], strict=True):
                    assert part.dtype == same.dtype
                    np.testing.assert_array_equal(part, same)


def small_audit(source: Path, out: Path, **changes: Any) -> Audit:
    options: dict[str, Any] = {
        "arms": ("naive", "optimized"),
        "workloads": ("train",),
        "pairs": 2,
        "train_epochs": 1,
        "batch_size": 8,
        "epochs": 10,
        "budget": NO_STAGES,
        **changes,
    }
    return audit(source, CHAIN, out, **options)


def test_an_audit_of_a_function_s_model(photos_with_targets: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    source, options = photos_with_targets
    result = small_audit(source, tmp_path / "out", model=regressor, train_epochs=2, target=named("age"), **options)
    assert result.metric == Metric("mae", higher_is_better=False)
    assert result.targets == {"age": "value"}
    assert result.provenance.model == "test_user_models:regressor"
    [training] = result.workloads
    assert all(arm.score is not None for arm in training.arms)
    assert result.reuse is not None
    assert all(len(point.scores) == 3 for point in result.reuse.points)
    assert result.reuse.margin == pytest.approx(0.01 * result.reuse.points[-1].score.value)
    assert Audit.from_json(json.loads(json.dumps(result.to_json()))) == result
    text = to_markdown(describe_audit(result))
    for said in (
        "mae (range of runs)",
        "mae: lower is better",
        "Targets: age (value)",
        "mae differs by",
        "Held-out mae",
    ):
        assert said in text
    assert "ccuracy" not in text


@pytest.mark.slow
def test_an_audit_of_multi_labels(photos_with_targets: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    source, options = photos_with_targets
    result = small_audit(source, tmp_path / "out", model="mlp", target=named("tags"), **options)
    assert result.metric == Metric("binary_accuracy", higher_is_better=True)
    assert result.records is not None
    assert result.records.chance is None
    assert {example.class_name for example in result.examples} <= {"a/b", "c"}
    with pytest.raises(ValueError, match=r"the model 'mlp' needs one class or multi-label"):
        audit(source, CHAIN, tmp_path / "other", model="mlp", target=named("age"), **options)
    with pytest.raises(ValueError, match="the workload infer compresses a classifier by name or from a file"):
        small_audit(source, tmp_path / "other", workloads=("infer",), model=regressor, target=named("age"), **options)
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_multi_labels_are_trained_and_compressed(cache_with_targets: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 8, "model": "mlp", "targets": "tags"}
    recipe = jc.Recipe(sparsity=0.5, quantize="int8", finetune_epochs=1)
    done = jc.train(cache_with_targets, out=tmp_path / "run", recipe=recipe, sample_weight="weight", **settings)
    assert done.training.objective == "binary cross-entropy of 3 logits; accuracy over all classes"
    assert done.compression is not None
    assert done.compression.model_files[0].accuracy == pytest.approx(done.training.val_score)
    for weights, message in (
        ({"sample_weight": "weight"}, "class_weight needs one class for each image, got tags"),
        ({"targets": "kind", "sample_weight": "weight"}, "class_weight and sample_weight exclude each other"),
    ):
        with pytest.raises(ValueError, match=message):
            jc.train(cache_with_targets, out=tmp_path / "no", **{**settings, **weights}, class_weight={"x": 2.0})


def segmenter(data: TrainingData) -> keras.Model:
    mask = data.features["mask"]
    assert isinstance(mask, jc.features.Mask)
    inputs = keras.Input(data.image_shape)
    hidden = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Conv2D(len(mask.names), 1)(hidden))
    iou = keras.metrics.MeanIoU(len(mask.names), sparse_y_pred=False, name="iou")
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=[iou])
    return model


@pytest.mark.slow
def test_an_audit_of_masks(tmp_path: Path) -> None:
    result = audit(
        "synthetic:24",
        "decode|resize(40) || random_crop(32)|flip_lr",
        tmp_path / "out",
        model=segmenter,
        target="mask",
        pairs=2,
        train_epochs=1,
        batch_size=8,
    )
    assert [each.workload for each in result.workloads] == ["input", "train"]
    assert result.metric == Metric("iou", higher_is_better=True)
    assert result.targets == {"mask": "mask"}
    assert set(result.pixel_difference) == set(DEFAULT_ARMS)
    assert result.stages is not None
    assert result.stages.workload == "train"
    assert "Targets: mask (mask)." in to_markdown(describe_audit(result))


MODULE = """
import keras
import tensorflow as tf


def pairs():
    images = tf.random.stateless_uniform([20, 8, 8, 3], (1, 2))
    return tf.data.Dataset.from_tensor_slices((images, {"age": tf.range(20.0), "flag": tf.range(20) % 2})).batch(8)


def make_model(data):
    assert data.image_shape == (8, 8, 3) and not data.features
    inputs = keras.Input(data.image_shape)
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    outputs = {name: keras.layers.Dense(1, name=name)(pooled) for name in ("age", "flag")}
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {"age": "mse", "flag": keras.losses.BinaryCrossentropy(from_logits=True)})
    return model
"""


@pytest.mark.usefixtures("short_runs")
def test_the_command_line_takes_a_function_for_custom_pipelines(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_model_module.py").write_text(MODULE)
    common = ("--pipeline", "own_model_module:pairs", "--workload", "train", "--pairs", "2", "--train-epochs", "1")
    code, out, err = run(
        "audit", *common, "--model", "own_model_module:make_model", "--out", tmp_path / "out", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["provenance"]["model"] == "own_model_module:make_model"
    code, _, err = run("audit", *common, "--model", "own_model_module:make_modle", "--out", tmp_path / "no")
    assert (code, "did you mean make_model?" in " ".join(err.split())) == (2, True)


def test_the_command_line_trains_a_function_s_model_on_a_target(
    run: Callable[..., tuple[int, str, str]], cache_with_targets: Path, tmp_path: Path
) -> None:
    options = ("--target", "age", "--sample-weight", "weight", "--model", "test_user_models:regressor", "--json")
    code, out, err = run("train", cache_with_targets, "--epochs", 1, *options, "--out", tmp_path / "run")
    assert code == 0, err
    assert json.loads(out)["metric"] == {"name": "mae", "higher_is_better": False}
    assert ", mae " in err
    code, _, err = run("train", cache_with_targets, "--epochs", 1, "--target", "agee", "--out", tmp_path / "other")
    assert (code, "targets must name targets of the cache" in " ".join(err.split())) == (2, True)


def test_reuse_of_other_metrics_has_a_relative_margin() -> None:
    assert margin_of(Metric("mae", higher_is_better=False), 20.0) == pytest.approx(0.2)
    assert margin_of(ACCURACY, 0.9) == 0.005
