"""Kernels of the policies: one augmentation after the other."""

from __future__ import annotations

from joulecache.transforms.ops import AUGMENTATIONS, RandAugment, TrivialAugment
from joulecache.transforms.randomness import UNIT
from joulecache.transforms.reference_kernels import colour, geometry
from joulecache.transforms.reference_kernels.images import Pixels, size_of


def augment(op: RandAugment | TrivialAugment, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    """Apply the augmentations that were drawn, each as (which, strength)."""
    for which, strength in zip(drawn[::2], drawn[1::2], strict=True):
        image = _augmented(op, AUGMENTATIONS[which], image, strength)
    return image


def _augmented(op: RandAugment | TrivialAugment, name: str, image: Pixels, strength: int) -> Pixels:
    match name:
        case "shear_x":  # about the top left, as the papers and torchvision have it
            return geometry.warp(image, (1.0, strength / UNIT, 0.0, 0.0, 1.0, 0.0), op.interpolation, op.fill)
        case "shear_y":
            return geometry.warp(image, (1.0, 0.0, 0.0, strength / UNIT, 1.0, 0.0), op.interpolation, op.fill)
        case "translate_x":
            return geometry.warp(image, (1.0, 0.0, -strength, 0.0, 1.0, 0.0), op.interpolation, op.fill)
        case "translate_y":
            return geometry.warp(image, (1.0, 0.0, 0.0, 0.0, 1.0, -strength), op.interpolation, op.fill)
        case "rotate":
            height, width = size_of(image)
            middle = width * 0.5, height * 0.5
            matrix = geometry.affine_matrix(middle, -strength / UNIT, (0, 0), 1.0, (0.0, 0.0))
            return geometry.warp(image, matrix, op.interpolation, op.fill)
        case "brightness":
            return colour.adjust_brightness(image, UNIT + strength)
        case "color":
            return colour.adjust_saturation(image, UNIT + strength)
        case "contrast":
            return colour.adjust_contrast(image, UNIT + strength)
        case "sharpness":
            return colour.adjust_sharpness(image, UNIT + strength)
        case "posterize":
            return colour.posterized(image, strength)
        case "solarize":
            return colour.solarized(image, strength)
        case "autocontrast":
            return colour.stretched(image)
        case "equalize":
            return colour.equalized(image)
        case _:
            return image
