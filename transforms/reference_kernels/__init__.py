"""The pixels that count: every op in Pillow and NumPy, on one image.

An image on its way is a uint8 array ``[H, W, C]`` or a Pillow image; each kernel takes either, and a chain ends in an array. Kernels
that only move pixels return views, so that a chain of crops and flips costs one copy, wherever its result is put.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from joulecache.transforms.ops import (
    Affine,
    Autocontrast,
    Brightness,
    CentralCrop,
    ColorJitter,
    Contrast,
    Cutout,
    Decode,
    Equalize,
    FlipLr,
    FlipUd,
    GaussianBlur,
    GaussianNoise,
    Grayscale,
    Hue,
    Op,
    Pad,
    Posterize,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    ResizeShorter,
    Rotate,
    Saturation,
    Sharpness,
    Solarize,
    TrivialAugment,
    op_name,
)
from joulecache.transforms.randomness import batch_parameters, parameters
from joulecache.transforms.reference_kernels import colour, geometry
from joulecache.transforms.reference_kernels.batch import apply_to_batch, mix_labels
from joulecache.transforms.reference_kernels.decoding import (
    EXIF_ORIENTATION,
    DecodeError,
    decode,
    decode_any,
    read_header,
)
from joulecache.transforms.reference_kernels.images import Array, Pixels, as_array, as_image, put, size_of
from joulecache.transforms.reference_kernels.policies import augment

__all__ = [
    "EXIF_ORIENTATION",
    "DecodeError",
    "Pixels",
    "apply",
    "apply_batch",
    "apply_to_batch",
    "as_array",
    "as_image",
    "decode",
    "decode_any",
    "mix_labels",
    "put",
    "read_header",
    "run",
]

Kernel = Callable[[Any, Pixels, tuple[int, ...]], Pixels]


def apply(ops: Sequence[Op], image: bytes | Pixels, words: Sequence[int]) -> Array:
    """Run the ops on one image with its random words (see `random_words`); ``[H, W, C]`` uint8, possibly a view.

    `image` is encoded bytes when the first op is decode. Raises DecodeError, or ValueError for an image that an op cannot take.
    """
    return as_array(run(ops, image, words))


def run(ops: Sequence[Op], image: bytes | Pixels, words: Sequence[int]) -> Pixels:
    """Run the ops as `apply` does, and leave the image as its last kernel left it. For decode it may be what `read_header` gave."""
    taken = 0
    for op in ops:
        if isinstance(op, Decode):
            assert not isinstance(image, np.ndarray)
            image = decode(op, image)
            continue
        assert not isinstance(image, bytes)
        drawn = parameters(op, words[taken : taken + op.words], *size_of(image)) if op.words else ()
        taken += op.words
        image = _kernel(op)(op, image, drawn)
    assert not isinstance(image, bytes)
    return image


def apply_batch(ops: Sequence[Op], images: Sequence[Pixels], words: NDArray[np.int64]) -> list[Array]:
    """Run ops on images of one size as `apply` does on each, with less to do between the kernels; no decode.

    `words` is their `word_table`, int64 ``[B, W]``.
    """
    taken = 0
    for op in ops:
        kernel = _kernel(op)
        if op.words:
            drawn = batch_parameters(op, words[:, taken : taken + op.words], *size_of(images[0]))
            images = [kernel(op, image, numbers) for image, numbers in zip(images, drawn, strict=True)]
            taken += op.words
        else:
            images = [kernel(op, image, ()) for image in images]
    return [as_array(image) for image in images]


def _kernel(op: Op) -> Kernel:
    return _KERNELS.get(type(op), _own_pixels)


def _own_pixels(op: Op, image: Pixels, drawn: tuple[int, ...]) -> Array:
    """Run an op that somebody else wrote, and hold it to what it promises; ValueError where it fails."""
    name, array = op_name(type(op)), as_array(image).view()
    array.flags.writeable = False  # it may be a cache's file
    expected = (*op.output_size(*array.shape[:2]), op.output_channels(array.shape[2]))
    try:
        result = op.pixels(array, drawn)
    except Exception as error:  # of any kind: it is not ours
        raise ValueError(f"{name} failed: {type(error).__name__}: {error}".splitlines()[0]) from error
    if not isinstance(result, np.ndarray) or result.dtype != np.uint8 or result.shape != expected:
        got = f"{result.dtype} {result.shape}" if isinstance(result, np.ndarray) else repr(type(result))
        raise ValueError(f"{name} must return a uint8 array of shape {expected}, got {got}")
    return result


_KERNELS: dict[type[Op], Kernel] = {
    Resize: geometry.resize,
    ResizeShorter: geometry.resize,
    CentralCrop: geometry.central_crop,
    RandomCrop: geometry.random_crop,
    RandomResizedCrop: geometry.random_resized_crop,
    Pad: geometry.pad,
    FlipLr: geometry.flip_lr,
    FlipUd: geometry.flip_ud,
    Rotate: geometry.rotate,
    Affine: geometry.affine,
    Cutout: geometry.cutout,
    Brightness: colour.brightness,
    Contrast: colour.contrast,
    Saturation: colour.saturation,
    Hue: colour.hue,
    ColorJitter: colour.color_jitter,
    Grayscale: colour.grayscale,
    GaussianBlur: colour.gaussian_blur,
    GaussianNoise: colour.gaussian_noise,
    Autocontrast: colour.autocontrast,
    Equalize: colour.equalize,
    Posterize: colour.posterize,
    Solarize: colour.solarize,
    Sharpness: colour.sharpness,
    RandAugment: augment,
    TrivialAugment: augment,
}
