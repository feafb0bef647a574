"""What the ops accept, and the sizes that they promise."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulecache.transforms import (
    Brightness,
    CentralCrop,
    Contrast,
    Decode,
    FlipLr,
    Op,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    ResizeShorter,
    randomness,
    reference_kernels,
)
from joulecache.transforms.ops import LARGEST_PIXELS, LARGEST_SIDE, OPS, op_name

relaxed = settings(deadline=None)
sides = st.integers(1, LARGEST_SIDE)

REFUSED: list[tuple[Callable[[Any], Op], Any, str]] = [
    (Resize, 0, "resize: size must be a whole number from 1 to 65535, got 0"),
    (Resize, 65_536, "resize: size must be a whole number from 1 to 65535, got 65536"),
    (Resize, True, "resize: size must be a whole number from 1 to 65535, got True"),
    (Resize, 72.0, "resize: size must be a whole number from 1 to 65535, got 72.0"),
    (Resize, "72", "resize: size must be a whole number from 1 to 65535, got '72'"),
    (Resize, None, "resize: size must be a whole number from 1 to 65535, got None"),
    (Resize, (72, False), "resize: size must be a whole number from 1 to 65535, got False"),
    (Resize, (72, 0), "resize: size must be a whole number from 1 to 65535, got 0"),
    (Resize, (1, 2, 3), "resize: size must be a whole number or (height, width), got (1, 2, 3)"),
    (Resize, (), "resize: size must be a whole number or (height, width), got ()"),
    (CentralCrop, -1, "central_crop: size must be a whole number from 1 to 65535, got -1"),
    (RandomCrop, 1.5, "random_crop: size must be a whole number from 1 to 65535, got 1.5"),
    (RandomResizedCrop, 0, "random_resized_crop: size must be a whole number from 1 to 65535, got 0"),
    (ResizeShorter, (72, 72), "resize_shorter: size must be a whole number from 1 to 65535, got (72, 72)"),
    (ResizeShorter, True, "resize_shorter: size must be a whole number from 1 to 65535, got True"),
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
    (lambda s: Decode(shorter=s), 0, "decode: shorter must be a whole number from 1 to 65535, got 0"),
    (lambda s: Decode(shorter=s), False, "decode: shorter must be a whole number from 1 to 65535, got False"),
    (lambda t: Decode(truncated=t), 1, "decode: truncated must be True or False, got 1"),
    (lambda m: Decode(max_pixels=m), 0, f"decode: max_pixels must be a whole number from 1 to {LARGEST_PIXELS}, got 0"),
    (
        lambda m: Decode(max_pixels=m),
        LARGEST_PIXELS + 1,
        f"decode: max_pixels must be a whole number from 1 to {LARGEST_PIXELS}, got {LARGEST_PIXELS + 1}",
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
        "random_resized_crop: scale must not fall, got (0.5, 0.4)",
    ),
    (
        lambda r: RandomResizedCrop(64, ratio=r),
        (2, 1),
        "random_resized_crop: ratio must not fall, got (2, 1)",
    ),
    (
        lambda r: RandomResizedCrop(64, ratio=r),
        (0.5, 1001),
        "random_resized_crop: ratio must be a number from 0.001 to 1000, got 1001",
    ),
]


@pytest.mark.parametrize(("make", "value", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_an_argument_out_of_its_range_or_type_is_refused_by_name(
    make: Callable[[Any], Op], value: object, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(value)


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
    ("whole", "real"),
    [
        (FlipLr(1), FlipLr(1.0)),
        (Brightness(0), Brightness(0.0)),
        (Contrast(np.float64(0.25)), Contrast(0.25)),
        (RandomResizedCrop(8, (1, 1), (1, 2)), RandomResizedCrop(8, (1.0, 1.0), (1.0, 2.0))),
    ],
)
def test_numbers_of_one_value_make_one_spelling(whole: Op, real: Op) -> None:
    assert repr(whole) == repr(real)


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
        "flip_lr",
        "brightness",
        "contrast",
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
    with pytest.raises(ValueError, match=rf"the crop {size[0]}x{size[1]} is larger than the image 100x200: resize"):
        kind(size).output_size(100, 200)


small = st.integers(1, 40)
crops = st.tuples(st.integers(1, 8), st.integers(1, 8))
pictures = st.one_of(
    st.builds(Resize, st.tuples(small, small)),
    st.builds(ResizeShorter, st.integers(1, 20)),
    st.builds(CentralCrop, crops),
    st.builds(RandomCrop, crops),
    st.builds(RandomResizedCrop, st.tuples(small, small)),
    st.builds(FlipLr),
    st.builds(Brightness, st.floats(0, 1)),
    st.builds(Contrast, st.floats(0, 1)),
)


@relaxed
@given(op=pictures, height=st.integers(8, 40), width=st.integers(8, 40), channels=st.sampled_from([1, 3]))
def test_output_size_is_the_size_that_the_kernel_gives(op: Op, height: int, width: int, channels: int) -> None:
    image = np.zeros((height, width, channels), np.uint8)
    words = randomness.random_words([op], 1, 0, [5], 0)[0]
    assert reference_kernels.apply([op], image, words).shape == (*op.output_size(height, width), channels)


@pytest.mark.parametrize("op", [Resize(8), ResizeShorter(8), CentralCrop(8), Decode()])
def test_an_op_that_is_the_same_every_time_takes_no_random_words(op: Op) -> None:
    assert op.words == 0
    assert randomness.parameters(op, [], 16, 16) == ()
