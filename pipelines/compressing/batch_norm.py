"""Re-estimate the statistics of BatchNormalization, which are outdated after pruning."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from joulecache.pipelines.core.checks import check_integer
from joulecache.pipelines.models.fitting import check_batches
from joulecache.pipelines.models.flattening import (
    check_functional,
    inner_layers,
    is_nested,
    plain_copy,
)
from joulecache.pipelines.models.macs import check_used_once


def reestimate_batch_norm(model: keras.Model, data: tf.data.Dataset, batches: int = 100) -> int:
    """Set the moving statistics of BatchNormalization layers, in place, to those of up to `batches` training batches.

    Images run as in training, including Dropout. Mean and variance are those of all images: mean = E[m] and
    variance = E[v + m^2] - mean^2, from the m and v of each batch (PreciseBN, Wu & Johnson, arXiv:2105.07576). A moving
    average would weight the last batches most and ignore differences between batches. Frozen layers keep their
    statistics. On an error, the model is unchanged.

    Returns:
        The number of images.

    Raises:
        ValueError: As `check_batches`; or the model is not functional, or has no trainable BatchNormalization layer, one that
            is used twice, or one that renormalizes.
    """
    check_integer("batches", batches)
    norms = trainable_norms(model)
    check_batches(data, "training data", model)
    # running in training mode also changes variables of other layers, such as the seeds of Dropout
    before = [(variable, variable.numpy()) for variable in model.variables]
    momenta = [norm.momentum for norm in norms]
    images_seen = 0
    sums = [np.zeros((2, norm.moving_mean.shape[0])) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0  # the moving statistics are then those of the batch
            # 0 times an infinity or NaN is NaN
            norm.moving_mean.assign(np.zeros(norm.moving_mean.shape))
            norm.moving_variance.assign(np.ones(norm.moving_variance.shape))
        for images, *_ in data.take(batches):
            model(images, training=True)
            images_seen += len(images)
            for norm, total in zip(norms, sums, strict=True):
                total += len(images) * _moments(norm)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for variable, value in before:
            variable.assign(value)
    if not images_seen:
        raise ValueError("training data is empty: expected at least one batch")
    for norm, total in zip(norms, sums, strict=True):
        mean, square = total / images_seen
        norm.moving_mean.assign(mean)
        norm.moving_variance.assign(np.maximum(square - mean**2, 0))  # rounding could make it negative
    return images_seen


def _moments(norm: layers.BatchNormalization) -> NDArray[np.float64]:
    mean, variance = (value.numpy().astype(np.float64) for value in (norm.moving_mean, norm.moving_variance))
    return np.stack([mean, variance + mean**2])


def normalizes(model: keras.Model) -> bool:
    """Return whether a model has statistics that training changes."""
    return bool(_training_norms(model))


def trainable_norms(model: keras.Model) -> list[layers.BatchNormalization]:
    """Return the layers whose statistics `reestimate_batch_norm` sets; raise ValueError if it cannot."""
    check_functional(model)
    norms = _training_norms(model)
    if not norms:
        raise ValueError(f"model {model.name!r} has no trainable BatchNormalization layer to re-estimate")
    flat = plain_copy(model) if any(map(is_nested, model.layers)) else model
    check_used_once(flat, set(norms))
    for name, norm in norms.items():
        if norm.renorm:
            raise ValueError(f"layer {name!r} renormalizes: only plain batch normalization is supported")
    return [*norms.values()]


def _training_norms(model: keras.Model) -> dict[str, layers.BatchNormalization]:
    """Return the normalization layers that are not frozen, by name."""
    return {
        name: layer
        for name, layer in inner_layers(model).items()
        if isinstance(layer, layers.BatchNormalization) and layer.trainable
    }
