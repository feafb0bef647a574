"""What one image costs a model, in multiply-accumulates."""

from __future__ import annotations

import math

import keras
from keras import layers

_WITHOUT_MACS = (
    layers.InputLayer,
    layers.Rescaling,
    layers.Normalization,
    layers.BatchNormalization,
    layers.Activation,
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.Softmax,
    layers.Dropout,
    layers.SpatialDropout2D,
    layers.Flatten,
    layers.Reshape,
    layers.Permute,
    layers.Add,
    layers.Subtract,
    layers.Multiply,
    layers.Average,
    layers.Maximum,
    layers.Concatenate,
    layers.ZeroPadding2D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.UpSampling2D,
    layers.MaxPooling2D,
    layers.AveragePooling2D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling2D,
)
_WITH_MACS = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D, layers.Dense)

# What `x[..., :8]`, `x + y` or `keras.ops.relu(x)` puts into a functional model is no layer, and its class is not exported.
_OPERATIONS_WITHOUT_MACS = (
    *("GetItem", "Slice", "Split", "Reshape", "Transpose", "Concatenate", "Pad"),
    *("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Mean", "Max"),
    *("Relu", "Relu6", "Sigmoid", "Silu", "HardSwish", "Softmax"),
)


def count_macs(model: keras.Model) -> int:
    """Count the multiply-accumulates of one image: those of convolutions and dense layers, from their shapes.

    Biases, activations, pooling, normalisation and arithmetic between tensors count 0, as in MLPerf Tiny. Raises
    ValueError, by name, for a layer or an operation that is not known, and for a layer with such products that is used
    more than once or has no fixed shape.
    """
    if not getattr(model, "inputs", None):
        raise ValueError(f"model {model.name!r} has no fixed input: build it from keras.Input")
    # a sequential model has layers alone
    steps = [step for step in getattr(model, "operations", model.layers) if not _costs_nothing(step)]
    for step in steps:
        if type(step) not in _WITH_MACS:
            raise ValueError(
                f"layer {step.name!r} is a {type(step).__name__}: multiply-accumulates are known for "
                f"{', '.join(kind.__name__ for kind in _WITH_MACS)} and layers without any"
            )
    calls = call_counts(model)
    for step in steps:
        if calls.get(step.name, 1) != 1:
            raise ValueError(f"layer {step.name!r} is used {calls[step.name]} times: give each use its own layer")
        if None in step.output.shape[1:]:
            raise ValueError(f"layer {step.name!r} puts out {step.output.shape}: give the model a fixed image size")
    return sum(map(_macs_of, steps))


def call_counts(model: keras.Model) -> dict[str, int]:
    """Return how often a functional or sequential model uses each of its layers, by name; calls elsewhere do not count."""
    # a sequential model's configuration lists no calls: it calls every layer once
    entries = model.get_config()["layers"]
    return {entry["config"]["name"]: len(entry.get("inbound_nodes", "1")) for entry in entries}


def _costs_nothing(step: keras.Operation) -> bool:
    if isinstance(step, keras.Layer):
        return type(step) in _WITHOUT_MACS
    return type(step).__module__.startswith("keras.") and type(step).__name__ in _OPERATIONS_WITHOUT_MACS


def _macs_of(layer: keras.Layer) -> int:
    outputs: tuple[int, ...] = layer.output.shape[1:]
    if type(layer) is layers.SeparableConv2D:
        places: int = math.prod(outputs) // layer.filters
        weights: int = math.prod(layer.depthwise_kernel.shape) + math.prod(layer.pointwise_kernel.shape)
        return places * weights
    # an output value sums over a window of its inputs: the kernel without the axes that only the outputs have
    window: tuple[int, ...] = layer.kernel.shape[: 2 if type(layer) is layers.DepthwiseConv2D else -1]
    return math.prod(window) * math.prod(outputs)
