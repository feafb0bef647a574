"""A chain called with targets: pixels as without them, and masks, boxes and points where the pixels went."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import encoded
from numpy.typing import NDArray
from PIL import Image

from joulecache.transforms import BoxesTarget, MaskTarget, Op, Photometric, PointsTarget, parse
from joulecache.transforms.targets import SpatialTarget

CHAIN = "decode|resize_shorter(40) || random_crop((32, 36))|flip_lr|rotate(30)|brightness(0.5)|to_float"


def drawn_targets(height: int, width: int) -> list[SpatialTarget]:
    """Return a square of half the image as a mask, a box and its corners."""
    box = np.array([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]], np.float32)
    ids = np.zeros((height, width, 1), np.uint8)
    ids[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = 3
    points = np.concatenate([box.reshape(2, 2), np.full((2, 1), 2, np.float32)], axis=1)
    return [MaskTarget(ids), BoxesTarget(box, np.array([3])), PointsTarget(points)]


def arrays(targets: tuple[SpatialTarget, ...]) -> list[bytes]:
    """Return the bytes of all arrays."""
    return [np.asarray(getattr(each, name)).tobytes() for each in targets for name in each.__slots__]


@pytest.mark.parametrize(("n", "variants"), [(0, None), (5, 2)])
def test_targets_move_with_the_pixels_of_a_plain_call(tmp_path: Path, n: int, variants: int | None) -> None:
    picture = Image.linear_gradient("L").resize((60, 48)).convert("RGB")
    data, given = encoded(picture, "PNG"), drawn_targets(48, 60)
    (tmp_path / "a.png").write_bytes(data)
    chain = parse(CHAIN)
    whole = chain(data, key="a", seed=3, n=n, variants=variants)
    results = []
    for image in (data, tmp_path / "a.png", picture, np.asarray(picture)):
        pixels, moved = chain.with_targets(image, given, key="a", seed=3, n=n, variants=variants)
        np.testing.assert_array_equal(pixels, whole)
        results.append(arrays(moved))
    assert results[1:] == results[:-1]
    mask, boxes, points = moved
    assert isinstance(mask, MaskTarget)
    assert isinstance(boxes, BoxesTarget)
    assert isinstance(points, PointsTarget)
    assert mask.ids.shape == (32, 36, 1)
    rows, columns = np.nonzero(mask.ids[:, :, 0] == 3)
    [[left, top, right, bottom]] = boxes.boxes
    assert left - 1 <= columns.min() <= columns.max() <= right + 1
    assert top - 1 <= rows.min() <= rows.max() <= bottom + 1
    assert arrays(moved) != arrays(chain.with_targets(data, given, key="b", seed=3, n=n, variants=variants)[1])


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_targets_are_those_of_the_upright_image_at_full_scale(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.new("RGB", (96, 64)), "JPEG", exif=exif)
    size = (96, 64) if orientation == 6 else (64, 96)
    pixels, (mask, boxes, _) = parse("decode(shorter=32)").with_targets(data, drawn_targets(*size))
    assert pixels.shape == (size[0] // 2, size[1] // 2, 3)
    assert isinstance(mask, MaskTarget)
    assert isinstance(boxes, BoxesTarget)
    assert mask.ids.shape[:2] == pixels.shape[:2]
    np.testing.assert_array_equal(boxes.boxes, [[size[1] / 8, size[0] / 8, size[1] * 3 / 8, size[0] * 3 / 8]])


@dataclass(frozen=True)
class Silent(Op):
    """Does not say what moves."""

    def pixels(self, image: NDArray[np.uint8], drawn: tuple[int, ...]) -> NDArray[np.uint8]:
        return image


@dataclass(frozen=True)
class Still(Photometric):
    """Leaves every pixel where it is."""

    def pixels(self, image: NDArray[np.uint8], drawn: tuple[int, ...]) -> NDArray[np.uint8]:
        return 255 - image


def test_what_cannot_move_targets_is_refused_by_name() -> None:
    image, given = np.zeros((8, 10, 3), np.uint8), drawn_targets(8, 10)
    with pytest.raises(ValueError, match="silent does not say how masks, boxes and points move"):
        parse("decode|silent", {"silent": Silent}).with_targets(image, given)
    with pytest.raises(ValueError, match="mixes the images of a batch"):
        parse("decode || mixup").with_targets(image, given)
    with pytest.raises(ValueError, match="the mask must be 8x9 as the image is, got 8x10"):
        parse("decode").with_targets(image[:, 1:], given)
    with pytest.raises(ValueError, match="n must be at least 0"):
        parse("decode").with_targets(image, given, n=-1)
    _, moved = parse("decode|still", {"still": Still}).with_targets(image, given)
    assert arrays(moved) == arrays(tuple(given))


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])  # Pillow decodes the second one, at its scale
def test_targets_of_a_scaled_jpeg_are_scaled_as_it_is(mode: str) -> None:
    data = encoded(Image.new(mode, (99, 67)), "JPEG")
    pixels, (mask, boxes, points) = parse("decode(shorter=16)").with_targets(data, drawn_targets(67, 99))
    assert pixels.shape == (17, 25, 3)
    assert isinstance(mask, MaskTarget)
    assert isinstance(boxes, BoxesTarget)
    assert isinstance(points, PointsTarget)
    assert mask.ids.shape == (17, 25, 1)
    np.testing.assert_allclose(boxes.boxes, [[25 / 4, 17 / 4, 75 / 4, 51 / 4]])
    np.testing.assert_allclose(points.points, [(25 / 4, 17 / 4, 2), (75 / 4, 51 / 4, 2)])
