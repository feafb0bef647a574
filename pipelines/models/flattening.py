"""Plain copies of models: without nested models, in float32."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
from keras import layers
from numpy.typing import NDArray

from joulecache.pipelines.core.user_code import describe_failure

_HALF = ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16")
"""Dtype policies whose layers compute in 16 bits."""


def plain_copy(model: keras.Model) -> keras.Model:
    """Return an uncompiled functional copy of a functional or sequential model: without nested models, in float32.

    Predictions equal those of the model when it computes in float32; weights, names (see `inner_layers`), frozen layers, and nested
    models that were called with `training=False` stay as they are.

    Raises:
        ValueError: The model is neither functional nor sequential, or not built, or a layer cannot be copied.
    """
    check_functional(model)
    taken = {tensor.name for tensor in model.inputs}
    clones: dict[int, keras.Operation] = {}
    names = {id(step): name for name, step in _named(model, taken)}

    def clone(step: keras.Operation) -> keras.Operation:
        if is_nested(step):
            return step  # called below
        if id(step) not in clones:
            clones[id(step)] = _clone(step, names[id(step)])
        return clones[id(step)]

    def inlined(inner: keras.Model, given: Any, training: bool | None) -> Any:
        def call(step: keras.Operation, *arguments: Any, **more: Any) -> Any:
            if more.get("training") is None and training is not None and _has_training(step):
                more["training"] = training
            if not is_nested(step):
                return step(*arguments, **more)
            tensors = [each for each in keras.tree.flatten(arguments) if isinstance(each, keras.KerasTensor)]
            return inlined(step, tensors, more.get("training"))

        whole = _functional(inner)
        # clone_model does the same, but a model whose inputs are computed becomes a copy that is not connected to them
        return whole._run_through_graph(keras.tree.pack_sequence_as(whole.input, given), clone, call_fn=call)

    inputs = [
        keras.Input(batch_shape=each.shape, dtype="float32" if each.dtype in _HALF else each.dtype, name=each.name)
        for each in model.inputs
    ]
    outputs = keras.tree.flatten(inlined(model, inputs, None))
    copy = keras.Model(
        inputs if len(inputs) > 1 else inputs[0], outputs if len(outputs) > 1 else outputs[0], name=model.name
    )
    copy_weights(model, copy)
    return copy


def inner_layers(model: keras.Model) -> dict[str, keras.Layer]:
    """Return the layers of a model and of its nested models, without inputs, by name.

    A name that is used on several levels stays that of the outermost layer; the others are prefixed by their model's: "base_conv".
    """
    return {name: step for name, step in _named(model) if isinstance(step, keras.Layer)}


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Copy weights to the layers of the same names (see `inner_layers`); layers that one of the models lacks are skipped."""
    targets = inner_layers(target)
    for name, layer in inner_layers(source).items():
        if name in targets:
            set_weights(targets[name], layer.get_weights())


def set_weights(layer: keras.Layer, weights: Sequence[NDArray[Any]]) -> None:
    """Set the weights of a layer or a model, from `get_weights`."""
    layer.set_weights(weights)
    for part in layer._flatten_layers():
        # it computes with copies of its weights, which only loading them from a file updates
        if isinstance(part, layers.Normalization):
            part.finalize_state()


def half_precision_layer(model: keras.Model) -> keras.Layer | None:
    """Return the first layer that computes in 16 bits, if any."""
    return next(
        (layer for layer in inner_layers(model).values() if layer.compute_dtype in ("float16", "bfloat16")), None
    )


def check_functional(model: keras.Model) -> None:
    """Raise ValueError unless a model is functional or sequential, and built."""
    if not getattr(model, "inputs", None):
        raise ValueError(f"model {model.name!r} is not functional or not built: build it from keras.Input")


def is_nested(step: keras.Operation) -> bool:
    """Return whether a layer is a functional or sequential model."""
    return isinstance(step, keras.Model) and bool(getattr(step, "inputs", None))


def is_augmentation(layer: keras.Layer) -> bool:
    """Return whether a layer is one of Keras' that change images, most of them only in training."""
    return type(layer).__module__.startswith("keras.src.layers.preprocessing.image_preprocessing.")


def _named(model: keras.Model, taken: set[str] | None = None) -> Iterator[tuple[str, keras.Operation]]:
    """Yield the layers and operations of a model and its nested models with unique names."""
    used, seen = set(taken or ()), set()
    found = list(_steps(model, (), set()))
    chosen: dict[int, str] = {}
    for path, step in sorted(found, key=lambda each: len(each[0])):
        name, outer = step.name, list(path)
        while name in used and outer:
            name = f"{outer.pop()}_{name}"
        number = 1
        unique = name
        while unique in used:
            number += 1
            unique = f"{name}_{number}"
        used.add(unique)
        chosen[id(step)] = unique
    for _, step in found:
        if id(step) not in seen:
            seen.add(id(step))
            yield chosen[id(step)], step


def _steps(
    model: keras.Model, path: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], keras.Operation]]:
    # a sequential model has no operations, only layers
    for step in getattr(model, "operations", model.layers):
        if id(step) in seen or isinstance(step, layers.InputLayer):
            continue
        seen.add(id(step))
        if is_nested(step):
            yield from _steps(step, (*path, step.name), seen)
        else:
            yield path, step


def _functional(model: keras.Model) -> keras.Model:
    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs[0], model.outputs[0])
    return keras.Model(model.input, model.output)


def _clone(step: keras.Operation, name: str) -> keras.Operation:
    try:
        config = _in_float32(step.get_config())
        config["name"] = name
        return type(step).from_config(config)
    except Exception as error:  # layers raise anything
        raise ValueError(f"layer {step.name!r} cannot be copied: {describe_failure(error)}") from error


def _in_float32(config: Any) -> Any:
    """Return a configuration in which layers that compute in 16 bits compute in float32."""
    if isinstance(config, Mapping):
        if config.get("class_name") == "DTypePolicy" and config.get("config", {}).get("name") in _HALF:
            return {**config, "config": {**config["config"], "name": "float32"}}
        return {
            key: "float32" if key == "dtype" and value in _HALF else _in_float32(value) for key, value in config.items()
        }
    if isinstance(config, list | tuple) and type(config) in (list, tuple):
        return type(config)(_in_float32(each) for each in config)
    return config


def _has_training(step: keras.Operation) -> bool:
    return "training" in inspect.signature(step.call).parameters
