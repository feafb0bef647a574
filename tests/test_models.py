from __future__ import annotations

import os
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from joulecache.pipelines.compressing.litert import TfliteModel
from joulecache.pipelines.compressing.tflite import to_tflite
from joulecache.pipelines.models.architectures import MODELS
from joulecache.pipelines.models.classifiers import build_model, load_model
from joulecache.pipelines.models.fitting import check_batches, compile_model, run_epochs
from joulecache.pipelines.models.macs import count_macs, macs_or_none


def batches(shape: tuple[int, ...] = (6, 20, 20, 3), dtype: str = "uint8", labels: Any = None) -> Any:
    images = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    labels = np.arange(shape[0]) % 2 if labels is None else labels
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)


@dataclass(frozen=True)
class Trained:
    """A named model of 32x32x3 and 10 classes, after two steps of training on `images`."""

    name: str
    model: keras.Model
    initial_weights: list[Any]
    history: dict[str, list[float]]
    images: Any


def labelled_images() -> tuple[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8), np.arange(8)


SLOW = ("mobilenet", "shufflenet")  # to build, and to train


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MODELS]
)
def trained(request: pytest.FixtureRequest) -> Trained:
    keras.utils.set_random_seed(0)
    model = build_model(request.param, (32, 32, 3), 10)
    initial_weights = model.get_weights()
    compile_model(model, 1e-3)
    model.run_eagerly = True  # tracing a graph takes many times as long as two steps
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0  # or the statistics after two steps would still be those of no data
    images, labels = labelled_images()
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    return Trained(request.param, model, initial_weights, run_epochs(model, data, epochs=1), images)


def profiled_macs(model: keras.Model) -> float:
    """Return the multiply-accumulates of one image as TensorFlow's profiler counts them, in the graph that runs."""
    graph = tf.function(lambda pixels: model(pixels, training=False)).get_concrete_function(
        tf.TensorSpec([1, *model.inputs[0].shape[1:]])
    )
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options |= {"output": "none", "account_type_regexes": ["Conv2D", "DepthwiseConv2dNative", "MatMul"]}
    operations: int = tf.compat.v1.profiler.profile(graph.graph, cmd="op", options=options).total_float_ops
    return operations / 2  # a product and a sum each


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
    assert not model.layers[-1].activation(np.float32(-3.0)) >= 0  # logits, not probabilities


def test_initial_weights_come_from_the_global_seed() -> None:
    def first_weights(seed: int) -> Any:
        keras.utils.set_random_seed(seed)
        return build_model("cnn", (20, 20, 3), 2).get_weights()[0]

    np.testing.assert_array_equal(first_weights(1), first_weights(1))
    assert (first_weights(1) != first_weights(2)).any()


@pytest.mark.parametrize("shape", [(32, 32), (0, 32, 3), (32, 32, -1), (None, 32, 3), (32.0, 32, 3)])
def test_impossible_shapes_are_refused(shape: Any) -> None:
    with pytest.raises(ValueError, match=r"input_shape must be \(height, width, channels\)"):
        build_model("cnn", shape, 2)
    with pytest.raises(ValueError, match=r"num_classes must be .* at least 1, got 0"):
        build_model("cnn", (32, 32, 3), 0)


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'cmm': expected .*did you mean 'cnn'\?"):
        build_model("cmm", (32, 32, 3), 2)
    every = "cnn, mlp, resnet8, mobilenet, shufflenet or a file ending in .keras or .h5"
    with pytest.raises(
        ValueError, match=rf"unknown model 'mobilnet:0.5': expected {every}; did you mean 'mobilenet'\?"
    ):
        build_model("mobilnet:0.5", (32, 32, 3), 2)


FIGURES = {  # parameters and multiply-accumulates at 32x32x3 and 10 classes
    "cnn": (122_570, 4_548_608),  # as its tutorial prints; 900*27*32 + 169*288*64 + 16*576*64 + 1024*64 + 64*10
    "mlp": (1_707_274, 1_706_496),
    "resnet8": (78_666, 12_501_632),  # as MLPerf Tiny has them
    "mobilenet": (221_114, 834_688),
    "shufflenet": (359_994, 815_392),
}


def test_named_models_cost_what_is_said(trained: Trained) -> None:
    assert list(FIGURES) == list(MODELS)
    assert (trained.model.count_params(), count_macs(trained.model)) == FIGURES[trained.name]
    assert count_macs(trained.model) == profiled_macs(trained.model)


def test_named_models_are_classifiers_of_pixels(trained: Trained) -> None:
    model, last = trained.model, trained.model.layers[-1]
    assert (model.inputs[0].shape, model.inputs[0].dtype) == ((None, 32, 32, 3), "float32")
    assert (model.output_shape, last.name, type(last).__name__) == ((None, 10), "logits", "Dense")
    assert last.activation is keras.activations.linear
    assert [type(layer).__name__ for layer in model.layers[:2]] == ["InputLayer", "Rescaling"]
    darkest, brightest = (float(model.layers[1](tf.constant([pixel]))[0]) for pixel in (0.0, 255.0))
    assert (darkest, brightest) == pytest.approx((-1 if trained.name == "mobilenet" else 0, 1))


def test_named_models_learn(trained: Trained) -> None:
    assert np.isfinite(trained.history["loss"]).all()
    # a weight that stays as it was is one that no gradient, or no statistic, reaches
    stuck = [
        variable.path
        for variable, before in zip(trained.model.weights, trained.initial_weights, strict=True)
        if (np.asarray(variable.value) == before).all()
    ]
    assert stuck == []


@pytest.mark.slow
def test_named_models_come_back_from_their_files(trained: Trained, tmp_path: Path) -> None:
    logits = np.asarray(trained.model(trained.images))
    # slices of tensors come back from .keras alone: shufflenet, which splits channels, must do without them
    for suffix in (".keras", ".h5") if trained.name == "shufflenet" else (".keras",):
        trained.model.save(tmp_path / f"mine{suffix}")
        loaded = build_model(tmp_path / f"mine{suffix}", (32, 32, 3), 10)
        np.testing.assert_array_equal(loaded(trained.images), logits)
        assert count_macs(loaded) == count_macs(trained.model)


def check_tflite(model: keras.Model, images: Any) -> None:
    logits = np.asarray(model(images))
    largest = np.abs(logits).max()
    assert np.ptp(logits, axis=0).max() > 0.01 * largest  # images differ by far more than what is allowed
    lite = TfliteModel(to_tflite(model, "float32"))
    np.testing.assert_allclose(lite.predict(images), logits, rtol=0, atol=1e-4 * largest)


def test_named_models_become_tflite(trained: Trained) -> None:
    model = trained.model
    # converting all of these takes 4 and 8 s, and their first blocks hold every kind of layer that they have
    end = {"mobilenet": "conv_pw_3_relu", "shufflenet": "stage_2_block_2"}.get(trained.name)
    if end:
        model = keras.Model(model.inputs[0], layers.GlobalAveragePooling2D()(model.get_layer(end).output))
    check_tflite(model, trained.images)


@pytest.mark.slow
def test_the_whole_of_named_models_becomes_tflite(trained: Trained) -> None:
    check_tflite(trained.model, trained.images)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8", "mobilenet", "shufflenet"])
def test_named_models_train_as_graphs_and_become_int8(name: str) -> None:
    images, labels = labelled_images()
    model = build_model(name, (32, 32, 3), 10)
    compile_model(model, 1e-3)
    history = run_epochs(model, tf.data.Dataset.from_tensor_slices((images, labels)).batch(4), epochs=1)
    assert np.isfinite(history["loss"]).all()
    # what int8 does not support, to_tflite refuses
    assert TfliteModel(to_tflite(model, "int8", images, minimum_calibration=1)).predict(images).shape == (8, 10)


@pytest.mark.parametrize(
    ("name", "classes", "trainable", "macs"),
    [
        # Ma et al. say 2.3 million weights and 146 million products; torchvision has just these many weights
        ("shufflenet:1", 1000, 2_278_604, 146e6),
        # Howard et al. say 4.2 and 569 million
        ("mobilenet:1.0", 1000, 4_231_976, 569e6),
    ],
)
def test_models_of_papers_cost_what_these_say(name: str, classes: int, trainable: int, macs: float) -> None:
    model = build_model(name, (224, 224, 3), classes)
    statistics = sum(weight.shape.num_elements() for weight in model.non_trainable_weights)
    assert model.count_params() - statistics == trainable
    assert count_macs(model) == pytest.approx(macs, rel=0.015)


@pytest.mark.parametrize(
    ("name", "smallest"), [("cnn", 18), ("mlp", 1), ("resnet8", 4), ("mobilenet:0.50", 32), ("shufflenet", 32)]
)
def test_small_and_odd_images_of_named_models(name: str, smallest: int) -> None:
    model = build_model(name, (smallest, smallest + 5, 2), 3)
    assert np.isfinite(model(np.full((2, smallest, smallest + 5, 2), 255, np.uint8))).all()
    for height, width in ((smallest - 1, 40), (40, smallest - 1)) if smallest > 1 else ():
        with pytest.raises(
            ValueError, match=rf"images of {height}x{width} are too small.* at least {smallest}x{smallest}"
        ):
            build_model(name, (height, width, 3), 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mobilenet:0.3",
            r"the width of 'mobilenet' must be one of 0\.25, 0\.5, 0\.75, 1, as in mobilenet:1, got 'mobilenet:0\.3'",
        ),
        ("shufflenet:", "must be one of 0.5, 1, 1.5, 2, as in shufflenet:2, got 'shufflenet:'"),
        ("shufflenet:wide", "got 'shufflenet:wide'"),
        ("shufflenet:nan", "got 'shufflenet:nan'"),
        ("cnn:0.5", "model 'cnn' has only one width: write cnn"),
    ],
)
def test_other_widths_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(name, (32, 32, 3), 2)


def test_shufflenet_convolves_one_half_and_shuffles_it_with_the_other() -> None:
    model = build_model("shufflenet", (32, 32, 3), 2)
    before, after = (model.get_layer(f"stage_2_block_{block}").output for block in (1, 2))
    convolved = model.get_layer("stage_2_block_2_conv_1").input
    x = np.random.default_rng(0).normal(size=(2, *before.shape[1:])).astype(np.float32)
    given, shuffled = keras.Model(before, [convolved, after])(x)
    np.testing.assert_array_equal(given, x[..., 24:])
    np.testing.assert_array_equal(shuffled[..., ::2], x[..., :24])
    assert (np.asarray(shuffled[..., 1::2]) >= 0).all()


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
    with pytest.raises(
        ValueError, match=r"the data has images of 24x20x3 in 3 classes, but .* maps 20x20x3 to 3 outputs"
    ):
        build_model(path, (24, 20, 3), 3)
    with pytest.raises(ValueError, match=r"in 4 classes, but .* to 3 outputs"):
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
        with pytest.raises(
            ValueError, match=rf"{path.name}' cannot be loaded as a Keras model: .*; write it with model\.save"
        ):
            load_model(path)
    with pytest.raises(FileNotFoundError, match=r"no model file .*none\.keras"):
        load_model(tmp_path / "none.keras")
    with pytest.raises(ValueError, match=r"must end in \.keras or \.h5, got 'model\.pt'"):
        load_model("model.pt")


def test_code_inside_a_model_file_does_not_run(tmp_path: Path) -> None:
    pixels = keras.Input((8, 8, 3))
    ran = tmp_path / "ran"
    for path in (tmp_path / "code.keras", tmp_path / "code.h5"):
        keras.Model(pixels, layers.Lambda(lambda x: x + 1)(pixels)).save(path)
        with pytest.raises(
            ValueError, match=r"cannot be loaded as a Keras model: it has a Lambda layer, whose Python code"
        ):
            load_model(path)
        path.write_bytes(pickle.dumps(_Runs(ran)))
        with pytest.raises(ValueError, match="cannot be loaded as a Keras model: it is a pickle, which would run code"):
            load_model(path)
    assert not ran.exists()


class _Runs:
    """What unpickling creates a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


class Doubling(layers.Layer):  # type: ignore[misc]
    def call(self, pixels: Any) -> Any:
        return pixels * 2


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_layers_that_cannot_be_loaded_are_named_in_one_line(tmp_path: Path, suffix: str) -> None:
    pixels = keras.Input((8, 8, 3))
    keras.Model(pixels, layers.Flatten()(Doubling()(pixels))).save(tmp_path / f"custom{suffix}")
    with pytest.raises(ValueError, match=r"custom.* it has the custom layer or function 'Doubling'; .*") as refused:
        load_model(tmp_path / f"custom{suffix}")
    assert "\n" not in str(refused.value)


def test_layers_of_another_backend_are_named(tmp_path: Path) -> None:
    pixels = keras.Input((8, 8, 3))
    keras.Model(pixels, layers.Flatten()(pixels)).save(tmp_path / "own.keras")
    for kind in ("TorchModuleWrapper", "JaxLayer"):
        with (
            zipfile.ZipFile(tmp_path / "own.keras") as given,
            zipfile.ZipFile(tmp_path / "other.keras", "w") as changed,
        ):
            for name in given.namelist():
                changed.writestr(name, given.read(name).replace(b'"Flatten"', f'"{kind}"'.encode()))
        with pytest.raises(ValueError, match="it has a layer of another framework"):
            load_model(tmp_path / "other.keras")


def test_models_of_something_else_are_named(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((4,)), layers.Dense(2)]).save(tmp_path / "rows.keras")
    with pytest.raises(ValueError, match=r"rows\.keras' is not an image classifier: .*\(None, 4\)"):
        load_model(tmp_path / "rows.keras")
    with pytest.warns(UserWarning, match="not yet been built"):
        keras.Sequential([layers.Dense(2)]).save(tmp_path / "unbuilt.keras")
    with pytest.raises(ValueError, match=r"unbuilt\.keras' is a Sequential without fixed inputs"):
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
        model.run_eagerly = True
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
        layers.Conv2DTranspose(5, 3, strides=3),
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


def test_macs_of_separable_convolutions_are_those_of_their_two_parts() -> None:
    pixels = keras.Input((9, 11, 4))
    whole = layers.SeparableConv2D(5, 3, strides=2, depth_multiplier=2)(pixels)
    parts = layers.Conv2D(5, 1)(layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2)(pixels))
    assert whole.shape == parts.shape
    assert count_macs(keras.Model(pixels, whole)) == count_macs(keras.Model(pixels, parts)) == 20 * (72 + 40)


def test_slices_and_sums_have_no_macs() -> None:
    pixels = keras.Input((8, 8, 4))
    halves = layers.Cropping3D(((0, 0), (0, 0), (0, 1)))(layers.Reshape((8, 8, 2, 2))(pixels))
    x = layers.Concatenate()([layers.Reshape((8, 8, 2))(halves), pixels[..., 2:]])
    x = layers.Multiply()([layers.Permute((2, 1, 3))(x), pixels]) + keras.ops.relu(pixels)
    assert count_macs(keras.Model(pixels, layers.Dense(3)(layers.Flatten()(x)))) == 8 * 8 * 4 * 3


def test_augmentation_and_nested_models_are_counted() -> None:
    augmentation = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1), layers.GaussianNoise(0.1)])
    any_size = keras.Input((None, None, 3))
    backbone = keras.Model(any_size, layers.Conv2D(5, 3)(keras.ops.hard_silu(any_size)))
    head = keras.Sequential([layers.Flatten(), layers.Dropout(0.1), layers.Dense(2)])
    model = keras.Sequential([keras.Input((8, 8, 3)), augmentation, layers.RandomZoom(0.1), backbone, head])
    assert count_macs(model) == macs_or_none(model) == 36 * (27 * 5 + 5 * 2)


def test_macs_name_what_they_cannot_count() -> None:
    pixels = keras.Input((8, 8, 3))
    strange = keras.Model(pixels, layers.EinsumDense("bhwc,cd->bhwd", (8, 8, 2), name="einsum")(pixels))
    with pytest.raises(ValueError, match="layer 'einsum' is a EinsumDense"):
        count_macs(strange)
    assert macs_or_none(strange) is None
    product = keras.Model(pixels, keras.ops.matmul(pixels, keras.ops.transpose(pixels, (0, 1, 3, 2))))
    with pytest.raises(ValueError, match=r"layer 'matmul.*' is a Matmul"):
        count_macs(product)
    shared = layers.Conv2D(3, 3, padding="same", name="again")
    with pytest.raises(ValueError, match="layer 'again' is used 2 times"):
        count_macs(keras.Model(pixels, shared(shared(pixels))))
    any_size = keras.Input((None, None, 3))
    with pytest.raises(ValueError, match=r"layer 'first' has output shape .*fix the image size"):
        count_macs(keras.Model(any_size, layers.Conv2D(3, 3, name="first")(any_size)))
    with pytest.raises(ValueError, match="model 'unbuilt' has no fixed input"):
        count_macs(keras.Sequential([layers.Dense(2)], name="unbuilt"))


def test_batches_say_their_image_shape() -> None:
    model = build_model("cnn", (20, 20, 3), 2)
    assert check_batches(batches(), "data", model) == (20, 20, 3)
    spec = (tf.TensorSpec([None, None, None, 3], tf.uint8), tf.TensorSpec([None], tf.int32))
    varying = tf.data.Dataset.from_generator(lambda: iter(()), output_signature=spec)
    assert check_batches(varying, "data", model) == (None, None, 3)


def test_labels_of_other_classes_are_refused() -> None:
    images, model = np.zeros((4, 20, 20, 3), np.uint8), build_model("mlp", (20, 20, 3), 2)
    three, two = (tf.data.Dataset.from_tensors((images, np.zeros((4, k), np.float32))) for k in (3, 2))
    check_batches(two, "data", model)
    check_batches(two, "data", build_model("mlp", (20, 20, 3), 1))
    with pytest.raises(ValueError, match="data has labels of 3 classes, but the model has 2 outputs"):
        check_batches(three, "data", model)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (batches(dtype="float32"), r"mine must be batches of \(uint8 images.*float32"),
        (batches().unbatch(), "mine must be batches"),
        (batches().map(lambda images, _: images), "mine must be batches"),
        (batches(labels=np.eye(6, dtype=np.int64)), "mine must be batches of .*integer labels"),
        (batches().repeat(), r"mine never ends: remove \.repeat"),
        (batches().take(0), "mine is empty"),
        (batches((6, 24, 20, 3)), r"mine has images of 24x20x3, but the model expects 20x20x3"),
    ],
)
def test_other_data_is_refused(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_batches(data, "mine", build_model("cnn", (20, 20, 3), 2))
