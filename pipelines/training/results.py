"""Results of a training. Imports no TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from joulecache.pipelines.compressing.results import Compression
from joulecache.pipelines.core.notebook import Displayed
from joulecache.pipelines.energy import Energy


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What training gave: `history` is Keras', each name with one value per epoch, joules and the wait for input included.

    `energy` is that of training all epochs, `val_energy` that of validating after each; None without validation. `accuracy` and
    `val_accuracy` are those of the last epoch. `images` counts every image as often as it was trained on; None where
    the model's own train step hides it.
    """

    history: Mapping[str, Sequence[float]]
    energy: Energy
    val_energy: Energy | None
    accuracy: float
    val_accuracy: float | None
    images: int | None

    def to_json(self) -> dict[str, object]:
        """Return a dict of JSON values, the history as one row per epoch; None where a loss diverged."""
        rows = zip(*self.history.values(), strict=True)
        return {
            "epochs": [
                {name: value if math.isfinite(value) else None for name, value in zip(self.history, row, strict=True)}
                for row in rows
            ],
            "accuracy": self.accuracy,
            "val_accuracy": self.val_accuracy,
            "images": self.images,
            "energy": self.energy.to_json(),
            "val_energy": self.val_energy and self.val_energy.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class TrainedModel(Displayed):
    """A run folder: the model file `path` in `folder`, how it was trained, and what compressing it gave, if asked for."""

    folder: Path
    path: Path
    training: TrainingRun
    compression: Compression | None
