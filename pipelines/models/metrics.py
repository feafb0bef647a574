"""The metric by which trained models are compared. Imports no TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

_HIGHER = re.compile(r"accuracy|auc|iou|dice|jaccard|f1|fbeta|precision|recall|sensitivity|specificity|r2|similarity")
_LOWER = re.compile(r"loss|error|mse|mae|mape|msle|rmse|entropy|hinge|divergence|distance|perplexity")
_DIRECTIONS = {"up": True, "down": False}  # as Keras' metrics say it


@dataclass(frozen=True)
class Metric:
    """The first metric of a model that is not a loss, or else its loss.

    Attributes:
        name: Its name in Keras' logs.
        higher_is_better: Whether a higher value is better; None if neither the metric nor its name says so.
    """

    name: str
    higher_is_better: bool | None

    @property
    def is_accuracy(self) -> bool:
        """Whether it is a share of correct answers, shown in percent."""
        return is_accuracy(self.name)

    @property
    def title(self) -> str:
        """Its name at the beginning of a title or sentence."""
        return "Accuracy" if self == ACCURACY else self.name

    @property
    def better(self) -> str:
        """Which values are better, in words."""
        words = {True: "higher is better", False: "lower is better", None: "which direction is better is unknown"}
        return words[self.higher_is_better]


ACCURACY = Metric("accuracy", higher_is_better=True)
BINARY_ACCURACY = Metric("binary_accuracy", higher_is_better=True)
"""The share of correct answers over all classes of all images."""


def is_accuracy(name: str) -> bool:
    """Return whether a metric with this name is an accuracy."""
    return name.endswith("accuracy")


def is_loss(name: str) -> bool:
    """Return whether a key of Keras' logs is the loss, or that of one output."""
    return name == "loss" or name.endswith("_loss")


def in_order(names: Iterable[str], model: Any) -> list[str]:
    """Return keys of Keras' results, which it sorts, in the order in which a model was compiled with its metrics."""
    given = list(names)
    compiled = [name for name in model.get_metrics_result() if name in given]
    return [*compiled, *(name for name in given if name not in compiled)]


def first_metric(names: Iterable[str], model: Any) -> Metric:
    """Return the metric by which models are compared.

    Args:
        names: Keys of Keras' results.
        model: The Keras model, compiled and evaluated.
    """
    name = next((name for name in in_order(names, model) if not is_loss(name)), "loss")
    for metric in _single(model.metrics):
        if name == metric.name or name.endswith(f"_{metric.name}"):
            found = _DIRECTIONS.get(getattr(metric, "_direction", None) or "")
            return Metric(name, direction_of(name) if found is None else found)
    return Metric(name, direction_of(name))


def _single(metrics: Iterable[Any]) -> Iterator[Any]:
    """Yield metrics without those that only hold others."""
    for metric in metrics:
        held = getattr(metric, "metrics", None)
        yield from held if held is not None else (metric,)


def direction_of(name: str) -> bool | None:
    """Return whether a higher value of a metric is better, by its name; None if the name does not say."""
    higher, lower = _HIGHER.search(name.lower()), _LOWER.search(name.lower())
    return None if (higher is None) == (lower is None) else higher is not None
