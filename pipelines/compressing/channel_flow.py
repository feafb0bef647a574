"""How the channels of a layer or an operation depend on those that it reads."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

PRODUCERS = (layers.Conv2D, layers.SeparableConv2D, layers.Dense)

_CHANNELWISE = (
    layers.Identity,
    layers.Activation,
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.PReLU,
    layers.Dropout,
    layers.SpatialDropout2D,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.ZeroPadding2D,
    layers.Cropping2D,
    layers.UpSampling2D,
    layers.MaxPooling2D,
    layers.AveragePooling2D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling2D,
    layers.Add,
    layers.Subtract,
    layers.Multiply,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
)
_ACROSS_CHANNELS = (
    keras.activations.softmax,
    keras.activations.log_softmax,
    keras.activations.sparsemax,
    keras.activations.glu,
)

# Operations that `x + y`, `x * 2` and `keras.ops.relu(x)` add to a functional model; Keras does not export their classes.
_ELEMENTWISE = (
    *("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Maximum", "Minimum", "Power"),
    *("Absolute", "Negative", "Square", "Sqrt", "Exp", "Tanh", "Sigmoid", "Silu", "HardSigmoid", "HardSilu"),
    *("Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Gelu", "Softplus", "Softsign"),
)
_REDUCTIONS = ("Mean", "Sum", "Max", "Amax", "Min", "Amin")


class Flow(enum.Enum):
    """How output channels depend on input channels."""

    NEW = "each is computed from all"
    EACH = "each is computed from one; one makes one or more, which follow each other"
    SAME = "each is computed from the same one of every input"
    JOINED = "those of the inputs follow each other"
    REPEATED = "those of all places follow each other"
    MIXED = "any other way, or one that treats channels differently"


@dataclass(frozen=True, kw_only=True)
class Call:
    """A layer or an operation of a copy of a model, with what it reads and returns in its only call.

    Attributes:
        step: The layer or operation.
        inputs: The tensors of the model that it reads.
        constants: Other arguments, such as the 3.0 of `x + 3.0`.
        outputs: The tensors that it returns.
    """

    step: keras.Operation
    inputs: tuple[keras.KerasTensor, ...]
    constants: tuple[object, ...]
    outputs: tuple[keras.KerasTensor, ...]


def copied_calls(model: keras.Model) -> tuple[keras.Model, list[Call]]:
    """Return a copy of a model with one input and one output, without its weights, and the calls that made it, in order."""
    calls: list[Call] = []

    def call(step: keras.Operation, *arguments: Any, **more: Any) -> Any:
        outputs = step(*arguments, **more)
        given = keras.tree.flatten((arguments, more))
        calls.append(
            Call(
                step=step,
                inputs=tuple(each for each in given if isinstance(each, keras.KerasTensor)),
                constants=tuple(each for each in given if not isinstance(each, keras.KerasTensor)),
                outputs=tuple(keras.tree.flatten(outputs)),
            )
        )
        return outputs

    # a sequential model has no calls, and layers may have been called in other models too
    functional = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    return keras.models.clone_model(functional, call_function=call), calls


def flow_of(call: Call) -> Flow:
    """Return how the output channels of a call, on the last axis, depend on those of its inputs."""
    step = call.step
    if len(call.outputs) != 1 or not call.inputs or getattr(step, "data_format", "channels_last") != "channels_last":
        return Flow.MIXED
    if not isinstance(step, keras.Layer):
        return _operation_flow(call)
    kind = type(step)
    if kind is layers.Conv2D and step.groups > 1:
        return Flow.EACH if step.groups == call.inputs[0].shape[-1] else Flow.MIXED
    if kind in PRODUCERS:
        return Flow.NEW
    if kind is layers.DepthwiseConv2D:
        return Flow.EACH
    if kind is layers.Concatenate:
        return _joined(call, step.axis)
    if kind in (layers.Flatten, layers.Reshape):
        return _reshaped(call)
    same = kind in _CHANNELWISE or _is_plain_normalization(call) or _is_plain_rescaling(step)
    return _same(call) if same else Flow.MIXED


def needs_all_outputs(step: keras.Operation) -> bool:
    """Return whether a layer has an activation that mixes its output channels, or may do so."""
    activation: Any = getattr(step, "activation", None) or keras.activations.linear
    known = getattr(keras.activations, getattr(activation, "__name__", ""), None) is activation
    return not known or activation in _ACROSS_CHANNELS


def _operation_flow(call: Call) -> Flow:
    kind, step = type(call.step), call.step
    if not kind.__module__.startswith("keras."):
        return Flow.MIXED
    if kind.__name__ in _ELEMENTWISE:
        return _same(call)
    if kind.__name__ == "Concatenate":
        return _joined(call, step.axis)
    if kind.__name__ == "Reshape":
        return _reshaped(call)
    if kind.__name__ in _REDUCTIONS:
        rank = len(call.inputs[0].shape)
        axes = [step.axis] if isinstance(step.axis, int) else list(step.axis or range(rank))
        inner = all(axis % rank not in (0, rank - 1) for axis in axes)
        return Flow.SAME if inner and len(call.inputs) == 1 else Flow.MIXED
    return Flow.MIXED


def _same(call: Call) -> Flow:
    """Return SAME, or MIXED if a constant is no number and may treat channels differently, or no input has all channels."""
    width = call.outputs[0].shape[-1]
    widths = {tensor.shape[-1] for tensor in call.inputs}
    plain = all(_width(each) == 1 for each in call.constants)
    return Flow.SAME if plain and width in widths and widths <= {1, width} else Flow.MIXED


def _width(constant: Any) -> int:
    # NumPy cannot convert variables and some tensors
    shape = tuple(constant.shape) if hasattr(constant, "shape") else np.shape(constant)
    return shape[-1] if shape else 1


def _joined(call: Call, axis: int) -> Flow:
    rank = len(call.outputs[0].shape)
    if axis % rank == rank - 1:
        return Flow.JOINED
    return Flow.SAME if axis % rank else Flow.MIXED


def _reshaped(call: Call) -> Flow:
    (inputs,), (outputs,) = call.inputs, call.outputs
    if outputs.shape[-1] == inputs.shape[-1]:
        return Flow.SAME
    if None in inputs.shape[1:]:
        return Flow.MIXED
    flat = len(outputs.shape) == 2 and outputs.shape[-1] == math.prod(inputs.shape[1:])
    return Flow.REPEATED if flat else Flow.MIXED


def _is_plain_normalization(call: Call) -> bool:
    step, rank = call.step, len(call.inputs[0].shape)
    if type(step) is layers.BatchNormalization:
        return step.axis % rank == rank - 1 and not step.renorm
    if type(step) is layers.Normalization:
        if step.input_mean is not None:
            return np.ndim(step.input_mean) == 0 and np.ndim(step.input_variance) == 0
        return all(axis % rank == rank - 1 for axis in step.axis)
    return False


def _is_plain_rescaling(step: keras.Operation) -> bool:
    return type(step) is layers.Rescaling and np.ndim(step.scale) == 0 and np.ndim(step.offset) == 0
