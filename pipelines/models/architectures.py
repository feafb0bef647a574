"""The named architectures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from joulecache.pipelines.models import backend  # noqa: F401


@dataclass(frozen=True)
class Architecture:
    """An architecture: the models of one name, in every width.

    Attributes:
        features: Maps pixels `[B, H, W, C]` from 0 to 255 and a width to features `[B, F]`, the input of a Dense layer.
        smallest: Minimum height and width of an image.
        widths: Valid widths in a name such as `mobilenet:0.5`, the default first; empty if there is only one.
    """

    features: Callable[[Any, float], Any]
    smallest: int
    widths: tuple[float, ...] = ()


def check_architecture(name: str, image_size: tuple[int, int] | None = None) -> None:
    """Raise ValueError if an architecture does not come in the width of a name, or images (height, width) are too small for it."""
    architecture = MODELS[name.partition(":")[0]]
    _width(name, architecture)
    smallest = architecture.smallest
    if image_size is not None and min(image_size) < smallest:
        raise ValueError(
            f"images of {image_size[0]}x{image_size[1]} are too small for {name!r}: resize them to at least "
            f"{smallest}x{smallest}"
        )


def build_architecture(name: str, input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Build the classifier of a name such as `cnn` or `mobilenet:0.5`, ending in a Dense layer named "logits".

    Raises:
        KeyError: The name is not in `MODELS`.
        ValueError: As `check_architecture`.
    """
    check_architecture(name, input_shape[:2])
    known = name.partition(":")[0]
    architecture = MODELS[known]
    width = _width(name, architecture)
    pixels = keras.Input(input_shape, name="pixels")
    logits = layers.Dense(num_classes, name="logits")(architecture.features(pixels, width))
    # TensorFlow allows no colon in names
    return keras.Model(pixels, logits, name=f"{known}_{width:g}" if architecture.widths else known)


def _width(name: str, architecture: Architecture) -> float:
    known, colon, text = name.partition(":")
    if not colon:
        return architecture.widths[0] if architecture.widths else 1.0
    if not architecture.widths:
        raise ValueError(f"model {known!r} has only one width: write {known}, got {name!r}")
    try:
        asked = float(text)
    except ValueError:
        asked = math.nan
    if asked in architecture.widths:
        return asked
    raise ValueError(
        f"the width of {known!r} must be one of {', '.join(f'{width:g}' for width in architecture.widths)}, as in "
        f"{known}:{architecture.widths[-1]:g}, got {name!r}"
    )


def _cnn(pixels: Any, width: float) -> Any:
    """The CIFAR-10 model of the TensorFlow tutorial "Convolutional Neural Network": 3 convolutions, 2 dense layers."""
    x = layers.Rescaling(1 / 255)(pixels)
    x = layers.Conv2D(32, 3, activation="relu", name="conv_1")(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(64, 3, activation="relu", name="conv_2")(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(64, 3, activation="relu", name="conv_3")(x)
    x = layers.Flatten()(x)
    return layers.Dense(64, activation="relu", name="dense")(x)


def _mlp(pixels: Any, width: float) -> Any:
    """A fully connected baseline: two dense layers, 512 and 256 wide.

    With these widths, training takes about half the CPU time of `cnn`. Its accuracy is lower: on CIFAR-10 (as JPEG, 5
    epochs, batches of 64, Adam at 0.001, one seed) 46% of the test images against 65%, with 14 times the parameters of
    `cnn` and 0.4 times its multiply-accumulates.
    """
    x = layers.Flatten()(layers.Rescaling(1 / 255)(pixels))
    x = layers.Dense(512, activation="relu", name="dense_1")(x)
    return layers.Dense(256, activation="relu", name="dense_2")(x)


def _resnet8(pixels: Any, width: float) -> Any:
    """MLPerf Tiny's image classifier: three residual blocks, 16, 32 and 64 channels wide.

    The structure is that of `resnet_v1_eembc` in mlcommons/tiny (Banbury et al., arXiv:2106.07597), including the bias
    in every convolution: 78,666 parameters at 32x32x3 and 10 classes, counting BatchNormalization's statistics. Three
    things differ: pixels are scaled to 0..1; there is no weight decay, so the loss is the cross-entropy alone; pooling
    spans the height and the width of an image, not the shorter one twice.
    """
    x = _convolved(layers.Rescaling(1 / 255)(pixels), 16, 3, "stem", use_bias=True)
    for stack, filters in enumerate((16, 32, 64), start=1):
        strides = 1 if stack == 1 else 2
        y = _convolved(x, filters, 3, f"stack_{stack}_conv_1", strides=strides, use_bias=True)
        y = _convolved(y, filters, 3, f"stack_{stack}_conv_2", relu=False, use_bias=True)
        if strides == 2:
            x = layers.Conv2D(filters, 1, strides=2, kernel_initializer="he_normal", name=f"stack_{stack}_shortcut")(x)
        x = layers.ReLU()(layers.Add()([x, y]))
    return layers.GlobalAveragePooling2D()(x)


def _mobilenet(pixels: Any, width: float) -> Any:
    """Keras' MobileNet v1 (Howard et al., arXiv:1704.04861) without its Dropout of 0.001; the width is its `alpha`.

    Version 1 is the one that MLPerf Tiny measures (at 0.25, on 96x96), and it is a plain chain of layers. Pixels are
    scaled to -1..1, as in its `preprocess_input`. It halves images five times: 32x32 becomes 1x1.
    """
    scaled = layers.Rescaling(1 / 127.5, offset=-1)(pixels)
    # with an input tensor, Keras does not warn about channels other than 1 and 3
    network = keras.applications.MobileNet(
        alpha=width, include_top=False, weights=None, input_tensor=scaled, pooling="avg"
    )
    return network.outputs[0]


_SHUFFLENET_CHANNELS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}


def _shufflenet(pixels: Any, width: float) -> Any:
    """ShuffleNet V2 (Ma et al., arXiv:1807.11164, table 5): split the channels, convolve one half, shuffle.

    It halves images five times, as for ImageNet: 32x32 becomes 1x1.
    """
    *stages, last = _SHUFFLENET_CHANNELS[width]
    x = _convolved(layers.Rescaling(1 / 255)(pixels), 24, 3, "stem", strides=2)
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    for stage, (channels, blocks) in enumerate(zip(stages, (4, 8, 4), strict=True), start=2):
        for block in range(1, blocks + 1):
            name = f"stage_{stage}_block_{block}"
            strides = 2 if block == 1 else 1
            if strides == 2:
                kept = _depthwise(x, f"{name}_left_depthwise", strides)
                kept, given = _convolved(kept, channels // 2, 1, f"{name}_left"), x
            else:
                kept, given = _channel_halves(x)
            y = _convolved(given, channels // 2, 1, f"{name}_conv_1")
            y = _depthwise(y, f"{name}_depthwise", strides)
            y = _convolved(y, channels // 2, 1, f"{name}_conv_2")
            x = _shuffled(layers.Concatenate()([kept, y]), name)
    return layers.GlobalAveragePooling2D()(_convolved(x, last, 1, "last"))


def _channel_halves(x: Any) -> tuple[Any, Any]:
    # Keras cannot load a slice `x[..., :half]` from an HDF5 file, as it is not a layer
    height, width, channels = x.shape[1:]
    halves = layers.Reshape((height, width, 2, channels // 2))(x)
    first, second = (
        layers.Reshape((height, width, channels // 2))(layers.Cropping3D(((0, 0), (0, 0), crop))(halves))
        for crop in ((0, 1), (1, 0))
    )
    return first, second


def _shuffled(x: Any, name: str) -> Any:
    """Interleave the channels of both halves: a0 a1 b0 b1 becomes a0 b0 a1 b1."""
    height, width, channels = x.shape[1:]
    x = layers.Permute((1, 2, 4, 3))(layers.Reshape((height, width, 2, channels // 2))(x))
    return layers.Reshape((height, width, channels), name=name)(x)


def _convolved(
    x: Any, filters: int, size: int, name: str, *, strides: int = 1, relu: bool = True, use_bias: bool = False
) -> Any:
    convolution = layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding="same",
        use_bias=use_bias,
        kernel_initializer="he_normal",
        name=name,
    )
    x = layers.BatchNormalization(name=f"{name}_bn")(convolution(x))
    return layers.ReLU()(x) if relu else x


def _depthwise(x: Any, name: str, strides: int) -> Any:
    convolution = layers.DepthwiseConv2D(
        3, strides=strides, padding="same", use_bias=False, depthwise_initializer="he_normal", name=name
    )
    return layers.BatchNormalization(name=f"{name}_bn")(convolution(x))


MODELS: dict[str, Architecture] = {
    "cnn": Architecture(_cnn, smallest=18),  # three 3x3 convolutions, two halvings: 18 -> 16 -> 8 -> 6 -> 3 -> 1
    "mlp": Architecture(_mlp, smallest=1),
    "resnet8": Architecture(_resnet8, smallest=4),  # two halvings: 4 -> 2 -> 1
    # 32 is Keras' limit. The narrowest is the default, since most images here are small.
    "mobilenet": Architecture(_mobilenet, smallest=32, widths=(0.25, 0.5, 0.75, 1.0)),
    "shufflenet": Architecture(_shufflenet, smallest=32, widths=tuple(_SHUFFLENET_CHANNELS)),
}
"""Architectures by name, in the order in which messages list them."""
