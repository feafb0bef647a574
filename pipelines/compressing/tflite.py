"""TensorFlow Lite files of a Keras classifier, at four precisions, and an interpreter that runs them."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

TfliteKind = Literal["float32", "float16", "dynamic", "int8"]

CALIBRATION_IMAGES = 200
"""The fewest training images that calibrate int8."""

PREDICT_BATCH = 32


def to_tflite(
    model: keras.Model,
    kind: TfliteKind,
    calibration: NDArray[np.uint8] | None = None,
    *,
    minimum_calibration: int = CALIBRATION_IMAGES,
) -> bytes:
    """Convert a classifier of 0 to 255 pixels to a TensorFlow Lite file of any batch size.

    `float16` halves the weights, `dynamic` makes them int8 and computes activations' ranges at run time; both read
    float32 like `float32`. `int8` is integer throughout: it reads uint8 pixels as they are (scale 1, zero point 0), puts out
    int8 logits, and needs `calibration`, uint8 training images [N, H, W, C], at least `minimum_calibration` of them
    (give fewer only where the training set has no more). Raises ValueError for other arguments, and what the converter
    raises, with its log as a note.
    """
    if kind not in get_args(TfliteKind):
        raise ValueError(f"unknown kind {kind!r}: allowed are {', '.join(get_args(TfliteKind))}")
    if not all(np.isfinite(weight).all() for weight in model.get_weights()):
        raise ValueError(f"model {model.name!r} has weights that are not finite: its training diverged")
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind == "int8":
        samples = _calibration_samples(calibration, model.inputs[0].shape[1:], minimum_calibration)
        for start in range(0, len(samples), PREDICT_BATCH):
            # the quantizer ends the process (segmentation fault) where an activation's range is not finite
            if not np.isfinite(model(samples[start : start + PREDICT_BATCH], training=False)).all():
                raise ValueError(f"model {model.name!r} overflows on calibration images: int8 needs finite outputs")
        converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.int8
    with native_output_kept():
        content: bytes = converter.convert()
    if kind == "int8":
        _check_int8(content)
    return content


def _calibration_samples(
    images: NDArray[np.uint8] | None, image_shape: tuple[int, ...], minimum: int
) -> NDArray[np.float32]:
    if images is None or images.dtype != np.uint8 or images.shape[1:] != image_shape:
        got = "None" if images is None else f"{images.dtype} {list(images.shape)}"
        wanted = ", ".join(map(str, ("N", *image_shape)))
        raise ValueError(f"calibration is {got}: int8 needs uint8 training images [{wanted}]")
    if len(images) < max(1, minimum):
        raise ValueError(
            f"{len(images)} calibration images: int8 needs at least {max(1, minimum)} from the training set, or all of a smaller one"
        )
    samples = images.astype(np.float32)
    # The input's range, which always holds 0, must end at 255, or its scale is not 1 and pixels would have to be converted.
    # One white pixel in the corner of one image sees to that, where the images lack full brightness.
    if samples.max() < 255:
        samples[0, -1, -1] = 255
    return samples


def _check_int8(content: bytes) -> None:
    with native_output_kept():
        interpreter = Interpreter(model_content=content, num_threads=1)
    floats = [tensor["name"] for tensor in interpreter.get_tensor_details() if tensor["dtype"] == np.float32]
    scale = interpreter.get_input_details()[0]["quantization"]
    if floats or scale != (1.0, 0):
        raise ValueError(
            f"the converter left {len(floats)} tensors in float32 ({', '.join(floats[:3])}) and scaled the input by {scale}: "
            "this model has layers that int8 does not support; use float16 or dynamic"
        )


@contextlib.contextmanager
def native_output_kept() -> Iterator[None]:
    """Keep what the converter prints, from C++ too, off the terminal; it becomes a note of the exception if there is one.

    File descriptors belong to the process: what other threads print meanwhile, for about a second, is lost.
    """
    with (
        tempfile.TemporaryFile() as log,
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Statistics for quantized inputs were expected")
        sys.stderr.flush()
        saved = [(descriptor, os.dup(descriptor)) for descriptor in (1, 2)]
        try:
            for descriptor, _ in saved:
                os.dup2(log.fileno(), descriptor)
            yield
        except BaseException as error:
            log.seek(0)
            error.add_note(log.read()[-4000:].decode(errors="replace"))
            raise
        finally:
            sys.stderr.flush()
            for descriptor, copy in saved:
                os.dup2(copy, descriptor)
                os.close(copy)


class TfliteModel:
    """Run a TensorFlow Lite classifier, given as its bytes or its file, on `num_threads` threads.

    Not for several threads at once. Raises FileNotFoundError where there is no file, ValueError where it is no
    TensorFlow Lite classifier of images.
    """

    def __init__(self, model: bytes | str | os.PathLike[str], *, num_threads: int = 1) -> None:
        content = model if isinstance(model, bytes) else Path(model).read_bytes()
        what = f"{len(content)} bytes" if isinstance(model, bytes) else repr(str(model))
        try:
            with native_output_kept():
                self._interpreter = Interpreter(model_content=content, num_threads=num_threads)
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{what}: no TensorFlow Lite model ({error}); make one with to_tflite") from error
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0]["shape"]) != 4 or len(outputs[0]["shape"]) != 2:
            raise ValueError(
                f"{what}: no image classifier; it needs one input [B, H, W, C] and one output [B, classes]"
            )
        self._input, self._output = inputs[0], outputs[0]
        self._rows = int(self._input["shape"][0])

    def predict(self, images: NDArray[np.uint8], *, batch_size: int = PREDICT_BATCH) -> NDArray[np.float32]:
        """Return the logits, float32 [B, classes], of uint8 images [B, H, W, C], computed `batch_size` at a time."""
        shape = tuple(int(size) for size in self._input["shape"][1:])
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            wanted = ", ".join(map(str, ("B", *shape)))
            raise ValueError(f"images are {images.dtype} {list(images.shape)}: this model takes uint8 [{wanted}]")
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size}: give at least 1")
        logits = np.empty((len(images), self._output["shape"][-1]), np.float32)
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            if len(batch) != self._rows:
                self._interpreter.resize_tensor_input(self._input["index"], batch.shape)
                self._interpreter.allocate_tensors()
                self._rows = len(batch)
            self._interpreter.set_tensor(self._input["index"], _quantized(batch, self._input))
            self._interpreter.invoke()
            values = self._interpreter.get_tensor(self._output["index"]).astype(np.float32)
            scale, zero_point = self._output["quantization"]
            logits[start : start + batch_size] = (values - zero_point) * scale if scale else values
        return logits


def _quantized(images: NDArray[np.uint8], details: Mapping[str, Any]) -> NDArray[Any]:
    dtype, (scale, zero_point) = details["dtype"], details["quantization"]
    if dtype == np.uint8 and (scale, zero_point) == (1.0, 0):
        return images
    if not scale:
        return images.astype(dtype)
    limits = np.iinfo(dtype)
    quantized: NDArray[Any] = np.clip(np.rint(images / scale + zero_point), limits.min, limits.max).astype(dtype)
    return quantized
