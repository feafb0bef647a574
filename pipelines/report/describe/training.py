"""A trained model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from joulecache.pipelines.core import quantities
from joulecache.pipelines.models.metrics import Metric, is_loss
from joulecache.pipelines.report.describe.compression import describe_compression
from joulecache.pipelines.report.describe.values import constant_answer, flagged, score, total
from joulecache.pipelines.report.document import Column, Document, Section, Sentence, Table, Value, table, words
from joulecache.pipelines.training.results import TRAINING_RECORD, TrainedModel, TrainingRun

_MOST_EPOCHS = 20  # in a table, besides the first and the last


def describe_training(trained: TrainedModel) -> Document:
    """Describe a trained model, and its compression if there was one."""
    run = trained.training
    compressed = None if trained.compression is None else describe_compression(trained.compression)
    return Document(
        "joulecache: a trained model",
        str(trained.path),
        headline=(Sentence(f"{trained.path}: {_scores(run)}; training used {_used(run)}.", _chance(run)),),
        warning=" ".join(filter(None, (flagged("Training", run.energy), compressed.warning if compressed else ""))),
        sections=(Section("", (_epochs(run),)), *(compressed.sections if compressed else ())),
    )


def _scores(run: TrainingRun) -> str:
    trained = f"{_scored(run.metric, run.score, run.loss)} on the training images"
    if run.val_score is None:
        return f"{trained}, no images held out"
    held_out = f"{_scored(run.metric, run.val_score, run.val_loss)} on the held-out images"
    return f"{held_out}{', at chance level' * run.is_at_chance}; {trained}"


def _scored(metric: Metric, value: float | None, loss_value: float | None) -> str:
    parts = [] if is_loss(metric.name) else [f"{metric.name} {score(metric, value)}"]
    return " and ".join(parts + ([] if loss_value is None else [f"loss {loss(loss_value)}"]))


def _used(run: TrainingRun) -> str:
    carbon = "" if run.energy.carbon_g is None else f", {quantities.grams(run.energy.carbon_g)} of CO2 equivalent"
    return f"{total(run.energy)}, {run.energy.method}{carbon}"


def _chance(run: TrainingRun) -> str:
    return constant_answer(run.chance) if run.is_at_chance and run.chance is not None else ""


def loss(value: float | None) -> str:
    """Return a loss with four digits."""
    return quantities.NOT_MEASURED if value is None else f"{value:#.4g}"


class _Epoch(NamedTuple):
    number: int
    logs: dict[str, float]


def _epochs(run: TrainingRun) -> Table:
    """Return loss, accuracy and energy by epoch; of a long training, those of the first, the last and evenly spaced epochs."""
    epochs, metric = len(run.history["energy_j"]), run.metric
    step = math.ceil(epochs / _MOST_EPOCHS)
    shown = sorted({1, *range(step, epochs, step), epochs})
    rows = [_Epoch(number, {name: values[number - 1] for name, values in run.history.items()}) for number in shown]
    like_j = quantities.largest(run.history["energy_j"])
    columns: dict[Column, Callable[[_Epoch], Value]] = {
        words("Epoch"): lambda epoch: str(epoch.number),
        Column("Loss"): lambda epoch: loss(epoch.logs.get("loss")),
    }
    scored = not is_loss(metric.name)
    if scored:
        columns[Column(metric.title)] = lambda epoch: score(metric, epoch.logs.get(metric.name))
    if run.val_score is not None:
        columns[Column("Held-out loss")] = lambda epoch: loss(epoch.logs.get("val_loss"))
        if scored:
            columns[Column(f"Held-out {metric.name}")] = lambda epoch: score(
                metric, epoch.logs.get(f"val_{metric.name}")
            )
    columns[Column("Energy", priority=1)] = lambda epoch: quantities.joules(epoch.logs["energy_j"], like_j)
    if "co2eq_g" in run.history:
        columns[Column("CO2 equivalent", priority=2)] = lambda epoch: quantities.grams(epoch.logs["co2eq_g"])
    if "input_wait_s" in run.history:
        columns[Column("Waited for input", priority=3)] = lambda epoch: quantities.seconds(epoch.logs["input_wait_s"])
    notes = [f"Trained with {run.objective}."] if run.objective else []
    if len(shown) < epochs:
        notes.append(f"All {epochs} epochs: {TRAINING_RECORD}.")
    return table("Epochs", rows, columns, " ".join(notes))
