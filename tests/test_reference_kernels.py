"""The pixels that count: against formulas written out, against Pillow, and against the golden ones."""

from __future__ import annotations

import io
import json
import math
import random
import struct
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFile

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
    parse,
)
from joulecache.transforms.ops import OPS, op_name
from joulecache.transforms.randomness import random_words
from joulecache.transforms.reference_kernels import DecodeError, apply, as_array, as_image, decode
from joulecache.transforms.reference_kernels.colour import grey_total
from joulecache.transforms.reference_kernels.decoding import _tolerance

Array = NDArray[np.uint8]

GOLDEN = Path(__file__).parent / "golden"
CHAINS: dict[str, str] = json.loads((GOLDEN / "chains.json").read_text("utf-8"))
LARGEST = 2**32 - 1
EXIF_ORIENTATION, EXIF_MAKE = 0x0112, 0x010F
RATIONAL = 5

relaxed = settings(deadline=None)
images: st.SearchStrategy[Array] = st_numpy.arrays(
    np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3]))
)
words = st.integers(0, LARGEST)


def encoded(image: Image.Image | Array, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else as_image(image)).save(stream, kind, **options)
    return stream.getvalue()


def decoded(data: bytes, op: Decode | None = None) -> Array:
    return as_array(decode(op or Decode(), data))


@pytest.fixture(scope="session")
def pixels(photo: bytes) -> Array:
    """The photo's 48x64 RGB pixels."""
    return np.asarray(Image.open(io.BytesIO(photo)))


# Golden


@pytest.mark.parametrize("name", CHAINS)
def test_the_pixels_are_the_golden_ones(name: str) -> None:
    """Where this fails, caches built before hold other pixels: raise the op's version, then run scripts/make_golden."""
    golden = Image.open(GOLDEN / f"{name}.png")
    assert golden.mode in ("RGB", "L")
    got = parse(CHAINS[name])(GOLDEN / "photo.jpg", key="golden.jpg", seed=7, n=3)
    np.testing.assert_array_equal(got, as_array(golden))


def test_every_op_has_golden_pixels() -> None:
    assert {op_name(type(op)) for text in CHAINS.values() for op in parse(text).ops} == set(OPS)


# Ops that move pixels


def test_a_central_crop_is_a_slice(pixels: Array) -> None:
    np.testing.assert_array_equal(apply([CentralCrop((20, 31))], pixels, []), pixels[14:34, 16:47])


@relaxed
@given(data=st.data())
def test_a_random_crop_is_the_slice_that_was_drawn(pixels: Array, data: st.DataObject) -> None:
    height, width = data.draw(st.tuples(st.integers(1, 48), st.integers(1, 64)))
    drawn = data.draw(st.tuples(words, words))
    top, left = drawn[0] * (49 - height) >> 32, drawn[1] * (65 - width) >> 32
    expected = pixels[top : top + height, left : left + width]
    np.testing.assert_array_equal(apply([RandomCrop((height, width))], pixels, drawn), expected)


def test_a_mirrored_image_runs_right_to_left(pixels: Array) -> None:
    np.testing.assert_array_equal(apply([FlipLr()], pixels, [0]), pixels[:, ::-1])
    np.testing.assert_array_equal(apply([FlipLr()], pixels, [LARGEST]), pixels)


@pytest.mark.parametrize(
    ("op", "drawn"), [(CentralCrop(20), []), (RandomCrop(20), [5, 5]), (FlipLr(), [0]), (FlipLr(), [LARGEST])]
)
def test_moving_pixels_copies_nothing(pixels: Array, op: Op, drawn: list[int]) -> None:
    assert np.shares_memory(apply([op], pixels, drawn), pixels)


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
    weights = [Fraction(part, 65536) for part in (19589, 38470, 7471)] if image.shape[2] == 3 else [Fraction(1)]
    greys = [math.floor(sum(weight * level for weight, level in zip(weights, row, strict=True))) for row in rows]
    mean = Fraction(sum(greys), len(greys))
    expected = [min(max(math.floor(factor * int(level) + (1 - factor) * mean), 0), 255) for level in image.ravel()]
    assert apply([Contrast(delta)], image, [word]).ravel().tolist() == expected


def drawn_factor(delta: float, word: int) -> Fraction:
    spread = round(delta * 65536)
    return 1 - Fraction(spread, 65536) + Fraction(word * (2 * spread + 1) >> 32, 65536)


@pytest.mark.parametrize("word", [0, 2**31, LARGEST])
def test_brightness_and_contrast_are_within_a_level_of_pillows(pixels: Array, word: int) -> None:
    factor, image = float(drawn_factor(0.5, word)), as_image(pixels)
    for op, theirs in (
        (Brightness(0.5), ImageEnhance.Brightness(image).enhance(factor)),
        (Contrast(0.5), ImageEnhance.Contrast(image).enhance(factor)),
    ):
        difference = apply([op], pixels, [word]).astype(int) - np.asarray(theirs)
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("op", [Brightness(0.0), Contrast(0.0)])
def test_a_factor_of_1_changes_nothing(pixels: Array, op: Op) -> None:
    for word in (0, LARGEST):
        np.testing.assert_array_equal(apply([op], pixels, [word]), pixels)


def test_the_grey_of_a_large_white_image_does_not_overflow() -> None:
    assert grey_total(np.full((4096, 4096, 3), 255, np.uint8)) == 255 * 2**24 - 2**24  # weights sum to just below 1


# Ops that resize


def triangle(before: int, after: int) -> NDArray[np.float64]:
    """Return the weights ``[after, before]`` of a triangle filter as wide as the image shrinks."""
    scale = before / after
    centres, places = (np.arange(after) + 0.5) * scale, np.arange(before) + 0.5
    weights = np.maximum(0, 1 - np.abs(places[None] - centres[:, None]) / max(scale, 1))
    normalised: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return normalised


@pytest.mark.parametrize("size", [(48, 64), (7, 9), (20, 100), (100, 20), (1, 1), (111, 130)])
def test_resize_is_a_triangle_filter_to_within_a_level(pixels: Array, size: tuple[int, int]) -> None:
    exact = np.einsum("yh,hwc,xw->yxc", triangle(48, size[0]), pixels, triangle(64, size[1]))
    assert np.abs(apply([Resize(size)], pixels, []) - exact).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_is_pillows(pixels: Array, channels: int) -> None:
    image = pixels[:, :, :channels]
    theirs = as_image(image).resize((31, 17), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(apply([Resize((17, 31))], image, []), as_array(theirs))


def test_resize_shorter_resizes_to_its_output_size(pixels: Array) -> None:
    assert apply([ResizeShorter(20)], pixels, []).shape == (20, 26, 3)
    np.testing.assert_array_equal(apply([ResizeShorter(20)], pixels, []), apply([Resize((20, 26))], pixels, []))


def test_random_resized_crop_cuts_then_resizes(pixels: Array) -> None:
    # A quarter of the area, square, in the last place: pixels beside the window must not be blended in.
    op = RandomResizedCrop(16, scale=(0.25, 0.25), ratio=(1, 1))
    drawn = [0] * 20 + [LARGEST, LARGEST]
    around = pixels.copy()
    around[:20] = around[:, :36] = 0
    expected = apply([Resize(16)], pixels[20:48, 36:64], [])
    np.testing.assert_array_equal(apply([op], pixels, drawn), expected)
    np.testing.assert_array_equal(apply([op], around, drawn), expected)


PICTURE_OPS = [
    Resize(16),
    ResizeShorter(16),
    CentralCrop(16),
    RandomCrop(16),
    RandomResizedCrop(16),
    FlipLr(1.0),
    Brightness(0.5),
    Contrast(0.5),
]


@pytest.mark.parametrize("op", PICTURE_OPS, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_op_treats_pillow_images_and_arrays_alike(pixels: Array, op: Op, channels: int) -> None:
    array = np.ascontiguousarray(pixels[:, :, :channels])
    [drawn] = random_words([op], 1, 0, [1], 0)
    np.testing.assert_array_equal(apply([op], as_image(array), drawn), apply([op], array, drawn))


@pytest.mark.parametrize("op", PICTURE_OPS, ids=repr)
def test_an_op_leaves_its_input_as_it_was(pixels: Array, op: Op) -> None:
    before = pixels.copy()
    apply([op], pixels, random_words([op], 1, 0, [1], 0)[0])
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("op", PICTURE_OPS, ids=repr)
def test_an_op_takes_the_view_that_another_leaves(pixels: Array, op: Op) -> None:
    view = pixels[4:44, ::-1]
    [drawn] = random_words([op], 1, 0, [1], 0)
    np.testing.assert_array_equal(apply([op], view, drawn), apply([op], view.copy(), drawn))


def test_each_op_takes_its_own_words(pixels: Array) -> None:
    flip, crop = FlipLr(), RandomCrop(16)
    both = apply([flip, crop], pixels, [0, 3 << 28, 5 << 28])
    np.testing.assert_array_equal(both, apply([crop], pixels[:, ::-1], [3 << 28, 5 << 28]))


# Decoding


def test_a_colour_image_is_rgb_and_a_grey_one_is_l(photo: bytes, pixels: Array) -> None:
    assert decode(Decode(), photo).mode == "RGB"
    assert decode(Decode(1), photo).mode == "L"
    np.testing.assert_array_equal(decoded(photo), pixels)
    assert decoded(photo, Decode(1)).shape == (48, 64, 1)


def test_a_grey_image_decoded_in_colour_has_three_like_channels(pixels: Array) -> None:
    grey = as_image(pixels).convert("L")
    got = decoded(encoded(grey, "PNG"))
    np.testing.assert_array_equal(got, np.repeat(np.asarray(grey)[:, :, None], 3, axis=2))


def test_the_grey_of_a_colour_jpeg_is_its_stored_luma() -> None:
    # With `shorter` and without: no way through colours, which are clipped where they are as strong as here.
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    data = encoded(noise, "JPEG")
    luma = Image.open(io.BytesIO(data))
    luma.draft("L", None)
    np.testing.assert_array_equal(decoded(data, Decode(1))[:, :, 0], np.asarray(luma))
    np.testing.assert_array_equal(decoded(data, Decode(1, shorter=48)), decoded(data, Decode(1)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "CMYK", "L"])
def test_other_modes_are_converted_as_pillow_does(pixels: Array, mode: str) -> None:
    image = as_image(pixels).convert(mode)
    data = encoded(image, "TIFF")
    np.testing.assert_array_equal(decoded(data), np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(decoded(data, Decode(1))[:, :, 0], np.asarray(image.convert("L")))


def test_transparency_is_dropped_without_a_warning(pixels: Array) -> None:
    palette = as_image(pixels).quantize(32)
    data = encoded(palette, "PNG", transparency=bytes(range(0, 256, 8)))
    np.testing.assert_array_equal(decoded(data), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bit_grey_keeps_its_high_byte(kind: str) -> None:
    deep = np.arange(0, 65536, 13, dtype=np.uint16)[:5040].reshape(63, 80)
    data = encoded(Image.fromarray(deep), kind)
    for channels in (1, 3):
        got = decoded(data, Decode(channels))
        np.testing.assert_array_equal(got, np.repeat((deep >> 8)[:, :, None], channels, axis=2))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_levels_are_refused(dtype: type) -> None:
    data = encoded(Image.fromarray(np.ones((4, 4), dtype)), "TIFF")
    with pytest.raises(DecodeError, match="levels of 32 bits have no agreed range: save it with 8 or 16 bits"):
        decode(Decode(), data)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_decoded(pixels: Array, kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second], **options)
    np.testing.assert_array_equal(decoded(data), np.asarray(first))


UPRIGHT: dict[int, Callable[[Array], Array]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[EXIF_ORIENTATION] = orientation
    return tags


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(pixels: Array, orientation: int, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(pixels, kind, exif=exif(orientation), **options)
    np.testing.assert_array_equal(decoded(data), UPRIGHT[orientation](pixels))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_to_a_scaled_jpeg(photo: bytes, orientation: int) -> None:
    tags = exif(orientation).tobytes()
    data = photo[:2] + b"\xff\xe1" + struct.pack(">H", len(tags) + 2) + tags + photo[2:]
    op = Decode(shorter=20)
    np.testing.assert_array_equal(decoded(data, op), UPRIGHT[orientation](decoded(photo, op)))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_means_nothing_is_ignored(pixels: Array, orientation: int) -> None:
    np.testing.assert_array_equal(decoded(encoded(pixels, "PNG", exif=exif(orientation))), pixels)


def test_damage_elsewhere_in_the_exif_does_not_reject_a_photo(pixels: Array) -> None:
    # ImageOps.exif_transpose would write the tags anew, and fail at a camera's name that calls itself a fraction.
    tags = exif(6)
    tags[EXIF_MAKE] = "a camera"
    damaged = bytearray(tags.tobytes())
    order = "<" if damaged[6:8] == b"II" else ">"
    entry = damaged.index(struct.pack(f"{order}HH", EXIF_MAKE, 2))
    struct.pack_into(f"{order}HHI", damaged, entry, EXIF_MAKE, RATIONAL, 1)
    np.testing.assert_array_equal(decoded(encoded(pixels, "PNG", exif=bytes(damaged))), UPRIGHT[6](pixels))


@pytest.mark.parametrize(
    ("shorter", "scale"), [(None, 1), (49, 1), (48, 1), (25, 1), (24, 2), (13, 2), (12, 4), (6, 8), (1, 8)]
)
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_is_large_enough(
    photo: bytes, shorter: int | None, scale: int
) -> None:
    for channels in (1, 3):
        op = Decode(channels, shorter=shorter)
        assert op.jpeg_scale(48, 64) == scale
        assert decoded(photo, op).shape == (48 // scale, 64 // scale, channels)


@pytest.mark.parametrize("size", [(97, 143), (143, 97), (17, 300), (250, 251)])
def test_the_sides_of_a_scaled_jpeg_are_rounded_up(pixels: Array, size: tuple[int, int]) -> None:
    data = encoded(apply([Resize(size)], pixels, []), "JPEG")
    for shorter in (1, 5, 12, 24, 48, 72, 144):
        op = Decode(shorter=shorter)
        scale = op.jpeg_scale(*size)
        assert decoded(data, op).shape == (-(-size[0] // scale), -(-size[1] // scale), 3)


def test_other_formats_are_not_scaled(pixels: Array) -> None:
    np.testing.assert_array_equal(decoded(encoded(pixels, "PNG"), Decode(shorter=8)), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_truncated_file_is_rejected(pixels: Array, kind: str) -> None:
    data = encoded(pixels, kind)
    with pytest.raises(DecodeError, match=r"truncated|end of file|not enough"):
        decode(Decode(), data[: len(data) * 2 // 3])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_file_is_accepted_when_asked(pixels: Array, kind: str) -> None:
    data = encoded(pixels, kind)
    got = decoded(data[: len(data) * 9 // 10], Decode(truncated=True))
    assert got.shape == pixels.shape
    np.testing.assert_array_equal(got[:12], decoded(data)[:12])  # its beginning is whole
    assert not np.array_equal(got, decoded(data))


def test_accepting_truncated_files_leaves_whole_ones_as_they_are(photo: bytes) -> None:
    np.testing.assert_array_equal(decoded(photo, Decode(truncated=True)), decoded(photo))


def test_accepting_truncated_files_in_one_thread_does_not_in_another(photo: bytes) -> None:
    # Pillow has one switch for the whole process.
    def accepted(truncated: bool) -> bool:
        try:
            decode(Decode(truncated=truncated), photo[:-200])
        except DecodeError:
            return False
        return True

    asked = [number % 3 == 0 for number in range(600)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(accepted, asked)) == asked


def test_who_waits_for_pillows_switch_is_not_passed_by() -> None:
    entered = []

    def enter(truncated: bool) -> None:
        with _tolerance(truncated):
            entered.append(truncated)

    with ThreadPoolExecutor(2) as pool, _tolerance(True):
        pool.submit(enter, False)
        for _ in range(2000):  # until it waits
            if _tolerance._door.locked():
                break
            time.sleep(0.001)
        pool.submit(enter, True)
        time.sleep(0.02)  # it could enter now, if it were let
    assert entered == [False, True]


@pytest.mark.parametrize("before", [False, True])
def test_pillows_switch_is_left_as_it_was(photo: bytes, before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", before)
    for truncated in (False, True):
        decode(Decode(truncated=truncated), photo)
        with suppress(DecodeError):
            decode(Decode(truncated=truncated), photo[:-200])
        assert before == ImageFile.LOAD_TRUNCATED_IMAGES


def png_without_pixels(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((13, header), (0, b"IDAT"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", size) + chunk + struct.pack(">I", zlib.crc32(chunk)) for size, chunk in chunks
    )


def test_too_many_pixels_are_refused_before_they_are_decompressed() -> None:
    bomb = png_without_pixels(9000, 9000)
    with pytest.raises(DecodeError, match=r"^9000x9000 is more than max_pixels=1000000$"):
        decode(Decode(max_pixels=1_000_000), bomb)
    with pytest.raises(DecodeError, match="truncated"):
        decode(Decode(), bomb)


def test_as_many_pixels_as_allowed_are_decoded(pixels: Array) -> None:
    data = encoded(pixels, "PNG")
    assert decoded(data, Decode(max_pixels=48 * 64)).shape == (48, 64, 3)
    with pytest.raises(DecodeError, match="48x64 is more than max_pixels=3071"):
        decode(Decode(max_pixels=48 * 64 - 1), data)


def test_pillows_own_limit_of_pixels_is_a_decode_error() -> None:
    with pytest.raises(DecodeError, match="DecompressionBombError"):
        decode(Decode(), png_without_pixels(60_000, 60_000))


@pytest.mark.parametrize("data", [b"", b"\0", b"hello", b"\xff\xd8\xff", b"GIF89a", b"RIFF\0\0\0\0WEBP", bytes(5000)])
def test_bytes_that_are_no_image_are_rejected(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(Decode(), data)


def test_a_reason_is_the_same_in_every_run() -> None:
    # It goes into a file that is named by its hash: no address in memory may stand in it.
    with pytest.raises(DecodeError, match=r"^not an image in one of the formats JPEG, PNG, [A-Z0-9, ]+$"):
        decode(Decode(), b"hello")


def test_a_reason_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError("broken\nin many ways")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(DecodeError, match=r"^OSError: broken$"):
        decode(Decode(), b"")


def test_postscript_is_not_handed_to_ghostscript(pixels: Array) -> None:
    with pytest.raises(DecodeError, match="not an image"):
        decode(Decode(), encoded(pixels, "EPS"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("truncated", [False, True])
def test_damaged_bytes_give_an_image_or_a_decode_error(pixels: Array, kind: str, truncated: bool) -> None:
    whole = encoded(apply([Resize((24, 32))], pixels, []), kind, **({"exif": exif(6)} if kind == "JPEG" else {}))
    rng = random.Random(kind)
    op = Decode(truncated=truncated, max_pixels=1_000_000)
    outcomes = set()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.choice([rng.randrange(len(data)), rng.randrange(64)])] = rng.randrange(256)
        try:
            image = decode(op, bytes(data[: rng.choice([len(data), rng.randrange(len(data))])]))
        except DecodeError:
            outcomes.add("rejected")
        else:
            outcomes.add("decoded")
            assert image.mode == "RGB"
            assert as_array(image).dtype == np.uint8
    assert outcomes == {"rejected", "decoded"}
