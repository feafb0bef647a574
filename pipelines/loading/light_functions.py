"""Datasets with functions that cost little at the start of an iterator.

At the start of each iterator, TensorFlow optimizes the function of every `map`, `scan` and `flat_map` for several devices, which costs
2 ms of CPU time each (2 cores, AMD EPYC): more than reading 200 images of 224x224. It skips that for functions with the
attribute below, which only `tf.raw_ops` can pass; they cost 0.2 ms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

_ON_ONE_DEVICE = {"experimental_ints_on_device": True}

Tensors = Any
"""Tensors and composite tensors in nested tuples and dicts."""


def scan(dataset: tf.data.Dataset, state: int, function: Callable[..., tuple[tf.Tensor, Tensors]]) -> tf.data.Dataset:
    """Return `dataset.scan`: `function` maps an int64 state and the components of an element to the next state and an element."""
    traced = _trace(function, tf.TensorSpec([], tf.int64), *dataset.element_spec)
    spec = _specs(traced.structured_outputs[1])
    variant = tf.raw_ops.ScanDataset(
        input_dataset=tf.data.experimental.to_variant(dataset),
        initial_state=[tf.constant(state, tf.int64)],
        other_arguments=traced.captured_inputs,
        f=traced,
        preserve_cardinality=True,
        use_default_device=True,
        **_outputs(spec),
    )
    return tf.data.experimental.from_variant(variant, spec)


def map_in_order(dataset: tf.data.Dataset, function: Callable[..., Tensors]) -> tf.data.Dataset:
    """Return `dataset.map`, one element at a time: TensorFlow runs other maps in parallel, with a batch in memory for each call."""
    traced = _trace(function, *tf.nest.flatten(dataset.element_spec))
    spec = _specs(traced.structured_outputs)
    variant = tf.raw_ops.MapDataset(
        input_dataset=tf.data.experimental.to_variant(dataset),
        other_arguments=traced.captured_inputs,
        f=traced,
        use_inter_op_parallelism=False,
        preserve_cardinality=True,
        force_synchronous=True,
        **_outputs(spec),
    )
    return tf.data.experimental.from_variant(variant, spec)


def slices(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Return the slices of each element along the first axis of its tensors; they share its memory if they are aligned."""
    spec = tf.nest.map_structure(lambda each: tf.TensorSpec(each.shape[1:], each.dtype), dataset.element_spec)
    return slices_of(dataset, lambda *tensors: tensors, spec)


def slices_of(dataset: tf.data.Dataset, function: Callable[..., tuple[tf.Tensor, ...]], spec: Any) -> tf.data.Dataset:
    """Return the slices of the tensors that `function` returns for each element; `spec` is the structure of one slice of them."""
    traced = _trace(
        lambda *tensors: tf.data.experimental.to_variant(tf.data.Dataset.from_tensor_slices(function(*tensors))),
        *tf.nest.flatten(dataset.element_spec),
    )
    variant = tf.raw_ops.FlatMapDataset(
        input_dataset=tf.data.experimental.to_variant(dataset),
        other_arguments=traced.captured_inputs,
        f=traced,
        **_outputs(spec),
    )
    return tf.data.experimental.from_variant(variant, spec)


def _trace(function: Callable[..., Tensors], *specs: Any) -> Any:
    return tf.function(function, autograph=False, experimental_attributes=_ON_ONE_DEVICE).get_concrete_function(*specs)


def _specs(tensors: Tensors) -> Any:
    return tf.nest.map_structure(lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), tensors)


def _outputs(spec: Any) -> dict[str, Any]:
    flat = tf.nest.flatten(spec)
    return {"output_types": [each.dtype for each in flat], "output_shapes": [each.shape for each in flat]}
