"""The model files of a compression, measured side by side: size, accuracy, time and energy."""

from __future__ import annotations

import gzip
import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from statistics import fmean, median

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from joulecache.pipelines.compressing.results import ModelFile
from joulecache.pipelines.compressing.tflite import PREDICT_BATCH, TfliteModel
from joulecache.pipelines.core.statistics import proportion_interval
from joulecache.pipelines.energy import Energy, Meter
from joulecache.pipelines.models import check_batches, count_macs

RUNS = 5
"""How often each file is timed, unless asked otherwise: all of 5 runs are faster by chance in one of 32 cases."""

_TIMED_IMAGES = 512


@dataclass(frozen=True, eq=False, kw_only=True)
class Form:
    """One form of a model: `content` is the TensorFlow Lite file that was made from `model`.

    `dense` names the form whose time and energy it is compared with: not pruned, of the same precision; and that of one
    that is not pruned itself, but quantized, is the one in float32. `finetune_energy` is what all fine-tuning on the way
    to it took; None where there was none. `pruned` says whether a stage made it smaller or sparser.
    """

    name: str
    model: keras.Model
    content: bytes
    dense: str | None = None
    finetune_energy: Energy | None = None
    pruned: bool = False

    @cached_property
    def runner(self) -> TfliteModel:
        """The file, opened, on one thread."""
        return TfliteModel(self.content)


@dataclass(frozen=True)
class Score:
    """How many of the test images a model has right."""

    correct: int
    images: int

    @property
    def accuracy(self) -> float:
        """The share of them."""
        return self.correct / self.images


def score(form: Form, test_data: tf.data.Dataset) -> Score:
    """Run a form's file on all of `test_data`: batches of (uint8 images, labels); ValueError where there are none."""
    check_batches(test_data, "test data")
    correct = images = 0
    for batch, labels in test_data.as_numpy_iterator():
        classes = labels.argmax(axis=-1) if labels.ndim == 2 else labels
        correct += int((form.runner.predict(batch).argmax(axis=-1) == classes).sum())
        images += len(batch)
    if not images:
        raise ValueError("test data has no images: accuracy needs held-out images")
    return Score(correct, images)


def measure_files(
    forms: Sequence[Form],
    scores: Sequence[Score],
    test_data: tf.data.Dataset,
    *,
    folder: Path,
    meter: Meter | None = None,
    runs: int = RUNS,
) -> tuple[ModelFile, ...]:
    """Measure forms of a model whose files lie, by their names, in `folder`; their accuracies are `scores`.

    CPU time and energy are of passes over 512 test images (repeated where there are fewer) that lie in memory: the model
    alone, without its input. The forms take turns in each of `runs` rounds, so that what the machine does meanwhile meets
    them all. Raises ValueError for fewer than one run.
    """
    if runs < 1:
        raise ValueError(f"{runs} runs: time at least 1")
    meter = meter or Meter()
    timed = _timed_images(test_data)
    cpu_s: dict[str, list[float]] = {form.name: [] for form in forms}
    energies: dict[str, list[Energy]] = {form.name: [] for form in forms}
    for form in forms:
        form.runner.predict(timed)
    for _ in range(runs):
        for form in forms:
            with meter.window(f"inference of {form.name}") as window:
                # the interpreter's one thread is this one; the clock of the process would add whatever else runs in it
                start_s = time.thread_time()
                form.runner.predict(timed)
                cpu_s[form.name].append(time.thread_time() - start_s)
            energies[form.name].append(window.energy)
    files = []
    for form, scored in zip(forms, scores, strict=True):
        low, high = proportion_interval(scored.correct, scored.images)
        mine, times = energies[form.name], cpu_s[form.name]
        faster = saved_j = None
        if form.dense is not None:
            faster = all(a < b for a, b in zip(times, cpu_s[form.dense], strict=True))
            savings_j = [b.active_j - a.active_j for a, b in zip(mine, energies[form.dense], strict=True)]
            saved_j = fmean(savings_j) / _TIMED_IMAGES if min(savings_j) > 0 else None
        spent = form.finetune_energy if form.pruned else None
        files.append(
            ModelFile(
                name=form.name,
                path=folder / f"{form.name}.tflite",
                parameters=form.model.count_params(),
                nonzero_weights=sum(int(np.count_nonzero(weight)) for weight in form.model.get_weights()),
                macs=count_macs(form.model),
                file_bytes=len(form.content),
                gzip_bytes=len(gzip.compress(form.content, 9, mtime=0)),
                accuracy=scored.accuracy,
                accuracy_low=low,
                accuracy_high=high,
                images=scored.images,
                cpu_ms_per_image=min(times) / _TIMED_IMAGES * 1e3,
                cpu_ms_per_image_median=median(times) / _TIMED_IMAGES * 1e3,
                runs=runs,
                batch_size=PREDICT_BATCH,
                energy_per_image=reduce(operator.add, mine) / (runs * _TIMED_IMAGES),
                dense=form.dense,
                faster_than_dense=faster,
                finetune_energy=form.finetune_energy,
                inferences_to_pay_back=None if spent is None or saved_j is None else spent.active_j / saved_j,
            )
        )
    return tuple(files)


def _timed_images(test_data: tf.data.Dataset) -> NDArray[np.uint8]:
    held: list[NDArray[np.uint8]] = []
    for batch, _ in test_data.as_numpy_iterator():
        held.append(batch)
        if sum(map(len, held)) >= _TIMED_IMAGES:
            break
    images = np.concatenate(held)
    return images[np.arange(_TIMED_IMAGES) % len(images)]
