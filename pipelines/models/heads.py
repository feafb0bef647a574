"""Heads of classifiers: what their outputs are, which targets they fit, and the loss and metric to train them with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from joulecache.pipelines.models import backend  # noqa: F401
from joulecache.pipelines.models.flattening import is_nested
from joulecache.pipelines.models.metrics import ACCURACY, BINARY_ACCURACY, Metric
from joulecache.pipelines.source.features import ClassLabel, MultiLabel

_NOTES = logging.getLogger("joulecache")

Kind = Literal["logit", "sigmoid", "softmax"]

_UNCHANGED = (layers.Identity, layers.Dropout, layers.Flatten, layers.Reshape, layers.ActivityRegularization)
_KINDS: dict[Callable[..., Any], Kind] = {keras.activations.softmax: "softmax", keras.activations.sigmoid: "sigmoid"}
_OPERATIONS: dict[str, Kind] = {"Softmax": "softmax", "Sigmoid": "sigmoid"}  # `keras.ops.softmax(x)`


@dataclass(frozen=True)
class Head:
    """The outputs of a classifier.

    Attributes:
        outputs: Number of outputs for each image.
        kind: What one is: a logit, or a probability from a sigmoid or from a softmax over all of them.
    """

    outputs: int
    kind: Kind

    @property
    def threshold(self) -> float:
        """Value above which one output says yes."""
        return 0.0 if self.kind == "logit" else 0.5

    def answers(self, outputs: NDArray[np.floating[Any]], *, multi_label: bool = False) -> NDArray[np.integer[Any]]:
        """Return the classes `[B]` that outputs `[B, K]` stand for; for multi-labels 0 or 1 for each class, `[B, K]`."""
        if multi_label:
            return (outputs > self.threshold).astype(np.int64)
        return outputs.argmax(axis=-1) if self.outputs > 1 else (outputs[:, 0] > self.threshold).astype(np.int64)

    def __str__(self) -> str:
        return f"{'one' if self.outputs == 1 else self.outputs} {self.kind}{'' if self.outputs == 1 else _PLURAL[self.kind]}"


_PLURAL: dict[Kind, str] = {"logit": "s", "sigmoid": "s", "softmax": " outputs"}


@dataclass(frozen=True)
class Objective:
    """What a classifier is trained with.

    Attributes:
        loss: The loss.
        measured: The Keras metric.
        metric: Its name and direction.
        description: Both in words.
    """

    loss: keras.losses.Loss
    measured: keras.metrics.Metric | str
    metric: Metric
    description: str


def head_of(model: keras.Model) -> Head:
    """Return the head of a functional or sequential classifier, in a nested model too."""
    return Head(model.outputs[0].shape[-1], _kind_of(model.outputs[0]))


def kind_of_layer(step: keras.Operation) -> Kind:
    """Return what a layer or an operation outputs."""
    if isinstance(step, layers.Softmax):
        return "softmax"
    if not isinstance(step, keras.Layer):
        return _OPERATIONS.get(type(step).__name__, "logit")
    return _KINDS.get(getattr(step, "activation", None) or keras.activations.linear, "logit")


def check_head(model: keras.Model, feature: ClassLabel | MultiLabel, where: str) -> None:
    """Raise ValueError if the outputs of a classifier do not fit the classes of a source or cache, `where`."""
    if len(model.outputs[0].shape) != 2:
        raise ValueError(
            f"the model {model.name!r} has outputs {model.outputs[0].shape}, expected [B, classes]: end it in pooling or Flatten"
        )
    head, classes = head_of(model), len(feature.names)
    multi_label = isinstance(feature, MultiLabel)
    if head.outputs != classes and (multi_label or (head.outputs, classes) != (1, 2)):
        one = " or one" if classes == 2 and not multi_label else ""
        raise ValueError(
            f"the model {model.name!r} has {head}, but {where!r} has {classes} classes: use a model with {classes}{one} outputs"
        )
    if multi_label and head.kind == "softmax":
        raise ValueError(
            f"the model {model.name!r} ends in a softmax, which chooses one class, but images in {where!r} have several: end it in a "
            "sigmoid or in logits"
        )


def log_objective(model: keras.Model, feature: ClassLabel | MultiLabel) -> None:
    """Say with which loss and metric a classifier is trained."""
    chosen = objective(head_of(model), multi_label=isinstance(feature, MultiLabel))
    _NOTES.warning("model %r is trained with %s", model.name, chosen.description)


def objective(head: Head, *, soft_labels: bool = False, multi_label: bool = False) -> Objective:
    """Choose the loss and the metric of a classifier.

    Args:
        head: Its head.
        soft_labels: Labels are shares `[B, K]`.
        multi_label: Labels are 0 or 1 for each of K classes, `[B, K]`.
    """
    logits = head.kind == "logit"
    of = f"of {head}"
    if multi_label:
        measured = keras.metrics.BinaryAccuracy(BINARY_ACCURACY.name, threshold=head.threshold)
        loss = keras.losses.BinaryCrossentropy(from_logits=logits)
        return Objective(loss, measured, BINARY_ACCURACY, f"binary cross-entropy {of}; accuracy over all classes")
    if head.outputs == 1:
        of_two = f"binary cross-entropy {of}; accuracy at {head.threshold:g}"
        measure = _SharesAccuracy if soft_labels else keras.metrics.BinaryAccuracy
        kind = _SharesCrossentropy if soft_labels else keras.losses.BinaryCrossentropy
        return Objective(kind(from_logits=logits), measure(ACCURACY.name, threshold=head.threshold), ACCURACY, of_two)
    kind = keras.losses.CategoricalCrossentropy if soft_labels else keras.losses.SparseCategoricalCrossentropy
    return Objective(kind(from_logits=logits), ACCURACY.name, ACCURACY, f"categorical cross-entropy {of}; accuracy")


class _SharesCrossentropy(keras.losses.BinaryCrossentropy):  # type: ignore[misc]
    """Binary cross-entropy of one output with shares of two classes `[B, 2]`."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return super().call(y_true[..., 1:], y_pred)


class _SharesAccuracy(keras.metrics.BinaryAccuracy):  # type: ignore[misc]
    """Accuracy of one output with shares of two classes `[B, 2]`."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        larger = keras.ops.cast(y_true[..., 1:] > 0.5, y_pred.dtype)
        return super().update_state(larger, y_pred, sample_weight)


def _kind_of(tensor: keras.KerasTensor) -> Kind:
    """Return what a tensor of a model is, past layers that do not change it."""
    step, node, place = tensor._keras_history
    if is_nested(step):
        return _kind_of(step.outputs[place])
    found = kind_of_layer(step)
    linear = isinstance(step, layers.Activation) and step.activation is keras.activations.linear
    if found == "logit" and (isinstance(step, _UNCHANGED) or linear or type(step).__name__ == "Cast"):
        return _kind_of(step._inbound_nodes[node].input_tensors[0])
    return found
