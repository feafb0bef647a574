"""Checks of training data, the loss and optimizer of a classifier, and a quiet `fit`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from joulecache.pipelines.models import backend  # noqa: F401
from joulecache.pipelines.models.classifiers import shape_text
from joulecache.pipelines.models.heads import Head, Objective, head_of, objective

MAX_SEED = 2**32 - 1
"""The largest seed that Keras accepts."""


def check_batches(
    data: tf.data.Dataset, what: str, model: keras.Model | None = None
) -> tuple[int | None, int | None, int | None]:
    """Check that a dataset can train or test a classifier.

    Args:
        data: A finite dataset of (uint8 images `[B, H, W, C]`, integer labels `[B]` or float labels `[B, K]`), with or without
            weights `[B]` of the images.
        what: Name of the data in messages.
        model: A classifier whose input shape the images must match, and whose outputs labels `[B, K]`.

    Returns:
        The shape (H, W, C) of an image; None for a size that varies.

    Raises:
        ValueError: The data has the wrong structure, is empty or is infinite.
    """
    spec = data.element_spec
    parts = list(spec) if isinstance(spec, tuple) else [spec]
    ranks = [getattr(part, "shape", tf.TensorShape(None)).rank for part in parts]
    if (
        ranks not in ([4, 1], [4, 2], [4, 1, 1], [4, 2, 1])
        or parts[0].dtype != tf.uint8
        or not (parts[1].dtype.is_integer if ranks[1] == 1 else parts[1].dtype.is_floating)
    ):
        raise ValueError(
            f"{what} must be batches of (uint8 images [B, H, W, C], integer labels [B] or float labels [B, K]); models "
            f"scale pixels themselves, so leave to_float and normalize out of the chain; got {spec}"
        )
    check_finite_epochs(data, what)
    shape: tuple[int | None, int | None, int | None] = tuple(parts[0].shape[1:])
    if model is not None and any(
        size != wanted and None not in (size, wanted)
        for size, wanted in zip(shape, model.inputs[0].shape[1:], strict=True)
    ):
        wanted = shape_text(model.inputs[0].shape[1:])
        raise ValueError(f"{what} has images of {shape_text(shape)}, but the model expects {wanted}: resize them")
    if model is not None and ranks[1] == 2:
        _check_width(parts[1].shape[1], what, model)
    return shape


def _check_width(classes: int | None, what: str, model: keras.Model) -> None:
    """Raise ValueError if labels `[B, classes]` do not fit the outputs of a model; one output decides between two classes."""
    outputs = model.outputs[0].shape[-1]
    if classes is not None and outputs != classes and (outputs, classes) != (1, 2):
        raise ValueError(f"{what} has labels of {classes} classes, but the model has {outputs} outputs: choose another")


def check_finite_epochs(data: tf.data.Dataset, what: str) -> None:
    """Raise ValueError if a dataset is empty or infinite."""
    if data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"{what} never ends: remove .repeat()")
    if data.cardinality() == 0:
        raise ValueError(f"{what} is empty: expected at least one batch")


def has_soft_labels(data: tf.data.Dataset) -> bool:
    """Return whether labels are class shares `[B, K]` instead of class numbers `[B]`."""
    return int(data.element_spec[1].shape.rank) == 2


def compile_model(
    model: keras.Model,
    learning_rate: float,
    *,
    steps: int | None = None,
    optimizer: keras.optimizers.Optimizer | None = None,
    soft_labels: bool = False,
    multi_label: bool = False,
    head: Head | None = None,
) -> Objective:
    """Compile a classifier in place with Adam, and with the loss and the metric that fit its head (see `objective`).

    XLA is left to Keras, which uses it on accelerators only. On a CPU it doubles the CPU time of a small CNN
    (TensorFlow 2.21, 2 Xeon cores, batch 64: from 0.37 to 0.79 ms per image at 32x32, from 1.6 to 3.6 at 64x64) and
    needs seconds to compile.

    Args:
        model: The classifier.
        learning_rate: Adam's initial learning rate.
        steps: Batches of a cosine decay of the learning rate to 0 (Loshchilov and Hutter, arXiv:1608.03983); None: constant.
        optimizer: Replaces Adam and its schedule.
        soft_labels: Labels are shares `[B, K]`.
        multi_label: Labels are 0 or 1 for each of K classes, `[B, K]`: binary cross-entropy and binary accuracy.
        head: What the model outputs; None: look at its last layer.

    Returns:
        The loss and the metric.
    """
    rate = learning_rate if steps is None else keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    chosen = objective(head_of(model) if head is None else head, soft_labels=soft_labels, multi_label=multi_label)
    model.compile(
        optimizer=optimizer or keras.optimizers.Adam(rate),
        loss=chosen.loss,
        metrics=[chosen.measured],
        jit_compile="auto",
    )
    return chosen


def run_epochs(
    model: keras.Model,
    train_data: tf.data.Dataset,
    *,
    epochs: int,
    validation_data: tf.data.Dataset | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    class_weight: Mapping[int, float] | None = None,
) -> dict[str, list[float]]:
    """Run `fit` of a compiled model without output or false warnings; return its history: metric to values by epoch."""
    with warnings.catch_warnings():
        if tf.data.UNKNOWN_CARDINALITY in [
            int(data.cardinality()) for data in (train_data, validation_data) if data is not None
        ]:
            # Keras mistakes the end of such a dataset for an interruption, in every epoch
            warnings.filterwarnings("ignore", message="Your input ran out of data")
        fitted = model.fit(
            train_data,
            validation_data=validation_data,
            epochs=epochs,
            shuffle=False,  # Keras cannot shuffle a tf.data.Dataset, and by default warns that it does not
            verbose=0,
            callbacks=list(callbacks),
            class_weight=None if class_weight is None else dict(class_weight),
        )
    history: dict[str, list[float]] = fitted.history
    return history
