"""`LiteRTModelHandler` in Beam's RunInference: the logits of the model, on the images of a cache and on encoded ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import keras
import numpy as np
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.ml.inference.base import KeyedModelHandler, PredictionResult, RunInference
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from blobs import blobs
from conftest import encoded, write_files
from processes import run_python

import joulecache as jc
from joulecache.pipelines.compressing.litert import TfliteModel
from joulecache.pipelines.compressing.tflite import to_tflite

COUNT = 24
CHAIN = "decode|random_crop(20) || flip_lr"

collected: list[Any] = []


def collect(element: Any) -> None:
    collected.append(element)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, blob_model: keras.Model) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.tflite"
    path.write_bytes(to_tflite(blob_model, "float32"))
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a split val of `COUNT` blobs."""
    images, labels = blobs(COUNT)
    files = {
        f"{'rgb'[label]}/{n:02d}.png": encoded(image, "PNG")
        for n, (image, label) in enumerate(zip(images, labels, strict=True))
    }
    folder = tmp_path_factory.mktemp("blobs")
    source = write_files(
        folder / "photos", {f"{split}/{name}": data for split in ("train", "val") for name, data in files.items()}
    )
    jc.precompute(source, folder / "cache", CHAIN)
    return folder / "cache"


def infer(read: Any, handler: Any) -> tuple[list[Any], dict[str, Any]]:
    """Run a pipeline; return the results and joulecache's metrics."""
    collected.clear()
    pipeline = beam.Pipeline(runner=FnApiRunner())
    _ = pipeline | read | RunInference(handler) | "Collect" >> beam.Map(collect)
    done = pipeline.run()
    done.wait_until_finish()
    found = done.metrics().query(MetricsFilter().with_namespace("joulecache"))
    return list(collected), {each.key.metric.name: each.committed for kind in found.values() for each in kind}


def test_a_model_scores_the_images_of_a_cache_and_counts_its_energy(model: Path, cache: Path) -> None:
    results, metrics = infer(jc.ReadCache(cache, "val"), jc.LiteRTModelHandler(model, max_batch_size=5))
    assert len(results) == COUNT
    direct = TfliteModel(model)
    for result in results:
        np.testing.assert_allclose(result.inference, direct.predict(result.example.image[None])[0], atol=1e-4)
    hits = [result.example.targets["label"] == "rgb"[result.inference.argmax()] for result in results]
    assert np.mean(hits) > 0.9
    assert {result.model_id for result in results} == {"small.tflite"}
    assert metrics["images"] == COUNT
    assert metrics["energy_mj_per_1000_images"].min > 0
    assert metrics["energy_mj_per_1000_images"].count >= COUNT // 5
    assert metrics["num_inferences"] == COUNT


def test_encoded_images_go_through_the_validation_chain(model: Path) -> None:
    images = blobs(COUNT)[0]
    given = [
        encoded(np.pad(image, ((4, 4), (4, 4), (0, 0))), "PNG") for image in images
    ]  # the central crop is the image
    handler = jc.LiteRTModelHandler(model.read_bytes(), chain=CHAIN)
    results, _ = infer(beam.Create([*enumerate(given)]), KeyedModelHandler(handler))
    expected = TfliteModel(model).predict(images)
    for key, result in results:
        assert isinstance(result, PredictionResult)
        np.testing.assert_allclose(result.inference, expected[key], atol=1e-4)
    with pytest.raises(ValueError, match="encoded images need a chain that decodes them"):
        infer(beam.Create(given[:1]), jc.LiteRTModelHandler(model))


def test_images_that_cannot_be_scored_are_named(model: Path) -> None:
    handler = jc.LiteRTModelHandler(model, chain="decode")
    with pytest.raises(ValueError, match=r"images must be uint8 \[B, 20, 20, 3\], got uint8 \[1, 5, 5, 3\]"):
        infer(beam.Create([np.zeros((5, 5, 3), np.uint8)]), handler)
    with pytest.raises(ValueError, match=r"'gone\.jpg' has no image: cannot be read"):
        infer(beam.Create([jc.Record("gone.jpg", None, problem="cannot be read")]), handler)


def test_wrong_arguments_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="drop to_float and normalize"):
        jc.LiteRTModelHandler(model, chain="decode || to_float")
    with pytest.raises(ValueError, match="not a TensorFlow Lite model"):
        jc.LiteRTModelHandler(b"no model")
    with pytest.raises(FileNotFoundError):
        jc.LiteRTModelHandler(tmp_path / "none.tflite")
    with pytest.raises(ValueError, match="max_batch_size must be an integer"):
        jc.LiteRTModelHandler(model, max_batch_size=0)


def test_workers_that_score_import_no_tensorflow(model: Path) -> None:
    code = "import sys, joulecache as jc; jc.LiteRTModelHandler(sys.argv[1]).load_model(); print('tensorflow' in sys.modules)"
    done = run_python(code, model, strict=False)
    assert done.stdout.strip() == "False", done.stderr
