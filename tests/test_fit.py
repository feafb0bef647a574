"""`resize(size, fit=...)` keeps the aspect ratio as Keras does, and images with an alpha channel."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from caches import cached_images, keys_of
from conftest import write_files
from hypothesis import example, given
from hypothesis import strategies as st
from keras.preprocessing.image import smart_resize
from numpy.typing import NDArray
from PIL import Image

from joulecache.pipelines.building.precomputing import precompute
from joulecache.pipelines.cache.names import Encoding
from joulecache.pipelines.loading.loader import load
from joulecache.transforms import BoxesTarget, MaskTarget, PointsTarget, Resize, parse
from joulecache.transforms.chain import apply
from joulecache.transforms.ops.decode import Decode

Array = NDArray[np.uint8]
sides = st.integers(1, 40) | st.integers(1, 700)
small_sides = st.integers(1, 20)


@given(size=st.tuples(small_sides, small_sides), target=st.tuples(st.integers(20, 50), st.integers(20, 50)))
def test_crops_are_those_of_keras(size: tuple[int, int], target: tuple[int, int]) -> None:
    """Small images are enlarged, which is the same with antialias and without."""
    image = np.random.default_rng(size).integers(0, 256, (*size, 3), np.uint8)
    expected = smart_resize(image, target, data_format="channels_last")
    found = apply([Resize(target, fit="crop")], image, [])
    assert np.abs(found - np.asarray(expected, np.float32)).max() < 1.01  # two roundings


@given(size=st.tuples(sides, sides), target=st.tuples(sides, sides))
@example(size=(375, 500), target=(224, 224))
@example(size=(49, 7), target=(49, 49))
def test_bars_are_those_of_tensorflow(size: tuple[int, int], target: tuple[int, int]) -> None:
    white = np.full((*size, 1), 255, np.uint8)
    found = apply([Resize(target, fit="pad")], white, [])
    try:
        expected = tf.image.resize_with_pad(white, *target)
    except tf.errors.InvalidArgumentError:  # it cannot make an image of no pixels
        assert found.any()
    else:
        np.testing.assert_array_equal(found > 0, expected.numpy() > 0)


@given(size=st.tuples(small_sides, small_sides), target=st.tuples(st.integers(20, 50), st.integers(20, 50)))
def test_pixels_between_bars_are_those_of_tensorflow(size: tuple[int, int], target: tuple[int, int]) -> None:
    image = np.random.default_rng(size).integers(0, 256, (*size, 3), np.uint8)
    expected = tf.image.resize_with_pad(image, *target).numpy()
    assert np.abs(apply([Resize(target, fit="pad")], image, []) - expected).max() < 1.01  # two roundings


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size", [(60, 100), (100, 60)])
def test_targets_move_with_the_pixels(fit: str, size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    image[40:52, 24:40] = 255
    chain = parse(f"decode|resize((30, 40), fit='{fit}')")
    box = BoxesTarget(np.array([[24, 40, 40, 52]], np.float32), np.array([0]))
    points = PointsTarget(np.array([[24, 40, 1], [40, 52, 1]], np.float32))
    mask = MaskTarget((image[:, :, :1] > 0).astype(np.uint8))
    pixels, (boxes, corners, moved) = chain.with_targets(image, [box, points, mask])
    assert isinstance(boxes, BoxesTarget)
    assert isinstance(corners, PointsTarget)
    assert isinstance(moved, MaskTarget)
    rows, columns = np.nonzero(pixels[:, :, 0] > 127)
    seen = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    np.testing.assert_allclose(boxes.boxes[0], seen, atol=1)
    np.testing.assert_allclose(corners.points[:, :2].reshape(-1), seen, atol=1)
    np.testing.assert_array_equal(moved.ids.any(axis=(0, 1)), [True])
    assert np.mean((moved.ids[:, :, 0] > 0) != (pixels[:, :, 0] > 127)) < 0.05


def test_a_fit_is_one_of_three() -> None:
    with pytest.raises(ValueError, match=r"resize: fit must be one of 'stretch', 'crop', 'pad', got 'cover'"):
        Resize(8, fit="cover")
    assert str(parse("decode|resize(8, fit='stretch')")) == "decode|resize(8)"


# Alpha ----------------------------------------------------------------------------------------------------------------


def encoded(pixels: Array, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def rgba(seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (12, 10, 4), np.uint8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB", "L", "P", "CMYK"])
def test_four_channels_are_those_of_pillow(mode: str) -> None:
    image = Image.fromarray(rgba(1)).convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    stream = io.BytesIO()
    image.save(stream, "TIFF" if mode == "CMYK" else "PNG")
    expected = np.asarray(Image.open(stream).convert("RGBA"))
    np.testing.assert_array_equal(Decode(channels=4).pixels(stream.getvalue()), expected)


def test_a_jpeg_is_opaque() -> None:
    jpeg = encoded(rgba(2)[:, :, :3], "JPEG")
    decoded = Decode(channels=4).pixels(jpeg)
    np.testing.assert_array_equal(decoded[:, :, :3], Decode().pixels(jpeg))
    assert (decoded[:, :, 3] == 255).all()


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_caches_keep_alpha(tmp_path: Path, encoding: Encoding) -> None:
    root = write_files(tmp_path / "images", {f"a/{n}.png": encoded(rgba(n)) for n in range(3)})
    chain = "decode(channels=4)|resize(8) || flip_lr(1)"
    precompute(root, tmp_path / "cache", chain, val_fraction=0, encoding=encoding)
    keys = keys_of(tmp_path / "cache", "train")
    assert len(keys) == 3
    for key, found in zip(keys, cached_images(tmp_path / "cache", "train", 0), strict=True):
        np.testing.assert_array_equal(found, parse("decode(channels=4)|resize(8)")(root / key))
    for images, _ in load(tmp_path / "cache", "train", batch_size=3):
        assert images.shape == (3, 8, 8, 4)


def test_what_cannot_keep_alpha_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keeps an alpha channel, which JPEG cannot hold: choose encoding raw or png"):
        precompute("synthetic:3", tmp_path / "cache", "decode(channels=4)|resize(8)", encoding="jpeg")
    with pytest.raises(ValueError, match="hue does not support an alpha channel: drop it, or decode 3 channels"):
        parse("decode(channels=4)|hue(0.1)")
    with pytest.raises(ValueError, match="background replaces the alpha channel"):
        Decode(channels=4, background=0)
