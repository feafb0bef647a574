"""JPEGs decoded by libjpeg-turbo: the pixels and the verdicts of Pillow, for every kind of file."""

from __future__ import annotations

import io
import random
import struct
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
from conftest import encoded
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from joulecache.transforms import Decode
from joulecache.transforms.jpeg import Jpeg, read_jpeg
from joulecache.transforms.ops import DecodeError
from joulecache.transforms.ops import decode as decoding

Array = NDArray[np.uint8]

OPS = [Decode(), Decode(1), Decode(shorter=11), Decode(1, shorter=20)]
EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
APP0, APP1, APP2, APP13, APP14, COMMENT = 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Array:
    small = np.random.default_rng(seed).integers(0, 256, (-(-height // 4), -(-width // 4), channels), np.uint8)
    return np.ascontiguousarray(small.repeat(4, axis=0).repeat(4, axis=1)[:height, :width])


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def with_segments(data: bytes, *segments: bytes) -> bytes:
    """Return a JPEG with more segments after its first one."""
    (size,) = struct.unpack_from(">H", data, 4)
    return data[: 4 + size] + b"".join(segments) + data[4 + size :]


def tiff(orientation: int, *, order: str = "<", kind: int = 3, count: int = 1, tag: int = 0x0112) -> bytes:
    head = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(order + ("H2x" if kind == 3 else "L"), orientation)
    return head + struct.pack(order + "LHHHL", 8, 1, tag, kind, count) + value + bytes(4)


def verdict(op: Decode, data: bytes) -> Array | str:
    try:
        return op.pixels(data)
    except DecodeError as error:
        return str(error)


def assert_pillow_agrees(data: bytes, monkeypatch: pytest.MonkeyPatch, ops: list[Decode] | None = None) -> None:
    """Assert that pixels and reasons are those of a decode by Pillow alone."""
    for op in ops or OPS:
        got = verdict(op, data)
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "read_jpeg", lambda _: None)
            expected = verdict(op, data)
        if isinstance(expected, str):
            assert got == expected
        else:
            assert isinstance(got, np.ndarray)
            np.testing.assert_array_equal(got, expected)


def is_fast(data: bytes, op: Decode | None = None) -> bool:
    """Return whether libjpeg-turbo decodes the file, without Pillow."""
    opened = (op or Decode()).read_header(data).opened
    return isinstance(opened, Jpeg) and opened.decode(3, 1) is not None


# Files as people have them


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(["444", "422", "420", "440", "411", "Gray"]),
    seed=st.integers(0, 2**32),
)
def test_every_subsampling_and_size(size: tuple[int, int], quality: int, subsampling: str, seed: int) -> None:
    image = noise(*size, 1 if subsampling == "Gray" else 3, seed)
    colours = "GRAY" if subsampling == "Gray" else "RGB"
    data = simplejpeg.encode_jpeg(image, quality, colours, subsampling)
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert_pillow_agrees(data, monkeypatch)
    assert is_fast(data) is (min(size) >= 8)


@given(
    size=st.tuples(st.integers(8, 50), st.integers(8, 50)),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    progressive=st.booleans(),
    optimize=st.booleans(),
    restart=st.integers(0, 3),
    subsampling=st.sampled_from([0, 1, 2]),
)
def test_progressive_files_restart_markers_and_other_modes(
    size: tuple[int, int], mode: str, progressive: bool, optimize: bool, restart: int, subsampling: int
) -> None:
    image = Image.fromarray(noise(*size)).convert(mode)
    options = {"progressive": progressive, "optimize": optimize, "restart_marker_blocks": restart}
    data = encoded(image, "JPEG", **options, **({} if mode == "L" else {"subsampling": subsampling}))
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert_pillow_agrees(data, monkeypatch)
    assert is_fast(data) is (mode != "CMYK")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation(orientation: int, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = with_segments(encoded(noise(17, 23), "JPEG"), segment(APP1, EXIF + tiff(orientation, order=order)))
    assert is_fast(data)
    assert_pillow_agrees(data, monkeypatch)


ODD_SEGMENTS = {
    "orientation as a long": segment(APP1, EXIF + tiff(6, kind=4)),
    "two orientations": segment(APP1, EXIF + tiff(6, count=2)),
    "another tag": segment(APP1, EXIF + tiff(6, tag=0x0113)),
    "two EXIF segments": segment(APP1, EXIF + tiff(6)) + segment(APP1, EXIF + tiff(3)),
    "EXIF cut off": segment(APP1, EXIF + tiff(6)[:14]),
    "EXIF far beyond": segment(APP1, EXIF + b"II*\0" + struct.pack("<L", 1 << 30)),
    "no TIFF": segment(APP1, EXIF + b"rubbish, and more of it"),
    "BigTIFF": segment(APP1, EXIF + b"II+\0" + tiff(6)[4:]),
    "XMP": segment(APP1, XMP + b'<x tiff:Orientation="6"/>'),
    "XMP and EXIF": segment(APP1, EXIF + tiff(3)) + segment(APP1, XMP + b'<x tiff:Orientation="6"/>'),
    "XMP and orientation 0": segment(APP1, EXIF + tiff(0)) + segment(APP1, XMP + b'<x tiff:Orientation="6"/>'),
    "a comment": segment(COMMENT, b"Exif\0\0 is not here, nor is tiff:Orientation"),
    "Photoshop": segment(APP13, b"Photoshop 3.0\0 8BIM"),
    "an ICC profile": segment(APP2, b"ICC_PROFILE\0\1\1" + bytes(200)),
    "MPF": segment(APP2, b"MPF\0" + tiff(6)),
    "Adobe, YCbCr": segment(APP14, b"Adobe\0\x64\0\0\0\0\1"),
    "Adobe, RGB": segment(APP14, b"Adobe\0\x64\0\0\0\0\0"),
    "Adobe, YCCK": segment(APP14, b"Adobe\0\x64\0\0\0\0\2"),
    "Adobe, short": segment(APP14, b"Adobe\0"),
    "JFIF, short": segment(APP0, b"JFIF\0"),
    "JFIF again": segment(APP0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
    "padding": b"\xff\xff\xff",
    "rubbish": b"rubbish",
    "a marker of no segment": b"\xff\xd0",
}


@pytest.mark.parametrize("name", ODD_SEGMENTS)
@pytest.mark.parametrize("jfif", [True, False])
def test_odd_headers(name: str, jfif: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data = with_segments(encoded(noise(17, 23), "JPEG"), ODD_SEGMENTS[name])
    if not jfif:
        data = data[:2] + data[20:]
    assert_pillow_agrees(data, monkeypatch)


def test_components_of_other_numbers_are_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noise(16, 16), "JPEG", keep_rgb=True)
    assert read_jpeg(data) is None
    assert_pillow_agrees(data, monkeypatch)


def test_a_photo_of_several_pictures_is_its_first(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    Image.fromarray(noise(16, 24)).save(stream, "MPO", save_all=True, append_images=[Image.new("RGB", (24, 16))])
    assert_pillow_agrees(stream.getvalue(), monkeypatch)


# Damage


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_file_cut_off_anywhere(truncated: bool, progressive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noise(24, 32), "JPEG", progressive=progressive, exif=EXIF + tiff(6))
    op = Decode(truncated=truncated)
    for end in [*range(0, len(data), 7), len(data) - 2, len(data) - 1]:
        assert_pillow_agrees(data[:end], monkeypatch, [op])


@pytest.mark.parametrize("kind", ["baseline", "progressive", "grey", "exif"])
def test_flipped_bytes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(24, 32, 1 if kind == "grey" else 3)
    options = {"exif": EXIF + tiff(5)} if kind == "exif" else {}
    whole = encoded(image, "JPEG", progressive=kind == "progressive", **options)
    rng, outcomes = random.Random(kind), Counter[str]()
    for number in range(400):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data) if number % 2 else 200)] = rng.randrange(256)
        op = Decode(channels=rng.choice([1, 3]), truncated=number % 4 == 0, max_pixels=1_000_000)
        assert_pillow_agrees(bytes(data), monkeypatch, [op])
        outcomes["rejected" if isinstance(verdict(op, bytes(data)), str) else "decoded"] += 1
    assert min(outcomes.values()) > 20


def test_the_limit_on_pixels_is_pillows_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noise(40, 50), "JPEG")
    assert_pillow_agrees(data, monkeypatch, [Decode(max_pixels=1999), Decode(max_pixels=2000)])


# Real files


DATA = Path(__file__).parents[2] / "shared" / "data"


def test_real_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (DATA / "dogs_cats.tar").exists():
        pytest.skip("no dogs_cats.tar")
    with tarfile.open(DATA / "dogs_cats.tar") as tar:
        for member in [member for member in tar if member.name.endswith(".jpg")][::20]:
            file = tar.extractfile(member)
            assert file is not None
            data = file.read()
            assert is_fast(data)
            assert_pillow_agrees(data, monkeypatch, [Decode(), Decode(1, shorter=72)])


def test_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (DATA / "cifar10").exists():
        pytest.skip("no cifar10")
    images = pq.read_table(DATA / "cifar10" / "test.parquet", columns=["image"])["image"].to_pylist()
    for image in images[::20]:
        assert is_fast(image["bytes"])
        assert_pillow_agrees(image["bytes"], monkeypatch, [Decode(), Decode(1)])
