"""The image classifiers that are trained: had by name or from a file, checked against their data, fitted."""

from __future__ import annotations

import difflib
import os
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import keras
import tensorflow as tf
from keras import layers

from joulecache.pipelines.models.architectures import MODELS, build_architecture
from joulecache.pipelines.models.macs import count_macs

__all__ = [
    "MODELS",
    "MODEL_SUFFIXES",
    "build_model",
    "check_batches",
    "compile_model",
    "count_macs",
    "ends_in_softmax",
    "has_soft_labels",
    "load_model",
    "run_epochs",
]

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"joulecache runs Keras on TensorFlow, but KERAS_BACKEND is {keras.backend.backend()!r}: "
        "unset KERAS_BACKEND, or set it to 'tensorflow'"
    )

MODEL_SUFFIXES = (".keras", ".h5")


def build_model(name: str | os.PathLike[str], input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Build a classifier by name, or load one from a `.keras` or `.h5` file; uncompiled.

    Names are those of MODELS: `cnn`, `mlp`, `resnet8`, `mobilenet`, `shufflenet`. The last two come in several widths,
    written behind a colon as in `mobilenet:0.5`; plain, they are the narrowest, 0.25 and 0.5.

    The model takes [B, H, W, C] pixels of 0 to 255 and returns [B, num_classes] logits. Its input is declared float32, and
    uint8 batches go straight in: Keras casts them inside the compiled step, on the device. Initial weights come from
    Keras' global seed. Raises ValueError for an unknown name or width, for a shape or a number of classes that the
    model cannot have, and for a file of another shape; FileNotFoundError where there is no file.
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
    known = str(name).partition(":")[0]
    if known not in MODELS:
        close = max(MODELS, key=lambda model: difflib.SequenceMatcher(None, known, model).ratio())
        raise ValueError(
            f"unknown model {str(name)!r}: allowed are {', '.join(MODELS)}, or a file ending in "
            f"{' or '.join(MODEL_SUFFIXES)}; did you mean {close}?"
        )
    return build_architecture(str(name), input_shape, num_classes)


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


def compile_model(
    model: keras.Model,
    learning_rate: float,
    *,
    steps: int | None = None,
    optimizer: keras.optimizers.Optimizer | None = None,
    soft_labels: bool = False,
    softmax: bool | None = None,
) -> None:
    """Compile a classifier in place: Adam, cross-entropy on its logits (or its softmax), accuracy.

    Over `steps` batches the learning rate falls to 0 along half a cosine (Loshchilov and Hutter, arXiv:1608.03983); None keeps
    it. An `optimizer` takes the place of all that. `softmax` says whether the model puts out probabilities; None looks at its last layer.

    XLA is left to Keras, which uses it on an accelerator alone. On CPU it doubles the CPU time of such a CNN (TensorFlow 2.21,
    2 Xeon cores, batch 64: from 0.37 to 0.79 ms per image at 32x32, from 1.6 to 3.6 at 64x64, beside seconds of compilation).
    """
    cross_entropy = keras.losses.CategoricalCrossentropy if soft_labels else keras.losses.SparseCategoricalCrossentropy
    rate = learning_rate if steps is None else keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    model.compile(
        optimizer=optimizer or keras.optimizers.Adam(rate),
        loss=cross_entropy(from_logits=not (ends_in_softmax(model) if softmax is None else softmax)),
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


def ends_in_softmax(model: keras.Model) -> bool:
    """Say whether a classifier puts out probabilities, rather than logits."""
    last = model.layers[-1]
    return isinstance(last, layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax


def _times(shape: Sequence[int | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)
