"""The smallest classification task: noise with a tint, and a model that learns it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from joulecache.pipelines.models.fitting import compile_model


def colours(count: int, seed: int = 0, side: int = 18) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images of noise with a tint, uint8 [count, side, side, 3]; its colour is the class."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 180, (count, side, side, 3), np.uint8)
    labels = generator.integers(0, 3, count)
    images[np.arange(count), :, :, labels] += 70
    return images, labels


def batches(count: int, seed: int = 0) -> Any:
    """Return a dataset of `colours` in batches of 32."""
    return tf.data.Dataset.from_tensor_slices(colours(count, seed)).batch(32)


def linear_model(dropout: float = 0.0) -> keras.Model:
    """Return a model that is linear in the mean colour, with weights from seed 0."""
    keras.utils.set_random_seed(0)
    pixels = keras.Input((18, 18, 3))
    x = layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 255)(pixels))
    return keras.Model(pixels, layers.Dense(3)(layers.Dropout(dropout)(x) if dropout else x))


def compiled_model(*, eager: bool = True) -> keras.Model:
    """Return a compiled `linear_model`; eager, as tracing a graph takes many times as long as a few steps."""
    model = linear_model()
    compile_model(model, 1e-2, optimizer=keras.optimizers.SGD(1e-2))
    model.run_eagerly = eager
    return model
