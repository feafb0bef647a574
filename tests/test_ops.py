"""What the ops accept, and the sizes that they promise."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from joulecache.transforms import (
    Affine,
    Autocontrast,
    Brightness,
    CentralCrop,
    ColorJitter,
    Contrast,
    Cutmix,
    Cutout,
    Decode,
    Equalize,
    FlipLr,
    FlipUd,
    GaussianBlur,
    GaussianNoise,
    Grayscale,
    Hue,
    Mixup,
    Normalize,
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
    ToFloat,
    TrivialAugment,
    ops_of,
    parse,
)
from joulecache.transforms.chain import apply
from joulecache.transforms.ops import LARGEST_PIXELS, LARGEST_SIDE, OPS, BatchOp, describe, op_name

relaxed = settings(deadline=None)
sides = st.integers(1, LARGEST_SIDE)

Refused = tuple[Callable[[Any], Op], Any, str]

REFUSED: list[Refused] = [
    (Resize, 0, "resize: size must be an integer from 1 to 65535, got 0"),
    (Resize, 65_536, "resize: size must be an integer from 1 to 65535, got 65536"),
    (Resize, True, "resize: size must be an integer from 1 to 65535, got True"),
    (Resize, 72.0, "resize: size must be an integer from 1 to 65535, got 72.0"),
    (Resize, "72", "resize: size must be an integer from 1 to 65535, got '72'"),
    (Resize, None, "resize: size must be an integer from 1 to 65535, got None"),
    (Resize, (72, False), "resize: size must be an integer from 1 to 65535, got False"),
    (Resize, (72, 0), "resize: size must be an integer from 1 to 65535, got 0"),
    (Resize, (1, 2, 3), "resize: size must be an integer or (height, width), got (1, 2, 3)"),
    (Resize, (), "resize: size must be an integer or (height, width), got ()"),
    (CentralCrop, -1, "central_crop: size must be an integer from 1 to 65535, got -1"),
    (RandomCrop, 1.5, "random_crop: size must be an integer from 1 to 65535, got 1.5"),
    (RandomResizedCrop, 0, "random_resized_crop: size must be an integer from 1 to 65535, got 0"),
    (ResizeShorter, (72, 72), "resize_shorter: size must be an integer from 1 to 65535, got (72, 72)"),
    (ResizeShorter, True, "resize_shorter: size must be an integer from 1 to 65535, got True"),
    (FlipLr, 1.01, "flip_lr: probability must be a number from 0 to 1, got 1.01"),
    (FlipLr, True, "flip_lr: probability must be a number from 0 to 1, got True"),
    (FlipLr, float("nan"), "flip_lr: probability must be a number from 0 to 1, got nan"),
    (Brightness, -0.1, "brightness: delta must be a number from 0 to 1, got -0.1"),
    (Brightness, "0.1", "brightness: delta must be a number from 0 to 1, got '0.1'"),
    (Contrast, float("inf"), "contrast: delta must be a number from 0 to 1, got inf"),
    (Contrast, 1j, "contrast: delta must be a number from 0 to 1, got 1j"),
    (lambda c: Decode(channels=c), 2, "decode: channels must be 1 or 3, got 2"),
    (lambda c: Decode(channels=c), True, "decode: channels must be 1 or 3, got True"),
    (lambda c: Decode(channels=c), 3.0, "decode: channels must be 1 or 3, got 3.0"),
    (lambda s: Decode(shorter=s), 0, "decode: shorter must be an integer from 1 to 65535, got 0"),
    (lambda s: Decode(shorter=s), False, "decode: shorter must be an integer from 1 to 65535, got False"),
    (lambda t: Decode(truncated=t), 1, "decode: truncated must be True or False, got 1"),
    (lambda m: Decode(max_pixels=m), 0, f"decode: max_pixels must be an integer from 1 to {LARGEST_PIXELS}, got 0"),
    (
        lambda m: Decode(max_pixels=m),
        LARGEST_PIXELS + 1,
        f"decode: max_pixels must be an integer from 1 to {LARGEST_PIXELS}, got {LARGEST_PIXELS + 1}",
    ),
    (
        lambda s: RandomResizedCrop(64, scale=s),
        0.5,
        "random_resized_crop: scale must be a pair (low, high), got 0.5",
    ),
    (
        lambda s: RandomResizedCrop(64, scale=s),
        (0.1, 0.2, 0.3),
        "random_resized_crop: scale must be a pair (low, high), got (0.1, 0.2, 0.3)",
    ),
    (
        lambda s: RandomResizedCrop(64, scale=s),
        (0, 1),
        "random_resized_crop: scale must be a number from 1e-06 to 1, got 0",
    ),
    (
        lambda s: RandomResizedCrop(64, scale=s),
        (0.5, 1.5),
        "random_resized_crop: scale must be a number from 1e-06 to 1, got 1.5",
    ),
    (
        lambda s: RandomResizedCrop(64, scale=s),
        (0.5, True),
        "random_resized_crop: scale must be a number from 1e-06 to 1, got True",
    ),
    (
        lambda s: RandomResizedCrop(64, scale=s),
        (0.5, 0.4),
        "random_resized_crop: scale must be (low, high) with low <= high, got (0.5, 0.4)",
    ),
    (
        lambda r: RandomResizedCrop(64, ratio=r),
        (2, 1),
        "random_resized_crop: ratio must be (low, high) with low <= high, got (2, 1)",
    ),
    (
        lambda r: RandomResizedCrop(64, ratio=r),
        (0.5, 1001),
        "random_resized_crop: ratio must be a number from 0.001 to 1000, got 1001",
    ),
]


class Whole(NamedTuple):
    """An argument that is a whole number, or has one at this place."""

    op: str
    name: str
    make: Callable[[Any], Op]
    low: int
    high: int

    def refused(self) -> list[Refused]:
        allowed = f"{self.op}: {self.name} must be an integer from {self.low} to {self.high}"
        wrong = (self.low - 1, self.high + 1, True, False, float(self.low), str(self.low), float("nan"), [self.low])
        return [(self.make, value, f"{allowed}, got {value!r}") for value in wrong]


class Number(NamedTuple):
    """An argument that is a number, or has one at this place; its range as it is written."""

    op: str
    name: str
    make: Callable[[Any], Op]
    low: str
    high: str

    def refused(self) -> list[Refused]:
        allowed = f"{self.op}: {self.name} must be a number from {self.low} to {self.high}"
        low, high = float(self.low), float(self.high)
        outside = (np.nextafter(low, -np.inf).item(), np.nextafter(high, np.inf).item(), 10**400)
        wrong = (*outside, float("nan"), float("inf"), -float("inf"), True, False, "0.5", 1j, [low], b"1")
        return [(self.make, value, f"{allowed}, got {value!r}") for value in wrong]


class Word(NamedTuple):
    """An argument that is one of a few words."""

    op: str
    name: str
    make: Callable[[Any], Op]
    allowed: tuple[str, ...]

    def refused(self) -> list[Refused]:
        allowed = f"{self.op}: {self.name} must be one of {', '.join(map(repr, self.allowed))}"
        wrong = ("", "bicubic", self.allowed[0].upper(), 0, True, None, self.allowed, [self.allowed[0]])
        return [(self.make, value, f"{allowed}, got {value!r}") for value in wrong]


NEAREST = ("nearest", "bilinear")
BORDERS = ("constant", "edge", "reflect", "symmetric")

WHOLES = [
    Whole("pad", "padding", lambda v: Pad(v), 0, 65_535),
    Whole("pad", "padding", lambda v: Pad((v, 1)), 0, 65_535),
    Whole("pad", "padding", lambda v: Pad((1, 1, 1, v)), 0, 65_535),
    Whole("pad", "fill", lambda v: Pad(1, v), 0, 255),
    Whole("pad", "fill", lambda v: Pad(1, (0, v, 255)), 0, 255),
    Whole("rotate", "fill", lambda v: Rotate(1, fill=v), 0, 255),
    Whole("rotate", "fill", lambda v: Rotate(1, fill=(v, 0, 255)), 0, 255),
    Whole("affine", "fill", lambda v: Affine(1, fill=v), 0, 255),
    Whole("affine", "fill", lambda v: Affine(1, fill=(0, 255, v)), 0, 255),
    Whole("cutout", "size", lambda v: Cutout(v), 1, 65_535),
    Whole("cutout", "size", lambda v: Cutout((1, v)), 1, 65_535),
    Whole("cutout", "fill", lambda v: Cutout(1, v), 0, 255),
    Whole("cutout", "fill", lambda v: Cutout(1, (0, v, 255)), 0, 255),
    Whole("gaussian_blur", "kernel_size", lambda v: GaussianBlur(v), 1, 255),
    Whole("gaussian_blur", "kernel_size", lambda v: GaussianBlur((v, 3)), 1, 255),
    Whole("gaussian_blur", "kernel_size", lambda v: GaussianBlur((3, v)), 1, 255),
    Whole("posterize", "bits", lambda v: Posterize(v), 0, 8),
    Whole("rand_augment", "num_ops", lambda v: RandAugment(v), 1, 6),
    Whole("rand_augment", "magnitude", lambda v: RandAugment(magnitude=v), 0, 30),
    Whole("rand_augment", "magnitude", lambda v: RandAugment(magnitude=v, num_magnitude_bins=5), 0, 4),
    Whole("rand_augment", "num_magnitude_bins", lambda v: RandAugment(1, 0, v), 2, 1000),
    Whole("rand_augment", "fill", lambda v: RandAugment(fill=v), 0, 255),
    Whole("rand_augment", "fill", lambda v: RandAugment(fill=(0, v, 255)), 0, 255),
    Whole("trivial_augment", "num_magnitude_bins", lambda v: TrivialAugment(v), 2, 1000),
    Whole("trivial_augment", "fill", lambda v: TrivialAugment(fill=v), 0, 255),
    Whole("trivial_augment", "fill", lambda v: TrivialAugment(fill=(v, 0, 255)), 0, 255),
    Whole("decode", "background", lambda v: Decode(background=v), 0, 255),
    Whole("decode", "background", lambda v: Decode(background=(0, v, 255)), 0, 255),
]

NUMBERS = [
    Number("flip_ud", "probability", lambda v: FlipUd(v), "0", "1"),
    Number("autocontrast", "probability", lambda v: Autocontrast(v), "0", "1"),
    Number("equalize", "probability", lambda v: Equalize(v), "0", "1"),
    Number("posterize", "probability", lambda v: Posterize(4, v), "0", "1"),
    Number("solarize", "threshold", lambda v: Solarize(v), "0", "256"),
    Number("solarize", "probability", lambda v: Solarize(128, v), "0", "1"),
    Number("sharpness", "sharpness_factor", lambda v: Sharpness(v), "0", "100"),
    Number("sharpness", "probability", lambda v: Sharpness(2, v), "0", "1"),
    Number("rotate", "degrees", lambda v: Rotate(v), "0", "360"),
    Number("rotate", "degrees", lambda v: Rotate((-360, v)), "-360", "360"),
    Number("rotate", "center", lambda v: Rotate(1, center=(v, 1)), "-65535", "65535"),
    Number("rotate", "center", lambda v: Rotate(1, center=(1, v)), "-65535", "65535"),
    Number("affine", "degrees", lambda v: Affine(v), "0", "360"),
    Number("affine", "degrees", lambda v: Affine((v, 360)), "-360", "360"),
    Number("affine", "translate", lambda v: Affine(1, (v, 0)), "0", "1"),
    Number("affine", "translate", lambda v: Affine(1, (0, v)), "0", "1"),
    Number("affine", "scale", lambda v: Affine(1, scale=(v, 100)), "0.01", "100"),
    Number("affine", "scale", lambda v: Affine(1, scale=(0.01, v)), "0.01", "100"),
    Number("affine", "shear", lambda v: Affine(1, shear=v), "0", "89"),
    Number("affine", "shear", lambda v: Affine(1, shear=(-89, v)), "-89", "89"),
    Number("affine", "shear", lambda v: Affine(1, shear=(v, 89, 0, 1)), "-89", "89"),
    Number("affine", "shear", lambda v: Affine(1, shear=(0, 1, v, 89)), "-89", "89"),
    Number("affine", "center", lambda v: Affine(1, center=(v, 0)), "-65535", "65535"),
    Number("saturation", "delta", lambda v: Saturation(v), "0", "1"),
    Number("hue", "delta", lambda v: Hue(v), "0", "0.5"),
    Number("color_jitter", "brightness", lambda v: ColorJitter(v), "0", "100"),
    Number("color_jitter", "brightness", lambda v: ColorJitter((0, v)), "0", "100"),
    Number("color_jitter", "contrast", lambda v: ColorJitter(0, v), "0", "100"),
    Number("color_jitter", "contrast", lambda v: ColorJitter(0, (v, 100)), "0", "100"),
    Number("color_jitter", "saturation", lambda v: ColorJitter(0, 0, v), "0", "100"),
    Number("color_jitter", "saturation", lambda v: ColorJitter(0, 0, (0, v)), "0", "100"),
    Number("color_jitter", "hue", lambda v: ColorJitter(0, 0, 0, v), "0", "0.5"),
    Number("color_jitter", "hue", lambda v: ColorJitter(0, 0, 0, (v, 0.5)), "-0.5", "0.5"),
    Number("gaussian_blur", "sigma", lambda v: GaussianBlur(3, v), "0.01", "255"),
    Number("gaussian_blur", "sigma", lambda v: GaussianBlur(3, (v, 255)), "0.01", "255"),
    Number("gaussian_noise", "mean", lambda v: GaussianNoise(v), "-1", "1"),
    Number("gaussian_noise", "sigma", lambda v: GaussianNoise(0, v), "0", "1"),
    Number("normalize", "mean", lambda v: Normalize(v, 1), "-1e+06", "1e+06"),
    Number("normalize", "mean", lambda v: Normalize((0, v, 0), 1), "-1e+06", "1e+06"),
    Number("normalize", "std", lambda v: Normalize(0, v), "1e-06", "1e+06"),
    Number("normalize", "std", lambda v: Normalize(0, (1, 1, v)), "1e-06", "1e+06"),
    Number("mixup", "alpha", lambda v: Mixup(v), "0.001", "1000"),
    Number("cutmix", "alpha", lambda v: Cutmix(v), "0.001", "1000"),
]

WORDS = [
    Word("pad", "padding_mode", lambda v: Pad(1, 0, v), BORDERS),
    Word("rotate", "interpolation", lambda v: Rotate(1, v), NEAREST),
    Word("affine", "interpolation", lambda v: Affine(1, interpolation=v), NEAREST),
    Word("rand_augment", "interpolation", lambda v: RandAugment(interpolation=v), NEAREST),
    Word("trivial_augment", "interpolation", lambda v: TrivialAugment(interpolation=v), NEAREST),
]


def shapes(op: str, name: str, make: Callable[[Any], Op], what: str, *wrong: object) -> list[Refused]:
    """Values of a wrong length or nesting, for an argument that is `what`."""
    return [(make, value, f"{op}: {name} must be {what}, got {value!r}") for value in wrong]


COLOUR = "a level or (red, green, blue)"
PAIR = "a pair (low, high)"

SHAPES = [
    *shapes(
        "pad",
        "padding",
        lambda v: Pad(v),
        "an integer, (left and right, top and bottom) or (left, top, right, bottom)",
        (),
        (1, 2, 3),
        (1, 2, 3, 4, 5),
    ),
    *shapes("pad", "fill", lambda v: Pad(1, v), COLOUR, (), (1,), (1, 2), (1, 2, 3, 4)),
    *shapes("rotate", "degrees", lambda v: Rotate(v), PAIR, (), (1,), (1, 2, 3)),
    *shapes("rotate", "fill", lambda v: Rotate(1, fill=v), COLOUR, (1, 2)),
    *shapes("rotate", "center", lambda v: Rotate(1, center=v), "(x, y) in pixels", 5, (), (1,), (1, 2, 3), [1, 2], "1"),
    *shapes("affine", "degrees", lambda v: Affine(v), PAIR, (1,), (1, 2, 3)),
    *shapes("affine", "fill", lambda v: Affine(1, fill=v), COLOUR, (1, 2, 3, 4)),
    *shapes("affine", "center", lambda v: Affine(1, center=v), "(x, y) in pixels", 0.5, (1,), (1, 2, 3), [1, 2]),
    *shapes(
        "affine", "translate", lambda v: Affine(1, v), "shares of (width, height)", 0.1, (), (1,), (0, 0, 0), [0, 0]
    ),
    *shapes("affine", "scale", lambda v: Affine(1, scale=v), PAIR, 1.5, (), (1,), (1, 1, 1), [1, 1]),
    *shapes(
        "affine",
        "shear",
        lambda v: Affine(1, shear=v),
        "a number, (low, high) or (x low, x high, y low, y high)",
        (),
        (1,),
        (1, 2, 3),
        (1, 2, 3, 4, 5),
    ),
    *shapes("cutout", "size", lambda v: Cutout(v), "an integer or (height, width)", (), (1,), (1, 2, 3)),
    *shapes("cutout", "fill", lambda v: Cutout(1, v), COLOUR, (0, 0)),
    *shapes("color_jitter", "brightness", lambda v: ColorJitter(v), PAIR, (), (1,), (1, 1, 1)),
    *shapes("color_jitter", "contrast", lambda v: ColorJitter(contrast=v), PAIR, (1,)),
    *shapes("color_jitter", "saturation", lambda v: ColorJitter(saturation=v), PAIR, (1, 1, 1)),
    *shapes("color_jitter", "hue", lambda v: ColorJitter(hue=v), PAIR, (0.1,), (0, 0, 0)),
    *shapes("grayscale", "num_output_channels", lambda v: Grayscale(v), "1 or 3", 0, 2, 4, True, 3.0, "1", None, (1,)),
    *shapes("gaussian_blur", "kernel_size", lambda v: GaussianBlur(v), "an odd number or (x, y)", (), (3,), (3, 3, 3)),
    *shapes("gaussian_blur", "kernel_size", lambda v: GaussianBlur(v), "odd", 2, 254, (3, 4), (4, 3)),
    *shapes("gaussian_blur", "sigma", lambda v: GaussianBlur(3, v), PAIR, (), (1,), (1, 1, 1)),
    *shapes("normalize", "mean", lambda v: Normalize(v, 1), "a number or one per channel", (), (0,), (0, 0, 0, 0)),
    *shapes("normalize", "std", lambda v: Normalize(0, v), "a number or one per channel", (), (1,), (1, 1)),
    *shapes("rand_augment", "fill", lambda v: RandAugment(fill=v), COLOUR, (0,)),
    *shapes("trivial_augment", "fill", lambda v: TrivialAugment(fill=v), COLOUR, (0, 0)),
    *shapes("decode", "background", lambda v: Decode(background=v), COLOUR, (0, 0)),
]


def falling(op: str, name: str, make: Callable[[Any], Op], value: tuple[float, ...]) -> Refused:
    return make, value, f"{op}: {name} must be (low, high) with low <= high, got {value[-2:]!r}"


FALLING = [
    falling("rotate", "degrees", lambda v: Rotate(v), (15, -15)),
    falling("affine", "degrees", lambda v: Affine(v), (0.5, 0.25)),
    falling("affine", "scale", lambda v: Affine(1, scale=v), (1.1, 0.9)),
    falling("affine", "shear", lambda v: Affine(1, shear=v), (3, 2)),
    falling("affine", "shear", lambda v: Affine(1, shear=v), (2, 3, 5, 4)),
    falling("color_jitter", "brightness", lambda v: ColorJitter(v), (2, 1)),
    falling("color_jitter", "contrast", lambda v: ColorJitter(contrast=v), (2, 1)),
    falling("color_jitter", "saturation", lambda v: ColorJitter(saturation=v), (2, 1)),
    falling("color_jitter", "hue", lambda v: ColorJitter(hue=v), (0.1, -0.1)),
    falling("gaussian_blur", "sigma", lambda v: GaussianBlur(3, v), (2, 0.1)),
]

ARGUMENTS: list[Whole | Number | Word] = [*WHOLES, *NUMBERS, *WORDS]
REFUSED += [refusal for argument in ARGUMENTS for refusal in argument.refused()] + SHAPES + FALLING


@pytest.mark.parametrize(("make", "value", "message"), REFUSED, ids=[message[:100] for _, _, message in REFUSED])
def test_an_argument_out_of_its_range_or_type_is_refused_by_name(
    make: Callable[[Any], Op], value: object, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(value)


def test_refusals_of_every_argument_of_every_op_are_among_these() -> None:
    arguments = {f"{name}: {field.name}" for name, kind in OPS.items() for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    assert {message.partition(" must")[0] for _, _, message in REFUSED} == arguments


@pytest.mark.parametrize("argument", WHOLES, ids=[f"{a.op} {a.name}" for a in WHOLES])
def test_the_ends_of_a_range_of_whole_numbers_are_accepted(argument: Whole) -> None:
    lowest, highest = argument.make(argument.low), argument.make(argument.high)
    assert str(argument.low) in repr(getattr(lowest, argument.name))
    assert str(argument.high) in repr(getattr(highest, argument.name))


@pytest.mark.parametrize("argument", NUMBERS, ids=[f"{a.op} {a.name}" for a in NUMBERS])
def test_the_ends_of_a_range_of_numbers_are_accepted_and_are_floats(argument: Number) -> None:
    for end in (float(argument.low), float(argument.high)):
        given = getattr(argument.make(end), argument.name)
        spelled = given if isinstance(given, tuple) else (-given, given)  # (-89, 89) is 89
        assert end in spelled
        assert {type(part) for part in spelled} == {float}


@pytest.mark.parametrize("argument", WORDS, ids=[f"{a.op} {a.name}" for a in WORDS])
def test_every_word_that_a_message_lists_is_accepted(argument: Word) -> None:
    for word in argument.allowed:
        assert getattr(argument.make(word), argument.name) == word


def test_the_ends_of_every_range_are_accepted() -> None:
    for size in (1, LARGEST_SIDE, (1, LARGEST_SIDE)):
        for kind in (Resize, CentralCrop, RandomCrop, RandomResizedCrop):
            assert isinstance(kind(size).size, tuple)
    for end in (0.0, 1.0):
        assert FlipLr(end).probability == Brightness(end).delta == Contrast(end).delta == end
    assert RandomResizedCrop(1, scale=(1e-6, 1.0), ratio=(1e-3, 1e3)).ratio == (1e-3, 1e3)
    assert Decode(1, LARGEST_SIDE, True, LARGEST_PIXELS).shorter == LARGEST_SIDE


def test_one_number_is_a_square() -> None:
    assert Resize(72) == Resize((72, 72))
    assert RandomCrop(72).target == (72, 72)


def test_a_pair_is_height_then_width() -> None:
    assert Resize((30, 40)).output_size(500, 375) == (30, 40)


@pytest.mark.parametrize(
    ("given_as", "spelled"),
    [
        (FlipLr(1), FlipLr(1.0)),
        (Brightness(0), Brightness(0.0)),
        (Brightness(-0.0), Brightness(0.0)),
        (Contrast(np.float64(0.25)), Contrast(0.25)),
        (RandomResizedCrop(8, (1, 1), (1, 2)), RandomResizedCrop(8, (1.0, 1.0), (1.0, 2.0))),
        (Pad((3, 3, 3, 3)), Pad(3)),
        (Pad((3, 3)), Pad(3)),
        (Pad((3,)), Pad(3)),  # type: ignore[arg-type]
        (Pad((1, 2, 1, 2)), Pad((1, 2))),
        (Rotate((-15, 15)), Rotate(15)),
        (Rotate((0, 0)), Rotate(0.0)),
        (Rotate(1, center=(2, 3)), Rotate(1.0, center=(2.0, 3.0))),
        (Affine((-15, 15), (0, 1), (1, 1)), Affine(15.0, (0.0, 1.0), (1.0, 1.0))),
        (Affine(0, shear=(-5, 5)), Affine(0, shear=5.0)),
        (Affine(0, shear=(-5, 5, 0, 0)), Affine(0, shear=5.0)),
        (Affine(0, shear=(1, 5, 0, 0)), Affine(0, shear=(1.0, 5.0))),
        (Affine(0, shear=(-5, 5, -1, 1)), Affine(0, shear=(-5.0, 5.0, -1.0, 1.0))),
        (Affine(0, shear=(0, 0, 0, 0)), Affine(0, shear=0.0)),
        (Cutout(8), Cutout((8, 8))),
        (Saturation(1), Saturation(1.0)),
        (Hue(0), Hue(0.0)),
        (ColorJitter(1, (0, 2), 1, (-0.25, 0.25)), ColorJitter(1.0, (0.0, 2.0), 1.0, 0.25)),
        (GaussianBlur((5, 5)), GaussianBlur(5)),
        (GaussianBlur(5, 1), GaussianBlur(5, 1.0)),
        (GaussianBlur(5, (1, 2)), GaussianBlur(5, (1.0, 2.0))),
        (GaussianNoise(0, 1), GaussianNoise(0.0, 1.0)),
        (Solarize(128, 1), Solarize(128.0, 1.0)),
        (Sharpness(2, 0), Sharpness(2.0, 0.0)),
        (Posterize(4, 1), Posterize(4, 1.0)),
        (Normalize((0, 1, 0), 1), Normalize((0.0, 1.0, 0.0), 1.0)),
        (Mixup(1), Mixup(1.0)),
        (Cutmix(2), Cutmix(2.0)),
    ],
)
def test_arguments_of_one_meaning_have_one_spelling(given_as: Op, spelled: Op) -> None:
    assert repr(given_as) == repr(spelled)
    assert given_as == spelled
    assert hash(given_as) == hash(spelled)


@pytest.mark.parametrize(
    ("padding", "kept", "sides"),
    [
        (3, 3, (3, 3, 3, 3)),
        ((1, 2), (1, 2), (1, 2, 1, 2)),
        ((2, 2), 2, (2, 2, 2, 2)),
        ((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)),
        ((1, 2, 1, 3), (1, 2, 1, 3), (1, 2, 1, 3)),
        ((1, 2, 1, 2), (1, 2), (1, 2, 1, 2)),
        (0, 0, (0, 0, 0, 0)),
    ],
)
def test_a_border_is_left_top_right_bottom(padding: Any, kept: object, sides: tuple[int, ...]) -> None:
    assert Pad(padding).padding == kept
    assert Pad(padding).sides == sides


@pytest.mark.parametrize(
    ("degrees", "angles"), [(15, (-15.0, 15.0)), ((3, 9), (3.0, 9.0)), ((-9, -3), (-9.0, -3.0)), (0, (0.0, 0.0))]
)
def test_one_number_of_degrees_is_a_range_both_ways(degrees: Any, angles: tuple[float, float]) -> None:
    assert Rotate(degrees).angles == Affine(degrees).angles == angles


@pytest.mark.parametrize(
    ("shear", "shears"),
    [
        (None, ((0.0, 0.0), (0.0, 0.0))),
        (5, ((-5.0, 5.0), (0.0, 0.0))),
        ((1, 5), ((1.0, 5.0), (0.0, 0.0))),
        ((1, 5, -2, 3), ((1.0, 5.0), (-2.0, 3.0))),
        ((0, 0, 2, 2), ((0.0, 0.0), (2.0, 2.0))),
    ],
)
def test_a_shear_is_along_x_unless_y_is_given_too(shear: Any, shears: object) -> None:
    assert Affine(0, shear=shear).shears == shears


def test_color_jitter_spreads_factors_around_1_and_not_below_0() -> None:
    jitter = ColorJitter(0.25, 3, (0.5, 0.75), 0.125)
    assert jitter.factors == ((0.75, 1.25), (0.0, 4.0), (0.5, 0.75))
    assert jitter.hues == (-0.125, 0.125)
    assert ColorJitter().factors == ((1.0, 1.0),) * 3
    assert ColorJitter(hue=(0.1, 0.2)).hues == (0.1, 0.2)


def test_a_kernel_is_x_then_y() -> None:
    assert GaussianBlur((3, 5)).kernel == (3, 5)
    assert GaussianBlur(7).kernel == (7, 7)


@pytest.mark.parametrize(
    ("kind", "defaults"),
    [
        (Decode, (3, None, False, 178_000_000, None)),
        (RandomResizedCrop, ((0.08, 1.0), (3 / 4, 4 / 3))),
        (Pad, (0, "constant")),
        (FlipLr, (0.5,)),
        (FlipUd, (0.5,)),
        (Rotate, ("nearest", 0, None)),
        (Affine, (None, None, None, "nearest", 0, None)),
        (ColorJitter, (0, 0, 0, 0)),
        (Grayscale, (1,)),
        (GaussianBlur, ((0.1, 2.0),)),
        (GaussianNoise, (0, 0.1)),
        (Autocontrast, (0.5,)),
        (Equalize, (0.5,)),
        (Posterize, (0.5,)),
        (Solarize, (0.5,)),
        (Sharpness, (0.5,)),
        (RandAugment, (2, 9, 31, "nearest", 0)),
        (TrivialAugment, (31, "nearest", 0)),
        (Mixup, (1,)),
        (Cutmix, (1,)),
    ],
)
def test_defaults_are_those_of_torchvision(kind: Any, defaults: tuple[object, ...]) -> None:
    given = [field.default for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING]
    assert tuple(given) == defaults


def test_ops_are_frozen_and_hashable() -> None:
    assert len({Resize(72), Resize((72, 72)), Resize(73)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Resize(72).size = 73  # type: ignore[misc]


def test_every_op_is_listed_under_its_own_name() -> None:
    assert list(OPS) == [
        "decode",
        "resize",
        "resize_shorter",
        "central_crop",
        "random_crop",
        "random_resized_crop",
        "pad",
        "flip_lr",
        "flip_ud",
        "rotate",
        "affine",
        "cutout",
        "brightness",
        "contrast",
        "saturation",
        "hue",
        "color_jitter",
        "grayscale",
        "gaussian_blur",
        "gaussian_noise",
        "autocontrast",
        "equalize",
        "posterize",
        "solarize",
        "sharpness",
        "rand_augment",
        "trivial_augment",
        "to_float",
        "normalize",
        "mixup",
        "cutmix",
    ]
    assert all(op_name(kind) == name for name, kind in OPS.items())


@relaxed
@given(height=sides, width=sides, shorter=sides)
def test_the_jpeg_scale_is_the_largest_that_leaves_the_shorter_side_long_enough(
    height: int, width: int, shorter: int
) -> None:
    fitting = [scale for scale in (1, 2, 4, 8) if min(height / scale, width / scale) >= shorter]
    assert Decode(shorter=shorter).jpeg_scale(height, width) == max(fitting, default=1)


def test_a_jpeg_is_not_scaled_unless_asked() -> None:
    assert Decode().jpeg_scale(4000, 6000) == 1


@relaxed
@given(height=sides, width=sides, size=st.integers(1, 4096))
def test_resize_shorter_keeps_the_aspect_as_torchvision_does(height: int, width: int, size: int) -> None:
    short, long = min(height, width), max(height, width)
    expected = int(size * long / short)  # torchvision's own formula
    got = ResizeShorter(size).output_size(height, width)
    assert got == ((size, expected) if height <= width else (expected, size))


@relaxed
@given(height=sides, width=sides, data=st.data())
def test_a_central_crop_rounds_half_to_even_as_python_does(height: int, width: int, data: st.DataObject) -> None:
    size = data.draw(st.tuples(st.integers(1, height), st.integers(1, width)))
    assert CentralCrop(size).corner(height, width) == (round((height - size[0]) / 2), round((width - size[1]) / 2))


@pytest.mark.parametrize("kind", [CentralCrop, RandomCrop])
@pytest.mark.parametrize("size", [(101, 200), (100, 201)])
def test_a_crop_larger_than_its_image_is_refused(kind: type[CentralCrop | RandomCrop], size: tuple[int, int]) -> None:
    with pytest.raises(
        ValueError, match=rf"the crop {size[0]}x{size[1]} is larger than the image 100x200: resize first"
    ):
        kind(size).output_size(100, 200)


@pytest.mark.parametrize(
    ("padding", "mode", "fits"),
    [
        (7, "reflect", True),
        (8, "reflect", False),
        (8, "symmetric", True),
        (9, "symmetric", False),
        (9, "edge", True),
        (9, "constant", True),
        ((11, 0), "reflect", True),
        ((12, 0), "reflect", False),
        ((0, 0, 12, 0), "reflect", False),
        ((0, 8, 0, 0), "reflect", False),
        ((0, 0, 0, 8), "reflect", False),
        ((12, 8), "symmetric", True),
        ((0, 0, 13, 0), "symmetric", False),
        ((0, 0, 0, 9), "symmetric", False),
    ],
)
def test_a_border_mirrors_at_most_what_there_is(padding: Any, mode: str, fits: bool) -> None:
    op = Pad(padding, padding_mode=mode)
    left, top, right, bottom = op.sides
    if fits:
        assert op.output_size(8, 12) == (top + 8 + bottom, left + 12 + right)
    else:
        message = f"pad: a border of {padding} cannot {mode} an image of 8x12: pad less, or choose padding_mode 'edge'"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            op.output_size(8, 12)


@pytest.mark.parametrize(
    ("kernel", "fits"),
    [(15, True), (17, False), ((23, 15), True), ((25, 15), False), ((23, 17), False), ((1, 1), True)],
)
def test_a_blur_reaches_at_most_over_what_there_is(kernel: Any, fits: bool) -> None:
    op = GaussianBlur(kernel)
    if fits:
        assert op.output_size(8, 12) == (8, 12)
    else:
        x, y = op.kernel
        message = (
            f"gaussian_blur: a kernel of {x}x{y} is too large for an image of 8x12: blur less, or before the resize"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            op.output_size(8, 12)


COLOURED = [
    (Pad(1, (1, 2, 3)), "pad: fill (1, 2, 3) has 3 numbers, the image 1 channel(s)"),
    (Rotate(1, fill=(1, 2, 3)), "rotate: fill (1, 2, 3) has 3 numbers, the image 1 channel(s)"),
    (Affine(1, fill=(1, 2, 3)), "affine: fill (1, 2, 3) has 3 numbers, the image 1 channel(s)"),
    (Cutout(1, (1, 2, 3)), "cutout: fill (1, 2, 3) has 3 numbers, the image 1 channel(s)"),
    (RandAugment(fill=(1, 2, 3)), "rand_augment: fill (1, 2, 3) has 3 numbers, the image 1 channel(s)"),
    (TrivialAugment(fill=(1, 2, 3)), "trivial_augment: fill (1, 2, 3) has 3 numbers, the image 1 channel(s)"),
    (Normalize((0, 1, 2), 1), "normalize: mean (0.0, 1.0, 2.0) has 3 numbers, the image 1 channel(s)"),
    (Normalize(0, (1, 2, 3)), "normalize: std (1.0, 2.0, 3.0) has 3 numbers, the image 1 channel(s)"),
]


@pytest.mark.parametrize(("op", "message"), COLOURED)
def test_a_colour_is_refused_on_grey(op: Op, message: str) -> None:
    assert op.output_channels(3) == 3
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        op.output_channels(1)


def test_decode_and_grayscale_choose_the_channels() -> None:
    for channels in (1, 3):
        for before in (0, 1, 3):
            assert Decode(channels).output_channels(before) == channels
        for before in (1, 3):
            assert Grayscale(channels).output_channels(before) == channels


small = st.integers(1, 40)
crops = st.tuples(st.integers(1, 8), st.integers(1, 8))
border = st.integers(0, 12)
shares = st.floats(0, 1)
modes = st.sampled_from(NEAREST)
fills = st.integers(0, 255) | st.tuples(*[st.integers(0, 255)] * 3)
odd = st.integers(0, 10).map(lambda half: 2 * half + 1)
centers = st.none() | st.tuples(st.floats(-50, 50), st.floats(-50, 50))


def ranges(low: float, high: float) -> st.SearchStrategy[tuple[float, float]]:
    end = st.floats(low, high)
    return st.tuples(end, end).map(lambda pair: (min(pair), max(pair)))


PICTURES: dict[type[Op], st.SearchStrategy[Op]] = {
    Resize: st.builds(Resize, st.tuples(small, small)),
    ResizeShorter: st.builds(ResizeShorter, st.integers(1, 20)),
    CentralCrop: st.builds(CentralCrop, crops),
    RandomCrop: st.builds(RandomCrop, crops),
    RandomResizedCrop: st.builds(RandomResizedCrop, st.tuples(small, small)),
    Pad: st.builds(Pad, border | st.tuples(border, border) | st.tuples(*[border] * 4), fills, st.sampled_from(BORDERS)),
    FlipLr: st.builds(FlipLr, shares),
    FlipUd: st.builds(FlipUd, shares),
    Rotate: st.builds(Rotate, ranges(-360, 360), modes, fills, centers),
    Affine: st.builds(
        Affine,
        ranges(-360, 360),
        st.none() | st.tuples(shares, shares),
        st.none() | ranges(0.01, 100),
        st.none() | ranges(-89, 89),
        modes,
        fills,
        centers,
    ),
    Cutout: st.builds(Cutout, st.tuples(small, small), fills),
    Brightness: st.builds(Brightness, shares),
    Contrast: st.builds(Contrast, shares),
    Saturation: st.builds(Saturation, shares),
    Hue: st.builds(Hue, st.floats(0, 0.5)),
    ColorJitter: st.builds(ColorJitter, shares, ranges(0, 100), ranges(0, 100), ranges(-0.5, 0.5)),
    Grayscale: st.builds(Grayscale, st.sampled_from([1, 3])),
    GaussianBlur: st.builds(GaussianBlur, st.tuples(odd, odd), ranges(0.01, 255)),
    GaussianNoise: st.builds(GaussianNoise, st.floats(-1, 1), shares),
    Autocontrast: st.builds(Autocontrast, shares),
    Equalize: st.builds(Equalize, shares),
    Posterize: st.builds(Posterize, st.integers(0, 8), shares),
    Solarize: st.builds(Solarize, st.floats(0, 256), shares),
    Sharpness: st.builds(Sharpness, st.floats(0, 100), shares),
    RandAugment: st.builds(RandAugment, st.integers(1, 6), st.integers(0, 30), interpolation=modes, fill=fills),
    TrivialAugment: st.builds(TrivialAugment, interpolation=modes, fill=fills),
}
ON_IMAGES = [kind for kind in OPS.values() if kind is not Decode and not issubclass(kind, BatchOp)]


@pytest.mark.parametrize("kind", ON_IMAGES)
@settings(relaxed, max_examples=50)
@given(data=st.data())
def test_output_size_and_channels_are_those_that_the_kernel_gives(kind: type[Op], data: st.DataObject) -> None:
    op = data.draw(PICTURES[kind])
    height, width, channels = data.draw(st.tuples(st.integers(8, 40), st.integers(8, 40), st.sampled_from([1, 3])))
    image = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    words = data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=op.random_words, max_size=op.random_words))
    assume(channels == 3 or not isinstance(getattr(op, "fill", 0), tuple))  # refused: see above
    try:
        promised = (*op.output_size(height, width), op.output_channels(channels))
    except ValueError as refusal:
        with pytest.raises(ValueError, match=f"^{re.escape(str(refusal))}$"):
            apply([op], image, words)
        return
    result = apply([op], image, words)
    assert result.shape == promised
    assert result.dtype == np.uint8


@pytest.mark.parametrize("kind", ON_IMAGES)
def test_only_resizes_and_crops_have_a_target(kind: type[Op]) -> None:
    made = {Resize: Resize, CentralCrop: CentralCrop, RandomCrop: RandomCrop, RandomResizedCrop: RandomResizedCrop}
    if kind in made:
        assert made[kind]((30, 40)).target == (30, 40)
    else:
        assert kind.target is Op.target


@pytest.mark.parametrize(
    "op",
    [
        Resize(8),
        ResizeShorter(8),
        CentralCrop(8),
        Decode(),
        Pad(3),
        Grayscale(),
        ToFloat(),
        Normalize(0.5, 0.5),
    ],
)
def test_an_op_that_is_the_same_every_time_takes_no_random_words(op: Op) -> None:
    assert op.random_words == 0
    assert not op.random
    assert op.draw([], 16, 16) == ()


@pytest.mark.parametrize(
    "op",
    [
        RandomCrop(8),
        RandomResizedCrop(8),
        Rotate(15),
        Affine(15),
        Cutout(8),
        Brightness(0.1),
        Contrast(0.1),
        Saturation(0.1),
        Hue(0.1),
        ColorJitter(0.1),
        GaussianBlur(3),
        GaussianBlur(3, (1, 2)),
        GaussianNoise(),
        RandAugment(),
        TrivialAugment(),
        Mixup(),
        Cutmix(),
    ],
)
def test_an_op_that_differs_from_draw_to_draw_is_random(op: Op) -> None:
    assert op.random_words > 0
    assert op.random


@pytest.mark.parametrize(
    "made",
    [
        FlipLr,
        FlipUd,
        Autocontrast,
        Equalize,
        lambda p: Posterize(4, p),
        lambda p: Solarize(128, p),
        lambda p: Sharpness(2, p),
    ],
)
def test_an_op_that_is_done_always_or_never_is_not_random(made: Callable[[float], Op]) -> None:
    assert [made(p).random for p in (0, 1e-9, 0.5, 1 - 1e-9, 1)] == [False, True, True, True, False]
    assert {made(p).random_words for p in (0, 0.5, 1)} == {1}  # or those of the ops behind it would change with it


@pytest.mark.parametrize("sigma", [1.5, (1.5, 1.5)])
def test_a_blur_of_one_width_is_not_random(sigma: Any) -> None:
    assert not GaussianBlur(3, sigma).random
    assert GaussianBlur(3, sigma).random_words == 1


@pytest.mark.parametrize(("name", "kind"), OPS.items())
def test_an_op_is_described_by_a_call_with_its_defaults_and_one_line(name: str, kind: type[Op]) -> None:
    written, does = describe(kind)
    fields = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    assert re.findall(r"(?:^|[(,] ?)([a-z_]+)", written.replace("None", "").replace("False", ""))[0] == name
    assert all(field in written for field in fields)
    assert does.endswith(".")
    assert "\n" not in does


def test_a_description_shortens_long_numbers() -> None:
    assert describe(RandomResizedCrop)[0] == "random_resized_crop(size, scale=(0.08, 1), ratio=(0.75, 1.333))"
    assert describe(Pad)[0] == "pad(padding, fill=0, padding_mode='constant')"
    assert describe(ToFloat)[0] == "to_float"


# Ops of one's own -----------------------------------------------------------------------------------------------------

HEAD = "from dataclasses import dataclass\nfrom joulecache.transforms import Op, Resize\n"
PIXELS = "    def pixels(self, image, draw): return image\n"
INVERT = f"@dataclass(frozen=True)\nclass Invert(Op):\n    level: int = 255\n{PIXELS}"


def module(source: str) -> ModuleType:
    made = ModuleType("my_ops")
    exec(compile(HEAD + source, "my_ops.py", "exec", dont_inherit=True), made.__dict__)
    return made


def test_the_ops_of_a_module_are_those_that_it_defines_by_their_names() -> None:
    two = module(f"{INVERT}@dataclass(frozen=True)\nclass DropBlue(Op):\n    words = 2\n{PIXELS}")
    found = ops_of(two)
    assert found == {"invert": two.Invert, "drop_blue": two.DropBlue}  # and not Resize, which it imports
    assert str(parse("decode|invert(7)|drop_blue", found)) == "decode|invert(7)|drop_blue"


def test_classes_with_an_underscore_or_that_are_no_ops_are_not_taken_for_ops() -> None:
    assert list(ops_of(module(f"class _Base(Op):\n    pass\nclass Plain:\n    pass\nx = 3\n{INVERT}"))) == ["invert"]


@pytest.mark.parametrize("source", ["", "class _Base(Op): pass", "class Plain: pass", "x = Op"])
def test_a_module_without_an_op_is_refused(source: str) -> None:
    message = "module my_ops defines no op: write a frozen dataclass that derives from Op"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ops_of(module(source))


FROZEN = "invert: an op is a frozen dataclass: put @dataclass(frozen=True) before class Invert"
FAULTY = [
    (f"class Invert(Op):\n{PIXELS}", FROZEN),
    (f"@dataclass\nclass Invert(Op):\n{PIXELS}", FROZEN),
    (f"@dataclass(frozen=True)\nclass _Base(Op):\n{PIXELS}class Invert(_Base):\n    pass\n", FROZEN),
    (
        "@dataclass(frozen=True)\nclass Invert(Op):\n    pass\n",
        "invert: class Invert must define pixels(image, drawn), which computes the op",
    ),
    *(
        (
            f"@dataclass(frozen=True)\nclass Invert(Op):\n    words = {value}\n{PIXELS}",
            f"invert: random_words must be an integer from 0 to 1024, got {value}",
        )
        for value in ("-1", "1025", "True", "1.0", "'1'", "None")
    ),
    *(
        (
            f"@dataclass(frozen=True)\nclass Invert(Op):\n    version = {value}\n{PIXELS}",
            f"invert: version must be an integer from 1 to 2147483648, got {value}",
        )
        for value in ("0", "-1", "2147483649", "True", "1.0", "'2'", "None")
    ),
]


@pytest.mark.parametrize(("source", "message"), FAULTY, ids=[f"{n} {message}" for n, (_, message) in enumerate(FAULTY)])
def test_an_op_of_ones_own_that_is_not_made_as_it_should_be_is_refused_wherever_it_comes_in(
    source: str, message: str
) -> None:
    made = module(source)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ops_of(made)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse("decode|invert", {"invert": made.Invert})


@pytest.mark.parametrize(("words", "version"), [(0, 1), (1024, 2**31)])
def test_the_ends_of_words_and_version_are_accepted(words: int, version: int) -> None:
    source = f"@dataclass(frozen=True)\nclass Invert(Op):\n    words = {words}\n    version = {version}\n{PIXELS}"
    [op] = parse("decode|invert", ops_of(module(source))).ops[1:]
    assert (op.random_words, op.version, op.random) == (words, version, words > 0)


def test_an_op_of_ones_own_stands_under_the_name_of_its_class() -> None:
    made = module(INVERT)
    with pytest.raises(ValueError, match=r"^op 'negative' must be listed as 'invert', the name of its class Invert$"):
        parse("decode|negative", {"negative": made.Invert})


@pytest.mark.parametrize("thing", [3, "Invert", None, dict])
def test_what_is_no_op_is_refused_as_one_of_ones_own(thing: Any) -> None:
    message = f"op 'invert' must be a class that derives from Op, got {thing!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse("decode", {"invert": thing})


def test_an_op_that_computes_no_pixels_says_so() -> None:
    with pytest.raises(NotImplementedError):
        Op().pixels(np.zeros((1, 1, 3), np.uint8), ())
