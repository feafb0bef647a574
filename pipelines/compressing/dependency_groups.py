"""Dependency groups: which channels of a model can only be removed together (Fang et al., arXiv:2301.12900)."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from joulecache.pipelines.compressing.kernels import check_functional
from joulecache.pipelines.models.macs import check_used_once

Indices = NDArray[np.int64]

_CHANNELWISE = (
    layers.Dropout,
    layers.SpatialDropout2D,
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.ZeroPadding2D,
    layers.MaxPooling2D,
    layers.AveragePooling2D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling2D,
)
_SUPPORTED = (
    *_CHANNELWISE,
    layers.InputLayer,
    layers.Conv2D,
    layers.Dense,
    layers.DepthwiseConv2D,
    layers.Rescaling,
    layers.Activation,
    layers.Softmax,
    layers.BatchNormalization,
    layers.Flatten,
    layers.Reshape,
    layers.Add,
    layers.Concatenate,
)
_PRODUCERS = (layers.Conv2D, layers.Dense)


@dataclass(frozen=True, kw_only=True)
class LayerChannels:
    """A layer of a copy of the model, and the channels on the last axis of its (first) input and its output.

    Channels are identified by numbers; channels that must be removed together share a number.
    """

    layer: keras.Layer
    reads: Indices
    writes: Indices

    @property
    def produces(self) -> bool:
        """Whether each output channel is a new one, a filter or a unit."""
        return type(self.layer) in _PRODUCERS


@dataclass(frozen=True, kw_only=True)
class Group:
    """Channels with the same producers.

    Attributes:
        channels: The channels, sorted.
        producers: Names of the layers that compute them.
        fixed: Whether they belong to the input, the output or a protected layer, and stay.
    """

    channels: Indices
    producers: tuple[str, ...]
    fixed: bool


@dataclass(frozen=True, kw_only=True)
class Dependencies:
    """The layers of a model in order, without the input, and its groups of channels.

    Channels are numbered below `channels`.
    """

    layers: tuple[LayerChannels, ...]
    groups: tuple[Group, ...]
    channels: int


def dependencies(model: keras.Model, protected: Sequence[str] = ()) -> Dependencies:
    """Find the dependency groups of a functional or sequential model, with the names of protected layers.

    Conv2D and Dense produce channels; the other layers pass them through. Add merges those of its inputs one by one;
    Concatenate appends them; Flatten repeats them. The channels of the input, the output and the outputs of protected
    layers are fixed.

    Raises:
        ValueError: The model has several inputs or outputs, unsupported layers or settings, a layer used more than
            once, or neither Conv2D nor Dense; or a protected name is unknown. The message names the layer.
    """
    copy = _checked_copy(model)
    for name in protected:
        if name not in {layer.name for layer in model.layers}:
            close = difflib.get_close_matches(name, [layer.name for layer in model.layers], cutoff=0.0)
            raise ValueError(f"unknown protected layer {name!r}: did you mean {' or '.join(close)}?")
    count = copy.inputs[0].shape[-1]
    read = {id(copy.inputs[0]): np.arange(count)}
    added: list[tuple[Indices, Indices]] = []
    traced: list[tuple[keras.Layer, Indices, Indices]] = []
    for layer in _without_input(copy):
        tensors = layer.input if isinstance(layer.input, list) else [layer.input]
        reads = [read[id(tensor)] for tensor in tensors]
        if type(layer) in _PRODUCERS:
            writes = np.arange(count, count + layer.output.shape[-1])
            count += len(writes)
        else:
            writes = _passed_through(layer, reads)
        if type(layer) is layers.Add:
            added += [(writes, other) for other in reads[1:]]
        read[id(layer.output)] = writes
        traced.append((layer, reads[0], writes))
    first = _merged(count, added)
    channels = tuple(
        LayerChannels(layer=layer, reads=first[reads], writes=first[writes]) for layer, reads, writes in traced
    )
    fixed = [first[read[id(tensor)]] for tensor in (copy.inputs[0], copy.outputs[0])]
    fixed += [each.writes for each in channels if each.layer.name in protected]
    return Dependencies(layers=channels, groups=_groups(channels, first, np.concatenate(fixed)), channels=count)


def _passed_through(layer: keras.Layer, reads: Sequence[Indices]) -> Indices:
    if type(layer) is layers.Concatenate:
        return np.concatenate(reads)
    if type(layer) is layers.DepthwiseConv2D:
        return np.repeat(reads[0], layer.depth_multiplier)
    if type(layer) is layers.Flatten:
        return np.tile(reads[0], math.prod(layer.input.shape[1:-1]))
    return reads[0]


def _merged(count: int, added: Sequence[tuple[Indices, Indices]]) -> Indices:
    """Return, for each channel, the smallest one that it is added to, directly or through others."""
    first = np.arange(count)
    if not added:
        return first
    one, other = (np.concatenate(side) for side in zip(*added, strict=True))
    while (first[one] != first[other]).any():
        smaller = np.minimum(first[one], first[other])
        for side in (one, other):
            # update the roots too: otherwise a long chain of Adds needs one round each
            np.minimum.at(first, first[side], smaller)
            np.minimum.at(first, side, smaller)
        first = first[first]
    return first


def _groups(channels: Sequence[LayerChannels], first: Indices, fixed_channels: Indices) -> tuple[Group, ...]:
    producers = [each for each in channels if each.produces]
    # channels with equal columns have the same producers, and differ only in strength
    made = np.stack([np.bincount(each.writes, minlength=len(first)) for each in producers])
    found: dict[tuple[bytes, bool], list[int]] = {}
    is_fixed = np.isin(np.arange(len(first)), fixed_channels)
    for channel in np.unique(first):
        found.setdefault((made[:, channel].tobytes(), bool(is_fixed[channel])), []).append(channel)
    return tuple(
        Group(
            channels=np.array(members),
            producers=tuple(each.layer.name for each, n in zip(producers, made[:, members[0]], strict=True) if n),
            fixed=fixed,
        )
        for (_, fixed), members in found.items()
    )


def _without_input(model: keras.Model) -> list[keras.Layer]:
    return [layer for layer in model.layers if type(layer) is not layers.InputLayer]


def _checked_copy(model: keras.Model) -> keras.Model:
    check_functional(model)
    for operation in getattr(model, "operations", model.layers):
        if not isinstance(operation, keras.Layer):
            raise ValueError(f"operation {operation.name!r} is not a layer: replace it by one of keras.layers")
        if type(operation) not in _SUPPORTED:
            supported = ", ".join(sorted(kind.__name__ for kind in _SUPPORTED))
            raise ValueError(f"layer {operation.name!r} is a {type(operation).__name__}: pruning supports {supported}")
        _refuse(operation, _unsupported_setting(operation))
    check_used_once(model)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(f"model {model.name!r} has several inputs or outputs: pruning supports one of each")
    if not any(type(layer) in _PRODUCERS for layer in model.layers):
        raise ValueError(f"model {model.name!r} has no Conv2D or Dense layer: there is nothing to prune")
    # the layers may have been called in other models too, and their `input` would refer to those
    copy = keras.models.clone_model(model)
    for layer in _without_input(copy):
        _refuse(layer, _unsupported_shape(layer))
    return copy


def _refuse(layer: keras.Layer, problem: str | None) -> None:
    if problem:
        raise ValueError(f"layer {layer.name!r} ({type(layer).__name__}) cannot be pruned: {problem}")


def _unsupported_setting(layer: keras.Layer) -> str | None:
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return "it uses channels_first; only channels_last is supported"
    if type(layer) is layers.Conv2D and layer.groups != 1:
        return f"it has {layer.groups} groups; only 1 is supported"
    if type(layer) in (*_PRODUCERS, layers.DepthwiseConv2D) and len(layer.get_weights()) != 1 + layer.use_bias:
        return "it has more weights than a kernel and a bias"
    if type(layer) is layers.BatchNormalization and layer.renorm:
        return "it renormalizes; only plain batch normalization is supported"
    activation: Any = getattr(layer, "activation", keras.activations.linear)
    if getattr(keras.activations, getattr(activation, "__name__", ""), None) is not activation:
        return "its activation is not one of keras.activations"
    return None


def _unsupported_shape(layer: keras.Layer) -> str | None:
    if type(layer) is layers.Add and len({tensor.shape for tensor in layer.input}) > 1:
        shapes = ", ".join(str(tensor.shape) for tensor in layer.input)
        return f"it adds inputs of the shapes {shapes}; only equal shapes are supported"
    rank = len(layer.output.shape)
    if type(layer) in (layers.BatchNormalization, layers.Concatenate) and layer.axis not in (-1, rank - 1):
        verb = "normalizes" if type(layer) is layers.BatchNormalization else "joins"
        return f"it {verb} axis {layer.axis}; only the last is supported"
    if type(layer) is layers.Flatten and None in layer.input.shape[1:]:
        return f"its input {layer.input.shape} has no fixed size"
    if type(layer) is layers.Reshape and layer.output.shape[-1] != layer.input.shape[-1]:
        return f"it changes the last axis, from {layer.input.shape} to {layer.output.shape}; this mixes channels"
    return None
