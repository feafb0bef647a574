from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras import layers
from numpy.typing import NDArray

from joulecache.pipelines.compressing import compression as package
from joulecache.pipelines.compressing import steps as stages
from joulecache.pipelines.compressing.compression import compress, compress_on
from joulecache.pipelines.compressing.output import discard_folder, staged_folder, write_record
from joulecache.pipelines.compressing.pruning import kept_channels, prune_channels
from joulecache.pipelines.compressing.recipe import Quantization, Recipe
from joulecache.pipelines.compressing.results import Compression
from joulecache.pipelines.compressing.steps import make_forms
from joulecache.pipelines.compressing.tflite import TfliteModel, to_tflite
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.models import build_model, compile_model, count_macs, load_model

CLASSES = 3
HALF = Recipe(prune=0.5, quantize="int8")


def blobs(count: int, seed: int = 0, side: int = 20) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noise with one brighter square, whose colour is the class."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 120, (count, side, side, 3), np.uint8)
    labels = generator.integers(0, CLASSES, count)
    for image, label, (top, left) in zip(images, labels, generator.integers(0, side - 8, (count, 2)), strict=True):
        image[top : top + 8, left : left + 8, label] += 130
    images[0, 0, 0], images[0, 0, 1] = 0, 255
    return images, labels


def batches(count: int, seed: int = 0, batch_size: int = 32) -> Any:
    return tf.data.Dataset.from_tensor_slices(blobs(count, seed)).batch(batch_size)


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = build_model("cnn", (20, 20, 3), CLASSES)
    compile_model(model, 1e-3)
    model.fit(batches(480), epochs=5, shuffle=False, verbose=0)
    return model


def never(what: str, done: int, total: int) -> None:
    raise AssertionError(f"{what}: work has begun")


def weights_of(model: keras.Model) -> list[NDArray[Any]]:
    return [np.array(weight) for weight in model.get_weights()]


def randomized(model: keras.Model, seed: int = 0) -> keras.Model:
    """Weights, biases and statistics that are nowhere 0 or 1."""
    generator = np.random.default_rng(seed)
    model.set_weights(
        [
            generator.uniform(0.1, 0.9, w.shape) * (generator.choice([-1, 1], w.shape) if w.ndim > 1 else 1)
            for w in model.get_weights()
        ]
    )
    return model


# ------------------------------------------------------------------------------------------------ pruning


def normalized() -> keras.Model:
    pixels = x = keras.Input((9, 7, 3))
    x = layers.Rescaling(1 / 255, offset=[-0.1, 0.0, 0.2])(x)
    x = layers.Conv2D(24, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU(6.0)(x)
    x = layers.ZeroPadding2D(1)(x)
    x = layers.Conv2D(20, 3, activation="sigmoid")(x)
    x = layers.BatchNormalization(scale=False)(x)
    x = layers.Dropout(0.5)(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(40, activation="tanh")(x)
    x = layers.Dense(4)(x)
    return keras.Model(pixels, layers.Softmax()(x))


def sequential() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 10, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(32, (3, 1), activation="gelu"),
            layers.AveragePooling2D((2, 3)),
            layers.Flatten(),
            layers.BatchNormalization(),
            layers.Dense(17, activation="relu"),
            layers.Activation("elu"),
            layers.Dense(24),
            layers.LeakyReLU(),
            layers.Dense(5, activation="softmax"),
        ]
    )


def convolutional() -> keras.Model:
    pixels = keras.Input((8, 8, 1))
    x = layers.Dense(16, activation="relu")(pixels)
    x = layers.SpatialDropout2D(0.1)(layers.MaxPooling2D(2)(x))
    x = layers.Conv2D(6, 2)(x)
    return keras.Model(pixels, layers.GlobalMaxPooling2D()(x))


CHAINS: list[Callable[[], keras.Model]] = [
    normalized,
    sequential,
    convolutional,
    lambda: build_model("cnn", (22, 18, 3), 4),
]


def pixels_for(model: keras.Model, count: int = 4) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, *model.input_shape[1:]), np.uint8)


def run_with_zeros(model: keras.Model, kept: dict[str, NDArray[np.int64]], x: Any) -> Any:
    """The model with zeros in place of the dropped channels wherever a weight reads them."""
    alive: NDArray[Any] = np.ones(x.shape[-1], np.float32)
    x = np.asarray(x, np.float32)
    for layer in model.layers:
        if isinstance(layer, layers.InputLayer):
            continue
        if isinstance(layer, layers.Flatten):
            alive = np.tile(alive, math.prod(x.shape[1:-1]))
        x = layer(x * alive if isinstance(layer, layers.Conv2D | layers.Dense) else x)
        if isinstance(layer, layers.Conv2D | layers.Dense):
            alive = np.zeros(x.shape[-1], np.float32)
            alive[kept.get(layer.name, np.arange(x.shape[-1]))] = 1
    return x


@pytest.mark.parametrize("build", CHAINS)
def test_without_a_ratio_the_pruned_model_is_the_same(build: Callable[[], keras.Model]) -> None:
    model = randomized(build())
    pruned = prune_channels(model, 0)
    for weight, same in zip(model.get_weights(), pruned.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)
    np.testing.assert_array_equal(model(pixels_for(model)), pruned(pixels_for(model)))


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.95])
@pytest.mark.parametrize("build", CHAINS)
def test_a_pruned_model_is_the_model_with_zeros(build: Callable[[], keras.Model], ratio: float) -> None:
    model = randomized(build())
    model.set_weights([weight / 10 for weight in model.get_weights()])
    before, config = weights_of(model), model.get_config()
    kept = kept_channels(model, ratio, multiple=4)
    pruned = prune_channels(model, ratio, multiple=4)
    pixels = pixels_for(model)
    np.testing.assert_allclose(pruned(pixels), run_with_zeros(model, kept, pixels), atol=1e-5)
    assert np.abs(model(pixels) - pruned(pixels)).max() > 1e-4  # or the comparison would show nothing
    assert pruned.count_params() < model.count_params()
    assert count_macs(pruned) < count_macs(model)
    for weight, same in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)
    assert model.get_config() == config
    for name, channels in kept.items():
        assert pruned.get_layer(name).kernel.shape[-1] == len(channels)
    assert pruned.output_shape == model.output_shape


def test_the_strongest_channels_are_kept() -> None:
    model = randomized(normalized())
    kept = kept_channels(model, 0.4)
    weighted = [layer for layer in model.layers if isinstance(layer, layers.Conv2D | layers.Dense)]
    assert list(kept) == [layer.name for layer in weighted[:-1]]
    for layer in weighted[:-1]:
        norms = [float(np.abs(layer.kernel[..., channel]).sum()) for channel in range(layer.kernel.shape[-1])]
        strongest = sorted(range(len(norms)), key=lambda channel: -norms[channel])[: len(kept[layer.name])]
        assert kept[layer.name].tolist() == sorted(strongest)


@pytest.mark.parametrize(
    ("width", "ratio", "multiple", "left"),
    [
        (64, 0.5, 8, 32),
        (64, 0.25, 8, 48),
        (64, 0.9, 8, 8),
        (64, 0.99, 16, 16),
        (64, 0.3, 8, 48),  # 44.8 lies nearer to 48 than to 40
        (20, 0.5, 8, 8),
        (20, 0.001, 8, 16),
        (20, 0, 8, 20),
        (6, 0.5, 8, 6),  # less than one multiple: nothing to drop
        (22, 0.01, 8, 22),
        (10, 0.5, 1, 5),
        (10, 0.99, 1, 1),
    ],
)
def test_widths_are_kept_at_multiples(width: int, ratio: float, multiple: int, left: int) -> None:
    model = keras.Sequential([keras.Input((1, 1, 2)), layers.Dense(width, name="wide"), layers.Dense(2)])
    assert len(kept_channels(model, ratio, multiple=multiple)["wide"]) == left


def chain_with(*inner: keras.Layer) -> keras.Model:
    return keras.Sequential([keras.Input((6, 6, 3)), layers.Conv2D(16, 3, name="first"), *inner, layers.Conv2D(2, 1)])


def multiplying() -> keras.Model:
    pixels = keras.Input((6, 6, 3))
    x = layers.Conv2D(16, 3, padding="same")(pixels)
    return keras.Model(pixels, layers.Multiply(name="product")([x, layers.Conv2D(16, 3, padding="same")(x)]))


def forked() -> keras.Model:
    pixels = keras.Input((6, 6, 3))
    return keras.Model(pixels, [layers.Conv2D(3, 1)(pixels), layers.Conv2D(2, 1)(pixels)], name="forked")


def reused() -> keras.Model:
    pixels = keras.Input((6, 6, 3))
    layer = layers.Conv2D(3, 3, padding="same", name="twice")
    return keras.Model(pixels, layers.Conv2D(2, 1, name="after")(layer(layer(pixels))))


def peeking() -> keras.Model:
    pixels = keras.Input((6, 6, 3))
    x = layers.Conv2D(16, 3, name="first")(pixels)
    return keras.Model(pixels, [x, layers.Conv2D(2, 1)(x)], name="peeking")


class OfMyOwn(keras.Model):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return x


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (multiplying, "layer 'product' is a Multiply: pruning knows .*Conv2D"),
        (lambda: chain_with(layers.LayerNormalization(name="norm")), "layer 'norm' is a LayerNormalization"),
        (lambda: chain_with(layers.Conv2D(8, 1, groups=4, name="grouped")), "layer 'grouped' .* has 4 groups"),
        (lambda: chain_with(layers.BatchNormalization(axis=1, name="rows")), "layer 'rows' .* normalizes axis 1"),
        (lambda: chain_with(layers.Activation(lambda x: x, name="mine")), r"layer 'mine' .*not one of Keras' own"),
        (lambda: chain_with(layers.Softmax(name="early")), "layer 'early' .*mixes channels"),
        (lambda: chain_with(layers.Activation("softmax", name="early")), "layer 'early' .*mixes channels"),
        (lambda: chain_with(layers.Conv2D(16, 1, activation="softmax", name="own")), "layer 'own' .*mixes channels"),
        (lambda: chain_with(layers.Rescaling([1.0] * 16, name="each")), "layer 'each' .*each its own way"),
        (lambda: chain_with(layers.ZeroPadding2D(data_format="channels_first", name="pad")), "'pad' .*channels first"),
        (forked, "model 'forked' has several inputs or outputs"),
        (reused, "layer 'twice' is used 2 times"),
        (peeking, "model 'peeking' has several inputs or outputs"),
        (lambda: keras.Sequential([keras.Input((4, 4, 3)), layers.Flatten()], name="none"), "'none' has no Conv2D"),
        (lambda: keras.Sequential([layers.Dense(2)], name="unbuilt"), "model 'unbuilt' is not functional or not built"),
        (lambda: OfMyOwn(name="mine"), "model 'mine' is not functional"),
    ],
)
def test_what_cannot_be_pruned_is_named(build: Callable[[], keras.Model], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune_channels(build(), 0.5)


def test_a_flatten_of_any_size_cannot_be_pruned() -> None:
    pixels = keras.Input((None, 4, 3))
    model = keras.Model(pixels, layers.Flatten(name="flat")(layers.Conv2D(16, 1)(pixels)))
    with pytest.raises(ValueError, match=r"layer 'flat' .*no fixed size"):
        prune_channels(model, 0.5)


def test_layers_may_have_been_used_elsewhere_before() -> None:
    conv, dense = layers.Conv2D(16, 3), layers.Dense(2)
    elsewhere = keras.Input((12, 12, 3))
    dense(layers.GlobalMaxPooling2D()(conv(elsewhere)))
    pixels = keras.Input((6, 6, 3))
    model = keras.Model(pixels, dense(layers.GlobalAveragePooling2D()(conv(pixels))))
    assert prune_channels(model, 0.5).count_params() == 8 * 28 + 2 * 9
    assert model.count_params() == 16 * 28 + 2 * 17


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, math.nan])
def test_ratios_outside_are_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"prune ratio {ratio}: .*at least 0 and below 1"):
        prune_channels(chain_with(), ratio)


def test_multiples_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple 0"):
        prune_channels(chain_with(), 0.5, multiple=0)


# ------------------------------------------------------------------------------------------- TensorFlow Lite


@pytest.fixture(scope="module")
def int8_file(trained: keras.Model) -> bytes:
    return to_tflite(trained, "int8", blobs(200)[0])


def agreement(model: keras.Model, file: bytes) -> float:
    images = blobs(200, seed=5)[0]
    return float((TfliteModel(file).predict(images).argmax(-1) == np.argmax(model(images), -1)).mean())


def test_float32_files_compute_what_keras_computes(trained: keras.Model) -> None:
    images = blobs(20, seed=5)[0]
    logits = TfliteModel(to_tflite(trained, "float32")).predict(images)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, trained(images), atol=1e-4)


def test_smaller_files_decide_as_keras_does(trained: keras.Model, int8_file: bytes) -> None:
    float_bytes = len(to_tflite(trained, "float32"))
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


@pytest.mark.parametrize(("low", "high"), [(60, 140), (0, 90), (100, 255)])
def test_pixels_go_straight_in_whatever_the_calibration_shows(trained: keras.Model, low: int, high: int) -> None:
    images = np.clip(blobs(200)[0], low, high)
    file = to_tflite(trained, "int8", images)
    assert Interpreter(model_content=file).get_input_details()[0]["quantization"] == (1.0, 0)
    assert images.min() == low  # the caller's images are untouched
    assert images.max() == high


def test_int8_needs_enough_training_images(trained: keras.Model) -> None:
    images = blobs(200)[0]
    with pytest.raises(ValueError, match="199 calibration images: int8 needs at least 200 from the training set"):
        to_tflite(trained, "int8", images[:199])
    with pytest.raises(ValueError, match="0 calibration images: int8 needs at least 1"):
        to_tflite(trained, "int8", images[:0], minimum_calibration=0)
    with pytest.raises(ValueError, match=r"calibration is None: int8 needs uint8 training images \[N, 20, 20, 3\]"):
        to_tflite(trained, "int8")
    with pytest.raises(ValueError, match=r"calibration is float32 \[200, 20, 20, 3\]"):
        to_tflite(trained, "int8", images.astype(np.float32))
    with pytest.raises(ValueError, match=r"calibration is uint8 \[200, 10, 20, 3\]"):
        to_tflite(trained, "int8", images[:, :10])
    assert agreement(trained, to_tflite(trained, "int8", images[:30], minimum_calibration=30)) > 0.9


def test_unknown_kinds_are_refused(trained: keras.Model) -> None:
    with pytest.raises(ValueError, match="unknown kind 'int4': allowed are float32, float16, dynamic, int8"):
        to_tflite(trained, "int4")  # type: ignore[arg-type]


def test_converting_and_running_print_nothing(trained: keras.Model, capfd: pytest.CaptureFixture[str]) -> None:
    TfliteModel(to_tflite(trained, "int8", blobs(200)[0])).predict(blobs(3)[0])
    os.write(1, b"after")
    assert capfd.readouterr() == ("after", "")


def test_a_failed_conversion_says_what_the_converter_said(capfd: pytest.CaptureFixture[str]) -> None:
    pixels = keras.Input((4, 4, 3))
    model = keras.Model(pixels, layers.Lambda(lambda x: tf.linalg.svd(x, compute_uv=False))(pixels))
    with pytest.raises(Exception, match="Svd") as caught:
        to_tflite(model, "float32")
    assert "Svd" in "".join(caught.value.__notes__)
    assert capfd.readouterr() == ("", "")


def small_model(activation: str) -> keras.Model:
    pixels = keras.Input((20, 20, 3))
    x = layers.Activation(activation)(layers.MaxPooling2D(5)(pixels))
    return keras.Model(pixels, layers.Dense(2)(layers.Flatten()(x)), name="small")


def test_layers_without_integer_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the converter left 2 tensors in float32 \(.*use float16 or dynamic"):
        to_tflite(small_model("squareplus"), "int8", blobs(200)[0])


def test_models_that_overflow_are_refused() -> None:
    with pytest.raises(ValueError, match="model 'small' overflows on calibration images"):
        to_tflite(small_model("exponential"), "int8", blobs(200)[0])  # e**255
    diverged = small_model("relu")
    diverged.set_weights([weight * np.nan for weight in diverged.get_weights()])
    with pytest.raises(ValueError, match="model 'small' has weights that are not finite"):
        to_tflite(diverged, "float32")


@pytest.mark.parametrize("batch_size", [1, 7, 32, 100])
def test_logits_do_not_depend_on_the_batch(int8_file: bytes, batch_size: int) -> None:
    runner, images = TfliteModel(int8_file), blobs(33)[0]
    np.testing.assert_array_equal(
        runner.predict(images, batch_size=batch_size),
        [TfliteModel(int8_file).predict(image[None])[0] for image in images],
    )


def test_files_that_quantize_pixels_otherwise_are_fed_right(trained: keras.Model) -> None:
    images = blobs(200)[0]
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
    with pytest.raises(ValueError, match=r"broken\.tflite': no TensorFlow Lite model"):
        TfliteModel(tmp_path / "broken.tflite")
    with pytest.raises(ValueError, match="0 bytes: no TensorFlow Lite model"):
        TfliteModel(b"")
    with pytest.raises(FileNotFoundError):
        TfliteModel(tmp_path / "none.tflite")
    rows = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="no image classifier"):
        TfliteModel(to_tflite(rows, "float32"))
    runner = TfliteModel(int8_file)
    with pytest.raises(
        ValueError, match=r"images are float32 \[2, 20, 20, 3\]: this model takes uint8 \[B, 20, 20, 3\]"
    ):
        runner.predict(np.zeros((2, 20, 20, 3), np.float32))
    with pytest.raises(ValueError, match=r"images are uint8 \[20, 20, 3\]"):
        runner.predict(np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(ValueError, match="batch size 0"):
        runner.predict(np.zeros((2, 20, 20, 3), np.uint8), batch_size=0)


# ------------------------------------------------------------------------------------------- compressing


@pytest.fixture(scope="module")
def compressed(trained: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Compression:
    out = tmp_path_factory.mktemp("compressed") / "deep" / "out"
    before = weights_of(trained)
    recipe = Recipe(prune=0.5, quantize="int8", finetune_epochs=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stages, "MOST_LOST", 0.1)  # half a point is less than one of these few images
        compression = compress_on(trained, batches(320), batches(150, seed=5), recipe, out=out, meter=Meter())
    for weight, same in zip(before, trained.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)
    return compression


@pytest.mark.slow
def test_compressing_prunes_tunes_quantizes_and_keeps_a_control(compressed: Compression, trained: keras.Model) -> None:
    names = ["baseline", "control", "pruned-float32", "control-int8", "pruned-int8"]
    assert [variant.name for variant in compressed.model_files] == names
    baseline, control, pruned, control_int8, int8 = compressed.model_files
    assert compressed.widths == {"conv_1": (32, 16), "conv_2": (64, 32), "conv_3": (64, 32), "dense": (64, 32)}
    assert control_int8.macs == control.macs == baseline.macs == count_macs(trained)
    assert int8.macs == pruned.macs < 0.35 * baseline.macs
    assert pruned.parameters < 0.35 * baseline.parameters
    assert int8.file_bytes < 0.5 * pruned.file_bytes
    assert control_int8.file_bytes < 0.5 * control.file_bytes
    for variant in compressed.model_files:
        assert variant.images == 150
        assert variant.accuracy >= 0.9
        assert compressed.accuracies[variant.name] == (variant.accuracy,)
        assert variant.name not in compressed.accuracy_lost
        assert variant.path.parent == compressed.folder
        assert variant.path.stat().st_size == variant.file_bytes
    for tuned in (control, pruned):
        assert tuned.finetune_energy is not None
        assert tuned.finetune_energy.total_j > 0
    assert baseline.finetune_energy is None
    assert compressed.calibration_images == 200
    assert compressed.model_file("control") is control
    with pytest.raises(ValueError, match="no model file 'int8': choose one of baseline, control"):
        compressed.model_file("int8")


@pytest.mark.slow
def test_fine_tuning_changes_the_control_too(compressed: Compression, trained: keras.Model) -> None:
    images = blobs(10, seed=7)[0]
    baseline, control = (
        TfliteModel(compressed.model_file(name).path).predict(images) for name in ("baseline", "control")
    )
    np.testing.assert_allclose(baseline, trained(images), atol=1e-4)
    assert np.abs(baseline - control).max() > 0.01


@pytest.mark.slow
def test_the_folder_holds_what_was_compressed(compressed: Compression) -> None:
    files = {path.name for path in compressed.folder.iterdir()}
    assert files == {
        *("baseline.tflite", "control.tflite", "pruned-float32.tflite", "control-int8.tflite", "pruned-int8.tflite"),
        *("pruned-int8.keras", "compression.json"),
    }
    assert [path.name for path in compressed.folder.parent.iterdir()] == ["out"]
    record = json.loads((compressed.folder / "compression.json").read_text())
    assert record == {**compressed.to_json(), **{key: record[key] for key in ("format", "versions", "files")}}
    assert record["format"] == "joulecache.compression/1"
    assert set(record["files"]) == files
    assert record["versions"]["tensorflow"] == tf.__version__
    assert record["recipe"] == {
        "prune": 0.5,
        "macs": None,
        "criterion": "l1",
        "protected": [],
        "sparsity": 0.0,
        "l1": 0.0,
        "clusters": None,
        "cluster_per": "layer",
        "quantize": "int8",
        "finetune_epochs": 1,
    }
    assert record["lost"] == {}
    images = blobs(10)[0]
    np.testing.assert_allclose(
        load_model(compressed.folder / "pruned-int8.keras")(images),
        TfliteModel(compressed.folder / "pruned-float32.tflite").predict(images),
        atol=1e-4,
    )
    with_optimizer = 4 * 3 * compressed.model_file("pruned-float32").parameters
    assert (compressed.folder / "pruned-int8.keras").stat().st_size < with_optimizer


def test_quantizing_alone_needs_no_tuning_and_replaces_what_was_there(trained: keras.Model, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    train, test = batches(90), batches(60, seed=5)
    first = compress_on(trained, train, test, Recipe(quantize="float16"), out=out)
    assert [variant.name for variant in first.model_files] == ["baseline", "baseline-float16"]
    assert [variant.finetune_energy for variant in first.model_files] == [None, None]
    assert (first.calibration_images, first.widths) == (0, {})
    (out / "notes.txt").write_text("mine")
    second = compress_on(trained, train, test, Recipe(quantize="int8", finetune_epochs=0), out=out)
    assert second.calibration_images == 90  # all that there are
    assert second.model_file("baseline-int8").accuracy >= 0.9
    assert {path.name for path in out.iterdir()} == {
        *("baseline.tflite", "baseline-int8.tflite", "compression.json", "notes.txt"),
    }


@pytest.mark.parametrize("quantize", ["float16", "int8"])
def test_a_failure_leaves_nothing_behind(trained: keras.Model, tmp_path: Path, quantize: Quantization) -> None:
    def broken() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        yield blobs(4)
        raise RuntimeError("the disk is gone")

    spec = (tf.TensorSpec([None, 20, 20, 3], tf.uint8), tf.TensorSpec([None], tf.int64))
    test_data = tf.data.Dataset.from_generator(broken, output_signature=spec)
    with pytest.raises(tf.errors.UnknownError, match="the disk is gone"):
        compress_on(trained, batches(40, seed=1), test_data, Recipe(quantize=quantize), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_folders_of_others_are_not_written_to(trained: keras.Model, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "photos" / "compression.json").write_text('{"format": "another/1", "files": ["cat.jpg"]}')
    with pytest.raises(
        ValueError, match=r"photos' has files, and no compression\.json of ours: give a new or an empty"
    ):
        compress_on(trained, batches(40), batches(20, seed=1), HALF, out=tmp_path / "photos")
    with pytest.raises(ValueError, match=r"cat\.jpg' is a file: give a folder"):
        compress_on(trained, batches(40), batches(20, seed=1), HALF, out=tmp_path / "photos" / "cat.jpg")
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 0}, "0 seeds: give at least 1"),
        ({"train_data": batches(8).map(lambda x, y: (x[:, :10], y))}, "training data has images of 10x20x3, but"),
        ({"test_data": batches(8).repeat()}, "test data never ends"),
    ],
)
def test_bad_settings_are_refused_before_any_work(
    trained: keras.Model, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    given_data = {"train_data": batches(8), "test_data": batches(8, seed=1)}
    with pytest.raises(ValueError, match=message):
        compress_on(trained, recipe=HALF, out=tmp_path / "out", progress=never, **(given_data | settings))
    assert list(tmp_path.iterdir()) == []


def test_testing_on_the_training_data_is_refused(trained: keras.Model, tmp_path: Path) -> None:
    data = batches(8)
    with pytest.raises(ValueError, match="training and test data are the same"):
        compress_on(trained, data, data, HALF, out=tmp_path / "out")


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
        (lambda: chain_with(layers.Conv2DTranspose(2, 3, name="upwards")), "layer 'upwards' is a Conv2DTranspose"),
        (lambda: chain_with(Mine(name="doubling")), "layer 'doubling' is a Mine"),
        (lambda: keras.Sequential([keras.Input((20, 20, 3)), layers.Flatten()], name="none"), "'none' has no weights"),
        (of_any_size, "layer 'conv' puts out .*give the model a fixed image size"),
        (lambda: OfMyOwn(name="mine"), "model 'mine' has no fixed input"),
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
        (tmp_path / "notes.txt", r"notes\.txt' is not named like a Keras model file"),
        (tmp_path / "broken.keras", r"broken\.keras' cannot be loaded as a Keras model"),
        (mine, "model 'mine' has no fixed input"),
    ):
        with pytest.raises(ValueError, match=message):
            compress(model, tmp_path / "no cache", HALF, out=tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "broken.keras"}


# ------------------------------------------------------------------------------------------- calibrating


class Calibrated(Exception):
    """Carries the images, in place of all work."""


def calibrating(model: keras.Model, train: Any, test: Any, out: Path) -> NDArray[np.uint8]:
    """Return the images that a compression would calibrate on."""

    def stop(*arguments: Any, calibration: Any, **more: Any) -> Any:
        raise Calibrated(calibration)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(package, "make_forms", stop)
        with pytest.raises(Calibrated) as caught:
            compress_on(model, train, test, Recipe(quantize="int8"), out=out)
    images: NDArray[np.uint8] = caught.value.args[0]
    return images


def with_shared(count: int, shared: int, place: int = 0) -> tuple[Any, NDArray[np.uint8]]:
    """Training images, `shared` of which from `place` on are the first test images (those of seed 5)."""
    images, labels = blobs(count, seed=3)
    images[place : place + shared] = blobs(150, seed=5)[0][:shared]
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(32), images


@pytest.mark.parametrize(
    ("count", "shared", "place"), [(100, 0, 0), (100, 5, 40), (40, 2, 38), (300, 10, 0), (300, 100, 200), (1, 0, 0)]
)
def test_training_images_that_are_test_images_never_calibrate(
    trained: keras.Model, tmp_path: Path, count: int, shared: int, place: int
) -> None:
    train, images = with_shared(count, shared, place)
    found = calibrating(trained, train, batches(150, seed=5), tmp_path / "out")
    kept = np.delete(images, range(place, place + shared), axis=0)
    np.testing.assert_array_equal(found, kept[:200])
    assert list(tmp_path.iterdir()) == []


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
def test_calibrating_on_the_test_set_is_refused_before_any_work(
    trained: keras.Model, tmp_path: Path, count: int, shared: int, said: str
) -> None:
    train, _ = with_shared(count, shared)
    recipe = Recipe(prune=0.5, quantize="int8")
    with pytest.raises(ValueError, match=f"the calibration set overlaps the test set: {said} training images are test"):
        compress_on(trained, train, batches(150, seed=5), recipe, out=tmp_path / "out", progress=never)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- seeds


def tiny() -> keras.Model:
    keras.utils.set_random_seed(0)
    pixels = keras.Input((20, 20, 3))
    x = layers.Flatten()(layers.AveragePooling2D(5)(layers.Rescaling(1 / 255)(pixels)))
    x = layers.Dropout(0.2)(layers.Dense(16, activation="relu", name="hidden")(x))
    return keras.Model(pixels, layers.Dense(CLASSES, name="logits")(x), name="tiny")


@pytest.mark.slow
def test_further_seeds_add_accuracies_and_change_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    recipe = Recipe(prune=0.5, finetune_epochs=1)
    before = weights_of(model)
    made: list[tuple[int, dict[str, float]]] = []

    def make(model: keras.Model, recipe: Recipe, budget: Any, *arguments: Any, **more: Any) -> Any:
        forms, scores = make_forms(model, recipe, budget, *arguments, **more)
        made.append((budget.seed, {form.name: scored.accuracy for form, scored in zip(forms, scores, strict=True)}))
        return forms, scores

    monkeypatch.setattr(package, "make_forms", make)
    first, both = (
        compress_on(
            model,
            batches(160),
            batches(97, seed=5),
            recipe,
            out=tmp_path / out,
            seed=4,
            seeds=seeds,
            control=False,
        )
        for out, seeds in (("first", 1), ("both", 2))
    )
    assert [seed for seed, _ in made] == [4, 4, 5]
    for weight, same in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)
    names = [variant.name for variant in both.model_files]
    assert names == ["baseline", "pruned-float32"]
    for name in names:
        file = both.model_file(name).path
        assert file == tmp_path / "both" / f"{name}.tflite"
        assert file.read_bytes() == first.model_file(name).path.read_bytes()
        assert both.accuracies[name] == (made[1][1][name], made[2][1][name])
        assert both.model_file(name).accuracy == both.accuracies[name][0] == first.model_file(name).accuracy
    of_first, of_both = (load_model(tmp_path / out / "pruned-float32.keras") for out in ("first", "both"))
    for weight, same in zip(of_first.get_weights(), of_both.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)
    record = json.loads((tmp_path / "both" / "compression.json").read_text())
    assert record["accuracies"] == {name: list(each) for name, each in both.accuracies.items()}
    assert record["lost"] == {}  # without a control


def with_accuracies(accuracies: dict[str, tuple[float, ...]]) -> Compression:
    return Compression(
        folder=Path("out"),
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
    written: Any = json.loads(json.dumps(done.to_json()))
    assert written["lost"] == {name: list(done.accuracy_lost[name]) for name in ("small", "same")}
    assert with_accuracies({"control": (0.9, 0.9), "small": (0.8, 0.9)}).accuracy_lost["small"] == pytest.approx(
        (0.05, 0.05 - 12.7062047 * 0.05, 0.05 + 12.7062047 * 0.05)
    )
    assert with_accuracies({"control": (0.9,), "small": (0.8,)}).accuracy_lost == {}
    assert with_accuracies({"baseline": (0.9, 0.9), "small": (0.8, 0.8)}).accuracy_lost == {}


# ----------------------------------------------------------------------------------------------- folders


def test_records_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    outside = tmp_path / "precious.txt"
    outside.write_text("mine")
    out = tmp_path / "out"
    with staged_folder(out, "run.json") as folder:
        (folder / "a.bin").write_bytes(b"a")
        write_record(folder / "run.json", {})
    record = json.loads((out / "run.json").read_text())
    record["files"] += ["../precious.txt", str(outside)]
    (out / "run.json").write_text(json.dumps(record))
    with staged_folder(out, "run.json") as folder:
        write_record(folder / "run.json", {})
    assert {path.name for path in out.iterdir()} == {"run.json"}
    assert outside.read_text() == "mine"


def test_the_folder_of_now_can_be_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    with staged_folder(Path(), "run.json") as folder:
        assert folder.absolute().parent == tmp_path
        write_record(folder / "run.json", {})
    assert [path.name for path in out.iterdir()] == ["run.json"]


def test_discarding_takes_only_what_is_ours(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged_folder(out, "run.json") as folder:
        (folder / "a.bin").write_bytes(b"a")
        write_record(folder / "run.json", {})
    discard_folder(out, "other.json")
    assert (out / "a.bin").exists()
    (out / "notes.txt").write_text("mine")
    discard_folder(out, "run.json")
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    discard_folder(tmp_path / "none", "run.json")
