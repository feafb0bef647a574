"""Declare the ops: what can be done to one image, its arguments, and how large the result is.

Images are uint8 arrays ``[H, W, C]``. Nothing here computes pixels: `reference_kernels` does, and `graph_kernels` in TensorFlow.
"""

from __future__ import annotations

from joulecache.transforms.ops.base import LARGEST_SIDE, Fill, Op, Size, Sometimes, describe, op_name, ops_of
from joulecache.transforms.ops.batch import BatchOp, Cutmix, Mixture, Mixup, Normalize, ToFloat
from joulecache.transforms.ops.colour import (
    Autocontrast,
    Brightness,
    ColorJitter,
    Contrast,
    Equalize,
    GaussianBlur,
    GaussianNoise,
    Grayscale,
    Hue,
    Posterize,
    Saturation,
    Sharpness,
    Solarize,
)
from joulecache.transforms.ops.decode import LARGEST_PIXELS, Decode
from joulecache.transforms.ops.geometry import (
    Affine,
    CentralCrop,
    Cutout,
    FlipLr,
    FlipUd,
    Pad,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    ResizeShorter,
    Rotate,
)
from joulecache.transforms.ops.policies import AUGMENTATIONS, SIGNED, RandAugment, TrivialAugment

__all__ = [
    "AUGMENTATIONS",
    "LARGEST_PIXELS",
    "LARGEST_SIDE",
    "OPS",
    "SIGNED",
    "Affine",
    "Autocontrast",
    "BatchOp",
    "Brightness",
    "CentralCrop",
    "ColorJitter",
    "Contrast",
    "Cutmix",
    "Cutout",
    "Decode",
    "Equalize",
    "Fill",
    "FlipLr",
    "FlipUd",
    "GaussianBlur",
    "GaussianNoise",
    "Grayscale",
    "Hue",
    "Mixture",
    "Mixup",
    "Normalize",
    "Op",
    "Pad",
    "Posterize",
    "RandAugment",
    "RandomCrop",
    "RandomResizedCrop",
    "Resize",
    "ResizeShorter",
    "Rotate",
    "Saturation",
    "Sharpness",
    "Size",
    "Solarize",
    "Sometimes",
    "ToFloat",
    "TrivialAugment",
    "describe",
    "op_name",
    "ops_of",
]

OPS: dict[str, type[Op]] = {
    op_name(kind): kind
    for kind in (
        Decode,
        Resize,
        ResizeShorter,
        CentralCrop,
        RandomCrop,
        RandomResizedCrop,
        Pad,
        FlipLr,
        FlipUd,
        Rotate,
        Affine,
        Cutout,
        Brightness,
        Contrast,
        Saturation,
        Hue,
        ColorJitter,
        Grayscale,
        GaussianBlur,
        GaussianNoise,
        Autocontrast,
        Equalize,
        Posterize,
        Solarize,
        Sharpness,
        RandAugment,
        TrivialAugment,
        ToFloat,
        Normalize,
        Mixup,
        Cutmix,
    )
}
