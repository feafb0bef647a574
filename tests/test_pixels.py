"""The pixels that count: against formulas written out, against Pillow, and against the golden ones."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray
from op_strategies import ON_IMAGES
from PIL import Image
from scipy import ndimage

from joulecache.transforms import (
    Affine,
    Autocontrast,
    Brightness,
    CentralCrop,
    ColorJitter,
    Contrast,
    Cutout,
    Equalize,
    FlipLr,
    FlipUd,
    GaussianBlur,
    GaussianNoise,
    Grayscale,
    Hue,
    Op,
    Pad,
    Posterize,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    ResizeShorter,
    Rotate,
    Saturation,
    Sharpness,
    Solarize,
    TrivialAugment,
    parse,
)
from joulecache.transforms.chain import apply, apply_to_each
from joulecache.transforms.images import as_array
from joulecache.transforms.kernels import put
from joulecache.transforms.ops import AUGMENTATIONS, OPS, BatchOp, op_name
from joulecache.transforms.ops.arguments import INTERPOLATIONS
from joulecache.transforms.ops.geometry import PADDING_MODES
from joulecache.transforms.randomness import UNIT, random_words, word_table
from joulecache.transforms.resizing import resize_reference

Array = NDArray[np.uint8]

GOLDEN = Path(__file__).parent / "golden"
CHAINS: dict[str, str] = json.loads((GOLDEN / "chains.json").read_text("utf-8"))
LARGEST = 2**32 - 1

images: st.SearchStrategy[Array] = st_numpy.arrays(
    np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3]))
)
words = st.integers(0, LARGEST)


def word_of(number: int, count: int) -> int:
    """Return the smallest word that draws that number of [0, count)."""
    return -(-(number << 32) // count)


# Golden


@pytest.mark.parametrize("name", CHAINS)
def test_the_pixels_are_the_golden_ones(name: str) -> None:
    """Where this fails, caches built before hold other pixels: raise the op's version, then run scripts/make_golden.py."""
    golden = Image.open(GOLDEN / f"{name}.png")
    assert golden.mode in ("RGB", "L")
    got = parse(CHAINS[name])(GOLDEN / "photo.jpg", key="golden.jpg", seed=7, n=3)
    np.testing.assert_array_equal(got, as_array(golden))


def test_every_op_has_golden_pixels() -> None:
    """Those that run on batches have theirs in golden/batches.json, see test_batch_ops."""
    named = {op_name(type(op)) for text in CHAINS.values() for op in parse(text).ops}
    assert named == {name for name, kind in OPS.items() if not issubclass(kind, BatchOp)}


# Ops that move pixels


@given(data=st.data())
def test_a_random_crop_is_the_slice_that_was_drawn(pixels: Array, data: st.DataObject) -> None:
    height, width = data.draw(st.tuples(st.integers(1, 48), st.integers(1, 64)))
    drawn = data.draw(st.tuples(words, words))
    top, left = drawn[0] * (49 - height) >> 32, drawn[1] * (65 - width) >> 32
    expected = pixels[top : top + height, left : left + width]
    np.testing.assert_array_equal(apply([RandomCrop((height, width))], pixels, drawn), expected)


@pytest.mark.parametrize(("flip", "expected"), [(FlipLr(), np.s_[:, ::-1]), (FlipUd(), np.s_[::-1])], ids=repr)
def test_a_flip_reverses_columns_or_rows(pixels: Array, flip: Op, expected: Any) -> None:
    np.testing.assert_array_equal(apply([flip], pixels, [0]), pixels[expected])
    np.testing.assert_array_equal(apply([flip], pixels, [LARGEST]), pixels)


def test_moving_pixels_copies_nothing(pixels: Array) -> None:
    for op in (CentralCrop(20), RandomCrop(20), FlipLr(), FlipUd()):
        for word in (0, LARGEST):
            assert np.shares_memory(apply([op], pixels, [word] * op.random_words), pixels)


def test_an_image_is_put_into_its_place_in_a_batch(pixels: Array) -> None:
    for image in (pixels, pixels[:, ::-1], pixels[::-1], pixels[:, ::-1, :1]):
        batch = np.zeros((2, *image.shape), np.uint8)
        put(batch[1], image)
        np.testing.assert_array_equal(batch[1], image)
        assert not batch[0].any()


# Borders and holes


@given(image=images, mode=st.sampled_from(PADDING_MODES), data=st.data())
def test_a_border_is_numpys(image: Array, mode: Any, data: st.DataObject) -> None:
    height, width, channels = image.shape
    least = {"reflect": 1, "symmetric": 0}.get(mode, -5)
    across, down = st.integers(0, min(5, width - least)), st.integers(0, min(5, height - least))
    left, top, right, bottom = data.draw(st.tuples(across, down, across, down))
    fill: Any = data.draw(st.integers(0, 255) if channels == 1 else st.tuples(*[st.integers(0, 255)] * 3))
    expected = np.pad(image, ((top, bottom), (left, right), (0, 0)), mode)
    if mode == "constant":
        expected[:] = fill
        expected[top : top + height, left : left + width] = image
    np.testing.assert_array_equal(apply([Pad((left, top, right, bottom), fill, mode)], image, []), expected)


@given(image=images, size=st.tuples(st.integers(1, 15), st.integers(1, 15)), drawn=st.tuples(words, words))
def test_a_cutout_fills_the_window_around_a_pixel(image: Array, size: tuple[int, int], drawn: tuple[int, int]) -> None:
    height, width, channels = image.shape
    top, left = (drawn[0] * height >> 32) - size[0] // 2, (drawn[1] * width >> 32) - size[1] // 2
    fill = (1, 2, 3) if channels == 3 else 7
    expected = image.copy()
    expected[max(top, 0) : top + size[0], max(left, 0) : left + size[1]] = fill
    np.testing.assert_array_equal(apply([Cutout(size, fill)], image, drawn), expected)


# Ops that turn and lean


@pytest.mark.parametrize("side", [20, 21])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_rotation_by_a_right_angle_moves_pixels_counter_clockwise(
    pixels: Array, side: int, interpolation: str
) -> None:
    for channels in (1, 3):
        square = pixels[:side, :side, :channels]
        for quarters in range(-4, 5):
            got = apply([Rotate((90 * quarters, 90 * quarters), interpolation)], square, [5])
            np.testing.assert_array_equal(got, np.rot90(square, quarters))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_rotation_by_half_a_turn_is_about_its_center(pixels: Array, interpolation: str) -> None:
    np.testing.assert_array_equal(apply([Rotate((180, 180), interpolation)], pixels, [0]), pixels[::-1, ::-1])
    got = apply([Rotate((180, 180), interpolation, (1, 2, 3), center=(20, 15.5))], pixels, [0])
    expected = np.empty_like(pixels)
    expected[:] = 1, 2, 3
    expected[:31, :40] = pixels[30::-1, 39::-1]  # y + y' + 1 = 2 * 15.5, x + x' + 1 = 2 * 20
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_translation_moves_whole_pixels(pixels: Array, interpolation: str) -> None:
    op = Affine(0, translate=(0.25, 0.125), fill=9, interpolation=interpolation)
    framed = np.pad(pixels, ((6, 6), (16, 16), (0, 0)), constant_values=9)
    for word, right, down in ((0, -16, -6), (2**31, 0, 0), (LARGEST, 16, 6)):
        expected = framed[6 - down : 54 - down, 16 - right : 80 - right]
        np.testing.assert_array_equal(apply([op], pixels, [0, word, word, 0, 0, 0]), expected)


Transform = NDArray[np.float64]


def lean(degrees: float) -> float:
    return -math.tan(math.radians(degrees))


def composed(center: tuple[float, float], drawn: tuple[float, ...]) -> Transform:
    """Return T C R Sy Sx scale C^-1, from places (x, y, 1) in the image to places in the result, y downwards."""
    degrees, right, down, scale, along_x, along_y = drawn
    turn = math.radians(degrees / UNIT)
    to_center = np.array([[1, 0, center[0]], [0, 1, center[1]], [0, 0, 1]])
    moved = np.array([[1, 0, right], [0, 1, down], [0, 0, 1]])
    turned = np.array([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    leaning_y = np.array([[1, 0, 0], [lean(along_y / UNIT), 1, 0], [0, 0, 1]])
    leaning_x = np.array([[1, lean(along_x / UNIT), 0], [0, 1, 0], [0, 0, 1]])
    scaled = np.diag([scale / UNIT, scale / UNIT, 1])
    whole: Transform = moved @ to_center @ turned @ leaning_y @ leaning_x @ scaled @ np.linalg.inv(to_center)
    return whole


def assert_fetched(got: Array, image: Array, forward: Transform, interpolation: str, fill: Any) -> None:
    """Check each pixel against the one that the inverse matrix fetches, but for places that rounding moves to the next."""
    height, width, channels = image.shape
    y, x = np.mgrid[:height, :width] + 0.5
    places = np.linalg.inv(forward) @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    from_x, from_y = places[0].reshape(x.shape), places[1].reshape(y.shape)
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    if interpolation == "nearest":
        sure = (np.abs(from_x - np.rint(from_x)) > 0.01) & (np.abs(from_y - np.rint(from_y)) > 0.01)
        fetched = image[np.clip(from_y, 0, height - 1).astype(int), np.clip(from_x, 0, width - 1).astype(int)]
        tolerance = 0
    else:
        edges = [np.abs(place - end) for place, end in ((from_x, 0), (from_x, width), (from_y, 0), (from_y, height))]
        sure = np.min(edges, axis=0) > 0.01
        fetched = np.stack(
            [
                ndimage.map_coordinates(
                    image[:, :, channel].astype(float), [from_y - 0.5, from_x - 0.5], order=1, mode="nearest"
                )
                for channel in range(channels)
            ],
            axis=-1,
        )
        tolerance = 1
    expected = np.where(inside[:, :, None], fetched, np.broadcast_to(fill, channels))
    assert sure.mean() > 0.5
    assert np.abs(got - expected)[sure].max() <= tolerance + 1e-6


@settings(max_examples=60)
@given(
    drawn=st.tuples(*[words] * 6),
    interpolation=st.sampled_from(INTERPOLATIONS),
    center=st.sampled_from([None, (3.25, 40.75)]),
    channels=st.sampled_from([1, 3]),
)
def test_affine_is_torchvisions_composition_of_matrices(
    pixels: Array, drawn: tuple[int, ...], interpolation: str, center: tuple[float, float] | None, channels: int
) -> None:
    op = Affine(180, (0.3, 0.2), (0.6, 1.7), (-30, 30, -20, 40), interpolation, 99, center)
    image = np.ascontiguousarray(pixels[:, :, :channels])
    forward = composed(center or (32, 24), op.draw(drawn, 48, 64))
    assert_fetched(apply([op], image, drawn), image, forward, interpolation, 99)


@settings(max_examples=30)
@given(word=words, interpolation=st.sampled_from(INTERPOLATIONS))
def test_rotate_is_affine_the_other_way_round(pixels: Array, word: int, interpolation: str) -> None:
    op = Rotate((-170, 200), interpolation, (9, 8, 7))
    [degrees] = op.draw([word], 48, 64)
    forward = composed((32, 24), (-degrees, 0, 0, UNIT, 0, 0))
    assert_fetched(apply([op], pixels, [word]), pixels, forward, interpolation, (9, 8, 7))


# Ops that resize


def test_ops_that_resize_do_it_in_one_way(pixels: Array) -> None:
    np.testing.assert_array_equal(apply([ResizeShorter(20)], pixels, []), apply([Resize((20, 26))], pixels, []))
    for image in (pixels, pixels[:, :, :1]):
        np.testing.assert_array_equal(apply([Resize((17, 31))], image, []), resize_reference(image, 17, 31))


def test_random_resized_crop_cuts_then_resizes(pixels: Array) -> None:
    # A quarter of the area, square, in the last place: pixels outside the window must not be blended in.
    op = RandomResizedCrop(16, scale=(0.25, 0.25), ratio=(1, 1))
    drawn = [0] * 20 + [LARGEST, LARGEST]
    around = pixels.copy()
    around[:20] = around[:, :36] = 0
    expected = apply([Resize(16)], pixels[20:48, 36:64], [])
    np.testing.assert_array_equal(apply([op], pixels, drawn), expected)
    np.testing.assert_array_equal(apply([op], around, drawn), expected)


# Policies


def meant(name: str, strength: int) -> tuple[Op, list[int]] | None:
    """Return the op of the same meaning as an augmentation, with its words; None for one that warps."""
    share = strength / UNIT
    end = [LARGEST if strength > 0 else 0]  # of a range of factors: the last or the first
    match name:
        case "identity":
            return FlipLr(0.0), [0]
        case "brightness":
            return Brightness(abs(share)), end
        case "contrast":
            return Contrast(abs(share)), end
        case "color":
            return Saturation(abs(share)), end
        case "sharpness":
            return Sharpness(1 + share, 1.0), [0]
        case "posterize":
            return Posterize(strength, 1.0), [0]
        case "solarize":
            return Solarize(strength, 1.0), [0]
        case "autocontrast":
            return Autocontrast(1.0), [0]
        case "equalize":
            return Equalize(1.0), [0]
    return None


def warped(name: str, strength: int) -> Transform:
    """Return the matrix of an augmentation from places in a 48x64 image to places in the result."""
    degrees = math.degrees(math.atan(strength / UNIT)) * UNIT
    match name:
        case "shear_x":
            return composed((0, 0), (0, 0, 0, UNIT, degrees, 0))
        case "shear_y":
            return composed((0, 0), (0, 0, 0, UNIT, 0, degrees))
        case "translate_x":
            return composed((0, 0), (0, strength, 0, UNIT, 0, 0))
        case "translate_y":
            return composed((0, 0), (0, 0, strength, UNIT, 0, 0))
    assert name == "rotate"
    return composed((32, 24), (-strength, 0, 0, UNIT, 0, 0))


# The last strength of each augmentation in torchvision's tables for images of 48x64, and whether its sign is drawn.
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmentation_is_the_op_of_its_meaning(pixels: Array, name: str) -> None:
    """With the strength that was drawn; test_randomness holds the strengths."""
    which = word_of(AUGMENTATIONS.index(name), len(AUGMENTATIONS))
    cases = itertools.product((0, LARGEST), (1, 3), ((0, "nearest"), (7, "nearest"), (19, "bilinear")))
    for sign_word, channels, (step, interpolation) in cases:
        image = pixels[:, :, :channels]
        policies: list[tuple[Op, list[int]]] = [
            (RandAugment(1, step, interpolation=interpolation, fill=9), [which, sign_word, *[0] * 10]),
            (TrivialAugment(interpolation=interpolation, fill=9), [which, sign_word, word_of(step, 31)]),
        ]
        for op, drawn in policies:
            [_, strength] = op.draw(drawn, 48, 64)
            got, same = apply([op], image, drawn), meant(name, strength)
            if same is not None:
                np.testing.assert_array_equal(got, apply([same[0]], image, same[1]))
            elif strength == 0:
                np.testing.assert_array_equal(got, image)
            else:
                assert_fetched(got, image, warped(name, strength), interpolation, 9)


def test_augmentations_are_applied_one_after_the_other(pixels: Array) -> None:
    count = 6
    drawn = np.random.default_rng(count).integers(0, 2**32, 12).tolist()
    expected = pixels
    for step in range(count):
        expected = apply([RandAugment(1, 12)], expected, [*drawn[2 * step : 2 * step + 2], *[0] * 10])
    np.testing.assert_array_equal(apply([RandAugment(count, 12)], pixels, drawn), expected)


# Every op


PICTURE_OPS: list[Op] = [
    *(Resize(16), ResizeShorter(16), CentralCrop(16), RandomCrop(16), RandomResizedCrop(16)),
    *(
        Pad((3, 1, 4, 2), 7),
        Pad(3, padding_mode="edge"),
        Pad(3, padding_mode="reflect"),
        Pad(3, padding_mode="symmetric"),
    ),
    *(FlipLr(1.0), FlipUd(1.0), Rotate(30), Rotate(30, "bilinear", 50), Cutout(9, 4)),
    *(Affine(30, (0.2, 0.2), (0.7, 1.3), 10), Affine(30, None, None, (-5, 5, -8, 8), "bilinear", 200)),
    *(Brightness(0.5), Contrast(0.5), Saturation(0.5), Hue(0.3), ColorJitter(0.4, 0.4, 0.4, 0.2)),
    *(Grayscale(), Grayscale(3), GaussianBlur(5), GaussianBlur((3, 7), 1.5), GaussianNoise()),
    *(Autocontrast(1.0), Equalize(1.0), Posterize(3, 1.0), Solarize(100, 1.0), Sharpness(1.8, 1.0)),
    *(FlipLr(0.0), Autocontrast(0.0), Sharpness(1.8, 0.0), RandAugment(), TrivialAugment()),
]


def test_every_op_on_images_is_among_these() -> None:
    assert {type(op) for op in PICTURE_OPS} == set(ON_IMAGES)


def draws_of(op: Op) -> list[list[int]]:
    """Return the words of one draw, or for a policy of enough to meet every augmentation."""
    count = 40 if isinstance(op, RandAugment | TrivialAugment) else 2 if op.random_words else 1
    return random_words([op], 1, 0, list(range(1, count + 1)), 0)


@pytest.mark.parametrize("op", PICTURE_OPS, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_op_takes_any_form_of_an_image_and_leaves_it_as_it_was(pixels: Array, op: Op, channels: int) -> None:
    before = pixels[:, :, :channels].copy()
    writable, locked = before.copy(), before.copy()
    locked.flags.writeable = False
    for drawn in draws_of(op):
        got = apply([op], writable, drawn)
        assert got.dtype == np.uint8
        assert got.shape == (*op.output_size(48, 64), op.output_channels(channels))
        np.testing.assert_array_equal(apply([op], locked, drawn), got)
        np.testing.assert_array_equal(writable, before)
    # Mirrored, upside down, every other pixel, transposed, one channel of three: the memory layout does not matter.
    views = (before[4:44, ::-1], before[::-1], before[::2, ::2], before.swapaxes(0, 1), np.asfortranarray(before))
    for view in (*views, pixels[:, ::-1, 1:2]):
        for drawn in draws_of(op)[:20]:
            np.testing.assert_array_equal(apply([op], view, drawn), apply([op], view.copy("C"), drawn))


@pytest.mark.parametrize("op", PICTURE_OPS, ids=repr)
def test_a_batch_is_its_images_one_by_one(pixels: Array, op: Op) -> None:
    batch = [pixels, pixels[::-1], pixels // 2, pixels[:, ::-1]]
    table = word_table([op, FlipLr()], 1, 0, [5, 6, 7, 8], 0)
    together = apply_to_each([op, FlipLr()], batch, table)
    for image, drawn, got in zip(batch, table.tolist(), together, strict=True):
        np.testing.assert_array_equal(got, apply([op, FlipLr()], image, drawn))


# Custom ops


@dataclass(frozen=True)
class Own(Op):
    """A custom op that gives `random_words` its former name, and does not draw for itself."""

    does: str = "nothing"
    words = 3

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return (height, 5) if self.does == "cut" else (height, width)

    def output_channels(self, channels: int) -> int:
        return 1 if self.does == "first" else channels

    def pixels(self, image: Array, draw: tuple[int, ...]) -> Array:
        result: Array = DOES[self.does](image, draw)  # which some of them are not
        return result


def write(image: Array, draw: tuple[int, ...]) -> Array:
    image[0, 0] = 1
    return image


def stop(image: Array, draw: tuple[int, ...]) -> Array:
    raise StopIteration("first line\nsecond line")


def check_input(image: Array, draw: tuple[int, ...]) -> Array:
    assert type(image) is np.ndarray
    assert image.dtype == np.uint8
    assert not image.flags.writeable
    assert type(draw) is tuple
    assert [type(word) for word in draw] == [int] * 3
    return np.full_like(image, draw[0] + draw[1] + draw[2])


DOES: dict[str, Callable[[Array, tuple[int, ...]], Any]] = {
    "nothing": lambda image, draw: image,
    "check": check_input,
    "cut": lambda image, draw: image[:, :5],
    "first": lambda image, draw: image[:, :, :1],
    "write": write,
    "stop": stop,
    "memory": lambda image, draw: np.zeros(2**50),
    "other size": lambda image, draw: image[1:],
    "floats": lambda image, draw: image / 2,
    "none": lambda image, draw: None,
    "picture": lambda image, draw: Image.fromarray(image),
}


def test_a_custom_op_gets_a_read_only_array_and_whole_numbers(pixels: Array) -> None:
    writable = pixels.copy()
    np.testing.assert_array_equal(apply([Own("check")], writable, [1, 2, 3]), np.full_like(pixels, 6))
    assert writable.flags.writeable
    [got] = apply_to_each([Own("check")], [pixels], np.array([[1, 2, 3]], np.int64))
    np.testing.assert_array_equal(got, np.full_like(pixels, 6))


def test_a_lack_of_memory_is_no_fault_of_the_image(pixels: Array) -> None:
    with pytest.raises(MemoryError):
        apply([Own("memory")], pixels, [0, 0, 0])


def test_a_custom_op_stands_between_others_and_takes_its_own_words(pixels: Array) -> None:
    got = apply([FlipLr(), Own("cut"), RandomCrop(3)], pixels, [0, 9, 9, 9, LARGEST, LARGEST])
    np.testing.assert_array_equal(got, pixels[45:, ::-1][:, 2:5])
    np.testing.assert_array_equal(apply([Own("first")], pixels, [0, 0, 0]), pixels[:, :, :1])
    flipped = apply([Own("nothing"), FlipLr(), Cutout(3)], pixels, [0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(flipped[2:], pixels[2:, ::-1])


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("stop", r"^own failed: StopIteration: first line$"),
        ("write", r"^own failed: ValueError: assignment destination is read-only$"),
        ("other size", r"^own must return a uint8 array of shape \(48, 64, 3\), got uint8 \(47, 64, 3\)$"),
        ("floats", r"^own must return .*, got float64 \(48, 64, 3\)$"),
        ("none", r"^own must return .*, got .*NoneType"),
        ("picture", r"^own must return .*, got .*Image"),
    ],
)
def test_a_custom_op_that_fails_its_promise_is_named(pixels: Array, does: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply([Own(does)], pixels, [0, 0, 0])
