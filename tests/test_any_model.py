"""Models as users have them are compressed: nested, with augmentation, of mixed precision, with one output, for multi-labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from caches import build
from keras import layers
from small_audits import NO_STAGES, audit

from joulecache.pipelines.compressing.batch_norm import reestimate_batch_norm
from joulecache.pipelines.compressing.compression import compress, compress_on
from joulecache.pipelines.compressing.feasibility import check_conversion
from joulecache.pipelines.compressing.litert import TfliteModel
from joulecache.pipelines.compressing.quantization_aware import QuantizationAware
from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.compressing.results import Compression
from joulecache.pipelines.models.flattening import inner_layers, plain_copy
from joulecache.pipelines.models.macs import count_macs
from joulecache.pipelines.report.describe.compression import describe_compression
from joulecache.pipelines.report.render.markdown import to_markdown
from joulecache.pipelines.training.trainer import train

SIDE = 16


def images_of(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise; the images of class 1 are brighter."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(0, 2, count)
    pixels = generator.integers(0, 156, (count, SIDE, SIDE, 3)) + 100 * classes[:, None, None, None]
    return pixels.astype(np.uint8), classes


def batches(seed: int, labels: Callable[[np.ndarray], Any] = lambda classes: classes) -> tf.data.Dataset:
    images, classes = images_of(96, seed)
    return tf.data.Dataset.from_tensor_slices((images, labels(classes))).batch(32)


def convolution(x: Any, **settings: Any) -> Any:
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, **settings)(x)
    return layers.ReLU(**settings)(layers.BatchNormalization(**settings)(x))


def tutorial() -> keras.Model:
    """As TensorFlow's image tutorial: augmentation in the model, here next to bare layers and a nested head."""
    augmentation = keras.Sequential([layers.RandomFlip("horizontal"), layers.RandomRotation(0.1)], name="augmentation")
    head = keras.Sequential([layers.Dropout(0.2), layers.Dense(16, "relu"), layers.Dense(2, "softmax")], name="head")
    parts = [augmentation, layers.RandomZoom(0.1), layers.Rescaling(1 / 255), layers.Conv2D(16, 3, activation="relu")]
    return keras.Sequential([keras.Input((SIDE, SIDE, 3)), *parts, layers.GlobalAveragePooling2D(), head])


def transfer() -> keras.Model:
    """As TensorFlow's transfer learning: a frozen backbone, called as at inference, under a head with one logit."""
    any_size = keras.Input((None, None, 3))
    backbone = keras.Model(any_size, convolution(convolution(any_size)) + 1.0, name="backbone")
    backbone.trainable = False
    pixels = keras.Input((SIDE, SIDE, 3))
    x = layers.GlobalAveragePooling2D()(backbone(pixels / 255.0, training=False))
    return keras.Model(pixels, layers.Dense(1)(layers.Dense(16, "relu")(x)))


def mixed() -> keras.Model:
    pixels = keras.Input((SIDE, SIDE, 3))
    settings = {"dtype": "mixed_bfloat16"}
    x = layers.GlobalAveragePooling2D(**settings)(
        convolution(layers.Rescaling(1 / 255, **settings)(pixels), **settings)
    )
    x = layers.Dense(1, **settings)(layers.Dense(16, "relu", **settings)(x))
    return keras.Model(pixels, layers.Activation("sigmoid", dtype="float32")(x))


def labelled() -> keras.Model:
    """One sigmoid for each of two labels."""
    pixels = keras.Input((SIDE, SIDE, 3))
    x = layers.GlobalAveragePooling2D()(convolution(layers.Rescaling(1 / 255)(pixels)))
    return keras.Model(pixels, layers.Dense(2, "sigmoid")(layers.Dense(16, "relu")(x)))


class Doubling(layers.Layer):  # type: ignore[misc]
    def call(self, pixels: Any) -> Any:
        return pixels * 2


def uncounted() -> keras.Model:
    pixels = keras.Input((SIDE, SIDE, 3))
    x = convolution(Doubling()(layers.Rescaling(1 / 255)(pixels)))
    return keras.Model(pixels, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))


def compressed(model: keras.Model, out: Path, recipe: Recipe, **options: Any) -> Compression:
    given = [weight.copy() for weight in model.get_weights()]
    labels = options.pop("labels", lambda classes: classes)
    done = compress_on(model, batches(1, labels), batches(2, labels), recipe, out=out, int8_tolerance=-1.0, **options)
    for weight, before in zip(model.get_weights(), given, strict=True):
        np.testing.assert_array_equal(weight, before)
    return done


@pytest.mark.slow
@pytest.mark.parametrize("make", [tutorial, transfer, mixed, labelled, uncounted])
def test_a_model_is_compressed_by_all_steps(
    tmp_path: Path, make: Callable[[], keras.Model], caplog: pytest.LogCaptureFixture
) -> None:
    keras.utils.set_random_seed(0)
    model = make()
    options: dict[str, Any] = {}
    if make is labelled:
        options = {"multi_label": True, "labels": lambda classes: np.eye(2, dtype=np.float32)[classes]}
    recipe = Recipe(prune=0.5, sparsity=0.5, clusters=4, quantize="int8", finetune_epochs=1)
    done = compressed(model, tmp_path / "out", recipe, **options)
    names = [file.name for file in done.model_files]
    assert names[-1] == "pruned-sparse-clustered-int8-aware"
    images, _ = images_of(40, seed=3)
    expected = plain_copy(model)(images.astype(np.float32), training=False)
    outputs = TfliteModel(tmp_path / "out" / "baseline.tflite").predict(images)
    np.testing.assert_allclose(outputs, expected, atol=1e-5, rtol=1e-5)
    assert done.model_files[-1].parameters < done.model_files[0].parameters
    text = to_markdown(describe_compression(done))
    if make is uncounted:
        assert {file.macs for file in done.model_files} == {None}
        assert "not counted" in text
        assert "are not counted: layer 'doubling' is a Doubling" in caplog.text
    else:
        assert done.model_files[0].macs == count_macs(model)
        assert "not counted" not in text
    assert ("computes in bfloat16: it is compressed in float32, with the same weights" in caplog.text) == (
        make is mixed
    )
    small = keras.saving.load_model(
        tmp_path / "out" / "pruned-sparse-clustered-int8-aware.keras", custom_objects={"Doubling": Doubling}
    )
    assert {layer.compute_dtype for layer in small.layers} == {"float32"}


@pytest.mark.slow
def test_a_model_that_gives_zeros_for_blank_images_can_be_converted() -> None:
    pixels = keras.Input((64, 64, 3))
    x = layers.Conv2D(16, 3, strides=4, activation="relu")(layers.Rescaling(1 / 255)(pixels))
    model = keras.Model(pixels, layers.Dense(1)(layers.GlobalAveragePooling2D()(x)))
    check_conversion(Recipe(quantize="int8", finetune_epochs=0), model)


@pytest.mark.slow
def test_two_classes_are_trained_with_one_output(
    synthetic_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(synthetic_folder, tmp_path / "cache", chain=f"decode|resize({SIDE})", val_fraction=0.25, workers=1)
    mixed().save(tmp_path / "mixed.keras")
    recipe = Recipe(quantize="int8", finetune_epochs=0)
    done = train(
        tmp_path / "cache",
        out=tmp_path / "run",
        epochs=1,
        batch_size=8,
        model=tmp_path / "mixed.keras",
        recipe=recipe,
        class_weight={"odd": 2.0},
    )
    assert done.training.objective == "binary cross-entropy of one sigmoid; accuracy at 0.5"
    assert f"is trained with {done.training.objective}" in caplog.text
    assert done.compression is not None
    assert done.compression.model_files[0].accuracy == pytest.approx(done.training.val_score)
    again = compress(done.path, tmp_path / "cache", recipe, out=tmp_path / "small")
    assert [file.accuracy for file in again.model_files] == [file.accuracy for file in done.compression.model_files]


@pytest.mark.slow
def test_an_audit_compresses_a_nested_model(synthetic_folder: Path, tmp_path: Path) -> None:
    tutorial().save(tmp_path / "tutorial.keras")
    settings: dict[str, Any] = {"batch_size": 8, "pairs": 1, "train_epochs": 1, "epochs": 2, "budget": NO_STAGES}
    result = audit(
        synthetic_folder,
        f"decode|resize({SIDE})",
        tmp_path / "out",
        model=str(tmp_path / "tutorial.keras"),
        arms=("naive", "optimized"),
        workloads=("train", "finetune", "infer"),
        **settings,
    )
    assert [each.workload for each in result.workloads] == ["train", "finetune", "infer"]
    assert result.compression is not None


def test_frozen_kernels_are_rounded_and_stay() -> None:
    keras.utils.set_random_seed(0)
    model = transfer()
    model.trainable = False
    rounded = QuantizationAware(model)
    images = images_of(8, seed=1)[0].astype(np.float32)
    rounded(images, training=True)  # measures the ranges
    names = inner_layers(model).keys()
    before = {name: inner_layers(rounded.inner)[name].get_weights() for name in names}
    coarse = QuantizationAware(model, weight_levels=1)
    coarse(images, training=True)
    assert np.abs(coarse(images) - rounded(images)).max() > 1e-3
    target = keras.models.clone_model(model)
    rounded.copy_weights_to(target)
    for name, layer in inner_layers(target).items():
        for weight, kept in zip(layer.get_weights(), before[name], strict=True):
            np.testing.assert_array_equal(weight, kept)
        for weight, given in zip(layer.get_weights(), inner_layers(model)[name].get_weights(), strict=True):
            np.testing.assert_array_equal(weight, given)


def test_normalization_is_reestimated_in_nested_models_that_train() -> None:
    keras.utils.set_random_seed(0)
    pixels = keras.Input((SIDE, SIDE, 3))
    frozen, trained = (keras.Sequential([layers.BatchNormalization(name=name)], name=f"in_{name}") for name in "ab")
    frozen.trainable = False
    x = trained(frozen(pixels))
    model = keras.Model(pixels, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    data = batches(1)
    assert reestimate_batch_norm(model, data) == 96
    images = np.concatenate([each for each, _ in data.as_numpy_iterator()]).astype(np.float64)
    norms = inner_layers(model)
    np.testing.assert_array_equal(norms["a"].moving_mean, np.zeros(3))
    np.testing.assert_allclose(norms["b"].moving_mean, images.mean((0, 1, 2)) / np.sqrt(1.001), rtol=1e-3)
