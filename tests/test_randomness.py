"""Draws: the published generator, functions of their inputs alone, with the distributions that the ops promise."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from joulecache.transforms import (
    Brightness,
    Contrast,
    FlipLr,
    Op,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    parse,
)
from joulecache.transforms.randomness import _log_uniform, key_hash, parameters, philox, random_words

relaxed = settings(deadline=None)

WORDS = st.integers(0, 2**32 - 1)
TRAIN = parse("decode|random_resized_crop(64)|random_crop(32)|flip_lr || brightness(0.4)|resize(9)|contrast(0.4)").ops
LARGEST = 2**32 - 1


def vector(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(
    ("counter", "key", "drawn"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
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


@relaxed
@given(
    hashes=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20),
    seed=st.integers(0, 2**64 - 1),
    data=st.data(),
)
def test_a_batch_is_its_records_one_by_one_in_any_order(hashes: list[int], seed: int, data: st.DataObject) -> None:
    ns = data.draw(st.lists(st.integers(0, LARGEST), min_size=len(hashes), max_size=len(hashes)))
    batch = random_words(TRAIN, 0, seed, hashes, ns)
    alone = [random_words(TRAIN, 0, seed, [hashed], n)[0] for hashed, n in zip(hashes, ns, strict=True)]
    assert batch == alone
    assert random_words(TRAIN, 0, seed, hashes[::-1], ns[::-1]) == batch[::-1]


@pytest.mark.parametrize("cut", range(1, len(TRAIN) + 1))
def test_the_suffix_draws_what_it_draws_in_the_whole_chain(cut: int) -> None:
    hashes = [key_hash(str(record)) for record in range(5)]
    whole = random_words(TRAIN, 0, 1, hashes, 2)
    before = random_words(TRAIN[:cut], 0, 1, hashes, 2)
    after = random_words(TRAIN[cut:], cut, 1, hashes, 2)
    assert [head + tail for head, tail in zip(before, after, strict=True)] == whole


def test_another_seed_record_n_or_position_draws_other_words() -> None:
    drawn = {
        tuple(random_words([RandomCrop(8)], position, seed, [hashed], n)[0])
        for seed in (0, 1, 1 << 32, 1 << 63)
        for hashed in (0, 1, 1 << 32, 1 << 63)
        for n in (0, 1, 2**31)
        for position in (1, 2, 300)
    }
    assert len(drawn) == 4 * 4 * 3 * 3


def test_an_op_takes_as_many_words_as_it_declares() -> None:
    [words] = random_words(TRAIN, 0, 0, [1], 0)
    assert len(words) == sum(op.words for op in TRAIN)
    assert len(set(words)) == len(words)


def test_ops_without_draws_take_no_words() -> None:
    assert random_words([Resize(8)], 1, 0, [1, 2], 0) == [[], []]
    assert random_words([], 0, 0, [1, 2], 0) == [[], []]


CRITICAL = {1: 10.83, 9: 27.88, 15: 37.70}
"""The chi-square that chance exceeds once in 1,000 times, by degrees of freedom. The draws are fixed, so chance has no say."""


def chi_square(values: Sequence[object], cells: Sequence[object]) -> float:
    counts = Counter(values)
    assert set(counts) <= set(cells)
    expected = len(values) / len(cells)
    return sum((counts[cell] - expected) ** 2 / expected for cell in cells)


def draws(op: Op, height: int = 100, width: int = 100, records: int = 20_000) -> list[tuple[int, ...]]:
    hashes = [key_hash(f"photo-{record}.jpg") for record in range(records)]
    return [parameters(op, words, height, width) for words in random_words([op], 3, 11, hashes, 4)]


def test_random_crop_is_uniform_over_every_window() -> None:
    corners = draws(RandomCrop((97, 97)), 100, 100)
    cells = [(top, left) for top in range(4) for left in range(4)]
    assert chi_square(corners, cells) < CRITICAL[15]


@pytest.mark.parametrize("op", [Brightness(0.4), Contrast(0.4)])
def test_factors_are_uniform(op: Op) -> None:
    spread = round(0.4 * 65536)
    tenths = [(factor - 65536 + spread) * 10 // (2 * spread + 1) for (factor,) in draws(op)]
    assert chi_square(tenths, range(10)) < CRITICAL[9]


def test_half_of_the_images_are_mirrored() -> None:
    assert chi_square([flip for (flip,) in draws(FlipLr())], [0, 1]) < CRITICAL[1]


def test_a_share_of_the_images_is_mirrored() -> None:
    flips = sum(flip for (flip,) in draws(FlipLr(0.2)))
    assert flips / 20_000 == pytest.approx(0.2, abs=0.01)  # more than 3 standard deviations


def test_the_area_of_random_resized_crop_is_uniform() -> None:
    # With a fixed aspect and an area that always fits, no try is ever repeated.
    windows = draws(RandomResizedCrop(8, scale=(0.1, 0.9), ratio=(1, 1)), 1000, 1000)
    tenths = [min(int((height * width / 1e6 - 0.1) / 0.08), 9) for _, _, height, width in windows]
    assert chi_square(tenths, range(10)) < CRITICAL[9]


def test_the_aspect_of_random_resized_crop_is_uniform_in_the_logarithm() -> None:
    windows = draws(RandomResizedCrop(8, scale=(0.2, 0.2), ratio=(0.5, 2)), 4000, 4000)
    tenths = [int((math.log2(width / height) + 1) * 5) for _, _, height, width in windows]
    assert chi_square([min(max(tenth, 0), 9) for tenth in tenths], range(10)) < CRITICAL[9]


def test_the_place_of_random_resized_crop_is_uniform() -> None:
    windows = draws(RandomResizedCrop(8, scale=(0.25, 0.25), ratio=(1, 1)), 1006, 1006)
    cells = [(row, column) for row in range(4) for column in range(4)]
    assert chi_square([(top // 126, left // 126) for top, left, _, _ in windows], cells) < CRITICAL[15]


@relaxed
@given(low=st.floats(1e-3, 1e3), spread=st.floats(1, 1e6), word=WORDS)
def test_the_log_uniform_number_is_that_of_exp(low: float, spread: float, word: int) -> None:
    high = low * spread
    expected = math.exp(math.log(low) + math.log(high / low) * (word / 2**32))
    assert _log_uniform(low, high, word) == pytest.approx(expected, rel=1e-9)


@relaxed
@given(
    height=st.integers(1, 2000),
    width=st.integers(1, 2000),
    scale=st.tuples(st.floats(1e-3, 1), st.floats(1e-3, 1)),
    ratio=st.tuples(st.floats(0.05, 20), st.floats(0.05, 20)),
    words=st.lists(WORDS, min_size=22, max_size=22),
)
@example(height=1, width=1, scale=(1e-3, 1.0), ratio=(0.75, 1.33), words=[LARGEST] * 22)
@example(height=10, width=1000, scale=(1.0, 1.0), ratio=(0.75, 1.33), words=[0] * 22)
def test_a_resized_window_lies_inside_and_has_the_area_and_aspect_that_were_asked_for(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], words: list[int]
) -> None:
    scale, ratio = (min(scale), max(scale)), (min(ratio), max(ratio))
    top, left, tall, wide = parameters(RandomResizedCrop(8, scale, ratio), words, height, width)
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
        assert parameters(op, [word] * 20 + [5, 5], height, width) == window


def test_a_try_that_misses_is_followed_by_the_next() -> None:
    op = RandomResizedCrop(8, scale=(0.01, 1), ratio=(1, 1))
    for misses in range(10):
        words = [LARGEST, 0] * misses + [0, 0] * (10 - misses) + [0, LARGEST]
        assert parameters(op, words, 100, 400) == (0, 380, 20, 20)


@relaxed
@given(height=st.integers(8, 4000), width=st.integers(8, 4000), words=st.tuples(WORDS, WORDS))
def test_a_random_window_lies_inside(height: int, width: int, words: tuple[int, int]) -> None:
    top, left = parameters(RandomCrop((8, 5)), words, height, width)
    assert 0 <= top <= height - 8
    assert 0 <= left <= width - 5


def test_the_first_and_the_last_window_can_be_drawn() -> None:
    assert parameters(RandomCrop(8), (0, 0), 100, 200) == (0, 0)
    assert parameters(RandomCrop(8), (LARGEST, LARGEST), 100, 200) == (92, 192)


def test_a_crop_larger_than_its_image_is_refused() -> None:
    with pytest.raises(ValueError, match="random_crop: the crop 8x8 is larger than the image 7x9"):
        parameters(RandomCrop(8), (0, 0), 7, 9)


@pytest.mark.parametrize("op", [Brightness(0.25), Contrast(0.25)])
def test_factors_span_the_whole_range_both_ends_included(op: Op) -> None:
    assert parameters(op, (0,), 1, 1) == (49152,)
    assert parameters(op, (2**31,), 1, 1) == (65536,)
    assert parameters(op, (LARGEST,), 1, 1) == (81920,)


@pytest.mark.parametrize(("probability", "flips"), [(0.0, (0, 0)), (0.5, (1, 0)), (1.0, (1, 1))])
def test_probability_0_never_mirrors_and_1_always(probability: float, flips: tuple[int, int]) -> None:
    smallest, largest = (parameters(FlipLr(probability), (word,), 1, 1)[0] for word in (0, LARGEST))
    assert (smallest, largest) == flips
