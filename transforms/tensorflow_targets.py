"""TensorFlow kernels that move masks, boxes and points with the pixels of one image or a batch.

They are exact: the results are those of `transforms.targets`, for the ops that `transforms.tensorflow` supports and the same draws.
Graphs need one shape, so the boxes of an image are padded, and one that is dropped stays in its place with the class `ABSENT`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import tensorflow as tf

from joulecache.transforms import tensorflow as graphs
from joulecache.transforms.ops import (
    BatchOp,
    CentralCrop,
    Decode,
    FlipLr,
    FlipUd,
    Op,
    Pad,
    Photometric,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    ResizeShorter,
)
from joulecache.transforms.tensorflow import Tensor

ABSENT = -1
"""The class of padding, and of boxes that were dropped."""


class Mask(NamedTuple):
    """A class of each pixel, uint8 ``[H, W, 1]`` or ``[B, H, W, 1]``."""

    ids: Tensor


class Boxes(NamedTuple):
    """Boxes, float32 ``[n, 4]`` or ``[B, n, 4]``, and their classes, int64 ``[n]`` or ``[B, n]``."""

    boxes: Tensor
    classes: Tensor


class Points(NamedTuple):
    """Points, float32 ``[n, 3]`` or ``[B, n, 3]``: x, y, visibility."""

    points: Tensor


Moving: TypeAlias = Mask | Boxes | Points


# AutoGraph cannot convert `match`, and logs a warning.
@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
def apply(
    ops: Sequence[Op], image: Tensor, targets: Sequence[Moving], drawn: Tensor, orientation: Tensor | None = None
) -> tuple[Tensor, tuple[Moving, ...]]:
    """Run ops on one image and its targets.

    Args:
        ops: The ops.
        image: Encoded bytes (a scalar string), or ``[H, W, C]`` uint8.
        targets: Its targets, in coordinates of the upright image at full scale.
        drawn: The integers drawn by the ops, int32 ``[P]``.
        orientation: The image's EXIF orientation, 1 to 8, an int scalar; None if it is upright.

    Returns:
        The image, as `transforms.tensorflow.apply` returns it, and its targets.
    """
    if not targets:
        return graphs.apply(ops, image, drawn, orientation), ()
    stop = 0
    for op in ops:
        start, stop = stop, stop + graphs.drawn_count([op])
        before, image = image, graphs.apply([op], image, drawn[start:stop], orientation)
        if _moves(op):
            result = tf.shape(image)[:2]
            size = _decoded_size(op, before, result, orientation) if isinstance(op, Decode) else tf.shape(before)[:2]
            targets = [_moved(op, target, drawn[start:stop], size, result) for target in targets]
    return image, tuple(targets)


# AutoGraph cannot convert `match`, and logs a warning.
@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
def apply_batch(
    ops: Sequence[Op], images: Tensor, targets: Sequence[Moving], drawn: Tensor
) -> tuple[Tensor, tuple[Moving, ...]]:
    """Run ops on images of one size and their targets.

    Args:
        ops: Ops that `transforms.tensorflow.runs_on_batches` supports.
        images: ``[B, H, W, C]`` uint8.
        targets: Their targets.
        drawn: The integers drawn for each image, int32 ``[B, P]``.

    Returns:
        The images, as `transforms.tensorflow.apply_batch` returns them, and their targets.
    """
    size, moved, steps, stop = tf.shape(images)[1:3], list(targets), [], 0
    for op in ops:
        start, stop = stop, stop + graphs.drawn_count([op])
        if _moves(op):
            steps.append((op, drawn[:, start:stop]))
    for op, part in steps if targets else ():
        result = _result_size(op, size)
        moved = [each if isinstance(each, Mask) else _moved(op, each, part, size, result) for each in moved]
        size = result
    if steps and targets:  # at once, since a crop and a flip are fused
        on_masks, all_drawn = [_for_masks(op) for op, _ in steps], tf.concat([part for _, part in steps], 1)
        moved = [
            Mask(graphs.apply_batch(on_masks, each.ids, all_drawn)) if isinstance(each, Mask) else each
            for each in moved
        ]
    return graphs.apply_batch(ops, images, drawn), tuple(moved)


def packed(boxes: Boxes, most: int) -> Boxes:
    """Return a batch of boxes without the dropped ones, padded with -1 to `most` per image, of which no image has more."""
    order = tf.argsort(tf.cast(boxes.classes < 0, tf.int32), axis=-1, stable=True)[:, :most]
    classes = tf.gather(boxes.classes, order, batch_dims=1)
    corners = tf.gather(boxes.boxes, order, batch_dims=1)
    there = classes >= 0
    return Boxes(
        tf.ensure_shape(tf.where(there[..., None], corners, -1.0), [None, most, 4]),
        tf.ensure_shape(tf.where(there, classes, ABSENT), [None, most]),
    )


def _moves(op: Op) -> bool:
    return not isinstance(op, Photometric | BatchOp)


def _for_masks(op: Op) -> Op:
    """Return the op that does to masks what `op` does to images."""
    return replace(op, fill=0) if isinstance(op, Pad) else op


def _decoded_size(op: Decode, data: Tensor, result: Tensor, orientation: Tensor | None) -> Tensor:
    """Return (height, width) of the upright image at full scale."""
    if op.shorter is None:
        return result

    def jpeg_size() -> Tensor:
        size = tf.image.extract_jpeg_shape(data)[:2]
        if orientation is None:
            return size
        turned = tf.logical_and(orientation >= 5, orientation <= 8)
        return tf.where(turned, tf.reverse(size, [0]), size)

    return tf.cond(tf.io.is_jpeg(data), jpeg_size, lambda: result)


def _result_size(op: Op, size: Tensor) -> Tensor:
    """Return (height, width) after an op that runs on batches."""
    match op:
        case CentralCrop() | RandomCrop():
            return tf.constant(op.target)
        case Pad():
            left, top, right, bottom = op.sides
            return size + tf.constant([top + bottom, left + right])
    return size


def _moved(op: Op, target: Moving, drawn: Tensor, size: Tensor, result: Tensor) -> Moving:
    """Return a target as an op moves it, from images of `size` (height, width) to those of `result`."""
    match target:
        case Mask():
            return Mask(_mask(op, target.ids, drawn, result))
        case Boxes():
            boxes = _clamped(_coordinates(op, target.boxes, drawn, size, result), result)
            sides = boxes[..., 2:] - boxes[..., :2]
            kept = tf.reduce_all(sides >= 1, axis=-1)
            return Boxes(boxes, tf.where(kept, target.classes, ABSENT))
    points = _coordinates(op, target.points, drawn, size, result)
    height, width = tf.unstack(tf.cast(result, tf.float32))
    x, y, visibility = tf.unstack(points, axis=-1)
    there = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return Points(tf.stack([x, y, tf.where(there, visibility, 0.0)], axis=-1))


def _mask(op: Op, ids: Tensor, drawn: Tensor, result: Tensor) -> Tensor:
    match op:
        case Decode(shorter=None):
            return ids
        case Decode() | Resize() | ResizeShorter():
            return _nearest(ids, result)
        case RandomResizedCrop():
            return _nearest(ids[drawn[0] : drawn[0] + drawn[2], drawn[1] : drawn[1] + drawn[3]], result)
    return graphs.apply([_for_masks(op)], ids, drawn)


def _nearest(ids: Tensor, size: Tensor) -> Tensor:
    """Resize a mask ``[H, W, 1]`` as `transforms.resizing.resize_mask` does."""
    for axis in (0, 1):
        old = tf.shape(ids)[axis]
        step = tf.cast(old, tf.float32) / tf.cast(size[axis], tf.float32)
        positions = tf.cast(tf.floor(tf.range(tf.cast(size[axis], tf.float32)) * step), tf.int32)
        ids = tf.gather(ids, tf.minimum(positions, old - 1), axis=axis)
    return ids


# Coordinates: rows are boxes ``[..., n, 4]`` or points ``[..., n, 3]``, amounts have the shape ``[...]`` or () ----------


def _coordinates(op: Op, rows: Tensor, drawn: Tensor, size: Tensor, result: Tensor) -> Tensor:
    match op:
        case Decode() | Resize() | ResizeShorter():
            return _scaled(rows, size, result)
        case CentralCrop():
            margin = size - tf.constant(op.target)
            corner = margin // 2 + tf.bitwise.bitwise_and(margin % 2, margin // 2)
            return _shifted(rows, -corner[1], -corner[0])
        case RandomCrop():
            return _shifted(rows, -drawn[..., 1], -drawn[..., 0])
        case RandomResizedCrop():
            window = drawn[2:4]
            moved = _shifted(rows, -drawn[1], -drawn[0])
            return _scaled(_clamped(moved, window) if rows.shape[-1] == 4 else moved, window, result)
        case FlipLr():
            return _mirrored(rows, size[1], drawn[..., 0], 0)
        case FlipUd():
            return _mirrored(rows, size[0], drawn[..., 0], 1)
        case Pad():
            return _shifted(rows, tf.constant(op.sides[0]), tf.constant(op.sides[1]))
    raise ValueError(f"no TensorFlow kernel moves targets with {op}")


def _shifted(rows: Tensor, right: Tensor, down: Tensor) -> Tensor:
    right, down = tf.cast(right, tf.float32), tf.cast(down, tf.float32)
    last = [right, down] if rows.shape[-1] == 4 else [tf.zeros_like(right)]
    return rows + tf.stack([right, down, *last], axis=-1)[..., None, :]


def _scaled(rows: Tensor, size: Tensor, result: Tensor) -> Tensor:
    down, right = tf.unstack(tf.cast(tf.cast(result, tf.float64) / tf.cast(size, tf.float64), tf.float32))
    last = [right, down] if rows.shape[-1] == 4 else [tf.ones_like(right)]
    return rows * tf.stack([right, down, *last])


def _mirrored(rows: Tensor, length: Tensor, mirrored: Tensor, axis: int) -> Tensor:
    """Mirror along x (axis 0) or y (axis 1) where `mirrored` is positive."""
    parts = tf.unstack(rows, axis=-1)
    if rows.shape[-1] == 4:
        side = tf.cast(length, tf.float32)
        parts[axis], parts[axis + 2] = side - parts[axis + 2], side - parts[axis]
    else:
        parts[axis] = tf.cast(length - 1, tf.float32) - parts[axis]
    return tf.where(mirrored[..., None, None] > 0, tf.stack(parts, axis=-1), rows)


def _clamped(boxes: Tensor, size: Tensor) -> Tensor:
    height, width = tf.unstack(tf.cast(size, tf.float32))
    return tf.minimum(tf.maximum(boxes, 0.0), tf.stack([width, height, width, height]))
