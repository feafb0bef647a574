"""The ops that change levels: against integers and fractions written out, and against Pillow and SciPy."""

from __future__ import annotations

import colorsys
import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import ndimage

from joulecache.transforms import (
    Autocontrast,
    Brightness,
    ColorJitter,
    Contrast,
    Equalize,
    GaussianBlur,
    GaussianNoise,
    Grayscale,
    Hue,
    Op,
    Posterize,
    Saturation,
    Sharpness,
    Solarize,
)
from joulecache.transforms.chain import apply
from joulecache.transforms.images import as_array, as_image
from joulecache.transforms.kernels import WEIGHT_UNIT, grey, total
from joulecache.transforms.ops import colour, filters
from joulecache.transforms.randomness import UNIT

Array = NDArray[np.uint8]

LARGEST = 2**32 - 1

relaxed = settings(deadline=None, max_examples=60)
images: st.SearchStrategy[Array] = st_numpy.arrays(
    np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3]))
)
words = st.integers(0, LARGEST)


def word_of(number: int, count: int) -> int:
    """Return the smallest word that draws that number of [0, count)."""
    return -(-(number << 32) // count)


def apart(one: Array, other: ArrayLike) -> float:
    """Return the largest difference of two levels."""
    assert one.shape == np.shape(other)
    return float(np.abs(one - np.asarray(other, float)).max())


# Ops that change levels


@relaxed
@given(image=images, delta=st.floats(0, 1), word=words)
def test_brightness_is_a_product_rounded_down_and_clipped(image: Array, delta: float, word: int) -> None:
    factor = drawn_factor(delta, word)
    expected = [min(math.floor(int(level) * factor), 255) for level in image.ravel()]
    assert apply([Brightness(delta)], image, [word]).ravel().tolist() == expected


@relaxed
@given(image=images, delta=st.floats(0, 1), word=words)
def test_contrast_is_a_blend_with_the_mean_grey_rounded_down_and_clipped(image: Array, delta: float, word: int) -> None:
    factor = drawn_factor(delta, word)
    rows = image.reshape(-1, image.shape[2]).tolist()
    greys = [grey_of(row) for row in rows]
    mean = Fraction(sum(greys), len(greys))
    expected = [min(max(math.floor(factor * int(level) + (1 - factor) * mean), 0), 255) for level in image.ravel()]
    assert apply([Contrast(delta)], image, [word]).ravel().tolist() == expected


def grey_of(pixel: list[int]) -> int:
    weights = [Fraction(part, 65536) for part in (19589, 38470, 7471)] if len(pixel) == 3 else [Fraction(1)]
    return math.floor(sum(weight * level for weight, level in zip(weights, pixel, strict=True)))


@relaxed
@given(image=images, delta=st.floats(0, 1), word=words)
def test_saturation_is_a_blend_with_the_grey_rounded_down_and_clipped(image: Array, delta: float, word: int) -> None:
    factor = drawn_factor(delta, word)
    expected = [
        [min(max(math.floor(factor * level + (1 - factor) * grey_of(pixel)), 0), 255) for level in pixel]
        for pixel in image.reshape(-1, image.shape[2]).tolist()
    ]
    assert apply([Saturation(delta)], image, [word]).reshape(-1, image.shape[2]).tolist() == expected


def drawn_factor(delta: float, word: int) -> Fraction:
    spread = round(delta * 65536)
    return 1 - Fraction(spread, 65536) + Fraction(word * (2 * spread + 1) >> 32, 65536)


@pytest.mark.parametrize("word", [0, 2**31, LARGEST])
def test_brightness_contrast_and_saturation_are_within_a_level_or_two_of_pillows(pixels: Array, word: int) -> None:
    factor, image = float(drawn_factor(0.5, word)), as_image(pixels)
    ops: tuple[tuple[Op, Image.Image, int], ...] = (
        (Brightness(0.5), ImageEnhance.Brightness(image).enhance(factor), 1),
        (Contrast(0.5), ImageEnhance.Contrast(image).enhance(factor), 1),
        (Saturation(0.5), ImageEnhance.Color(image).enhance(factor), 2),  # its grey is rounded to the nearest
    )
    for op, theirs, tolerance in ops:
        assert apart(apply([op], pixels, [word]), np.asarray(theirs)) <= tolerance


@pytest.mark.parametrize(
    "op", [Brightness(0.0), Contrast(0.0), Saturation(0.0), Hue(0.0), ColorJitter(), Sharpness(1.0, 1.0)], ids=repr
)
def test_a_factor_of_1_changes_nothing(pixels: Array, op: Op) -> None:
    for word in (0, LARGEST):
        for image in (pixels, pixels[:, :, :1]):
            np.testing.assert_array_equal(apply([op], image, [word] * op.random_words), image)


def test_the_grey_of_a_large_white_image_does_not_overflow() -> None:
    large = np.broadcast_to(np.uint8(255), (3000, 3000, 3))
    assert total(grey(large)) == 254 * 3000**2 > 2**31  # the weights add up to just below 1


@pytest.mark.parametrize("adjust", [colour.adjust_brightness, colour.adjust_contrast, colour.adjust_saturation])
def test_the_largest_factor_does_not_overflow(adjust: Callable[[Array, int], Array]) -> None:
    rng = np.random.default_rng(0)
    image = rng.choice(np.array([0, 1, 127, 128, 254, 255], np.uint8), (40, 40, 3))
    got = adjust(image, 100 * UNIT)
    greys = [grey_of(pixel) for pixel in image.reshape(-1, 3).tolist()]
    others: dict[object, NDArray[Any]] = {
        colour.adjust_brightness: np.zeros((40, 40, 1), object),
        colour.adjust_contrast: np.full((40, 40, 1), Fraction(sum(greys), 1600), object),
        colour.adjust_saturation: np.array(greys, object).reshape(40, 40, 1),
    }
    exact = 100 * image.astype(object) - 99 * others[adjust]
    expected = [min(max(math.floor(level), 0), 255) for level in exact.ravel()]
    assert got.ravel().tolist() == expected


# Colours


def turned(pixel: list[int], share: float) -> list[float]:
    hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in pixel))
    return [255 * level for level in colorsys.hsv_to_rgb((hue + share) % 1, saturation, value)]


CORNERS = [[255 * (place >> bit & 1) for bit in range(3)] for place in range(8)]  # where two sectors of the circle meet


@relaxed
@given(image=images.filter(lambda image: image.shape[2] == 3), delta=st.floats(0, 0.5), word=words)
def test_a_turned_hue_is_the_nearest_level_to_colorsys(image: Array, delta: float, word: int) -> None:
    most = round(delta * UNIT)
    share = (-most + (word * (2 * most + 1) >> 32)) / UNIT
    expected = [turned(pixel, share) for pixel in image.reshape(-1, 3).tolist()]
    assert apart(apply([Hue(delta)], image, [word]).reshape(-1, 3), expected) <= 0.5 + 1e-9


@pytest.mark.parametrize("share", range(-UNIT // 2, UNIT // 2 + 1, UNIT // 8))
def test_a_turned_hue_is_the_nearest_level_to_colorsys_all_around_the_circle(share: int) -> None:
    near = [[min(max(level + step, 0), 255) for level, step in zip(corner, steps, strict=True)]
            for corner in CORNERS for steps in itertools.product((-1, 0, 1), repeat=3)]  # fmt: skip
    colours = [*CORNERS, *near, *np.random.default_rng(abs(share)).integers(0, 256, (400, 3)).tolist()]
    got = colour.adjust_hue(np.array([colours], np.uint8), share)
    assert apart(got[0], [turned(pixel, share / UNIT) for pixel in colours]) <= 0.5 + 1e-9


def test_half_a_circle_gives_the_complement_and_a_whole_one_the_colour_itself() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    most, least = image.max(axis=2, keepdims=True).astype(int), image.min(axis=2, keepdims=True)
    complement = most + least - image
    for half in (UNIT // 2, -UNIT // 2):
        np.testing.assert_array_equal(colour.adjust_hue(image, half), complement)
        np.testing.assert_array_equal(colour.adjust_hue(colour.adjust_hue(image, half), half), image)
    np.testing.assert_array_equal(colour.adjust_hue(image, UNIT), image)


def test_greys_have_no_hue_to_turn(pixels: Array) -> None:
    greys = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    for word in (0, 2**30, LARGEST):
        np.testing.assert_array_equal(apply([Hue(0.5)], greys, [word]), greys)
        np.testing.assert_array_equal(apply([Hue(0.5)], pixels[:, :, :1], [word]), pixels[:, :, :1])
        np.testing.assert_array_equal(apply([Saturation(1)], pixels[:, :, :1], [word]), pixels[:, :, :1])


@pytest.mark.parametrize("channels", [1, 3])
def test_color_jitter_is_its_four_ops_in_the_order_that_was_drawn(pixels: Array, channels: int) -> None:
    op, image = ColorJitter(0.4, (0.3, 2.0), 3.0, (-0.1, 0.3)), pixels[:20, :20, :channels]
    adjusts = (colour.adjust_brightness, colour.adjust_contrast, colour.adjust_saturation, colour.adjust_hue)
    for order, steps in enumerate(itertools.permutations(range(4))):
        drawn = [word_of(order, 24), *np.random.default_rng(order).integers(0, 2**32, 4).tolist()]
        which, *numbers = op.draw(drawn, 20, 20)
        assert which == order
        expected = image
        for step in steps:
            expected = adjusts[step](expected, numbers[step])
        np.testing.assert_array_equal(apply([op], image, drawn), expected)


def test_color_jitter_of_one_kind_is_the_op_of_that_name(pixels: Array) -> None:
    drawn = [word_of(7, 24), *[3 << 30] * 4]
    singles = [("brightness", Brightness), ("contrast", Contrast), ("saturation", Saturation), ("hue", Hue)]
    for name, single in singles:
        got = apply([ColorJitter(**{name: 0.3})], pixels, drawn)
        np.testing.assert_array_equal(got, apply([single(0.3)], pixels, [3 << 30]))


@relaxed
@given(image=images)
def test_grayscale_is_the_luma_of_pillow(image: Array) -> None:
    expected = image
    if image.shape[2] == 3:
        lumas = [(19595 * r + 38470 * g + 7471 * b + 32768) >> 16 for r, g, b in image.reshape(-1, 3).tolist()]
        expected = np.array(lumas, np.uint8).reshape(*image.shape[:2], 1)
    np.testing.assert_array_equal(apply([Grayscale()], image, []), expected)
    np.testing.assert_array_equal(apply([Grayscale(3)], image, []), np.repeat(expected, 3, axis=2))


# Blur and noise


def gaussian(size: int, sigma: float) -> NDArray[np.float64]:
    weights = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * sigma**2))
    normalised: NDArray[np.float64] = weights / weights.sum()
    return normalised


@pytest.mark.parametrize("kernel", [(1, 1), (5, 1), (3, 9), (23, 23)])
def test_a_blur_is_a_convolution_to_within_a_level(pixels: Array, kernel: tuple[int, int]) -> None:
    for sigma in (0.01, 0.7, 50.0):
        for image in (pixels, pixels[:, :, :1]):
            exact = ndimage.correlate1d(image.astype(float), gaussian(kernel[0], sigma), axis=1, mode="mirror")
            exact = ndimage.correlate1d(exact, gaussian(kernel[1], sigma), axis=0, mode="mirror")
            assert apart(apply([GaussianBlur(kernel, sigma)], image, [0]), exact) <= 0.6


noisy: st.SearchStrategy[Array] = st.builds(
    lambda seed, channels: np.random.default_rng(seed).integers(0, 256, (30, 40, channels), np.uint8),
    st.integers(0, 999),
    st.sampled_from([1, 3]),
)


@settings(deadline=None, max_examples=60)
@given(image=st.one_of(images, noisy), kernel=st.tuples(*[st.sampled_from([1, 3, 5, 7])] * 2), word=words)
def test_a_blur_is_two_sums_of_whole_numbers_rounded_to_even(image: Array, kernel: tuple[int, int], word: int) -> None:
    height, width, _ = image.shape
    across, down = min(kernel[0], 2 * width - 1), min(kernel[1], 2 * height - 1)
    op = GaussianBlur((across, down), (0.3, 3.0))
    [sigma] = op.draw([word], height, width)
    of_x, of_y = filters.gaussian_weights(across, sigma), filters.gaussian_weights(down, sigma)
    levels = image.astype(object)
    rows = np.array([
        sum(weight * levels[:, mirrored(x + place - across // 2, width)] for place, weight in enumerate(of_x))
        for x in range(width)
    ]).swapaxes(0, 1)  # fmt: skip
    rows = rounded(rows, WEIGHT_UNIT // 16)
    columns = [
        sum(weight * rows[mirrored(y + place - down // 2, height)] for place, weight in enumerate(of_y))
        for y in range(height)
    ]
    assert apply([op], image, [word]).tolist() == rounded(np.array(columns), WEIGHT_UNIT * 16).tolist()


def rounded(numbers: NDArray[Any], unit: int) -> NDArray[Any]:
    """Divide integers by an even unit and round to the nearest, ties to even."""
    whole, rest = numbers // unit, numbers % unit
    up: NDArray[Any] = whole + (2 * rest + whole % 2 > unit)
    return up


def mirrored(place: int, size: int) -> int:
    return abs(place) if place < size else 2 * (size - 1) - place


@pytest.mark.parametrize("size", [1, 3, 25, 255])
def test_the_weights_of_a_blur_add_up_to_1_and_are_those_of_the_gaussian(size: int) -> None:
    for sigma in (0.01, 0.5, 8.0, 255.0):
        weights = filters.gaussian_weights(size, round(sigma * UNIT))
        assert sum(weights) == WEIGHT_UNIT
        assert weights == weights[::-1]
        assert min(weights) >= 0
        others = np.delete(np.array(weights) / WEIGHT_UNIT - gaussian(size, round(sigma * UNIT) / UNIT), size // 2)
        assert np.abs(others).max(initial=0) <= 0.5001 / WEIGHT_UNIT


def test_a_blur_leaves_one_level_as_it_is_and_does_not_overflow() -> None:
    image = np.full((130, 130, 1), 255, np.uint8)
    for sigma in (0.1, 2.0, 255.0):
        np.testing.assert_array_equal(apply([GaussianBlur(255, sigma)], image, [0]), image)


@pytest.mark.parametrize(("mean", "sigma"), [(0.0, 0.1), (0.1, 0.05), (-0.2, 0.02), (0.0, 0.0)])
@pytest.mark.parametrize("channels", [1, 3])
def test_noise_on_mid_grey_has_its_mean_and_standard_deviation(mean: float, sigma: float, channels: int) -> None:
    grey = np.full((256, 256, channels), 128, np.uint8)
    noise = apply([GaussianNoise(mean, sigma)], grey, [1, 2]).astype(float) - 128
    assert noise.mean() == pytest.approx(255 * mean, abs=0.5 + 5 * 255 * sigma / 256)
    # Rounding to levels adds a variance of 1/12.
    assert noise.std() == pytest.approx(math.hypot(255 * sigma, math.sqrt(1 / 12) * (sigma > 0)), rel=0.02)
    if sigma == 0.1:  # as in a normal distribution: at most 1, 2 and 3 standard deviations away, in whole levels
        for deviations, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
            edge = math.floor(25.5 * deviations) + 0.5
            assert (np.abs(noise) < edge).mean() == pytest.approx(math.erf(edge / 25.5 / math.sqrt(2)), abs=0.01)
            assert share == pytest.approx(math.erf(deviations / math.sqrt(2)), abs=1e-4)


def test_noise_is_added_to_every_level_and_clipped(pixels: Array) -> None:
    op, drawn = GaussianNoise(0.05, 0.08), [123, 456]
    noise = apply([op], np.full_like(pixels, 110), drawn).astype(int) - 110
    assert noise.min() > -110  # nothing of it was clipped
    assert noise.max() < 145
    np.testing.assert_array_equal(apply([op], pixels, drawn), np.clip(pixels + noise, 0, 255))
    black, white = np.zeros_like(pixels), np.full_like(pixels, 255)
    np.testing.assert_array_equal(apply([op], black, drawn), np.maximum(noise, 0))
    np.testing.assert_array_equal(apply([op], white, drawn), 255 + np.minimum(noise, 0))


def test_other_words_make_other_noise_and_the_same_words_the_same(pixels: Array) -> None:
    grey = np.full((32, 32, 3), 128, np.uint8)
    drawn = [[0, 0], [1, 0], [0, 1], [LARGEST, LARGEST], [LARGEST, 0]]
    noises = [apply([GaussianNoise()], grey, each) for each in drawn]
    for one, other in itertools.combinations(noises, 2):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.1
    for each, noise in zip(drawn, noises, strict=True):
        np.testing.assert_array_equal(apply([GaussianNoise()], grey, each), noise)


def test_noise_is_independent_from_channel_to_channel_and_from_pixel_to_pixel() -> None:
    noise = apply([GaussianNoise()], np.full((100, 100, 3), 128, np.uint8), [3, 4]).astype(float)
    pairs = [(noise[:, :, 0], noise[:, :, 1]), (noise[:, :, 1], noise[:, :, 2]), (noise[1:], noise[:-1])]
    for one, other in [*pairs, (noise[:, 1:], noise[:, :-1])]:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.05


# Histograms and bits


@relaxed
@given(image=images)
def test_autocontrast_stretches_each_channel_from_black_to_white(image: Array) -> None:
    got = apply([Autocontrast(1.0)], image, [0])
    for channel in range(image.shape[2]):
        levels = image[:, :, channel].ravel().tolist()
        low, high = min(levels), max(levels)
        expected = [math.floor(Fraction(255 * (level - low), high - low)) if high > low else level for level in levels]
        assert got[:, :, channel].ravel().tolist() == expected
    assert apart(got, as_array(ImageOps.autocontrast(as_image(image)))) <= 1


large: st.SearchStrategy[Array] = st.builds(
    lambda seed, side, low, span, channels: (
        low + np.random.default_rng(seed).integers(0, span, (side, 40, channels)) ** 2 // span
    ).astype(np.uint8),
    st.integers(0, 999),
    st.integers(1, 60),
    st.integers(0, 100),
    st.integers(1, 156),
    st.sampled_from([1, 3]),
)


@relaxed
@given(image=st.one_of(images, large))
def test_equalize_is_pillows(image: Array) -> None:
    np.testing.assert_array_equal(apply([Equalize(1.0)], image, [0]), as_array(ImageOps.equalize(as_image(image))))


@relaxed
@given(image=images, bits=st.integers(0, 8))
def test_posterize_keeps_high_bits(image: Array, bits: int) -> None:
    got = apply([Posterize(bits, 1.0)], image, [0])
    assert got.ravel().tolist() == [level >> 8 - bits << 8 - bits for level in image.ravel().tolist()]
    np.testing.assert_array_equal(got, as_array(ImageOps.posterize(as_image(image), bits)))


@relaxed
@given(image=images, threshold=st.one_of(st.integers(0, 256), st.floats(0, 256)))
def test_solarize_turns_levels_from_the_threshold_upwards(image: Array, threshold: float) -> None:
    got = apply([Solarize(threshold, 1.0)], image, [0])
    assert got.ravel().tolist() == [255 - level if level >= threshold else level for level in image.ravel().tolist()]
    if isinstance(threshold, int):
        np.testing.assert_array_equal(got, as_array(ImageOps.solarize(as_image(image), threshold)))


@relaxed
@given(image=images)
def test_smoothed_is_pillows_filter(image: Array) -> None:
    theirs = as_image(image).filter(ImageFilter.SMOOTH)
    np.testing.assert_array_equal(filters.smoothed(image), as_array(theirs))


@relaxed
@given(image=images, factor=st.one_of(st.sampled_from([0.0, 1.0, 2.0, 100.0]), st.floats(0, 100)))
def test_sharpness_is_a_blend_with_the_smoothed_rounded_down_and_clipped(image: Array, factor: float) -> None:
    height, width, channels = image.shape
    exact, levels = Fraction(round(factor * UNIT), UNIT), image.tolist()
    got = apply([Sharpness(factor, 1.0)], image, [0])
    for y, x, c in np.ndindex(height, width, channels):
        smooth = level = levels[y][x][c]
        if 0 < y < height - 1 and 0 < x < width - 1:
            around = [levels[y + dy][x + dx][c] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
            smooth = math.floor(Fraction(sum(around) + 4 * level, 13) + Fraction(1, 2))
        assert got[y, x, c] == min(max(math.floor(exact * level + (1 - exact) * smooth), 0), 255)


@pytest.mark.parametrize("factor", [0.0, 1.7, 9.0])
def test_sharpness_is_within_a_level_of_pillows(pixels: Array, factor: float) -> None:
    theirs = ImageEnhance.Sharpness(as_image(pixels)).enhance(factor)
    assert apart(apply([Sharpness(factor, 1.0)], pixels, [0]), np.asarray(theirs)) <= 1
