"""Decode as the world is: every kind of file that people have, and every way in which one can be broken."""

from __future__ import annotations

import io
import random
import resource
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import encoded
from metadata import REFUSED_CHUNKS, REFUSED_SEGMENTS, chunk, in_jpeg, in_png
from numpy.typing import NDArray
from PIL import Image, ImageFile

from joulecache.transforms import Decode, Resize
from joulecache.transforms.chain import apply
from joulecache.transforms.images import as_array, as_image
from joulecache.transforms.ops import DecodeError, Fill
from joulecache.transforms.ops.decode import _truncation

Array = NDArray[np.uint8]

EXIF_ORIENTATION, EXIF_MAKE = 0x0112, 0x010F
RATIONAL = 5

LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "WEBP": {"lossless": True, "exact": True}, "TIFF": {}, "JPEG2000": {}}


def decoded(data: bytes, op: Decode | None = None) -> Array:
    return as_array((op or Decode()).pixels(data))


def apart(one: Array, other: Array) -> int:
    """Return the largest difference of two levels."""
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other).max())


@pytest.fixture(scope="session")
def smooth() -> Array:
    """48x64 RGB pixels that lossy formats hardly change."""
    y, x = np.mgrid[:48, :64]
    return np.stack([x * 3 + 20, y * 4 + 30, 200 - x - y], axis=-1).astype(np.uint8)


# Modes


def test_the_grey_of_a_colour_jpeg_is_its_stored_luma() -> None:
    # With `shorter` and without: no way through colours, which are clipped where they are as strong as here.
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    data = encoded(noise, "JPEG")
    luma = Image.open(io.BytesIO(data))
    luma.draft("L", None)
    np.testing.assert_array_equal(decoded(data, Decode(1))[:, :, 0], np.asarray(luma))
    np.testing.assert_array_equal(decoded(data, Decode(1, shorter=48)), decoded(data, Decode(1)))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1", "CMYK", "L", "PA", "YCbCr", "HSV", "RGBa"])
def test_other_modes_are_converted_as_pillow_does(pixels: Array, mode: str) -> None:
    image = as_image(pixels).convert("RGBA").convert(mode) if mode == "RGBa" else as_image(pixels).convert(mode)
    shown = image.convert("RGB") if mode in ("HSV", "RGBa") else image  # which Pillow does not turn to grey
    for channels, target in ((3, "RGB"), (1, "L")):
        expected = as_array(shown.convert(target))
        np.testing.assert_array_equal(as_array(Decode(channels).load(image)), expected)
        if mode not in ("PA", "YCbCr", "HSV", "RGBa"):  # no test file holds them
            np.testing.assert_array_equal(decoded(encoded(image, "TIFF"), Decode(channels)), expected)


# Formats


@pytest.mark.parametrize(
    "kind", ["PNG", "BMP", "PPM", "TGA", "TIFF", "WEBP", "JPEG2000", "tiff_lzw", "tiff_adobe_deflate", "packbits"]
)
def test_lossless_formats_are_read_exactly(pixels: Array, kind: str) -> None:
    for image in (pixels, pixels[:, :, :1]):
        compressed = kind.islower()
        data = (
            encoded(image, "TIFF", compression=kind) if compressed else encoded(image, kind, **LOSSLESS.get(kind, {}))
        )
        for op in (Decode(image.shape[2]), Decode(image.shape[2], shorter=8, background=9)):  # no JPEG, and opaque
            np.testing.assert_array_equal(decoded(data, op), image)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "MPO"])
def test_lossy_formats_are_read_to_within_a_few_levels(smooth: Array, kind: str) -> None:
    assert apart(decoded(encoded(smooth, kind, quality=95)), smooth) <= 8


@pytest.mark.parametrize("op", [Decode(), Decode(1), Decode(shorter=20), Decode(1, shorter=10)], ids=repr)
def test_the_first_picture_of_an_mpo_is_decoded_as_the_jpeg_it_is(pixels: Array, op: Decode) -> None:
    data = encoded(pixels, "MPO", save_all=True, append_images=[Image.new("RGB", (64, 48), "blue")])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    np.testing.assert_array_equal(decoded(data, op), decoded(encoded(pixels, "JPEG"), op))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF", "AVIF"])
def test_the_first_frame_of_an_animation_is_decoded(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    data = encoded(first, kind, save_all=True, append_images=[second], **LOSSLESS.get(kind, {}))
    opened = Image.open(io.BytesIO(data))
    assert getattr(opened, "n_frames", 1) == 2
    assert apart(decoded(data), np.asarray(first)) <= (2 if kind == "AVIF" else 0)


# Inks


def printed(inks: Array) -> NDArray[np.float64]:
    """Return the colours ``[H, W, 3]`` of inks ``[H, W, 4]``: paper that cyan, magenta and yellow, and black over them, darken."""
    light = 255.0 - inks
    return light[:, :, :3] * light[:, :, 3:] / 255


@pytest.fixture(scope="session")
def inks() -> Array:
    """48x64 pixels of cyan, magenta, yellow and black that a JPEG hardly changes."""
    y, x = np.mgrid[:48, :64]
    return np.stack([x * 2 + 40, y * 3 + 40, 190 - x - y, x + y], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_is_read_as_inks_on_paper(inks: Array, kind: str) -> None:
    data = encoded(Image.fromarray(inks, "CMYK"), kind, **({"quality": 100} if kind == "JPEG" else {}))
    assert np.abs(decoded(data) - printed(inks)).max() <= 3
    grey = printed(inks) @ [0.299, 0.587, 0.114]
    assert np.abs(decoded(data, Decode(1))[:, :, 0] - grey).max() <= 3


def ycck(inks: Array) -> bytes:
    """Encode inks as Photoshop does: cyan, magenta and yellow as if they were red, green and blue, turned into luma and chroma."""
    luma = np.asarray(Image.fromarray(np.ascontiguousarray(inks[:, :, :3])).convert("YCbCr"))
    stored = np.concatenate([255 - luma, inks[:, :, 3:]], axis=2)  # Pillow inverts all four on the way
    data = bytearray(encoded(Image.fromarray(stored, "CMYK"), "JPEG", quality=100))
    marker = data.index(b"Adobe")
    assert data[marker + 11] == 0
    data[marker + 11] = 2  # what the first three planes are: 0 as they are, 2 luma and chroma
    return bytes(data)


def test_ycck_is_read_as_inks_on_paper(inks: Array) -> None:
    assert np.abs(decoded(ycck(inks)) - printed(inks)).max() <= 4
    small = decoded(ycck(inks), Decode(shorter=24))
    assert np.abs(small - printed(inks).reshape(24, 2, 32, 2, 3).mean(axis=(1, 3))).max() <= 6


# Transparency


def transparent(case: str) -> bytes:
    kind, mode = case.split()
    levels = np.random.default_rng(0).integers(0, 256, (16, 16, 4), np.uint8)
    levels[0, :, 3], levels[1, :, 3] = 0, 255
    image = Image.fromarray(levels)
    palette = image.convert("RGB").quantize(16)
    match mode:
        case "RGBA" | "LA":
            return encoded(image.convert(mode), kind, **LOSSLESS.get(kind, {}))
        case "PA":
            palette = palette.convert("PA")
            palette.putalpha(image.getchannel("A"))
            return encoded(palette, kind)
        case "P-many" | "P-one":
            return encoded(palette, kind, transparency=bytes(range(0, 256, 17)) if mode == "P-many" else 3)
    flat = Image.fromarray(levels[:, :, :3] // 128 * 255).convert(mode)
    return encoded(flat, kind, transparency=(255, 0, 255) if mode == "RGB" else 255)


TRANSPARENT = [
    *("PNG RGBA", "WEBP RGBA", "TIFF RGBA", "TGA RGBA", "JPEG2000 RGBA", "PNG LA", "TIFF LA", "TGA LA", "JPEG2000 LA"),
    *("TIFF PA", "PNG P-many", "PNG P-one", "GIF P-one", "PNG L", "PNG RGB", "PNG 1"),
]


@pytest.mark.parametrize("case", TRANSPARENT)
def test_transparency_is_dropped_or_laid_over_the_background(case: str) -> None:
    data = transparent(case)
    rgba = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    colours, alpha = rgba[:, :, :3], rgba[:, :, 3:]
    np.testing.assert_array_equal(decoded(data), colours)
    grey = np.floor((colours @ np.array([19595, 38470, 7471]) + 32768) / 65536)
    assert np.abs(decoded(data, Decode(1))[:, :, 0] - grey).max() <= (0 if case.split()[1] in ("L", "RGBA") else 1)
    opaque, clear = alpha[:, :, 0] == 255, alpha[:, :, 0] == 0
    assert clear.any()
    backgrounds: tuple[Fill, ...] = (0, 200, (250, 10, 90))
    for background in backgrounds:
        expected = colours * (alpha / 255) + np.array(background) * (1 - alpha / 255)
        got = decoded(data, Decode(background=background))
        assert np.abs(got - expected).max() <= 1
        grey = decoded(data, Decode(1, background=background))
        assert grey.shape == (16, 16, 1)
        assert np.abs(grey[:, :, 0] - expected @ [0.299, 0.587, 0.114]).max() <= 2
        np.testing.assert_array_equal(got[opaque], colours[opaque])
        assert (got[clear] == background).all()
    for op in (Decode(), Decode(1, background=77)):  # decoded by Pillow already, it gives the same
        np.testing.assert_array_equal(as_array(op.load(Image.open(io.BytesIO(data)))), decoded(data, op))


def test_an_avif_is_laid_over_the_background() -> None:
    half = Image.new("RGBA", (16, 16), (200, 100, 50, 128))
    data = encoded(half, "AVIF", quality=100)
    assert apart(decoded(data), np.full((16, 16, 3), (200, 100, 50), np.uint8)) <= 3
    assert apart(decoded(data, Decode(background=(0, 0, 255))), np.full((16, 16, 3), (100, 50, 152), np.uint8)) <= 4


# Depth


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bit_grey_keeps_its_high_byte(kind: str) -> None:
    deep = np.arange(0, 65536, 13, dtype=np.uint16)[:5040].reshape(63, 80)
    data = encoded(Image.fromarray(deep), kind)
    for channels in (1, 3):
        expected = np.repeat((deep >> 8)[:, :, None], channels, axis=2)
        np.testing.assert_array_equal(decoded(data, Decode(channels)), expected)
        np.testing.assert_array_equal(as_array(Decode(channels).load(Image.open(io.BytesIO(data)))), expected)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_levels_are_refused(dtype: type) -> None:
    data = encoded(Image.fromarray(np.ones((4, 4), dtype)), "TIFF")
    with pytest.raises(DecodeError, match="levels of 32 bits have no agreed range: save it with 8 or 16 bits"):
        Decode().pixels(data)


def png(width: int, height: int, depth: int = 8, colour: int = 2, rows: bytes | None = None) -> bytes:
    """Return a PNG of that bit depth and colour type; each of its `rows` begins with a 0, None ends it before them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", b"") if rows is None else chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def test_16_bit_colours_keep_their_high_byte() -> None:
    pixel = struct.pack(">HHHH", 0x12FF, 0x5680, 0x9A00, 0x80FF)
    assert decoded(png(1, 1, 16, 2, b"\0" + pixel[:6])).tolist() == [[[0x12, 0x56, 0x9A]]]
    assert decoded(png(1, 1, 16, 6, b"\0" + pixel)).tolist() == [[[0x12, 0x56, 0x9A]]]
    assert decoded(png(1, 1, 16, 4, b"\0" + pixel[:4])).tolist() == [[[0x12] * 3]]


# Orientation


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


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG", "MPO", "AVIF"])
def test_exif_orientation_is_applied(pixels: Array, kind: str) -> None:
    options = {**LOSSLESS.get(kind, {}), **({"save_all": True} if kind == "MPO" else {})}
    stored = decoded(encoded(pixels, kind, **options))
    meaningless = dict.fromkeys((0, 9, 65535), UPRIGHT[1])
    for orientation, upright in (UPRIGHT | meaningless).items():
        data = encoded(pixels, kind, exif=exif(orientation), **options)
        np.testing.assert_array_equal(decoded(data), upright(stored))
        np.testing.assert_array_equal(as_array(Decode().load(Image.open(io.BytesIO(data)))), upright(stored))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "LA", "I;16"])
def test_exif_orientation_is_applied_in_every_mode(pixels: Array, mode: str) -> None:
    image = as_image(pixels)
    image = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize((64, 48)))
    op = Decode(background=(1, 2, 3))
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate"):
        stored = decoded(encoded(image, "TIFF", compression=compression), op)
        turned = encoded(image, "TIFF", compression=compression, exif=exif(8))
        np.testing.assert_array_equal(decoded(turned, op), UPRIGHT[8](stored))


def test_exif_orientation_is_applied_to_a_scaled_jpeg(photo: bytes) -> None:
    op = Decode(shorter=20)
    for orientation, upright in UPRIGHT.items():
        tags = exif(orientation).tobytes()
        data = photo[:2] + b"\xff\xe1" + struct.pack(">H", len(tags) + 2) + tags + photo[2:]
        np.testing.assert_array_equal(decoded(data, op), upright(decoded(photo, op)))


def test_damage_elsewhere_in_the_exif_does_not_reject_a_photo(pixels: Array) -> None:
    # ImageOps.exif_transpose would rewrite the tags, and fail at a camera's name that calls itself a fraction.
    tags = exif(6)
    tags[EXIF_MAKE] = "a camera"
    damaged = bytearray(tags.tobytes())
    order = "<" if damaged[6:8] == b"II" else ">"
    entry = damaged.index(struct.pack(f"{order}HH", EXIF_MAKE, 2))
    struct.pack_into(f"{order}HHI", damaged, entry, EXIF_MAKE, RATIONAL, 1)
    np.testing.assert_array_equal(decoded(encoded(pixels, "PNG", exif=bytes(damaged))), UPRIGHT[6](pixels))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_that_cannot_be_read_is_ignored(pixels: Array, kind: str) -> None:
    options = LOSSLESS.get(kind, {})
    plain = decoded(encoded(pixels, kind, **options))
    for tags in (b"", b"no tags at all", b"II", b"II*\0\xff\xff\xff\xff"):
        np.testing.assert_array_equal(decoded(encoded(pixels, kind, exif=b"Exif\0\0" + tags, **options)), plain)


# Metadata that Pillow refuses


@pytest.mark.parametrize("chunks", REFUSED_CHUNKS.values(), ids=REFUSED_CHUNKS)
def test_a_png_is_decoded_without_the_chunks_that_pillow_refuses(pixels: Array, chunks: bytes) -> None:
    data = encoded(pixels, "PNG", exif=exif(6))
    with pytest.raises((ValueError, SyntaxError, OSError)):
        Image.open(io.BytesIO(in_png(data, chunks))).load()
    np.testing.assert_array_equal(decoded(in_png(data, chunks)), UPRIGHT[6](pixels))
    late = in_png(data, chunks, after_pixels=True)
    np.testing.assert_array_equal(decoded(late), UPRIGHT[6](pixels))
    opened, orientation = Decode().open_upright(late)
    assert (opened.size, orientation) == ((64, 48), 6)


@pytest.mark.parametrize("op", [Decode(), Decode(1), Decode(background=9)], ids=repr)
@pytest.mark.parametrize("mode", ["RGBA", "P", "I;16", "1", "LA"])
def test_a_png_of_any_mode_has_the_pixels_that_it_has_without_text(pixels: Array, mode: str, op: Decode) -> None:
    image = as_image(pixels)
    image = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    data = encoded(image, "PNG")
    for late in (False, True):
        refused = in_png(data, REFUSED_CHUNKS["zTXt of 2 MiB"], after_pixels=late)
        np.testing.assert_array_equal(decoded(refused, op), decoded(data, op))


def test_transparency_and_short_text_stay(pixels: Array) -> None:
    refused = REFUSED_CHUNKS["zTXt of 2 MiB"]
    data = encoded(as_image(pixels).quantize(9), "PNG", transparency=3)
    op = Decode(background=(9, 200, 77))
    assert not np.array_equal(decoded(data, op), decoded(data))
    np.testing.assert_array_equal(decoded(in_png(data, refused), op), decoded(data, op))
    data = encoded(pixels, "PNG")
    profile = "\nexif\n0\n" + exif(8).tobytes().hex()  # as ImageMagick writes it
    xmp = b'<x tiff:Orientation="8"/>'
    for text in (
        chunk(b"tEXt", b"Raw profile type exif\0" + profile.encode()),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile.encode())),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
    ):
        np.testing.assert_array_equal(decoded(in_png(data, refused, text)), UPRIGHT[8](pixels))


def test_text_is_never_decompressed_beyond_the_limit(pixels: Array) -> None:
    bomb = zlib.compressobj()
    body = b"a\0\0" + b"".join(bomb.compress(bytes(1 << 20)) for _ in range(150)) + bomb.flush()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.testing.assert_array_equal(decoded(in_png(encoded(pixels, "PNG"), chunk(b"zTXt", body))), pixels)
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 50e6  # the text would be 150 MB


@pytest.mark.parametrize("segments", REFUSED_SEGMENTS.values(), ids=REFUSED_SEGMENTS)
def test_a_jpeg_is_decoded_without_the_segments_that_pillow_refuses(pixels: Array, segments: bytes) -> None:
    data = encoded(pixels, "JPEG", exif=exif(6), icc_profile=b"profile")
    with pytest.raises((ValueError, SyntaxError, OSError)):
        Image.open(io.BytesIO(in_jpeg(data, segments))).load()
    for op in (Decode(), Decode(1, shorter=20)):
        np.testing.assert_array_equal(decoded(in_jpeg(data, segments), op), decoded(data, op))


def test_damaged_metadata_do_not_hide_other_damage(pixels: Array) -> None:
    data = in_png(encoded(pixels, "PNG"), REFUSED_CHUNKS["zTXt of 2 MiB"])
    with pytest.raises(DecodeError, match=r"truncated|Truncated"):
        decoded(data[:-400])
    assert decoded(data[:-400], Decode(truncated=True)).shape == (48, 64, 3)
    with pytest.raises(DecodeError, match=r"^48x64 is more than max_pixels=3071$"):
        decoded(data, Decode(max_pixels=3071))
    for size in range(8, 400):
        with pytest.raises(DecodeError):
            decoded(data[:size])


def test_text_that_is_called_transparency_is_none(pixels: Array) -> None:
    for text in (chunk(b"tEXt", b"transparency\0x"), chunk(b"iTXt", b"transparency\0\0\0\0\0x")):
        for op in (Decode(), Decode(background=3)):
            np.testing.assert_array_equal(decoded(in_png(encoded(pixels, "PNG"), text), op), pixels)


# Scale


@pytest.mark.parametrize("op", [Decode(), Decode(1), Decode(shorter=20), Decode(1, shorter=10)], ids=repr)
def test_a_header_says_the_size_and_gives_the_same_pixels(photo: bytes, pixels: Array, op: Decode) -> None:
    for data in (photo, encoded(pixels, "PNG"), encoded(pixels, "WEBP")):
        header = op.read_header(data)
        image = decoded(data, op)
        assert (header.height, header.width, op.channels) == image.shape
        np.testing.assert_array_equal(np.asarray(op.pixels(header)).reshape(image.shape), image)
    for broken in (b"no image", b""):
        with pytest.raises(DecodeError, match="not an image in one of the formats"):
            op.read_header(broken)
    with pytest.raises(DecodeError, match="48x64 is more than max_pixels=3000"):
        replace(op, max_pixels=3000).read_header(photo)


@pytest.mark.parametrize("size", [(97, 143), (143, 97), (17, 300), (250, 251)])
def test_the_sides_of_a_scaled_jpeg_are_rounded_up(pixels: Array, size: tuple[int, int]) -> None:
    data = encoded(apply([Resize(size)], pixels, []), "JPEG")
    for shorter in (1, 5, 12, 24, 48, 72, 144):
        op = Decode(shorter=shorter)
        scale = op.jpeg_scale(*size)
        assert decoded(data, op).shape == (-(-size[0] // scale), -(-size[1] // scale), 3)


# Truncated files


WHOLE_TO_THE_END = ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF"]


@pytest.mark.parametrize("kind", WHOLE_TO_THE_END)
def test_a_truncated_file_is_rejected(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    data = encoded(noise, kind)
    assert decoded(data).shape == noise.shape
    reason = r"truncated|end of file|not enough" if kind in ("JPEG", "PNG", "TIFF") else None
    for share in (0.1, 0.34, 0.67, 0.9, 0.97):
        with pytest.raises(DecodeError, match=reason if share > 0.5 else None):
            Decode().pixels(data[: int(len(data) * share)])


def test_a_truncated_compressed_tiff_is_rejected(pixels: Array) -> None:
    # Pillow writes the table of tags behind the pixels: here it stands before them.
    strip = zlib.compress(pixels.tobytes())
    tags = {256: 64, 257: 48, 258: 8, 259: 8, 262: 2, 273: 8 + 2 + 9 * 12 + 4, 277: 3, 278: 48, 279: len(strip)}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = b"II*\0" + struct.pack("<IH", 8, 9) + table + bytes(4) + strip
    np.testing.assert_array_equal(decoded(data), pixels)
    for lost in (9, len(strip) // 2, len(strip) - 9):
        with pytest.raises(DecodeError):
            Decode().pixels(data[:-lost])


def test_an_mpo_without_its_second_picture_is_read_and_one_cut_in_its_first_is_rejected(pixels: Array) -> None:
    data = encoded(pixels, "MPO", save_all=True, append_images=[Image.fromarray(pixels[::-1])])
    second = data.index(b"\xff\xd9\xff\xd8") + 2
    np.testing.assert_array_equal(decoded(data[: second + 300]), decoded(data))
    with pytest.raises(DecodeError):
        Decode().pixels(data[: second - 300])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "PPM", "TIFF", "BMP", "TGA", "JPEG2000"])
def test_a_truncated_file_is_accepted_when_asked(pixels: Array, kind: str) -> None:
    data, op = encoded(pixels, kind), Decode(truncated=True)
    got, whole = decoded(data[: len(data) * 9 // 10], op), decoded(data)
    assert got.shape == pixels.shape
    assert not np.array_equal(got, whole)
    if kind not in ("BMP", "TGA", "JPEG2000"):  # which do not begin at the top
        np.testing.assert_array_equal(got[:12], whole[:12])
    np.testing.assert_array_equal(decoded(data, op), whole)


def test_accepting_truncated_files_in_one_thread_does_not_in_another(photo: bytes) -> None:
    # Pillow has one switch for the whole process.
    def accepted(truncated: bool) -> bool:
        try:
            Decode(truncated=truncated).pixels(photo[:-200])
        except DecodeError:
            return False
        return True

    asked = [number % 3 == 0 for number in range(600)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(accepted, asked)) == asked


def test_who_waits_for_pillows_switch_is_not_passed_by() -> None:
    entered = []

    def enter(truncated: bool) -> None:
        with _truncation(truncated):
            entered.append(truncated)

    with ThreadPoolExecutor(2) as pool, _truncation(True):
        pool.submit(enter, False)
        for _ in range(2000):  # until it waits
            if _truncation._queue.locked():
                break
            time.sleep(0.001)
        pool.submit(enter, True)
        time.sleep(0.02)  # it could enter now, if it were let
    assert entered == [False, True]


@pytest.mark.parametrize("before", [False, True])
def test_pillows_switch_is_left_as_it_was(photo: bytes, before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", before)
    for truncated in (False, True):
        Decode(truncated=truncated).pixels(photo)
        with suppress(DecodeError):
            Decode(truncated=truncated).pixels(photo[:-200])
        assert before == ImageFile.LOAD_TRUNCATED_IMAGES


# Too many pixels


@pytest.mark.parametrize("kind", WHOLE_TO_THE_END)
def test_too_many_pixels_are_refused_in_every_format_before_a_missing_end_is(pixels: Array, kind: str) -> None:
    data = encoded(pixels, kind)
    assert decoded(data, Decode(max_pixels=3072)).shape == (48, 64, 3)
    start = data if kind in ("WEBP", "AVIF", "TIFF") else data[:-9]  # whose tables must be whole to be opened
    with pytest.raises(DecodeError, match=r"^48x64 is more than max_pixels=3071$"):
        Decode(max_pixels=3071).pixels(start)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(50_000, 50_000), "DecompressionBombError"),
        (png(13_000, 13_000), "is more than max_pixels=1000000$"),
        (
            b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x08",
            "DecompressionBombError",
        ),
        (b"P6 13000 13000 255\n", "is more than max_pixels=1000000$"),
        (
            b"\0\0\x02\0\0\0\0\0\0\0\0\0" + struct.pack("<HHBB", 13_000, 13_000, 24, 32),
            "is more than max_pixels=1000000$",
        ),
    ],
)
def test_a_header_that_claims_too_many_pixels_takes_no_memory(data: bytes, message: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DecodeError, match=message):
        Decode(max_pixels=1_000_000).pixels(data)
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 100e6  # the pixels would be 500 MB


def test_as_many_pixels_as_pillow_warns_of_are_decoded_without_a_warning() -> None:
    with pytest.raises(DecodeError, match="truncated"):  # and not: DecompressionBombWarning
        Decode().pixels(png(30_000, 3_000))


# Damaged files, and what is none


@pytest.mark.parametrize("data", [b"", b"\0", b"hello", b"\xff\xd8\xff", b"GIF89a", b"RIFF\0\0\0\0WEBP", bytes(5000)])
def test_bytes_that_are_no_image_are_rejected(data: bytes) -> None:
    # A reason goes into a file that is named by its hash: no address in memory may stand in it.
    with pytest.raises(DecodeError, match=r"^not an image in one of the formats JPEG, PNG, [A-Z0-9, ]+$"):
        Decode().pixels(data)


def test_a_reason_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError("broken\nin many ways")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(DecodeError, match=r"^OSError: broken$"):
        Decode().pixels(b"")


def test_postscript_is_not_handed_to_ghostscript(pixels: Array) -> None:
    with pytest.raises(DecodeError, match="not an image"):
        Decode().pixels(encoded(pixels, "EPS"))


def impossible_apng(pixels: Array) -> bytes:
    data = encoded(pixels, "PNG")
    return data[:33] + chunk(b"acTL", struct.pack(">II", 0, 0)) + data[33:]  # an animation of no frames


def exif_of_nothing(pixels: Array) -> bytes:
    return encoded(pixels, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")


@pytest.mark.parametrize("damaged", [impossible_apng, exif_of_nothing])
def test_what_pillow_warns_of_is_decoded_whether_warnings_are_errors_or_not(
    pixels: Array, damaged: Callable[[Array], bytes]
) -> None:
    data = damaged(pixels)
    with pytest.warns(UserWarning, match="Invalid APNG|Corrupt EXIF"):
        Image.open(io.BytesIO(data)).getexif()
    for action in ("error", "always"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter(action)
            assert apart(decoded(data), pixels) < 40
            assert Decode().open_upright(data)[1] == 1
        assert not caught


def test_warnings_are_heard_again_after_a_decode(photo: bytes) -> None:
    before = list(warnings.filters)
    Decode().pixels(photo)
    with suppress(DecodeError):
        Decode().pixels(b"")
    assert list(warnings.filters) == before


def damaged_tiff(pixels: Array, compression: str) -> bytes:
    data = bytearray(encoded(Image.fromarray(pixels).convert("1"), "TIFF", compression=compression))
    for place in range(8, len(data) - 400, 7):
        data[place] ^= 0x5A
    return bytes(data)


TIFF_DAMAGES = {"tiff_lzw": "code not yet in table", "tiff_adobe_deflate": "Decoding error", "group4": None}


@pytest.mark.parametrize(("compression", "reason"), TIFF_DAMAGES.items())
def test_what_libtiff_prints_of_a_damaged_file_is_its_reason(
    pixels: Array, capfd: pytest.CaptureFixture[str], compression: str, reason: str | None
) -> None:
    data = damaged_tiff(pixels, compression)
    with suppress(DecodeError) if reason is None else pytest.raises(DecodeError, match=f"damaged TIFF: .*{reason}"):
        Decode().pixels(data)
    assert capfd.readouterr().err == ""
    with suppress(OSError):  # elsewhere it is printed as before
        Image.open(io.BytesIO(data)).load()
    assert "Decode" in (err := capfd.readouterr().err) or "not yet in table." in err


def test_what_pillow_logs_is_the_reason(pixels: Array, caplog: pytest.LogCaptureFixture) -> None:
    samples = struct.pack("<HHI", 277, 3, 1)
    data = encoded(pixels, "TIFF").replace(samples + b"\x03", samples + b"\xff")
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(io.BytesIO(data))
    assert "More samples per pixel" in caplog.text
    caplog.clear()
    with pytest.raises(DecodeError):
        Decode().pixels(data)
    assert caplog.text == ""


@pytest.mark.parametrize("kind", [*WHOLE_TO_THE_END, "MPO"])
def test_damaged_bytes_give_an_image_or_a_decode_error(pixels: Array, kind: str) -> None:
    whole = encoded(apply([Resize((24, 32))], pixels, []), kind, **({"exif": exif(6)} if kind == "JPEG" else {}))
    rng = random.Random(kind)
    outcomes, reasons = set(), []
    for number in range(160):
        op = Decode(truncated=number % 2 == 0, max_pixels=1_000_000)
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.choice([rng.randrange(len(data)), rng.randrange(64)])] = rng.randrange(256)
        try:
            image = op.pixels(bytes(data[: rng.choice([len(data), rng.randrange(len(data))])]))
        except DecodeError as error:
            outcomes.add("rejected")
            reasons.append(str(error))
        else:
            outcomes.add("decoded")
            assert image.shape[2] == 3
            assert image.dtype == np.uint8
    assert outcomes == {"rejected", "decoded"}
    assert all(len(reason.splitlines()) == 1 and "Warning" not in reason for reason in reasons)


# Images that are decoded already


@pytest.mark.parametrize("channels", [1, 3])
def test_an_array_is_taken_as_it_is(pixels: Array, channels: int) -> None:
    image = pixels[:, :, :channels]
    assert Decode(channels, max_pixels=1).load(image) is image
    wrong_ones: tuple[Any, ...] = (
        np.repeat(pixels, 2, axis=2)[:, :, : 4 - channels],
        pixels[:, :, 0],
        image.astype(np.float32),
        image[:0],
        image[None],
    )
    for wrong in wrong_ones:
        with pytest.raises(ValueError, match=rf"an image must be a uint8 array \[H, W, {channels}\], got"):
            Decode(channels).load(wrong)


def test_a_pillow_image_is_left_as_it_was(pixels: Array) -> None:
    image = Image.open(io.BytesIO(encoded(as_image(pixels).quantize(9), "PNG", transparency=3)))
    Decode(background=3).load(image)
    Decode().load(image)
    assert image.mode == "P"
    assert image.info["transparency"] == 3


def test_a_pillow_image_that_cannot_be_read_is_a_decode_error(photo: bytes) -> None:
    with pytest.raises(DecodeError, match="truncated"):
        Decode().load(Image.open(io.BytesIO(photo[:-200])))
    assert as_array(Decode(truncated=True).load(Image.open(io.BytesIO(photo[:-200])))).shape == (48, 64, 3)
    with pytest.raises(FileNotFoundError):
        Decode().load("no/such/photo.jpg")
    with Image.open(io.BytesIO(photo)) as closed:
        pass
    with pytest.raises(DecodeError):
        Decode().load(closed)
