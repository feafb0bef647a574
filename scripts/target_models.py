"""Models for audits of masks and boxes; see `joulecache audit --model`."""

from __future__ import annotations

import keras
from keras import ops

import joulecache as jc


def unet(data: jc.TrainingData) -> keras.Model:
    """Return a small U-Net for a mask."""
    inputs = keras.Input(data.image_shape)
    x = keras.layers.Rescaling(1 / 127.5, -1)(inputs)
    levels = []
    for filters in (8, 16, 32):
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        levels.append(x)
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Conv2D(64, 3, padding="same", activation="relu")(x)
    for level in reversed(levels):
        filters = level.shape[-1]
        x = keras.layers.Conv2DTranspose(filters, 2, strides=2)(x)
        x = keras.layers.Concatenate()([x, level])
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
    mask = data.features["mask"]
    assert isinstance(mask, jc.features.Mask)
    classes = len(mask.names)
    model = keras.Model(inputs, keras.layers.Conv2D(classes, 1, activation="softmax")(x))
    iou = keras.metrics.MeanIoU(classes, sparse_y_pred=False, name="mean_iou")
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=[iou])
    return model


def first_box(data: jc.TrainingData) -> keras.Model:
    """Return a small network for the first box of an image and its class."""
    boxes, side = data.features["boxes"], data.image_shape[0]
    assert isinstance(boxes, jc.features.Boxes)
    classes = len(boxes.names)
    inputs = keras.Input(data.image_shape)
    x = keras.layers.Rescaling(1 / 127.5, -1)(inputs)
    for filters in (16, 32, 64, 64):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    x = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(x))
    corners = keras.layers.Rescaling(side)(keras.layers.Dense(4, activation="sigmoid")(x))
    shares = keras.layers.Dense(classes, activation="softmax")(x)
    outputs = {
        "boxes": keras.layers.Reshape((1, 4))(corners),
        "classes": keras.layers.Reshape((1, classes))(shares),
    }
    model = keras.Model(inputs, outputs)
    model.compile(
        keras.optimizers.Adam(1e-3),
        loss={"boxes": _distance, "classes": _class_loss},
        metrics={"boxes": intersection_over_union},
    )
    return model


def intersection_over_union(true: keras.KerasTensor, found: keras.KerasTensor) -> keras.KerasTensor:
    """Return how much of the union of the first box and the one found is in both."""
    true = true[:, :1]
    inside = ops.minimum(true[..., 2:], found[..., 2:]) - ops.maximum(true[..., :2], found[..., :2])
    shared = ops.prod(ops.maximum(inside, 0), axis=-1)
    areas = [ops.prod(ops.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1) for boxes in (true, found)]
    return shared / (areas[0] + areas[1] - shared + keras.config.epsilon())


def _distance(true: keras.KerasTensor, found: keras.KerasTensor) -> keras.KerasTensor:
    return ops.mean(ops.abs(true[:, :1] - found), axis=-1)


def _class_loss(true: keras.KerasTensor, found: keras.KerasTensor) -> keras.KerasTensor:
    return keras.losses.sparse_categorical_crossentropy(
        true[:, :1], found, ignore_class=-1
    )  # -1: an image without boxes
