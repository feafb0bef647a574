"""Run TensorFlow Lite files with LiteRT. Imports no TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from joulecache.pipelines.core.checks import check_integer
from joulecache.pipelines.core.progress import silenced_output

PREDICT_BATCH = 32


class TfliteModel:
    """Run a TensorFlow Lite classifier, given as bytes or a path. Not thread-safe.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a TensorFlow Lite classifier of images.
    """

    def __init__(self, model: bytes | str | os.PathLike[str], *, num_threads: int = 1) -> None:
        content = model if isinstance(model, bytes) else Path(model).read_bytes()
        name = f"{len(content)} bytes" if isinstance(model, bytes) else repr(str(model))
        try:
            with silenced_output():
                self._interpreter = Interpreter(model_content=content, num_threads=num_threads)
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{name}: not a TensorFlow Lite model ({error}): make one with to_tflite") from error
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0]["shape"]) != 4 or len(outputs[0]["shape"]) != 2:
            raise ValueError(
                f"{name}: not an image classifier: expected one input [B, H, W, C] and one output [B, classes]"
            )
        self._input, self._output = inputs[0], outputs[0]
        self._rows = int(self._input["shape"][0])

    def predict(self, images: NDArray[np.uint8], *, batch_size: int = PREDICT_BATCH) -> NDArray[np.float32]:
        """Return the logits, float32 `[B, classes]`, of images, uint8 `[B, H, W, C]`, computed in batches of `batch_size`.

        Raises:
            ValueError: The images are of another shape or type.
        """
        shape = tuple(int(size) for size in self._input["shape"][1:])
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            wanted = ", ".join(map(str, ("B", *shape)))
            raise ValueError(f"images must be uint8 [{wanted}], got {images.dtype} {list(images.shape)}")
        check_integer("batch_size", batch_size)
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
