"""Classifiers by name and from files."""

from __future__ import annotations

import difflib
import os
import re
import traceback
import zipfile
from collections.abc import Sequence
from pathlib import Path

import keras

from joulecache.pipelines.core.checks import check_integer, shown
from joulecache.pipelines.core.quantities import clipped
from joulecache.pipelines.models.architectures import MODELS, build_architecture, check_architecture
from joulecache.pipelines.source.features import ClassLabel, Features, MultiLabel, describe_features

_LONGEST_REASON = 300  # Keras quotes whole configurations
_REFUSED = "cannot be loaded as a Keras model"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_PICKLE = b"\x80"
_CUSTOM = re.compile(r"(?:Could not locate (?:class|function)|Unknown (?:layer|object|\w+ function):) '([^']+)'")
_FOREIGN = re.compile(r"\b(?:jax_layer|JaxLayer|FlaxLayer|torch|TorchModuleWrapper)\b")
MODEL_SUFFIXES = (".keras", ".h5")


def build_model(name: str | os.PathLike[str], input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Build a classifier by name, or load it from a file.

    The model is uncompiled. It maps pixels `[B, H, W, C]` from 0 to 255 to logits `[B, num_classes]`. Its input is
    declared float32; uint8 batches are cast on the device, in the compiled step. Initial weights come from Keras'
    global seed.

    Args:
        name: A name in `MODELS`, with a width if the architecture has several, as in `mobilenet:0.5` (the default is
            the narrowest); or the path of a `.keras` or `.h5` file.
        input_shape: Height, width and channels of an image.
        num_classes: Number of classes, at least 1. A file may have one output for two classes.

    Raises:
        ValueError: The name or the width is unknown, the model does not come in that shape, or the file has another
            shape.
        FileNotFoundError: There is no such file.
    """
    if len(input_shape) != 3 or any(not isinstance(size, int) or size < 1 for size in input_shape):
        raise ValueError(f"input_shape must be (height, width, channels), each at least 1, got {shown(input_shape)}")
    check_integer("num_classes", num_classes)
    if not is_model_file(name):
        _check_name(name)
        return build_architecture(str(name), input_shape, num_classes)
    model = load_model(name)
    outputs = model.outputs[0].shape[1:]
    # one output decides between two classes
    fits = outputs == (num_classes,) or (outputs, num_classes) == ((1,), 2)
    if not fits or model.inputs[0].shape[1:] != tuple(input_shape):
        raise ValueError(
            f"the data has images of {shape_text(input_shape)} in {num_classes} classes, but {str(name)!r} maps "
            f"{shape_text(model.inputs[0].shape[1:])} to {shape_text(model.outputs[0].shape[1:])} outputs: choose another"
        )
    return model


def is_model_file(name: str | os.PathLike[str]) -> bool:
    """Return whether a model's name is that of a file, rather than in `MODELS`."""
    return str(name).endswith(MODEL_SUFFIXES)


def check_model(name: str | os.PathLike[str], image_shape: tuple[int, int, int] | None = None) -> None:
    """Check a model before the data is read, which alone tells the number of classes.

    Args:
        name: As for `build_model`.
        image_shape: Height, width and channels of an image; None if unknown.

    Raises:
        ValueError: As `build_model`.
        FileNotFoundError: There is no such file.
    """
    if is_model_file(name):
        expected = load_model(name).inputs[0].shape[1:]
        if image_shape is not None and expected != image_shape:
            raise ValueError(
                f"the data has images of {shape_text(image_shape)}, but {str(name)!r} expects {shape_text(expected)}: "
                "resize the images, or choose another model"
            )
        return
    _check_name(name)
    check_architecture(str(name), None if image_shape is None else image_shape[:2])


def feature_to_classify(features: Features, model: str | os.PathLike[str], where: str) -> ClassLabel | MultiLabel:
    """Return what a classifier learns: the only target, if it is a class or a multi-label; else raise ValueError.

    Args:
        features: The features of the targets.
        model: As for `build_model`.
        where: The source or cache, for the message.
    """
    found = [*features.values()]
    if len(found) == 1 and isinstance(found[0], ClassLabel | MultiLabel):
        return found[0]
    raise ValueError(
        f"the model {str(model)!r} needs one class or multi-label for each image, but {where!r} has {describe_features(features)}: "
        "choose one with --target, or train a model for other targets with --model MODULE:FUNCTION"
    )


def _check_name(name: str | os.PathLike[str]) -> None:
    known = str(name).partition(":")[0]
    if known not in MODELS:
        close = max(MODELS, key=lambda model: difflib.SequenceMatcher(None, known, model).ratio())
        raise ValueError(
            f"unknown model {str(name)!r}: expected {', '.join(MODELS)} or a file ending in "
            f"{' or '.join(MODEL_SUFFIXES)}; did you mean {close!r}?"
        )


def load_model(path: str | os.PathLike[str]) -> keras.Model:
    """Load an image classifier, uncompiled, from a `.keras` or `.h5` file. Code inside the file is not run.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a Keras model, has layers that Keras does not know or that contain Python code, or is not
            a classifier with one input `[B, H, W, C]` and one output.
    """
    file = Path(path)
    allowed = " or ".join(MODEL_SUFFIXES)
    if file.suffix not in MODEL_SUFFIXES:
        raise ValueError(f"a model file must end in {allowed}, got {str(file)!r}")
    if not file.is_file():
        raise FileNotFoundError(f"no model file {str(file)!r}: save a Keras model as {allowed}")
    _check_signature(file)
    try:
        model = keras.saving.load_model(file, compile=False)
    except Exception as error:  # layers raise anything
        raise ValueError(f"{str(file)!r} {_REFUSED}: {_why_not_loaded(error)}") from error
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise ValueError(
            f"{str(file)!r} is a {type(model).__name__} without fixed inputs: save a built functional or sequential one"
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1 or len(model.inputs[0].shape) != 4:
        raise ValueError(
            f"{str(file)!r} is not an image classifier: expected one input [B, H, W, C] and one output, got inputs "
            f"{[tensor.shape for tensor in model.inputs]} and outputs {[tensor.shape for tensor in model.outputs]}"
        )
    return model


def _check_signature(file: Path) -> None:
    """Raise ValueError for a file of another format: Keras calls it missing."""
    with file.open("rb") as stream:
        start = stream.read(len(_HDF5))
    if start.startswith(_PICKLE):
        raise ValueError(f"{str(file)!r} {_REFUSED}: it is a pickle, which would run code; write it with model.save()")
    wanted = "a zip archive" if file.suffix == ".keras" else "an HDF5 file"
    if not (zipfile.is_zipfile(file) if file.suffix == ".keras" else start == _HDF5):
        raise ValueError(f"{str(file)!r} {_REFUSED}: it is not {wanted}, or is cut off; write it with model.save()")


def _why_not_loaded(error: Exception) -> str:
    """Say in one line why Keras cannot load a model."""
    text = " ".join(str(error).split())
    if custom := _CUSTOM.search(text):
        return (
            f"it has the custom layer or function {custom[1]!r}; replace it, or load the model in Python, where its class is "
            "registered with keras.saving.register_keras_serializable(), and pass that"
        )
    if "`Lambda` layer" in text:
        return "it has a Lambda layer, whose Python code would run; replace it with a layer or with keras.ops"
    if foreign := _FOREIGN.search("".join(traceback.format_exception(error))):
        return f"it has a layer of another framework ({foreign[0]}); replace it with a Keras layer"
    return f"{clipped(text, _LONGEST_REASON)}; write it with model.save()"


def shape_text(shape: Sequence[int | None]) -> str:
    """Return a shape as text: `32x32x3`, with `?` for sizes that vary."""
    return "x".join("?" if size is None else str(size) for size in shape)
