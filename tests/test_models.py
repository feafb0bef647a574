from __future__ import annotations

import difflib
import os
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from joulecache.pipelines.models import (
    MODELS,
    build_model,
    check_batches,
    compile_model,
    count_macs,
    load_model,
)


def batches(shape: tuple[int, ...] = (6, 20, 20, 3), dtype: str = "uint8", labels: Any = None) -> Any:
    images = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    labels = np.arange(shape[0]) % 2 if labels is None else labels
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)


def test_importing_leaves_keras_as_it_is() -> None:
    assert "TF_USE_LEGACY_KERAS" not in os.environ
    assert tf.keras.Model is keras.Model


def test_the_cnn_is_that_of_the_tutorial() -> None:
    model = build_model("cnn", (32, 32, 3), 10)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds[1] == "Rescaling"
    assert [kind for kind in kinds if kind in ("Conv2D", "MaxPooling2D", "Flatten", "Dense")] == [
        *("Conv2D", "MaxPooling2D") * 2,
        *("Conv2D", "Flatten", "Dense", "Dense"),
    ]
    assert [layer.kernel.shape[-1] for layer in model.layers if hasattr(layer, "kernel")] == [32, 64, 64, 64, 10]
    assert model.count_params() == 122_570  # as its tutorial prints
    assert not model.layers[-1].activation(np.float32(-3.0)) >= 0  # logits, not probabilities


def test_uint8_batches_go_straight_in() -> None:
    model = build_model("cnn", (20, 24, 3), 4)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), np.uint8)
    logits = model(pixels)
    assert logits.shape == (3, 4)
    assert logits.dtype == tf.float32
    np.testing.assert_array_equal(logits, model(pixels.astype(np.float32)))
    compile_model(model, 1e-3)
    model.fit(tf.data.Dataset.from_tensors((pixels, [0, 1, 2])), shuffle=False, verbose=0)


def test_initial_weights_come_from_the_global_seed() -> None:
    def first_weights(seed: int) -> Any:
        keras.utils.set_random_seed(seed)
        return build_model("cnn", (20, 20, 3), 2).get_weights()[0]

    np.testing.assert_array_equal(first_weights(1), first_weights(1))
    assert (first_weights(1) != first_weights(2)).any()


def test_the_smallest_image_of_the_cnn() -> None:
    assert build_model("cnn", (18, 30, 1), 2).output_shape == (None, 2)
    for shape in ((17, 30, 3), (30, 17, 3), (4, 4, 3)):
        with pytest.raises(ValueError, match=rf"images of {shape[0]}x{shape[1]} are too small.*at least 18x18"):
            build_model("cnn", shape, 2)


@pytest.mark.parametrize("shape", [(32, 32), (0, 32, 3), (32, 32, -1), (None, 32, 3), (32.0, 32, 3)])
def test_impossible_shapes_are_refused(shape: Any) -> None:
    with pytest.raises(ValueError, match=r"input shape .* give \(height, width, channels\)"):
        build_model("cnn", shape, 2)


def test_no_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="0 classes: a classifier needs at least 1"):
        build_model("cnn", (32, 32, 3), 0)


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'cmm': allowed are .*did you mean cnn\?"):
        build_model("cmm", (32, 32, 3), 2)
    assert difflib.get_close_matches("cmm", MODELS, n=1, cutoff=0.0) == ["cnn"]


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_model_files_are_models_too(tmp_path: Path, suffix: str) -> None:
    model = build_model("cnn", (20, 20, 3), 3)
    compile_model(model, 1e-3)
    path = tmp_path / f"mine{suffix}"
    model.save(path)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), np.uint8)
    for loaded in (load_model(str(path)), build_model(path, (20, 20, 3), 3)):
        np.testing.assert_array_equal(loaded(pixels), model(pixels))
        assert not loaded.compiled
    with pytest.raises(ValueError, match=r"images of 20x20x3 to 3 outputs, but the data has images of 24x20x3 in 3"):
        build_model(path, (24, 20, 3), 3)
    with pytest.raises(ValueError, match=r"to 3 outputs, but the data has .* in 4 classes"):
        build_model(path, (20, 20, 3), 4)


def test_files_that_are_no_models_are_named(tmp_path: Path) -> None:
    model = build_model("cnn", (20, 20, 3), 3)
    garbage, h5, other_zip = (tmp_path / name for name in ("garbage.keras", "garbage.h5", "other.keras"))
    garbage.write_bytes(b"hello")
    h5.write_bytes(b"hello")
    with zipfile.ZipFile(other_zip, "w") as archive:
        archive.writestr("a.txt", "a")
    weights = tmp_path / "only.weights.h5"
    model.save_weights(weights)
    for path in (garbage, h5, other_zip, weights):
        with pytest.raises(ValueError, match=rf"{path.name}' cannot be loaded as a Keras model \(.*model\.save"):
            load_model(path)
    with pytest.raises(FileNotFoundError, match=r"no model file at .*none\.keras"):
        load_model(tmp_path / "none.keras")
    with pytest.raises(ValueError, match=r"model\.pt' is not named like a Keras model file: .*\.keras or \.h5"):
        load_model("model.pt")


def test_code_inside_a_model_file_does_not_run(tmp_path: Path) -> None:
    pixels = keras.Input((8, 8, 3))
    path = tmp_path / "code.keras"
    keras.Model(pixels, layers.Lambda(lambda x: x + 1)(pixels)).save(path)
    with pytest.raises(ValueError, match=r"cannot be loaded as a Keras model .*Lambda"):
        load_model(path)


def test_models_of_something_else_are_named(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((4,)), layers.Dense(2)]).save(tmp_path / "rows.keras")
    with pytest.raises(ValueError, match=r"rows\.keras' is no image classifier: .*\(None, 4\)"):
        load_model(tmp_path / "rows.keras")
    with pytest.warns(UserWarning, match="not yet been built"):
        keras.Sequential([layers.Dense(2)]).save(tmp_path / "unbuilt.keras")
    with pytest.raises(ValueError, match=r"unbuilt\.keras' holds a Sequential without fixed inputs"):
        load_model(tmp_path / "unbuilt.keras")


def test_compiling_picks_the_loss_of_the_models_output() -> None:
    keras.utils.set_random_seed(0)
    pixels = keras.Input((4, 4, 3))
    logits = layers.Dense(3)(layers.Flatten()(layers.Rescaling(1 / 255)(pixels)))
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    data = tf.data.Dataset.from_tensors((images, [0, 1, 2, 0, 1]))
    losses = []
    for outputs in (logits, layers.Softmax()(logits), layers.Activation("softmax")(logits)):
        model = keras.Model(pixels, outputs)
        compile_model(model, 1e-3)
        losses.append(model.evaluate(data, verbose=0, return_dict=True)["loss"])
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="on a GPU XLA pays")
def test_compiling_leaves_xla_off_on_cpu() -> None:
    model = build_model("cnn", (20, 20, 3), 2)
    compile_model(model, 0.25)
    assert model.jit_compile is False
    assert float(model.optimizer.learning_rate) == 0.25


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(5, 3),
        layers.Conv2D(4, (1, 3), strides=(1, 2)),
        layers.Conv2D(6, 2, dilation_rate=2, groups=2),
        layers.DepthwiseConv2D(3, depth_multiplier=2),
        layers.DepthwiseConv2D(2, strides=2),
        layers.Dense(7),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_macs_are_the_products_that_are_summed(layer: keras.Layer) -> None:
    pixels = keras.Input((9, 11, 4))
    model = keras.Model(pixels, layer(pixels))
    model.set_weights(
        [np.ones_like(weight) if weight.ndim > 1 else np.zeros_like(weight) for weight in model.get_weights()]
    )
    # with ones everywhere each output value is the number of its products
    assert count_macs(model) == int(np.sum(model(np.ones((1, 9, 11, 4), np.float32))))


def test_macs_of_models() -> None:
    # by hand: 900*27*32 + 169*288*64 + 16*576*64 + 1024*64 + 64*10
    assert count_macs(build_model("cnn", (32, 32, 3), 10)) == 4_548_608
    sequential = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization(), layers.Flatten()]
    )
    assert count_macs(sequential) == 64 * 27 * 4


def test_macs_name_what_they_cannot_count() -> None:
    pixels = keras.Input((8, 8, 3))
    strange = keras.Model(pixels, layers.Conv2DTranspose(2, 3, name="upwards")(pixels))
    with pytest.raises(ValueError, match="layer 'upwards' is a Conv2DTranspose"):
        count_macs(strange)
    shared = layers.Conv2D(3, 3, padding="same", name="again")
    with pytest.raises(ValueError, match="layer 'again' is used 2 times"):
        count_macs(keras.Model(pixels, shared(shared(pixels))))
    any_size = keras.Input((None, None, 3))
    with pytest.raises(ValueError, match=r"layer 'first' puts out .*give the model a fixed image size"):
        count_macs(keras.Model(any_size, layers.Conv2D(3, 3, name="first")(any_size)))
    with pytest.raises(ValueError, match="model 'unbuilt' has no fixed input"):
        count_macs(keras.Sequential([layers.Dense(2)], name="unbuilt"))


def test_batches_say_their_image_shape() -> None:
    model = build_model("cnn", (20, 20, 3), 2)
    assert check_batches(batches(), "data", model) == (20, 20, 3)
    spec = (tf.TensorSpec([None, None, None, 3], tf.uint8), tf.TensorSpec([None], tf.int32))
    varying = tf.data.Dataset.from_generator(lambda: iter(()), output_signature=spec)
    assert check_batches(varying, "data", model) == (None, None, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (batches(dtype="float32"), r"mine yields .*float32.*give batches of \(uint8 images"),
        (batches().unbatch(), "mine yields"),
        (batches().map(lambda images, _: images), "mine yields"),
        (batches(labels=np.eye(6, dtype=np.int64)), "mine yields .*integer labels"),
        (batches().repeat(), r"mine never ends: leave out \.repeat"),
        (batches().take(0), "mine is empty"),
        (batches((6, 24, 20, 3)), r"mine has images of 24x20x3, but the model takes 20x20x3"),
    ],
)
def test_other_data_is_refused(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_batches(data, "mine", build_model("cnn", (20, 20, 3), 2))
