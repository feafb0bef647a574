"""The stages of a recipe, one after the other: each changes a model, fine-tunes it and gives the file of what it became."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from joulecache.pipelines.compressing.batch_norm import reestimate_batch_norm
from joulecache.pipelines.compressing.clustering import WeightSharing, cluster_weights
from joulecache.pipelines.compressing.model_files import Form, Score, score
from joulecache.pipelines.compressing.pruning import kept_channels, prune_channels, ratio_for_macs
from joulecache.pipelines.compressing.quantization_aware import QuantizationAware
from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.compressing.sparsity import (
    MagnitudePruning,
    copy_of,
    prunable_layers,
    prune_weights,
    weighted_layers,
    with_l1,
    without_l1,
)
from joulecache.pipelines.compressing.tflite import to_tflite
from joulecache.pipelines.energy import Energy, Meter
from joulecache.pipelines.models import compile_model, count_macs, ends_in_softmax, has_soft_labels, run_epochs

MOST_LOST = 0.005
"""Accuracy that int8 may lose after training before the model is trained again with its rounding in sight."""

AWARE = "-aware"
"""How the names end of forms that were fine-tuned with int8's rounding."""

Tell = Callable[[str, int, int], None]

_LEARNING_RATE = 1e-3
_AWARE_LEARNING_RATE = 1e-4  # rounding is a small change
_GROWING = 2 / 3  # of the fine-tuning, in which ever more weights are pruned; the rest repairs


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What fine-tuning has: the data, its number of batches, the seed, the meter that counts what it takes.

    `tell` hears of each epoch: what is done, how many of how many epochs.
    """

    data: tf.data.Dataset
    batches: int
    seed: int
    meter: Meter
    tell: Tell


@dataclass
class _Track:
    """A model on its way, what fine-tuning it took so far, and whether a stage changed it."""

    model: keras.Model
    energy: Energy | None = None
    pruned: bool = False

    def spend(self, energy: Energy) -> None:
        self.energy = energy if self.energy is None else self.energy + energy


def check_recipe(recipe: Recipe, model: keras.Model) -> None:
    """Check that a recipe can be done to a model.

    Raises:
        ValueError: It cannot, or the model's multiply-accumulates cannot be counted; the message names the layer.
    """
    count_macs(model)
    if None in model.inputs[0].shape[1:]:
        raise ValueError(f"model {model.name!r} takes images of any size: give keras.Input a fixed one")
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
    """Return the number of batches; where TensorFlow does not know it, they are read once."""
    known = int(data.cardinality())
    return known if known >= 0 else int(data.reduce(np.int64(0), lambda count, _: count + 1))


def make_forms(
    model: keras.Model,
    recipe: Recipe,
    budget: Budget,
    test_data: tf.data.Dataset,
    *,
    control: bool,
    calibration: NDArray[np.uint8] | None,
    aware: bool | None = None,
) -> tuple[tuple[Form, ...], tuple[Score, ...]]:
    """Do what a recipe says, and return the form that each stage gave with its score on all of `test_data`.

    They are: "baseline", the given model; "control", the given model fine-tuned for as many epochs as all stages, where
    there are any; "pruned-float32", "pruned-sparse-float32" and so on; then the quantized forms of the unpruned model and of
    the last stage. Where int8 loses more than MOST_LOST in one of these, both are fine-tuned with int8's rounding ("-aware"),
    which `aware` decides where it is not None; without stages beside a control. int8 is calibrated on `calibration`.
    """
    forms: list[Form] = []
    scores: list[Score] = []

    def add(name: str, track: _Track, dense: str | None, content: bytes) -> Score:
        forms.append(
            Form(
                name=name,
                model=track.model,
                content=content,
                dense=dense,
                finetune_energy=track.energy,
                pruned=track.pruned,
            )
        )
        scores.append(score(forms[-1], test_data))
        return scores[-1]

    keras.utils.set_random_seed(budget.seed)  # the Dropout of a copy draws a seed when it is made
    stages = _stages(recipe)
    current = unpruned = _Track(model)
    unpruned_name = done = "baseline"
    before = after = add("baseline", current, None, to_tflite(model, "float32"))
    if stages and control and recipe.finetune_epochs:
        unpruned, unpruned_name = _Track(copy_of(model)), "control"
        _tune(unpruned, budget, "the control", recipe.finetune_epochs * len(stages))
        before = add("control", unpruned, None, to_tflite(unpruned.model, "float32"))
    for number, (_, change) in enumerate(stages, start=1):
        current = _Track(current.model, current.energy, pruned=True)
        change(current, recipe, budget)
        done = "-".join(label for label, _ in stages[:number])
        after = add(f"{done}-float32", current, unpruned_name, to_tflite(current.model, "float32"))
    if recipe.quantize is None:
        return tuple(forms), tuple(scores)

    # the same model twice where nothing was pruned
    ends = [(unpruned_name, unpruned, before)] + ([(done, current, after)] if stages else [])
    lost = []
    for name, track, whole in ends:
        dense = unpruned_name if track is unpruned else f"{unpruned_name}-{recipe.quantize}"
        content = to_tflite(track.model, recipe.quantize, calibration, minimum_calibration=1)
        quantized = add(f"{name}-{recipe.quantize}", track, dense, content)
        lost.append((whole.correct - quantized.correct) / whole.images)  # of accuracies, rounding could make it more
    wanted = max(lost) > MOST_LOST if aware is None else aware
    if recipe.quantize == "int8" and recipe.finetune_epochs and wanted:
        if control and not stages:
            tuned = _Track(copy_of(model))
            _tune(tuned, budget, "the control", recipe.finetune_epochs)
            add("control", tuned, None, to_tflite(tuned.model, "float32"))
        for name, track, _ in ends:
            dense = unpruned_name if track is unpruned else f"{unpruned_name}-int8{AWARE}"
            tuned = _Track(copy_of(track.model), track.energy, track.pruned)
            _tune_aware(tuned, recipe, budget)
            content = to_tflite(tuned.model, "int8", calibration, minimum_calibration=1)
            add(f"{name}-int8{AWARE}", tuned, dense, content)
    return tuple(forms), tuple(scores)


def _told(budget: Budget, what: str, epochs: int) -> keras.callbacks.Callback:
    return keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: budget.tell(f"fine-tuning {what}", epoch, epochs)
    )


def _stages(recipe: Recipe) -> list[tuple[str, Callable[[_Track, Recipe, Budget], None]]]:
    asked = (
        (recipe.prunes_channels, "pruned", _prune),
        (recipe.sparsity > 0, "sparse", _sparsify),
        (recipe.clusters is not None, "clustered", _cluster),
    )
    return [(label, change) for wanted, label, change in asked if wanted]


def _prune(track: _Track, recipe: Recipe, budget: Budget) -> None:
    ratio = prune_ratio(recipe, track.model)
    track.model = prune_channels(track.model, ratio, criterion=recipe.criterion, protected=recipe.protected)
    _tune(track, budget, "the pruned model", recipe.finetune_epochs)


def _sparsify(track: _Track, recipe: Recipe, budget: Budget) -> None:
    if not recipe.finetune_epochs:
        track.model = prune_weights(track.model, recipe.sparsity)
        _tune(track, budget, "the sparse model", 0)
        return
    steps = budget.batches * recipe.finetune_epochs
    track.model = with_l1(track.model, recipe.l1) if recipe.l1 else copy_of(track.model)
    growing = MagnitudePruning(recipe.sparsity, 0, int(steps * _GROWING), every=max(1, steps // 100))
    _tune(track, budget, "the sparse model", recipe.finetune_epochs, [growing])
    if recipe.l1:
        track.model = without_l1(track.model)


def _cluster(track: _Track, recipe: Recipe, budget: Budget) -> None:
    assert recipe.clusters is not None
    track.model = cluster_weights(track.model, recipe.clusters, per=recipe.cluster_per)
    _tune(track, budget, "the clustered model", recipe.finetune_epochs, _keeping(recipe))


def _keeping(recipe: Recipe) -> list[keras.callbacks.Callback]:
    """Return what keeps the zeros and the shared values of all stages of a recipe; sharing keeps zeros, too."""
    if recipe.clusters is not None:
        return [WeightSharing(per=recipe.cluster_per)]
    return [MagnitudePruning.keeping()] if recipe.sparsity else []


def _tune(
    track: _Track, budget: Budget, what: str, epochs: int, callbacks: Sequence[keras.callbacks.Callback] = ()
) -> None:
    """Fine-tune in place, then take BatchNormalization's statistics anew, which pruning changed and training trails."""
    normalizes = any(isinstance(layer, layers.BatchNormalization) and layer.trainable for layer in track.model.layers)
    if not epochs and not normalizes:
        return
    keras.utils.set_random_seed(budget.seed)
    with budget.meter.window("fine-tuning") as window:
        if epochs:
            soft, steps = has_soft_labels(budget.data), budget.batches * epochs
            compile_model(track.model, _LEARNING_RATE, steps=steps, soft_labels=soft)
            run_epochs(track.model, budget.data, epochs=epochs, callbacks=[*callbacks, _told(budget, what, epochs)])
        if normalizes:
            reestimate_batch_norm(track.model, budget.data)
    track.spend(window.energy)


def _tune_aware(track: _Track, recipe: Recipe, budget: Budget) -> None:
    """Fine-tune in place with int8's rounding, keeping the zeros and the shared values that the recipe made."""
    epochs = recipe.finetune_epochs
    keras.utils.set_random_seed(budget.seed)
    with budget.meter.window("fine-tuning") as window:
        rounded = QuantizationAware(track.model)
        compile_model(
            rounded,
            _AWARE_LEARNING_RATE,
            steps=budget.batches * epochs,
            soft_labels=has_soft_labels(budget.data),
            softmax=ends_in_softmax(track.model),
        )
        held = _keeping(recipe) if track.pruned else []
        told = _told(budget, f"{track.model.name} with int8's rounding", epochs)
        run_epochs(rounded, budget.data, epochs=epochs, callbacks=[*held, told])
        rounded.give_to(track.model)
    track.spend(window.energy)
