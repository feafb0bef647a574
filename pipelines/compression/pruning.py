"""Structured pruning: a smaller model that computes what the given one does without its weakest channels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

# one function for every value or every channel: which channels there are does not matter to them
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
_WEIGHTED = (layers.Conv2D, layers.Dense)
_SUPPORTED = (
    *_CHANNELWISE,
    *_WEIGHTED,
    layers.InputLayer,
    layers.Rescaling,
    layers.Activation,
    layers.Softmax,
    layers.BatchNormalization,
    layers.Flatten,
)
_ACROSS_CHANNELS = (
    keras.activations.softmax,
    keras.activations.log_softmax,
    keras.activations.sparsemax,
    keras.activations.glu,
)


def kept_channels(model: keras.Model, ratio: float, *, multiple: int = 8) -> dict[str, NDArray[np.int64]]:
    """Choose the channels that pruning keeps: sorted indices by layer, for each Conv2D and Dense but the last.

    Of n channels `(1 - ratio) * n` stay, rounded to the nearest multiple of `multiple`, at least one multiple and at
    most n: those whose weights have the largest L1 norm (Li et al., arXiv:1608.08710). Raises as `prune_channels`.
    """
    weighted = [(layer, kept) for layer, _, kept in _plan(model, ratio, multiple) if type(layer) in _WEIGHTED]
    return {layer.name: kept for layer, kept in weighted[:-1]}


def prune_channels(model: keras.Model, ratio: float, *, multiple: int = 8) -> keras.Model:
    """Return a smaller model without the weakest channels (`kept_channels`); the given one is untouched.

    It is the given model with zeros in place of the dropped channels wherever they are read: equal to 1e-5, and
    identical at ratio 0. It comes uncompiled. The layers must form one chain, functional or sequential, of Conv2D,
    Dense, BatchNormalization, Rescaling, Flatten, pooling, padding, dropout and activations: others, and branches, raise
    ValueError by the layer's name. So do a ratio outside [0, 1) and a multiple below 1.
    """
    plan = list(_plan(model, ratio, multiple))
    given = model.inputs[0]
    pixels = x = keras.Input(batch_shape=given.shape, dtype=given.dtype, name=given.name)
    for layer, came, kept in plan:
        config, weights = layer.get_config(), layer.get_weights()
        if type(layer) in _WEIGHTED:
            config["filters" if type(layer) is layers.Conv2D else "units"] = len(kept)
            weights = [weights[0][..., came, :][..., kept], *(bias[kept] for bias in weights[1:])]
        elif type(layer) is layers.BatchNormalization:
            weights = [statistic[came] for statistic in weights]
        smaller = type(layer).from_config(config)
        x = smaller(x)
        smaller.set_weights(weights)
    return keras.Model(pixels, x, name=model.name)


def _plan(
    model: keras.Model, ratio: float, multiple: int
) -> Iterator[tuple[keras.Layer, NDArray[np.int64], NDArray[np.int64]]]:
    """Yield each layer of a copy of the model, with the channels kept of what it reads and of what it puts out."""
    if not 0 <= ratio < 1:
        raise ValueError(f"prune ratio {ratio}: give the share of channels to drop, at least 0 and below 1")
    if multiple < 1:
        raise ValueError(f"multiple {multiple}: widths are kept at multiples of a whole number of at least 1")
    chain = _chain(model)
    weighted = [layer for layer in chain if type(layer) in _WEIGHTED]
    if not weighted:
        raise ValueError(f"model {model.name!r} has no Conv2D and no Dense layer: there is nothing to prune")
    kept = np.arange(model.inputs[0].shape[-1])
    for layer in chain:
        came, channels = kept, layer.input.shape[-1]
        if type(layer) in _WEIGHTED:
            # the norm of a filter, or of a unit, is over all that it reads
            norms = np.abs(layer.get_weights()[0]).sum(axis=tuple(range(layer.kernel.ndim - 1)))
            channels = len(norms)
            kept = np.arange(channels) if layer is weighted[-1] else _strongest(norms, ratio, multiple)
        elif type(layer) is layers.Flatten:
            places = math.prod(layer.input.shape[1:-1])
            kept = (np.arange(places)[:, None] * channels + came).ravel()
        if _needs_all_channels(layer) and len(kept) < channels:
            raise ValueError(
                f"layer {layer.name!r} ({type(layer).__name__}) mixes channels or treats each its own way, and a layer before "
                "it would lose some: only the output may do so"
            )
        yield layer, came, kept


def _chain(model: keras.Model) -> list[keras.Layer]:
    """Return the layers of a copy of the model in order, without its input; ValueError unless they are one chain."""
    if not getattr(model, "inputs", None):
        raise ValueError(f"model {model.name!r} is not functional or not built: build it from keras.Input")
    for layer in model.layers:
        if type(layer) not in _SUPPORTED:
            supported = ", ".join(sorted(kind.__name__ for kind in _SUPPORTED))
            raise ValueError(f"layer {layer.name!r} is a {type(layer).__name__}: pruning knows {supported}")
        problem = _unsupported_setting(layer)
        if problem:
            raise ValueError(f"layer {layer.name!r} ({type(layer).__name__}) cannot be pruned: {problem}")
    # the model's own layers may also have been called in other models, which their `input` would show
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    tensor = copy.inputs[0]
    chain = [layer for layer in copy.layers if type(layer) is not layers.InputLayer]
    for layer in chain:
        if layer.input is not tensor:
            raise ValueError(
                f"layer {layer.name!r} does not read what the layer before it puts out: only a single chain of layers, each "
                "used once, can be pruned"
            )
        tensor = layer.output
    if len(copy.inputs) != 1 or len(copy.outputs) != 1:
        raise ValueError(f"model {model.name!r} has several inputs or outputs: pruning knows one of each")
    return chain


def _unsupported_setting(layer: keras.Layer) -> str | None:
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return "it keeps channels first; use channels_last"
    if type(layer) is layers.Conv2D and layer.groups != 1:
        return f"it has {layer.groups} groups; only 1 is known"
    if type(layer) in _WEIGHTED and len(layer.get_weights()) != 1 + layer.use_bias:
        return "it has weights beside its kernel and bias"
    if type(layer) is layers.BatchNormalization and layer.axis not in (-1, len(layer.input.shape) - 1):
        return f"it normalizes axis {layer.axis}; only the last is known"
    if type(layer) is layers.Flatten and None in layer.input.shape[1:]:
        return f"its input {layer.input.shape} has no fixed size"
    activation = getattr(layer, "activation", keras.activations.linear)
    if getattr(keras.activations, getattr(activation, "__name__", ""), None) is not activation:
        return "its activation is not one of Keras' own"
    return None


def _needs_all_channels(layer: keras.Layer) -> bool:
    if type(layer) is layers.Rescaling:
        return np.ndim(layer.scale) > 0 or np.ndim(layer.offset) > 0
    return type(layer) is layers.Softmax or getattr(layer, "activation", None) in _ACROSS_CHANNELS


def _strongest(norms: NDArray[np.floating[Any]], ratio: float, multiple: int) -> NDArray[np.int64]:
    if ratio == 0:
        return np.arange(len(norms))
    width = math.floor((1 - ratio) * len(norms) / multiple + 0.5) * multiple
    return np.sort(np.argsort(-norms, kind="stable")[: max(multiple, width)])
