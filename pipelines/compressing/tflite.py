"""TensorFlow Lite files of a Keras classifier at four precisions. `litert` runs them."""

from __future__ import annotations

import logging
import re
import warnings
from typing import Literal, get_args

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras import layers
from numpy.typing import NDArray

from joulecache.pipelines.compressing.kernels import check_finite, copy_of
from joulecache.pipelines.compressing.litert import PREDICT_BATCH
from joulecache.pipelines.core.checks import check_choice
from joulecache.pipelines.core.progress import silenced_output
from joulecache.pipelines.core.quantities import shortened
from joulecache.pipelines.models.flattening import half_precision_layer, inner_layers, plain_copy

_NOTES = logging.getLogger("joulecache")

TfliteKind = Literal["float32", "float16", "dynamic", "int8"]

CALIBRATION_IMAGES = 200
"""Training images that calibrate int8."""

_UNKNOWN_OP = re.compile(r"'tf\.(\w+)' op is neither a custom op nor a flex op")
_LONGEST_REASON = 200


def to_tflite(
    model: keras.Model,
    kind: TfliteKind,
    calibration: NDArray[np.uint8] | None = None,
    *,
    minimum_calibration: int = CALIBRATION_IMAGES,
) -> bytes:
    """Convert a classifier to a TensorFlow Lite file that accepts batches of any size.

    Args:
        model: A classifier of pixels from 0 to 255. One that computes in 16 bits is converted in float32, which a note says.
        kind: `float32`; `float16`, which halves the weights; `dynamic`, with int8 weights and ranges of activations
            computed at run time; or `int8`, integer throughout: uint8 pixels (scale 1, zero point 0) to int8 logits. The
            others read float32 pixels.
        calibration: Training images for int8, uint8 `[N, H, W, C]`.
        minimum_calibration: Minimum number of them. Lower it only if the training set is smaller.

    Raises:
        ValueError: An argument is wrong, the model has weights or outputs that are not finite, or layers that TensorFlow
            Lite or int8 does not support. The converter's log is a note.
    """
    check_choice("kind", kind, get_args(TfliteKind))
    model = _in_float32(model)
    check_finite(model)
    converter = tf.lite.TFLiteConverter.from_keras_model(_with_int8_normalization(model) if kind == "int8" else model)
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind == "int8":
        samples = _calibration_samples(calibration, model.inputs[0].shape[1:], minimum_calibration)
        _check_outputs(model, samples)
        converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.int8
    try:
        content = convert_quietly(converter)
    except Exception as error:  # the converter raises anything
        refused = ValueError(
            f"model {model.name!r} cannot be converted to TensorFlow Lite: {_reason(error)}: replace these layers"
        )
        for note in getattr(error, "__notes__", ()):
            refused.add_note(note)
        raise refused from error
    if kind == "int8":
        _check_int8(content)
    return content


def _in_float32(model: keras.Model) -> keras.Model:
    """Return a copy in float32 of a model that computes in 16 bits, which the converter does not know, or the model."""
    half = half_precision_layer(model)
    if half is None:
        return model
    _NOTES.warning(
        "model %r computes in %s: it is converted in float32, with the same weights", model.name, half.compute_dtype
    )
    return plain_copy(model)


class _Int8Normalization(layers.LayerNormalization):  # type: ignore[misc]
    """LayerNormalization along the last axis, without the negation that Keras computes: int8 has no kernel for that."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        centered = inputs - tf.reduce_mean(inputs, -1, keepdims=True)
        normalized = centered * tf.math.rsqrt(tf.reduce_mean(tf.square(centered), -1, keepdims=True) + self.epsilon)
        scaled = normalized if self.gamma is None else normalized * self.gamma
        return scaled if self.beta is None else scaled + self.beta


def _with_int8_normalization(model: keras.Model) -> keras.Model:
    """Return a copy of a model in which int8 has kernels for LayerNormalization, or the model if it has none."""
    if all(type(layer) is not layers.LayerNormalization for layer in inner_layers(model).values()):
        return model

    def clone(step: keras.Operation) -> keras.Operation:
        plain = type(step) is layers.LayerNormalization and not step.rms_scaling and _is_last(step)
        return (_Int8Normalization if plain else type(step)).from_config(step.get_config())

    return copy_of(plain_copy(model), clone)


def _is_last(norm: layers.LayerNormalization) -> bool:
    axes = [norm.axis] if isinstance(norm.axis, int) else list(norm.axis)
    return len(axes) == 1 and axes[0] in (-1, len(norm.input.shape) - 1)


def _reason(error: Exception) -> str:
    """Return what a converter's error says about ops, or its beginning."""
    ops = sorted(set(_UNKNOWN_OP.findall(str(error))))
    if ops:
        return f"it has no kernel for {', '.join(ops)}"
    return " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]


def convert_quietly(converter: tf.lite.TFLiteConverter) -> bytes:
    """Run a converter; if it raises, its log becomes a note of the exception."""
    with warnings.catch_warnings(), silenced_output():
        warnings.filterwarnings("ignore", message="Statistics for quantized inputs were expected")
        content: bytes = converter.convert()
    return content


def _calibration_samples(
    images: NDArray[np.uint8] | None, image_shape: tuple[int, ...], minimum: int
) -> NDArray[np.float32]:
    if images is None or images.dtype != np.uint8 or images.shape[1:] != image_shape:
        got = "None" if images is None else f"{images.dtype} {list(images.shape)}"
        wanted = ", ".join(map(str, ("N", *image_shape)))
        raise ValueError(f"calibration must be uint8 training images [{wanted}], got {got}")
    if len(images) < max(1, minimum):
        raise ValueError(f"calibration must be at least {max(1, minimum)} training images, got {len(images)}")
    samples = images.astype(np.float32)
    # The input's scale is 1 only if its range, which always includes 0, ends at 255.
    if samples.max() < 255:
        samples[0, -1, -1] = 255
    return samples


def _check_outputs(model: keras.Model, samples: NDArray[np.float32]) -> None:
    """Refuse outputs that are not finite: with them the quantizer crashes the process."""
    for start in range(0, len(samples), PREDICT_BATCH):
        if not np.isfinite(model(samples[start : start + PREDICT_BATCH], training=False)).all():
            raise ValueError(f"model {model.name!r} overflows on calibration images: int8 needs finite outputs")


def _check_int8(content: bytes) -> None:
    with silenced_output():
        interpreter = Interpreter(model_content=content, num_threads=1)
    floats = [tensor["name"] for tensor in interpreter.get_tensor_details() if tensor["dtype"] == np.float32]
    scale = interpreter.get_input_details()[0]["quantization"]
    if floats or scale != (1.0, 0):
        raise ValueError(
            f"this model has layers that int8 does not support: use float16 or dynamic; the converter left {len(floats)} "
            f"tensors in float32 ({shortened(floats, 3)}) and scaled the input by {scale}"
        )
