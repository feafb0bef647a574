"""Masks, boxes and points move with the pixels: in any chain, cut anywhere, one by one and in batches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from op_strategies import ON_IMAGES, every_op

from joulecache.transforms import (
    Affine,
    BoxesTarget,
    Brightness,
    CentralCrop,
    Chain,
    Cutout,
    Decode,
    FlipLr,
    FlipUd,
    MaskTarget,
    Op,
    Pad,
    Photometric,
    PointsTarget,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Rotate,
    TrivialAugment,
)
from joulecache.transforms.chain import apply, apply_to_each
from joulecache.transforms.ops import OPS, Mixture
from joulecache.transforms.randomness import random_words, word_table
from joulecache.transforms.targets import (
    SpatialTarget,
    apply_to_each_with_targets,
    apply_with_targets,
    check_fit,
    check_moves,
)

Array = NDArray[np.uint8]
Size = tuple[int, int]

LARGEST = 2**32 - 1
HEIGHT, WIDTH, MOST = 18, 23, 90
OPS_OF = every_op(16)
seeds = st.integers(0, LARGEST)


@st.composite
def chains(
    draw: st.DrawFn, kinds: Sequence[type[Op]], height: int = HEIGHT, width: int = WIDTH, channels: int = 3
) -> list[Op]:
    """Draw up to six ops that support the images they get."""
    ops: list[Op] = []
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=6)):
        op = draw(OPS_OF[kind])
        try:
            size, then = op.output_size(height, width), op.output_channels(channels)
        except ValueError:
            continue
        if max(size) <= MOST:
            ops.append(op)
            (height, width), channels = size, then
    return ops


def picture(seed: int, channels: int = 3, size: Size = (HEIGHT, WIDTH)) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), np.uint8)


def targets_of(seed: int, size: Size = (HEIGHT, WIDTH)) -> tuple[MaskTarget, BoxesTarget, PointsTarget]:
    """Draw a mask of blocks, up to five boxes, and four points."""
    rng, (height, width) = np.random.default_rng([seed, 1]), size
    ids = (
        rng.integers(0, 4, (-(-height // 3), -(-width // 3)), np.uint8).repeat(3, 0).repeat(3, 1)[:height, :width, None]
    )
    corners = rng.random((rng.integers(6), 2, 2), np.float32) * np.array([width, height], np.float32)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    points = np.concatenate([rng.random((4, 2)) * [width, height], rng.integers(0, 3, (4, 1))], axis=1)
    classes = rng.integers(0, 9, len(boxes))
    return MaskTarget(ids), BoxesTarget(boxes, classes), PointsTarget(points.astype(np.float32))


def arrays_of(targets: Sequence[SpatialTarget]) -> list[NDArray[Any]]:
    return [getattr(target, name) for target in targets for name in target.__slots__]


def stored(targets: Sequence[SpatialTarget]) -> list[SpatialTarget]:
    """Return the targets as a cache gives them back: the bytes alone, read-only."""
    copies = []
    for target in targets:
        arrays = [np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape) for array in arrays_of([target])]
        copies.append(type(target)(*arrays))
    return copies


def assert_same(got: Sequence[SpatialTarget], expected: Sequence[SpatialTarget]) -> None:
    for one, other in zip(arrays_of(got), arrays_of(expected), strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def assert_valid(targets: Sequence[SpatialTarget], size: Size) -> None:
    mask, boxes, points = targets
    assert isinstance(mask, MaskTarget)
    assert isinstance(boxes, BoxesTarget)
    assert isinstance(points, PointsTarget)
    assert mask.ids.dtype == np.uint8
    assert mask.ids.shape == (*size, 1)
    assert boxes.boxes.dtype == points.points.dtype == np.float32
    assert len(boxes.boxes) == len(boxes.classes)
    assert (boxes.boxes >= 0).all()
    assert (boxes.boxes[:, 2:] <= size[::-1]).all()
    visible = points.points[points.points[:, 2] > 0, :2]
    assert (visible >= 0).all()
    assert (visible < size[::-1]).all()


# Any chain


@settings(deadline=None, max_examples=300)
@given(ops=chains(ON_IMAGES), seed=seeds)
def test_a_chain_cut_anywhere_gives_the_targets_of_the_whole(ops: list[Op], seed: int) -> None:
    [words] = random_words(ops, 1, seed, [seed], 0)
    image, targets = picture(seed), targets_of(seed)
    pixels, expected = apply_with_targets(ops, image, words, targets)
    np.testing.assert_array_equal(pixels, apply(ops, image, words))
    if any(not isinstance(op, Photometric) for op in ops):
        assert_valid(expected, (pixels.shape[0], pixels.shape[1]))
    for cut in range(len(ops) + 1):
        before = sum(op.random_words for op in ops[:cut])
        cached, half = apply_with_targets(ops[:cut], image, words[:before], targets)
        loaded, got = apply_with_targets(ops[cut:], cached.copy(), words[before:], stored(half))
        np.testing.assert_array_equal(loaded, pixels)
        assert_same(got, expected)


@settings(deadline=None, max_examples=150)
@given(ops=chains(ON_IMAGES), seed=seeds, count=st.integers(1, 5))
def test_a_batch_has_the_targets_of_its_images_one_by_one(ops: list[Op], seed: int, count: int) -> None:
    table = word_table(ops, 1, seed, list(range(count)), 0)
    images = [picture(seed + row) for row in range(count)]
    given_ = [targets_of(seed + row) for row in range(count)]
    pixels, moved = apply_to_each_with_targets(ops, images, table, given_)
    for row in range(count):
        image, expected = apply_with_targets(ops, images[row], table[row].tolist(), given_[row])
        np.testing.assert_array_equal(pixels[row], image)
        assert_same(moved[row], expected)


def test_a_batch_without_targets_or_boxes_is_no_special_case() -> None:
    ops = [RandomCrop(9), FlipLr(), Rotate(20), RandAugment()]
    table = word_table(ops, 1, 0, [1, 2], 0)
    images = [picture(1), picture(2)]
    pixels, moved = apply_to_each_with_targets(ops, images, table, [(), ()])
    for one, other in zip(pixels, apply_to_each(ops, images, table), strict=True):
        np.testing.assert_array_equal(one, other)
    assert moved == [(), ()]
    none = BoxesTarget(np.empty((0, 4), np.float32), np.empty(0, np.int64))
    for [left] in apply_to_each_with_targets(ops, images, table, [[none], [none]])[1]:
        assert_same([left], [none])


# Masks


EXACT = [FlipLr, FlipUd, RandomCrop, CentralCrop, Pad, Rotate, Affine]


@settings(deadline=None, max_examples=200)
@given(ops=chains(EXACT, channels=1), seed=seeds)
def test_a_mask_of_the_pixels_moves_as_the_image(ops: list[Op], seed: int) -> None:
    ops = [black_and_nearest(op) for op in ops]
    image, [words] = picture(seed, 1), random_words(ops, 1, seed, [0], 0)
    pixels, [mask] = apply_with_targets(ops, image, words, [MaskTarget(image)])
    assert isinstance(mask, MaskTarget)
    np.testing.assert_array_equal(mask.ids, pixels)


def black_and_nearest(op: Op) -> Op:
    """Return the op with the fill and the interpolation that masks have."""
    from dataclasses import replace

    match op:
        case Rotate() | Affine():
            return replace(op, fill=0, interpolation="nearest")
        case Pad():
            return replace(op, fill=0)
        case _:
            return op


@pytest.mark.parametrize(
    "op",
    [Pad(2, fill=200), Rotate((30, 30), fill=200), Affine((30, 30), interpolation="bilinear", fill=(9, 9, 9))],
    ids=repr,
)
def test_a_fill_is_a_colour_and_no_class(op: Op) -> None:
    ids = np.ones((HEIGHT, WIDTH, 1), np.uint8)
    _, [mask] = apply_with_targets([op], picture(0), [0] * op.random_words, [MaskTarget(ids)])
    assert isinstance(mask, MaskTarget)
    assert set(np.unique(mask.ids)) == {0, 1}


# Boxes


def drawn_boxes(boxes: NDArray[np.float32]) -> Array:
    """Return a mask with a whole box."""
    ids = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    for left, top, right, bottom in boxes.astype(int):
        ids[top:bottom, left:right] = 1
    return ids


boxes_in_the_image = st.tuples(
    st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1), st.integers(1, WIDTH), st.integers(1, HEIGHT)
).map(lambda box: (box[0], box[1], max(box[2], box[0] + 1), max(box[3], box[1] + 1)))
UPRIGHT = [FlipLr, FlipUd, RandomCrop, CentralCrop, Resize, RandomResizedCrop]


@settings(deadline=None, max_examples=300)
@given(kind=st.sampled_from(UPRIGHT), box=boxes_in_the_image, seed=seeds, data=st.data())
def test_a_box_stays_around_its_pixels(kind: type[Op], box: tuple[int, ...], seed: int, data: st.DataObject) -> None:
    [op] = data.draw(chains([kind]).filter(lambda ops: len(ops) == 1))
    [words] = random_words([op], 1, seed, [0], 0)
    given_ = np.array([box], np.float32)
    targets: list[SpatialTarget] = [MaskTarget(drawn_boxes(given_)), BoxesTarget(given_, np.array([5]))]
    _, [mask, boxes] = apply_with_targets([op], picture(0), words, targets)
    assert isinstance(mask, MaskTarget)
    assert isinstance(boxes, BoxesTarget)
    rows, columns = np.nonzero(mask.ids[:, :, 0])
    if not len(boxes.boxes):  # less than a pixel is left
        assert not len(rows) or np.ptp(rows) < 1 or np.ptp(columns) < 1
        return
    [[left, top, right, bottom]] = boxes.boxes
    around = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    np.testing.assert_allclose([left, top, right, bottom], around, rtol=0, atol=1.001)


@settings(deadline=None, max_examples=100)
@given(box=boxes_in_the_image, degrees=st.integers(-180, 180))
def test_a_rotated_box_is_the_upright_hull_of_its_corners(box: tuple[int, ...], degrees: int) -> None:
    given_ = np.array([box], np.float32)
    targets: list[SpatialTarget] = [MaskTarget(drawn_boxes(given_)), BoxesTarget(given_, np.array([5]))]
    _, [mask, boxes] = apply_with_targets([Rotate((degrees, degrees))], picture(0), [0], targets)
    assert isinstance(mask, MaskTarget)
    assert isinstance(boxes, BoxesTarget)
    left, top, right, bottom = box
    corners = np.array([(left, top), (right, top), (left, bottom), (right, bottom)]) - [WIDTH / 2, HEIGHT / 2]
    turn = np.exp(-1j * np.radians(degrees))  # y points down
    turned = (corners[:, 0] + 1j * corners[:, 1]) * turn
    x, y = turned.real + WIDTH / 2, turned.imag + HEIGHT / 2
    hull = np.clip([x.min(), y.min(), x.max(), y.max()], 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
    if min(hull[2:] - hull[:2]) < 1.001:
        return
    np.testing.assert_allclose(boxes.boxes, [hull], rtol=0, atol=1e-3)
    rows, columns = np.nonzero(mask.ids[:, :, 0])
    if len(rows):  # of the pixels, whose centers are half a pixel inside, none is outside
        assert hull[0] - 1 <= columns.min() <= columns.max() <= hull[2]
        assert hull[1] - 1 <= rows.min() <= rows.max() <= hull[3]


def test_boxes_are_clipped_and_dropped_with_their_classes_after_every_op_that_moves() -> None:
    boxes = BoxesTarget(
        np.array([(0, 0, 4, 4), (3.5, 0, 12, 9), (5, 5, 5.9, 9), (6, 2, 9, 4)], np.float32), np.arange(4)
    )
    _, [cropped] = apply_with_targets([RandomCrop((8, 8))], picture(0, 3, (8, 12)), [0, LARGEST], [boxes])
    assert isinstance(cropped, BoxesTarget)
    np.testing.assert_array_equal(cropped.boxes, [(0, 0, 8, 8), (2, 2, 5, 4)])
    np.testing.assert_array_equal(cropped.classes, [1, 3])
    # What a crop cut off does not come back.
    _, [padded] = apply_with_targets([RandomCrop((8, 8)), Pad(4)], picture(0, 3, (8, 12)), [0, LARGEST], [boxes])
    assert isinstance(padded, BoxesTarget)
    np.testing.assert_array_equal(padded.boxes, [(4, 4, 12, 12), (6, 6, 9, 8)])


# Points


@settings(deadline=None, max_examples=200)
@given(
    ops=chains([FlipLr, FlipUd, RandomCrop, CentralCrop, Pad]),
    seed=seeds,
    x=st.integers(0, WIDTH - 1),
    y=st.integers(0, HEIGHT - 1),
)
def test_a_point_stays_on_its_pixel(ops: list[Op], seed: int, x: int, y: int) -> None:
    ids = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    ids[y, x] = 1
    [words] = random_words(ops, 1, seed, [0], 0)
    targets: list[SpatialTarget] = [MaskTarget(ids), PointsTarget(np.array([(x, y, 2)], np.float32))]
    _, [mask, points] = apply_with_targets(ops, picture(0), words, targets)
    assert isinstance(mask, MaskTarget)
    assert isinstance(points, PointsTarget)
    [[right, down, visibility]] = points.points
    if visibility:
        assert mask.ids[int(down), int(right), 0] == 1
    elif all(isinstance(op, FlipLr | FlipUd) or getattr(op, "padding_mode", "constant") == "constant" for op in ops):
        assert not mask.ids.any()


def test_a_point_that_left_the_image_is_gone_for_good() -> None:
    points = PointsTarget(np.array([(1, 1, 2), (10, 6, 1), (4, 3, 0)], np.float32))
    ops = [RandomCrop((8, 8)), Pad(4)]
    _, [moved] = apply_with_targets(ops, picture(0, 3, (8, 12)), [0, LARGEST], [points])
    assert isinstance(moved, PointsTarget)
    np.testing.assert_array_equal(moved.points, [(1, 5, 0), (10, 10, 1), (4, 7, 0)])


# Ops


def test_every_built_in_op_but_mixtures_says_how_targets_move() -> None:
    for kind in OPS.values():
        op: Op = kind(*kind.typical)
        if isinstance(op, Mixture):
            with pytest.raises(
                ValueError, match=f"^{kind.__name__.lower()} mixes class labels, but not masks, boxes or points"
            ):
                check_moves([op])
        else:
            check_moves([op])


def test_ops_that_leave_pixels_in_place_leave_targets_as_they_are() -> None:
    outside = BoxesTarget(np.array([(-5, 0, 2, 0.5)], np.float32), np.array([1]))
    targets: list[SpatialTarget] = [*targets_of(1), outside]
    ops = [Brightness(0.5), Cutout(9)]
    _, moved = apply_with_targets(ops, picture(0), [0, 0, 0], targets)
    assert_same(moved, targets)


def test_a_policy_moves_targets_with_the_augmentations_that_move_pixels() -> None:
    for op in (RandAugment(6), TrivialAugment()):
        words = random_words([op], 1, 0, list(range(60)), 0)
        moved = [apply_with_targets([op], picture(0), row, targets_of(3)) for row in words]
        same = [arrays_of(targets)[0].tobytes() == targets_of(3)[0].ids.tobytes() for _, targets in moved]
        assert 0 < sum(same) < len(same)


# Custom ops


@dataclass(frozen=True)
class Transpose(Op):
    """A custom op that moves pixels."""

    does: str = "right"

    def output_size(self, height: int, width: int) -> Size:
        return width, height

    def pixels(self, image: Array, drawn: tuple[int, ...]) -> Array:
        return image.swapaxes(0, 1)

    def mask(self, mask: Array, drawn: tuple[int, ...]) -> Array:
        if self.does == "writes":
            mask += 1
        return mask if self.does == "mask" else mask.swapaxes(0, 1)

    def boxes(self, boxes: Any, drawn: tuple[int, ...], size: Size) -> Any:
        moved = boxes[:, [1, 0, 3, 2]]
        return {"boxes": moved[:-1], "doubles": moved.astype(float), "fails": None}.get(self.does, moved)[
            :
        ]  # None fails

    def points(self, points: Any, drawn: tuple[int, ...], size: Size) -> Any:
        return points[:, :2] if self.does == "points" else points[:, [1, 0, 2]]


def test_a_custom_op_moves_targets_in_a_chain() -> None:
    ops = [FlipLr(1.0), Transpose(), RandomCrop((20, 15))]
    check_moves(ops)
    given_ = targets_of(8)
    pixels, moved = apply_with_targets(ops, picture(0), [0, 0, 0], given_)
    rotated, expected = apply_with_targets([FlipLr(1.0)], picture(0), [0], given_)
    np.testing.assert_array_equal(pixels, rotated.swapaxes(0, 1)[:20, :15])
    assert_valid(moved, (20, 15))
    np.testing.assert_array_equal(arrays_of(moved)[0], arrays_of(expected)[0].swapaxes(0, 1)[:20, :15])
    table = np.zeros((2, 3), np.int64)
    for each in apply_to_each_with_targets(ops, [picture(0)] * 2, table, [given_] * 2)[1]:
        assert_same(each, moved)


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("mask", r"transpose must return a uint8 array of shape \(23, 18, 1\) from mask\(\), got uint8 \(18, 23, 1\)"),
        ("writes", r"transpose failed: ValueError: output array is read-only"),
        ("boxes", r"transpose must return a float32 array of shape \(2, 4\) from boxes\(\), got float32 \(1, 4\)"),
        ("doubles", r"transpose must return a float32 array of shape \(2, 4\) from boxes\(\), got float64 \(2, 4\)"),
        ("fails", r"transpose failed: TypeError: 'NoneType' object is not subscriptable"),
        ("points", r"transpose must return a float32 array of shape \(4, 3\) from points\(\), got float32 \(4, 2\)"),
    ],
)
def test_a_custom_op_that_moves_targets_wrongly_is_named(does: str, message: str) -> None:
    mask, _, points = targets_of(1)
    boxes = BoxesTarget(np.array([(1, 2, 3, 4), (5, 6, 7, 8)], np.float32), np.array([1, 2]))
    with pytest.raises(ValueError, match=f"^{message}$"):
        apply_with_targets([Transpose(does)], picture(0), (), [mask, boxes, points])


class _Pixels:
    """The part of a custom op that says nothing of targets."""

    def pixels(self, image: Array, drawn: tuple[int, ...]) -> Array:
        return image


@dataclass(frozen=True)
class Silent(_Pixels, Op):
    """Defines pixels alone."""


@dataclass(frozen=True)
class Half(_Pixels, Op):
    """Defines one of the three."""

    def boxes(self, boxes: Any, drawn: tuple[int, ...], size: Size) -> Any:
        return boxes


@dataclass(frozen=True)
class Sheared(FlipLr):
    """Moves pixels otherwise than the op it derives from."""

    def pixels(self, image: Array, drawn: tuple[int, ...]) -> Array:
        return image


@dataclass(frozen=True)
class Applied(FlipUd):
    """Moves pixels otherwise, by the method that the op it derives from calls."""

    def apply(self, image: Array) -> Array:
        return image


@dataclass(frozen=True)
class Darker(Brightness):
    """Derives from an op that leaves pixels in their places."""

    def pixels(self, image: Array, drawn: tuple[int, ...]) -> Array:
        return image // 2


@dataclass(frozen=True)
class TopLeft(RandomCrop):
    """Only draws otherwise."""

    def draw(self, words: Any, height: int, width: int) -> tuple[int, ...]:
        return 0, 0


@pytest.mark.parametrize(
    ("op", "missing"),
    [
        (Silent(), "mask, boxes, points in class Silent"),
        (Half(), "mask, points in class Half"),
        (Sheared(), "mask, boxes, points in class Sheared"),
        (Applied(), "mask, boxes, points in class Applied"),
    ],
    ids=repr,
)
def test_a_custom_op_that_does_not_say_how_targets_move_is_refused(op: Op, missing: str) -> None:
    Chain((Decode(), op), 1)  # fine without such targets
    name = type(op).__name__.lower()
    message = (
        f"{name} does not say how masks, boxes and points move with the pixels: define {missing}, or derive it from Photometric "
        "instead of Op if it leaves every pixel in its place"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_moves([FlipLr(), op])


def test_a_custom_op_inherits_how_targets_move_with_the_pixels() -> None:
    check_moves([Darker(0.3), TopLeft(8)])
    _, moved = apply_with_targets([Darker(0.3)], picture(0), [0], targets_of(2))
    assert_same(moved, targets_of(2))
    _, moved = apply_with_targets([TopLeft((8, 9))], picture(0), [LARGEST, LARGEST], targets_of(2))
    np.testing.assert_array_equal(arrays_of(moved)[0], targets_of(2)[0].ids[:8, :9])


# Fit


@pytest.mark.parametrize(
    "box", [(WIDTH, 0, WIDTH + 5, 9), (0, HEIGHT, 5, HEIGHT + 3), (-5, 0, 0, 9), (0, -5, 9, 0)], ids=repr
)
def test_a_box_beside_its_image_is_refused_and_one_across_the_edge_is_not(box: tuple[int, ...]) -> None:
    boxes = BoxesTarget(np.array([(-1, -1, WIDTH + 1, 3), box], np.float32), np.array([0, 0]))
    check_fit([BoxesTarget(boxes.boxes[:1], boxes.classes[:1])], HEIGHT, WIDTH)
    message = re.escape(f"box 1 must overlap the image of {HEIGHT}x{WIDTH}, got {[float(side) for side in box]}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_fit([boxes], HEIGHT, WIDTH)
