"""Dependency groups: which channels of a model can only be removed together (Fang et al., arXiv:2301.12900)."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from joulecache.pipelines.compressing.channel_flow import (
    PRODUCERS,
    Call,
    Flow,
    copied_calls,
    flow_of,
    needs_all_outputs,
)
from joulecache.pipelines.models.flattening import check_functional

Indices = NDArray[np.int64]

_LONGEST_REASON = 200


@dataclass(frozen=True, kw_only=True)
class LayerChannels:
    """A layer or operation of a copy of the model, and the channels on the last axis of its (first) input and its output.

    Channels are identified by numbers; channels that must be removed together share a number.
    """

    layer: keras.Operation
    flow: Flow
    reads: Indices
    writes: Indices


@dataclass(frozen=True, kw_only=True)
class Group:
    """Channels with the same producers.

    Attributes:
        channels: The channels, sorted.
        producers: Names of the layers that compute them.
        fixed: Whether they stay: they belong to the input, the output or a protected layer, or to one that mixes channels.
    """

    channels: Indices
    producers: tuple[str, ...]
    fixed: bool


@dataclass(frozen=True, kw_only=True)
class Dependencies:
    """The layers and operations of a model in order, without the input, and its groups of channels.

    Attributes:
        layers: The layers and operations.
        groups: The groups.
        channels: Channels are numbered below this.
        keeping: The layers and operations that keep channels which could be removed without them, by name, with their type.
    """

    layers: tuple[LayerChannels, ...]
    groups: tuple[Group, ...]
    channels: int
    keeping: dict[str, str]


def dependencies(model: keras.Model, protected: Sequence[str] = ()) -> Dependencies:
    """Find the dependency groups of a functional or sequential model, with the names of protected layers.

    Conv2D, SeparableConv2D and Dense produce channels. Depthwise convolutions, normalization, pooling and the like pass them
    on; arithmetic (layers, operators, `keras.ops`) merges those of its inputs one by one; Concatenate appends them; Flatten
    repeats them. The channels of the input, the output and the outputs of protected layers are fixed, and so are all that
    any other layer or operation reads and writes.

    Raises:
        ValueError: The model has several inputs or outputs, a layer with weights that is used more than once or cannot be
            copied, or neither Conv2D, SeparableConv2D nor Dense; or a protected name is unknown. The message names it.
    """
    copy, calls = _checked_calls(model)
    names = [call.step.name for call in calls]
    for name in protected:
        if name not in names:
            close = difflib.get_close_matches(name, names, cutoff=0.0)
            raise ValueError(f"unknown protected layer {name!r}: did you mean {' or '.join(close)}?")
    trace = _Trace(copy.inputs[0])
    for call in calls:
        trace.add(call)
    first = _merged(trace.count, trace.tied)
    channels = tuple(
        LayerChannels(layer=call.step, flow=flow, reads=first[reads], writes=first[writes])
        for call, flow, reads, writes in trace.passed
    )
    required = _marked(first, [trace.of[id(copy.inputs[0])], trace.of[id(copy.outputs[0])]])
    required |= _marked(first, [each.writes for each in channels if each.layer.name in protected])
    fixed = required | _marked(first, [*trace.made_otherwise, *(kept for _, kept in trace.kept)])
    keeping = {step.name: type(step).__name__ for step, kept in trace.kept if not required[first[kept]].all()}
    return Dependencies(layers=channels, groups=_groups(channels, first, fixed), channels=trace.count, keeping=keeping)


class _Trace:
    """Numbers the channels of a model, call by call.

    Attributes:
        count: Channels are numbered below this.
        of: Channels of tensors, by id.
        tied: Pairs of channels that must be removed together, as two arrays.
        kept: Channels that must stay, with the layer or operation that needs them.
        made_otherwise: Channels that no layer with filters or units makes; they stay too.
        passed: The calls, with the channels that they read and write.
    """

    def __init__(self, pixels: keras.KerasTensor) -> None:
        self.count = 0
        self.of: dict[int, Indices] = {id(pixels): self._new(pixels.shape[-1])}
        self.tied: list[tuple[Indices, Indices]] = []
        self.kept: list[tuple[keras.Operation, Indices]] = []
        self.made_otherwise: list[Indices] = []
        self.passed: list[tuple[Call, Flow, Indices, Indices]] = []

    def add(self, call: Call) -> None:
        """Number the channels that a call writes."""
        flow, reads = flow_of(call), [self.of[id(tensor)] for tensor in call.inputs]
        for output in call.outputs:
            if not output.shape or output.shape[-1] is None:
                raise ValueError(
                    f"layer {call.step.name!r} ({type(call.step).__name__}) cannot be pruned: its output {output.shape} has no "
                    "fixed number of channels"
                )
            writes = self.of[id(output)] = self._written(call, flow, reads, output.shape[-1])
            if needs_all_outputs(call.step):
                self.kept.append((call.step, writes))
        if flow is Flow.MIXED:
            self.kept += [(call.step, each) for each in reads]
        self.passed.append((call, flow, reads[0], writes))

    def _written(self, call: Call, flow: Flow, reads: Sequence[Indices], width: int) -> Indices:
        if flow is Flow.JOINED:
            return np.concatenate(reads)
        if flow is Flow.EACH:
            return np.repeat(reads[0], width // len(reads[0]))
        if flow is Flow.REPEATED:
            return np.tile(reads[0], math.prod(call.inputs[0].shape[1:-1]))
        if flow is Flow.SAME:
            same, *others = (each for each in reads if len(each) == width)
            self.tied += [(same, other) for other in others]
            return same
        if flow is Flow.NEW:
            return self._new(width)
        if len(reads) == 1 and len(reads[0]) == width:
            return reads[0]
        self.made_otherwise.append(self._new(width))
        return self.made_otherwise[-1]

    def _new(self, width: int) -> Indices:
        self.count += width
        return np.arange(self.count - width, self.count)


def _marked(first: Indices, kept: Iterable[Indices]) -> NDArray[np.bool_]:
    marked = np.zeros(len(first), bool)
    for channels in kept:
        marked[first[channels]] = True
    return marked


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


def _groups(channels: Sequence[LayerChannels], first: Indices, fixed: NDArray[np.bool_]) -> tuple[Group, ...]:
    # channels with equal labels have the same producers, as often, and differ only in strength
    labels = np.zeros(len(first), np.int64)
    makers: list[tuple[str, ...]] = [()]
    for each in channels:
        if each.flow is Flow.NEW:
            made, times = np.unique(each.writes, return_counts=True)
            kinds, places = np.unique(np.stack([labels[made], times]), axis=1, return_inverse=True)
            labels[made] = len(makers) + places.ravel()
            makers += [(*makers[label], each.layer.name) for label in kinds[0]]
    found: dict[tuple[int, bool], list[int]] = {}
    for channel in np.unique(first):
        found.setdefault((int(labels[channel]), bool(fixed[channel])), []).append(channel)
    return tuple(
        Group(channels=np.array(members), producers=makers[label], fixed=is_fixed)
        for (label, is_fixed), members in found.items()
    )


def _checked_calls(model: keras.Model) -> tuple[keras.Model, list[Call]]:
    check_functional(model)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(f"model {model.name!r} has several inputs or outputs: pruning supports one of each")
    produced = [layer for layer in model.layers if type(layer) in PRODUCERS]
    if not produced:
        kinds = ", ".join(kind.__name__ for kind in PRODUCERS)
        raise ValueError(f"model {model.name!r} has none of {kinds}: there is nothing to prune")
    for layer in produced:
        kernels = 2 if type(layer) is layers.SeparableConv2D else 1
        if len(layer.weights) != kernels + layer.use_bias:
            raise ValueError(
                f"layer {layer.name!r} ({type(layer).__name__}) cannot be pruned: it has more weights than kernels and a bias"
            )
    try:
        copy, calls = copied_calls(model)
    except Exception as error:  # layers raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
        raise ValueError(f"model {model.name!r} cannot be copied, which pruning needs: {reason}") from error
    uses = Counter(call.step.name for call in calls if type(call.step) is layers.Reshape or _has_weights(call.step))
    for name, times in uses.items():
        if times > 1:
            raise ValueError(f"layer {name!r} is used {times} times: use a separate layer each time")
    return copy, calls


def _has_weights(step: keras.Operation) -> bool:
    return isinstance(step, keras.Layer) and bool(step.weights)
