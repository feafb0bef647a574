"""What moves with an image: masks, boxes and points, and running ops on images together with them.

Coordinates are pixels from the top left corner of the image: a box around the whole image is (0, 0, W, H). Results are those
of torchvision v2 for its `tv_tensors`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from joulecache.transforms import custom
from joulecache.transforms.coordinates import Coordinates, at_least_a_pixel, clamped, inside
from joulecache.transforms.images import Array
from joulecache.transforms.ops import BUILT_IN, BatchOp, Decode, Mixture, Op, Photometric, op_name
from joulecache.transforms.ops.base import MOVES, Drawn, word_columns
from joulecache.transforms.ops.decode import Header


@dataclass(frozen=True, slots=True, eq=False)
class MaskTarget:
    """A class of each pixel.

    Attributes:
        ids: Numbers of classes, uint8 ``[H, W, 1]``, of the image's height and width.
    """

    ids: Array


@dataclass(frozen=True, slots=True, eq=False)
class BoxesTarget:
    """Boxes with a class each.

    Attributes:
        boxes: Left, top, right and bottom in pixels, float32 ``[n, 4]``.
        classes: Numbers of their classes, int64 ``[n]``.
    """

    boxes: Coordinates
    classes: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class PointsTarget:
    """A fixed number of points.

    Attributes:
        points: x, y and visibility of each, float32 ``[n, 3]``: 0 for a point that is not in the image, else as the source says.
    """

    points: Coordinates


SpatialTarget: TypeAlias = MaskTarget | BoxesTarget | PointsTarget
"""A target that moves with the pixels."""


def check_moves(ops: Iterable[Op]) -> None:
    """Check that every op says how masks, boxes and points move with the pixels.

    Raises:
        ValueError: An op does not, or mixes images.
    """
    for op in ops:
        kind = type(op)
        if isinstance(op, Mixture):
            raise ValueError(
                f"{op_name(kind)} mixes class labels, but not masks, boxes or points: drop it from the chain, or do not load them"
            )
        missing = [name for name in MOVES if getattr(kind, name) is getattr(Op, name)]
        if missing and not isinstance(op, Photometric | BatchOp):
            raise ValueError(
                f"{op_name(kind)} does not say how masks, boxes and points move with the pixels: define {', '.join(missing)} in class "
                f"{kind.__name__}, or derive it from Photometric instead of Op if it leaves every pixel in its place"
            )


def apply_with_targets(
    ops: Sequence[Op], image: bytes | Header | Array, words: Sequence[int], targets: Sequence[SpatialTarget]
) -> tuple[Array, tuple[SpatialTarget, ...]]:
    """Run ops on one image and its targets: like `apply`, with one draw per op for all of them.

    After each op that moves pixels, boxes are clipped to the image, and those less than a pixel high or wide are dropped with
    their classes. Points keep their number: where one leaves the image, its visibility becomes 0.

    Args:
        ops: Ops on single images.
        image: The input of the first op: for decode, encoded bytes or the result of `Decode.read_header`.
        words: The random words of all `ops` (see `random_words`).
        targets: The targets, in coordinates of the upright image at full scale.

    Returns:
        The image ``[H, W, C]`` uint8 and its targets, possibly views of the input.

    Raises:
        DecodeError: The image cannot be decoded.
        ValueError: An op does not support the image, a custom op failed, or a target does not fit the image.
    """
    if ops and isinstance(ops[0], Decode):
        assert isinstance(image, bytes | Header)
        array, size = ops[0].decoded(image)
        check_fit(targets, *size)
        moving = [_gathered([target]).moved(ops[0], [array.shape[:2]], size, array.shape[:2]) for target in targets]
        targets, ops = [column.scattered()[0] for column in moving], ops[1:]
    else:
        assert isinstance(image, np.ndarray)
        array = image
    images, moved = apply_to_each_with_targets(ops, [array], np.array([words], np.int64), [targets])
    return images[0], moved[0]


def apply_to_each_with_targets(
    ops: Sequence[Op],
    images: Sequence[Array],
    words: NDArray[np.int64],
    targets: Sequence[Sequence[SpatialTarget]],
) -> tuple[Sequence[Array], list[tuple[SpatialTarget, ...]]]:
    """Run ops on images of one size and their targets: like `apply_with_targets` on each, with one vectorized draw per op.

    Args:
        ops: Ops on single decoded images.
        images: Images of one size.
        words: Their `word_table`, int64 ``[B, W]``.
        targets: The targets of each image, in the same order for all.

    Returns:
        The images ``[H, W, C]`` uint8 and their targets, possibly views of the input.
    """
    moving = [_gathered(column) for column in zip(*targets, strict=True)]
    for op, columns in word_columns(ops):
        size = images[0].shape[:2]
        if type(op) in BUILT_IN:
            drawn = op.draw_batch(words[:, columns], *size) if op.random_words else [()] * len(images)
            images = [op.pixels(image, one) for image, one in zip(images, drawn, strict=True)]
        else:
            drawn = [custom.draw(op, row, *size) for row in words[:, columns].tolist()]
            images = [custom.pixels(op, image, one) for image, one in zip(images, drawn, strict=True)]
        if not isinstance(op, Photometric):
            moving = [column.moved(op, drawn, size, images[0].shape[:2]) for column in moving]
    scattered = [column.scattered() for column in moving]
    return images, [tuple(column[row] for column in scattered) for row in range(len(images))]


def check_fit(targets: Iterable[SpatialTarget], height: int, width: int) -> None:
    """Check that targets fit an image of this size.

    Raises:
        ValueError: A mask has another size, or a box lies outside the image.
    """
    for target in targets:
        if isinstance(target, MaskTarget) and target.ids.shape != (height, width, 1):
            raise ValueError(
                f"the mask must be {height}x{width} as the image is, got {'x'.join(map(str, target.ids.shape[:2]))}"
            )
        if isinstance(target, BoxesTarget):
            left, top, right, bottom = target.boxes.T
            outside = np.flatnonzero((left >= width) | (top >= height) | (right <= 0) | (bottom <= 0))
            if len(outside):
                raise ValueError(
                    f"box {outside[0]} must overlap the image of {height}x{width}, got {target.boxes[outside[0]].tolist()}"
                )


# The targets of a batch, by kind --------------------------------------------------------------------------------------


class _Column(Protocol):
    """One target of each image of a batch."""

    def moved(self, op: Op, drawn: Sequence[Drawn], size: tuple[int, int], result: tuple[int, int]) -> _Column:
        """Return them as an op moves them, from images of `size` (height, width) to those of `result`."""

    def scattered(self) -> Sequence[SpatialTarget]:
        """Return the target of each image."""


def _gathered(targets: Sequence[SpatialTarget]) -> _Column:
    """Return the targets of one place, all of one kind."""
    masks = [target.ids for target in targets if isinstance(target, MaskTarget)]
    if masks:
        return _Masks(masks)
    points = [target.points for target in targets if isinstance(target, PointsTarget)]
    if points:
        return _Points(np.concatenate(points), np.array([len(part) for part in points]))
    boxes = [target for target in targets if isinstance(target, BoxesTarget)]
    return _Boxes(
        np.concatenate([target.boxes for target in boxes]),
        np.concatenate([target.classes for target in boxes]),
        np.array([len(target.boxes) for target in boxes]),
    )


@dataclass(frozen=True, slots=True)
class _Masks:
    ids: Sequence[Array]

    def moved(self, op: Op, drawn: Sequence[Drawn], size: tuple[int, int], result: tuple[int, int]) -> _Masks:
        pairs = zip(self.ids, drawn, strict=True)
        if type(op) in BUILT_IN:
            return _Masks([op.mask(ids, one) for ids, one in pairs])
        return _Masks([custom.mask(op, ids, one) for ids, one in pairs])

    def scattered(self) -> Sequence[SpatialTarget]:
        return [MaskTarget(ids) for ids in self.ids]


@dataclass(frozen=True, slots=True)
class _Boxes:
    """All boxes, those of one image after those of the other.

    Attributes:
        boxes: float32 ``[N, 4]``.
        classes: int64 ``[N]``.
        counts: The number of boxes of each image, int64 ``[B]``.
    """

    boxes: Coordinates
    classes: NDArray[np.int64]
    counts: NDArray[np.int64]

    def moved(self, op: Op, drawn: Sequence[Drawn], size: tuple[int, int], result: tuple[int, int]) -> _Boxes:
        move = op.boxes if type(op) in BUILT_IN else lambda *arguments: custom.boxes(op, *arguments)
        boxes = clamped(_moved_rows(op, move, self.boxes, self.counts, drawn, size), *result)
        kept = at_least_a_pixel(boxes)
        if kept.all():
            return replace(self, boxes=boxes)
        owners = np.repeat(np.arange(len(self.counts)), self.counts)
        return _Boxes(boxes[kept], self.classes[kept], np.bincount(owners[kept], minlength=len(self.counts)))

    def scattered(self) -> Sequence[SpatialTarget]:
        return [BoxesTarget(self.boxes[rows], self.classes[rows]) for rows in _rows_of(self.counts)]


@dataclass(frozen=True, slots=True)
class _Points:
    """All points, those of one image after those of the other.

    Attributes:
        points: float32 ``[N, 3]``.
        counts: The number of points of each image, int64 ``[B]``.
    """

    points: Coordinates
    counts: NDArray[np.int64]

    def moved(self, op: Op, drawn: Sequence[Drawn], size: tuple[int, int], result: tuple[int, int]) -> _Points:
        move = op.points if type(op) in BUILT_IN else lambda *arguments: custom.points(op, *arguments)
        points = _moved_rows(op, move, self.points, self.counts, drawn, size)
        there = inside(points, *result)
        if not there.all():
            points = points.copy()
            points[~there, 2] = 0
        return replace(self, points=points)

    def scattered(self) -> Sequence[SpatialTarget]:
        return [PointsTarget(self.points[rows]) for rows in _rows_of(self.counts)]


_Move = Callable[[Coordinates, Drawn, tuple[int, int]], Coordinates]


def _moved_rows(
    op: Op, move: _Move, rows: Coordinates, counts: NDArray[np.int64], drawn: Sequence[Drawn], size: tuple[int, int]
) -> Coordinates:
    """Move the rows of all images: at once where the op has one draw for all or accepts one per row."""
    if len(drawn) == 1:
        return move(rows, drawn[0], size)
    if type(op) in BUILT_IN and not op.random_words:
        return move(rows, (), size)
    if type(op) in BUILT_IN and op.draws_by_row:
        by_row = np.repeat(np.array(drawn, np.int64), counts, axis=0)
        return move(rows, tuple(by_row.T), size)  # columns in place of integers
    parts = zip(_rows_of(counts), drawn, strict=True)
    return np.concatenate([move(rows[part], one, size) for part, one in parts])


def _rows_of(counts: NDArray[np.int64]) -> list[slice]:
    """Return the rows of each image."""
    ends: list[int] = np.cumsum(counts).tolist()
    return list(map(slice, [0, *ends[:-1]], ends))
