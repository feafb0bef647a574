"""Chains: text to ops and back, the cut, the fingerprint, and what a chain does when it is called."""

from __future__ import annotations

import hashlib
import io
import random
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from joulecache.transforms import (
    Affine,
    Autocontrast,
    Brightness,
    CentralCrop,
    Chain,
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
    parse,
)
from joulecache.transforms.chain import UnknownOpError, fixed_size, op_text, output_channels, output_size
from joulecache.transforms.ops import LARGEST_PIXELS, LARGEST_SIDE, OPS, BatchOp
from joulecache.transforms.randomness import key_hash, random_words
from joulecache.transforms.reference_kernels import DecodeError, apply

relaxed = settings(deadline=None)

sides = st.integers(1, LARGEST_SIDE)
sizes = sides | st.tuples(sides, sides)
shares = st.floats(0, 1) | st.integers(0, 1)


def ranges(low: float, high: float) -> st.SearchStrategy[tuple[float, float]]:
    end = st.floats(low, high)
    return st.tuples(end, end).map(lambda pair: (min(pair), max(pair)))


def spreads(most: float) -> st.SearchStrategy[float | tuple[float, float]]:
    """A number, a pair, or one of these spelled as the other is."""
    return st.floats(0, most) | ranges(-most, most) | st.floats(0, most).map(lambda d: (-d, d))


levels = st.integers(0, 255)
fills = levels | st.tuples(levels, levels, levels)
modes = st.sampled_from(["nearest", "bilinear"])
place = st.floats(-LARGEST_SIDE, LARGEST_SIDE)
centers = st.none() | st.tuples(place, place)
border = st.integers(0, LARGEST_SIDE)
odd = st.integers(0, 127).map(lambda half: 2 * half + 1)
factors = st.floats(0, 100) | ranges(0, 100)
means, stds = st.floats(-1e6, 1e6), st.floats(1e-6, 1e6)

decodes = st.builds(
    Decode,
    channels=st.sampled_from([1, 3]),
    shorter=st.none() | sides,
    truncated=st.booleans(),
    max_pixels=st.integers(1, LARGEST_PIXELS),
    background=st.none() | fills,
)
ON_IMAGES: dict[type[Op], st.SearchStrategy[Op]] = {
    Resize: st.builds(Resize, sizes),
    ResizeShorter: st.builds(ResizeShorter, sides),
    CentralCrop: st.builds(CentralCrop, sizes),
    RandomCrop: st.builds(RandomCrop, sizes),
    RandomResizedCrop: st.builds(RandomResizedCrop, sizes, ranges(1e-6, 1), ranges(1e-3, 1e3))
    | st.builds(RandomResizedCrop, sizes, ratio=ranges(1e-3, 1e3)),
    Pad: st.builds(
        Pad,
        border | st.tuples(border, border) | st.tuples(*[border] * 4),
        fills,
        st.sampled_from(["constant", "edge", "reflect", "symmetric"]),
    ),
    FlipLr: st.builds(FlipLr, shares),
    FlipUd: st.builds(FlipUd, shares),
    Rotate: st.builds(Rotate, spreads(360), modes, fills, centers) | st.builds(Rotate, spreads(360), center=centers),
    Affine: st.builds(
        Affine,
        spreads(360),
        st.none() | st.tuples(shares, shares),
        st.none() | ranges(0.01, 100),
        st.none() | spreads(89) | st.tuples(ranges(-89, 89), ranges(-89, 89)).map(lambda two: two[0] + two[1]),
        modes,
        fills,
        centers,
    )
    | st.builds(Affine, spreads(360), shear=spreads(89)),
    Cutout: st.builds(Cutout, sizes, fills),
    Brightness: st.builds(Brightness, shares),
    Contrast: st.builds(Contrast, shares),
    Saturation: st.builds(Saturation, shares),
    Hue: st.builds(Hue, st.floats(0, 0.5)),
    ColorJitter: st.builds(ColorJitter, factors, factors, factors, spreads(0.5))
    | st.builds(ColorJitter, hue=spreads(0.5)),
    Grayscale: st.builds(Grayscale, st.sampled_from([1, 3])),
    GaussianBlur: st.builds(GaussianBlur, odd | st.tuples(odd, odd), st.floats(0.01, 255) | ranges(0.01, 255)),
    GaussianNoise: st.builds(GaussianNoise, st.floats(-1, 1), shares),
    Autocontrast: st.builds(Autocontrast, shares),
    Equalize: st.builds(Equalize, shares),
    Posterize: st.builds(Posterize, st.integers(0, 8), shares),
    Solarize: st.builds(Solarize, st.floats(0, 256), shares),
    Sharpness: st.builds(Sharpness, st.floats(0, 100), shares),
    RandAugment: st.builds(RandAugment, st.integers(1, 6), st.integers(0, 9), st.integers(10, 1000), modes, fills)
    | st.builds(RandAugment, fill=fills),
    TrivialAugment: st.builds(TrivialAugment, st.integers(2, 1000), modes, fills),
}
AFTER_THEM: dict[type[Op], st.SearchStrategy[Op]] = {
    ToFloat: st.builds(ToFloat),
    Normalize: st.builds(
        Normalize, means | st.tuples(means, means, means), st.integers(1, 1000) | stds | st.tuples(stds, stds, stds)
    ),
    Mixup: st.builds(Mixup, st.floats(1e-3, 1e3)),
    Cutmix: st.builds(Cutmix, st.floats(1e-3, 1e3)),
}
others: st.SearchStrategy[Op] = st.one_of(*ON_IMAGES.values())
mixtures: st.SearchStrategy[Op] = AFTER_THEM[Mixup] | AFTER_THEM[Cutmix]


def fitting(ops: Sequence[Op]) -> tuple[Op, ...]:
    """Leave out the ops that have a colour for an image that is grey by then."""
    kept, channels = [], 0
    for op in ops:
        with suppress(ValueError):
            channels = op.output_channels(channels)
            kept.append(op)
    return tuple(kept)


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    ops = fitting([draw(decodes), *draw(st.lists(others, max_size=6))])
    late = draw(st.lists(mixtures, max_size=2))
    if draw(st.booleans()):
        late += [ToFloat(), *draw(st.lists(AFTER_THEM[Normalize] | mixtures, max_size=3))]
    return Chain(fitting((*ops, *late)), draw(st.integers(1, len(ops))))


def test_every_op_is_among_the_random_chains() -> None:
    assert [Decode, *ON_IMAGES, *AFTER_THEM] == list(OPS.values())


@pytest.mark.parametrize("kind", [*ON_IMAGES, *AFTER_THEM])
@settings(relaxed, max_examples=100)
@given(data=st.data())
def test_every_op_survives_the_way_through_text(kind: type[Op], data: st.DataObject) -> None:
    op = data.draw((ON_IMAGES | AFTER_THEM)[kind])
    head = "decode || to_float|" if kind is Normalize else "decode || "
    if kind is ToFloat:
        head = "decode || mixup|"
    chain = parse(head + op_text(op))
    assert chain.ops[-1] == op
    assert repr(chain.ops[-1]) == repr(op)
    assert str(chain) == head + op_text(op)


@relaxed
@given(chain=chains())
def test_a_chain_survives_the_way_through_text(chain: Chain) -> None:
    assert parse(str(chain)) == chain
    assert str(parse(str(chain))) == str(chain)
    assert parse(str(chain)).fingerprint == chain.fingerprint


@relaxed
@given(one=chains(), other=chains(), data=st.data())
def test_the_fingerprint_is_that_of_the_prefix_and_of_nothing_else(
    one: Chain, other: Chain, data: st.DataObject
) -> None:
    assert (one.fingerprint == other.fingerprint) == (one.prefix == other.prefix)
    longer = replace(one, cut=data.draw(st.integers(1, len(one.prefix))))
    assert (one.fingerprint == longer.fingerprint) == (one.cut == longer.cut)
    assert Chain(one.prefix, one.cut).fingerprint == one.fingerprint


@relaxed
@given(chain=chains())
def test_a_suffix_is_ops_on_images_then_ops_on_batches(chain: Chain) -> None:
    assert chain.on_images + chain.on_batches == chain.suffix
    assert chain.prefix + chain.suffix == chain.ops
    assert not any(isinstance(op, BatchOp) for op in chain.prefix + chain.on_images)
    assert all(isinstance(op, BatchOp) for op in chain.on_batches)
    assert chain.mixes == any(type(op) in (Mixup, Cutmix) for op in chain.suffix)
    assert chain.is_float == ("to_float" in str(chain))


@pytest.mark.parametrize(
    ("text", "mixes", "is_float"),
    [
        ("decode", False, False),
        ("decode || flip_lr", False, False),
        ("decode || to_float", False, True),
        ("decode || to_float|normalize(0, 1)", False, True),
        ("decode || mixup", True, False),
        ("decode || cutmix(0.5)", True, False),
        ("decode || flip_lr|mixup|to_float|normalize(0.5, 0.5)|cutmix", True, True),
    ],
)
def test_a_chain_says_whether_it_mixes_and_whether_it_gives_floats(text: str, mixes: bool, is_float: bool) -> None:
    assert (parse(text).mixes, parse(text).is_float) == (mixes, is_float)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("decode", "decode"),
        ("decode()", "decode"),
        ("decode(3)", "decode"),
        (" decode |\tresize( size = 72 )", "decode|resize(72)"),
        ("decode|resize((72, 72))", "decode|resize(72)"),
        ("decode|resize((72, 96))", "decode|resize((72, 96))"),
        ("decode||resize(72)", "decode || resize(72)"),
        ("decode(shorter=72)", "decode(shorter=72)"),
        ("decode(1, 72)", "decode(1, 72)"),
        ("decode|flip_lr(0.5)", "decode|flip_lr"),
        ("decode|flip_lr(1)", "decode|flip_lr(1.0)"),
        ("decode|random_resized_crop(8, ratio=(1, 2))", "decode|random_resized_crop(8, ratio=(1.0, 2.0))"),
        ("decode|random_resized_crop(8, (0.08, 1), (1, 1))", "decode|random_resized_crop(8, ratio=(1.0, 1.0))"),
        ("decode|random_resized_crop(8, ratio=(3/4, 4/3))", "decode|random_resized_crop(8)"),
        ("decode|random_resized_crop(8, ratio=(3/4, 8/5))", "decode|random_resized_crop(8, ratio=(0.75, 1.6))"),
        ("decode|color_jitter(hue=(-1/8, 1/4))", "decode|color_jitter(hue=(-0.125, 0.25))"),
        ("decode|color_jitter(hue=(-(1/8), 1/8))", "decode|color_jitter(hue=0.125)"),
        ("decode|brightness( 1.5 / 6 )", "decode|brightness(0.25)"),
        ("decode|flip_lr(probability=1/4)", "decode|flip_lr(0.25)"),
        ("decode(background=(255, 0, 7))", "decode(background=(255, 0, 7))"),
        ("decode(3, None, False, 178_000_000, 0)", "decode(background=0)"),
        ("decode|pad((2, 2, 2, 2))", "decode|pad(2)"),
        ("decode|pad((1, 2, 1, 2), 0, 'constant')", "decode|pad((1, 2))"),
        ('decode|pad(4, padding_mode="edge")', "decode|pad(4, padding_mode='edge')"),
        ("decode|pad(4, 7, 'edge')", "decode|pad(4, 7, 'edge')"),
        ("decode|pad(4, (7, 8, 9))", "decode|pad(4, (7, 8, 9))"),
        ("decode|rotate((-15, 15))", "decode|rotate(15.0)"),
        ("decode|rotate(0, center=(1, 2))", "decode|rotate(0.0, center=(1.0, 2.0))"),
        ("decode|rotate(15, 'nearest', (7, 7, 7))", "decode|rotate(15.0, fill=(7, 7, 7))"),
        ("decode|affine(0, shear=(-5, 5, 0, 0))", "decode|affine(0.0, shear=5.0)"),
        ("decode|affine(degrees=5, scale=(1, 2))", "decode|affine(5.0, scale=(1.0, 2.0))"),
        ("decode|cutout((8, 8))", "decode|cutout(8)"),
        ("decode|cutout((8, 9), 3)", "decode|cutout((8, 9), 3)"),
        ("decode|color_jitter(0)", "decode|color_jitter"),
        ("decode|color_jitter(0, 0, 0.5)", "decode|color_jitter(saturation=0.5)"),
        ("decode|grayscale(3)", "decode|grayscale(3)"),
        ("decode|grayscale(1)", "decode|grayscale"),
        ("decode|gaussian_blur((3, 3), (0.1, 2))", "decode|gaussian_blur(3)"),
        ("decode|gaussian_blur((3, 5), 1)", "decode|gaussian_blur((3, 5), 1.0)"),
        ("decode|gaussian_noise(0, 1/10)", "decode|gaussian_noise"),
        ("decode|posterize(4, 1/2)", "decode|posterize(4)"),
        ("decode|rand_augment(2, 9)", "decode|rand_augment"),
        ("decode|rand_augment(2, 14)", "decode|rand_augment(magnitude=14)"),
        ("decode|trivial_augment(interpolation='bilinear')", "decode|trivial_augment(interpolation='bilinear')"),
        ("decode||to_float|normalize(1/2,1/4)", "decode || to_float|normalize(0.5, 0.25)"),
        (
            "decode||to_float|normalize((0, 1, 2), std=(1, 2, 3))",
            "decode || to_float|normalize((0.0, 1.0, 2.0), (1.0, 2.0, 3.0))",
        ),
        ("decode||mixup(1)|cutmix(alpha=0.5)", "decode || mixup|cutmix(0.5)"),
    ],
)
def test_text_has_one_canonical_form(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical
    assert str(parse(canonical)) == canonical


def test_a_fraction_is_the_nearest_number_to_it() -> None:
    [crop] = parse("decode|random_resized_crop(8, (1/7, 22/7e1), (3/4, 1e3/3.0))").ops[1:]
    assert isinstance(crop, RandomResizedCrop)
    assert crop.scale == (1 / 7, 22 / 70)
    assert crop.ratio == (0.75, 1000 / 3)


def test_the_cut_divides_prefix_from_suffix() -> None:
    chain = parse("decode|resize(72) || random_crop(64)|flip_lr")
    assert chain.prefix == (Decode(), Resize(72))
    assert chain.suffix == (RandomCrop(64), FlipLr())
    assert chain.decode is chain.ops[0]


def test_without_a_cut_the_whole_chain_is_the_prefix() -> None:
    chain = parse("decode|resize(72)")
    assert chain.suffix == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("decode|flip_rl", """unknown op 'flip_rl' in 'decode|flip_rl': did you mean flip_lr?"""),
        ("decode|Resize(72)", """unknown op 'Resize' in 'decode|Resize(72)': did you mean resize?"""),
        ("decode|zzz", f"unknown op 'zzz' in 'decode|zzz': there are {', '.join(OPS)}"),
        ("", "an op is missing in '': write ops between '|', like decode|resize(72)"),
        ("decode|", "an op is missing in 'decode|': write ops between '|', like decode|resize(72)"),
        ("decode||", "an op is missing in 'decode||': write ops between '|', like decode|resize(72)"),
        ("||decode", "an op is missing in '||decode': write ops between '|', like decode|resize(72)"),
        ("decode|||flip_lr", "an op is missing in 'decode|||flip_lr': write ops between '|', like decode|resize(72)"),
        ("decode || flip_lr || flip_lr", "a chain has one cut '||' at most, got 2 in 'decode || flip_lr || flip_lr'"),
        ("decode|resize(", "cannot read 'resize(' in 'decode|resize(': an op is name or name(arguments)"),
        ("decode|7", "cannot read '7' in 'decode|7': an op is name or name(arguments)"),
        ("decode|os.exit(1)", "cannot read 'os.exit(1)' in 'decode|os.exit(1)': an op is name or name(arguments)"),
        (
            "decode|resize(n)",
            "cannot read the arguments of 'resize(n)': each is given once, and is a number, a text, a tuple of them, True, False or None",
        ),
        (
            "decode|resize(size=72, size=72)",
            "cannot read the arguments of 'resize(size=72, size=72)': "
            "each is given once, and is a number, a text, a tuple of them, True, False or None",
        ),
        (
            "decode|resize(**{'size': 72})",
            "cannot read the arguments of \"resize(**{'size': 72})\": "
            "each is given once, and is a number, a text, a tuple of them, True, False or None",
        ),
        ("decode|resize", "'resize' does not fit resize(size)"),
        ("decode|resize(1, 2)", "'resize(1, 2)' does not fit resize(size)"),
        ("decode|resize(side=72)", "'resize(side=72)' does not fit resize(size)"),
        ("decode|resize(72, size=72)", "'resize(72, size=72)' does not fit resize(size)"),
        ("decode|resize('72')", "resize: size must be a whole number from 1 to 65535, got '72'"),
        ("decode|resize(0)", "resize: size must be a whole number from 1 to 65535, got 0"),
        ("resize(72)|decode", "a chain starts with decode, got 'resize(72)|decode'"),
        ("decode|gray_scale", "unknown op 'gray_scale' in 'decode|gray_scale': did you mean grayscale?"),
        ("decode|colour_jitter", "unknown op 'colour_jitter' in 'decode|colour_jitter': did you mean color_jitter?"),
        ("decode|rotate", "'rotate' does not fit rotate(degrees, interpolation, fill, center)"),
        ("decode|normalize(0.5)", "'normalize(0.5)' does not fit normalize(mean, std)"),
        ("decode|to_float(1)", "'to_float(1)' does not fit to_float()"),
        ("decode|pad(1, 'edge')", "pad: fill must be a whole number from 0 to 255, got 'edge'"),
        (
            "decode|pad(1, padding_mode='mirror')",
            "pad: padding_mode must be one of 'constant', 'edge', 'reflect', 'symmetric', got 'mirror'",
        ),
        ("decode|hue(1/1)", "hue: delta must be a number from 0 to 0.5, got 1.0"),
        ("decode|brightness(1e308/1e-308)", "brightness: delta must be a number from 0 to 1, got inf"),
        ("decode|brightness(1e999/1e999)", "brightness: delta must be a number from 0 to 1, got nan"),
        ("decode|pad(4/2)", "pad: padding must be a whole number from 0 to 65535, got 2.0"),
        ("decode|decode", "decode stands once, at the start, got 'decode|decode'"),
        ("decode|flip_lr|decode", "decode stands once, at the start, got 'decode|flip_lr|decode'"),
    ],
)
def test_a_wrong_chain_is_refused_with_what_was_got_and_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse(text)


@pytest.mark.parametrize(
    "argument",
    [
        "1/0",
        "1/0.0",
        "0/0",
        "1/-0.0",
        "(1/2, 1/0)",
        "1e308/0",
        "9" * 400 + "/3",  # more than a float holds
        "1/2/3",
        "1//2",
        "1*2",
        "2**-1",
        "1%2",
        "'a'/2",
        "2/'a'",
        "(1, 2)/2",
        "None/2",
        "1/x",
        "x/1",
        "1/(2",
        "f(1)",
        "[x]",
        "lambda: 1",
        "1 if 1 else 2",
        "not 1",
        "f'{1}'",
        "*(1, 2)",
        "x := 1",
        "{**{}}",
    ],
)
def test_what_is_neither_a_literal_nor_a_fraction_is_refused(argument: str) -> None:
    with pytest.raises(ValueError, match=r"^cannot read "):
        parse(f"decode|brightness({argument})")


def test_an_unknown_op_has_its_own_error() -> None:
    with pytest.raises(UnknownOpError):
        parse("decode|flip_rl")
    with pytest.raises(ValueError, match="flip_lr: probability") as refusal:
        parse("decode|flip_lr(2)")
    assert not isinstance(refusal.value, UnknownOpError)


LATE = "stands only after the cut, since caches hold uint8 images one by one: write '||' before it"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (text, f"{op} {LATE}, got {text!r}")
            for op, text in [
                ("to_float", "decode|to_float"),
                ("mixup", "decode|mixup"),
                ("cutmix", "decode|cutmix(0.5) || flip_lr"),
                ("to_float", "decode|resize(8)|to_float || normalize(0.5, 0.5)"),
                ("normalize", "decode|normalize(0.5, 0.5) || to_float"),
                ("mixup", "decode|mixup || to_float"),
            ]
        ),
        *(
            (
                text,
                f"{op} cannot stand behind {late}: ops on uint8 images come before those on batches, got {text!r}",
            )
            for op, late, text in [
                ("flip_lr", "mixup", "decode || mixup|flip_lr"),
                ("resize", "to_float", "decode || to_float|resize(8)"),
                ("cutout", "cutmix", "decode || flip_lr|cutmix|to_float|cutout(8)"),
                ("grayscale", "to_float", "decode || to_float|normalize(0.5, 0.5)|grayscale"),
            ]
        ),
        *(
            (text, f"to_float stands once, got {text!r}")
            for text in ("decode || to_float|to_float", "decode || to_float|mixup|to_float")
        ),
        *(
            (text, f"normalize stands only after to_float, whose units its mean and std are in, got {text!r}")
            for text in (
                "decode || normalize(0.5, 0.5)",
                "decode || mixup|normalize(0.5, 0.5)",
                "decode || normalize(0.5, 0.5)|to_float",
                "decode || normalize(0.5, 0.5)|to_float|normalize(0.5, 0.5)",
            )
        ),
    ],
)
def test_ops_on_batches_stand_after_the_cut_and_last(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "decode || to_float",
        "decode || mixup|cutmix|mixup",
        "decode || mixup|to_float|normalize(0.5, 0.5)|cutmix",
        "decode || to_float|normalize(0.5, 0.5)|normalize(0.0, 2.0)",
        "decode || to_float|mixup|normalize(0.5, 0.5)",
        "decode|resize(8) || flip_lr|to_float",
    ],
)
def test_ops_on_batches_stand_in_any_order_that_keeps_units(text: str) -> None:
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("decode(1)|pad(1, (1, 2, 3))", "pad: fill (1, 2, 3) has 3 numbers, the image 1 channel(s)"),
        ("decode|grayscale|cutout(8, (1, 2, 3))", "cutout: fill (1, 2, 3) has 3 numbers, the image 1 channel(s)"),
        (
            "decode|grayscale || rotate(9, fill=(1, 2, 3))",
            "rotate: fill (1, 2, 3) has 3 numbers, the image 1 channel(s)",
        ),
        ("decode(1)|affine(9, fill=(1, 2, 3))", "affine: fill (1, 2, 3) has 3 numbers, the image 1 channel(s)"),
        (
            "decode(1)|rand_augment(fill=(1, 2, 3))",
            "rand_augment: fill (1, 2, 3) has 3 numbers, the image 1 channel(s)",
        ),
        (
            "decode(1)|trivial_augment(fill=(1, 2, 3))",
            "trivial_augment: fill (1, 2, 3) has 3 numbers, the image 1 channel(s)",
        ),
        (
            "decode(1) || to_float|normalize((1, 2, 3), 1)",
            "normalize: mean (1.0, 2.0, 3.0) has 3 numbers, the image 1 channel(s)",
        ),
        (
            "decode|grayscale || to_float|normalize(1, (1, 2, 3))",
            "normalize: std (1.0, 2.0, 3.0) has 3 numbers, the image 1 channel(s)",
        ),
    ],
)
def test_a_colour_on_a_grey_image_is_refused_when_the_chain_is_made(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "channels"),
    [
        ("decode", 3),
        ("decode(1)", 1),
        ("decode|grayscale", 1),
        ("decode|grayscale(3)|cutout(8, (1, 2, 3))", 3),
        ("decode(1)|grayscale(3)|cutout(8, (1, 2, 3))", 3),
        ("decode|cutout(8, (1, 2, 3))|grayscale", 1),
        ("decode(1) || to_float|normalize(0.5, 0.5)", 1),
        ("decode(1, background=(1, 2, 3))", 1),
    ],
)
def test_the_channels_follow_the_ops(text: str, channels: int) -> None:
    assert output_channels(parse(text).ops) == channels


@pytest.mark.parametrize("cut", [0, 3])
def test_a_cut_outside_the_chain_is_refused(cut: int) -> None:
    with pytest.raises(ValueError, match=f"^the cut stands after decode, at 1 to 2, got {cut}$"):
        Chain((Decode(), FlipLr()), cut)


def test_a_chain_of_no_ops_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a chain starts with decode, got 'no op'$"):
        Chain((), 1)


@dataclass(frozen=True)
class Own(Op):
    """An op of somebody else's, which takes anything."""

    words: ClassVar[int] = 2
    size: Any = 4
    more: Any = None

    def pixels(self, image: NDArray[np.uint8], draw: tuple[int, ...]) -> NDArray[np.uint8]:
        return image ^ np.uint8(draw[0] & 0xFF)


def test_random_strings_give_a_chain_or_a_value_error() -> None:
    rng = random.Random(0)
    pieces = [
        *OPS,
        *"()|,=.'\"#:[]{}+-*/\\\n\t\0 0123456789",
        "||",
        "size",
        "None",
        "True",
        "1e999",
        "é",
        "\ud800",
        "72",
        "||to_float",
        "|normalize(0.5, 1/4)",
        "||to_float|normalize((0, 1, 2), 1/4)",
        "||mixup",
        "(3/4, 4/3)",
        "ratio=",
        "|pad(1, 0, 'edge')",
        "|rotate(15",
        "|hue(",
        "1/8)",
        "(1, 2, 3)",
        "|own",
        "|own(",
        "'a'",
        "1e999",
        "|own((3, 3), b'x')",
    ]
    parsed, seen = 0, set[type[Op]]()
    for _ in range(10_000):
        text = "decode" * rng.randint(0, 1) + "".join(rng.choices(pieces, k=rng.randint(0, 12)))
        try:
            chain = parse(text, {"own": Own})
        except ValueError:
            continue
        assert parse(str(chain), {"own": Own}) == chain
        seen.update(type(op) for op in chain.ops)
        parsed += 1
    assert parsed > 50
    assert {Decode, Own, ToFloat, Normalize, Mixup} <= seen


@relaxed
@given(text=st.text())
def test_any_text_gives_a_chain_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        chain = parse(f"decode|{text}")
        assert parse(str(chain)) == chain


@pytest.mark.parametrize(
    "text", ["(" * 300, "-" * 100_000 + "1", "resize(" + "1+" * 50_000 + "1)", "decode(" + "9" * 5000]
)
def test_text_that_would_exhaust_the_reader_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        parse(text)


VARIED = [
    "decode",
    "decode(1)",
    "decode(shorter=72)",
    "decode(truncated=True)",
    "decode(max_pixels=1000)",
    "decode|resize(72)",
    "decode|resize(73)",
    "decode|resize((72, 73))",
    "decode|resize((73, 72))",
    "decode|resize_shorter(72)",
    "decode|central_crop(72)",
    "decode|random_crop(72)",
    "decode|random_resized_crop(72)",
    "decode|random_resized_crop(72, scale=(0.5, 1))",
    "decode|random_resized_crop(72, ratio=(0.5, 1))",
    "decode|flip_lr",
    "decode|flip_lr(0.4)",
    "decode|brightness(0.4)",
    "decode|brightness(0.5)",
    "decode|contrast(0.4)",
    "decode|contrast(0.5)",
    "decode|brightness(0.4)|contrast(0.4)",
    "decode|contrast(0.4)|brightness(0.4)",
    "decode|flip_lr|flip_lr",
    "decode(background=0)",
    "decode(background=255)",
    "decode(background=(0, 0, 1))",
    "decode|resize_shorter(73)",
    "decode|central_crop((72, 73))",
    "decode|random_crop(73)",
    "decode|pad(1)",
    "decode|pad((1, 2))",
    "decode|pad((2, 1))",
    "decode|pad((1, 2, 2, 1))",
    "decode|pad(1, 1)",
    "decode|pad(1, (1, 1, 2))",
    "decode|pad(1, 0, 'edge')",
    "decode|pad(1, 0, 'reflect')",
    "decode|pad(1, 0, 'symmetric')",
    "decode|flip_ud",
    "decode|flip_ud(0.4)",
    "decode|rotate(1)",
    "decode|rotate((0, 1))",
    "decode|rotate(1, 'bilinear')",
    "decode|rotate(1, fill=1)",
    "decode|rotate(1, center=(0, 1))",
    "decode|rotate(1, center=(1, 0))",
    "decode|affine(1)",
    "decode|affine(1, (0, 0.5))",
    "decode|affine(1, (0.5, 0))",
    "decode|affine(1, scale=(0.5, 1))",
    "decode|affine(1, shear=1)",
    "decode|affine(1, shear=(0, 1))",
    "decode|affine(1, shear=(0, 1, 0, 1))",
    "decode|affine(1, interpolation='bilinear')",
    "decode|affine(1, fill=1)",
    "decode|affine(1, center=(0, 1))",
    "decode|cutout(8)",
    "decode|cutout((8, 9))",
    "decode|cutout(8, 1)",
    "decode|saturation(0.4)",
    "decode|saturation(0.5)",
    "decode|hue(0.4)",
    "decode|hue(0.5)",
    "decode|color_jitter",
    "decode|color_jitter(0.5)",
    "decode|color_jitter(contrast=0.5)",
    "decode|color_jitter(saturation=0.5)",
    "decode|color_jitter(hue=0.5)",
    "decode|color_jitter(hue=(0, 0.5))",
    "decode|color_jitter(brightness=(0, 0.5))",
    "decode|grayscale",
    "decode|grayscale(3)",
    "decode|gaussian_blur(3)",
    "decode|gaussian_blur(5)",
    "decode|gaussian_blur((3, 5))",
    "decode|gaussian_blur((5, 3))",
    "decode|gaussian_blur(3, 1)",
    "decode|gaussian_blur(3, (1, 2))",
    "decode|gaussian_noise",
    "decode|gaussian_noise(0.1)",
    "decode|gaussian_noise(sigma=0.2)",
    "decode|autocontrast",
    "decode|autocontrast(1)",
    "decode|equalize",
    "decode|equalize(1)",
    "decode|posterize(4)",
    "decode|posterize(5)",
    "decode|posterize(4, 1)",
    "decode|solarize(4)",
    "decode|solarize(5)",
    "decode|solarize(4, 1)",
    "decode|sharpness(2)",
    "decode|sharpness(3)",
    "decode|sharpness(2, 1)",
    "decode|rand_augment",
    "decode|rand_augment(3)",
    "decode|rand_augment(magnitude=8)",
    "decode|rand_augment(num_magnitude_bins=30)",
    "decode|rand_augment(interpolation='bilinear')",
    "decode|rand_augment(fill=1)",
    "decode|trivial_augment",
    "decode|trivial_augment(30)",
    "decode|trivial_augment(interpolation='bilinear')",
    "decode|trivial_augment(fill=1)",
]


def test_every_argument_of_every_op_that_caches_hold_is_varied() -> None:
    varied = {
        (type(op), argument.name)
        for text in VARIED
        for op in parse(text).ops
        for argument in fields(op)  # type: ignore[arg-type]
        if getattr(op, argument.name) != argument.default
    }
    arguments = {
        (kind, argument.name)
        for kind in OPS.values()
        if not issubclass(kind, BatchOp)
        for argument in fields(kind)  # type: ignore[arg-type]
    }
    assert varied == arguments


def test_the_fingerprint_changes_with_every_argument_and_with_the_order() -> None:
    assert len({parse(text).fingerprint for text in VARIED}) == len(VARIED)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("decode|resize(72)", "decode(3)|resize(size=(72,72))"),
        ("decode|flip_lr", "decode|flip_lr(probability=0.5)"),
        ("decode|brightness(1)", "decode|brightness(1.0)"),
        ("decode|random_resized_crop(8)", "decode|random_resized_crop(8, (0.08, 1), (0.75, 1.3333333333333333))"),
        ("decode|resize(72)", "decode|resize(72) || flip_lr"),
        ("decode|random_resized_crop(8)", "decode|random_resized_crop(8, ratio=(3/4, 4/3))"),
        ("decode|pad(2)", "decode|pad((2, 2, 2, 2), 0, 'constant')"),
        ("decode|rotate(15)", "decode|rotate((-15, 15), 'nearest', 0, None)"),
        ("decode|affine(15, shear=5)", "decode|affine((-15, 15), None, None, (-5, 5, 0, 0))"),
        ("decode|gaussian_blur(3)", "decode|gaussian_blur((3, 3), (1/10, 2))"),
        ("decode|brightness(0.0)", "decode|brightness(-0.0)"),
        ("decode|resize(72)", "decode|resize(72) || to_float|normalize(0.5, 0.5)"),
        ("decode|resize(72)", "decode|resize(72) || mixup"),
        ("decode|resize(72) || brightness(0.1)", "decode|resize(72) || random_crop(64)|flip_lr"),
    ],
)
def test_the_fingerprint_ignores_the_spelling_and_the_suffix(one: str, other: str) -> None:
    assert parse(one).fingerprint == parse(other).fingerprint


def test_the_fingerprint_changes_with_the_version_of_an_op(monkeypatch: pytest.MonkeyPatch) -> None:
    before = parse("decode|resize(72)").fingerprint
    monkeypatch.setattr(Resize, "version", 2)
    assert parse("decode|resize(72)").fingerprint != before


def test_the_fingerprint_is_that_of_caches_built_before() -> None:
    # Where this fails, every cache in the world is rebuilt: change an op's version instead, if only that op changed.
    chain = parse("decode(shorter=72)|resize(72)|random_resized_crop(64)|flip_lr || contrast(0.2)")
    assert chain.fingerprint == "0e0481e47af81d356185de75d80fa45defb496ffbe65ef0b619a968d7a8af6d7"
    every = "|".join(
        [
            "decode(1, 72, True, 1000, (1, 2, 3))|grayscale(3)|resize((72, 80))|resize_shorter(72)|central_crop(70)",
            "random_crop(68)|random_resized_crop(64, (0.5, 1), (1, 2))|pad((1, 2, 3, 4), 5, 'edge')|flip_lr(1/4)|flip_ud",
            "rotate(15, 'bilinear', (1, 2, 3), (4, 5))|affine(1, (0.1, 0.2), (0.5, 2), (1, 2, 3, 4), fill=7)|cutout(8, 9)",
            "brightness(0.1)|contrast(0.2)|saturation(0.3)|hue(0.4)|color_jitter(0.1, (0.2, 0.3), 0.4, (-0.1, 0.2))",
            "gaussian_blur((3, 5), 1)|gaussian_noise(0.1, 0.2)|autocontrast|equalize(0)|posterize(3)|solarize(100, 1)",
            "sharpness(2)|rand_augment(3, 8, 20, 'bilinear', 1)|trivial_augment(30)",
        ]
    )
    assert parse(every).fingerprint == "82eb2819d2eac16b47dbdaab8dd79dc8497f933b28eb0d26ee12ec1c7f8916de"
    assert {type(op) for op in parse(every).ops} == {Decode, *ON_IMAGES}


def test_the_fingerprint_spells_the_prefix_with_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Resize, "version", 7)
    spelled = "decode(shorter=72)@1|resize(72)@7|random_resized_crop(64)@1"
    chain = parse("decode(shorter = 72)|resize((72, 72))|random_resized_crop(64, (0.08, 1)) || contrast(0.2)|to_float")
    assert chain.fingerprint == hashlib.sha256(spelled.encode()).hexdigest()


def test_the_fingerprint_changes_with_the_version_of_an_op_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = parse("decode|own(3)", {"own": Own}).fingerprint
    assert before == hashlib.sha256(b"decode@1|own(3)@1").hexdigest()
    monkeypatch.setattr(Own, "version", 2)
    assert parse("decode|own(3)", {"own": Own}).fingerprint == hashlib.sha256(b"decode@1|own(3)@2").hexdigest()


def test_a_new_argument_with_a_default_leaves_old_caches_valid() -> None:
    @dataclass(frozen=True)
    class Longer(Op):
        size: int = 4
        new: int = 0

        def pixels(self, image: NDArray[np.uint8], draw: tuple[int, ...]) -> NDArray[np.uint8]:
            return image

    @dataclass(frozen=True)
    class Shorter(Op):
        size: int = 4

        def pixels(self, image: NDArray[np.uint8], draw: tuple[int, ...]) -> NDArray[np.uint8]:
            return image

    Shorter.__name__ = Longer.__name__
    for size in ("", "(3)"):
        now = parse(f"decode|longer{size}", {"longer": Longer})
        assert now.fingerprint == parse(f"decode|longer{size}", {"longer": Shorter}).fingerprint
    assert parse("decode|longer(new=1)", {"longer": Longer}).fingerprint != now.fingerprint


@pytest.mark.parametrize(
    ("text", "validation"),
    [
        ("decode || random_crop(64)", "decode|central_crop(64)"),
        ("decode|random_crop((64, 32))|flip_lr", "decode|central_crop((64, 32))"),
        ("decode|random_resized_crop(64)", "decode|resize_shorter(64)|central_crop(64)"),
        ("decode|random_resized_crop((64, 96))", "decode|resize_shorter(96)|central_crop((64, 96))"),
        ("decode(1)|resize(72)|brightness(0.1) || contrast(0.1)|flip_lr", "decode(1)|resize(72)"),
        ("decode|resize_shorter(80)|central_crop(72)", "decode|resize_shorter(80)|central_crop(72)"),
        ("decode|pad(4)|random_crop(32) || flip_lr", "decode|pad(4)|central_crop(32)"),
        ("decode || random_crop(32)|mixup", "decode|central_crop(32)"),
        ("decode || cutmix|to_float", "decode || to_float"),
        (
            "decode || random_crop(32)|to_float|normalize(0.5, 0.25)|mixup",
            "decode|central_crop(32) || to_float|normalize(0.5, 0.25)",
        ),
        ("decode|flip_lr(1.0) || flip_ud(1.0)", "decode|flip_lr(1.0)|flip_ud(1.0)"),
        ("decode || flip_lr(0.0)", "decode|flip_lr(0.0)"),
        ("decode|flip_lr|flip_ud(0.99)|autocontrast|equalize", "decode"),
        ("decode|autocontrast(1)|equalize(1)", "decode|autocontrast(1.0)|equalize(1.0)"),
        ("decode|posterize(4)|solarize(128)|sharpness(2)", "decode"),
        (
            "decode || posterize(4, 1)|solarize(128, 1)|sharpness(2, 1)",
            "decode|posterize(4, 1.0)|solarize(128.0, 1.0)|sharpness(2.0, 1.0)",
        ),
        ("decode|gaussian_blur(3) || gaussian_blur(3, 1)", "decode|gaussian_blur(3, 1.0)"),
        ("decode|rotate(15)|affine(0, (0.1, 0.1))|cutout(8)|gaussian_noise", "decode"),
        ("decode|saturation(0.1)|hue(0.1)|color_jitter(0.1)|rand_augment|trivial_augment", "decode"),
        ("decode|grayscale || grayscale(3)|flip_lr", "decode|grayscale|grayscale(3)"),
    ],
)
def test_validation_is_central_and_not_augmented(text: str, validation: str) -> None:
    assert str(parse(text).for_validation()) == validation


@relaxed
@given(chain=chains())
def test_the_validation_chain_draws_nothing(chain: Chain) -> None:
    validation = chain.for_validation()
    assert not any(op.random for op in validation.ops)
    assert not validation.mixes
    assert validation.is_float == chain.is_float
    assert validation.on_images == ()  # all that a cache can hold is cached
    assert [op for op in validation.ops if isinstance(op, ToFloat | Normalize)] == [
        op for op in chain.ops if isinstance(op, ToFloat | Normalize)
    ]
    assert validation.for_validation() == validation


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("decode", None),
        ("decode|resize_shorter(72)|flip_lr", None),
        ("decode|resize((72, 96))", (72, 96)),
        ("decode|resize_shorter(72)|central_crop(64)", (64, 64)),
        ("decode|random_crop(64)|brightness(0.1)", (64, 64)),
        ("decode|random_resized_crop(64)|resize_shorter(32)", (32, 32)),
        ("decode|resize((50, 100))|resize_shorter(25)", (25, 50)),
        ("decode|pad(4)", None),
        ("decode|resize(72)|pad((1, 2, 3, 4))", (78, 76)),
        ("decode|resize(72)|rotate(15)|cutout(8)|grayscale|rand_augment", (72, 72)),
        ("decode|resize(72) || mixup|to_float", (72, 72)),
    ],
)
def test_a_size_is_fixed_from_the_first_op_that_gives_every_image_the_same(
    text: str, size: tuple[int, int] | None
) -> None:
    assert fixed_size(parse(text).ops) == size


def test_a_crop_that_no_image_can_satisfy_is_refused_before_any_image() -> None:
    with pytest.raises(ValueError, match="random_crop: the crop 73x73 is larger than the image 72x72"):
        fixed_size(parse("decode|resize(72)|random_crop(73)").ops)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("decode|resize(8)|pad(8, padding_mode='reflect')", "pad: a border of 8 mirrors more than there is"),
        ("decode|resize(8)|gaussian_blur(17)", "gaussian_blur: a kernel of 17x17 mirrors more than there is"),
    ],
)
def test_an_op_that_mirrors_more_than_any_image_has_is_refused_before_any_image(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        fixed_size(parse(text).ops)


def test_the_output_size_follows_the_ops() -> None:
    assert output_size(parse("decode|resize_shorter(100)|central_crop((90, 80))").ops, 200, 300) == (90, 80)
    assert output_size(parse("decode|resize_shorter(100)").ops, 200, 300) == (100, 150)
    assert output_size(parse("decode|pad((1, 2, 3, 4))|flip_ud|pad(1)").ops, 200, 300) == (208, 306)


@pytest.fixture(scope="module")
def png() -> bytes:
    """The photo as a PNG, so that no decoder takes a short cut."""
    stream = io.BytesIO()
    Image.open(Path(__file__).parent / "golden" / "photo.jpg").save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "decode",
        "decode|random_crop(20)|flip_lr",
        "decode|random_crop(20) || flip_lr(1)",
        "decode(1)|random_crop(20) || rotate(45)",
        "decode || rand_augment|to_float|normalize((0.4, 0.5, 0.6), 0.25)",
    ],
)
def test_a_chain_runs_alike_on_bytes_a_path_a_pillow_image_and_an_array(text: str, png: bytes, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(png)
    chain = parse(text)
    channels = chain.decode.channels
    decoded = np.array(Image.open(path).convert("L" if channels == 1 else "RGB")).reshape(48, 64, channels)
    pixels = chain(png, key="a", seed=3, n=5)
    assert pixels.dtype == (np.float32 if chain.is_float else np.uint8)
    assert pixels.shape == (*output_size(chain.ops, 48, 64), channels)
    for image in (path, str(path), Image.open(path), Image.fromarray(decoded.squeeze()), decoded):
        np.testing.assert_array_equal(pixels, chain(image, key="a", seed=3, n=5))
    read_only = decoded.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(pixels, chain(read_only, key="a", seed=3, n=5))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "HSV", "YCbCr"])
def test_a_chain_converts_pillow_images_of_other_modes(mode: str, png: bytes) -> None:
    image = Image.open(io.BytesIO(png)).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(parse("decode")(image), expected)
    assert image.mode == mode


@pytest.mark.parametrize(
    ("text", "array", "message"),
    [
        ("decode", np.zeros((4, 5, 1), np.uint8), "an image is a uint8 array [H, W, 3], got uint8 [4, 5, 1]"),
        ("decode(1)", np.zeros((4, 5, 3), np.uint8), "an image is a uint8 array [H, W, 1], got uint8 [4, 5, 3]"),
        ("decode", np.zeros((4, 5), np.uint8), "an image is a uint8 array [H, W, 3], got uint8 [4, 5]"),
        ("decode", np.zeros((2, 4, 5, 3), np.uint8), "an image is a uint8 array [H, W, 3], got uint8 [2, 4, 5, 3]"),
        ("decode", np.zeros((4, 5, 3), np.float32), "an image is a uint8 array [H, W, 3], got float32 [4, 5, 3]"),
        ("decode", np.zeros((0, 5, 3), np.uint8), "an image is a uint8 array [H, W, 3], got uint8 [0, 5, 3]"),
        ("decode", np.zeros((4, 5, 4), np.uint8), "an image is a uint8 array [H, W, 3], got uint8 [4, 5, 4]"),
    ],
)
def test_an_array_that_is_no_image_of_the_chain_is_refused(text: str, array: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse(text)(array)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DecodeError):
        parse("decode")(b"not an image")
    with pytest.raises(FileNotFoundError):
        parse("decode")(tmp_path / "missing.jpg")


def test_an_image_that_an_op_cannot_take_is_refused(png: bytes) -> None:
    with pytest.raises(ValueError, match=r"^random_crop: the crop 49x64 is larger than the image 48x64: "):
        parse("decode|random_crop((49, 64))")(png)
    with pytest.raises(ValueError, match=r"^pad: a border of 48 mirrors more than there is of the image 48x64: "):
        parse("decode || pad(48, padding_mode='reflect')")(png)


@pytest.mark.parametrize("op", ["mixup", "cutmix", "to_float|mixup"])
def test_a_chain_that_mixes_a_batch_does_not_run_on_one_image(op: str, png: bytes) -> None:
    chain = parse(f"decode || {op}")
    message = (
        f"'decode || {op}' mixes the images of a batch, and cannot run on one: call its for_validation(), "
        "or leave the mixture out"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        chain(png)
    assert chain.for_validation()(png).shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("mean", "std"), [(0.5, 0.25), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), (0.0, (1.0, 2.0, 1e-6))]
)
def test_floats_are_levels_over_255_less_the_mean_over_the_deviation(mean: Any, std: Any) -> None:
    image = np.arange(256 * 3, dtype=np.int64).reshape(16, 16, 3).astype(np.uint8)
    chain = parse(f"decode || to_float|normalize({mean!r}, {std!r})")
    floats = chain(image)
    assert floats.dtype == np.float32
    scaled = image.astype(np.float32) * np.float32(1 / 255)
    expected = (scaled - np.array(mean, np.float32)) / np.array(std, np.float32)
    np.testing.assert_array_equal(floats, expected)
    in_full = (image / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(floats, in_full, rtol=1e-5, atol=2e-7 / np.min(std))
    plain = parse("decode || to_float")(image)
    np.testing.assert_array_equal(plain, scaled)
    assert (plain.min(), plain.max()) == (0, 1)


def test_two_normalizations_follow_each_other() -> None:
    image = np.full((2, 2, 3), 51, np.uint8)
    np.testing.assert_allclose(parse("decode || to_float|normalize(0.2, 2)|normalize(1, 4)")(image), -0.25, atol=1e-6)


class Draws(NamedTuple):
    n: int
    variants: int | None
    variant: int


@pytest.mark.parametrize("draws", [Draws(5, 3, 2), Draws(5, 5, 0), Draws(5, 8, 5), Draws(5, 1, 0), Draws(5, None, 5)])
def test_an_epoch_reads_the_variant_that_is_its_remainder_and_draws_the_suffix_anew(draws: Draws, png: bytes) -> None:
    chain = parse("decode|random_crop(30)|rotate(45) || random_crop(20)|affine(30, (0.2, 0.2))|to_float")
    hashes = [key_hash("a")]
    [before] = random_words(chain.ops[:3], 0, 7, hashes, draws.variant)
    [after] = random_words(chain.ops[3:5], 3, 7, hashes, draws.n)
    expected = apply(chain.ops[3:5], apply(chain.ops[:3], png, before), after) * np.float32(1 / 255)
    got = chain(png, key="a", seed=7, n=draws.n, variants=draws.variants)
    np.testing.assert_array_equal(got, expected)


def test_a_chain_runs_its_suffix_too(photo: bytes) -> None:
    assert parse("decode || resize(9)")(photo).shape == (9, 9, 3)


@pytest.mark.parametrize("change", [{"key": "b"}, {"seed": 1}, {"n": 1}])
def test_another_key_seed_or_epoch_draws_another_window(photo: bytes, change: dict[str, int | str]) -> None:
    chain = parse("decode|random_crop(20)")
    draw: dict[str, int | str] = {"key": "a", "seed": 0, "n": 0}
    assert not np.array_equal(chain(photo, **draw), chain(photo, **(draw | change)))  # type: ignore[arg-type]


def test_a_chain_draws_for_its_ops_from_position_0(photo: bytes) -> None:
    chain = parse("decode|random_crop(40) || random_resized_crop(20)")
    [words] = random_words(chain.ops, 0, 3, [key_hash("a")], 5)
    np.testing.assert_array_equal(chain(photo, key="a", seed=3, n=5), apply(chain.ops, photo, words))


def test_where_the_cut_stands_does_not_change_the_pixels(photo: bytes) -> None:
    chain = parse("decode|random_crop(40)|flip_lr|random_resized_crop(20)|contrast(0.5)")
    whole = chain(photo, key="a", seed=1, n=2)
    for cut in range(1, len(chain.ops)):
        np.testing.assert_array_equal(replace(chain, cut=cut)(photo, key="a", seed=1, n=2), whole)


# Ops of one's own -----------------------------------------------------------------------------------------------------

OWN = {"own": Own}


def test_ops_of_ones_own_are_read_from_the_table_that_is_passed_in() -> None:
    chain = parse("decode|own(3) || flip_lr", OWN)
    assert chain.ops[1] == Own(3)
    assert str(chain) == "decode|own(3) || flip_lr"
    assert str(chain.for_validation()) == "decode"
    with pytest.raises(UnknownOpError, match=r"^unknown op 'own' in 'decode\|own\(3\)': "):
        parse("decode|own(3)")


def test_an_unknown_op_may_be_nearest_to_one_of_ones_own() -> None:
    with pytest.raises(UnknownOpError, match=r"did you mean own\?$"):
        parse("decode|owns", OWN)
    with pytest.raises(UnknownOpError, match=r"there are decode, .*, cutmix, own$"):
        parse("decode|zzzzzzzzz", OWN)


def test_the_table_may_hold_the_built_in_ops_too() -> None:
    assert parse("decode|own|flip_lr", {**OPS, **OWN}) == parse("decode|own|flip_lr", OWN)


@pytest.mark.parametrize("name", ["decode", "flip_lr", "mixup"])
def test_a_built_in_name_is_taken(name: str) -> None:
    with pytest.raises(ValueError, match=f"^op '{name}' is built in: give yours another name$"):
        parse("decode", {**OWN, name: Own})


plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters() | st.sampled_from("|\\'\"()#\n\t"))
)
written = plain | st.lists(plain, max_size=3).map(tuple)


@relaxed
@given(size=written, more=written)
def test_any_argument_of_ones_own_op_survives_the_way_through_text(size: object, more: object) -> None:
    chain = Chain((Decode(), Own(size, more), FlipLr()), 2)
    again = parse(str(chain), OWN)
    assert again == chain
    assert str(again) == str(chain)
    assert again.fingerprint == chain.fingerprint


@pytest.mark.parametrize(
    ("op", "text"),
    [
        (Own((3, 3)), "own((3, 3))"),  # a pair of one number stays a pair: it need not mean what it means to resize
        (Own((3,)), "own((3,))"),
        (Own(()), "own(())"),
        (Own(4, (1, "a", None, True, 0.5)), "own(more=(1, 'a', None, True, 0.5))"),
        (Own("edge"), "own('edge')"),
        (Own("a|b"), r"own('a\x7cb')"),
        (Own(("|", "||")), r"own(('\x7c', '\x7c\x7c'))"),
        (Own("\\|"), r"own('\\\x7c')"),
        (Own("é\n'"), 'own("é\\n\'")'),
        (Own(4, None), "own"),
    ],
)
def test_the_arguments_of_ones_own_op_are_spelled_as_they_are(op: Op, text: str) -> None:
    chain = Chain((Decode(), op), 2)
    assert str(chain) == f"decode|{text}"
    assert parse(str(chain), OWN).ops[1] == op


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(3),
        np.float64(0.25),
        np.int64(3),
        [1, 2],
        {"a": 1},
        {1, 2},
        b"x",
        1j,
        ...,
        float("inf"),
        float("nan"),
        (1, float("inf")),
        ((1, 2), 3),
        (np.zeros(3),),
        Draws(1, 2, 3),
        Path("x"),
    ],
    ids=repr,
)
def test_an_argument_that_no_text_holds_is_refused(value: object) -> None:
    message = (
        f"own: more must be a number, a text, a tuple of them, True, False or None to be written down, got {value!r}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Chain((Decode(), Own(more=value)), 1)


@pytest.mark.parametrize(
    "argument", ["1e999", "-1e999", "1e308/1e-308", "1e999/1e999", "[1]", "{}", "b''", "1j", "..."]
)
def test_an_argument_that_could_not_be_read_again_is_refused_when_it_is_read(argument: str) -> None:
    with pytest.raises(ValueError, match=r"^own: size must be a number, a text, a tuple of them, True, False or None "):
        parse(f"decode|own({argument})", OWN)


@dataclass(frozen=True, kw_only=True)
class Named(Op):
    """An op whose arguments are given by name alone, and that works out another attribute."""

    level: int = 0
    twice: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "twice", 2 * self.level)

    def pixels(self, image: NDArray[np.uint8], draw: tuple[int, ...]) -> NDArray[np.uint8]:
        return image | np.uint8(self.twice)


def test_arguments_that_are_given_by_name_alone_are_spelled_so() -> None:
    chain = parse("decode|named(level=3)", {"named": Named})
    assert str(chain) == "decode|named(level=3)"
    assert parse(str(chain), {"named": Named}) == chain
    assert chain(np.zeros((2, 2, 3), np.uint8)).tolist() == [[[6] * 3] * 2] * 2
    with pytest.raises(ValueError, match=r"^'named\(3\)' does not fit named\("):
        parse("decode|named(3)", {"named": Named})


def test_a_wrong_op_of_ones_own_is_refused_without_a_text_too() -> None:
    @dataclass(frozen=True)
    class NoPixels(Op):
        pass

    with pytest.raises(ValueError, match=r"^no_pixels: class NoPixels has no method pixels\(image, draw\), "):
        Chain((Decode(), NoPixels()), 1)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_an_op_of_ones_own_draws_for_its_place_on_either_side_of_the_cut(cut: int) -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    chain = Chain((Decode(), FlipLr(1), Own()), cut)
    [[_, word, _]] = random_words([FlipLr(1), Own()], 1, 3, [key_hash("a")], 5)
    np.testing.assert_array_equal(chain(image, key="a", seed=3, n=5), image[:, ::-1] ^ np.uint8(word & 0xFF))


@dataclass(frozen=True)
class Half(Op):
    """An op that changes the size and the channels."""

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return height // 2, width // 2

    def output_channels(self, channels: int) -> int:
        return 1

    def pixels(self, image: NDArray[np.uint8], draw: tuple[int, ...]) -> NDArray[np.uint8]:
        return image[: image.shape[0] // 2 * 2 : 2, : image.shape[1] // 2 * 2 : 2, :1]


def test_the_size_and_channels_of_ones_own_op_count_for_the_ops_behind_it() -> None:
    half = {"half": Half}
    chain = parse("decode|resize((8, 6))|half|central_crop((4, 3))", half)
    assert fixed_size(chain.ops) == (4, 3)
    assert output_channels(chain.ops) == 1
    assert chain(np.zeros((9, 9, 3), np.uint8)).shape == (4, 3, 1)
    with pytest.raises(ValueError, match=r"^central_crop: the crop 5x3 is larger than the image 4x3: "):
        fixed_size(parse("decode|resize((8, 6))|half|central_crop((5, 3))", half).ops)
    with pytest.raises(ValueError, match=r"^cutout: fill "):
        parse("decode|half|cutout(2, (1, 2, 3))", half)


@dataclass(frozen=True)
class OddFlip(FlipLr):
    """Somebody's op that derives from one of ours."""

    def pixels(self, image: NDArray[np.uint8], draw: tuple[int, ...]) -> NDArray[np.uint8]:
        return image[:, ::-1] if draw[0] % 2 else image


@dataclass(frozen=True)
class OddCrop(RandomCrop):
    """Somebody's crop at the top left."""

    def pixels(self, image: NDArray[np.uint8], draw: tuple[int, ...]) -> NDArray[np.uint8]:
        return image[: self.target[0], : self.target[1]]


def test_an_op_that_derives_from_a_built_in_one_is_its_own(photo: bytes) -> None:
    chain = parse("decode|odd_flip", {"odd_flip": OddFlip})
    plain = parse("decode")(photo)
    turned = 0
    for n in range(20):
        [words] = random_words(chain.ops, 0, 0, [key_hash("a")], n)
        turned += words[0] % 2
        expected = plain[:, ::-1] if words[0] % 2 else plain
        np.testing.assert_array_equal(chain(photo, key="a", n=n), expected)
    assert 0 < turned < 20
    assert str(parse("decode|odd_crop(8)", {"odd_crop": OddCrop}).for_validation()) == "decode"


def test_an_op_of_ones_own_on_batches_is_refused() -> None:
    @dataclass(frozen=True)
    class Blend(ToFloat):
        def pixels(self, image: NDArray[np.uint8], draw: tuple[int, ...]) -> NDArray[np.uint8]:
            return image

    with pytest.raises(ValueError, match=r"^blend runs on batches: an op of your own runs on single images$"):
        parse("decode || blend", {"blend": Blend})


@pytest.mark.parametrize("given", [{"n": -1}, {"variants": 0}])
def test_a_draw_that_cannot_be_is_refused(photo: bytes, given: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="n must be at least 0 and variants at least 1"):
        parse("decode|flip_lr")(photo, **given)  # type: ignore[arg-type]
