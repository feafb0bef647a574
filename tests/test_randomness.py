"""Draws: the published generator, functions of their inputs alone, with the distributions that the ops promise."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from op_strategies import Own, every_op, ranges
from scipy import stats

from joulecache.transforms import (
    Affine,
    Brightness,
    ColorJitter,
    Contrast,
    Cutmix,
    Cutout,
    GaussianBlur,
    GaussianNoise,
    Hue,
    Mixup,
    Op,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Rotate,
    Saturation,
    TrivialAugment,
    parse,
)
from joulecache.transforms.ops import AUGMENTATIONS, MAX_SIDE, SIGNED, RandomApply
from joulecache.transforms.randomness import key_hash, log_uniform, philox, random_words, word_table

LARGEST = 2**32 - 1
WORDS = st.integers(0, LARGEST)
TRAIN = parse(
    "decode|random_resized_crop(64)|random_crop(32)|flip_lr|color_jitter(0.4)|rand_augment "
    "|| brightness(0.4)|resize(9)|affine(9)|trivial_augment|gaussian_noise|contrast(0.4)|cutmix"
).ops


@dataclass(frozen=True)
class Greedy(Own):
    """An op that uses as many words as there are at one position."""

    random_words: ClassVar[int] = 1024


# The generator


def vector(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(
    ("counter", "key", "drawn"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
    ids=["zeros", "ones", "digits of pi"],
)
def test_the_generator_gives_the_known_answers_of_random123(counter: str, key: str, drawn: str) -> None:
    words = [np.array([word], np.uint64) for word in vector(counter)]
    low, high = vector(key)
    assert philox((low, high), words).tolist() == [vector(drawn)]


def test_the_counter_is_the_key_hash_then_n_then_position_and_block() -> None:
    hashed, n, seed, position = 0x0123456789ABCDEF, 7, 0xFEDCBA9876543210, 5
    counter = [np.array([word], np.uint64) for word in (0x89ABCDEF, 0x01234567, n, position << 8)]
    expected = philox((0x76543210, 0xFEDCBA98), counter)[0, :2].tolist()
    assert random_words([RandomCrop(8)], position, seed, [hashed], n) == [expected]


@pytest.mark.parametrize(
    ("key", "hashed"),
    [("", 0xB4B2797457A0A6E4), ("cat/1.jpg", 0xD200E9BDAF8D0132), ("käfer/ü.png", 0x8317B8C4FA0E06B0)],
)
def test_the_hash_of_a_key_is_that_of_caches_built_before(key: str, hashed: int) -> None:
    assert key_hash(key) == hashed


@settings(max_examples=50)
@given(
    hashes=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20),
    seed=st.integers(0, 2**64 - 1),
    data=st.data(),
)
def test_a_batch_is_its_records_one_by_one_in_any_order(hashes: list[int], seed: int, data: st.DataObject) -> None:
    ns = data.draw(st.lists(st.integers(0, LARGEST), min_size=len(hashes), max_size=len(hashes)))
    table = word_table(TRAIN, 0, seed, hashes, ns)
    assert table.dtype == np.int64
    assert 0 <= table.min() <= table.max() <= LARGEST
    batch = random_words(TRAIN, 0, seed, hashes, ns)
    assert table.tolist() == batch
    alone = [random_words(TRAIN, 0, seed, [hashed], n)[0] for hashed, n in zip(hashes, ns, strict=True)]
    assert batch == alone
    assert random_words(TRAIN, 0, seed, hashes[::-1], ns[::-1]) == batch[::-1]


def test_an_op_uses_as_many_words_as_it_declares_whatever_is_around_it() -> None:
    [words] = random_words(TRAIN, 0, 3, [9], 5)
    assert len(words) == len(set(words)) == sum(op.random_words for op in TRAIN)
    alone = [random_words([op], position, 3, [9], 5)[0] for position, op in enumerate(TRAIN)]
    assert words == list(itertools.chain.from_iterable(alone))
    assert random_words([Resize(8)], 1, 0, [1, 2], 0) == random_words([], 0, 0, [1, 2], 0) == [[], []]
    assert word_table(TRAIN, 0, 3, [], 0).shape == (0, len(words))


def test_the_most_words_that_an_op_can_use_do_not_reach_into_the_next_position() -> None:
    [words] = random_words([Own(), Greedy(), Greedy(), Own()], 6, 1, [2], 3)
    assert len(words) == 3 + 1024 + 1024 + 3
    assert len(set(words)) >= len(words) - 1  # two of 2,054 words are alike once in 2,000 times
    counter = [np.array([word], np.uint64) for word in (2, 0, 3, 7 << 8 | 255)]
    assert words[3 + 1020 : 3 + 1024] == philox((1, 0), counter)[0].tolist()


@given(low=st.floats(1e-3, 1e3), spread=st.floats(1, 1e6), word=WORDS)
def test_the_log_uniform_number_is_that_of_exp(low: float, spread: float, word: int) -> None:
    high = low * spread
    expected = math.exp(math.log(low) + math.log(high / low) * (word / 2**32))
    assert log_uniform(word, low, high) == pytest.approx(expected, rel=1e-9)


# What an op makes of its words, by an independent formula --------------------------------------------------------------


def units(low: float, high: float) -> tuple[int, int]:
    return round(low * 65536), round(high * 65536)


def around_1(spread: float | tuple[float, float]) -> tuple[int, int]:
    return units(*spread) if isinstance(spread, tuple) else units(max(0.0, 1 - spread), 1 + spread)


def around_0(spread: float | tuple[float, float]) -> tuple[int, int]:
    return units(*spread) if isinstance(spread, tuple) else units(-spread, spread)


def spans(op: Op, height: int, width: int) -> list[tuple[int, int]]:
    """Return the first and the last value of each word of an op, for ops that make one value of each word."""
    match op:
        case RandomCrop(size=(tall, wide)):
            return [(0, height - tall), (0, width - wide)]
        case Cutout(size=(tall, wide)):
            return [(-(tall // 2), height - 1 - tall // 2), (-(wide // 2), width - 1 - wide // 2)]
        case Brightness(delta) | Contrast(delta) | Saturation(delta):
            half = round(delta * 65536)
            return [(65536 - half, 65536 + half)]
        case Hue(delta):
            return [around_0(delta)]
        case ColorJitter(brightness, contrast, saturation, hue):
            return [(0, 23), around_1(brightness), around_1(contrast), around_1(saturation), around_0(hue)]
        case Rotate(degrees):
            return [around_0(degrees)]
        case Affine(degrees, translate, scale, shear):
            right, down = (
                round(share * side) for share, side in zip(translate or (0, 0), (width, height), strict=True)
            )
            turn, size = around_0(degrees), units(*(scale or (1, 1)))
            along_x, along_y = (0, 0), (0, 0)
            if isinstance(shear, tuple) and len(shear) == 4:
                along_x, along_y = units(*shear[:2]), units(*shear[2:])
            elif shear is not None:
                along_x = around_0(shear)
            return [turn, (-right, right), (-down, down), size, along_x, along_y]
        case GaussianBlur(_, sigma):
            return [units(*sigma) if isinstance(sigma, tuple) else units(sigma, sigma)]
        case GaussianNoise() | Own():
            return [(0, LARGEST)] * op.random_words
    raise AssertionError(op)


EVERY: dict[type[Op], st.SearchStrategy[Op]] = {**every_op(8), Own: st.just(Own())}
DRAWING = [kind for kind in EVERY if kind.random_words]
SPANNED = [
    *(RandomCrop, Cutout, Brightness, Contrast, Saturation, Hue, ColorJitter, Rotate, Affine, GaussianBlur),
    *(GaussianNoise, Own),
]  # fmt: skip
SOMETIMES = [kind for kind in DRAWING if issubclass(kind, RandomApply)]
CHECKED_BELOW = [RandomResizedCrop, RandAugment, TrivialAugment, Mixup, Cutmix]
lengths = st.integers(8, 4000)
corners = WORDS | st.sampled_from([0, LARGEST, 2**31, 2**31 - 1])


def test_every_op_that_draws_is_among_these() -> None:
    assert {*SPANNED, *SOMETIMES, *CHECKED_BELOW} == set(DRAWING)


@pytest.mark.parametrize("kind", SPANNED)
@settings(max_examples=50)
@given(height=lengths, width=lengths, data=st.data())
def test_every_word_is_multiplied_into_its_range_and_rounded_down(
    kind: type[Op], height: int, width: int, data: st.DataObject
) -> None:
    op = data.draw(EVERY[kind])
    words = data.draw(st.lists(corners, min_size=op.random_words, max_size=op.random_words))
    ends = spans(op, height, width)
    assert len(ends) == op.random_words
    assert op.draw(words, height, width) == tuple(
        first + word * (last - first + 1) // 2**32 for word, (first, last) in zip(words, ends, strict=True)
    )
    assert op.draw([0] * op.random_words, height, width) == tuple(first for first, _ in ends)
    assert op.draw([LARGEST] * op.random_words, height, width) == tuple(last for _, last in ends)


@pytest.mark.parametrize("kind", SOMETIMES)
@settings(max_examples=30)
@given(data=st.data())
def test_an_op_with_a_probability_is_applied_to_that_share_of_the_words(kind: type[Op], data: st.DataObject) -> None:
    op = data.draw(EVERY[kind])
    assert isinstance(op, RandomApply)
    applied = round(op.probability * 2**32)
    for word in {0, 2**31, max(applied - 1, 0), min(applied, LARGEST), LARGEST}:
        assert op.draw([word], 5, 7) == (int(word < applied),)


@pytest.mark.parametrize("kind", DRAWING)
@settings(max_examples=30)
@given(height=st.integers(1, 4000), width=st.integers(1, 4000), seed=WORDS, data=st.data())
def test_the_draws_of_a_batch_are_those_of_its_records(
    kind: type[Op], height: int, width: int, seed: int, data: st.DataObject
) -> None:
    op = data.draw(EVERY[kind])
    assume(kind is not RandomCrop or min(height, width) >= 8)
    odd = data.draw(st.lists(st.lists(corners, min_size=op.random_words, max_size=op.random_words), max_size=3))
    records = [*odd, *random_words([op], 1, seed, range(40), 2)]
    batch = op.draw_batch(np.array(records, np.int64), height, width)
    assert batch == [op.draw(words, height, width) for words in records]
    assert all(type(drawn) is tuple and all(type(number) is int for number in drawn) for drawn in batch)
    assert op.draw_batch(np.empty((0, op.random_words), np.int64), height, width) == []


# Random resized crops -------------------------------------------------------------------------------------------------


@given(
    height=st.integers(1, 2000),
    width=st.integers(1, 2000),
    scale=ranges(1e-3, 1),
    ratio=ranges(0.05, 20),
    words=st.lists(WORDS, min_size=22, max_size=22),
)
@example(height=1, width=1, scale=(1e-3, 1.0), ratio=(0.75, 1.33), words=[LARGEST] * 22)
@example(height=10, width=1000, scale=(1.0, 1.0), ratio=(0.75, 1.33), words=[0] * 22)
def test_a_resized_window_lies_inside_and_has_the_area_and_aspect_that_were_asked_for(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], words: list[int]
) -> None:
    top, left, tall, wide = RandomResizedCrop(8, scale, ratio).draw(words, height, width)
    assert 0 <= top <= top + tall <= height
    assert 0 <= left <= left + wide <= width
    assert tall >= 1
    assert wide >= 1
    if tall > 1 and wide > 1:  # sides are rounded to whole pixels
        assert (wide + 0.5) / (tall - 0.5) >= ratio[0]
        assert (wide - 0.5) / (tall + 0.5) <= ratio[1]
    if tall < height and wide < width:  # not the fallback
        assert (wide + 0.5) * (tall + 0.5) >= scale[0] * height * width
        assert (wide - 0.5) * (tall - 0.5) <= scale[1] * height * width


@pytest.mark.parametrize(
    ("height", "width", "window"),
    [(10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10)), (10, 11, (0, 0, 10, 11))],
)
def test_after_ten_misses_the_window_is_central_with_the_nearest_aspect(
    height: int, width: int, window: tuple[int, ...]
) -> None:
    # The whole area in an aspect of 3/4 or 4/3 fits into none of these images.
    op = RandomResizedCrop(8, scale=(1, 1))
    for word in (0, LARGEST):
        assert op.draw([word] * 20 + [5, 5], height, width) == window


def test_a_try_that_misses_is_followed_by_the_next() -> None:
    op = RandomResizedCrop(8, scale=(0.01, 1), ratio=(1, 1))
    tries = [[LARGEST, 0] * misses + [0, 0] * (10 - misses) + [0, LARGEST] for misses in range(11)]
    windows = [(0, 380, 20, 20)] * 10 + [(0, 150, 100, 100)]
    assert [op.draw(words, 100, 400) for words in tries] == windows
    assert op.draw_batch(np.array(tries, np.int64), 100, 400) == windows
    assert op.draw_batch(np.array(tries[::-1], np.int64), 100, 400) == windows[::-1]


@settings(max_examples=50)
@given(height=st.integers(1, 3000), width=st.integers(1, 3000), scale=ranges(1e-6, 1), ratio=ranges(1e-3, 1e3))
@example(height=1000, width=10, scale=(0.2, 1.0), ratio=(0.1, 10.0))
@example(height=1, width=1, scale=(1e-6, 1e-6), ratio=(1e-3, 1e3))
@example(height=97, width=101, scale=(0.9, 1.0), ratio=(0.5, 2.0))
@example(height=3000, width=1, scale=(0.08, 1.0), ratio=(0.75, 1.33))
# In images as large as can be, a number that is off by one in a hundred million moves some side of these windows.
@example(height=MAX_SIDE, width=MAX_SIDE, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
@example(height=MAX_SIDE, width=MAX_SIDE, scale=(0.08, 1.0), ratio=(1.0, 7.0))
def test_resized_windows_of_a_batch_are_those_of_its_records(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    op = RandomResizedCrop(8, scale, ratio)
    table = word_table([op], 1, 5, range(4000 if height == MAX_SIDE else 40), 2)
    assert op.draw_batch(table, height, width) == [op.draw(words, height, width) for words in table.tolist()]


# Distributions --------------------------------------------------------------------------------------------------------

CRITICAL = {1: 10.83, 9: 27.88, 13: 34.53, 15: 37.70, 30: 59.70}
"""The chi-square that chance exceeds once in 1,000 times, by degrees of freedom. The draws are fixed, so chance has no say."""


def chi_square(values: Sequence[object], cells: Sequence[object]) -> float:
    counts = Counter(values)
    assert set(counts) <= set(cells)
    expected = len(values) / len(cells)
    return sum((counts[cell] - expected) ** 2 / expected for cell in cells)


def table_of(op: Op) -> NDArray[np.int64]:
    return word_table([op], 3, 11, [key_hash(f"photo-{record}.jpg") for record in range(20_000)], 4)


def draws(op: Op, height: int = 100, width: int = 100) -> list[tuple[int, ...]]:
    return op.draw_batch(table_of(op), height, width)


def test_words_are_uniform() -> None:
    """So are all values that are multiplied out of them: see above."""
    for column in table_of(Own()).T:
        assert chi_square((column * 10 >> 32).tolist(), range(10)) < CRITICAL[9]


def test_the_area_of_random_resized_crop_is_uniform() -> None:
    # With a fixed aspect and an area that always fits, no try is ever repeated.
    windows = draws(RandomResizedCrop(8, scale=(0.1, 0.9), ratio=(1, 1)), 1000, 1000)
    tenths = [min(int((height * width / 1e6 - 0.1) / 0.08), 9) for _, _, height, width in windows]
    assert chi_square(tenths, range(10)) < CRITICAL[9]


def test_the_aspect_of_random_resized_crop_is_uniform_in_the_logarithm() -> None:
    windows = draws(RandomResizedCrop(8, scale=(0.2, 0.2), ratio=(0.5, 2)), 4000, 4000)
    tenths = [int((math.log2(width / height) + 1) * 5) for _, _, height, width in windows]
    assert chi_square([min(max(tenth, 0), 9) for tenth in tenths], range(10)) < CRITICAL[9]


# Mixtures -------------------------------------------------------------------------------------------------------------


@given(alpha=st.sampled_from([0.01, 0.2, 1, 2, 1000]) | st.floats(0.05, 100), one=corners, other=corners)
def test_the_share_of_an_image_is_the_quantile_of_beta_at_its_word(alpha: float, one: int, other: int) -> None:
    low, high = (Mixup(alpha).draw([word], 1, 1)[0] for word in sorted((one, other)))
    exact = stats.beta.ppf((min(one, other) + 0.5) / 2**32, alpha, alpha)
    assert low / 65536 == pytest.approx(exact, abs=0.500001 / 65536)
    assert 0 <= low <= high <= 65536
    mirrored = Mixup(alpha).draw([LARGEST - one], 1, 1)[0]
    assert mirrored == pytest.approx(65536 - Mixup(alpha).draw([one], 1, 1)[0], abs=1)


@given(
    height=st.integers(1, 4000),
    width=st.integers(1, 4000),
    alpha=st.just(1.0) | st.floats(0.01, 100),
    words=st.tuples(corners, corners, corners),
)
def test_the_window_of_cutmix_is_torchvisions_and_lies_inside(
    height: int, width: int, alpha: float, words: tuple[int, int, int]
) -> None:
    top, left, bottom, right = Cutmix(alpha).draw(words, height, width)
    assert 0 <= top <= bottom <= height
    assert 0 <= left <= right <= width
    share = Mixup(alpha).draw(words[:1], height, width)[0] / 65536
    down, across = (math.floor(math.sqrt(1 - share) / 2 * side) for side in (height, width))
    middle_y, middle_x = words[1] * height // 2**32, words[2] * width // 2**32
    rows = [y for y in range(height) if middle_y - down <= y < middle_y + down]
    columns = [x for x in range(width) if middle_x - across <= x < middle_x + across]
    assert (list(range(top, bottom)), list(range(left, right))) == (rows, columns)


# Policies -------------------------------------------------------------------------------------------------------------

TORCHVISION = [
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
]  # fmt: skip
"""The order of its `_AUGMENTATION_SPACE`."""
WITHOUT_A_SIGN = {"Identity", "Posterize", "Solarize", "AutoContrast", "Equalize"}


def torchvisions(wide: bool, name: str, magnitude: int, bins: int, height: int, width: int) -> int:
    """Return the strength in torchvision's `TrivialAugmentWide` if `wide`, else in its `RandAugment`, in our units."""
    step = Fraction(magnitude, bins - 1)
    factor = Fraction("0.99") if wide else Fraction("0.9")
    match name:
        case "ShearX" | "ShearY":
            return round((Fraction("0.99") if wide else Fraction("0.3")) * step * 65536)
        case "TranslateX":
            return math.floor((32 if wide else Fraction(150, 331) * width) * step)
        case "TranslateY":
            return math.floor((32 if wide else Fraction(150, 331) * height) * step)
        case "Rotate":
            return round((135 if wide else 30) * step * 65536)
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            return round(factor * step * 65536)
        case "Posterize":
            return round(8 - (6 if wide else 4) * step)
        case "Solarize":  # of whole levels, those from the next whole one upwards
            return math.ceil(255 * (1 - step))
    return 0


def test_augmentations_are_in_torchvisions_order() -> None:
    assert [name.replace("_", "") for name in AUGMENTATIONS] == [name.lower() for name in TORCHVISION]
    assert {"".join(part.title() for part in name.split("_")) for name in SIGNED} == {*TORCHVISION} - WITHOUT_A_SIGN


def choosing(which: int, sign_word: int) -> list[int]:
    """Return the words that choose an augmentation, and its sign."""
    return [-(-which * 2**32 // 14), sign_word]


@pytest.mark.parametrize("name", TORCHVISION)
def test_strengths_are_torchvisions(name: str) -> None:
    which = TORCHVISION.index(name)
    for (height, width), bins in [((224, 224), 31), ((331, 662), 10), ((17, 500), 11), ((1, 1), 2)]:
        for magnitude in range(bins):
            for wide, op, rest in [
                (False, RandAugment(1, magnitude, bins), [0] * 10),
                (True, TrivialAugment(bins), [-(-magnitude * 2**32 // bins)]),
            ]:
                strength = torchvisions(wide, name, magnitude, bins, height, width)
                turned = strength if name in WITHOUT_A_SIGN else -strength
                for sign_word, signed in [(0, turned), (2**31 - 1, turned), (2**31, strength), (LARGEST, strength)]:
                    assert op.draw(choosing(which, sign_word) + rest, height, width) == (which, signed)


def test_the_augmentations_in_a_row_are_drawn_each_from_its_own_words() -> None:
    [words] = random_words([RandAugment(6)], 1, 0, [3], 0)
    row = RandAugment(6).draw(words, 50, 60)
    assert len(row) == 12
    for count in range(1, 7):
        assert RandAugment(count).draw(words, 50, 60) == row[: 2 * count]
    for step in range(6):
        pair = words[2 * step : 2 * step + 2]
        assert RandAugment(1).draw(pair + [0] * 10, 50, 60) == row[2 * step : 2 * step + 2]


def test_trivial_augment_draws_every_augmentation_strength_and_sign_alike() -> None:
    drawn = draws(TrivialAugment(), 300, 300)
    assert chi_square([which for which, _ in drawn], range(14)) < CRITICAL[13]
    steps = [round(abs(strength) / (135 * 65536) * 30) for which, strength in drawn if which == 5]
    assert chi_square(steps, range(31)) < CRITICAL[30]
    for which in range(1, 10):
        signs = [strength > 0 for chosen, strength in drawn if chosen == which and strength]
        assert chi_square(signs, [True, False]) < CRITICAL[1]
    assert all(strength >= 0 for chosen, strength in drawn if chosen in (0, 10, 11, 12, 13))
