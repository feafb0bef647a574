"""The kernels of a model, and copies of models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from joulecache.pipelines.models.flattening import check_functional, set_weights

# not DepthwiseConv2D: its kernels are about 1% of a model's weights, and each output sums only nine of them
_WEIGHTED = (layers.Conv2D, layers.Dense)


def weighted_layers(model: keras.Model) -> dict[str, keras.Layer]:
    """Return the Conv2D and Dense layers by name, in the model's order; a layer of a nested model is "nested/name".

    Raises:
        ValueError: There are none, or one is not built, is quantized or has adapters; the message names it.
    """
    found: dict[str, keras.Layer] = {}
    _collect(model, "", found)
    if not found:
        raise ValueError(f"model {model.name!r} has no Conv2D or Dense layer: there are no kernels to work on")
    for name, layer in found.items():
        if not layer.built:
            raise ValueError(f"layer {name!r} has no weights yet: build the model from keras.Input")
        if len(layer.weights) != 1 + layer.use_bias:
            raise ValueError(f"layer {name!r} has more weights than a kernel and a bias: use plain layers")
    return found


def prunable_layers(model: keras.Model, names: Sequence[str] | None = None) -> dict[str, keras.Layer]:
    """Return the layers whose weights are pruned, by name: those of `names`, spelled as in `weighted_layers`.

    By default these are all but the last, whose weights are few and important.

    Raises:
        ValueError: As `weighted_layers`; or a name is unknown, or no layer is left.
    """
    weighted = weighted_layers(model)
    chosen = list(weighted)[:-1] if names is None else list(names)
    unknown = [name for name in chosen if name not in weighted]
    if unknown:
        raise ValueError(f"no layer {unknown[0]!r} to prune: choose from {', '.join(weighted)}")
    if not chosen:
        raise ValueError(
            f"model {model.name!r} has no prunable weights: its last layer, {list(weighted)[-1]!r}, is pruned only if named"
        )
    return {name: layer for name, layer in weighted.items() if name in chosen}


def kernel_of(layer: keras.Layer) -> NDArray[Any]:
    """Return the values of a layer's kernel."""
    return keras.ops.convert_to_numpy(layer.kernel)  # type: ignore[no-any-return]


def copy_of(model: keras.Model, clone: Callable[[keras.Layer], keras.Layer] | None = None) -> keras.Model:
    """Return an uncompiled copy of a functional or sequential model, with its weights.

    `clone` returns a layer of the copy for one of the model, with equal weights; by default an equal layer.

    Raises:
        ValueError: The model is neither functional nor sequential, or not built.
    """
    check_functional(model)
    copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    set_weights(copy, model.get_weights())
    if not copy.compiled:
        return copy
    # a clone of a compiled model is compiled, and saves its optimizer
    inputs, outputs = (tensors[0] if len(tensors) == 1 else tensors for tensors in (copy.inputs, copy.outputs))
    return keras.Model(inputs, outputs, name=model.name)


def check_finite(model: keras.Model) -> None:
    """Raise ValueError if a weight of a model is not finite."""
    if not all(np.isfinite(weight).all() for weight in model.get_weights()):
        raise ValueError(f"model {model.name!r} has weights that are not finite: its training diverged")


def _collect(model: keras.Model, prefix: str, found: dict[str, keras.Layer]) -> None:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _collect(layer, f"{prefix}{layer.name}/", found)
        # a nested model that is used twice, or a layer shared with it, counts once
        elif type(layer) in _WEIGHTED and all(layer is not other for other in found.values()):
            found[f"{prefix}{layer.name}"] = layer
