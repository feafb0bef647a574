"""Quantization-aware fine-tuning: weights and activations are rounded as TensorFlow Lite rounds them for int8."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers

from joulecache.pipelines.compressing.kernels import check_finite
from joulecache.pipelines.models.flattening import copy_weights, is_augmentation, plain_copy
from joulecache.pipelines.models.heads import head_of, kind_of_layer

_WITH_KERNEL = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
_WEIGHT_LEVELS = 127  # levels on each side of 0: TensorFlow Lite's kernels are symmetric
_ACTIVATION_BITS = 8
_RANGE_MOMENTUM = 0.1  # weight of each new batch in a moving range
_FOLDED = (layers.BatchNormalization, layers.ReLU, layers.Activation)  # by TensorFlow Lite, into the layer before
_SAME_SCALE = (layers.MaxPooling2D, layers.GlobalMaxPooling2D, layers.Flatten, layers.Reshape, layers.Permute)
_UNROUNDED = (
    *(layers.InputLayer, layers.Identity, layers.ZeroPadding2D, *_SAME_SCALE),
    *(layers.Dropout, layers.SpatialDropout2D, layers.GaussianDropout, layers.GaussianNoise, layers.AlphaDropout),
)


class _Range(layers.Layer):  # type: ignore[misc]
    """Round a tensor to the levels of its range, which moves in training; without rounding until the first batch."""

    def __init__(self, bits: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.bits = bits

    def build(self, shape: Any) -> None:
        names = ("low", "high", "seen")
        self.low, self.high, self.seen = (
            self.add_weight(name=name, shape=(), initializer="zeros", trainable=False) for name in names
        )

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if training:
            # 0 is always a level, so padding is exact
            ends = (tf.minimum(tf.reduce_min(inputs), 0.0), tf.maximum(tf.reduce_max(inputs), 0.0))
            share = tf.where(self.seen.value > 0, _RANGE_MOMENTUM, 1.0)
            for kept, now in zip((self.low, self.high), ends, strict=True):
                kept.assign(kept + share * (tf.stop_gradient(now) - kept))
            self.seen.assign(1.0)
        # an empty range would round everything to 0
        high = tf.maximum(self.high.value, self.low.value + 1e-6)
        rounded = tf.quantization.fake_quant_with_min_max_vars(inputs, self.low.value, high, self.bits)
        return tf.where(self.seen.value > 0, rounded, inputs)


class QuantizationAware(keras.Model):  # type: ignore[misc]
    """A copy of a classifier whose weights and activations are rounded to int8 in every step.

    Kernels are rounded to 255 levels per output channel, symmetric about 0; activations to 256 levels of a moving range
    (Jacob et al. 2018, arXiv:1712.05877); gradients pass through the rounding unchanged. What TensorFlow Lite folds into one op
    (convolution, normalization, activation) is rounded once, after it. The model maps pixels `[B, H, W, C]` from 0 to 255
    to the classifier's outputs. Compile and fit it like the classifier, then copy its weights back with `copy_weights_to`.

    Args:
        model: The classifier.
        weight_levels: Levels of a weight on each side of 0.
        activation_bits: Bits of an activation.

    Raises:
        ValueError: The model is not functional, has no kernels, or has weights that are not finite.
    """

    def __init__(
        self, model: keras.Model, *, weight_levels: int = _WEIGHT_LEVELS, activation_bits: int = _ACTIVATION_BITS
    ) -> None:
        super().__init__(name=f"{model.name}_int8")
        plain = plain_copy(model)
        check_finite(plain)
        self.head = head_of(model)
        rounded = {layer.name for layer in plain.layers if _is_rounded(layer)}

        def call(layer: keras.Layer, *arguments: Any, **more: Any) -> Any:
            outputs = layer(*arguments, **more)
            return _Range(activation_bits, name=f"{layer.name}_range")(outputs) if layer.name in rounded else outputs

        self.inner = keras.models.clone_model(plain, call_function=call)
        copy_weights(plain, self.inner)
        weighted = [layer for layer in self.inner.layers if type(layer) in _WITH_KERNEL]
        if not weighted:
            raise ValueError(
                f"model {model.name!r} has no Conv2D, DepthwiseConv2D or Dense layer: there is nothing to round"
            )
        self._weight_levels = weight_levels
        # axes of a kernel that share a scale: all but the output channels, the last two axes of a depthwise kernel
        self._axes = {
            id(layer.kernel): [0, 1] if type(layer) is layers.DepthwiseConv2D else list(range(layer.kernel.ndim - 1))
            for layer in weighted
        }

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return the logits of the rounded model."""
        inner = self.inner
        weights, others = (
            [self._rounded(variable) for variable in variables]
            for variables in (inner.trainable_variables, inner.non_trainable_variables)
        )
        logits, changed = inner.stateless_call(weights, others, inputs, training=training)
        if training:
            for variable, value in zip(inner.non_trainable_variables, changed, strict=True):
                if id(variable) not in self._axes:  # a frozen kernel
                    variable.assign(value)
        return logits

    def _rounded(self, variable: keras.Variable) -> tf.Tensor:
        axes = self._axes.get(id(variable))
        return variable.value if axes is None else rounded_kernel(variable.value, axes, self._weight_levels)

    def copy_weights_to(self, model: keras.Model) -> None:
        """Copy the weights, before rounding, to a model of the same layers, nested or not."""
        copy_weights(self.inner, model)


def rounded_kernel(kernel: tf.Tensor, axes: list[int], levels_per_side: int = _WEIGHT_LEVELS) -> tf.Tensor:
    """Round a kernel to int8 levels, with one scale for all `axes`; the gradient passes unchanged."""
    scale = tf.reduce_max(tf.abs(kernel), axes, keepdims=True) / levels_per_side
    levels = tf.math.divide_no_nan(kernel, scale)
    return kernel + tf.stop_gradient(tf.round(levels) * scale - kernel)


def _is_rounded(layer: keras.Layer) -> bool:
    """Return whether TensorFlow Lite stores a layer's output with a separate scale.

    Output probabilities are not rounded: one near 1 would have no gradient.
    """
    if isinstance(layer, _UNROUNDED) or is_augmentation(layer):
        return False
    readers = [node.operation for node in layer._outbound_nodes]
    if not readers and kind_of_layer(layer) != "logit":
        return False
    folds = isinstance(layer, (*_WITH_KERNEL, layers.BatchNormalization, layers.Add))
    return not (
        folds and len(readers) == 1 and isinstance(readers[0], _FOLDED) and kind_of_layer(readers[0]) == "logit"
    )
