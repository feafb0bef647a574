"""OpenCV's kernels against short references in NumPy and Pillow, byte for byte, on images of all sizes and memory layouts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from op_strategies import ON_IMAGES
from PIL import Image
from processes import run_python

from joulecache.transforms import kernels
from joulecache.transforms.chain import apply
from joulecache.transforms.coordinates import Matrix
from joulecache.transforms.images import as_array, as_image
from joulecache.transforms.randomness import UNIT, random_words
from joulecache.transforms.warping import warp

Array = NDArray[np.uint8]

# The layouts in which an op finds an image: what a crop, a flip and a custom op return, and an image of a mapped file.
LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "whole": lambda image: image,
    "window": lambda image: image[1:, 2:-1] if min(image.shape[:2]) > 3 else image,
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "turned": lambda image: image[::-1, ::-1],
    "every other": lambda image: image[::2, ::3],
    "transposed": lambda image: image.swapaxes(0, 1),
    "channels last to first": lambda image: image[:, :, ::-1],
    "all reversed": lambda image: image[::-1, ::-1, ::-1],
    "Fortran": np.asfortranarray,
}


def made(seed: int, height: int, width: int, channels: int, span: int, layout: str) -> Array:
    """Return a read-only image of `span` levels."""
    levels = np.random.default_rng(seed).integers(0, span, (height, width, channels)) * 255 // max(1, span - 1)
    image = LAYOUTS[layout](levels.astype(np.uint8))
    image.flags.writeable = False
    return image


def pictures(channels: Sequence[int] = (1, 3)) -> st.SearchStrategy[Array]:
    return st.builds(
        made,
        st.integers(0, 9999),
        st.integers(1, 70),
        st.integers(1, 150),
        st.sampled_from(channels),
        st.sampled_from([1, 2, 7, 256]),
        st.sampled_from(list(LAYOUTS)),
    )


thorough = settings(deadline=None, max_examples=100)
factors = st.sampled_from([0, 1, UNIT - 1, UNIT, UNIT + 1, 2 * UNIT, 100 * UNIT]) | st.integers(0, 3 * UNIT)


def clipped(levels: Any) -> Array:
    within: Array = np.clip(levels, 0, 255).astype(np.uint8)
    return within


# Levels


@thorough
@given(image=pictures(), table=st.integers(0, 99).map(lambda seed: np.random.default_rng(seed).permutation(256)))
def test_a_table_replaces_every_level(image: Array, table: NDArray[np.int64]) -> None:
    levels = table.astype(np.uint8)
    np.testing.assert_array_equal(kernels.look_up(levels, image), levels[image])


@pytest.mark.parametrize("has_wide_tables", [kernels._HAS_WIDE_TABLES, False])
def test_a_wide_table_has_an_entry_for_every_index(monkeypatch: pytest.MonkeyPatch, has_wide_tables: bool) -> None:
    monkeypatch.setattr(kernels, "_HAS_WIDE_TABLES", has_wide_tables)
    table = np.random.default_rng(1).integers(-(2**15), 2**15, 2**16).astype(np.int16)
    for indices in (np.arange(2**16, dtype=np.uint16), np.array([2**16 - 1], np.uint16)):
        np.testing.assert_array_equal(kernels.look_up_wide(table, indices), table[indices])


@thorough
@given(
    image=pictures(),
    line=st.tuples(factors, st.integers(-(10**9), 10**9), st.just(UNIT))  # also beyond what is clipped
    | st.integers(1, 255).flatmap(lambda span: st.tuples(st.just(255), st.integers(-255 * 255, 0), st.just(span)))
    | st.tuples(factors, st.just(0), st.just(UNIT)),
)
@example(image=made(0, 16, 16, 1, 256, "whole"), line=(65535, 0, UNIT))  # 255 * 65535 is just below an integer
def test_a_line_is_rounded_down_and_clipped(image: Array, line: tuple[int, int, int]) -> None:
    slope, offset, denominator = line
    expected = clipped((image.astype(np.int64) * slope + offset) // denominator)
    np.testing.assert_array_equal(kernels.linear(image, slope, offset, denominator), expected)


def test_every_level_is_on_every_line() -> None:
    levels = np.arange(256).astype(np.uint8).reshape(4, 64, 1)
    for factor in [*range(0, 2 * UNIT, 97), *range(UNIT - 300, UNIT + 300)]:
        expected = clipped(levels.astype(np.int64) * factor >> 16)
        np.testing.assert_array_equal(kernels.linear(levels, factor, 0, UNIT), expected)


@thorough
@given(image=pictures())
def test_histograms_channels_and_sums(image: Array) -> None:
    channels = kernels.split(image)
    for number, channel in enumerate(channels):
        np.testing.assert_array_equal(channel, image[:, :, number])
        np.testing.assert_array_equal(kernels.histogram(channel), np.bincount(channel.ravel(), minlength=256))
    np.testing.assert_array_equal(kernels.merge(channels), image)
    wide = image.astype(np.int64)
    for got, expected in zip(kernels.channel_sums(image), (wide, wide**2), strict=True):
        np.testing.assert_array_equal(got, expected.sum(axis=(0, 1)))


def test_counts_of_more_pixels_than_float32_holds_are_exact() -> None:
    channel = np.zeros((4097, 4097), np.uint8)
    channel[0, 0] = 1
    assert kernels.histogram(channel)[:3].tolist() == [4097**2 - 1, 1, 0]


# Colours


@thorough
@given(image=pictures(), factor=factors)
def test_a_blend_is_rounded_down_and_clipped(image: Array, factor: int) -> None:
    other = np.roll(image, 1, axis=0)[:, ::-1]
    wide = other.astype(np.int64)
    expected = clipped(wide + ((image - wide) * factor >> 16))
    np.testing.assert_array_equal(kernels.blend(other, image, factor), expected)


def turned_hue(image: Array, fraction: int) -> Array:
    red, green, blue = np.moveaxis(image.astype(np.int64), 2, 0)
    value, chroma = image.max(axis=2).astype(np.int64), np.ptp(image, axis=2).astype(np.int64)
    sixths = [green - blue, 2 * chroma + blue - red, 4 * chroma + red - green]
    hue = np.select([value == red, value == green, value == blue], sixths) * UNIT + 6 * fraction * chroma
    result = np.empty(image.shape, np.uint8)
    for channel, offset in enumerate((5, 3, 1)):
        place = (hue + offset * UNIT * chroma) % np.maximum(6 * UNIT * chroma, 1)
        less = np.clip(np.minimum(place, 4 * UNIT * chroma - place), 0, UNIT * chroma)
        result[:, :, channel] = value - (less + UNIT // 2 >> 16)
    return result


@thorough
@given(
    image=pictures([3]),
    fraction=st.integers(-UNIT // 2, UNIT // 2) | st.integers(-12, 12).map(lambda part: part * UNIT // 24),
)
def test_a_hue_is_turned_in_integers(image: Array, fraction: int) -> None:
    np.testing.assert_array_equal(kernels.turn_hue(image, fraction), turned_hue(image, fraction))


def test_large_images_are_computed_in_strips() -> None:
    image = made(5, 700, 333, 3, 256, "whole")
    np.testing.assert_array_equal(kernels.turn_hue(image, 12345), turned_hue(image, 12345))
    np.testing.assert_array_equal(kernels.luma(image), as_array(as_image(image).convert("L")))


@thorough
@given(image=pictures([3]))
def test_greys_are_weighted_sums(image: Array) -> None:
    luma, grey = kernels.luma(image), kernels.grey(image)
    np.testing.assert_array_equal(luma, as_array(as_image(np.ascontiguousarray(image)).convert("L")))
    np.testing.assert_array_equal(kernels.repeat(luma), np.repeat(luma, 3, axis=2))
    np.testing.assert_array_equal(grey[:, :, 0], image.astype(np.int64) @ np.array(kernels.GREY_WEIGHTS) >> 16)
    assert kernels.total(grey) == grey.sum()


def test_every_grey_is_rounded_down() -> None:
    red, green, blue = np.meshgrid(*[np.arange(0, 256, 5)] * 3)
    image = np.stack([red, green, blue], axis=-1).astype(np.uint8).reshape(52, -1, 3)
    for weights, half, got in (
        (kernels.GREY_WEIGHTS, 0, kernels.grey),
        (kernels.LUMA_WEIGHTS, UNIT // 2, kernels.luma),
    ):
        np.testing.assert_array_equal(got(image)[:, :, 0], image.astype(np.int64) @ np.array(weights) + half >> 16)


# Filters


def blurred(image: Array, weights: tuple[Sequence[int], Sequence[int]]) -> Array:
    """Filter in integers: rows to 1/16 level, then columns, ties to even."""
    levels = image.astype(np.int64)
    for axis, unit in ((1, kernels.WEIGHT_UNIT // 16), (0, kernels.WEIGHT_UNIT * 16)):
        kernel = weights[1 - axis]
        border = [(0, 0)] * 3
        border[axis] = (len(kernel) // 2,) * 2
        padded = np.pad(levels, border, "reflect")
        total = sum(
            weight * padded.take(range(start, start + image.shape[axis]), axis) for start, weight in enumerate(kernel)
        )
        whole, rest = np.divmod(np.asarray(total), unit)
        levels = whole + (2 * rest + whole % 2 > unit)
    return levels.astype(np.uint8)


def weights_of(radius: int, seed: int) -> list[int]:
    """Return symmetric random weights that add up to a whole, or a whole in the middle."""
    tail = np.random.default_rng(seed).multinomial(seed % 2049, np.ones(radius) / radius).tolist() if radius else []
    return [*reversed(tail), kernels.WEIGHT_UNIT - 2 * sum(tail), *tail]


@thorough
@given(image=pictures(), radii=st.tuples(*[st.integers(0, 140)] * 2), seed=st.integers(0, 9999))
def test_a_blur_is_two_exact_sums(image: Array, radii: tuple[int, int], seed: int) -> None:
    height, width, _ = image.shape
    across, down = weights_of(min(radii[0], width - 1), seed), weights_of(min(radii[1], height - 1), seed + 1)
    np.testing.assert_array_equal(kernels.blur(image, across, down), blurred(image, (across, down)))


@thorough
@given(image=pictures().filter(lambda image: min(image.shape[:2]) >= 3))
def test_smoothing_is_a_sum_divided_by_13(image: Array) -> None:
    wide = image.astype(np.int64)
    total = sum(np.roll(wide, (down, across), (0, 1)) for down in (-1, 0, 1) for across in (-1, 0, 1))
    expected = image.copy()
    expected[1:-1, 1:-1] = ((total + 4 * wide + 6) // 13)[1:-1, 1:-1]
    np.testing.assert_array_equal(kernels.smooth(image), expected)


# Moving pixels


@thorough
@given(image=pictures())
def test_an_image_is_put_into_its_slot(image: Array) -> None:
    batch = np.zeros((3, *image.shape), np.uint8)
    kernels.put(batch[1], image)
    np.testing.assert_array_equal(batch[1], image)
    assert not batch[[0, 2]].any()
    np.testing.assert_array_equal(kernels.straight(image), image)


def test_a_slot_of_another_size_is_an_error() -> None:
    image = made(0, 8, 9, 3, 256, "mirrored")
    with pytest.raises(ValueError, match=r"an image \(8, 9, 3\) does not fit into a slot \(8, 10, 3\)"):
        kernels.put(np.zeros((8, 10, 3), np.uint8), image)


cells = st.floats(-3, 3) | st.sampled_from([-1.0, 0.0, 1.0, 0.5])
shifts = st.floats(-200, 200) | st.integers(-80, 80).map(float)
matrices = st.tuples(cells, cells, shifts, cells, cells, shifts)


@settings(deadline=None, max_examples=300)
@given(
    image=pictures(),
    matrix=matrices
    | matrices.map(lambda m: (m[0], 0.0, m[2], 0.0, m[4], m[5]))
    | matrices.map(lambda m: (1.0, 0.0, m[2], 0.0, 1.0, m[5])),
    interpolation=st.sampled_from(["nearest", "nearest", "bilinear"]),
    fill=st.integers(0, 255),
)
@example(
    image=made(1, 9, 9, 3, 256, "whole"), matrix=(4000.0, 1.0, 0.0, 1.0, 1.0, 0.0), interpolation="nearest", fill=3
)
def test_a_warp_is_pillows(image: Array, matrix: Matrix, interpolation: str, fill: int) -> None:
    source = as_image(np.ascontiguousarray(image))
    resampling = Image.Resampling[interpolation.upper()]
    color = fill if image.shape[2] == 1 else (fill, fill, fill)
    expected = source.transform(source.size, Image.Transform.AFFINE, matrix, resampling, fillcolor=color)
    np.testing.assert_array_equal(warp(image, matrix, interpolation, fill), as_array(expected))


@pytest.mark.parametrize("size", [(2, 32_766), (2, 32_767), (40_000, 1)])
def test_long_images_are_warped(size: tuple[int, int]) -> None:
    image = made(3, *size, 1, 256, "whole")
    matrix = (1.0, 0.25, -3.0, 0.0001, 1.0, 0.5)
    expected = as_image(image).transform(size[::-1], Image.Transform.AFFINE, matrix, fillcolor=7)
    np.testing.assert_array_equal(warp(image, matrix, "nearest", 7), as_array(expected))


# Every machine


def digest() -> str:
    """Return a hash of what all ops on images compute."""
    found = hashlib.sha256()
    noise = np.random.default_rng(7).integers(0, 256, (93, 131, 3)).astype(np.uint8)
    for image in (noise, noise[:, ::-1], noise[3:, 5:, :1], noise // 3):
        for kind in ON_IMAGES:
            op = kind(*((64,) if kind.typical == (224,) else kind.typical))
            for words in random_words([op], 1, 0, range(16), 0):
                result = apply([op], image, words)
                slot = np.empty(result.shape, np.uint8)
                kernels.put(slot, result)
                found.update(slot.tobytes())
        found.update(np.array(kernels.channel_sums(image)).tobytes())
    return found.hexdigest()


@pytest.mark.parametrize(
    ("disabled", "ipp"),
    [
        ("", "disabled"),
        ("AVX512-SKX", "avx2"),
        ("AVX512-SKX,AVX2,FMA3,AVX", "sse42"),
        ("AVX512-SKX,AVX2,FMA3,AVX,SSE4.2,SSE4.1,SSSE3", "disabled"),
    ],
)
def test_every_cpu_computes_the_same(disabled: str, ipp: str) -> None:
    """OpenCV's own code and Intel's library, which OpenCV calls for some functions, for CPUs with fewer instructions."""
    code = "from test_kernels import digest; print(digest())"
    got = run_python(code, OPENCV_CPU_DISABLE=disabled, OPENCV_IPP=ipp)
    assert got.stdout.split()[-1:] == [digest()], got.stderr
