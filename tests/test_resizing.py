"""Resizing: a reference in NumPy, and a library that computes the same bytes."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from joulecache.transforms import resizing
from joulecache.transforms.images import as_image
from joulecache.transforms.resizing import resize, resize_reference, resizer

Array = NDArray[np.uint8]

sides = st.integers(1, 70) | st.integers(1, 600)


def random_image(height: int, width: int, channels: int, seed: int, *, extreme: bool = False) -> Array:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return (levels > 127).astype(np.uint8) * np.uint8(255) if extreme else levels


def pillow(image: Array, height: int, width: int) -> Array:
    resized = np.asarray(as_image(image).resize((width, height), Image.Resampling.BILINEAR))
    return resized.reshape(height, width, -1)


@given(
    size=st.tuples(sides, sides),
    target=st.tuples(sides, sides),
    channels=st.sampled_from([1, 3, 4]),
    seed=st.integers(0, 2**32),
    extreme=st.booleans(),
)
@example(size=(3, 9000), target=(2, 5), channels=3, seed=0, extreme=True)
@example(size=(1, 1), target=(300, 200), channels=3, seed=0, extreme=False)
@example(size=(2000, 1), target=(1, 1), channels=1, seed=0, extreme=False)
def test_the_library_computes_the_bytes_of_the_reference(
    size: tuple[int, int], target: tuple[int, int], channels: int, seed: int, extreme: bool
) -> None:
    image = random_image(*size, channels, seed, extreme=extreme)
    got = resize(image, *target)
    assert got.shape == (*target, channels)
    np.testing.assert_array_equal(got, resize_reference(image, *target))


@given(size=st.tuples(sides, sides), target=st.tuples(sides, sides), seed=st.integers(0, 2**32))
def test_the_result_is_within_one_level_of_pillows(size: tuple[int, int], target: tuple[int, int], seed: int) -> None:
    image = random_image(*size, 3, seed)
    difference = np.abs(resize_reference(image, *target).astype(int) - pillow(image, *target))
    assert difference.max() <= 1


def test_few_levels_differ_from_pillows_in_a_photo(pixels: Array) -> None:
    difference = np.abs(resize(pixels, 30, 40).astype(int) - pillow(pixels, 30, 40))
    assert difference.mean() < 0.2


def test_known_values() -> None:
    step = np.repeat(np.array([0, 255], np.uint8), 4)[None, :, None]
    np.testing.assert_array_equal(resize_reference(step, 1, 4)[0, :, 0], [0, 32, 223, 255])
    np.testing.assert_array_equal(resize_reference(step[:, 3:5], 1, 4)[0, :, 0], [0, 64, 191, 255])
    np.testing.assert_array_equal(resize_reference(step, 1, 1)[0, :, 0], [128])


@given(level=st.integers(0, 255), size=st.tuples(sides, sides), target=st.tuples(sides, sides))
def test_one_colour_stays_that_colour(level: int, size: tuple[int, int], target: tuple[int, int]) -> None:
    image = np.full((*size, 1), level, np.uint8)
    assert np.abs(resize(image, *target).astype(int) - level).max() <= 1  # the weights are rounded


def test_views_are_resized_as_their_copies_and_the_same_size_is_no_work() -> None:
    image = random_image(40, 50, 3, 1)
    for view in (image[5:30, 7:40], image[:, ::-1], image[::2, ::3], image.swapaxes(0, 1)):
        np.testing.assert_array_equal(resize(view, 20, 10), resize(view.copy(), 20, 10))
    assert resize(image, 40, 50) is image


@pytest.mark.parametrize("extension", ["none", "sse4_1", "avx2", "neon"])
def test_every_simd_level_computes_the_same(extension: str) -> None:
    library: Any = pytest.importorskip("cykooz_resizer")
    resizer_of_level = library.Resizer()
    try:
        resizer_of_level.cpu_extensions = library.CpuExtensions[extension]
    except Exception:  # noqa: BLE001 - a panic of the library
        pytest.skip(f"no {extension} on this machine")
    options = library.ResizeOptions(library.ResizeAlg.convolution(library.FilterType.bilinear))
    for channels, kind in ((3, library.PixelType.U8x3), (1, library.PixelType.U8)):
        image = random_image(123, 211, channels, 5)
        source, result = library.ImageData(211, 123, kind, image.tobytes()), library.ImageData(97, 64, kind)
        resizer_of_level.resize(source, result, options)
        got = np.frombuffer(result.get_buffer(), np.uint8).reshape(64, 97, channels)
        np.testing.assert_array_equal(got, resize_reference(image, 64, 97))


def test_the_reference_is_at_work_without_the_library_or_with_another_result(monkeypatch: pytest.MonkeyPatch) -> None:
    image = random_image(33, 44, 3, 2)
    expected = resize(image, 20, 30)
    for break_it in ("missing", "different"):
        with monkeypatch.context() as patch:
            if break_it == "missing":
                patch.setitem(sys.modules, "cykooz_resizer", None)
            else:
                patch.setattr(resizing._Simd, "resize", lambda self, image, height, width: np.zeros((height, width, 3)))
            resizing._simd.cache_clear()
            assert resizer() == "NumPy"
            np.testing.assert_array_equal(resize(image, 20, 30), expected)
    resizing._simd.cache_clear()
