"""What the ops accept, the sizes that they promise, and what a custom op must be."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from op_strategies import ON_IMAGES, every_op

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
    ops_of,
    parse,
)
from joulecache.transforms.chain import apply
from joulecache.transforms.ops import MAX_PIXELS, MAX_SIDE, OPS, describe, op_name
from joulecache.transforms.ops.arguments import plain

sides = st.integers(1, MAX_SIDE)

# Arguments


class Bounds(NamedTuple):
    """A numeric argument, or one number of it, with its allowed range: integers, or floats."""

    name: str
    make: Callable[[Any], Op]
    low: float
    high: float


MAYBE: list[Callable[[float], Op]] = [
    *(FlipLr, FlipUd, Autocontrast, Equalize, lambda p: Posterize(4, p), lambda p: Solarize(128, p)),
    lambda p: Sharpness(2, p),
]
SIZED: list[Callable[[Any], Op]] = [Resize, ResizeShorter, CentralCrop, RandomCrop, RandomResizedCrop, Cutout]
FILLED: list[Callable[[Any], Op]] = [
    *(lambda v: Rotate(1, fill=v), lambda v: Affine(1, fill=v), lambda v: Cutout(1, v)),
    *(lambda v: RandAugment(fill=v), lambda v: TrivialAugment(fill=v), lambda v: Pad(1, (0, v, 255))),
]

BOUNDS = [
    *(Bounds("probability", make, 0.0, 1.0) for make in MAYBE),
    *(Bounds("size", make, 1, MAX_SIDE) for make in SIZED),
    *(Bounds("fill", make, 0, 255) for make in FILLED),
    *(Bounds("delta", kind, 0.0, 1.0) for kind in (Brightness, Contrast, Saturation)),
    Bounds("shorter", lambda v: Decode(shorter=v), 1, MAX_SIDE),
    Bounds("max_pixels", lambda v: Decode(max_pixels=v), 1, MAX_PIXELS),
    Bounds("background", lambda v: Decode(background=v), 0, 255),
    Bounds("size", lambda v: Resize((1, v)), 1, MAX_SIDE),
    Bounds("scale", lambda v: RandomResizedCrop(8, scale=(v, 1)), 1e-6, 1.0),
    Bounds("ratio", lambda v: RandomResizedCrop(8, ratio=(v, 1e3)), 1e-3, 1e3),
    Bounds("padding", Pad, 0, MAX_SIDE),
    Bounds("padding", lambda v: Pad((1, 1, 1, v)), 0, MAX_SIDE),
    Bounds("degrees", Rotate, 0.0, 360.0),
    Bounds("degrees", lambda v: Rotate((-360, v)), -360.0, 360.0),
    Bounds("center", lambda v: Rotate(1, center=(v, 1)), -65535.0, 65535.0),
    Bounds("degrees", Affine, 0.0, 360.0),
    Bounds("translate", lambda v: Affine(1, (0, v)), 0.0, 1.0),
    Bounds("scale", lambda v: Affine(1, scale=(0.01, v)), 0.01, 100.0),
    Bounds("shear", lambda v: Affine(1, shear=v), 0.0, 89.0),
    Bounds("shear", lambda v: Affine(1, shear=(v, 89)), -89.0, 89.0),
    Bounds("shear", lambda v: Affine(1, shear=(0, 1, v, 89)), -89.0, 89.0),
    Bounds("center", lambda v: Affine(1, center=(1, v)), -65535.0, 65535.0),
    Bounds("delta", Hue, 0.0, 0.5),
    Bounds("brightness", ColorJitter, 0.0, 100.0),
    Bounds("contrast", lambda v: ColorJitter(0, (v, 100)), 0.0, 100.0),
    Bounds("saturation", lambda v: ColorJitter(0, 0, v), 0.0, 100.0),
    Bounds("hue", lambda v: ColorJitter(0, 0, 0, v), 0.0, 0.5),
    Bounds("hue", lambda v: ColorJitter(0, 0, 0, (v, 0.5)), -0.5, 0.5),
    Bounds("kernel_size", GaussianBlur, 1, 255),
    Bounds("kernel_size", lambda v: GaussianBlur((3, v)), 1, 255),
    Bounds("sigma", lambda v: GaussianBlur(3, v), 0.01, 255.0),
    Bounds("sigma", lambda v: GaussianBlur(3, (v, 255)), 0.01, 255.0),
    Bounds("mean", GaussianNoise, -1.0, 1.0),
    Bounds("sigma", lambda v: GaussianNoise(0, v), 0.0, 1.0),
    Bounds("bits", Posterize, 0, 8),
    Bounds("threshold", Solarize, 0.0, 256.0),
    Bounds("sharpness_factor", Sharpness, 0.0, 100.0),
    Bounds("num_ops", RandAugment, 1, 6),
    Bounds("magnitude", lambda v: RandAugment(magnitude=v, num_magnitude_bins=5), 0, 4),
    Bounds("num_magnitude_bins", lambda v: RandAugment(1, 0, v), 2, 1000),
    Bounds("num_magnitude_bins", TrivialAugment, 2, 1000),
    Bounds("mean", lambda v: Normalize(v, 1), -1e6, 1e6),
    Bounds("std", lambda v: Normalize(0, (1, 1, v)), 1e-6, 1e6),
    Bounds("alpha", Mixup, 1e-3, 1e3),
    Bounds("alpha", Cutmix, 1e-3, 1e3),
]

COLOUR = "a level or (red, green, blue)"
PAIR = "a pair (low, high)"
INTERPOLATED: list[Callable[[Any], Op]] = [
    *(lambda v: Rotate(1, v), lambda v: Affine(1, interpolation=v)),
    *(lambda v: RandAugment(interpolation=v), lambda v: TrivialAugment(interpolation=v)),
]
Refused = tuple[str, Callable[[Any], Op], str, tuple[object, ...]]
WORDS: list[Refused] = [
    ("channels", lambda v: Decode(v), "1, 3 or 4", (2, True, 3.0)),
    ("truncated", lambda v: Decode(truncated=v), "True or False", (1,)),
    ("background", lambda v: Decode(background=v), COLOUR, ((0, 0),)),
    ("size", Resize, "an integer or (height, width)", ((), (1, 2, 3))),
    ("size", Cutout, "an integer or (height, width)", ((1,),)),
    ("scale", lambda v: RandomResizedCrop(8, scale=v), PAIR, (0.5, (0.1, 0.2, 0.3))),
    ("padding", Pad, "an integer, (left and right, top and bottom) or (left, top, right, bottom)", ((), (1, 2, 3))),
    ("fill", lambda v: Pad(1, v), COLOUR, ((), (1, 2, 3, 4))),
    ("fit", lambda v: Resize(8, v), "one of 'stretch', 'crop', 'pad'", ("CROP", 0, None)),
    ("padding_mode", lambda v: Pad(1, 0, v), "one of 'constant', 'edge', 'reflect', 'symmetric'", ("EDGE", 0, None)),
    ("degrees", Rotate, PAIR, ((), (1, 2, 3))),
    *(
        ("interpolation", make, "one of 'nearest', 'bilinear'", ("bicubic", ["nearest"], 0, True))
        for make in INTERPOLATED
    ),
    ("center", lambda v: Rotate(1, center=v), "(x, y) in pixels", (5, (1, 2, 3), [1])),
    ("translate", lambda v: Affine(1, v), "a pair of fractions of (width, height)", (0.1, (1,), [0])),
    ("scale", lambda v: Affine(1, scale=v), PAIR, (1.5, [1])),
    (
        "shear",
        lambda v: Affine(1, shear=v),
        "a number, (low, high) or (x low, x high, y low, y high)",
        ((), (1, 2, 3), (1, 2, 3, 4, 5)),
    ),
    ("num_output_channels", Grayscale, "1 or 3", (0, True, 3.0, (1,))),
    ("kernel_size", GaussianBlur, "an odd number or (x, y)", ((), (3, 3, 3))),
    ("kernel_size", GaussianBlur, "odd", (2, (3, 4), (4, 3))),
    ("mean", lambda v: Normalize(v, 1), "a number or one per channel", ((0,),)),
    ("std", lambda v: Normalize(0, v), "a number or one per channel", ((1, 1),)),
]  # fmt: skip


@pytest.mark.parametrize("argument", BOUNDS, ids=[f"{type(a.make(a.high)).__name__}-{a.name}" for a in BOUNDS])
def test_a_number_is_accepted_from_end_to_end_and_refused_beyond(argument: Bounds) -> None:
    whole = isinstance(argument.low, int)
    for end, beyond in ((argument.low, -math.inf), (argument.high, math.inf)):
        made = argument.make(end)
        kept = getattr(made, argument.name)
        numbers = kept if isinstance(kept, tuple) else (-kept, kept)  # (-89, 89) is kept as 89
        assert end in numbers
        assert {type(number) for number in numbers} == {int if whole else float}
        outside = end + round(math.copysign(1, beyond)) if whole else math.nextafter(end, beyond)
        allowed = f"{op_name(type(made))}: {argument.name} must be {'an integer' if whole else 'a number'} from "
        for wrong in (outside, "1", True, math.nan, 10**400, 1j):
            with pytest.raises(ValueError, match=f"^{re.escape(allowed)}.* to .*, got {re.escape(repr(wrong))}$"):
                argument.make(wrong)


@pytest.mark.parametrize(("name", "make", "allowed", "wrong"), WORDS)
def test_an_argument_of_the_wrong_kind_is_refused_by_name(
    name: str, make: Callable[[Any], Op], allowed: str, wrong: tuple[object, ...]
) -> None:
    for value in wrong:
        with pytest.raises(
            ValueError, match=rf"^\w+: {name} must be {re.escape(allowed)}, got {re.escape(repr(plain(value)))}$"
        ):
            make(value)


def test_every_argument_of_every_op_is_checked() -> None:
    checked = {(type(a.make(a.high)), a.name) for a in BOUNDS}
    checked |= {(OPS[kind], name) for kind, name in map(refused_argument, WORDS)}
    assert checked == {(kind, field.name) for kind in OPS.values() for field in dataclasses.fields(kind)}  # type: ignore[arg-type]


def refused_argument(case: Refused) -> tuple[str, str]:
    """Return the op and the argument that the refusal of a wrong value names."""
    with pytest.raises(ValueError, match=" must be ") as refusal:
        case[1](case[3][0])
    op, _, rest = str(refusal.value).partition(": ")
    return op, rest.partition(" must be")[0]


@pytest.mark.parametrize(
    "make",
    [
        *(lambda: Rotate((15, -15)), lambda: Affine(1, scale=(1.1, 0.9)), lambda: Affine(1, shear=(2, 3, 5, 4))),
        *(lambda: ColorJitter((2, 1)), lambda: GaussianBlur(3, (2, 0.1)), lambda: RandomResizedCrop(8, (0.5, 0.4))),
    ],
)  # fmt: skip
def test_the_ends_of_a_range_are_in_order(make: Callable[[], Op]) -> None:
    with pytest.raises(ValueError, match=r"^\w+: \w+ must be \(low, high\) with low <= high, got "):
        make()


@pytest.mark.parametrize(
    ("given_as", "spelled"),
    [
        (Resize(72), Resize((72, 72))),
        (FlipLr(1), FlipLr(1.0)),
        (Brightness(-0.0), Brightness(0.0)),
        (Contrast(np.float64(0.25)), Contrast(0.25)),
        (Pad((3, 3, 3, 3)), Pad(3)),
        (Pad((3,)), Pad(3)),  # type: ignore[arg-type]
        (Pad((1, 2, 1, 2)), Pad((1, 2))),
        (Rotate((-15, 15)), Rotate(15)),
        (Rotate((0, 0)), Rotate(0.0)),
        (Rotate(1, center=(2, 3)), Rotate(1.0, center=(2.0, 3.0))),
        (Affine((-15, 15), (0, 1), (1, 1)), Affine(15.0, (0.0, 1.0), (1.0, 1.0))),
        (Affine(0, shear=(-5, 5, 0, 0)), Affine(0, shear=5.0)),
        (Affine(0, shear=(1, 5, 0, 0)), Affine(0, shear=(1.0, 5.0))),
        (Affine(0, shear=(0, 0, 0, 0)), Affine(0, shear=0.0)),
        (ColorJitter(1, (0, 2), 1, (-0.25, 0.25)), ColorJitter(1.0, (0.0, 2.0), 1.0, 0.25)),
        (GaussianBlur((5, 5), 1), GaussianBlur(5, 1.0)),
        (Normalize((0, 1, 0), 1), Normalize((0.0, 1.0, 0.0), 1.0)),
    ],
)
def test_arguments_of_one_meaning_have_one_spelling(given_as: Op, spelled: Op) -> None:
    assert repr(given_as) == repr(spelled)
    assert given_as == spelled
    assert hash(given_as) == hash(spelled)
    with pytest.raises(dataclasses.FrozenInstanceError):
        given_as.size = 73  # type: ignore[attr-defined]


def as_numpy(value: object) -> object:
    """Return a value as NumPy code has it: arrays, float64 and int64 scalars."""
    if isinstance(value, tuple):
        return np.array(value)
    return np.array([value])[0] if type(value) in (bool, int, float) else value


def as_lists(value: object) -> object:
    return [as_numpy(part) for part in value] if isinstance(value, tuple) else value


@pytest.mark.parametrize("kind", OPS.values())
@given(data=st.data())
def test_lists_and_numpy_values_are_tuples_and_numbers(kind: type[Op], data: st.DataObject) -> None:
    op = data.draw(every_op(MAX_SIDE)[kind])
    arguments = {field.name: getattr(op, field.name) for field in dataclasses.fields(op)}  # type: ignore[arg-type]
    for spelling in (as_numpy, as_lists):
        same = kind(**{name: spelling(value) for name, value in arguments.items()})
        assert repr(same) == repr(op)
        assert hash(same) == hash(op)


def test_lists_in_the_text_of_a_chain_and_in_custom_ops_are_tuples() -> None:
    listed = parse(
        "decode(background=[1, 2, 3])|resize([8, 9])|custom([1, 2])||to_float|normalize([0.5, 1/2, 0.5], 1)",
        {"custom": Custom},
    )
    written = parse(
        "decode(background=(1, 2, 3))|resize((8, 9))|custom((1, 2))||to_float|normalize((0.5, 0.5, 0.5), 1)",
        {"custom": Custom},
    )
    assert str(listed) == str(written)
    assert listed.fingerprint == written.fingerprint


@dataclasses.dataclass(frozen=True)
class Custom(Op):
    value: Any

    def __post_init__(self) -> None:
        assert type(self.value) is tuple

    def pixels(self, image: Any, drawn: Any) -> Any:
        return image


@pytest.mark.parametrize(
    ("padding", "sides"),
    [(3, (3, 3, 3, 3)), ((1, 2), (1, 2, 1, 2)), ((1, 2, 3, 4), (1, 2, 3, 4)), ((1, 2, 1, 3), (1, 2, 1, 3))],
)
def test_a_border_is_left_top_right_bottom(padding: Any, sides: tuple[int, ...]) -> None:
    assert Pad(padding).padding == padding
    assert Pad(padding).sides == sides


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


@pytest.mark.parametrize(("name", "kind"), OPS.items())
def test_an_op_is_described_by_a_call_with_its_defaults_and_one_line(name: str, kind: type[Op]) -> None:
    written, summary = describe(kind)
    assert written.partition("(")[0] == name
    assert all(field.name in written for field in dataclasses.fields(kind))  # type: ignore[arg-type]
    assert summary.endswith(".")
    assert "\n" not in summary


def test_a_description_shortens_long_numbers() -> None:
    assert describe(RandomResizedCrop)[0] == "random_resized_crop(size, scale=(0.08, 1), ratio=(0.75, 1.333))"
    assert describe(Pad)[0] == "pad(padding, fill=0, padding_mode='constant')"
    assert describe(ToFloat)[0] == "to_float"


# Sizes and channels


@given(height=sides, width=sides, shorter=sides)
def test_the_jpeg_scale_is_the_largest_that_leaves_the_shorter_side_long_enough(
    height: int, width: int, shorter: int
) -> None:
    fitting = [scale for scale in (1, 2, 4, 8) if min(height / scale, width / scale) >= shorter]
    assert Decode(shorter=shorter).jpeg_scale(height, width) == max(fitting, default=1)
    assert Decode().jpeg_scale(height, width) == 1


@given(height=sides, width=sides, size=st.integers(1, 4096))
def test_resize_shorter_keeps_the_aspect_as_torchvision_does(height: int, width: int, size: int) -> None:
    short, long = min(height, width), max(height, width)
    expected = int(size * long / short)  # torchvision's own formula
    assume(expected <= MAX_SIDE)
    got = ResizeShorter(size).output_size(height, width)
    assert got == ((size, expected) if height <= width else (expected, size))


def test_resize_shorter_refuses_thin_images() -> None:
    op = ResizeShorter(256)
    assert op.output_size(1, 255) == (256, 65_280)
    with pytest.raises(ValueError, match="longer side of 256x1 would have 65536 pixels, more than 65535: use resize"):
        op.output_size(256, 1)
    with pytest.raises(ValueError, match="the longer side of 1x60000 would have 15360000 pixels"):
        op.pixels(np.zeros((1, 60_000, 3), np.uint8), ())


@given(height=sides, width=sides, data=st.data())
def test_a_central_crop_rounds_half_to_even_as_python_does(height: int, width: int, data: st.DataObject) -> None:
    size = data.draw(st.tuples(st.integers(1, height), st.integers(1, width)))
    assert CentralCrop(size).corner(height, width) == (round((height - size[0]) / 2), round((width - size[1]) / 2))


@pytest.mark.parametrize("kind", [CentralCrop, RandomCrop])
@pytest.mark.parametrize("size", [(101, 200), (100, 201)])
def test_a_crop_larger_than_its_image_is_refused(kind: type[CentralCrop | RandomCrop], size: tuple[int, int]) -> None:
    op = kind(size)
    uses: list[Callable[[], object]] = [lambda: op.output_size(100, 200)]
    if isinstance(op, RandomCrop):
        uses += [lambda: op.draw((0, 0), 100, 200), lambda: op.draw_batch(np.zeros((2, 2), int), 100, 200)]
    else:
        uses += [lambda: op.corner(100, 200)]
    for use in uses:
        with pytest.raises(ValueError, match=rf"the crop {size[0]}x{size[1]} is larger than the image 100x200"):
            use()


@pytest.mark.parametrize(
    ("op", "fits"),
    [
        (Pad((11, 7), padding_mode="reflect"), True),
        (Pad((0, 0, 12, 0), padding_mode="reflect"), False),
        (Pad((12, 8), padding_mode="symmetric"), True),
        (Pad((0, 0, 0, 9), padding_mode="symmetric"), False),
        (Pad(99, padding_mode="constant"), True),
        (GaussianBlur((23, 15)), True),
        (GaussianBlur((25, 15)), False),
        (GaussianBlur((23, 17)), False),
    ],
)
def test_an_op_mirrors_at_most_what_there_is(op: Op, fits: bool) -> None:
    image = np.zeros((8, 12, 3), np.uint8)
    if fits:
        assert apply([op], image, [0] * op.random_words).shape[:2] == op.output_size(8, 12)
    else:
        for compute in (lambda: op.output_size(8, 12), lambda: apply([op], image, [0] * op.random_words)):
            with pytest.raises(ValueError, match=r"^(pad|gaussian_blur): .* an image of 8x12: "):
                compute()


@pytest.mark.parametrize(
    "op",
    [
        *(Pad(1, (1, 2, 3)), Rotate(1, fill=(1, 2, 3)), Affine(1, fill=(1, 2, 3)), Cutout(1, (1, 2, 3))),
        *(RandAugment(fill=(1, 2, 3)), TrivialAugment(fill=(1, 2, 3)), Normalize((1, 2, 3), 1), Normalize(0, (1, 2, 3))),
    ],
    ids=repr,
)  # fmt: skip
def test_a_colour_is_refused_on_grey(op: Op) -> None:
    assert op.output_channels(3) == 3
    with pytest.raises(ValueError, match=r"^\w+: \w+ \(1.*3.*\) has 3 numbers, the image 1 channel\(s\)$"):
        op.output_channels(1)


SMALL = every_op(12)


@pytest.mark.parametrize("kind", ON_IMAGES)
@settings(max_examples=25)
@given(data=st.data())
def test_output_size_and_channels_are_those_of_the_result(kind: type[Op], data: st.DataObject) -> None:
    op = data.draw(SMALL[kind])
    height, width, channels = data.draw(st.tuples(st.integers(6, 30), st.integers(6, 30), st.sampled_from([1, 3])))
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


def test_only_resizes_and_crops_have_a_target() -> None:
    fixed = [Resize, CentralCrop, RandomCrop, RandomResizedCrop]
    assert all(kind((30, 40)).target == (30, 40) for kind in fixed)
    assert [kind for kind in ON_IMAGES if kind.target is not Op.target] == fixed


# Randomness


def test_ops_are_random_where_two_draws_can_differ() -> None:
    steady = [Decode(), Resize(8), ResizeShorter(8), CentralCrop(8), Pad(3), Grayscale(), ToFloat(), Normalize(0, 1)]
    varied = [
        *(RandomCrop(8), RandomResizedCrop(8), Rotate(15), Affine(15), Cutout(8), Brightness(0.1), Contrast(0.1)),
        *(Saturation(0.1), Hue(0.1), ColorJitter(0.1), GaussianBlur(3), GaussianNoise(), RandAugment(), TrivialAugment()),
        *(Mixup(), Cutmix(), *(maybe(0.5) for maybe in MAYBE)),
    ]  # fmt: skip
    assert {type(op) for op in (*steady, *varied)} == set(OPS.values())
    assert all(op.random_words == 0 and not op.random and op.draw([], 16, 16) == () for op in steady)
    assert all(op.random_words > 0 and op.random for op in varied)


@pytest.mark.parametrize("made", MAYBE)
def test_an_op_that_is_applied_always_or_never_is_not_random(made: Callable[[float], Op]) -> None:
    assert [made(p).random for p in (0, 1e-9, 0.5, 1 - 1e-9, 1)] == [False, True, True, True, False]
    assert {made(p).random_words for p in (0, 0.5, 1)} == {1}  # or the draws of the ops after it would change with it


def test_a_blur_of_one_width_is_not_random() -> None:
    for sigma in (1.5, (1.5, 1.5)):
        assert not GaussianBlur(3, sigma).random
        assert GaussianBlur(3, sigma).random_words == 1


# Custom ops

HEAD = "from dataclasses import dataclass\nfrom joulecache.transforms import Op, Resize\n"
PIXELS = "    def pixels(self, image, drawn): return image\n"
INVERT = f"@dataclass(frozen=True)\nclass Invert(Op):\n    level: int = 255\n{PIXELS}"


def module(source: str) -> ModuleType:
    made = ModuleType("my_ops")
    exec(compile(HEAD + source, "my_ops.py", "exec", dont_inherit=True), made.__dict__)
    return made


def test_the_ops_of_a_module_are_those_that_it_defines_by_their_names() -> None:
    source = f"{INVERT}@dataclass(frozen=True)\nclass DropBlue(Op):\n{PIXELS}class _Base(Op): pass\nclass Plain: pass\n"
    two = module(source)
    found = ops_of(two)
    assert found == {"invert": two.Invert, "drop_blue": two.DropBlue}  # and not Resize, which it imports
    assert str(parse("decode|invert(7)|drop_blue", found)) == "decode|invert(7)|drop_blue"


@pytest.mark.parametrize("source", ["", "class _Base(Op): pass", "class Plain: pass", "x = Op"])
def test_a_module_without_an_op_is_refused(source: str) -> None:
    with pytest.raises(
        ValueError, match=r"^module my_ops defines no op: write a frozen dataclass that derives from Op$"
    ):
        ops_of(module(source))


FROZEN = "invert: an op is a frozen dataclass: put @dataclass(frozen=True) before class Invert"
FAULTY = [
    (f"class Invert(Op):\n{PIXELS}", FROZEN),
    (f"@dataclass\nclass Invert(Op):\n{PIXELS}", FROZEN),
    (f"@dataclass(frozen=True)\nclass _Base(Op):\n{PIXELS}class Invert(_Base):\n    pass\n", FROZEN),
    ("@dataclass(frozen=True)\nclass Invert(Op):\n    pass\n", "invert: class Invert must define pixels(image, drawn), "),
    *(
        (f"@dataclass(frozen=True)\nclass Invert(Op):\n    {name} = {value}\n{PIXELS}", f"invert: {allowed}, got {value}")
        for name, allowed, wrong in [
            ("random_words", "random_words must be an integer from 0 to 1024", ("-1", "1025", "True", "1.0")),
            ("version", "version must be an integer from 1 to 2147483648", ("0", "2147483649", "True", "None")),
        ]
        for value in wrong
    ),
]  # fmt: skip


@pytest.mark.parametrize(("source", "message"), FAULTY, ids=[f"{n} {message}" for n, (_, message) in enumerate(FAULTY)])
def test_a_faulty_custom_op_is_refused_wherever_it_comes_in(source: str, message: str) -> None:
    made = module(source)
    uses: list[Callable[[], object]] = [
        *(lambda: ops_of(made), lambda: parse("decode|invert", {"invert": made.Invert})),
        lambda: Chain((Decode(), made.Invert()), 1),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            use()


@pytest.mark.parametrize(("words", "version"), [(0, 1), (1024, 2**31)])
@pytest.mark.parametrize("name", ["random_words", "words"])  # the second is its former name
def test_the_ends_of_words_and_version_are_accepted(name: str, words: int, version: int) -> None:
    source = f"@dataclass(frozen=True)\nclass Invert(Op):\n    {name} = {words}\n    version = {version}\n{PIXELS}"
    [op] = parse("decode|invert", ops_of(module(source))).ops[1:]
    assert (op.random_words, op.version, op.random) == (words, version, words > 0)


def test_a_custom_op_is_listed_under_the_name_of_its_class() -> None:
    with pytest.raises(ValueError, match=r"^op 'negative' must be listed as 'invert', the name of its class Invert$"):
        parse("decode|negative", {"negative": module(INVERT).Invert})


@pytest.mark.parametrize("thing", [3, "Invert", None, dict])
def test_what_is_no_op_is_refused_as_a_custom_one(thing: Any) -> None:
    with pytest.raises(ValueError, match=rf"^op 'invert' must be a class that derives from Op, got {thing!r}$"):
        parse("decode", {"invert": thing})


def test_an_op_that_computes_no_pixels_says_so() -> None:
    with pytest.raises(NotImplementedError):
        Op().pixels(np.zeros((1, 1, 3), np.uint8), ())


def test_what_a_class_overrides_does_not_go_with_what_it_inherits() -> None:
    class Words(RandomCrop):
        def pixels(self, image: Any, drawn: tuple[int, ...]) -> Any:
            return image

    class Corner(RandomCrop):
        def draw(self, words: Any, height: int, width: int) -> tuple[int, ...]:
            return 0, 0

    class Below(Corner):
        def pixels(self, image: Any, drawn: tuple[int, ...]) -> Any:
            return image

    table = np.array([[5, 2**31]], np.int64)
    assert Words(8).draw_batch(table, 20, 20) == [Words(8).draw([5, 2**31], 20, 20)] == [(5, 2**31)]
    assert Words(8).for_validation() == ()
    for kind in (Corner, Below):  # `Below` inherits its draw from a custom op, which need not be reset
        assert kind(8).draw_batch(table, 20, 20) == [kind(8).draw([5, 2**31], 20, 20)] == [(0, 0)]
    assert Corner(8).for_validation() == (CentralCrop(8),)
