"""Fine-tuning that sees int8's rounding: weights and activations are rounded as TensorFlow Lite will round them."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers

_WEIGHTED = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
_LEVELS = 127  # of a weight, to each side of 0: TensorFlow Lite's kernels are symmetric
_BITS = 8
_FORGETTING = 0.1  # of a range, with every batch
_FOLDED = (layers.BatchNormalization, layers.ReLU, layers.Activation)  # into what they read
_SAME_SCALE = (layers.MaxPooling2D, layers.GlobalMaxPooling2D, layers.Flatten, layers.Reshape, layers.Permute)
_UNROUNDED = (layers.InputLayer, layers.Dropout, layers.SpatialDropout2D, layers.ZeroPadding2D, *_SAME_SCALE)


class _Range(layers.Layer):  # type: ignore[misc]
    """Round to the 256 levels of a tensor's range, which training follows; exact until it has seen a batch."""

    def build(self, shape: Any) -> None:
        names = ("low", "high", "seen")
        self.low, self.high, self.seen = (
            self.add_weight(name=name, shape=(), initializer="zeros", trainable=False) for name in names
        )

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if training:
            # 0 is always a level: padding is exact
            ends = (tf.minimum(tf.reduce_min(inputs), 0.0), tf.maximum(tf.reduce_max(inputs), 0.0))
            share = tf.where(self.seen.value > 0, _FORGETTING, 1.0)
            for kept, now in zip((self.low, self.high), ends, strict=True):
                kept.assign(kept + share * (tf.stop_gradient(now) - kept))
            self.seen.assign(1.0)
        # an empty range would round all to 0
        high = tf.maximum(self.high.value, self.low.value + 1e-6)
        rounded = tf.quantization.fake_quant_with_min_max_vars(inputs, self.low.value, high, _BITS)
        return tf.where(self.seen.value > 0, rounded, inputs)


class QuantizationAware(keras.Model):  # type: ignore[misc]
    """Train a copy of a classifier whose weights and activations are rounded as int8 in every step.

    Kernels are rounded to 255 levels for each output channel, symmetric to 0, activations to 256 levels of a range that is
    followed in training (Jacob et al. 2018, arXiv:1712.05877); gradients pass the rounding. What TensorFlow Lite folds into one
    op (convolution, normalization, activation) is rounded once, behind it. Takes [B, H, W, C] pixels of 0 to 255, returns logits;
    compile and fit it as the classifier itself, then `give_to` it. Raises ValueError for a model that is not functional,
    has no kernels, or has weights that are not finite.
    """

    def __init__(self, model: keras.Model) -> None:
        super().__init__(name=f"{model.name}_int8")
        if not getattr(model, "inputs", None):
            raise ValueError(f"model {model.name!r} is not functional or not built: build it from keras.Input")
        plain = keras.models.clone_model(keras.Model(model.inputs, model.outputs))
        rounded = {layer.name for layer in plain.layers if _is_rounded(layer)}

        def call(layer: keras.Layer, *arguments: Any, **more: Any) -> Any:
            outputs = layer(*arguments, **more)
            return _Range(name=f"{layer.name}_range")(outputs) if layer.name in rounded else outputs

        self.inner = keras.models.clone_model(plain, call_function=call)
        _copy_weights(model, self.inner)
        if not all(tf.reduce_all(tf.math.is_finite(weight)) for weight in self.inner.get_weights()):
            raise ValueError(f"model {model.name!r} has weights that are not finite: its training diverged")
        weighted = [layer for layer in self.inner.layers if type(layer) in _WEIGHTED]
        if not weighted:
            raise ValueError(f"model {model.name!r} has no Conv2D, DepthwiseConv2D or Dense layer: nothing to round")
        # the axes of a kernel that share a scale: all but the output channels, which are the last two of a depthwise one
        self._axes = {
            id(layer.kernel): [0, 1] if type(layer) is layers.DepthwiseConv2D else list(range(layer.kernel.ndim - 1))
            for layer in weighted
        }

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return the logits of the rounded model."""
        inner = self.inner
        weights = [
            rounded_kernel(weight.value, self._axes[id(weight)]) if id(weight) in self._axes else weight.value
            for weight in inner.trainable_variables
        ]
        others = [variable.value for variable in inner.non_trainable_variables]
        logits, changed = inner.stateless_call(weights, others, inputs, training=training)
        if training:
            for variable, value in zip(inner.non_trainable_variables, changed, strict=True):
                variable.assign(value)
        return logits

    def give_to(self, model: keras.Model) -> None:
        """Copy the weights, as they are before rounding, into a model of the same layers."""
        _copy_weights(self.inner, model)


def rounded_kernel(kernel: tf.Tensor, axes: list[int]) -> tf.Tensor:
    """Return a kernel rounded to int8's levels, one scale for all that lies along `axes`; its gradient is the kernel's."""
    scale = tf.reduce_max(tf.abs(kernel), axes, keepdims=True) / _LEVELS
    levels = tf.math.divide_no_nan(kernel, scale)
    return kernel + tf.stop_gradient(tf.round(levels) * scale - kernel)


def _is_rounded(layer: keras.Layer) -> bool:
    """Say whether TensorFlow Lite stores what a layer puts out, with a scale of its own.

    Probabilities that a model puts out stay as they are: rounded, one that is nearly 1 would have no gradient.
    """
    if isinstance(layer, _UNROUNDED):
        return False
    readers = [node.operation for node in layer._outbound_nodes]
    if not readers and _is_softmax(layer):
        return False
    folds = isinstance(layer, (*_WEIGHTED, layers.BatchNormalization, layers.Add))
    return not (folds and len(readers) == 1 and isinstance(readers[0], _FOLDED) and not _is_softmax(readers[0]))


def _is_softmax(layer: keras.Layer) -> bool:
    return isinstance(layer, layers.Softmax) or getattr(layer, "activation", None) is keras.activations.softmax


def _copy_weights(source: keras.Model, target: keras.Model) -> None:
    theirs = {layer.name: layer for layer in target.layers}
    for layer in source.layers:
        if layer.name in theirs:
            theirs[layer.name].set_weights(layer.get_weights())
