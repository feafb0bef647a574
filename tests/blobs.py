"""A small classification task that is learned in a second, and a network that learns it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

CLASSES = 3


def blobs(count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images of noise with a brighter square, uint8 [count, 20, 20, 3]; its colour is the class."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 120, (count, 20, 20, 3), np.uint8)
    labels = generator.integers(0, CLASSES, count)
    for image, label, (top, left) in zip(images, labels, generator.integers(0, 12, (count, 2)), strict=True):
        image[top : top + 8, left : left + 8, label] += 130
    images[0, 0, 0], images[0, 0, 1] = 0, 255  # the whole range of pixels
    return images, labels


def batches(count: int, seed: int = 0) -> Any:
    """Return a dataset of `blobs` in batches of 32."""
    return tf.data.Dataset.from_tensor_slices(blobs(count, seed)).batch(32)


def network() -> keras.Model:
    """Return two convolutions, the first with BatchNormalization, and a Dense layer."""
    pixels = keras.Input((20, 20, 3))
    x = layers.Rescaling(1 / 255)(pixels)
    x = layers.Conv2D(16, 3, strides=2, use_bias=False, name="first")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Conv2D(24, 3, strides=2, activation="relu", name="second")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(pixels, layers.Dense(CLASSES, name="logits")(x), name="small")


def weights_of(model: keras.Model) -> list[bytes]:
    """Return the bytes of all weights."""
    return [weight.tobytes() for weight in model.get_weights()]
