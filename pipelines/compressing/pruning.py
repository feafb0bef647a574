"""Structured pruning: a smaller model without the weakest channels."""

from __future__ import annotations

import bisect
import itertools
import logging
import math
from collections.abc import Sequence
from typing import Any, get_args

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from joulecache.pipelines.compressing.channel_flow import Flow
from joulecache.pipelines.compressing.dependency_groups import Dependencies, Indices, LayerChannels, dependencies
from joulecache.pipelines.compressing.recipe import Criterion
from joulecache.pipelines.core.checks import check_choice, check_integer, check_number
from joulecache.pipelines.core.quantities import shortened
from joulecache.pipelines.models.flattening import is_nested, plain_copy, set_weights
from joulecache.pipelines.models.macs import count_macs

_NOTES = logging.getLogger("joulecache")


def kept_channels(
    model: keras.Model,
    ratio: float,
    *,
    multiple: int = 8,
    criterion: Criterion = "l1",
    protected: Sequence[str] = (),
) -> dict[str, Indices]:
    """Choose the channels that pruning keeps.

    Channels that must be removed together form a group (see `dependencies`): layers joined by an Add keep the same
    ones. A layer that is added to a Concatenate has channels in several groups, and keeps its share of each.

    Args:
        model: The model.
        ratio: Share of the channels to drop, in [0, 1). Of n channels in a group, `(1 - ratio) * n` stay, rounded to the
            nearest multiple, at least one multiple and at most n.
        multiple: Kept widths are multiples of this.
        criterion: Strength of a channel: "l1", the L1 norm of its weights, summed over the layers that produce it (Li et
            al., arXiv:1608.08710), or "gamma", the absolute scale of BatchNormalization (Liu et al., arXiv:1708.06519).
        protected: Names of layers that keep all channels.

    Returns:
        For each Conv2D, SeparableConv2D and Dense layer that may lose channels, the sorted indices of those it keeps.

    Raises:
        ValueError: As `prune_channels`.
    """
    model = _without_nested(model)
    graph = dependencies(model, protected)
    alive = _alive(model, graph, ratio, multiple, criterion)
    free = _free_channels(graph)
    return {
        each.layer.name: _kept(alive, each.writes)
        for each in graph.layers
        if each.flow is Flow.NEW and free[each.writes].any()
    }


def prune_channels(
    model: keras.Model,
    ratio: float,
    *,
    multiple: int = 8,
    criterion: Criterion = "l1",
    protected: Sequence[str] = (),
) -> keras.Model:
    """Return an uncompiled, smaller model without the weakest channels; for the arguments see `kept_channels`.

    Its output equals that of the given model with the dropped channels replaced by zeros wherever they are read: to
    within 1e-5, and exactly at ratio 0. The input, the output, the outputs of protected layers, and everything added to
    them keep all channels; so does what is read by a layer that mixes channels in another way than a convolution, such as
    LayerNormalization. A note names these layers.

    The model is functional or sequential and stays untouched. The result contains no nested models; layers of those are named as
    by `inner_layers`.

    Raises:
        ValueError: The model cannot be copied, a layer with weights is used more than once, an argument is out of range, a
            protected name is unknown, no channel can be removed, or channels lack the BatchNormalization that "gamma" needs;
            the message names the layer.
    """
    model = _without_nested(model)
    graph = dependencies(model, protected)
    alive = _alive(model, graph, ratio, multiple, criterion)
    channels = {each.layer.name: each for each in graph.layers}

    def shrunk(step: keras.Operation) -> keras.Operation:
        return type(step).from_config(_shrunk_config(step, channels[step.name], alive))

    whole = keras.Model(
        model.inputs[0], model.outputs[0], name=model.name
    )  # a sequential model has layers without calls
    pruned = keras.models.clone_model(whole, clone_function=shrunk)
    for layer in pruned.layers:
        if layer.name in channels:
            set_weights(layer, _remaining_weights(model.get_layer(layer.name), channels[layer.name], alive))
    return pruned


def ratio_for_macs(model: keras.Model, share: float, *, multiple: int = 8, protected: Sequence[str] = ()) -> float:
    """Return a ratio at which pruning keeps as many multiply-accumulates as possible, but at most a share of them.

    Widths change in steps, and the ratio is the midpoint of a step. There is no `criterion`, since it does not affect
    widths.

    Args:
        model: The model.
        share: Share of the multiply-accumulates, in (0, 1].
        multiple: As in `kept_channels`.
        protected: As in `kept_channels`.

    Raises:
        ValueError: As `prune_channels` and `count_macs`; or the share is out of range or cannot be reached.
    """
    check_number("share", share, above=0, high=1)
    check_integer("multiple", multiple)
    model = _without_nested(model)
    graph, before = dependencies(model, protected), count_macs(model)
    steps = {
        round(1 - (kept - 0.5) * multiple / len(group.channels), 12)
        for group in graph.groups
        if not group.fixed
        for kept in range(1, len(group.channels) // multiple + 2)
    }
    ends = [0.0, *sorted(step for step in steps if 0 < step < 1), 1.0]
    ratios = [0.0, *((low + high) / 2 for low, high in itertools.pairwise(ends))]
    equal = np.zeros(graph.channels)

    def macs(ratio: float) -> int:
        return before - _saved_macs(graph, _strongest(graph, equal, ratio, multiple))

    limit = share * before * (1 + 1e-12)  # a share that is itself a quotient may be rounded down
    place = bisect.bisect_left(ratios, -limit, key=lambda ratio: -macs(ratio))
    if place == len(ratios):
        raise ValueError(
            f"pruning cannot reach {share} of the multiply-accumulates: at multiples of {multiple}, {macs(ratios[-1])} of "
            f"{before} are left ({macs(ratios[-1]) / before:.3f})"
        )
    return ratios[place]


def _without_nested(model: keras.Model) -> keras.Model:
    return plain_copy(model) if any(map(is_nested, model.layers)) else model


def _alive(
    model: keras.Model, graph: Dependencies, ratio: float, multiple: int, criterion: Criterion
) -> NDArray[np.bool_]:
    check_number("ratio", ratio, low=0, below=1)
    check_integer("multiple", multiple)
    check_choice("criterion", criterion, get_args(Criterion))
    strengths = _strengths(model, graph, criterion) if ratio else np.zeros(graph.channels)
    if ratio and graph.keeping:
        _report_keeping(model, graph)
    return _strongest(graph, strengths, ratio, multiple)


def _report_keeping(model: keras.Model, graph: Dependencies) -> None:
    names = shortened([f"{name} ({kind})" for name, kind in graph.keeping.items()], 3)
    if all(group.fixed for group in graph.groups):
        raise ValueError(
            f"model {model.name!r} has no channels that can be removed: {names} mix channels or treat them differently, and need "
            "all of them"
        )
    _NOTES.warning(
        "pruning keeps all channels that these read, which mix channels or treat them differently: %s", names
    )


def _strengths(model: keras.Model, graph: Dependencies, criterion: Criterion) -> NDArray[np.float64]:
    strengths, scaled = np.zeros(graph.channels), np.zeros(graph.channels, bool)
    for each in graph.layers:
        if not isinstance(each.layer, keras.Layer):
            continue
        layer = model.get_layer(each.layer.name)
        if criterion == "l1" and each.flow is Flow.NEW:
            kernel = layer.pointwise_kernel if type(layer) is layers.SeparableConv2D else layer.kernel
            np.add.at(strengths, each.writes, np.abs(kernel).sum(axis=tuple(range(kernel.ndim - 1))))
        elif criterion == "gamma" and each.flow is Flow.SAME and getattr(layer, "gamma", None) is not None:
            np.add.at(strengths, each.writes, np.abs(layer.gamma))
            scaled[each.writes] = True
    if criterion == "gamma":
        for group in graph.groups:
            if not group.fixed and not scaled[group.channels].all():
                raise ValueError(
                    f"layer {group.producers[0]!r} has channels that no BatchNormalization scales: use criterion l1, "
                    "or protect the layer"
                )
    return strengths


def _strongest(graph: Dependencies, strengths: NDArray[np.float64], ratio: float, multiple: int) -> NDArray[np.bool_]:
    alive = np.ones(graph.channels, bool)
    for group in graph.groups:
        if ratio == 0 or group.fixed:
            continue
        width = math.floor((1 - ratio) * len(group.channels) / multiple + 0.5) * multiple
        order = np.argsort(-strengths[group.channels], kind="stable")
        alive[group.channels[order[max(multiple, width) :]]] = False
    return alive


def _free_channels(graph: Dependencies) -> NDArray[np.bool_]:
    free = np.zeros(graph.channels, bool)
    for group in graph.groups:
        free[group.channels] = not group.fixed
    return free


def _kept(alive: NDArray[np.bool_], channels: Indices) -> Indices:
    return np.flatnonzero(alive[channels])


def _shrunk_config(step: keras.Operation, channels: LayerChannels, alive: NDArray[np.bool_]) -> dict[str, Any]:
    config: dict[str, Any] = step.get_config()
    width = len(_kept(alive, channels.writes))
    if width == len(channels.writes) and alive[channels.reads].all():
        return config
    if channels.flow is Flow.NEW:
        config["units" if type(step) is layers.Dense else "filters"] = width
    elif type(step) is layers.Conv2D:
        config |= {"filters": width, "groups": len(_kept(alive, channels.reads))}
    for shape in ("target_shape", "newshape"):  # of the layer and of the operation Reshape
        if shape in config:
            config[shape] = (*config[shape][:-1], width)
    return config


def _remaining_weights(layer: keras.Layer, channels: LayerChannels, alive: NDArray[np.bool_]) -> list[NDArray[Any]]:
    inputs, outputs = _kept(alive, channels.reads), _kept(alive, channels.writes)
    weights: list[NDArray[Any]] = layer.get_weights()
    if len(inputs) == len(channels.reads) and len(outputs) == len(channels.writes):
        return weights
    if type(layer) is layers.DepthwiseConv2D:
        return [weights[0][..., inputs, :], *(bias[outputs] for bias in weights[1:])]
    if type(layer) is layers.SeparableConv2D:
        between = _kept(alive, np.repeat(channels.reads, layer.depth_multiplier))
        weights = [weights[0][..., inputs, :], *weights[1:]]
        return [weights[0], weights[1][..., between, :][..., outputs], *(bias[outputs] for bias in weights[2:])]
    if channels.flow is Flow.NEW:
        return [weights[0][..., inputs, :][..., outputs], *(bias[outputs] for bias in weights[1:])]
    # a number or one value for all channels stays: the count of Normalization, a PReLU that is shared along the last axis
    return [weight[..., outputs] if weight.shape[-1:] == channels.writes.shape else weight for weight in weights]


def _saved_macs(graph: Dependencies, alive: NDArray[np.bool_]) -> int:
    """Return how many multiply-accumulates fewer the pruned model has, by `count_macs`, without building it."""
    return sum(
        _macs(each, len(each.reads), len(each.writes))
        - _macs(each, len(_kept(alive, each.reads)), len(_kept(alive, each.writes)))
        for each in graph.layers
        if each.flow in (Flow.NEW, Flow.EACH)
    )


def _macs(channels: LayerChannels, inputs: int, outputs: int) -> int:
    layer = channels.layer
    places: int = math.prod(layer.output.shape[1:-1])
    window: int = 1 if type(layer) is layers.Dense else math.prod(layer.kernel_size)
    if type(layer) is layers.SeparableConv2D:
        between: int = inputs * layer.depth_multiplier
        return places * (window * between + between * outputs)
    return places * window * outputs * (inputs if channels.flow is Flow.NEW else 1)
