"""L1 penalties on kernels, which push weights to zero before they are pruned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import regularizers

from joulecache.pipelines.compressing.kernels import copy_of, prunable_layers
from joulecache.pipelines.core.checks import check_number


def with_l1(model: keras.Model, strength: float, names: Sequence[str] | None = None) -> keras.Model:
    """Return an uncompiled copy whose loss includes an L1 penalty, times `strength`, on the kernels of `prunable_layers`.

    Weights and predictions are equal. An existing L1 is replaced; an L2 stays.

    Raises:
        ValueError: As `prunable_layers`; or the strength is negative or not finite, or a kernel has a regularizer of
            another kind.
    """
    return _regularized(model, names, check_number("strength", strength, low=0))


def without_l1(model: keras.Model, names: Sequence[str] | None = None) -> keras.Model:
    """Return an uncompiled copy without the L1 penalty that `with_l1` adds; an L2 stays."""
    return _regularized(model, names, None)


def _regularized(model: keras.Model, names: Sequence[str] | None, strength: float | None) -> keras.Model:
    changed = {id(layer): name for name, layer in prunable_layers(model, names).items()}

    def clone(layer: keras.Layer) -> keras.Layer:
        config = layer.get_config()
        if id(layer) in changed:
            config["kernel_regularizer"] = _regularizer(changed[id(layer)], layer.kernel_regularizer, strength)
        return type(layer).from_config(config)

    return copy_of(model, clone)


def _regularizer(name: str, given: Any, strength: float | None) -> Any:
    """Return the configuration of a kernel's regularizer with that L1; None: without any."""
    l2 = 0.0
    if type(given) in (regularizers.L2, regularizers.L1L2):
        l2 = float(given.l2)
    elif given is not None and type(given) is not regularizers.L1:
        raise ValueError(
            f"the kernel of layer {name!r} must have an L1, L2 or L1L2 regularizer or none, got {type(given).__name__}"
        )
    if strength is None:
        return regularizers.serialize(regularizers.L2(l2)) if l2 else None
    return regularizers.serialize(regularizers.L1L2(strength, l2) if l2 else regularizers.L1(strength))
