"""Fine-tuning that sees int8's rounding: what is rounded, what is not, and that it helps where rounding hurts."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from numpy.typing import NDArray

from joulecache.pipelines.compressing.litert import TfliteModel
from joulecache.pipelines.compressing.quantization_aware import QuantizationAware, rounded_kernel
from joulecache.pipelines.compressing.tflite import to_tflite
from joulecache.pipelines.models.fitting import compile_model, run_epochs

Images = NDArray[np.uint8]


def network() -> keras.Model:
    """A small net with all that TensorFlow Lite folds: normalizations, activations, a branch that is added."""
    pixels = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 255)(pixels)
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="first")(x)
    x = layers.BatchNormalization(name="scales")(x)
    x = layers.ReLU(name="kept")(x)
    branch = layers.DepthwiseConv2D(3, padding="same", name="second")(x)
    branch = layers.BatchNormalization(name="branch")(branch)
    x = layers.Add(name="sum")([x, branch])
    x = layers.ReLU(name="last")(x)
    x = layers.Dropout(0.1)(x)
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    return keras.Model(pixels, layers.Dense(4, name="logits")(x))


@pytest.fixture(scope="module")
def pictures() -> tuple[Images, NDArray[np.int64]]:
    """Noise, dimmed in every other row, every other column, one channel, or nowhere: four classes."""
    draws = np.random.default_rng(0)
    labels, images = draws.integers(0, 4, 512), draws.integers(0, 200, (512, 16, 16, 3)).astype(np.uint8)
    images[labels == 0, ::2] //= 2
    images[labels == 1, :, ::2] //= 2
    images[labels == 2, ..., 0] //= 2
    return images, labels


def batches(pictures: tuple[Images, NDArray[np.int64]]) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(pictures).batch(32)


@pytest.fixture(scope="module")
def trained(pictures: tuple[Images, NDArray[np.int64]]) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = network()
    compile_model(model, 1e-2)
    run_epochs(model, batches(pictures), epochs=12)
    assert accuracy(logits(model, pictures[0]), pictures[1]) > 0.95
    return model


def logits(model: keras.Model, images: Images) -> Any:
    return model.predict(images.astype(np.float32), batch_size=128, verbose=0)


def accuracy(values: Any, labels: NDArray[np.int64]) -> float:
    return float((values.argmax(1) == labels).mean())


def int8(model: keras.Model, images: Images) -> Any:
    return TfliteModel(to_tflite(model, "int8", images[:200])).predict(images)


def twin(model: keras.Model) -> keras.Model:
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


kernels = st.lists(st.floats(-1e3, 1e3, width=32), min_size=12, max_size=12)


@settings(deadline=None)
@given(kernels)
def test_a_kernel_has_255_levels_in_each_channel(values: list[float]) -> None:
    kernel = np.array(values, np.float32).reshape(2, 2, 3)
    rounded = rounded_kernel(tf.constant(kernel), [0, 1]).numpy()
    for channel in range(3):
        most = np.abs(kernel[..., channel]).max()
        error = np.abs(rounded[..., channel] - kernel[..., channel]).max()
        assert error <= most / 127 / 2 * 1.001 + 1e-30
        if most > 1e-20:
            levels = rounded[..., channel] / (most / 127)
            assert np.abs(levels - np.round(levels)).max() < 1e-2


def test_gradients_pass_the_rounding() -> None:
    kernel = tf.Variable(np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 2, 3))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(3.0 * rounded_kernel(kernel, [0, 1]))
    assert (tape.gradient(loss, kernel).numpy() == 3.0).all()


def test_rounded_once_behind_what_is_folded() -> None:
    model = network()
    keras.Model(model.inputs, layers.Softmax()(model.get_layer("first").output))  # another reader does not matter
    ranges = {layer.name for layer in QuantizationAware(model).inner.layers if layer.name.endswith("_range")}
    stored = {"kept", "branch", "last", "pooled", "logits"}
    assert {name.removesuffix("_range") for name in ranges if not name.startswith("rescaling")} == stored
    assert len(ranges) == len(stored) + 1  # pixels, scaled


def test_ranges_follow_training_alone(pictures: tuple[Images, NDArray[np.int64]]) -> None:
    keras.utils.set_random_seed(0)
    exact = network()
    model = QuantizationAware(exact)
    pixels = pictures[0][:64].astype(np.float32)
    weights_alone = np.abs(model(pixels).numpy() - exact(pixels).numpy()).mean()
    assert 0 < weights_alone < 0.1 * np.abs(exact(pixels).numpy()).mean()
    kept = model.inner.get_layer("kept_range")
    assert [float(value) for value in kept.weights] == [0.0, 0.0, 0.0]
    model(pixels, training=True)
    low, high, seen = (float(value) for value in kept.weights)
    assert (low, seen) == (0.0, 1.0)
    assert high > 0
    values = model(pixels).numpy()
    assert len(np.unique(values)) <= 256  # the logits, too
    model(pixels / 100, training=True)
    assert 0.85 * high < float(kept.high) < high
    assert np.abs(model(pixels).numpy()[:1] - model(pixels[:1]).numpy()).max() < 1e-6  # whatever else is in a batch


@pytest.mark.slow
def test_its_error_is_that_of_the_file(trained: keras.Model, pictures: tuple[Images, NDArray[np.int64]]) -> None:
    images, _ = pictures
    model, tuned = QuantizationAware(trained), twin(trained)
    compile_model(model, 1e-4, head=model.head)
    run_epochs(model, batches(pictures), epochs=2)
    model.copy_weights_to(tuned)
    exact = logits(tuned, images)
    simulated = np.abs(logits(model, images) - exact).mean()
    converted = np.abs(int8(tuned, images) - exact).mean()
    assert 0.5 < simulated / converted < 2


@pytest.mark.slow
def test_training_learns_to_live_with_rounding(
    trained: keras.Model, pictures: tuple[Images, NDArray[np.int64]]
) -> None:
    images, labels = pictures
    keras.utils.set_random_seed(0)
    # so few levels that this small net is hurt: three of a weight, eight of an activation
    model = QuantizationAware(trained, weight_levels=1, activation_bits=3)
    compile_model(model, 0.0, head=model.head)
    run_epochs(model, batches(pictures), epochs=1)  # the ranges alone
    before = accuracy(logits(model, images), labels)
    compile_model(model, 3e-3, head=model.head)
    run_epochs(model, batches(pictures), epochs=4)
    assert before < 0.9
    assert accuracy(logits(model, images), labels) > before + 0.05


def test_the_model_is_copied_and_gets_its_weights_back() -> None:
    trained = network()
    before = [weight.copy() for weight in trained.get_weights()]
    model = QuantizationAware(trained)
    model.inner.get_layer("first").set_weights([np.zeros_like(trained.get_layer("first").get_weights()[0])])
    assert all((old == new).all() for old, new in zip(before, trained.get_weights(), strict=True))
    copy = twin(trained)
    model.copy_weights_to(copy)
    assert (copy.get_layer("first").get_weights()[0] == 0).all()
    assert (copy.get_layer("logits").get_weights()[0] == trained.get_layer("logits").get_weights()[0]).all()


def without_kernels() -> keras.Model:
    pixels = keras.Input((4, 4, 3))
    return keras.Model(pixels, layers.GlobalAveragePooling2D()(pixels))


def not_finite() -> keras.Model:
    model = network()
    model.get_layer("logits").set_weights([np.full((16, 4), np.nan), np.zeros(4)])
    return model


class Own(keras.Model):  # type: ignore[misc]
    """A model that is not functional."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (without_kernels, "has no Conv2D, DepthwiseConv2D or Dense layer"),
        (not_finite, "weights that are not finite"),
        (Own, "is not functional or not built"),
    ],
)
def test_models_that_it_cannot_have_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizationAware(make())


@pytest.mark.parametrize("ending", ["layer", "activation", "own"])
def test_probabilities_are_not_rounded_and_what_they_are_made_of_is(ending: str) -> None:
    pixels = keras.Input((8, 8, 3))
    x = layers.Flatten()(pixels)
    if ending == "own":
        outputs = layers.Dense(3, activation="softmax", name="last")(x)
    else:
        softmax = layers.Softmax(name="last") if ending == "layer" else layers.Activation("softmax", name="last")
        outputs = softmax(layers.Dense(3, name="logits")(x))
    names = {layer.name for layer in QuantizationAware(keras.Model(pixels, outputs)).inner.layers}
    assert "last_range" not in names
    assert ("logits_range" in names) == (ending != "own")
