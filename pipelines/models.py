"""The image classifiers that are trained, what they cost in parameters and operations, how they are loaded."""

from __future__ import annotations

import difflib
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import tensorflow as tf
from keras import layers

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"joulecache runs Keras on TensorFlow, but KERAS_BACKEND is {keras.backend.backend()!r}: "
        "unset KERAS_BACKEND, or set it to 'tensorflow'"
    )

MODEL_SUFFIXES = (".keras", ".h5")

_SMALLEST_CNN = 18  # three 3x3 convolutions and two halvings: 18 -> 16 -> 8 -> 6 -> 3 -> 1


def _cnn(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    if min(input_shape[:2]) < _SMALLEST_CNN:
        raise ValueError(
            f"images of {_times(input_shape[:2])} are too small for 'cnn', whose convolutions and poolings need "
            f"at least {_SMALLEST_CNN}x{_SMALLEST_CNN}: resize to that or larger"
        )
    pixels = keras.Input(input_shape, name="pixels")
    x = layers.Rescaling(1 / 255)(pixels)
    x = layers.Conv2D(32, 3, activation="relu", name="conv_1")(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(64, 3, activation="relu", name="conv_2")(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(64, 3, activation="relu", name="conv_3")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(64, activation="relu", name="dense")(x)
    return keras.Model(pixels, layers.Dense(num_classes, name="logits")(x), name="cnn")


MODELS: dict[str, Callable[[tuple[int, int, int], int], keras.Model]] = {"cnn": _cnn}
"""Name to builder; a builder takes (H, W, C) and the number of classes, and returns a model of logits."""


def build_model(name: str | os.PathLike[str], input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Build a classifier by name, or load one from a `.keras` or `.h5` file; uncompiled.

    It takes [B, H, W, C] pixels of 0 to 255 and returns [B, num_classes] logits. Its input is declared float32, and
    uint8 batches go straight in: Keras casts them inside the compiled step, on the device. Initial weights come from
    Keras' global seed. Raises ValueError for an unknown name, for a shape or a number of classes that the model
    cannot have, and for a file of another shape; FileNotFoundError where there is no file.
    """
    if len(input_shape) != 3 or any(not isinstance(size, int) or size < 1 for size in input_shape):
        raise ValueError(f"input shape {input_shape!r}: give (height, width, channels), each at least 1")
    if num_classes < 1:
        raise ValueError(f"{num_classes} classes: a classifier needs at least 1")
    if str(name).endswith(MODEL_SUFFIXES):
        model = load_model(name)
        if model.inputs[0].shape[1:] != tuple(input_shape) or model.outputs[0].shape[1:] != (num_classes,):
            raise ValueError(
                f"{str(name)!r} maps images of {_times(model.inputs[0].shape[1:])} to "
                f"{_times(model.outputs[0].shape[1:])} outputs, but the data has images of {_times(input_shape)} "
                f"in {num_classes} classes: give a model of that shape"
            )
        return model
    builder = MODELS.get(str(name))
    if builder is None:
        close = difflib.get_close_matches(str(name), MODELS, n=1, cutoff=0.0)
        raise ValueError(
            f"unknown model {str(name)!r}: allowed are {', '.join(MODELS)}, or a file ending in "
            f"{' or '.join(MODEL_SUFFIXES)}; did you mean {close[0]}?"
        )
    return builder(input_shape, num_classes)


def load_model(path: str | os.PathLike[str]) -> keras.Model:
    """Load a Keras model file (`.keras`, `.h5`), uncompiled.

    Code inside the file (Python lambdas) is refused. Raises FileNotFoundError where there is no file; ValueError where
    it is no Keras model, holds layers that Keras does not know, or is no image classifier of one input and one output.
    """
    file = Path(path)
    allowed = " or ".join(MODEL_SUFFIXES)
    if file.suffix not in MODEL_SUFFIXES:
        raise ValueError(f"{str(file)!r} is not named like a Keras model file: give one that ends in {allowed}")
    if not file.is_file():
        raise FileNotFoundError(f"no model file at {str(file)!r}: give a Keras model saved as {allowed}")
    try:
        model = keras.saving.load_model(file, compile=False)
    except (ValueError, TypeError, KeyError, OSError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{str(file)!r} cannot be loaded as a Keras model ({reason}): give one saved with model.save()"
        ) from error
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise ValueError(
            f"{str(file)!r} holds a {type(model).__name__} without fixed inputs: save a built functional or "
            "sequential model"
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1 or len(model.inputs[0].shape) != 4:
        raise ValueError(
            f"{str(file)!r} is no image classifier: it has inputs {[tensor.shape for tensor in model.inputs]} and outputs "
            f"{[tensor.shape for tensor in model.outputs]}, and needs one input of [B, H, W, C] and one output"
        )
    return model


def check_batches(
    data: tf.data.Dataset, what: str, model: keras.Model | None = None
) -> tuple[int | None, int | None, int | None]:
    """Return the image shape (H, W, C) of batches that can train or test a classifier.

    They are finite and hold uint8 images [B, H, W, C], of the model's input shape where one is given, and integer labels
    [B] or soft ones [B, K]. Others raise ValueError; `what` names the data in it.
    """
    spec = data.element_spec
    parts = list(spec) if isinstance(spec, tuple) else [spec]
    ranks = [getattr(part, "shape", tf.TensorShape(None)).rank for part in parts]
    if (
        ranks not in ([4, 1], [4, 2])
        or parts[0].dtype != tf.uint8
        or not (parts[1].dtype.is_integer if ranks == [4, 1] else parts[1].dtype.is_floating)
    ):
        raise ValueError(
            f"{what} yields {spec}: give batches of (uint8 images [B, H, W, C], integer labels [B] or soft ones [B, K]); models "
            "scale the pixels themselves, so leave to_float and normalize out of the chain"
        )
    if data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"{what} never ends: leave out .repeat()")
    if data.cardinality() == 0:
        raise ValueError(f"{what} is empty: give at least one batch")
    shape: tuple[int | None, int | None, int | None] = tuple(parts[0].shape[1:])
    if model is not None and any(
        size != wanted and None not in (size, wanted)
        for size, wanted in zip(shape, model.inputs[0].shape[1:], strict=True)
    ):
        raise ValueError(
            f"{what} has images of {_times(shape)}, but the model takes {_times(model.inputs[0].shape[1:])}: resize them"
        )
    return shape


def has_soft_labels(data: tf.data.Dataset) -> bool:
    """Say whether batches have a share per class as labels, rather than the number of the class."""
    return int(data.element_spec[1].shape.rank) == 2


def compile_model(model: keras.Model, learning_rate: float, *, soft_labels: bool = False) -> None:
    """Compile a classifier in place: Adam, cross-entropy on its logits (or its softmax), accuracy.

    XLA is left to Keras, which uses it on an accelerator alone. On CPU it doubles the CPU time of such a CNN (TensorFlow 2.21,
    2 Xeon cores, batch 64: from 0.37 to 0.79 ms per image at 32x32, from 1.6 to 3.6 at 64x64, beside seconds of compilation).
    """
    cross_entropy = keras.losses.CategoricalCrossentropy if soft_labels else keras.losses.SparseCategoricalCrossentropy
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss=cross_entropy(from_logits=not _ends_in_softmax(model)),
        metrics=["accuracy"],
        jit_compile="auto",
    )


def run_epochs(
    model: keras.Model,
    train_data: tf.data.Dataset,
    *,
    epochs: int,
    validation_data: tf.data.Dataset | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, list[float]]:
    """Run a compiled model's `fit` without output or false alarms; return its history, one value per epoch and name."""
    with warnings.catch_warnings():
        if tf.data.UNKNOWN_CARDINALITY in [
            int(data.cardinality()) for data in (train_data, validation_data) if data is not None
        ]:
            # Keras takes the end of such a dataset for an interruption, in every epoch
            warnings.filterwarnings("ignore", message="Your input ran out of data")
        fitted = model.fit(
            train_data,
            validation_data=validation_data,
            epochs=epochs,
            shuffle=False,  # Keras cannot shuffle a tf.data.Dataset, and by default warns that it does not
            verbose=0,
            callbacks=list(callbacks),
        )
    history: dict[str, list[float]] = fitted.history
    return history


def _ends_in_softmax(model: keras.Model) -> bool:
    last = model.layers[-1]
    return isinstance(last, layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax


_WITHOUT_MACS = (
    layers.InputLayer,
    layers.Rescaling,
    layers.Normalization,
    layers.BatchNormalization,
    layers.Activation,
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.Softmax,
    layers.Dropout,
    layers.SpatialDropout2D,
    layers.Flatten,
    layers.Reshape,
    layers.Permute,
    layers.Add,
    layers.Concatenate,
    layers.ZeroPadding2D,
    layers.Cropping2D,
    layers.UpSampling2D,
    layers.MaxPooling2D,
    layers.AveragePooling2D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling2D,
)


def count_macs(model: keras.Model) -> int:
    """Count the multiply-accumulates of one image: those of convolutions and dense layers, from their shapes.

    Biases, activations, pooling and normalisation count 0, as in MLPerf Tiny. Raises ValueError, by name, for a layer that
    is not known, is used more than once or has no fixed shape.
    """
    if not getattr(model, "inputs", None):
        raise ValueError(f"model {model.name!r} has no fixed input: build it from keras.Input")
    counted = [layer for layer in model.layers if type(layer) not in _WITHOUT_MACS]
    for layer in counted:
        if type(layer) not in (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense):
            raise ValueError(
                f"layer {layer.name!r} is a {type(layer).__name__}: multiply-accumulates are known for Conv2D, "
                "DepthwiseConv2D, Dense and layers without any"
            )
    # a sequential model's configuration lists no calls: it calls every layer once
    calls = {entry.get("name"): len(entry.get("inbound_nodes", "1")) for entry in model.get_config()["layers"]}
    total = 0
    for layer in counted:
        if calls.get(layer.name, 1) != 1:
            raise ValueError(f"layer {layer.name!r} is used {calls[layer.name]} times: give each use its own layer")
        outputs = layer.output.shape[1:]
        if None in outputs:
            raise ValueError(f"layer {layer.name!r} puts out {layer.output.shape}: give the model a fixed image size")
        # an output value sums over a window of its inputs: the kernel without the axes that only the outputs have
        window = layer.kernel.shape[: 2 if type(layer) is layers.DepthwiseConv2D else -1]
        total += math.prod(window) * math.prod(outputs)
    return total


def _times(shape: Sequence[int | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)
