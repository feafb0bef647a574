"""TensorFlow's kernels against the ops' own pixels: equal where nothing is interpolated, within a level where something is."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from metadata import REFUSED_CHUNKS, REFUSED_SEGMENTS, in_jpeg, in_png
from numpy.typing import NDArray
from PIL import Image

from joulecache.pipelines.source import synthetic_photo
from joulecache.transforms import (
    Brightness,
    CentralCrop,
    Contrast,
    Cutout,
    Decode,
    FlipLr,
    FlipUd,
    Hue,
    Normalize,
    Op,
    Pad,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    ResizeShorter,
    Rotate,
    ToFloat,
    parse,
)
from joulecache.transforms import tensorflow as graphs
from joulecache.transforms.chain import apply, apply_batch_ops
from joulecache.transforms.ops import OPS, BatchOp, op_name
from joulecache.transforms.ops.decode import EXIF_ORIENTATION
from joulecache.transforms.ops.geometry import PADDING_MODES
from joulecache.transforms.randomness import random_words

Array = NDArray[np.uint8]
Levels = NDArray[np.uint8] | NDArray[np.float32]

DOGS_CATS = Path(__file__).parents[2] / "shared" / "data" / "dogs_cats.tar"
RECORDS = 4
IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

relaxed = settings(max_examples=25)


synthetic = lru_cache(synthetic_photo)


def photo(index: int) -> Image.Image:
    return Image.open(io.BytesIO(synthetic(index)))


def pixels(index: int, channels: int = 3) -> Array:
    return np.asarray(photo(index))[:130, :170, :channels]


def drawn_integers(ops: Sequence[Op], words: Sequence[int], height: int, width: int) -> list[int]:
    """Return what the ops draw, one after the other, for an image of this size."""
    drawn: list[int] = []
    for op in ops:
        drawn += op.draw(words[: op.random_words], height, width)
        words = words[op.random_words :]
        height, width = op.output_size(height, width)
    return drawn


def reference(ops: Sequence[Op], image: bytes | Array, words: Sequence[int]) -> Levels:
    on_images = [op for op in ops if not isinstance(op, BatchOp)]
    return apply_batch_ops(ops[len(on_images) :], apply(on_images, image, words), ())


def takes(op: Op, channels: int) -> bool:
    """Return whether an op's arguments fit images of that many channels: a colour does not fit grey ones."""
    try:
        return op.output_channels(channels) == channels
    except ValueError:
        return False


def with_channels(ops: Sequence[Op]) -> list[Any]:
    """Return each op with 1 and with 3 channels, where it takes them."""
    return [
        pytest.param(op, channels, id=f"{op}-{channels}") for op in ops for channels in (1, 3) if takes(op, channels)
    ]


def pairs(ops: Sequence[Op], images: Sequence[bytes | Array]) -> Iterator[tuple[Levels, Levels]]:
    """Yield each image's pixels by TensorFlow, alike eagerly and inside `Dataset.map`, and by the ops themselves."""
    words = random_words(ops, 0, 0, range(len(images)), 0)
    drawn = []
    for image, row in zip(images, words, strict=True):
        start = apply(ops[:1], image, row) if isinstance(image, bytes) else image
        drawn.append(np.array(drawn_integers(ops, row, *start.shape[:2]), np.int32))
    first = images[0]
    spec = (
        tf.TensorSpec([], tf.string)
        if isinstance(first, bytes)
        else tf.TensorSpec([None, None, first.shape[2]], tf.uint8)
    )
    signature = (spec, tf.TensorSpec(drawn[0].shape, tf.int32))
    data = tf.data.Dataset.from_generator(lambda: zip(images, drawn, strict=True), output_signature=signature)
    mapped = data.map(lambda image, integers: graphs.apply(ops, image, integers))
    for image, row, integers, got in zip(images, words, drawn, mapped, strict=True):
        eager = graphs.apply(ops, tf.constant(image), tf.constant(integers))
        np.testing.assert_array_equal(eager, got)
        expected = reference(ops, image, row)
        assert got.dtype.as_numpy_dtype == expected.dtype
        yield got.numpy(), expected


def assert_equal(ops: Sequence[Op], images: Sequence[bytes | Array]) -> None:
    for number, (got, expected) in enumerate(pairs(ops, images)):
        np.testing.assert_array_equal(got, expected, err_msg=f"image {number}")


def assert_alike(ops: Sequence[Op], images: Sequence[bytes | Array]) -> None:
    for got, expected in pairs(ops, images):
        assert got.shape == expected.shape
        difference = in_levels(ops, got) - in_levels(ops, expected)
        assert np.abs(difference).mean() <= 1
        assert abs(difference.mean()) <= 0.2  # neither is rounded down
        assert np.percentile(np.abs(difference), 99.9) <= 3


def in_levels(ops: Sequence[Op], pixels: Levels) -> NDArray[np.float64]:
    """Return images as levels of 0 to 255, floats too."""
    levels = pixels.astype(np.float64)
    for op in reversed(ops):
        if isinstance(op, Normalize):
            levels = levels * op.std + op.mean
        if isinstance(op, ToFloat):
            levels *= 255
    return levels


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


@pytest.mark.parametrize(("channels", "shorter"), [(3, None), (1, None), (3, 72), (1, 20)])
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


@pytest.mark.parametrize(("channels", "shorter"), [(3, None), (1, 72)])
def test_an_mpo_decodes_to_its_first_picture(channels: int, shorter: int | None) -> None:
    mpo = encoded(photo(1), "MPO", save_all=True, append_images=[photo(2)])
    assert Image.open(io.BytesIO(mpo)).format == "MPO"
    assert_equal([Decode(channels, shorter=shorter)], [mpo])


def cmyk(index: int, yellow_is_luma: bool = False) -> bytes:
    """Encode a photo as printers do: what is common to the colours is black ink."""
    inks = 255 - pixels(index)
    black = inks.min(axis=2, keepdims=True)
    data = encoded(Image.fromarray(np.concatenate([inks - black, black], axis=2), "CMYK"), "JPEG", quality=90)
    if not yellow_is_luma:
        return data
    marker = data.index(b"Adobe")  # its last byte says that the first three channels are YCC
    return data[: marker + 11] + b"\x02" + data[marker + 12 :]


@pytest.mark.parametrize("ycck", [False, True])
def test_a_cmyk_jpeg_is_at_most_one_level_darker(ycck: bool) -> None:
    for got, expected in pairs([Decode()], [cmyk(record, ycck) for record in range(RECORDS)]):
        assert got.shape == expected.shape
        assert set(np.unique(got.astype(int) - expected)) <= {-1, 0}


def test_what_tensorflow_cannot_decode_is_refused_rather_than_guessed() -> None:
    transparent = photo(1).convert("RGBA")
    transparent.putalpha(photo(1).convert("L"))
    for op, data in [
        (Decode(1), cmyk(1)),
        (Decode(), encoded(transparent, "WEBP")),
        *((Decode(), encoded(photo(1), kind)) for kind in ("TIFF", "AVIF", "JPEG2000", "PPM", "TGA")),
    ]:
        assert apply([op], data, []).shape[2] == op.channels
        with pytest.raises(tf.errors.InvalidArgumentError):
            graphs.apply([op], tf.constant(data), tf.zeros([0], tf.int32))


# Every EXIF orientation, and numbers that are none.
TURNS = (*range(10), 65535)


@pytest.mark.parametrize(
    ("kind", "channels", "shorter"), [("JPEG", 3, None), ("JPEG", 1, 72), ("PNG", 1, None), ("WEBP", 3, 72)]
)
def test_an_image_is_turned_as_its_orientation_says(kind: str, channels: int, shorter: int | None) -> None:
    files = []
    for turn in TURNS:
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = turn
        files.append(encoded(photo(1).crop((0, 0, 301, 199)), kind, exif=exif))
    op, nothing = Decode(channels, shorter=shorter), tf.zeros([0], tf.int32)
    data = tf.data.Dataset.from_tensor_slices((files, np.array(TURNS, np.int32)))
    mapped = data.map(lambda image, turn: graphs.apply([op], image, nothing, turn))
    assert mapped.element_spec.shape.as_list() == [None, None, channels]
    shown = set()
    for file, turn, got in zip(files, TURNS, mapped, strict=True):
        np.testing.assert_array_equal(got, apply([op], file, []), err_msg=f"orientation {turn}")
        np.testing.assert_array_equal(got, graphs.apply([op], tf.constant(file), nothing, tf.constant(turn)))
        shown.add(got.numpy().tobytes())
    assert len(shown) == 8


def test_metadata_that_pillow_refuses_are_skipped_as_the_reference_skips_them() -> None:
    png, jpeg = (encoded(photo(1).crop((0, 0, 101, 99)), kind) for kind in ("PNG", "JPEG"))
    files = [in_png(png, chunks, after_pixels=place % 2 > 0) for place, chunks in enumerate(REFUSED_CHUNKS.values())]
    assert_equal([Decode()], [*files, *(in_jpeg(jpeg, segments) for segments in REFUSED_SEGMENTS.values())])


@pytest.mark.parametrize("shorter", [1, 72])
def test_a_jpeg_is_scaled_as_the_reference_scales_it(shorter: int) -> None:
    sides = [(2 * shorter + margin, 4 * shorter + margin + 1) for margin in (-1, 0, 1)]
    assert_equal([Decode(shorter=shorter)], [encoded(photo(1).resize(side), "JPEG") for side in sides])


def test_a_truncated_jpeg_is_refused_unless_accepted() -> None:
    data = tf.constant(synthetic(1)[:-5000])
    nothing = tf.zeros([0], tf.int32)
    with pytest.raises(tf.errors.InvalidArgumentError):
        graphs.apply([Decode()], data, nothing)
    assert graphs.apply([Decode(truncated=True)], data, nothing).shape[2] == 3


# Ops that move pixels or change levels: equal

EXACT: list[Op] = [
    *(CentralCrop((101, 64)), CentralCrop((64, 101)), RandomCrop((72, 61)), FlipLr(), FlipUd()),
    *(Pad(0), Pad((1, 2, 3, 4), 9), Pad((1, 2, 3, 4), (9, 8, 7))),
    *(Pad((0, 1, 2, 3), padding_mode=mode) for mode in PADDING_MODES[1:]),
    *(Cutout((300, 9), 200), Cutout((8, 600), (9, 8, 7)), Brightness(1.0), Contrast(1.0)),
]


@pytest.mark.parametrize(("op", "channels"), with_channels(EXACT))
def test_an_op_that_does_not_interpolate_is_exact(op: Op, channels: int) -> None:
    assert_equal([op], [pixels(record, channels) for record in range(RECORDS)])


@given(data=st.data(), mode=st.sampled_from(PADDING_MODES), channels=st.sampled_from([1, 3]))
def test_a_border_of_any_width_is_exact(data: st.DataObject, mode: str, channels: int) -> None:
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    spared = {"reflect": 1, "symmetric": 0}.get(mode, -9)
    across, down = st.integers(0, width - spared), st.integers(0, height - spared)
    padding = data.draw(st.tuples(across, down, across, down))
    colour = st.tuples(*[st.integers(0, 255)] * 3)
    fill: Any = data.draw(colour if channels == 3 and mode == "constant" else st.integers(0, 255))
    image = np.random.default_rng(height).integers(0, 256, (height, width, channels), np.uint8)
    op = Pad(padding, fill, mode)
    got = graphs.apply([op], tf.constant(image), tf.zeros([0], tf.int32))
    np.testing.assert_array_equal(got, apply([op], image, []))


@pytest.mark.parametrize(
    "op", [Pad((0, 0, 9, 0), padding_mode="reflect"), Pad((0, 10, 0, 0), padding_mode="symmetric")]
)
def test_a_border_that_mirrors_more_than_there_is_is_refused(op: Pad) -> None:
    image = np.zeros((9, 9, 3), np.uint8)
    with pytest.raises(ValueError, match=r"padding_mode .* cannot add a border"):
        apply([op], image, [])
    with pytest.raises(tf.errors.InvalidArgumentError):
        graphs.apply([op], tf.constant(image), tf.zeros([0], tf.int32))


FLOATS: list[list[Op]] = [
    [ToFloat()],
    [ToFloat(), IMAGENET],
    [ToFloat(), Normalize(0, 0.3)],
    [ToFloat(), Normalize(0.1, (0.3, 0.7, 1.1))],
    [ToFloat(), Normalize(0.3, 1), Normalize(0.1, 0.7)],
]


@pytest.mark.parametrize("ops", FLOATS, ids=repr)
def test_floats_are_those_of_the_reference_to_the_last_bit(ops: list[Op]) -> None:
    for channels in (1, 3):
        if not all(takes(op, channels) for op in ops):
            continue
        levels = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), channels, axis=2)
        assert_equal(ops, [levels, pixels(1, channels)])


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
        assert op.draw([word], height, width) == (factor,)
        got = graphs.apply([op], tf.constant(image), tf.constant([factor], tf.int32))
        np.testing.assert_array_equal(got, apply([op], image, [word]))


@given(height=st.integers(8, 40), width=st.integers(8, 40))
def test_a_central_crop_has_the_corner_of_the_reference(height: int, width: int) -> None:
    image = np.arange(height * width, dtype=np.int64).astype(np.uint8).reshape(height, width, 1)
    got = graphs.apply([CentralCrop((8, 7))], tf.constant(image), tf.zeros([0], tf.int32))
    np.testing.assert_array_equal(got, apply([CentralCrop((8, 7))], image, []))


@lru_cache
def photos() -> list[bytes]:
    """Fifty real photos where the data set is there, else a few synthetic ones."""
    if not DOGS_CATS.exists():
        return [synthetic(record) for record in range(RECORDS)]
    with tarfile.open(DOGS_CATS) as tar:
        members = [member for member in tar if member.isfile()][::28][:50]
        return [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]


@pytest.mark.parametrize("op", [Decode(), Decode(1), Decode(shorter=72), Decode(1, shorter=100)], ids=repr)
def test_photos_decode_to_the_same_pixels(op: Decode) -> None:
    assert_equal([op], photos())


EXACT_CHAINS = [
    "decode(shorter=72)|flip_lr|contrast(0.4)",
    "decode(1)|flip_ud|pad(9, padding_mode='reflect')|central_crop(72)|cutout((90, 300))|contrast(0.4)",
    "decode|random_crop(64)|pad((1, 2, 3, 4), (9, 8, 7))|flip_ud|pad(20, padding_mode='symmetric')|random_crop(71)",
    "decode|central_crop(64)|cutout(40, fill=(1, 2, 3))|brightness(0.4) || to_float|normalize((0.4, 0.5, 0.6), 0.25)",
]
ALIKE_CHAINS = [
    "decode(1)|resize((500, 224))",
    "decode(shorter=72)|resize_shorter(72)|central_crop(64)",
    "decode|random_resized_crop(64)|flip_lr|contrast(0.4)|brightness(0.4)|random_crop(56)",
    "decode|central_crop(72)|rotate(30)",
    "decode|resize(72)|pad(4)|hue(0.2)|cutout(16)|brightness(0.2) || to_float|normalize((0.4, 0.5, 0.6), 0.25)",
]


@pytest.mark.parametrize("text", EXACT_CHAINS)
def test_a_chain_without_resizing_is_exact(text: str) -> None:
    assert_equal(parse(text).ops, photos()[::4])


@pytest.mark.parametrize("text", ALIKE_CHAINS)
def test_a_chain_with_resizing_is_alike(text: str) -> None:
    assert_alike(parse(text).ops, photos()[::4])


def test_every_op_with_a_kernel_is_in_a_chain() -> None:
    used = {type(op) for text in (*EXACT_CHAINS, *ALIKE_CHAINS) for op in parse(text).ops}
    assert used == {kind for kind in OPS.values() if kind not in {type(op) for op in WITHOUT_KERNEL}}


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("decode(1)|resize_shorter(72)", (None, None, 1)),
        ("decode|resize(72)|random_crop(64)|flip_lr|brightness(0.1)|contrast(0.1)", (64, 64, 3)),
        ("decode(1)|pad(1, padding_mode='reflect') || to_float|normalize(0.5, 0.5)", (None, None, 1)),
        ("decode|resize(64)|pad((1, 2, 3, 4), padding_mode='symmetric')|cutout(9) || to_float", (70, 68, 3)),
    ],
)
def test_the_shape_of_the_result_is_known_before_any_image(text: str, shape: tuple[int | None, ...]) -> None:
    ops = parse(text).ops
    integers = tf.TensorSpec([graphs.drawn_count(ops)], tf.int32)
    graph = tf.function(lambda image, drawn: graphs.apply(ops, image, drawn))
    concrete = graph.get_concrete_function(tf.TensorSpec([], tf.string), integers)
    assert concrete.structured_outputs.shape.as_list() == list(shape)


# Ops that interpolate: within a level


INTERPOLATED: list[Op] = [
    *(Resize((300, 64)), Resize(600), ResizeShorter(100), ResizeShorter(500), RandomResizedCrop((224, 160), (0.5, 1))),
    Hue(0.3),
]
ROTATED: list[Op] = [Rotate(30), Rotate((90, 90)), Rotate(180, fill=9, center=(3, 70.5))]


@pytest.mark.parametrize("op", INTERPOLATED, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_op_that_interpolates_is_within_a_level_on_average(op: Op, channels: int) -> None:
    assert_alike([op], [pixels(record, channels) for record in range(RECORDS)])


@pytest.mark.parametrize("op", ROTATED, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_rotation_fetches_other_pixels_in_few_places(op: Op, channels: int) -> None:
    for got, expected in pairs([op], [pixels(record, channels) for record in range(RECORDS)]):
        assert got.shape == expected.shape
        assert (got != expected).mean() < 0.002


# Batches


BATCHES: list[list[Op]] = [
    [],
    [RandomCrop((90, 80)), FlipLr(), FlipUd(), FlipLr(), RandomCrop(64), Brightness(0.4)],
    [FlipLr(), RandomCrop((90, 80)), CentralCrop((71, 72)), FlipLr(), Contrast(0.4), Brightness(0.4)],
    *(
        [FlipUd(), Pad((1, 2, 3, 4), 9, mode), RandomCrop(100), Cutout((50, 300), 7), FlipLr()]
        for mode in PADDING_MODES
    ),
    [RandomCrop((90, 80)), Rotate(20, fill=7), Brightness(0.4), ToFloat(), Normalize(0.5, 0.25)],
    [Pad((1, 2, 3, 4), (9, 8, 7)), RandomCrop(100), Cutout(60, (3, 2, 1)), FlipLr(), ToFloat(), IMAGENET],
]


@pytest.mark.parametrize(
    ("ops", "channels"),
    [(ops, channels) for ops in BATCHES for channels in (1, 3) if all(takes(op, channels) for op in ops)],
)
def test_a_batch_is_its_images_one_by_one(ops: list[Op], channels: int) -> None:
    images = np.stack([pixels(record % RECORDS, channels)[:100, :120] for record in range(12)])
    words = random_words(ops, 1, 0, range(12), 0)
    drawn = np.array([drawn_integers(ops, row, 100, 120) for row in words], np.int32)
    batch = graphs.apply_batch(ops, tf.constant(images), tf.constant(drawn))
    data = tf.data.Dataset.from_tensor_slices((images, drawn)).batch(4)
    mapped = data.map(lambda some, integers: graphs.apply_batch(ops, some, integers))
    np.testing.assert_array_equal(np.concatenate(list(mapped)), batch)
    for image, row, integers, got in zip(images, words, drawn, batch, strict=True):
        expected = reference(ops, image, row)
        assert mapped.element_spec.shape.as_list() == [None, *expected.shape]  # known before any image
        assert got.dtype.as_numpy_dtype == expected.dtype
        assert (got.numpy() != expected).mean() <= (0.002 if any(isinstance(op, Rotate) for op in ops) else 0)
        np.testing.assert_array_equal(got, graphs.apply(ops, tf.constant(image), tf.constant(integers)))


def test_every_batched_op_is_tested_in_batches() -> None:
    assert {type(op) for ops in BATCHES for op in ops} == {type(op) for op in WITH_KERNEL if graphs.runs_on_batches(op)}


@pytest.mark.parametrize("op", [Decode(), Resize(8), ResizeShorter(8), RandomResizedCrop(8)], ids=repr)
def test_an_op_that_does_not_run_on_batches_is_refused_by_name(op: Op) -> None:
    with pytest.raises(ValueError, match="does not run on batches"):
        graphs.apply_batch([op], tf.zeros([2, 9, 9, 3], tf.uint8), tf.zeros([2, 22], tf.int32))


# Which ops have kernels


WITHOUT_KERNEL = parse(
    "decode || affine(10)|saturation(0.1)|color_jitter(0.1)|grayscale(3)|gaussian_blur(3)|gaussian_noise|autocontrast|"
    "equalize|posterize(4)|solarize(128)|sharpness(2)|rand_augment|trivial_augment|mixup|cutmix"
).suffix
WITH_KERNEL = [Decode(), *EXACT, *INTERPOLATED, *ROTATED, *(op for ops in FLOATS for op in ops)]


@pytest.mark.parametrize("name", OPS)
def test_every_op_is_either_tested_here_or_refused_by_name(name: str) -> None:
    examples = [op for op in (*WITH_KERNEL, *WITHOUT_KERNEL) if op_name(type(op)) == name]
    assert examples
    for op in examples:
        why = graphs.unsupported([Decode(), op])
        if op in WITHOUT_KERNEL:
            assert str(why).startswith(f"no TensorFlow kernel for {name}: ")
            with pytest.raises(ValueError, match=f"no TensorFlow kernel for {name}: "):
                graphs.apply([op], tf.zeros([9, 9, 3], tf.uint8), tf.zeros([0], tf.int32))
        else:
            assert why is None


@pytest.mark.parametrize(
    ("op", "what"),
    [
        (Decode(background=255), "decode with a background"),
        (Decode(4), "decode with 4 channels"),
        (Resize(8, "crop"), "resize with fit='crop'"),
        (Resize(8, "pad"), "resize with fit='pad'"),
        (Rotate(8, "bilinear"), "rotate with interpolation='bilinear'"),
        (Rotate(8, fill=(1, 2, 3)), "rotate with interpolation='nearest' or a fill for each channel"),
    ],
    ids=str,
)
def test_arguments_without_kernel_are_refused_by_name(op: Op, what: str) -> None:
    assert f"no TensorFlow kernel for {what}" in str(graphs.unsupported([op]))


def test_a_custom_op_does_not_run_as_the_built_in_one_that_it_derives_from() -> None:
    @dataclass(frozen=True)
    class FlipTwice(FlipLr):
        def pixels(self, image: Array, draw: tuple[int, ...]) -> Array:
            return image[::-1, ::-1]

    assert "no TensorFlow kernel for flip_twice" in str(graphs.unsupported([Decode(), FlipTwice()]))
    assert not graphs.runs_on_batches(FlipTwice())


def test_autograph_has_nothing_to_say_of_them(photo: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    ops = parse("decode|resize(16)|flip_lr").ops
    drawn = np.ones(1, np.int32)
    images = tf.data.Dataset.from_tensors(photo).map(lambda data: graphs.apply(ops, data, drawn)).batch(1)
    [batch] = images.map(lambda some: graphs.apply_batch(ops[2:], some, drawn[None]))
    assert batch.shape == (1, 16, 16, 3)
    assert "AutoGraph" not in capfd.readouterr().err
