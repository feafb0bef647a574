"""Measure the size, accuracy, time and energy of converted models."""

from __future__ import annotations

import gzip
import operator
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from statistics import fmean, median

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from joulecache.pipelines.compressing.litert import PREDICT_BATCH, TfliteModel
from joulecache.pipelines.compressing.results import ModelFile
from joulecache.pipelines.core.checks import check_integer
from joulecache.pipelines.core.statistics import proportion_interval
from joulecache.pipelines.energy import Energy, Meter
from joulecache.pipelines.models.fitting import check_batches
from joulecache.pipelines.models.heads import head_of
from joulecache.pipelines.models.macs import macs_or_none

RUNS = 5
"""Runs of each file. By chance, all 5 are faster in 1 of 32 cases."""
TIMED_IMAGES = 512
"""Images per run."""


@dataclass(frozen=True)
class Score:
    """How often a model is right on the test images.

    Attributes:
        correct: Correct answers: one for each image, or for multi-labels one for each class of each image.
        images: Test images.
        most_frequent: Correct answers of a model that always answers the most frequent class, or for each class the more
            frequent of yes and no.
        questions: Answers for each image.
    """

    correct: int
    images: int
    most_frequent: int
    questions: int = 1

    @property
    def answers(self) -> int:
        """Number of answers."""
        return self.images * self.questions

    @property
    def accuracy(self) -> float:
        """Share of the answers that are correct."""
        return self.correct / self.answers

    @property
    def chance(self) -> float:
        """Accuracy of always answering what is most frequent."""
        return self.most_frequent / self.answers


@dataclass(frozen=True, eq=False, kw_only=True)
class ConvertedModel:
    """A Keras model and its TensorFlow Lite file.

    Attributes:
        name: As in `ModelFile`.
        model: The Keras model.
        content: The file.
        dense: Name of the unpruned model of the same precision to compare time and energy with; for a quantized unpruned
            model, the float32 one.
        finetune_energy: Energy of all its fine-tuning; None if there was none.
        pruned: Whether a step made it smaller or sparser.
    """

    name: str
    model: keras.Model
    content: bytes
    dense: str | None = None
    finetune_energy: Energy | None = None
    pruned: bool = False

    @property
    def file_name(self) -> str:
        """Name of the file."""
        return f"{self.name}.tflite"

    @cached_property
    def runner(self) -> TfliteModel:
        """The opened file, on one thread."""
        return TfliteModel(self.content)


def score(model: ConvertedModel, test_data: tf.data.Dataset, *, multi_label: bool = False) -> Score:
    """Run a TensorFlow Lite file on batches of (uint8 images, labels); raise ValueError for other data or none.

    Args:
        model: The model.
        test_data: The batches.
        multi_label: Labels `[B, K]` are 0 or 1 for each class, not shares of one class.
    """
    check_batches(test_data, "test data")
    head, correct, images, counts = head_of(model.model), 0, 0, Counter[tuple[int, int]]()
    for batch, labels, *_ in test_data.as_numpy_iterator():
        truth = labels.argmax(axis=-1) if labels.ndim == 2 and not multi_label else labels.astype(np.int64)
        answers = head.answers(model.runner.predict(batch), multi_label=multi_label)
        correct += int((answers == truth).sum())
        images += len(batch)
        for question, column in enumerate(truth.reshape(len(batch), -1).T):
            counts.update((question, answer) for answer in column.tolist())
    if not images:
        raise ValueError("test data has no images: accuracy needs held-out images")
    questions = 1 + max(question for question, _ in counts)
    most = [max(count for (of, _), count in counts.items() if of == question) for question in range(questions)]
    return Score(correct, images, sum(most), questions)


def measure_files(
    scores: Mapping[ConvertedModel, Score],
    test_data: tf.data.Dataset,
    *,
    meter: Meter | None = None,
    runs: int = RUNS,
    cpu_clock: Callable[[], float] = time.thread_time,
) -> tuple[ModelFile, ...]:
    """Measure converted models.

    A run is a pass over 512 test images in memory, repeated if there are fewer: the model alone, without its input. In
    every round each model runs once, so that a slow moment of the machine affects all of them.

    Args:
        scores: The models, including those that `dense` names, and their scores on `test_data`.
        test_data: Batches of (uint8 images, labels).
        meter: Measures the runs.
        runs: Rounds, at least 1.
        cpu_clock: Returns CPU seconds of this thread. The interpreter runs in it alone; the CPU time of the process would
            include whatever else runs in it.
    """
    check_integer("runs", runs)
    cpu_s, energies = _run_in_turns(list(scores), _timed_images(test_data), meter or Meter(), runs, cpu_clock)
    return tuple(_model_file(model, scored, cpu_s, energies) for model, scored in scores.items())


def _run_in_turns(
    models: Sequence[ConvertedModel],
    images: NDArray[np.uint8],
    meter: Meter,
    runs: int,
    cpu_clock: Callable[[], float],
) -> tuple[dict[str, list[float]], dict[str, list[Energy]]]:
    """Return, by model, the CPU seconds and the energy of each run."""
    cpu_s: dict[str, list[float]] = {model.name: [] for model in models}
    energies: dict[str, list[Energy]] = {model.name: [] for model in models}
    for model in models:
        model.runner.predict(images)  # warm-up
    for _ in range(runs):
        for model in models:
            with meter.window(f"inference of {model.name}") as window:
                start_s = cpu_clock()
                model.runner.predict(images)
                cpu_s[model.name].append(cpu_clock() - start_s)
            energies[model.name].append(window.energy)
    return cpu_s, energies


def _model_file(
    model: ConvertedModel, scored: Score, cpu_s: Mapping[str, list[float]], energies: Mapping[str, list[Energy]]
) -> ModelFile:
    times, used = cpu_s[model.name], energies[model.name]
    # the answers for one image are not independent: the interval is that of as many images
    low, high = proportion_interval(round(scored.accuracy * scored.images), scored.images)
    faster = saved_j = None
    if model.dense is not None:
        faster = all(mine < other for mine, other in zip(times, cpu_s[model.dense], strict=True))
        savings_j = [other.active_j - mine.active_j for mine, other in zip(used, energies[model.dense], strict=True)]
        saved_j = fmean(savings_j) / TIMED_IMAGES if min(savings_j) > 0 else None
    spent = model.finetune_energy if model.pruned else None
    return ModelFile(
        name=model.name,
        file_name=model.file_name,
        parameters=model.model.count_params(),
        nonzero_weights=sum(int(np.count_nonzero(weight)) for weight in model.model.get_weights()),
        macs=macs_or_none(model.model),
        file_bytes=len(model.content),
        gzip_bytes=len(gzip.compress(model.content, 9, mtime=0)),
        accuracy=scored.accuracy,
        accuracy_low=low,
        accuracy_high=high,
        images=scored.images,
        cpu_ms_per_image=min(times) / TIMED_IMAGES * 1e3,
        cpu_ms_per_image_median=median(times) / TIMED_IMAGES * 1e3,
        runs=len(times),
        batch_size=PREDICT_BATCH,
        energy_per_image=reduce(operator.add, used) / (len(used) * TIMED_IMAGES),
        dense=model.dense,
        faster_than_dense=faster,
        finetune_energy=model.finetune_energy,
        inferences_to_pay_back=None if spent is None or saved_j is None else spent.active_j / saved_j,
    )


def _timed_images(test_data: tf.data.Dataset) -> NDArray[np.uint8]:
    batches: list[NDArray[np.uint8]] = []
    for batch, *_ in test_data.as_numpy_iterator():
        batches.append(batch)
        if sum(map(len, batches)) >= TIMED_IMAGES:
            break
    images = np.concatenate(batches)
    return images[np.arange(TIMED_IMAGES) % len(images)]
