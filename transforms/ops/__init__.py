"""The ops: one class each, with its arguments, its random draw, its pixels, and how targets move with them.

Images are uint8 arrays ``[H, W, C]``. CONTRIBUTING.md says what a new op needs.
"""

from __future__ import annotations

from joulecache.transforms.images import Fill
from joulecache.transforms.ops.arguments import MAX_SIDE, Size, op_name
from joulecache.transforms.ops.base import Op, Photometric, RandomApply, describe, ops_of
from joulecache.transforms.ops.batch import BatchOp, Cutmix, Mixture, Mixup, Normalize, ToFloat
from joulecache.transforms.ops.colour import Brightness, ColorJitter, Contrast, Grayscale, Hue, Saturation
from joulecache.transforms.ops.crops import CentralCrop, RandomCrop, RandomResizedCrop
from joulecache.transforms.ops.decode import MAX_PIXELS, Decode, DecodeError
from joulecache.transforms.ops.filters import GaussianBlur, GaussianNoise, Sharpness
from joulecache.transforms.ops.geometry import Cutout, FlipLr, FlipUd, Pad, Resize, ResizeShorter
from joulecache.transforms.ops.levels import Autocontrast, Equalize, Posterize, Solarize
from joulecache.transforms.ops.policies import AUGMENTATIONS, SIGNED, RandAugment, TrivialAugment
from joulecache.transforms.ops.warps import Affine, Rotate

__all__ = [
    "AUGMENTATIONS",
    "BUILT_IN",
    "MAX_PIXELS",
    "MAX_SIDE",
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
    "DecodeError",
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
    "Photometric",
    "Posterize",
    "RandAugment",
    "RandomApply",
    "RandomCrop",
    "RandomResizedCrop",
    "Resize",
    "ResizeShorter",
    "Rotate",
    "Saturation",
    "Sharpness",
    "Size",
    "Solarize",
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

BUILT_IN = frozenset(OPS.values())
