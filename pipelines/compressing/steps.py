"""Run the steps of a recipe: each changes the model, fine-tunes it and converts it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from joulecache.pipelines.compressing.batch_norm import normalizes, reestimate_batch_norm
from joulecache.pipelines.compressing.clustering import WeightSharing, cluster_weights
from joulecache.pipelines.compressing.kernels import copy_of
from joulecache.pipelines.compressing.measuring import ConvertedModel, Score, score
from joulecache.pipelines.compressing.pruning import prune_channels, ratio_for_macs
from joulecache.pipelines.compressing.quantization_aware import QuantizationAware
from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.compressing.regularization import with_l1, without_l1
from joulecache.pipelines.compressing.results import CONTROL
from joulecache.pipelines.compressing.sparsity import MagnitudePruning, prune_weights
from joulecache.pipelines.compressing.tflite import TfliteKind, to_tflite
from joulecache.pipelines.core.progress import Progress, silent
from joulecache.pipelines.energy import Energy, Meter
from joulecache.pipelines.models.fitting import compile_model, has_soft_labels, run_epochs
from joulecache.pipelines.models.heads import head_of

AWARE = "-aware"
"""Suffix of the names of models that were fine-tuned with int8's rounding."""

_LEARNING_RATE = 1e-3
_AWARE_LEARNING_RATE = 1e-4  # lower, since rounding changes the model little
_SPARSIFYING_SHARE = 2 / 3  # share of the fine-tuning in which sparsity grows; the rest recovers accuracy


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all seeds of a compression share; datasets hold batches of (uint8 images, labels).

    The given model stays untouched. `calibration` holds the images for int8, uint8 `[N, H, W, C]`; for the rest see `compress_on`.
    """

    model: keras.Model
    recipe: Recipe
    train_data: tf.data.Dataset
    batches: int
    test_data: tf.data.Dataset
    calibration: NDArray[np.uint8] | None = None
    multi_label: bool = False
    class_weight: Mapping[int, float] | None = None
    control: bool = True
    meter: Meter
    progress: Progress = silent
    int8_tolerance: float = 0.005


@dataclass
class _Branch:
    """A model after the steps in its `name`, with the energy of all its fine-tuning and the score of its float32 file."""

    name: str
    model: keras.Model
    energy: Energy | None = None
    pruned: bool = False
    score: Score | None = None

    def add_energy(self, energy: Energy | None) -> None:
        if energy is not None:
            self.energy = energy if self.energy is None else self.energy + energy


class StepRunner:
    """Runs the steps of a job with one random seed."""

    def __init__(self, job: Job, seed: int) -> None:
        self.job, self.seed = job, seed
        self._scores: dict[ConvertedModel, Score] = {}

    def run(self, *, aware: bool | None = None) -> dict[ConvertedModel, Score]:
        """Run all steps, with Keras' global seed set.

        Args:
            aware: Whether to fine-tune with int8's rounding; None: only if int8 loses more accuracy than the tolerance.

        Returns:
            The converted models and their scores, in this order: "baseline", the given model; "control", the same
            fine-tuned for the epochs of all steps; after each step "pruned-float32", "pruned-sparse-float32" and so on;
            the quantized models of the control (or baseline) and of the last step; the same two fine-tuned with int8's
            rounding, "...-int8-aware". If the recipe only quantizes, the "control" comes just before those.
        """
        # copying a Dropout layer draws a seed
        keras.utils.set_random_seed(self.seed)
        recipe = self.job.recipe
        steps = self._steps()
        last = dense = _Branch("baseline", self.job.model)
        dense.score = self._convert(dense, "baseline", "float32", None)
        if steps and self.job.control and recipe.finetune_epochs:
            dense = self._control(recipe.finetune_epochs * len(steps))
        for number, (label, change) in enumerate(steps):
            name = f"{last.name}-{label}" if number else label
            last = _Branch(name, last.model, last.energy, pruned=True)
            change(last)
            last.score = self._convert(last, f"{name}-float32", "float32", dense.name)
        if recipe.quantize is not None:
            self._quantize_all([dense, last] if steps else [dense], aware)
        return self._scores

    def file_of(self, model: keras.Model, kind: TfliteKind) -> bytes:
        """Convert a model to a TensorFlow Lite file."""
        return to_tflite(model, kind, self.job.calibration, minimum_calibration=1)

    def score(self, model: ConvertedModel) -> Score:
        """Score a model on the test data."""
        return score(model, self.job.test_data, multi_label=self.job.multi_label)

    def finetune(
        self, model: keras.Model, label: str, epochs: int, callbacks: Sequence[keras.callbacks.Callback] = ()
    ) -> Energy | None:
        """Fine-tune in place, then re-estimate the statistics of BatchNormalization, which are outdated by then.

        Returns the energy; None if there was nothing to do.
        """
        job = self.job
        outdated = normalizes(model)
        if not epochs and not outdated:
            return None
        keras.utils.set_random_seed(self.seed)
        with job.meter.window("fine-tuning") as window:
            if epochs:
                self._compile(model, _LEARNING_RATE, epochs)
                callbacks = [*callbacks, self._reported(label, epochs)]
                run_epochs(model, job.train_data, epochs=epochs, callbacks=callbacks, class_weight=job.class_weight)
            if outdated:
                reestimate_batch_norm(model, job.train_data)
        return window.energy

    def finetune_aware(self, model: keras.Model, callbacks: Sequence[keras.callbacks.Callback]) -> Energy:
        """Fine-tune in place with int8's rounding; return the energy."""
        job, epochs = self.job, self.job.recipe.finetune_epochs
        keras.utils.set_random_seed(self.seed)
        with job.meter.window("fine-tuning") as window:
            rounded = QuantizationAware(model)
            self._compile(rounded, _AWARE_LEARNING_RATE, epochs)
            callbacks = [*callbacks, self._reported(f"{model.name} with int8's rounding", epochs)]
            run_epochs(rounded, job.train_data, epochs=epochs, callbacks=callbacks, class_weight=job.class_weight)
            rounded.copy_weights_to(model)
        return window.energy

    def _compile(self, model: keras.Model, learning_rate: float, epochs: int) -> None:
        job = self.job
        compile_model(
            model,
            learning_rate,
            steps=job.batches * epochs,
            soft_labels=has_soft_labels(job.train_data),
            multi_label=job.multi_label,
            head=head_of(job.model),
        )

    def _steps(self) -> list[tuple[str, Callable[[_Branch], None]]]:
        recipe = self.job.recipe
        steps = (
            (recipe.prunes_channels, "pruned", self._prune),
            (recipe.sparsity > 0, "sparse", self._sparsify),
            (recipe.clusters is not None, "clustered", self._cluster),
        )
        return [(label, change) for wanted, label, change in steps if wanted]

    def _convert(self, branch: _Branch, name: str, kind: TfliteKind, dense: str | None) -> Score:
        model = ConvertedModel(
            name=name,
            model=branch.model,
            content=self.file_of(branch.model, kind),
            dense=dense,
            finetune_energy=branch.energy,
            pruned=branch.pruned,
        )
        self._scores[model] = self.score(model)
        return self._scores[model]

    def _control(self, epochs: int) -> _Branch:
        """Fine-tune a copy of the given model."""
        branch = _Branch(CONTROL, copy_of(self.job.model))
        branch.add_energy(self.finetune(branch.model, "the control", epochs))
        branch.score = self._convert(branch, CONTROL, "float32", None)
        return branch

    def _prune(self, branch: _Branch) -> None:
        recipe, ratio = self.job.recipe, prune_ratio(self.job.recipe, branch.model)
        branch.model = prune_channels(branch.model, ratio, criterion=recipe.criterion, protected=recipe.protected)
        branch.add_energy(self.finetune(branch.model, "the pruned model", recipe.finetune_epochs))

    def _sparsify(self, branch: _Branch) -> None:
        recipe = self.job.recipe
        if not recipe.finetune_epochs:
            branch.model = prune_weights(branch.model, recipe.sparsity)
            branch.add_energy(self.finetune(branch.model, "the sparse model", 0))
            return
        steps = self.job.batches * recipe.finetune_epochs
        branch.model = with_l1(branch.model, recipe.l1) if recipe.l1 else copy_of(branch.model)
        pruning = MagnitudePruning(recipe.sparsity, 0, int(steps * _SPARSIFYING_SHARE), every=max(1, steps // 100))
        branch.add_energy(self.finetune(branch.model, "the sparse model", recipe.finetune_epochs, [pruning]))
        if recipe.l1:
            branch.model = without_l1(branch.model)

    def _cluster(self, branch: _Branch) -> None:
        recipe = self.job.recipe
        assert recipe.clusters is not None
        branch.model = cluster_weights(branch.model, recipe.clusters, per=recipe.cluster_per)
        branch.add_energy(self.finetune(branch.model, "the clustered model", recipe.finetune_epochs, self._keeping()))

    def _keeping(self) -> list[keras.callbacks.Callback]:
        """Return the callbacks that keep zeros and shared values; sharing keeps zeros too."""
        recipe = self.job.recipe
        if recipe.clusters is not None:
            return [WeightSharing(per=recipe.cluster_per)]
        return [MagnitudePruning.keeping()] if recipe.sparsity else []

    def _quantize_all(self, branches: Sequence[_Branch], aware: bool | None) -> None:
        """Quantize models, of which the first is unpruned."""
        recipe, dense = self.job.recipe, branches[0]
        lost = [self._quantize(branch, dense) for branch in branches]
        if aware is None:
            aware = max(lost) > self.job.int8_tolerance
        if not (aware and recipe.quantize == "int8" and recipe.finetune_epochs):
            return
        if self.job.control and len(branches) == 1:
            self._control(recipe.finetune_epochs)
        for branch in branches:
            tuned = replace(branch, model=copy_of(branch.model))
            tuned.add_energy(self.finetune_aware(tuned.model, self._keeping() if branch.pruned else []))
            compared = dense.name if branch is dense else f"{dense.name}-int8{AWARE}"
            self._convert(tuned, f"{branch.name}-int8{AWARE}", "int8", compared)

    def _quantize(self, branch: _Branch, dense: _Branch) -> float:
        """Quantize a model; return its loss of accuracy."""
        kind = self.job.recipe.quantize
        assert kind is not None
        assert branch.score is not None
        compared = dense.name if branch is dense else f"{dense.name}-{kind}"
        quantized = self._convert(branch, f"{branch.name}-{kind}", kind, compared)
        # counts are exact; subtracting accuracies would add rounding errors
        return (branch.score.correct - quantized.correct) / quantized.answers

    def _reported(self, label: str, epochs: int) -> keras.callbacks.Callback:
        return keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: self.job.progress(f"fine-tuning {label}", epoch, epochs)
        )


def prune_ratio(recipe: Recipe, model: keras.Model) -> float:
    """Return the share of a model's channels that a recipe drops."""
    return recipe.prune if recipe.macs is None else ratio_for_macs(model, recipe.macs, protected=recipe.protected)


def count_batches(data: tf.data.Dataset) -> int:
    """Return the number of batches; if TensorFlow does not know it, read them once."""
    known = int(data.cardinality())
    return known if known >= 0 else int(data.reduce(np.int64(0), lambda count, _: count + 1))
