"""TensorFlow's pixels against the reference: equal where nothing is interpolated, within a level where something is."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from joulecache.pipelines.source import synthetic_photo
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
    graph_kernels,
    parse,
    reference_kernels,
)
from joulecache.transforms.ops import OPS
from joulecache.transforms.randomness import parameters, random_words

Array = NDArray[np.uint8]

DOGS_CATS = Path(__file__).parents[2] / "shared" / "data" / "dogs_cats.tar"
RECORDS = 4

relaxed = settings(deadline=None, max_examples=25)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


synthetic = lru_cache(synthetic_photo)


def photo(index: int) -> Image.Image:
    return Image.open(io.BytesIO(synthetic(index)))


def pixels(index: int, channels: int = 3) -> Array:
    return np.asarray(photo(index))[:, :, :channels]


def drawn_integers(ops: Sequence[Op], words: Sequence[int], height: int, width: int) -> list[int]:
    """Return what the ops' kernels take, one after the other, for an image of that size."""
    drawn: list[int] = []
    for op in ops:
        drawn += parameters(op, words[: op.words], height, width)
        words = words[op.words :]
        height, width = op.output_size(height, width)
    return drawn


def pairs(ops: Sequence[Op], images: Sequence[bytes | Array]) -> Iterator[tuple[Array, Array]]:
    """Yield each image's pixels by the graph kernels, alike eagerly and inside `Dataset.map`, and by the reference."""
    words = random_words(ops, 0, 0, range(len(images)), 0)
    drawn = []
    for image, row in zip(images, words, strict=True):
        start = reference_kernels.apply(ops[:1], image, row) if isinstance(image, bytes) else image
        drawn.append(np.array(drawn_integers(ops, row, *start.shape[:2]), np.int32))
    first = images[0]
    spec = (
        tf.TensorSpec([], tf.string)
        if isinstance(first, bytes)
        else tf.TensorSpec([None, None, first.shape[2]], tf.uint8)
    )
    signature = (spec, tf.TensorSpec(drawn[0].shape, tf.int32))
    data = tf.data.Dataset.from_generator(lambda: zip(images, drawn, strict=True), output_signature=signature)
    mapped = data.map(lambda image, integers: graph_kernels.apply(ops, image, integers))
    for image, row, integers, got in zip(images, words, drawn, mapped, strict=True):
        eager = graph_kernels.apply(ops, tf.constant(image), tf.constant(integers))
        np.testing.assert_array_equal(eager, got)
        yield got.numpy(), reference_kernels.apply(ops, image, row)


def assert_equal(ops: Sequence[Op], images: Sequence[bytes | Array]) -> None:
    for number, (got, expected) in enumerate(pairs(ops, images)):
        np.testing.assert_array_equal(got, expected, err_msg=f"image {number}")


def assert_alike(ops: Sequence[Op], images: Sequence[bytes | Array]) -> None:
    for got, expected in pairs(ops, images):
        assert got.shape == expected.shape
        difference = np.abs(got.astype(int) - expected)
        assert difference.mean() <= 1
        assert abs((got.astype(int) - expected).mean()) <= 0.2  # neither is rounded down
        assert np.percentile(difference, 99.9) <= 3


# Decoding


@pytest.fixture(scope="module")
def jpegs() -> list[bytes]:
    """A photo with sides that no block divides, in every kind of JPEG that cameras and the web make."""
    image = photo(1).crop((0, 0, 301, 199))
    kinds = [
        {"subsampling": chroma, "progressive": progressive, "quality": quality}
        for chroma in ("4:4:4", "4:2:2", "4:2:0")
        for progressive, quality in ((False, 90), (True, 60))
    ]
    return [encoded(image.convert("L"), "JPEG"), *(encoded(image, "JPEG", **kind) for kind in kinds)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shorter", [None, 72, 20])
def test_a_jpeg_decodes_to_the_same_pixels(jpegs: list[bytes], channels: int, shorter: int | None) -> None:
    assert_equal([Decode(channels, shorter=shorter)], jpegs)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_decodes_to_the_same_pixels(channels: int) -> None:
    deep = Image.fromarray(np.asarray(photo(2).convert("L")).astype(np.uint16) * 200)
    modes = [photo(2).convert(mode) for mode in ("RGB", "L", "RGBA", "LA", "P", "1")]
    assert_equal([Decode(channels)], [encoded(image, "PNG", compress_level=1) for image in (deep, *modes)])


@pytest.mark.parametrize("channels", [1, 3])
def test_other_formats_that_tensorflow_knows_decode_to_the_same_pixels(channels: int) -> None:
    assert_equal([Decode(channels)], [encoded(photo(2), kind) for kind in ("GIF", "BMP", "WEBP")])


@pytest.mark.parametrize("shorter", [1, 72, 145])
def test_a_jpeg_is_scaled_as_the_reference_scales_it(shorter: int) -> None:
    sides = [(2 * shorter + margin, 4 * shorter + margin + 1) for margin in (-1, 0, 1)]
    assert_equal([Decode(shorter=shorter)], [encoded(photo(1).resize(side), "JPEG") for side in sides])


def test_a_truncated_jpeg_is_refused_unless_accepted() -> None:
    data = tf.constant(synthetic(1)[:-5000])
    nothing = tf.zeros([0], tf.int32)
    with pytest.raises(tf.errors.InvalidArgumentError):
        graph_kernels.apply([Decode()], data, nothing)
    assert graph_kernels.apply([Decode(truncated=True)], data, nothing).shape[2] == 3


# Ops that move pixels or change levels: equal

EXACT: list[Op] = [
    CentralCrop(64),
    CentralCrop((101, 64)),
    CentralCrop((64, 101)),
    RandomCrop((72, 61)),
    FlipLr(),
    FlipLr(1.0),
    Brightness(0.4),
    Brightness(1.0),
    Contrast(0.4),
    Contrast(1.0),
]


@pytest.mark.parametrize("op", EXACT, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_op_that_does_not_interpolate_is_exact(op: Op, channels: int) -> None:
    assert_equal([op], [pixels(record, channels) for record in range(RECORDS)])


@relaxed
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
    level=st.integers(0, 255),
    factor=st.integers(0, 131072),
)
def test_levels_are_exact_for_any_image_and_factor(
    height: int, width: int, channels: int, level: int, factor: int
) -> None:
    image = np.random.default_rng(factor).integers(0, level + 1, (height, width, channels), np.uint8)
    for op in (Brightness(1.0), Contrast(1.0)):
        word = -(-(factor << 32) // 131073)  # the smallest word that draws this factor
        assert parameters(op, [word], height, width) == (factor,)
        got = graph_kernels.apply([op], tf.constant(image), tf.constant([factor], tf.int32))
        np.testing.assert_array_equal(got, reference_kernels.apply([op], image, [word]))


@relaxed
@given(height=st.integers(8, 40), width=st.integers(8, 40))
def test_a_central_crop_has_the_corner_of_the_reference(height: int, width: int) -> None:
    image = np.arange(height * width, dtype=np.int64).astype(np.uint8).reshape(height, width, 1)
    got = graph_kernels.apply([CentralCrop((8, 7))], tf.constant(image), tf.zeros([0], tf.int32))
    np.testing.assert_array_equal(got, reference_kernels.apply([CentralCrop((8, 7))], image, []))


def test_a_chain_without_resizing_is_exact_from_bytes_to_pixels() -> None:
    ops = parse("decode(shorter=100)|central_crop(90)|random_crop(72)|flip_lr|brightness(0.4)|contrast(0.4)").ops
    assert_equal(ops, [synthetic(record) for record in range(RECORDS)])


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("decode|flip_lr|contrast(0.1)", (None, None, 3)),
        ("decode(1)|resize_shorter(72)", (None, None, 1)),
        ("decode|resize(72)|random_crop(64)|flip_lr|brightness(0.1)|contrast(0.1)", (64, 64, 3)),
        ("decode|random_resized_crop(64)|contrast(0.1)", (64, 64, 3)),
        ("decode(1)|central_crop((64, 65))|contrast(0.1)", (64, 65, 1)),
    ],
)
def test_the_shape_of_the_result_is_known_before_any_image(text: str, shape: tuple[int | None, ...]) -> None:
    ops = parse(text).ops
    integers = tf.TensorSpec([sum(graph_kernels.DRAWN.get(type(op), 0) for op in ops)], tf.int32)
    graph = tf.function(lambda image, drawn: graph_kernels.apply(ops, image, drawn))
    concrete = graph.get_concrete_function(tf.TensorSpec([], tf.string), integers)
    assert concrete.structured_outputs.shape.as_list() == list(shape)


# Ops that interpolate: within a level


INTERPOLATED: list[Op] = [
    Resize(72),
    Resize((300, 64)),
    Resize(600),
    ResizeShorter(100),
    ResizeShorter(500),
    RandomResizedCrop(64),
    RandomResizedCrop((224, 160), scale=(0.5, 1)),
]


@pytest.mark.parametrize("op", INTERPOLATED, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_op_that_interpolates_is_within_a_level_on_average(op: Op, channels: int) -> None:
    assert_alike([op], [pixels(record, channels) for record in range(RECORDS)])


@pytest.mark.skipif(not DOGS_CATS.exists(), reason=f"needs {DOGS_CATS}")
@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("decode", True),
        ("decode(1)", True),
        ("decode(shorter=72)|flip_lr|contrast(0.4)", True),
        ("decode|resize(72)", False),
        ("decode(shorter=72)|resize_shorter(72)|central_crop(64)", False),
        ("decode|random_resized_crop(64)", False),
    ],
)
def test_real_photos_are_alike(text: str, exact: bool) -> None:
    with tarfile.open(DOGS_CATS) as tar:
        members = [member for member in tar if member.isfile()][::100]
        photos = [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    assert len(photos) >= 10
    (assert_equal if exact else assert_alike)(parse(text).ops, photos)


def test_ops_that_interpolate_go_with_those_that_do_not() -> None:
    ops = parse("decode|random_resized_crop(64)|flip_lr|contrast(0.4)|brightness(0.4)|random_crop(56)").ops
    assert_alike(ops, [synthetic(record) for record in range(RECORDS)])


# Batches


BATCHES: list[list[Op]] = [
    [RandomCrop((90, 80)), FlipLr()],
    [RandomCrop((90, 80)), Brightness(0.4)],
    [RandomCrop((90, 80)), FlipLr(), FlipLr(), RandomCrop(64)],
    [FlipLr(), RandomCrop((90, 80)), CentralCrop((71, 72)), FlipLr(), Contrast(0.4), Brightness(0.4)],
]


@pytest.mark.parametrize("ops", BATCHES, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_its_images_one_by_one(ops: list[Op], channels: int) -> None:
    images = np.stack([pixels(record % RECORDS, channels)[:100, :120] for record in range(12)])
    words = random_words(ops, 1, 0, range(12), 0)
    drawn = tf.constant([drawn_integers(ops, row, 100, 120) for row in words], tf.int32)
    batch = graph_kernels.apply_batch(ops, tf.constant(images), drawn)
    for image, row, integers, got in zip(images, words, drawn, batch, strict=True):
        np.testing.assert_array_equal(got, reference_kernels.apply(ops, image, row))
        np.testing.assert_array_equal(got, graph_kernels.apply(ops, tf.constant(image), integers))


def test_every_batched_op_is_tested_in_batches() -> None:
    assert {type(op) for ops in BATCHES for op in ops} == set(graph_kernels.BATCHED)


def test_a_batch_runs_inside_tf_data() -> None:
    ops = [RandomCrop(64), FlipLr(), Contrast(0.4)]
    images = np.stack([pixels(record)[:100, :120] for record in range(RECORDS)])
    drawn = np.array([drawn_integers(ops, w, 100, 120) for w in random_words(ops, 1, 0, range(RECORDS), 0)], np.int32)
    data = tf.data.Dataset.from_tensor_slices((images, drawn)).batch(4)
    mapped = list(data.map(lambda i, d: graph_kernels.apply_batch(ops, i, d)))
    expected = graph_kernels.apply_batch(ops, tf.constant(images), tf.constant(drawn))
    np.testing.assert_array_equal(np.concatenate(mapped), expected)


@pytest.mark.parametrize("op", [Decode(), Resize(8), ResizeShorter(8), RandomResizedCrop(8)], ids=repr)
def test_an_op_that_does_not_run_on_batches_is_refused_by_name(op: Op) -> None:
    with pytest.raises(ValueError, match="does not run on batches"):
        graph_kernels.apply_batch([op], tf.zeros([2, 9, 9, 3], tf.uint8), tf.zeros([2, 22], tf.int32))


def test_an_op_without_a_graph_kernel_is_refused_by_name() -> None:
    class Posterize(Op):
        def __repr__(self) -> str:
            return "Posterize()"

    with pytest.raises(ValueError, match=r"no TensorFlow kernel for Posterize\(\)"):
        graph_kernels.apply([Posterize()], tf.zeros([9, 9, 3], tf.uint8), tf.zeros([0], tf.int32))


def test_each_op_that_draws_says_how_many_integers_it_takes() -> None:
    examples = [Decode(), Resize(8), ResizeShorter(8), *EXACT, *INTERPOLATED]
    assert {type(op) for op in examples} == set(OPS.values())
    for op in examples:
        [words] = random_words([op], 0, 0, [1], 0)
        assert len(parameters(op, words, 200, 200)) == graph_kernels.DRAWN.get(type(op), 0)
