"""Unstructured pruning: the smallest weights become zero, and stay zero in training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from joulecache.pipelines.compressing.kernels import copy_of, kernel_of, prunable_layers
from joulecache.pipelines.compressing.projected_kernels import ProjectedKernels, Projection
from joulecache.pipelines.core.checks import check_choice, check_integer, check_number

Scope = Literal["layer", "global"]


def sparsity_by_layer(model: keras.Model, names: Sequence[str] | None = None) -> dict[str, float]:
    """Return the share of zeros in the kernel of each of `prunable_layers`."""
    return {name: float(np.mean(~mask)) for name, mask in masks_of(model, names).items()}


def sparsity_of(model: keras.Model, names: Sequence[str] | None = None) -> float:
    """Return the share of zeros in the kernels of all `prunable_layers` together."""
    masks = masks_of(model, names).values()
    return sum(int((~mask).sum()) for mask in masks) / sum(mask.size for mask in masks)


def masks_of(model: keras.Model, names: Sequence[str] | None = None) -> dict[str, NDArray[np.bool_]]:
    """Return, for each of `prunable_layers`, a mask of its kernel's shape that is False where a weight is exactly 0."""
    return {name: kernel_of(layer) != 0 for name, layer in prunable_layers(model, names).items()}


def sparsity_at(step: int, begin: int, end: int, target: float, initial: float = 0.0) -> float:
    """Return the sparsity of the cubic schedule after a step.

    It is target + (initial - target) * (1 - t)^3, where t is the share of the way from step `begin` to step `end` (Zhu and
    Gupta 2017, arXiv:1710.01878, equation 1): it rises fast at first, and slowly towards the end.

    Raises:
        ValueError: An argument is out of range.
    """
    _check_schedule(begin, end, target)
    check_number("initial sparsity", initial, low=0, below=1)
    check_integer("step", step, 0)
    if initial > target:
        raise ValueError(f"initial sparsity must not exceed the target, got {initial} and {target}")
    if step >= end:
        return float(target)
    if step <= begin:
        return float(initial)
    left = 1 - (step - begin) / (end - begin)
    return target + (initial - target) * left**3


def smallest(magnitudes: NDArray[np.floating[Any]], count: int) -> NDArray[np.bool_]:
    """Mark exactly `count` of the values `[N]`: the smallest; of equal values, the first."""
    marked = np.zeros(len(magnitudes), bool)
    if count:
        largest = np.partition(magnitudes, count - 1)[count - 1]
        marked = magnitudes < largest
        equal = np.flatnonzero(magnitudes == largest)
        marked[equal[: count - int(marked.sum())]] = True
    return marked


def magnitude_masks(
    kernels: Mapping[str, NDArray[np.floating[Any]]], sparsity: float, scope: Scope = "layer"
) -> dict[str, NDArray[np.bool_]]:
    """Return masks, by layer, of the kernels' shapes, that are False where a weight is dropped: the smallest ones.

    All zeros are dropped, even if there are more than asked for. Each kernel keeps its largest weight: a kernel of zeros
    passes no gradient on.

    Args:
        kernels: Kernels, by layer.
        sparsity: Share of the weights to drop; their number is rounded to the nearest.
        scope: Apply it to each layer, or to all together ("global").
    """
    groups = [[name] for name in kernels] if scope == "layer" else [list(kernels)]
    masks: dict[str, NDArray[np.bool_]] = {}
    for group in groups:
        magnitudes = [np.abs(kernels[name].astype(np.float64)).ravel() for name in group]
        zeros = sum(int((values == 0).sum()) for values in magnitudes)
        for values in magnitudes:
            values[values.argmax()] = math.inf
        joined = np.concatenate(magnitudes)
        count = min(max(math.floor(sparsity * len(joined) + 0.5), zeros), len(joined) - len(group))
        dropped = smallest(joined, count)
        ends = np.cumsum([len(values) for values in magnitudes])
        for name, part in zip(group, np.split(dropped, ends[:-1]), strict=True):
            masks[name] = ~part.reshape(kernels[name].shape)
    return masks


def prune_weights(model: keras.Model, sparsity: float, *, scope: Scope = "layer") -> keras.Model:
    """Return an uncompiled copy with a share `sparsity` of the weights of its `prunable_layers` set to zero: the smallest.

    Raises:
        ValueError: As `prunable_layers`; or the share is not in [0, 1).
    """
    check_number("sparsity", sparsity, low=0, below=1)
    copy = copy_of(model)
    kernels = prunable_layers(copy)
    masks = magnitude_masks({name: kernel_of(layer) for name, layer in kernels.items()}, sparsity, scope)
    for name, layer in kernels.items():
        layer.kernel.assign(np.where(masks[name], kernel_of(layer), 0))  # multiplying by the mask would leave -0.0
    return copy


class MagnitudePruning(ProjectedKernels):
    """Prune the smallest weights of a model while it trains.

    The masks grow after `begin_step` steps of this training, then every `every` steps, last after `end_step`, as given by
    `sparsity_at`; masked weights stay exactly 0. `MagnitudePruning(0.5, 0, 0)` prunes before the first step. With
    `steps_per_execution` above 1, masks grow between executions and hold after each step.

    Weights that are 0 when training begins are masked, so a sparse model stays sparse. Frozen layers are pruned too.
    Nothing is random. List the callback last, so that it masks weights which others restore (`EarlyStopping`).

    Args:
        target: Final share of zeros, in [0, 1).
        begin_step: Step after which masks begin to grow.
        end_step: Step after which the target is reached.
        every: Steps between updates of the masks.
        scope: "layer" drops the same share of each layer. "global" has one threshold for all; as magnitudes depend on
            the number of inputs that a layer sums, it drops most from the widest and can leave little of it.
        names: As in `prunable_layers`.

    Raises:
        ValueError: An argument is out of range. When training begins: as `prunable_layers`, a kernel is all zeros, or
            training is known to end before `end_step`.
    """

    def __init__(
        self,
        target: float,
        begin_step: int,
        end_step: int,
        *,
        every: int = 100,
        scope: Scope = "layer",
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        _check_schedule(begin_step, end_step, target)
        check_integer("every", every)
        check_choice("scope", scope, get_args(Scope))
        self._target, self._begin, self._end, self._every = target, begin_step, end_step, every
        self._scope: Scope = scope
        self._names = names
        self._layers: dict[str, keras.Layer] = {}
        self._masks: dict[str, tf.Variable] = {}
        self._step = self._epoch_began = 0
        self._next: int | None = None  # the step after which the masks grow
        self._checked = False

    @classmethod
    def keeping(cls, names: Sequence[str] | None = None) -> MagnitudePruning:
        """Return a callback that keeps the zeros of a model and adds none."""
        return cls(0.0, 0, 0, names=names)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Mask existing zeros, and prune if the schedule begins at step 0."""
        self._layers = prunable_layers(self.model, self._names)
        for name, mask in masks_of(self.model, self._names).items():
            if not mask.any():
                raise ValueError(f"the kernel of layer {name!r} is all zeros: initialize it, or do not prune it")
        self._masks = {
            name: tf.Variable(tf.ones(layer.kernel.shape, tf.bool), trainable=False)
            for name, layer in self._layers.items()
        }
        self.start_projecting(
            {name: layer.kernel for name, layer in self._layers.items()},
            {name: _masking(mask) for name, mask in self._masks.items()},
        )
        self._step, self._checked = 0, False
        self._grow()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Refuse a schedule that this training cannot finish."""
        steps, epochs = self.params.get("steps"), self.params.get("epochs")
        if not self._checked and steps and epochs and self._next is not None and self._end > steps * (epochs - epoch):
            self.release()
            raise ValueError(
                f"pruning ends after step {self._end}, but this training has only {steps * (epochs - epoch)} steps: end it "
                "earlier or train longer"
            )
        self._checked, self._epoch_began = True, self._step

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Grow the masks when due; `batch` is the last of an execution."""
        steps = self.params.get("steps")
        # Keras counts an execution in full even if the end of the epoch cut it short
        self._step = self._epoch_began + min(batch + 1, steps or batch + 1)
        if self._next is not None and self._step >= self._next:
            self._grow()

    def _grow(self) -> None:
        step = min(self._step, self._end)
        sparsity = sparsity_at(step, self._begin, self._end, self._target)
        kernels = {name: kernel_of(layer) for name, layer in self._layers.items()}
        for name, mask in magnitude_masks(kernels, sparsity, self._scope).items():
            self._masks[name].assign(mask)
        self.project()
        if step >= self._end:
            self._next = None
        elif step < self._begin:
            self._next = self._begin
        else:
            self._next = min(self._end, step + self._every - (step - self._begin) % self._every)


def _masking(mask: tf.Variable) -> Projection:
    # multiplying by the mask would turn negative weights into -0.0, and keep NaN
    return lambda kernel: tf.where(mask, kernel, tf.zeros_like(kernel))


def _check_schedule(begin: int, end: int, target: float) -> None:
    check_number("target sparsity", target, low=0, below=1)
    check_integer("begin step", begin, 0)
    check_integer("end step", end, 0)
    if end < begin:
        raise ValueError(f"pruning must not end before it begins, got end step {end} and begin step {begin}")
