"""TensorFlow Lite files: what they compute, how they are quantized, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from blobs import CLASSES, batches, blobs
from keras import layers

from joulecache.pipelines.compressing.litert import TfliteModel
from joulecache.pipelines.compressing.tflite import to_tflite
from joulecache.pipelines.models.classifiers import build_model
from joulecache.pipelines.models.fitting import compile_model, run_epochs


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = build_model("cnn", (20, 20, 3), CLASSES)
    compile_model(model, 3e-3)
    run_epochs(model, batches(320), epochs=3)
    return model


@pytest.fixture(scope="module")
def int8_file(trained: keras.Model) -> bytes:
    return to_tflite(trained, "int8", blobs(200)[0])


def agreement(model: keras.Model, file: bytes) -> float:
    images = blobs(200, seed=5)[0]
    return float((TfliteModel(file).predict(images).argmax(-1) == np.argmax(model(images), -1)).mean())


@pytest.fixture(scope="module")
def float_file(trained: keras.Model) -> bytes:
    return to_tflite(trained, "float32")


def test_float32_files_compute_what_keras_computes(trained: keras.Model, float_file: bytes) -> None:
    images = blobs(20, seed=5)[0]
    logits = TfliteModel(float_file).predict(images)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, trained(images), atol=1e-4)


def test_smaller_files_decide_as_keras_does(trained: keras.Model, float_file: bytes, int8_file: bytes) -> None:
    float_bytes = len(float_file)
    float16, dynamic = to_tflite(trained, "float16"), to_tflite(trained, "dynamic")
    assert len(float16) < 0.55 * float_bytes
    assert len(dynamic) < 0.31 * float_bytes
    assert len(int8_file) < 0.31 * float_bytes
    images = blobs(50, seed=6)[0]
    logits = np.asarray(trained(images))
    for file in (float16, dynamic, int8_file):
        assert agreement(trained, file) >= 0.98
        assert np.abs(TfliteModel(file).predict(images) - logits).mean() < 0.03 * np.ptp(logits)


def tensors(file: bytes) -> list[dict[str, Any]]:
    interpreter = Interpreter(model_content=file)
    found: list[dict[str, Any]] = interpreter.get_tensor_details()
    return found


def test_int8_files_are_integer_throughout(int8_file: bytes) -> None:
    assert {tensor["dtype"] for tensor in tensors(int8_file)} <= {np.uint8, np.int8, np.int32}
    interpreter = Interpreter(model_content=int8_file)
    (pixels,), (logits,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (pixels["dtype"], pixels["quantization"]) == (np.uint8, (1.0, 0))
    assert logits["dtype"] == np.int8
    kernels = [
        tensor
        for tensor in tensors(int8_file)
        if len(tensor["shape"]) == 4 and tensor["shape"][0] > 1 and tensor["shape"][1:3].tolist() == [3, 3]
    ]
    assert [tensor["dtype"] for tensor in kernels] == [np.int8] * 3
    per_channel = sorted(len(tensor["quantization_parameters"]["scales"]) for tensor in kernels)
    assert per_channel == [32, 64, 64]


def test_pixels_go_straight_in_whatever_the_calibration_shows(
    trained: keras.Model, capfd: pytest.CaptureFixture[str]
) -> None:
    images = np.clip(blobs(20)[0], 60, 140)
    file = to_tflite(trained, "int8", images, minimum_calibration=20)
    assert (images.min(), images.max()) == (60, 140)  # the caller's images are untouched
    TfliteModel(file).predict(images[:3])
    os.write(1, b"after")
    assert capfd.readouterr() == ("after", "")  # converting and running print nothing
    assert Interpreter(model_content=file).get_input_details()[0]["quantization"] == (1.0, 0)


def test_int8_needs_enough_training_images(trained: keras.Model) -> None:
    images = blobs(200)[0]
    with pytest.raises(ValueError, match="calibration must be at least 200 training images, got 199"):
        to_tflite(trained, "int8", images[:199])
    with pytest.raises(ValueError, match="at least 1 training images, got 0"):
        to_tflite(trained, "int8", images[:0], minimum_calibration=0)
    with pytest.raises(ValueError, match=r"must be uint8 training images \[N, 20, 20, 3\], got None"):
        to_tflite(trained, "int8")
    with pytest.raises(ValueError, match=r"got float32 \[200, 20, 20, 3\]"):
        to_tflite(trained, "int8", images.astype(np.float32))
    with pytest.raises(ValueError, match=r"got uint8 \[200, 10, 20, 3\]"):
        to_tflite(trained, "int8", images[:, :10])


def test_unknown_kinds_are_refused(trained: keras.Model) -> None:
    with pytest.raises(ValueError, match="kind must be one of float32, float16, dynamic, int8, got 'int4'"):
        to_tflite(trained, "int4")  # type: ignore[arg-type]


def test_a_failed_conversion_says_what_the_converter_said(capfd: pytest.CaptureFixture[str]) -> None:
    pixels = keras.Input((4, 4, 3))
    model = keras.Model(pixels, layers.Lambda(lambda x: tf.linalg.svd(x, compute_uv=False))(pixels))
    with pytest.raises(
        ValueError, match=r"cannot be converted to TensorFlow Lite: it has no kernel for Svd: "
    ) as caught:
        to_tflite(model, "float32")
    assert "Svd" in "".join(caught.value.__notes__)
    assert capfd.readouterr() == ("", "")


def small_model(activation: str) -> keras.Model:
    pixels = keras.Input((20, 20, 3))
    x = layers.Activation(activation)(layers.MaxPooling2D(5)(pixels))
    return keras.Model(pixels, layers.Dense(2)(layers.Flatten()(x)), name="small")


def test_layers_without_integer_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="use float16 or dynamic; the converter left 2 tensors in float32"):
        to_tflite(small_model("squareplus"), "int8", blobs(200)[0])


def test_models_that_overflow_are_refused() -> None:
    with pytest.raises(ValueError, match="model 'small' overflows on calibration images"):
        to_tflite(small_model("exponential"), "int8", blobs(200)[0])  # e**255
    diverged = small_model("relu")
    diverged.set_weights([weight * np.nan for weight in diverged.get_weights()])
    with pytest.raises(ValueError, match="model 'small' has weights that are not finite"):
        to_tflite(diverged, "float32")


@pytest.mark.parametrize("batch_size", [7, 100])
def test_logits_do_not_depend_on_the_batch(int8_file: bytes, batch_size: int) -> None:
    runner, images = TfliteModel(int8_file), blobs(33)[0]
    np.testing.assert_array_equal(
        runner.predict(images, batch_size=batch_size),
        [TfliteModel(int8_file).predict(image[None])[0] for image in images],
    )


def test_files_that_quantize_pixels_otherwise_are_fed_right(trained: keras.Model) -> None:
    images = blobs(30)[0]
    for dtype in (tf.int8, tf.uint8):
        converter = tf.lite.TFLiteConverter.from_keras_model(trained)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None].astype(np.float32) / 2] for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = dtype
        with pytest.warns(UserWarning, match="Statistics"):
            file = converter.convert()
        scale = Interpreter(model_content=file).get_input_details()[0]["quantization"][0]
        assert scale == pytest.approx(0.5, abs=0.01)
        dark = images // 2
        np.testing.assert_allclose(TfliteModel(file).predict(dark), trained(dark), atol=0.5)


def test_what_is_no_tflite_classifier_is_named(tmp_path: Path, int8_file: bytes) -> None:
    (tmp_path / "broken.tflite").write_bytes(b"hello there")
    with pytest.raises(ValueError, match=r"broken\.tflite': not a TensorFlow Lite model"):
        TfliteModel(tmp_path / "broken.tflite")
    with pytest.raises(ValueError, match="0 bytes: not a TensorFlow Lite model"):
        TfliteModel(b"")
    with pytest.raises(FileNotFoundError):
        TfliteModel(tmp_path / "none.tflite")
    rows = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="not an image classifier"):
        TfliteModel(to_tflite(rows, "float32"))
    runner = TfliteModel(int8_file)
    with pytest.raises(ValueError, match=r"must be uint8 \[B, 20, 20, 3\], got float32 \[2, 20, 20, 3\]"):
        runner.predict(np.zeros((2, 20, 20, 3), np.float32))
    with pytest.raises(ValueError, match=r"got uint8 \[20, 20, 3\]"):
        runner.predict(np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(ValueError, match=r"batch_size must be .* got 0"):
        runner.predict(np.zeros((2, 20, 20, 3), np.uint8), batch_size=0)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"scale": False}, {"center": False}, {"axis": 3}])
def test_layer_normalization_has_int8_kernels(settings: dict[str, Any]) -> None:
    keras.utils.set_random_seed(0)
    pixels = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3)(layers.Rescaling(1 / 255)(pixels))
    x = layers.Dense(16, activation="gelu")(layers.LayerNormalization(**settings)(x))
    model = keras.Model(pixels, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)
    logits = TfliteModel(to_tflite(model, "int8", images, minimum_calibration=64)).predict(images)
    expected = np.asarray(model(images.astype(np.float32)))
    assert np.abs(logits - expected).max() < 0.1 * np.ptp(expected)
