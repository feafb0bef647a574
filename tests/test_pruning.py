from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers
from numpy.typing import NDArray

from joulecache.pipelines.compressing.batch_norm import reestimate_batch_norm
from joulecache.pipelines.compressing.kernels import copy_of
from joulecache.pipelines.compressing.pruning import kept_channels, prune_channels, ratio_for_macs
from joulecache.pipelines.models.flattening import plain_copy
from joulecache.pipelines.models.macs import count_macs

Build = Callable[[], keras.Model]
Kept = dict[str, NDArray[np.int64]]


def conv_norm(x: Any, filters: int, size: int, name: str, strides: int = 1) -> Any:
    x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False, name=name)(x)
    return layers.BatchNormalization(name=f"{name}_norm")(x)


def resnet() -> keras.Model:
    """Three residual blocks, two with a 1x1 shortcut, as ResNet-8 of MLPerf Tiny."""
    pixels = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 255)(pixels)
    x = layers.ReLU()(conv_norm(x, 16, 3, "stem"))
    for block, filters in enumerate((16, 32, 40)):
        strides = 1 if block == 0 else 2
        y = layers.ReLU()(conv_norm(x, filters, 3, f"block_{block}_a", strides))
        y = conv_norm(y, filters, 3, f"block_{block}_b")
        if block:
            x = layers.Conv2D(filters, 1, strides, padding="same", name=f"block_{block}_shortcut")(x)
        x = layers.Activation("relu")(layers.Add(name=f"block_{block}_sum")([x, y]))
    x = layers.AveragePooling2D(4)(x)
    return keras.Model(pixels, layers.Dense(10, name="logits")(layers.Flatten()(x)), name="resnet")


def densenet() -> keras.Model:
    """Layers that read, normalized, all that came before them (Huang et al., arXiv:1608.06993)."""
    pixels = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3, padding="same", name="stem")(pixels)
    for layer in range(3):
        if layer == 2:
            x = layers.AveragePooling2D(2)(x)
        y = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Concatenate()([x, layers.Conv2D(12, 3, padding="same", name=f"grow_{layer}")(y)])
    x = layers.LeakyReLU()(layers.BatchNormalization()(x))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(pixels, layers.Dense(5, name="logits")(x), name="densenet")


def mobilenet() -> keras.Model:
    return keras.applications.MobileNet(
        weights=None, alpha=0.25, input_shape=(32, 32, 3), classes=10, classifier_activation=None
    )


def crossing() -> keras.Model:
    """A layer added to two in a row, a depthwise layer that multiplies channels, and what Keras' own Reshape allows."""
    pixels = keras.Input((6, 6, 3))
    a = layers.Conv2D(8, 3, name="a", padding="same", activation="gelu")(pixels)
    b = layers.Conv2D(16, 1, name="b")(pixels)
    row = layers.Concatenate(axis=3)([a, b])
    both = layers.Add()([row, layers.Conv2D(24, 3, name="both", padding="same")(pixels), row])
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, activation="sigmoid", name="each")(both)
    x = layers.Reshape((2, -1, 48))(layers.ZeroPadding2D(((0, 0), (1, 1)))(x))
    x = layers.MaxPooling2D(2)(layers.Reshape((-1, 6, 48))(x))
    x = layers.Add()([layers.Flatten()(x), layers.Dense(288, name="flat")(layers.GlobalMaxPooling2D()(row))])
    return keras.Model(pixels, layers.Dense(3)(x))


def of_any_size() -> keras.Model:
    pixels = keras.Input((None, None, 3))
    x = layers.Conv2D(16, 3, padding="same")(pixels)
    x = layers.Add()([x, layers.DepthwiseConv2D(3, padding="same")(x), layers.Conv2D(16, 1)(x)])
    x = layers.GlobalAveragePooling2D()(layers.Reshape((-1, 4, 16))(x))
    return keras.Model(pixels, layers.Dense(3)(layers.Concatenate()([x, x])))


def normalized() -> keras.Model:
    pixels = x = keras.Input((9, 7, 3))
    x = layers.Rescaling(2.0, offset=[-0.1, 0.0, 0.2])(x)
    x = layers.Conv2D(24, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU(6.0)(x)
    x = layers.ZeroPadding2D(1)(x)
    x = layers.Conv2D(20, 3, activation="sigmoid")(x)
    x = layers.BatchNormalization(scale=False)(x)
    x = layers.Dropout(0.5)(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(40, activation="tanh")(x)
    x = layers.Dense(4)(x)
    return keras.Model(pixels, layers.Softmax()(x))


def sequential() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 10, 3)),
            layers.Conv2D(32, (3, 1), activation="gelu"),
            layers.AveragePooling2D((2, 3)),
            layers.Flatten(),
            layers.BatchNormalization(),
            layers.Dense(17, activation="relu"),
            layers.Activation("elu"),
            layers.Dense(24),
            layers.LeakyReLU(),
            layers.Dense(5, activation="softmax"),
        ]
    )


def convolutional() -> keras.Model:
    pixels = keras.Input((8, 8, 1))
    x = layers.Dense(16, activation="relu")(pixels)
    x = layers.SpatialDropout2D(0.1)(layers.MaxPooling2D(2)(x))
    x = layers.Conv2D(6, 2)(x)
    return keras.Model(pixels, layers.GlobalMaxPooling2D()(x))


def excited() -> keras.Model:
    """An inverted residual block with squeeze-and-excitation, written as MobileNetV3 and EfficientNet write it."""
    pixels = keras.Input((8, 8, 3))
    x = layers.Normalization(name="adapted")(layers.Rescaling(1 / 255)(pixels))
    x = start = layers.Activation("hard_swish")(conv_norm(x, 16, 3, "stem"))
    x = layers.Activation("swish")(conv_norm(x, 32, 1, "expand"))
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(x))
    y = layers.ReLU()(layers.Conv2D(12, 1, name="squeeze")(layers.GlobalAveragePooling2D(keepdims=True)(x)))
    y = layers.ReLU(6.0)(layers.Conv2D(32, 1, name="excite")(y) + 3.0) * (1.0 / 6.0)
    x = start + conv_norm(layers.Multiply()([x, y]), 16, 1, "project")
    y = layers.Reshape((1, 1, 16))(layers.GlobalAveragePooling2D()(x))
    y = layers.Conv2D(16, 1, activation="sigmoid", name="gate")(y)
    x = layers.Normalization()(layers.multiply([x, y]))
    return keras.Model(pixels, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


def operators() -> keras.Model:
    """Arithmetic, activations and reductions that are no layers; a layer without weights that is used twice."""
    pixels = keras.Input((6, 6, 3))
    relu = layers.ReLU()
    a = relu(layers.Conv2D(16, 3, padding="same", name="a")(pixels * 2.0 - 1.0))
    b = relu(layers.Conv2D(16, 1, name="b")(pixels))
    x = keras.ops.add(a, keras.ops.sigmoid(b)) * (1.0 - keras.ops.square(layers.Conv2D(16, 1, name="c")(pixels)) / 2.0)
    x = keras.ops.concatenate([x, layers.Conv2D(8, 1, name="d")(pixels)], axis=-1)
    scale = keras.ops.reshape(keras.ops.mean(x, axis=(1, 2)), (-1, 1, 1, 24))
    x = x * scale + layers.Conv2D(1, 1, name="one")(pixels)
    x = layers.Concatenate(axis=1)([x, layers.Conv2D(24, 1, name="below")(pixels)])
    return keras.Model(pixels, layers.Dense(3)(keras.ops.max(x, axis=[1, 2])))


def convnext() -> keras.Model:
    """A block of ConvNeXt: one group for each channel, and LayerNormalization, which mixes them."""
    pixels = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 2, strides=2, name="stem")(pixels)
    y = layers.Conv2D(16, 3, padding="same", groups=16, name="depthwise")(x)
    y = layers.Dense(64, activation="gelu", name="wide")(layers.LayerNormalization(name="norm")(y))
    x = x + layers.Dense(16, name="narrow")(y)
    x = layers.Conv2D(24, 1, name="last")(x)
    x = layers.Conv2D(48, 3, groups=24, name="doubled")(x)
    return keras.Model(pixels, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def xception() -> keras.Model:
    pixels = keras.Input((8, 8, 3))
    x = start = conv_norm(pixels, 16, 3, "stem")
    for n in range(2):
        x = layers.SeparableConv2D(16, 3, padding="same", depth_multiplier=1 + n, use_bias=n == 0, name=f"sep_{n}")(x)
        x = layers.BatchNormalization()(layers.PReLU(shared_axes=[1, 2 + n])(x))
    x = layers.Cropping2D(1)(layers.UpSampling2D(2)(layers.add([x, start])))
    return keras.Model(pixels, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def nested() -> keras.Model:
    """A sequential model, and a functional one with a skip connection, under a head."""
    pixels = keras.Input((8, 8, 3))
    stem = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(16, 3, name="conv"), layers.BatchNormalization()])
    inner = keras.Input((6, 6, 16))
    base = keras.Model(inner, inner + layers.Conv2D(16, 3, padding="same", name="conv")(inner), name="base")
    return keras.Model(pixels, layers.Dense(3)(layers.Flatten()(layers.Conv2D(8, 1, name="last")(base(stem(pixels))))))


CHAINS: list[Build] = [normalized, sequential, convolutional]
MODELS: list[Build] = [resnet, densenet, mobilenet, crossing, of_any_size]
BLOCKS: list[Build] = [excited, operators, convnext, xception]


def randomized(model: keras.Model, seed: int = 0) -> keras.Model:
    """Weights that keep activations near 1 in size, and scales, shifts and statistics that are nowhere 0 or 1."""
    generator = np.random.default_rng(seed)

    def drawn(shape: tuple[int, ...], depthwise: bool) -> NDArray[Any]:
        if len(shape) < 2:
            return generator.uniform(0.4, 0.9, shape)
        return generator.normal(0, math.sqrt(1.5 / math.prod(shape[: 2 if depthwise else -1])), shape)

    for layer in model.layers:
        depthwise = isinstance(layer, layers.DepthwiseConv2D)
        layer.set_weights([drawn(weight.shape, depthwise) for weight in layer.get_weights()])
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()
    return model


@functools.cache
def ready(build: Build) -> keras.Model:
    """A randomized model, built once: only to be read."""
    return randomized(build())


def pixels_for(model: keras.Model) -> NDArray[np.float32]:
    shape = (2, *(size or 8 for size in model.input_shape[1:]))
    return np.random.default_rng(1).uniform(0, 1, shape).astype(np.float32)


def run_with_zeros(model: keras.Model, kept: Kept, pixels: NDArray[Any]) -> Any:
    """The model with every layer's dropped channels zeroed as soon as they are computed, call by call."""
    masks: dict[int, NDArray[np.float32]] = {}

    def masked(step: Any, *arguments: Any, **more: Any) -> Any:
        value = step(*arguments, **more)
        if not isinstance(value, keras.KerasTensor):
            return value
        tensors = [each for each in keras.tree.flatten(arguments) if isinstance(each, keras.KerasTensor)]
        read = [masks.get(id(each), np.ones(each.shape[-1], np.float32)) for each in tensors]
        mask = mask_after(step, read, value.shape[-1], kept)
        zeroed = value if mask.all() else keras.ops.multiply(value, mask)
        masks[id(zeroed)] = mask
        return zeroed

    functional = keras.Model(model.inputs[0], model.outputs[0])
    return keras.models.clone_model(functional, clone_function=lambda step: step, call_function=masked)(pixels)


def mask_after(step: Any, read: list[NDArray[np.float32]], width: int, kept: Kept) -> NDArray[np.float32]:
    kind = type(step).__name__
    if kind == "DepthwiseConv2D" or (kind == "Conv2D" and 1 < step.groups == len(read[0])):
        return np.repeat(read[0], width // len(read[0]))
    if kind in ("Conv2D", "Dense", "SeparableConv2D"):
        return np.isin(np.arange(width), kept.get(step.name, np.arange(width))).astype(np.float32)
    if kind == "Concatenate" and step.axis in (-1, 3):
        return np.concatenate(read)
    if kind in ("Flatten", "Reshape") and width > len(read[0]):
        return np.resize(read[0], width)
    wide = next((mask for mask in read if len(mask) == width), np.ones(width, np.float32))
    for mask in read:
        np.testing.assert_array_equal(mask, wide if len(mask) == width else 1, f"{step.name} reads dropped channels")
    return wide


def assert_pruned_as_zeroed(model: keras.Model, kept: Kept, pruned: keras.Model) -> None:
    pixels = pixels_for(model)
    np.testing.assert_allclose(pruned(pixels), run_with_zeros(model, kept, pixels), atol=1e-5, rtol=1e-5)
    assert pruned.output_shape == model.output_shape
    for name, channels in kept.items():
        assert pruned.get_layer(name).output.shape[-1] == len(channels)


# --------------------------------------------------------------------------------------------------- same results


@pytest.mark.parametrize("build", [*CHAINS, resnet, crossing, of_any_size, excited])
def test_without_a_ratio_the_pruned_model_is_the_same(build: Build) -> None:
    model = ready(build)
    pruned = prune_channels(model, 0)
    np.testing.assert_array_equal(model(pixels_for(model)), pruned(pixels_for(model)))


@pytest.mark.parametrize(
    ("build", "ratio"),
    [
        (resnet, 0.2),
        (densenet, 0.9),
        *((build, 0.5) for build in (*CHAINS, *BLOCKS)),
        *(pytest.param(build, 0.5, marks=pytest.mark.slow) for build in MODELS),
    ],
)
def test_a_pruned_model_is_the_model_with_zeros(build: Build, ratio: float) -> None:
    model = ready(build)
    before, config = model.get_weights(), model.get_config()
    kept = kept_channels(model, ratio, multiple=4)
    pruned = prune_channels(model, ratio, multiple=4)
    assert_pruned_as_zeroed(model, kept, pruned)
    assert np.abs(model(pixels_for(model)) - pruned(pixels_for(model))).max() > 1e-3  # or it would show nothing
    assert all(len(channels) == 1 or len(channels) % 4 == 0 for channels in kept.values())
    assert pruned.count_params() < (1 - 0.8 * ratio) * model.count_params()
    assert model.get_config() == config
    for weight, same in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large", "EfficientNetB0", "EfficientNetV2B0"),
        *("ResNet50", "ResNet50V2", "DenseNet121", "NASNetMobile", "ConvNeXtTiny", "VGG16", "Xception", "InceptionV3"),
        "InceptionResNetV2",
    ],
)
def test_the_networks_of_keras_can_be_pruned(name: str) -> None:
    size = {"Xception": 71, "InceptionV3": 75, "InceptionResNetV2": 75}.get(name, 32)
    model = randomized(
        getattr(keras.applications, name)(
            weights=None, input_shape=(size, size, 3), classes=4, classifier_activation=None
        )
    )
    kept = kept_channels(model, 0.5)
    pruned = prune_channels(model, 0.5)
    assert pruned.count_params() < 0.6 * model.count_params()
    pixels = pixels_for(model)
    expected = np.asarray(run_with_zeros(model, kept, pixels))
    assert np.abs(pruned(pixels) - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())
    assert np.abs(model(pixels) - expected).max() > 1e-3 * np.abs(expected).max()  # or it would show nothing


block = st.tuples(
    st.sampled_from(
        [
            "conv",
            "depthwise",
            "residual",
            "residual3",
            "concat",
            "cross",
            "pool",
            "norm",
            "excite",
            "operator",
            "grouped",
        ]
    ),
    st.sampled_from([4, 8, 12]),
    st.sampled_from(["relu", "sigmoid", "gelu", "linear"]),
)


def graph_of(blocks: Sequence[tuple[str, int, str]], end: str) -> keras.Model:
    pixels = keras.Input((4, 4, 2))

    def conv(x: Any, filters: int, activation: str = "linear") -> Any:
        return layers.Conv2D(filters, 2, padding="same", activation=activation)(x)

    x = conv(pixels, 8)
    for kind, width, activation in blocks:
        channels = x.shape[-1]
        if kind == "conv":
            x = conv(x, width, activation)
        elif kind == "depthwise":
            x = layers.DepthwiseConv2D(2, padding="same", depth_multiplier=1 + (width == 4), activation=activation)(x)
        elif kind == "residual":
            x = layers.Add()([x, conv(conv(x, width, activation), channels)])
        elif kind == "residual3":
            x = layers.Add()([conv(x, width), x, conv(x, width)] if channels == width else [x, x, conv(x, channels)])
        elif kind == "concat":
            x = layers.Concatenate()([x, conv(x, width, activation)])
        elif kind == "cross":
            x = layers.Add()([layers.Concatenate()([conv(x, 4), conv(x, width)]), conv(x, 4 + width, activation)])
        elif kind == "excite":
            gate = conv(layers.GlobalAveragePooling2D(keepdims=True)(x), width, "relu")
            x = x * conv(gate, channels, activation)
        elif kind == "operator":
            x = keras.ops.relu(x + 0.5) * 0.5 - conv(x, channels, activation)
        elif kind == "grouped":
            x = layers.Conv2D(channels, 2, padding="same", groups=channels, activation=activation)(x)
        elif kind == "pool" and x.shape[1] > 1:
            x = layers.MaxPooling2D(2)(x)
        else:
            x = layers.Activation(activation)(layers.BatchNormalization()(x))
    x = {"flat": layers.Flatten, "mean": layers.GlobalAveragePooling2D}[end]()(x)
    return keras.Model(pixels, layers.Dense(2)(x))


@given(
    blocks=st.lists(block, min_size=1, max_size=5),
    end=st.sampled_from(["flat", "mean"]),
    ratio=st.floats(0.05, 0.95),
    multiple=st.sampled_from([1, 2, 4]),
)
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow])
def test_any_graph_can_be_pruned(blocks: list[tuple[str, int, str]], end: str, ratio: float, multiple: int) -> None:
    model = randomized(graph_of(blocks, end), seed=len(blocks))
    kept = kept_channels(model, ratio, multiple=multiple)
    pruned = prune_channels(model, ratio, multiple=multiple)
    assert_pruned_as_zeroed(model, kept, pruned)
    for name, channels in kept.items():
        assert len(channels) % multiple == 0
        assert multiple <= len(channels) <= model.get_layer(name).kernel.shape[-1]
        assert (np.diff(channels) > 0).all()
    share = count_macs(pruned) / count_macs(model)
    chosen = ratio_for_macs(model, share, multiple=multiple)
    assert count_macs(prune_channels(model, chosen, multiple=multiple)) == count_macs(pruned)


# ----------------------------------------------------------------------------------------------------- the choice


def test_the_strongest_channels_are_kept() -> None:
    model = ready(normalized)
    kept = kept_channels(model, 0.4)
    weighted = [layer for layer in model.layers if isinstance(layer, layers.Conv2D | layers.Dense)]
    assert list(kept) == [layer.name for layer in weighted[:-1]]
    for layer in weighted[:-1]:
        norms = [float(np.abs(layer.kernel[..., channel]).sum()) for channel in range(layer.kernel.shape[-1])]
        strongest = sorted(range(len(norms)), key=lambda channel: -norms[channel])[: len(kept[layer.name])]
        assert kept[layer.name].tolist() == sorted(strongest)


@pytest.mark.parametrize(
    ("width", "ratio", "multiple", "left"),
    [
        (64, 0.5, 8, 32),
        (64, 0.25, 8, 48),
        (64, 0.9, 8, 8),
        (64, 0.99, 16, 16),
        (64, 0.3, 8, 48),  # 44.8 lies nearer to 48 than to 40
        (20, 0.5, 8, 8),
        (20, 0.001, 8, 16),
        (20, 0, 8, 20),
        (6, 0.5, 8, 6),  # less than one multiple: nothing to drop
        (22, 0.01, 8, 22),
        (10, 0.5, 1, 5),
        (10, 0.99, 1, 1),
    ],
)
def test_widths_are_kept_at_multiples(width: int, ratio: float, multiple: int, left: int) -> None:
    model = keras.Sequential([keras.Input((1, 1, 2)), layers.Dense(width, name="wide"), layers.Dense(2)])
    assert len(kept_channels(model, ratio, multiple=multiple)["wide"]) == left


def test_layers_that_are_added_keep_the_channels_strongest_together() -> None:
    model = ready(resnet)
    kept = kept_channels(model, 0.5)
    assert list(kept) == [layer.name for layer in model.layers if type(layer) is layers.Conv2D]
    for names in (["stem", "block_0_b"], ["block_0_a"], ["block_2_b", "block_2_shortcut"]):
        norms: Any = sum(np.abs(model.get_layer(name).kernel).sum(axis=(0, 1, 2)) for name in names)
        half = 8 * round(len(norms) / 16 + 0.01)
        for name in names:
            assert kept[name].tolist() == sorted(np.argsort(-norms)[:half])


def test_layers_are_joined_through_others() -> None:
    pixels = keras.Input((4, 4, 3))
    one = [layers.Conv2D(16, 1, name=f"conv_{n}")(pixels) for n in range(6)]
    # in an order in which no layer is joined with the first before the end
    sums = [layers.Add()([one[n], one[m]]) for n, m in ((5, 4), (3, 4), (2, 3), (1, 5), (0, 1))]
    model = randomized(keras.Model(pixels, layers.Conv2D(2, 1)(layers.Concatenate()(sums))))
    kept = kept_channels(model, 0.5)
    assert len({tuple(channels) for channels in kept.values()}) == 1
    assert len(kept) == 6


def test_gamma_keeps_what_batch_normalization_scales_most() -> None:
    model = randomized(resnet())
    for norm in (layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)):
        norm.gamma.assign(np.random.default_rng(len(norm.name)).normal(size=norm.gamma.shape))
    kept = kept_channels(model, 0.5, criterion="gamma")
    scales = {name: np.abs(model.get_layer(f"{name}_norm").gamma) for name in ("stem", "block_0_b", "block_1_a")}
    for names in (["stem", "block_0_b"], ["block_1_a"]):
        total: Any = sum(scales[name] for name in names)
        assert kept[names[0]].tolist() == sorted(np.argsort(-total)[: len(total) // 2])
    assert any(kept[name].tolist() != channels.tolist() for name, channels in kept_channels(model, 0.5).items())
    pruned = prune_channels(model, 0.5, criterion="gamma")
    assert_pruned_as_zeroed(model, kept, pruned)


def plain(*inner: keras.Layer, last: int = 2) -> keras.Model:
    return keras.Sequential(
        [keras.Input((6, 6, 3)), layers.Conv2D(16, 3, name="first"), *inner, layers.Conv2D(last, 1)]
    )


@pytest.mark.parametrize("norms", [(), (layers.BatchNormalization(scale=False),)])
def test_gamma_needs_a_scale_for_every_channel(norms: tuple[keras.Layer, ...]) -> None:
    model = plain(*(type(norm).from_config(norm.get_config()) for norm in norms))
    with pytest.raises(ValueError, match="layer 'first' has channels that no BatchNormalization scales"):
        kept_channels(model, 0.5, criterion="gamma")
    assert kept_channels(model, 0.5, criterion="gamma", protected=["first"]) == {}


def test_channels_in_a_row_are_kept_where_each_comes_from() -> None:
    model = ready(crossing)
    kept = kept_channels(model, 0.5, multiple=4)
    assert (len(kept["a"]), len(kept["b"])) == (4, 8)
    assert kept["both"].tolist() == [*kept["a"], *(8 + kept["b"])]


def test_protected_layers_and_what_is_added_to_them_keep_all() -> None:
    model = ready(resnet)
    kept = kept_channels(model, 0.5, protected=["block_2_shortcut", "block_0_sum"])
    assert set(kept) == {"block_0_a", "block_1_a", "block_1_b", "block_1_shortcut", "block_2_a"}
    pruned = prune_channels(model, 0.5, protected=["block_2_shortcut", "block_0_sum"])
    assert pruned.get_layer("block_2_b").filters == 40
    assert pruned.get_layer("stem").filters == 16
    assert_pruned_as_zeroed(model, kept, pruned)


def test_input_and_output_keep_all() -> None:
    pixels = keras.Input((4, 4, 16))
    x = layers.Add()([pixels, layers.Conv2D(16, 1, name="as_input")(pixels)])
    x = layers.Conv2D(24, 1, name="as_output")(layers.Conv2D(32, 1, name="free")(x))
    model = keras.Model(pixels, layers.ReLU()(layers.Add()([x, layers.Conv2D(24, 1, name="beside")(x)])))
    assert {name: len(channels) for name, channels in kept_channels(model, 0.5).items()} == {"free": 16}
    assert prune_channels(model, 0.5).output_shape == (None, 4, 4, 24)


def test_a_pruned_model_is_uncompiled() -> None:
    model = plain()
    model.compile("sgd", "mse")
    assert not prune_channels(model, 0.5).compiled


def test_a_call_keeps_its_arguments() -> None:
    pixels = keras.Input((4, 4, 3))
    x = layers.BatchNormalization()(layers.Conv2D(16, 1)(pixels), training=False)
    model = randomized(keras.Model(pixels, layers.Conv2D(2, 1)(x)))
    pruned = prune_channels(model, 0)
    np.testing.assert_array_equal(model(pixels_for(model), training=True), pruned(pixels_for(model), training=True))


# ------------------------------------------------------------------------------------------- what keeps channels


class Mine(layers.Conv2D):  # type: ignore[misc]
    pass


def around(*inner: Callable[[Any], Any]) -> keras.Model:
    """Layers or operations between two convolutions that could lose channels, and after one more."""
    pixels = keras.Input((6, 6, 3))
    x = layers.Conv2D(16, 1, name="first")(layers.Conv2D(16, 3, name="free")(pixels))
    for each in inner:
        x = each(x)
    return randomized(keras.Model(pixels, layers.Conv2D(2, 1)(layers.Conv2D(16, 1, name="last")(x))))


def kept_and_noted(build: Build, caplog: pytest.LogCaptureFixture) -> tuple[set[str], str]:
    """Prune a model, compare, and return the layers that lost channels and what was noted."""
    model = build()
    kept = kept_channels(model, 0.5)
    assert_pruned_as_zeroed(model, kept, prune_channels(model, 0.5))
    return {name for name, channels in kept.items() if len(channels) == 8}, caplog.text


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.LayerNormalization(name="mixing"),
        lambda: layers.Softmax(name="mixing"),
        lambda: layers.Activation("softmax", name="mixing"),
        lambda: layers.Conv2D(16, 1, groups=4, name="mixing"),
        lambda: layers.BatchNormalization(axis=1, name="mixing"),
        lambda: layers.Rescaling([1.0] * 15 + [2.0], name="mixing"),
        lambda: layers.Normalization(mean=[0.5] * 16, variance=[2.0] * 16, name="mixing"),
        lambda: layers.ZeroPadding2D(data_format="channels_first", name="mixing"),
        lambda: layers.Reshape((-1, 8), name="mixing"),
        lambda: Mine(8, 1, name="mixing"),
        lambda: lambda x: x[..., 2:10],
        lambda: lambda x: keras.ops.split(x, 2, axis=-1)[1],
        lambda: lambda x: x * np.arange(16, dtype=np.float32),
        lambda: lambda x: keras.ops.mean(x, axis=-1, keepdims=True) + x,
    ],
)
def test_what_mixes_channels_keeps_those_that_it_reads(
    layer: Callable[[], Callable[[Any], Any]], caplog: pytest.LogCaptureFixture
) -> None:
    rows = layers.Reshape((4, 8, 8)) if getattr(layer(), "target_shape", None) else layers.Identity()
    lost, noted = kept_and_noted(lambda: around(layer(), rows), caplog)
    assert lost == {"free", "last"}
    assert re.search(
        r"pruning keeps all channels that these read, .*: (mixing|get_item|split|multiply|mean)\w* \(", noted
    )
    assert len(set(caplog.messages)) == 1


def test_an_activation_across_channels_keeps_those_of_its_layer(caplog: pytest.LogCaptureFixture) -> None:
    own = functools.partial(layers.Conv2D, 16, 1, activation="softmax", name="own")
    assert kept_and_noted(lambda: around(own()), caplog)[0] == {"free", "first", "last"}
    assert "own (Conv2D)" in caplog.text


@pytest.mark.parametrize("last", [layers.Softmax, layers.Identity])
def test_what_mixes_fixed_channels_is_not_noted(last: type[keras.Layer], caplog: pytest.LogCaptureFixture) -> None:
    pixels = keras.Input((6, 6, 3))
    x = layers.Conv2D(16, 3)(layers.LayerNormalization()(pixels))
    model = randomized(keras.Model(pixels, last()(layers.Dense(3)(layers.Flatten()(x)))))
    assert_pruned_as_zeroed(model, kept_channels(model, 0.5), prune_channels(model, 0.5))
    assert not caplog.text


def test_a_model_that_keeps_all_channels_is_refused() -> None:
    model = plain(layers.Softmax(name="early"))
    with pytest.raises(ValueError, match=r"no channels that can be removed: early \(Softmax\) mix channels"):
        prune_channels(model, 0.5)
    assert prune_channels(model, 0).count_params() == model.count_params()


def test_nested_models_are_pruned_with_the_rest() -> None:
    model = plain_copy(nested())
    kept = kept_channels(nested(), 0.5, multiple=4)
    assert {name: len(channels) for name, channels in kept.items()} == {"conv": 8, "base_conv": 8, "last": 4}
    randomized(model)
    assert_pruned_as_zeroed(model, kept_channels(model, 0.5), prune_channels(model, 0.5))


def test_a_copy_normalizes_as_the_model_does() -> None:
    model = ready(excited)
    np.testing.assert_array_equal(copy_of(model)(pixels_for(model)), model(pixels_for(model)))


# --------------------------------------------------------------------------------------------------- the operations


@pytest.mark.parametrize(("build", "share"), [(resnet, 0.5), pytest.param(mobilenet, 0.5, marks=pytest.mark.slow)])
def test_a_ratio_is_found_for_the_operations(build: Build, share: float) -> None:
    model = ready(build)
    ratio = ratio_for_macs(model, share)
    left = count_macs(prune_channels(model, ratio))
    assert 0.8 * share * count_macs(model) < left <= share * count_macs(model)
    assert ratio_for_macs(model, left / count_macs(model)) == ratio
    assert ratio_for_macs(model, (left - 1) / count_macs(model)) > ratio


def test_protected_layers_count_in_full() -> None:
    model = plain(layers.Conv2D(32, 3))
    free, held = ratio_for_macs(model, 0.6), ratio_for_macs(model, 0.6, protected=["first"])
    assert held > free
    assert count_macs(prune_channels(model, held, protected=["first"])) <= 0.6 * count_macs(model)


def test_shares_that_cannot_be_reached_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot reach 0.01 .*: at multiples of 8, \d+ of \d+ are left"):
        ratio_for_macs(resnet(), 0.01)
    for share in (0, 1.1):
        with pytest.raises(ValueError, match=rf"share must be .* above 0 and of at most 1, got {share}"):
            ratio_for_macs(plain(), share)
    with pytest.raises(ValueError, match=r"cannot reach 0\.7"):
        ratio_for_macs(plain(layers.Softmax()), 0.7)
    with pytest.raises(ValueError, match="fix the image size"):
        ratio_for_macs(ready(of_any_size), 0.7)


# ------------------------------------------------------------------------------------------------ what is refused


def shared() -> keras.Model:
    pixels = keras.Input((6, 6, 3))
    norm = layers.BatchNormalization(name="twice")
    x = norm(layers.Conv2D(16, 1)(pixels))
    return keras.Model(pixels, layers.Conv2D(2, 1)(norm(layers.ReLU()(x))))


def forked() -> keras.Model:
    pixels = keras.Input((6, 6, 3))
    return keras.Model(pixels, [layers.Conv2D(3, 1)(pixels), layers.Conv2D(2, 1)(pixels)], name="forked")


class Holding(layers.Identity):  # type: ignore[misc]
    """A layer whose configuration is unknown."""

    def __init__(self, held: object) -> None:
        super().__init__()
        self.held = held


class OfMyOwn(keras.Model):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return x


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (forked, "model 'forked' has several inputs or outputs"),
        (
            lambda: keras.Sequential([keras.Input((4, 4, 3)), layers.Flatten()], name="none"),
            "'none' has none of Conv2D",
        ),
        (lambda: keras.Sequential([layers.Dense(2)], name="unbuilt"), "model 'unbuilt' is not functional or not built"),
        (lambda: OfMyOwn(name="mine"), "model 'mine' is not functional"),
        (shared, "layer 'twice' is used 2 times"),
        (lambda: plain(Holding(object())), "model .* cannot be copied, which pruning needs: NotImplementedError"),
    ],
)
def test_what_cannot_be_pruned_is_named(build: Build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune_channels(build(), 0.5)


def test_a_flatten_of_any_size_cannot_be_pruned() -> None:
    pixels = keras.Input((None, 4, 3))
    model = keras.Model(pixels, layers.Flatten(name="flat")(layers.Conv2D(16, 1)(pixels)))
    with pytest.raises(ValueError, match=r"layer 'flat' .*no fixed number of channels"):
        prune_channels(model, 0.5)


def test_layers_may_have_been_used_elsewhere_before() -> None:
    conv, dense = layers.Conv2D(16, 3), layers.Dense(2)
    elsewhere = keras.Input((12, 12, 3))
    dense(layers.GlobalMaxPooling2D()(conv(elsewhere)))
    pixels = keras.Input((6, 6, 3))
    model = keras.Model(pixels, dense(layers.GlobalAveragePooling2D()(conv(pixels))))
    assert prune_channels(model, 0.5).count_params() == 8 * 28 + 2 * 9
    assert model.count_params() == 16 * 28 + 2 * 17


def test_arguments_out_of_range_are_refused() -> None:
    for ratio in (-0.1, 1):
        with pytest.raises(ValueError, match=rf"ratio must be .* below 1, got {ratio}"):
            prune_channels(plain(), ratio)
    with pytest.raises(ValueError, match=r"multiple must be .* got 0"):
        prune_channels(plain(), 0.5, multiple=0)
    with pytest.raises(ValueError, match="criterion must be one of l1, gamma, got 'l2'"):
        kept_channels(plain(), 0.5, criterion="l2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown protected layer 'frist': did you mean first"):
        prune_channels(plain(), 0.5, protected=["first", "frist"])


# ------------------------------------------------------------------------------------------ batch normalization


def normalizing() -> keras.Model:
    pixels = keras.Input((5, 4, 3))
    x = layers.BatchNormalization(momentum=0.7, name="pixels_norm")(pixels)
    x = layers.Dropout(0.5, name="drop")(layers.Conv2D(4, 3, name="conv")(x))
    x = layers.BatchNormalization(name="second")(x)
    return randomized(keras.Model(pixels, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))))


def images_of(count: int) -> NDArray[np.uint8]:
    """Images that grow brighter, so that batches differ."""
    noise = np.random.default_rng(0).integers(0, 60, (count, 5, 4, 3))
    return (noise + 190 * np.arange(count)[:, None, None, None] // count).astype(np.uint8)


def batches_of(images: NDArray[np.uint8], size: int = 8) -> Any:
    return tf.data.Dataset.from_tensor_slices((images, np.zeros(len(images), np.int64))).batch(size)


def is_statistic(variable: Any) -> bool:
    return variable.name in ("moving_mean", "moving_variance")


def test_statistics_are_those_of_the_images_that_are_read() -> None:
    images = images_of(20)  # the last batch is smaller
    model = normalizing()
    before = [variable.numpy() for variable in model.variables if not is_statistic(variable)]
    assert reestimate_batch_norm(model, batches_of(images), batches=2) == 16
    np.testing.assert_allclose(model.get_layer("pixels_norm").moving_mean, images[:16].mean(axis=(0, 1, 2)), rtol=1e-5)
    assert reestimate_batch_norm(model, batches_of(images)) == 20
    norm = model.get_layer("pixels_norm")
    np.testing.assert_allclose(norm.moving_mean, images.mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, images.var(axis=(0, 1, 2)), rtol=1e-5)
    assert norm.momentum == 0.7
    after = [variable.numpy() for variable in model.variables if not is_statistic(variable)]
    for value, same in zip(before, after, strict=True):
        np.testing.assert_array_equal(value, same)


def test_deeper_statistics_are_those_of_what_comes_out_in_training() -> None:
    images = images_of(16)
    model = normalizing()
    model.get_layer("drop").rate = 0.0
    reestimate_batch_norm(model, batches_of(images))
    first, conv, second = (model.get_layer(name) for name in ("pixels_norm", "conv", "second"))
    parts = []
    for batch in (images[:8].astype(np.float64), images[8:].astype(np.float64)):
        scaled = (batch - batch.mean(axis=(0, 1, 2))) / np.sqrt(batch.var(axis=(0, 1, 2)) + first.epsilon)
        scaled = scaled * first.gamma.numpy() + first.beta.numpy()
        windows = np.lib.stride_tricks.sliding_window_view(scaled, (3, 3), axis=(1, 2))
        parts.append(np.einsum("bhwcij,ijcf->bhwf", windows, conv.kernel.numpy()) + conv.bias.numpy())
    read = np.concatenate(parts)
    np.testing.assert_allclose(second.moving_mean, read.mean(axis=(0, 1, 2)), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(second.moving_variance, read.var(axis=(0, 1, 2)), rtol=1e-4)


def test_statistics_do_not_depend_on_what_was_there_nor_on_the_run() -> None:
    model, other = normalizing(), normalizing()
    other.get_layer("pixels_norm").moving_mean.assign([math.inf, math.nan, 7.0])
    other.set_weights([*other.get_weights()])
    for _ in range(2):
        reestimate_batch_norm(model, batches_of(images_of(16)))
        reestimate_batch_norm(other, batches_of(images_of(16)))
        np.testing.assert_array_equal(
            model.get_layer("pixels_norm").moving_mean, other.get_layer("pixels_norm").moving_mean
        )


def test_a_frozen_layer_keeps_its_statistics() -> None:
    model = normalizing()
    model.get_layer("second").trainable = False
    before = model.get_layer("second").get_weights()
    reestimate_batch_norm(model, batches_of(images_of(16)))
    for weight, same in zip(before, model.get_layer("second").get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)


def test_nothing_changes_where_the_data_fails() -> None:
    model = normalizing()
    before = model.get_weights()

    def failing() -> Any:
        yield images_of(4), np.zeros(4, np.int64)
        raise OSError("the disk is gone")

    spec = (tf.TensorSpec((None, 5, 4, 3), tf.uint8), tf.TensorSpec((None,), tf.int64))
    with pytest.raises(tf.errors.OpError, match="the disk is gone"):
        reestimate_batch_norm(model, tf.data.Dataset.from_generator(failing, output_signature=spec))
    none = tf.data.Dataset.from_generator(lambda: iter(()), output_signature=spec)
    with pytest.raises(ValueError, match="training data is empty"):
        reestimate_batch_norm(model, none)
    for weight, same in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)
    assert model.get_layer("pixels_norm").momentum == 0.7


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: plain(), "has no trainable BatchNormalization layer"),
        (shared, "layer 'twice' is used 2 times"),
        (lambda: plain(layers.BatchNormalization(renorm=True, name="again")), "layer 'again' renormalizes"),
        (lambda: keras.Sequential([layers.BatchNormalization()], name="unbuilt"), "model 'unbuilt' is not functional"),
    ],
)
def test_models_that_cannot_be_reestimated_are_named(build: Build, message: str) -> None:
    images = np.zeros((4, 6, 6, 3), np.uint8)
    with pytest.raises(ValueError, match=message):
        reestimate_batch_norm(build(), batches_of(images))


def test_data_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batches must be .* got 0"):
        reestimate_batch_norm(normalizing(), batches_of(images_of(8)), batches=0)
    with pytest.raises(ValueError, match=re.escape("images of 6x6x3, but the model expects 5x4x3")):
        reestimate_batch_norm(normalizing(), batches_of(np.zeros((4, 6, 6, 3), np.uint8)))
