"""Run the steps of a recipe: each changes the model, fine-tunes it and converts it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from joulecache.pipelines.compressing.batch_norm import reestimate_batch_norm
from joulecache.pipelines.compressing.clustering import WeightSharing, cluster_weights
from joulecache.pipelines.compressing.kernels import copy_of, prunable_layers, weighted_layers
from joulecache.pipelines.compressing.measuring import ConvertedModel, Score, score
from joulecache.pipelines.compressing.pruning import kept_channels, prune_channels, ratio_for_macs
from joulecache.pipelines.compressing.quantization_aware import QuantizationAware
from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.compressing.regularization import with_l1, without_l1
from joulecache.pipelines.compressing.results import CONTROL
from joulecache.pipelines.compressing.sparsity import MagnitudePruning, prune_weights
from joulecache.pipelines.compressing.tflite import TfliteKind, to_tflite
from joulecache.pipelines.core.progress import Progress, silent
from joulecache.pipelines.energy import Energy, Meter
from joulecache.pipelines.models.fitting import compile_model, ends_in_softmax, has_soft_labels, run_epochs
from joulecache.pipelines.models.macs import count_macs

AWARE = "-aware"
"""Suffix of the names of models that were fine-tuned with int8's rounding."""

_LEARNING_RATE = 1e-3
_AWARE_LEARNING_RATE = 1e-4  # rounding is a small change
_GROWING = 2 / 3  # of the fine-tuning: the time in which zeros become more; the rest repairs


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all seeds of a compression share.

    Attributes:
        model: The given model, which stays untouched.
        recipe: The steps.
        train_data: Batches of (uint8 images, labels) to fine-tune on.
        batches: Number of these batches.
        test_data: Batches to measure on.
        calibration: Images that calibrate int8, uint8 `[N, H, W, C]`.
        control: Fine-tune the given model for as long, to compare with.
        meter: Meters all fine-tuning, in windows named "fine-tuning".
        progress: Receives the epochs of fine-tuning.
        int8_tolerance: Accuracy that int8 may lose before the models are fine-tuned with its rounding.
    """

    model: keras.Model
    recipe: Recipe
    train_data: tf.data.Dataset
    batches: int
    test_data: tf.data.Dataset
    calibration: NDArray[np.uint8] | None = None
    control: bool = True
    meter: Meter
    progress: Progress = silent
    int8_tolerance: float = 0.005


@dataclass
class _Track:
    """A model on its way.

    Attributes:
        name: `baseline`, `control`, or its steps so far.
        energy: Energy of its fine-tuning so far.
        score: Score of its float32 file.
    """

    name: str
    model: keras.Model
    energy: Energy | None = None
    pruned: bool = False
    score: Score | None = None

    def spend(self, energy: Energy | None) -> None:
        if energy is not None:
            self.energy = energy if self.energy is None else self.energy + energy


class StepRunner:
    """Runs the steps of a job with one seed.

    Args:
        job: What to do.
        seed: Seed of all that is random.
    """

    def __init__(self, job: Job, seed: int) -> None:
        self.job, self.seed = job, seed
        self._scores: dict[ConvertedModel, Score] = {}

    def run(self, *, aware: bool | None = None) -> dict[ConvertedModel, Score]:
        """Run all steps, with Keras' global seed set.

        Args:
            aware: Whether to fine-tune with int8's rounding; None: if int8 loses more than the tolerance.

        Returns:
            The converted models and their scores, in this order: "baseline", the given model; "control", the same
            fine-tuned for the epochs of all steps; after each step "pruned-float32", "pruned-sparse-float32" and so on;
            the quantized models of the control (or baseline) and of the last step; the same two fine-tuned with int8's
            rounding, "...-int8-aware", after a "control" if the recipe only quantizes.
        """
        # the Dropout of a copy draws a seed when it is made
        keras.utils.set_random_seed(self.seed)
        recipe = self.job.recipe
        steps = self._steps()
        last = dense = _Track("baseline", self.job.model)
        dense.score = self._convert(dense, "baseline", "float32", None)
        if steps and self.job.control and recipe.finetune_epochs:
            dense = self._control(recipe.finetune_epochs * len(steps))
        for number, (label, change) in enumerate(steps):
            name = f"{last.name}-{label}" if number else label
            last = _Track(name, last.model, last.energy, pruned=True)
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
        return score(model, self.job.test_data)

    def finetune(
        self, model: keras.Model, what: str, epochs: int, callbacks: Sequence[keras.callbacks.Callback] = ()
    ) -> Energy | None:
        """Fine-tune in place, then re-estimate the statistics of BatchNormalization, which are outdated by then.

        Returns:
            The energy; None if there was nothing to do.
        """
        job = self.job
        normalizes = any(isinstance(layer, layers.BatchNormalization) and layer.trainable for layer in model.layers)
        if not epochs and not normalizes:
            return None
        keras.utils.set_random_seed(self.seed)
        with job.meter.window("fine-tuning") as window:
            if epochs:
                soft = has_soft_labels(job.train_data)
                compile_model(model, _LEARNING_RATE, steps=job.batches * epochs, soft_labels=soft)
                run_epochs(model, job.train_data, epochs=epochs, callbacks=[*callbacks, self._reported(what, epochs)])
            if normalizes:
                reestimate_batch_norm(model, job.train_data)
        return window.energy

    def finetune_aware(self, model: keras.Model, callbacks: Sequence[keras.callbacks.Callback]) -> Energy:
        """Fine-tune in place with int8's rounding; return the energy."""
        job, epochs = self.job, self.job.recipe.finetune_epochs
        keras.utils.set_random_seed(self.seed)
        with job.meter.window("fine-tuning") as window:
            rounded = QuantizationAware(model)
            compile_model(
                rounded,
                _AWARE_LEARNING_RATE,
                steps=job.batches * epochs,
                soft_labels=has_soft_labels(job.train_data),
                softmax=ends_in_softmax(model),
            )
            reported = self._reported(f"{model.name} with int8's rounding", epochs)
            run_epochs(rounded, job.train_data, epochs=epochs, callbacks=[*callbacks, reported])
            rounded.give_to(model)
        return window.energy

    def _steps(self) -> list[tuple[str, Callable[[_Track], None]]]:
        recipe = self.job.recipe
        steps = (
            (recipe.prunes_channels, "pruned", self._prune),
            (recipe.sparsity > 0, "sparse", self._sparsify),
            (recipe.clusters is not None, "clustered", self._cluster),
        )
        return [(label, change) for wanted, label, change in steps if wanted]

    def _convert(self, track: _Track, name: str, kind: TfliteKind, dense: str | None) -> Score:
        model = ConvertedModel(
            name=name,
            model=track.model,
            content=self.file_of(track.model, kind),
            dense=dense,
            finetune_energy=track.energy,
            pruned=track.pruned,
        )
        self._scores[model] = self.score(model)
        return self._scores[model]

    def _control(self, epochs: int) -> _Track:
        """Fine-tune a copy of the given model."""
        track = _Track(CONTROL, copy_of(self.job.model))
        track.spend(self.finetune(track.model, "the control", epochs))
        track.score = self._convert(track, CONTROL, "float32", None)
        return track

    def _prune(self, track: _Track) -> None:
        recipe, ratio = self.job.recipe, prune_ratio(self.job.recipe, track.model)
        track.model = prune_channels(track.model, ratio, criterion=recipe.criterion, protected=recipe.protected)
        track.spend(self.finetune(track.model, "the pruned model", recipe.finetune_epochs))

    def _sparsify(self, track: _Track) -> None:
        recipe = self.job.recipe
        if not recipe.finetune_epochs:
            track.model = prune_weights(track.model, recipe.sparsity)
            track.spend(self.finetune(track.model, "the sparse model", 0))
            return
        steps = self.job.batches * recipe.finetune_epochs
        track.model = with_l1(track.model, recipe.l1) if recipe.l1 else copy_of(track.model)
        pruning = MagnitudePruning(recipe.sparsity, 0, int(steps * _GROWING), every=max(1, steps // 100))
        track.spend(self.finetune(track.model, "the sparse model", recipe.finetune_epochs, [pruning]))
        if recipe.l1:
            track.model = without_l1(track.model)

    def _cluster(self, track: _Track) -> None:
        recipe = self.job.recipe
        assert recipe.clusters is not None
        track.model = cluster_weights(track.model, recipe.clusters, per=recipe.cluster_per)
        track.spend(self.finetune(track.model, "the clustered model", recipe.finetune_epochs, self._keeping()))

    def _keeping(self) -> list[keras.callbacks.Callback]:
        """Return the callbacks that keep zeros and shared values; sharing keeps zeros too."""
        recipe = self.job.recipe
        if recipe.clusters is not None:
            return [WeightSharing(per=recipe.cluster_per)]
        return [MagnitudePruning.keeping()] if recipe.sparsity else []

    def _quantize_all(self, tracks: Sequence[_Track], aware: bool | None) -> None:
        """Quantize models, the first of which is the unpruned one."""
        recipe, dense = self.job.recipe, tracks[0]
        lost = [self._quantize(track, dense) for track in tracks]
        if aware is None:
            aware = max(lost) > self.job.int8_tolerance
        if not (aware and recipe.quantize == "int8" and recipe.finetune_epochs):
            return
        if self.job.control and len(tracks) == 1:
            self._control(recipe.finetune_epochs)
        for track in tracks:
            tuned = replace(track, model=copy_of(track.model))
            tuned.spend(self.finetune_aware(tuned.model, self._keeping() if track.pruned else []))
            compared = dense.name if track is dense else f"{dense.name}-int8{AWARE}"
            self._convert(tuned, f"{track.name}-int8{AWARE}", "int8", compared)

    def _quantize(self, track: _Track, dense: _Track) -> float:
        """Quantize a model; return the accuracy that it lost."""
        kind = self.job.recipe.quantize
        assert kind is not None
        assert track.score is not None
        compared = dense.name if track is dense else f"{dense.name}-{kind}"
        quantized = self._convert(track, f"{track.name}-{kind}", kind, compared)
        # a difference of accuracies would be rounded
        return (track.score.correct - quantized.correct) / quantized.images

    def _reported(self, what: str, epochs: int) -> keras.callbacks.Callback:
        return keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: self.job.progress(f"fine-tuning {what}", epoch, epochs)
        )


def check_recipe(recipe: Recipe, model: keras.Model) -> None:
    """Check that a recipe can be applied to a model.

    Raises:
        ValueError: It cannot, or the model's multiply-accumulates cannot be counted; the message names the layer.
    """
    count_macs(model)
    if None in model.inputs[0].shape[1:]:
        raise ValueError(f"model {model.name!r} takes images of any size: fix the image size of keras.Input")
    if not model.count_params():
        raise ValueError(f"model {model.name!r} has no weights: there is nothing to compress")
    if recipe.prunes_channels:
        kept_channels(model, prune_ratio(recipe, model), criterion=recipe.criterion, protected=recipe.protected)
    if recipe.sparsity:
        prunable_layers(model)
    if recipe.clusters:
        weighted_layers(model)


def prune_ratio(recipe: Recipe, model: keras.Model) -> float:
    """Return the share of a model's channels that a recipe drops."""
    return recipe.prune if recipe.macs is None else ratio_for_macs(model, recipe.macs, protected=recipe.protected)


def count_batches(data: tf.data.Dataset) -> int:
    """Return the number of batches; if TensorFlow does not know it, read them once."""
    known = int(data.cardinality())
    return known if known >= 0 else int(data.reduce(np.int64(0), lambda count, _: count + 1))
