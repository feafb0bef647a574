"""The model files of a compression, measured side by side: size, accuracy, time and energy."""

from __future__ import annotations

import dataclasses
import gzip
import math
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

from joulecache.pipelines.compressing.tflite import PREDICT_BATCH, TfliteModel
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


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One model file, measured on the held-out images.

    `nonzero_weights` counts those of the `parameters` that are not exactly 0, before quantization, which rounds more to 0.
    `gzip_bytes` is the size of the file compressed (gzip -9). `accuracy` is over all `images`, `accuracy_low` and
    `accuracy_high` its 95% Wilson interval. `cpu_ms_per_image` is the fastest of `runs` runs, `cpu_ms_per_image_median`
    their median, on one thread in batches of `batch_size`. `macs` are multiply-accumulates per image, those with zeros
    among them. `energy_per_image` is that of the timed runs, divided.

    `dense` names the variant to compare with (see `Form`). `faster_than_dense` says whether every run took less CPU time than
    that one's run beside it. `finetune_energy` is that of all fine-tuning on the way to it. What a model that was pruned in any way
    took of it is paid back after `inferences_to_pay_back` images, by active joules; None where there is nothing to pay, and
    where not every run took less energy than the dense one's: then it is never.
    """

    name: str
    path: Path
    parameters: int
    nonzero_weights: int
    macs: int
    file_bytes: int
    gzip_bytes: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    images: int
    cpu_ms_per_image: float
    cpu_ms_per_image_median: float
    runs: int
    batch_size: int
    energy_per_image: Energy
    dense: str | None
    faster_than_dense: bool | None
    finetune_energy: Energy | None
    inferences_to_pay_back: float | None

    def to_json(self) -> dict[str, object]:
        """Return a dict of JSON values; the path is the file's name."""
        body = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **body,
            "path": self.path.name,
            "energy_per_image": self.energy_per_image.to_json(),
            "finetune_energy": self.finetune_energy and self.finetune_energy.to_json(),
        }


def measure_variants(
    forms: Sequence[Form],
    scores: Sequence[Score],
    test_data: tf.data.Dataset,
    *,
    folder: Path,
    meter: Meter | None = None,
    runs: int = RUNS,
) -> tuple[Variant, ...]:
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
    variants = []
    for form, scored in zip(forms, scores, strict=True):
        low, high = wilson_interval(scored.correct, scored.images)
        mine, times = energies[form.name], cpu_s[form.name]
        faster = saved_j = None
        if form.dense is not None:
            faster = all(a < b for a, b in zip(times, cpu_s[form.dense], strict=True))
            savings_j = [b.active_j - a.active_j for a, b in zip(mine, energies[form.dense], strict=True)]
            saved_j = fmean(savings_j) / _TIMED_IMAGES if min(savings_j) > 0 else None
        spent = form.finetune_energy if form.pruned else None
        variants.append(
            Variant(
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
    return tuple(variants)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95% score interval of a proportion (Wilson 1927); ValueError unless 0 <= successes <= trials, trials > 0."""
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"{successes} of {trials}: an interval needs at least one trial, and no more successes than trials"
        )
    z = 1.959963984540054  # the normal distribution's 97.5% point
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # at both ends the formula is exact but for rounding, which must not leave the share outside
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def _timed_images(test_data: tf.data.Dataset) -> NDArray[np.uint8]:
    held: list[NDArray[np.uint8]] = []
    for batch, _ in test_data.as_numpy_iterator():
        held.append(batch)
        if sum(map(len, held)) >= _TIMED_IMAGES:
            break
    images = np.concatenate(held)
    return images[np.arange(_TIMED_IMAGES) % len(images)]
