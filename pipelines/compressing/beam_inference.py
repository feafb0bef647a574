"""`LiteRTModelHandler`: compressed models in Beam's RunInference. Imports no TensorFlow."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler, PredictionResult
from numpy.typing import NDArray

from joulecache.pipelines.building.records import Record
from joulecache.pipelines.compressing.litert import PREDICT_BATCH, TfliteModel
from joulecache.pipelines.core.checks import check_integer
from joulecache.pipelines.energy import Meter
from joulecache.transforms.chain import Chain, as_chain

Example: TypeAlias = Record | bytes | NDArray[np.uint8]

_NAMESPACE = "joulecache"


class _Runner:
    """A model with the meter of its process, used by one thread at a time."""

    def __init__(self, content: bytes) -> None:
        self.lock = threading.Lock()
        self.model, self.meter = TfliteModel(content), Meter()
        self.rest_mj = 0.0


class LiteRTModelHandler(ModelHandler):  # type: ignore[misc]
    """Score images with a TensorFlow Lite classifier, as `compress` writes it, in ``apache_beam.ml.inference.RunInference``.

    Examples are `Record`, encoded images, or decoded ones, uint8 ``[H, W, C]``. The `inference` of a result has the logits, float32
    ``[classes]``.

    Metrics in the namespace ``joulecache``: the counters ``images`` and ``energy_mj``, and the distribution ``energy_mj_per_1000_images``
    of batches. They have the active energy of the model alone, without the chain; other threads of the worker's process count too.

    Args:
        model: The file, or its content. It is read here and sent to the workers.
        chain: Prepares encoded images: all its ops run, as on held-out records. Decoded images must be ready for the model, as those of
            a cache's val split are.
        max_batch_size: Images in a batch, at most.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a TensorFlow Lite classifier of images, or the chain returns floats.
    """

    def __init__(
        self,
        model: bytes | str | os.PathLike[str],
        *,
        chain: Chain | str | None = None,
        max_batch_size: int = PREDICT_BATCH,
    ) -> None:
        super().__init__(max_batch_size=check_integer("max_batch_size", max_batch_size))
        self._content = model if isinstance(model, bytes) else Path(model).read_bytes()
        self._name = f"{len(model)} bytes" if isinstance(model, bytes) else Path(model).name
        TfliteModel(self._content if isinstance(model, bytes) else model)  # checks it
        given = None if chain is None else as_chain(chain)
        if given and given.is_float:
            raise ValueError(
                f"the model reads uint8 pixels, but the chain returns floats: drop to_float and normalize, got {str(given)!r}"
            )
        self._chain = given and given.for_validation()

    def load_model(self) -> _Runner:
        """Open the model; called by Beam."""
        return _Runner(self._content)

    def run_inference(
        self, batch: Sequence[Example], model: _Runner, inference_args: dict[str, Any] | None = None
    ) -> Iterator[PredictionResult]:
        """Yield the result of each image; called by Beam.

        Raises:
            ValueError: An image cannot be decoded, or the model reads another size.
        """
        images = [self._prepared(example) for example in batch]
        sizes = {image.shape for image in images}
        if len(sizes) > 1:
            raise ValueError(f"the images must have one size: add a resize or crop to the chain, got {sorted(sizes)}")
        with model.lock:
            with model.meter.window("inference") as window:
                logits = model.model.predict(np.stack(images), batch_size=len(images))
            self._count(len(images), window.energy.active_j * 1e3, model)
        return (PredictionResult(example, row, self._name) for example, row in zip(batch, logits, strict=True))

    def get_num_bytes(self, batch: Sequence[Example]) -> int:
        """Return the bytes of a batch's images; called by Beam."""
        return sum(_size(_image(example)) for example in batch)

    def get_metrics_namespace(self) -> str:
        """Return the namespace of Beam's own metrics; called by Beam."""
        return _NAMESPACE

    def _prepared(self, example: Example) -> NDArray[np.uint8]:
        image = _image(example)
        if image is None:
            assert isinstance(example, Record)
            raise ValueError(f"{example.key!r} has no image: {example.problem}")
        if not isinstance(image, bytes):
            return image
        if self._chain is None:
            raise ValueError("encoded images need a chain that decodes them: pass chain=")
        return self._chain(image).astype(np.uint8, copy=False)

    def _count(self, images: int, energy_mj: float, runner: _Runner) -> None:
        Metrics.counter(_NAMESPACE, "images").inc(images)
        whole, runner.rest_mj = divmod(energy_mj + runner.rest_mj, 1)
        Metrics.counter(_NAMESPACE, "energy_mj").inc(int(whole))
        per_1000_mj = Metrics.distribution(_NAMESPACE, "energy_mj_per_1000_images")
        per_1000_mj.update(round(1000 * energy_mj / images))


def _image(example: Example) -> bytes | NDArray[np.uint8] | None:
    return example.image if isinstance(example, Record) else example


def _size(image: bytes | NDArray[np.uint8] | None) -> int:
    return image.nbytes if isinstance(image, np.ndarray) else len(image or b"")
