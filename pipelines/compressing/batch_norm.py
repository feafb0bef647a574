"""Batch normalization's statistics, taken anew: pruning changes what its layers read."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from joulecache.pipelines.models import check_batches
from joulecache.pipelines.models.macs import call_counts


def reestimate_batch_norm(model: keras.Model, data: tf.data.Dataset, batches: int = 100) -> int:
    """Set the moving statistics of a model's BatchNormalization layers to those of training images; return how many images.

    `data` yields batches of (uint8 images [B, H, W, C], labels), of which the first `batches` are run as in training, Dropout
    included. Mean and variance are the population's: over all images, each counted once, by mean = E[m] and variance =
    E[v + m^2] - mean^2 over the batches' m and v (PreciseBN, Wu & Johnson, arXiv:2105.07576). A momentum, for comparison,
    would weigh the last batches most, and leave out how batches differ.

    In place: only the moving statistics change, and nothing does where an error comes up. Layers that are not trainable keep
    their statistics, as in training. Raises ValueError for a model that is not functional, holds models, or has no such
    trainable layer, one used twice or one that renormalizes; and for data that `check_batches` refuses or without batches.
    """
    if batches < 1:
        raise ValueError(f"{batches} batches: give at least 1")
    norms = _trainable_norms(model)
    check_batches(data, "training data", model)
    # training also moves what other layers hold: seeds of Dropout, for one
    before = [(variable, variable.numpy()) for variable in model.variables]
    momenta = [norm.momentum for norm in norms]
    images_seen = 0
    sums = [np.zeros((2, norm.moving_mean.shape[0])) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0  # so that the moving statistics are those of the batch
            # 0 times what is not finite would not be 0
            norm.moving_mean.assign(np.zeros(norm.moving_mean.shape))
            norm.moving_variance.assign(np.ones(norm.moving_variance.shape))
        for images, _ in data.take(batches):
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
        raise ValueError("training data is empty: give at least one batch")
    for norm, total in zip(norms, sums, strict=True):
        mean, square = total / images_seen
        norm.moving_mean.assign(mean)
        norm.moving_variance.assign(np.maximum(square - mean**2, 0))  # rounding may leave less than nothing
    return images_seen


def _moments(norm: layers.BatchNormalization) -> NDArray[np.float64]:
    mean, variance = (value.numpy().astype(np.float64) for value in (norm.moving_mean, norm.moving_variance))
    return np.stack([mean, variance + mean**2])


def _trainable_norms(model: keras.Model) -> list[layers.BatchNormalization]:
    if not getattr(model, "inputs", None):
        raise ValueError(f"model {model.name!r} is not functional or not built: build it from keras.Input")
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            raise ValueError(f"layer {layer.name!r} is a model: only a model's own layers are known")
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization) and layer.trainable]
    if not norms:
        raise ValueError(
            f"model {model.name!r} has no trainable BatchNormalization layer: there is nothing to re-estimate"
        )
    calls = call_counts(model)
    for norm in norms:
        if calls[norm.name] > 1:
            raise ValueError(f"layer {norm.name!r} is used {calls[norm.name]} times: give each use a layer of its own")
        if norm.renorm:
            raise ValueError(f"layer {norm.name!r} renormalizes: only plain batch normalization is known")
    return norms
