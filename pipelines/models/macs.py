"""Multiply-accumulates of a model."""

from __future__ import annotations

import math
from collections.abc import Collection

import keras
from keras import layers

from joulecache.pipelines.models.flattening import is_nested, plain_copy

_WITHOUT_MACS = (
    *(layers.InputLayer, layers.Identity, layers.Normalization),
    *(layers.BatchNormalization, layers.LayerNormalization, layers.GroupNormalization, layers.UnitNormalization),
    *(layers.Activation, layers.ReLU, layers.LeakyReLU, layers.PReLU, layers.ELU, layers.Softmax),
    *(layers.Dropout, layers.SpatialDropout2D, layers.GaussianDropout, layers.GaussianNoise, layers.AlphaDropout),
    *(layers.ActivityRegularization, layers.Flatten, layers.Reshape, layers.Permute, layers.RepeatVector),
    *(layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum),
    *(layers.Concatenate, layers.ZeroPadding2D, layers.Cropping2D, layers.Cropping3D, layers.UpSampling2D),
    *(layers.MaxPooling2D, layers.AveragePooling2D, layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D),
)
_WITH_MACS = (layers.Conv2D, layers.Conv2DTranspose, layers.DepthwiseConv2D, layers.SeparableConv2D, layers.Dense)

# Operations that `x[..., :8]`, `x + y` and `keras.ops.relu(x)` add to a functional model; Keras does not export their classes.
_OPERATIONS_WITHOUT_MACS = (
    *("GetItem", "Slice", "Split", "Reshape", "Transpose", "Concatenate", "Pad"),
    *("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Mean", "Max"),
    *("Maximum", "Minimum", "Power", "Square", "Sqrt", "Exp", "Absolute", "Negative", "Cast", "ExpandDims", "Squeeze"),
    *("Relu", "Relu6", "Sigmoid", "Silu", "Gelu", "Tanh", "HardSigmoid", "HardSilu", "Softmax"),
    *("LayerScale", "StochasticDepth"),  # of keras.applications.ConvNeXt
)
_PREPROCESSING = "keras.src.layers.preprocessing."  # among it augmentation, which does nothing at inference


def macs_or_none(model: keras.Model) -> int | None:
    """Return `count_macs` of a model; None where it raises."""
    try:
        return count_macs(model)
    except ValueError:
        return None


def count_macs(model: keras.Model) -> int:
    """Count the multiply-accumulates of one image, from the shapes of convolutions and dense layers.

    Biases, activations, pooling, normalization, preprocessing, augmentation and arithmetic between tensors count 0, as in MLPerf
    Tiny. Nested models are counted with the rest.

    Raises:
        ValueError: A layer or an operation is unknown, or a counted layer is used more than once or has no fixed shape;
            the message names it.
    """
    if not getattr(model, "inputs", None):
        raise ValueError(f"model {model.name!r} has no fixed input: build it from keras.Input")
    if any(map(is_nested, model.layers)):
        return count_macs(plain_copy(model))
    # a sequential model has no operations, only layers
    steps = [step for step in getattr(model, "operations", model.layers) if not _costs_nothing(step)]
    for step in steps:
        if type(step) not in _WITH_MACS:
            raise ValueError(
                f"layer {step.name!r} is a {type(step).__name__}, whose multiply-accumulates are unknown: expected "
                f"{', '.join(kind.__name__ for kind in _WITH_MACS)} or layers without any"
            )
    check_used_once(model, {step.name for step in steps})
    for step in steps:
        if None in step.output.shape[1:]:
            raise ValueError(
                f"layer {step.name!r} has output shape {step.output.shape}: fix the image size of the model"
            )
    return sum(map(_macs_of, steps))


def check_used_once(model: keras.Model, names: Collection[str] | None = None) -> None:
    """Raise ValueError if a functional or sequential model uses a layer more than once: one of `names`, or any if None."""
    for entry in model.get_config()["layers"]:
        name = entry["config"]["name"]
        # the configuration of a sequential model lists no calls: it calls every layer once
        calls = len(entry.get("inbound_nodes", "1"))
        if calls > 1 and (names is None or name in names):
            raise ValueError(f"layer {name!r} is used {calls} times: use a separate layer each time")


def _costs_nothing(step: keras.Operation) -> bool:
    if type(step) in _WITHOUT_MACS:
        return True
    module, name = type(step).__module__, type(step).__name__
    return module.startswith(_PREPROCESSING) or (module.startswith("keras.") and name in _OPERATIONS_WITHOUT_MACS)


def _macs_of(layer: keras.Layer) -> int:
    outputs: tuple[int, ...] = layer.output.shape[1:]
    if type(layer) is layers.SeparableConv2D:
        positions: int = math.prod(outputs) // layer.filters
        weights: int = math.prod(layer.depthwise_kernel.shape) + math.prod(layer.pointwise_kernel.shape)
        return positions * weights
    if type(layer) is layers.Conv2DTranspose:
        # each input place is multiplied with the whole kernel
        places: int = math.prod(layer.input.shape[1:-1])
        products: int = places * math.prod(layer.kernel.shape)
        return products
    # an output value sums over the axes of the kernel that are not output channels
    window: tuple[int, ...] = layer.kernel.shape[: 2 if type(layer) is layers.DepthwiseConv2D else -1]
    return math.prod(window) * math.prod(outputs)
