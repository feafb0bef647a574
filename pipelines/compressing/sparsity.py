"""Unstructured pruning: the weights of smallest magnitude become zeros, and stay so, in a model of the same shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import keras
import numpy as np
import tensorflow as tf
from keras import layers, regularizers
from numpy.typing import NDArray

Scope = Literal["layer", "global"]
Onto = Callable[[tf.Tensor], tf.Tensor]

# not DepthwiseConv2D: its kernels hold some 1% of a model's weights, and each output is a sum of nine of them
_WEIGHTED = (layers.Conv2D, layers.Dense)


def weighted_layers(model: keras.Model) -> dict[str, keras.Layer]:
    """Return every Conv2D and Dense layer by name, in the model's order; inside a nested model as "nested/name".

    Raises ValueError, by name, for a model without any, and for a layer that is not built, is quantized or has adapters.
    """
    found: dict[str, keras.Layer] = {}
    _collect(model, "", found)
    if not found:
        raise ValueError(f"model {model.name!r} has no Conv2D and no Dense layer: it has no kernels to work on")
    for name, layer in found.items():
        if not layer.built:
            raise ValueError(f"layer {name!r} has no weights yet: build the model, from keras.Input")
        if len(layer.weights) != 1 + layer.use_bias:
            raise ValueError(f"layer {name!r} has weights beside its kernel and bias: give a model of plain layers")
    return found


def prunable_layers(model: keras.Model, names: Sequence[str] | None = None) -> dict[str, keras.Layer]:
    """Return the layers whose kernels are pruned: those named, by default every Conv2D and Dense but the last.

    The last holds few weights, and each of them decides on a class. Raises as `weighted_layers`, and ValueError for
    names that are not among its names and where no layer is left.
    """
    weighted = weighted_layers(model)
    chosen = list(weighted)[:-1] if names is None else list(names)
    unknown = [name for name in chosen if name not in weighted]
    if unknown:
        raise ValueError(f"no layer {unknown[0]!r} to prune: there are {', '.join(weighted)}")
    if not chosen:
        raise ValueError(
            f"model {model.name!r} has no prunable weights: the last of its layers, {list(weighted)[-1]!r}, is left dense "
            "unless it is named"
        )
    return {name: layer for name, layer in weighted.items() if name in chosen}


def sparsity_by_layer(model: keras.Model, names: Sequence[str] | None = None) -> dict[str, float]:
    """Return the share of zeros in the kernel of each of `prunable_layers`."""
    return {name: float(np.mean(~mask)) for name, mask in masks_of(model, names).items()}


def sparsity_of(model: keras.Model, names: Sequence[str] | None = None) -> float:
    """Return the share of zeros in the kernels of all `prunable_layers` together."""
    masks = masks_of(model, names).values()
    return sum(int((~mask).sum()) for mask in masks) / sum(mask.size for mask in masks)


def masks_of(model: keras.Model, names: Sequence[str] | None = None) -> dict[str, NDArray[np.bool_]]:
    """Return masks of the shape of each kernel of `prunable_layers`: False where its weight is exactly 0."""
    return {name: _values(layer) != 0 for name, layer in prunable_layers(model, names).items()}


def sparsity_at(step: int, begin: int, end: int, target: float, initial: float = 0.0) -> float:
    """Return the sparsity after `step` steps: `initial` up to `begin`, `target` from `end` on, between them a cubic.

    It rises fast while there is much to drop, and slowly towards the end: target + (initial - target) * (1 - t)^3, where
    t is the share of the way (Zhu and Gupta 2017, arXiv:1710.01878, equation 1). Raises ValueError for a target or an
    initial sparsity outside [0, 1), an initial one above the target, negative steps and an end before the beginning.
    """
    _check_schedule(begin, end, target)
    _check_share("initial sparsity", initial)
    _check_whole("step", step, 0)
    if initial > target:
        raise ValueError(f"initial sparsity {initial} is above the target {target}: sparsity only grows")
    if step >= end:
        return float(target)
    if step <= begin:
        return float(initial)
    left = 1 - (step - begin) / (end - begin)
    return target + (initial - target) * left**3


def smallest(magnitudes: NDArray[np.floating[Any]], count: int) -> NDArray[np.bool_]:
    """Mark exactly `count` of the values [N], the smallest ones; of equal ones those that stand first."""
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
    """Return masks of the shapes of the kernels, False for the share `sparsity` of weights with the smallest magnitude.

    Their number is exact, rounded to the nearest: for each kernel, or with the scope "global" for all together. Zeros are
    never marked as alive, also where there are more than that, and each kernel keeps at least its largest weight: one of
    zeros alone passes no gradient on.
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
    """Return a copy, uncompiled, with the share `sparsity` of the weights of its `prunable_layers` at 0 (`magnitude_masks`).

    The given model is untouched. Raises as `prunable_layers`, and ValueError for a share outside [0, 1).
    """
    _check_share("sparsity", sparsity)
    copy = copy_of(model)
    kernels = prunable_layers(copy)
    masks = magnitude_masks({name: _values(layer) for name, layer in kernels.items()}, sparsity, scope)
    for name, layer in kernels.items():
        layer.kernel.assign(np.where(masks[name], _values(layer), 0))  # a product would leave -0.0
    return copy


@dataclass(frozen=True, eq=False)
class HeldConstraint:
    """A kernel's own constraint, followed by what a callback holds the kernel to."""

    own: Callable[[Any], Any] | None
    onto: Onto
    owner: keras.callbacks.Callback
    fit: object

    def __call__(self, kernel: Any) -> tf.Tensor:
        """Return what the kernel becomes after a step."""
        return self.onto(tf.convert_to_tensor(kernel if self.own is None else self.own(kernel)))


class HeldKernels(keras.callbacks.Callback):  # type: ignore[misc]
    """Hold kernels to a function of themselves after every step of the optimizer, until the training ends.

    Keras applies a variable's constraint inside the compiled step, so that no step is left out with
    `steps_per_execution` above 1, no momentum brings a value back, and Python is not asked. What is validated, and what
    other callbacks save, is held too. The layer's configuration knows nothing of it: saved files are those of an
    ordinary model. The step is traced anew, once when the training begins.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[str, keras.Variable] = {}

    def hold(self, kernels: Mapping[str, keras.Variable], onto: Mapping[str, Onto]) -> None:
        """Begin to hold the kernels; ValueError where another callback of this training holds one already."""
        for name, kernel in kernels.items():
            before = kernel.constraint
            if isinstance(before, HeldConstraint) and before.fit is self.params and before.owner is not self:
                raise ValueError(
                    f"the kernel of layer {name!r} is held by a {type(before.owner).__name__} already: one training "
                    "prunes a layer or shares its weights, once"
                )
        for name, kernel in kernels.items():
            before = kernel.constraint
            # a training that was interrupted left its own
            own = before.own if isinstance(before, HeldConstraint) else before
            kernel.constraint = HeldConstraint(own, onto[name], self, self.params)
        self._held = dict(kernels)
        # a step that was traced in an earlier training knows no constraint
        self.model.make_train_function(force=True)

    def apply(self) -> None:
        """Hold the kernels now, outside a step."""
        for kernel in self._held.values():
            kernel.assign(kernel.constraint.onto(tf.convert_to_tensor(kernel)))

    def release(self) -> None:
        """Give the kernels their own constraints back."""
        for kernel in self._held.values():
            kernel.constraint = kernel.constraint.own
        self._held = {}
        self.model.train_function = None

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Hold what other callbacks may have put into the kernels."""
        self.apply()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Hold the averages that an optimizer leaves at the end, and weights that were restored; then let go."""
        self.apply()
        self.release()


class MagnitudePruning(HeldKernels):
    """Prune the kernels of a model by magnitude while it trains, to a share `target` of zeros.

    After `begin_step` steps of this training, then after every `every` more and after `end_step`, the smallest weights of
    each of `prunable_layers`, or of those named in `names`, are masked, as many as `sparsity_at` says, and stay exactly 0
    (see `HeldKernels`). `MagnitudePruning(0.5, 0, 0)` prunes before the first step. With `steps_per_execution` above 1 the
    masks grow between executions, and hold after each step.

    The scope "layer" gives each layer the same share: magnitudes differ between layers by how many inputs a layer sums, so
    one threshold for all, the scope "global", takes most from the widest and can leave little of one.

    Weights that are 0 when a training begins are masked too: a sparse model that was loaded goes on as it was. Nothing
    is random. Give the callback last, so that weights that another restores (`EarlyStopping`) are masked. Frozen
    layers are pruned as well.

    Raises ValueError for a target outside [0, 1), steps that are negative or no whole numbers, an end before the
    beginning; when the training begins, as `prunable_layers`, for a kernel of zeros alone, and where the training is known
    to end before `end_step`.
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
        _check_whole("every", every, 1)
        if scope not in get_args(Scope):
            raise ValueError(f"unknown scope {scope!r}: allowed are {', '.join(get_args(Scope))}")
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
        """Return a callback that keeps the zeros that a model has, and makes no more."""
        return cls(0.0, 0, 0, names=names)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Mask the zeros that there are, and what is due before the first step."""
        self._layers = prunable_layers(self.model, self._names)
        for name, mask in masks_of(self.model, self._names).items():
            if not mask.any():
                raise ValueError(f"the kernel of layer {name!r} holds zeros alone: initialize it, or do not prune it")
        self._masks = {
            name: tf.Variable(tf.ones(layer.kernel.shape, tf.bool), trainable=False)
            for name, layer in self._layers.items()
        }
        self.hold(
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
                f"pruning ends after step {self._end}, but this training has {steps * (epochs - epoch)} steps: end it earlier, "
                "or train longer"
            )
        self._checked, self._epoch_began = True, self._step

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Mask more where that is due; `batch` is the last of an execution."""
        steps = self.params.get("steps")
        # Keras counts an execution as whole that the end of an epoch cut short
        self._step = self._epoch_began + min(batch + 1, steps or batch + 1)
        if self._next is not None and self._step >= self._next:
            self._grow()

    def _grow(self) -> None:
        step = min(self._step, self._end)
        sparsity = sparsity_at(step, self._begin, self._end, self._target)
        kernels = {name: _values(layer) for name, layer in self._layers.items()}
        for name, mask in magnitude_masks(kernels, sparsity, self._scope).items():
            self._masks[name].assign(mask)
        self.apply()
        if step >= self._end:
            self._next = None
        elif step < self._begin:
            self._next = self._begin
        else:
            self._next = min(self._end, step + self._every - (step - self._begin) % self._every)


def with_l1(model: keras.Model, strength: float, names: Sequence[str] | None = None) -> keras.Model:
    """Return a copy, uncompiled, in whose loss the magnitudes of the kernels of `prunable_layers` count `strength` each.

    It has the same weights and predictions: keras.regularizers.L1 changes what training does. An L1 that a kernel has is
    replaced, an L2 stays beside it (L1L2). The model must be functional or sequential. Raises as `prunable_layers`, and
    ValueError for a strength that is negative or not finite, and for a kernel with a regularizer of another kind.
    """
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength < math.inf:
        raise ValueError(f"L1 strength {strength!r}: give a finite number of at least 0")
    return _regularized(model, names, strength)


def without_l1(model: keras.Model, names: Sequence[str] | None = None) -> keras.Model:
    """Return a copy, uncompiled, without the L1 of the kernels of `prunable_layers`; their L2 stays.

    It has the same weights and predictions. Raises as `with_l1`.
    """
    return _regularized(model, names, None)


def copy_of(model: keras.Model, clone: Callable[[keras.Layer], keras.Layer] | None = None) -> keras.Model:
    """Return an uncompiled copy of a functional or sequential model with its weights, its layers made by `clone`; else ValueError."""
    if not getattr(model, "inputs", None):
        raise ValueError(f"model {model.name!r} is not functional or not built: build it from keras.Input")
    copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    copy.set_weights(model.get_weights())
    if not copy.compiled:
        return copy
    # a clone of a compiled model is compiled, and saves its optimizer
    inputs, outputs = (them[0] if len(them) == 1 else them for them in (copy.inputs, copy.outputs))
    return keras.Model(inputs, outputs, name=model.name)


def _regularized(model: keras.Model, names: Sequence[str] | None, strength: float | None) -> keras.Model:
    changed = {id(layer): name for name, layer in prunable_layers(model, names).items()}

    def clone(layer: keras.Layer) -> keras.Layer:
        config = layer.get_config()
        if id(layer) in changed:
            config["kernel_regularizer"] = _regularizer(changed[id(layer)], layer.kernel_regularizer, strength)
        return type(layer).from_config(config)

    return copy_of(model, clone)


def _regularizer(name: str, given: Any, strength: float | None) -> Any:
    """Return the configuration of a kernel's regularizer with that L1, or with none."""
    l2 = 0.0
    if type(given) in (regularizers.L2, regularizers.L1L2):
        l2 = float(given.l2)
    elif given is not None and type(given) is not regularizers.L1:
        raise ValueError(
            f"layer {name!r} has a {type(given).__name__} on its kernel: L1 goes with L1, L2 and L1L2 alone"
        )
    if strength is None:
        return regularizers.serialize(regularizers.L2(l2)) if l2 else None
    return regularizers.serialize(regularizers.L1L2(strength, l2) if l2 else regularizers.L1(strength))


def _masking(mask: tf.Variable) -> Onto:
    # a product would turn negative weights into -0.0, and keep NaN
    return lambda kernel: tf.where(mask, kernel, tf.zeros_like(kernel))


def _collect(model: keras.Model, prefix: str, found: dict[str, keras.Layer]) -> None:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _collect(layer, f"{prefix}{layer.name}/", found)
        # a nested model that is used twice, or a layer shared with it, is one
        elif type(layer) in _WEIGHTED and all(layer is not other for other in found.values()):
            found[f"{prefix}{layer.name}"] = layer


def _values(layer: keras.Layer) -> NDArray[Any]:
    return keras.ops.convert_to_numpy(layer.kernel)  # type: ignore[no-any-return]


def _check_schedule(begin: int, end: int, target: float) -> None:
    _check_share("target sparsity", target)
    _check_whole("begin step", begin, 0)
    _check_whole("end step", end, 0)
    if end < begin:
        raise ValueError(f"pruning ends at step {end}, before it begins at {begin}: give an end that is not earlier")


def _check_share(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name} {value!r}: give a share of the weights, at least 0 and below 1")


def _check_whole(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
