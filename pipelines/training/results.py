"""Results of a training. Imports no TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from joulecache.pipelines.compressing.results import Compression
from joulecache.pipelines.core.codec import JSON, to_json
from joulecache.pipelines.core.notebook import Displayed
from joulecache.pipelines.core.statistics import is_at_chance
from joulecache.pipelines.energy import Energy
from joulecache.pipelines.models.metrics import ACCURACY, Metric

TRAINING_RECORD = "history.json"


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """Measurements of a training.

    Attributes:
        history: Keras' history: by metric, including loss, joules and waits for input, one value per epoch.
        energy: Energy of training all epochs.
        val_energy: Energy of validating after each epoch; None without validation.
        loss: Loss on the training images in the last epoch; None if the model has none.
        val_loss: Loss on the validation images after the last epoch; None without validation.
        score: The metric on the training images in the last epoch; None if it is not measured in training.
        val_score: The metric on the validation images after the last epoch; None without validation.
        images: Images trained on, once per epoch; None if a custom train step hides it.
        val_images: Validation images; None if unknown.
        chance: Accuracy of always answering the most frequent class of the validation images; None if unknown.
        metric: The model's first metric, of which `score` and `val_score` are values.
        objective: Loss and metric in words; None for models of functions.
    """

    history: Mapping[str, Sequence[float]]
    energy: Energy
    val_energy: Energy | None
    loss: float | None
    val_loss: float | None
    score: float | None
    val_score: float | None
    images: int | None
    val_images: int | None = None
    chance: float | None = None
    metric: Metric = ACCURACY
    objective: str | None = None

    @property
    def is_at_chance(self) -> bool:
        """Whether the model is not shown to be better than always answering the most frequent class."""
        if self.val_score is None or self.val_images is None or self.chance is None:
            return False
        return is_at_chance(self.val_score, self.val_images, self.chance)

    def to_json(self) -> dict[str, JSON]:
        """Return JSON values, with the history as one object per epoch; values that are not finite are None."""
        rows = zip(*self.history.values(), strict=True)
        return {
            "epochs": [{name: _finite(value) for name, value in zip(self.history, row, strict=True)} for row in rows],
            "loss": _finite(self.loss),
            "val_loss": _finite(self.val_loss),
            "metric": to_json(self.metric),
            "objective": self.objective,
            self.metric.name: _finite(self.score),
            f"val_{self.metric.name}": _finite(self.val_score),
            "images": self.images,
            "val_images": self.val_images,
            "chance": self.chance,
            "energy": to_json(self.energy),
            "val_energy": None if self.val_energy is None else to_json(self.val_energy),
        }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


@dataclass(frozen=True, kw_only=True)
class TrainedModel(Displayed):
    """A run folder and its contents.

    Attributes:
        folder: The run folder.
        path: The Keras model file in it.
        training: Measurements of the training.
        compression: Result of compressing the model; None if there was no recipe.
    """

    folder: Path
    path: Path
    training: TrainingRun
    compression: Compression | None
