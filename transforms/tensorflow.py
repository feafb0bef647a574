"""TensorFlow kernels of common ops, for one image or a batch.

Random parameters are inputs: the integers of `Op.draw`, so that graphs and `Op.pixels` see the same draws. EXIF orientation,
which TensorFlow cannot read, is an input too. `max_pixels` is ignored.

Ops that move or mask pixels, brightness, contrast, `to_float`, `normalize`, and `decode` of whole JPEG, MPO, PNG, GIF, BMP and
WebP files are exact. Exceptions:

- Resizing differs by less than a level on average, since TensorFlow filters in floats and Pillow in fixed point. So does `hue`. `rotate`
  fetches a neighbouring pixel in a few places, since its coordinates are floats.
- A CMYK or YCCK JPEG is at most one level darker, since TensorFlow rounds the black channel down. Without Adobe's marker it is
  inverted, and it cannot be decoded to grey.
- A BMP with a palette is decoded to its palette indices. WebP with transparency or several frames, and the other formats that
  Pillow reads, raise InvalidArgumentError.
- `normalize` is exact eagerly and in tf.data. In a `tf.function`, Grappler multiplies by 1 / std instead: the last bits differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from joulecache.transforms.kernels import GREY_WEIGHTS, LUMA_WEIGHTS
from joulecache.transforms.ops import (
    BUILT_IN,
    MAX_SIDE,
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
    op_name,
)
from joulecache.transforms.randomness import UNIT

Tensor = Any  # TensorFlow ships no types
Kernel = Callable[[Tensor, Tensor], Tensor]
"""Maps images and their drawn integers to images."""


def unsupported(ops: Sequence[Op]) -> str | None:
    """Return why the ops have no TensorFlow kernels, or None if they have."""
    for op in ops:
        match op:
            case Decode(channels=4):
                without = "decode with 4 channels"
            case Decode() if op.background is not None:
                without = "decode with a background"
            case Resize(fit="crop" | "pad"):
                without = f"resize with fit={op.fit!r}"
            case Rotate() if type(op) is Rotate and _image_kernel(op) is None:
                without = f"rotate with interpolation={op.interpolation!r} or a fill for each channel"
            case _ if _image_kernel(op) is None:
                without = op_name(type(op))
            case _:
                continue
        return f"no TensorFlow kernel for {without}: its reference kernel runs in Python"
    return None


def has_kernel(op: Op) -> bool:
    """Return whether `apply` supports the op."""
    return unsupported([op]) is None


def runs_on_batches(op: Op) -> bool:
    """Return whether `apply_batch` supports the op."""
    return _batch_kernel(op) is not None


def drawn_count(ops: Sequence[Op]) -> int:
    """Return the number of integers that the ops draw for one image."""
    drawing = [op for op in ops if op.random_words]
    return sum(len(op.draw([0] * op.random_words, MAX_SIDE, MAX_SIDE)) for op in drawing)


# AutoGraph cannot convert `match`, and logs a warning.
@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
def apply(ops: Sequence[Op], image: Tensor, drawn: Tensor, orientation: Tensor | None = None) -> Tensor:
    """Run ops on one image.

    Args:
        ops: The ops.
        image: Encoded bytes (a scalar string), or ``[H, W, C]`` uint8.
        drawn: The integers drawn by the ops, int32 ``[P]``.
        orientation: The image's EXIF orientation, 1 to 8, an int scalar; None if it is upright.

    Returns:
        ``[H, W, C]`` uint8, or float32 after to_float.

    Raises:
        ValueError: An op has no kernel.
    """
    if reason := unsupported(ops):
        raise ValueError(reason)
    stop = 0
    for op in ops:
        start, stop = stop, stop + drawn_count([op])
        kernel = _image_kernel(op)
        assert kernel is not None
        image = kernel(image, drawn[start:stop])
        if isinstance(op, Decode) and orientation is not None:
            image = _upright(image, orientation)
    return image


# AutoGraph cannot convert `match`, and logs a warning.
@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
def apply_batch(ops: Sequence[Op], images: Tensor, drawn: Tensor) -> Tensor:
    """Run ops on images of one size.

    Args:
        ops: Ops that `runs_on_batches` supports.
        images: ``[B, H, W, C]`` uint8.
        drawn: The integers drawn for each image, int32 ``[B, P]``.

    Returns:
        ``[B, H, W, C]`` uint8, or float32 after to_float.

    Raises:
        ValueError: An op does not run on batches.
    """
    stop, fused = 0, False
    for op, following in zip(ops, [*ops[1:], None], strict=False):
        if fused:
            fused = False
            continue
        kernel, count = _batch_kernel(op), drawn_count([op])
        if kernel is None:
            raise ValueError(f"{op} does not run on batches")
        if type(op) is RandomCrop and type(following) is FlipLr:
            # One gather of rows and one of columns: half the cost of gather, reverse and where.
            kernel, count, fused = partial(_crop_and_flip, op), drawn_count([op, following]), True
        start, stop = stop, stop + count
        images = kernel(images, drawn[:, start:stop])
    return images


def _image_kernel(op: Op) -> Kernel | None:
    """Return the kernel for one image and int32 ``[P]``, or None."""
    if type(op) not in BUILT_IN:
        return None  # a custom op may derive from a built-in one
    match op:
        case Decode(channels=1 | 3):
            return lambda data, drawn: _decode(op, data)
        case Resize(fit="stretch"):
            return lambda image, drawn: _resize(image, op.target)
        case ResizeShorter():
            return lambda image, drawn: _resize(image, _shorter_size(op, image))
        case CentralCrop():
            return lambda image, drawn: _central_crop(op, image)
        case RandomCrop():
            return lambda image, drawn: tf.slice(image, [drawn[0], drawn[1], 0], [*op.target, -1])
        case RandomResizedCrop():
            return partial(_random_resized_crop, op)
        case FlipLr():
            return lambda image, drawn: tf.cond(drawn[0] > 0, lambda: tf.reverse(image, [1]), lambda: image)
        case FlipUd():
            return lambda image, drawn: tf.cond(drawn[0] > 0, lambda: tf.reverse(image, [0]), lambda: image)
        case Brightness():
            return lambda image, drawn: _levels(_shifted(tf.cast(image, tf.int32) * drawn[0]))
        case Hue():
            return _hue
    kernel = _batch_kernel(op)
    return kernel and (lambda image, drawn: kernel(image[None], drawn[None])[0])


def _batch_kernel(op: Op) -> Kernel | None:
    """Return the kernel for images of one size and int32 ``[B, P]``, or None."""
    if type(op) not in BUILT_IN:
        return None
    match op:
        case CentralCrop():
            return lambda images, drawn: _central_crops(op, images)
        case RandomCrop():
            return lambda images, drawn: _gather_columns(_crop_rows(op, images, drawn), _crop_columns(op, drawn))
        case Pad():
            return lambda images, drawn: _pad(op, images)
        case FlipLr():
            return lambda images, drawn: _gather_columns(images, _mirror(tf.range(tf.shape(images)[2])[None], drawn))
        case FlipUd():
            return lambda images, drawn: _gather_rows(images, _mirror(tf.range(tf.shape(images)[1])[None], drawn))
        case Rotate(interpolation="nearest", fill=int()):
            return partial(_rotate, op)
        case Cutout():
            return partial(_cutout, op)
        case Brightness():
            return lambda images, drawn: _levels(_shifted(tf.cast(images, tf.int32) * drawn[:, :, None, None]))
        case Contrast():
            return lambda images, drawn: _contrast(images, drawn[:, 0])
        case ToFloat():
            return lambda images, drawn: tf.cast(images, tf.float32) * tf.constant(1 / 255, tf.float32)
        case Normalize():
            return lambda images, drawn: _normalize(op, images)
    return None


def _decode(op: Decode, data: Tensor) -> Tensor:
    # Pillow's settings: the accurate integer DCT and smooth chroma.
    def jpeg(ratio: int) -> Tensor:
        return tf.io.decode_jpeg(
            data,
            channels=op.channels,
            ratio=ratio,
            dct_method="INTEGER_ACCURATE",
            fancy_upscaling=True,
            try_recover_truncated=op.truncated,
        )

    def scaled_jpeg() -> Tensor:
        if op.shorter is None:
            return jpeg(1)
        fitting = tf.reduce_min(tf.image.extract_jpeg_shape(data)[:2]) // op.shorter
        branch = tf.reduce_sum(tf.cast(fitting >= [2, 4, 8], tf.int32))
        return tf.switch_case(branch, [lambda: jpeg(1), lambda: jpeg(2), lambda: jpeg(4), lambda: jpeg(8)])

    def other() -> Tensor:
        # Always RGB, since libpng and Pillow convert to grey with different weights.
        colour = tf.io.decode_image(data, channels=3, expand_animations=False)
        if op.channels == 3:
            return colour
        grey = tf.reduce_sum(tf.cast(colour, tf.int32) * tf.constant(LUMA_WEIGHTS), axis=2, keepdims=True)
        return tf.cast(_shifted(grey + 0x8000), tf.uint8)

    image = tf.cond(tf.io.is_jpeg(data), scaled_jpeg, other)
    image.set_shape([None, None, op.channels])
    return image


def _upright(image: Tensor, orientation: Tensor) -> Tensor:
    """Apply an EXIF orientation; ignore invalid ones."""
    oriented = [
        lambda: image,
        lambda: image[:, ::-1],
        lambda: image[::-1, ::-1],
        lambda: image[::-1],
        lambda: tf.transpose(image, [1, 0, 2]),
        lambda: tf.transpose(image, [1, 0, 2])[:, ::-1],
        lambda: tf.transpose(image, [1, 0, 2])[::-1, ::-1],
        lambda: tf.transpose(image, [1, 0, 2])[::-1],
    ]
    valid = tf.logical_and(orientation >= 1, orientation <= len(oriented))
    upright = tf.switch_case(tf.where(valid, orientation - 1, 0), oriented)
    upright.set_shape([None, None, image.shape[2]])
    return upright


def _resize(image: Tensor, size: Any) -> Tensor:
    resized = tf.image.resize(image, size, antialias=True)
    return tf.saturate_cast(tf.round(resized), tf.uint8)


def _shorter_size(op: ResizeShorter, image: Tensor) -> Tensor:
    size = tf.cast(tf.shape(image)[:2], tf.int64)
    return tf.cast(size * op.size // tf.reduce_min(size), tf.int32)


def _central_crop(op: CentralCrop, image: Tensor) -> Tensor:
    margin = tf.shape(image)[:2] - op.target
    corner = margin // 2 + tf.bitwise.bitwise_and(margin % 2, margin // 2)
    return tf.slice(image, tf.concat([corner, [0]], 0), [*op.target, -1])


def _central_crops(op: CentralCrop, images: Tensor) -> Tensor:
    top, left = op.corner(images.shape[1], images.shape[2])
    height, width = op.target
    return images[:, top : top + height, left : left + width]


def _random_resized_crop(op: RandomResizedCrop, image: Tensor, drawn: Tensor) -> Tensor:
    # Not tf.slice, which loses the static number of channels if the size is a tensor.
    window = image[drawn[0] : drawn[0] + drawn[2], drawn[1] : drawn[1] + drawn[3]]
    return _resize(window, op.target)


def _crop_and_flip(op: RandomCrop, images: Tensor, drawn: Tensor) -> Tensor:
    """Run a random crop and a `flip_lr`, which together draw int32 ``[B, 3]``."""
    return _gather_columns(_crop_rows(op, images, drawn), _mirror(_crop_columns(op, drawn), drawn[:, 2:]))


def _crop_rows(op: RandomCrop, images: Tensor, drawn: Tensor) -> Tensor:
    return _gather_rows(images, drawn[:, :1] + tf.range(op.target[0])[None])


def _crop_columns(op: RandomCrop, drawn: Tensor) -> Tensor:
    return drawn[:, 1:2] + tf.range(op.target[1])[None]


def _pad(op: Pad, images: Tensor) -> Tensor:
    left, top, right, bottom = op.sides
    if op.padding_mode == "constant" and not isinstance(op.fill, tuple):
        border = [[0, 0], [top, bottom], [left, right], [0, 0]]
        return tf.pad(images, border, constant_values=tf.constant(op.fill, tf.uint8))
    # tf.pad fills with a single number only, and its mirroring costs 20 times as much.
    return _bordered(op, _bordered(op, images, 1, top, bottom), 2, left, right)


def _bordered(op: Pad, images: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Add the border along an axis: 1 for rows, 2 for columns."""
    side = tf.shape(images)[axis]
    outwards, last = tf.range(1, before + 1)[::-1], tf.range(after)
    match op.padding_mode:
        case "edge":
            first, second = tf.zeros_like(outwards), tf.fill([after], side - 1)
        case "reflect":
            first, second = outwards, side - 2 - last
        case "symmetric":
            first, second = outwards - 1, side - 1 - last
        case _:
            shape = [*tf.unstack(tf.shape(images)[:3]), images.shape[3]]
            strips = []
            for length in (before, after):
                shape[axis] = length
                strips.append(tf.broadcast_to(tf.constant(op.fill, tf.uint8), shape))
            return tf.concat([strips[0], images, strips[1]], axis)
    return tf.concat([tf.gather(images, first, axis=axis), images, tf.gather(images, second, axis=axis)], axis)


def _hue(image: Tensor, drawn: Tensor) -> Tensor:
    if image.shape[2] == 1:
        return image
    return tf.image.adjust_hue(image, tf.cast(drawn[0], tf.float32) / UNIT)


def _rotate(op: Rotate, images: Tensor, drawn: Tensor) -> Tensor:
    assert isinstance(op.fill, int)
    height, width = tf.unstack(tf.cast(tf.shape(images)[1:3], tf.float64))
    x, y = op.center or (width / 2, height / 2)
    x, y = x - 0.5, y - 0.5  # TensorFlow counts from the center of the first pixel
    angle = tf.cast(drawn[:, 0], tf.float64) * (-math.pi / 180 / UNIT)
    cos, sin, zero = tf.cos(angle), tf.sin(angle), tf.zeros_like(angle)
    rows = [cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y, zero, zero]
    rotated = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.cast(tf.stack(rows, axis=1), tf.float32),
        output_shape=tf.shape(images)[1:3],
        fill_value=float(op.fill),
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )
    return tf.ensure_shape(rotated, images.shape)


def _cutout(op: Cutout, images: Tensor, corner: Tensor) -> Tensor:
    assert isinstance(op.size, tuple)
    channels = images.shape[3]
    flat = _as_rows(images)
    rows = tf.range(tf.shape(images)[1])[None] - corner[:, :1]
    columns = tf.repeat(tf.range(tf.shape(images)[2]), channels)[None] - corner[:, 1:]
    down = tf.logical_and(rows >= 0, rows < op.size[0])[:, :, None]
    across = tf.logical_and(columns >= 0, columns < op.size[1])[:, None, :]
    fill = _along_row(op.fill, images, tf.uint8)
    return tf.reshape(tf.where(tf.logical_and(down, across), fill, flat), tf.shape(images))


def _normalize(op: Normalize, images: Tensor) -> Tensor:
    flat = _as_rows(images)
    flat = (flat - _along_row(op.mean, images, tf.float32)) / _along_row(op.std, images, tf.float32)
    return tf.reshape(flat, tf.shape(images))


def _as_rows(images: Tensor) -> Tensor:
    """Reshape ``[B, H, W, C]`` to ``[B, H, W * C]``: TensorFlow takes four times as long to broadcast over three channels."""
    return tf.reshape(images, [-1, tf.shape(images)[1], tf.shape(images)[2] * images.shape[3]])


def _along_row(value: float | tuple[float, ...], images: Tensor, dtype: Any) -> Tensor:
    """Return a number, or one per channel, in a shape that broadcasts over `_as_rows`."""
    constant = tf.constant(value, dtype)
    return tf.tile(constant, [tf.shape(images)[2]]) if isinstance(value, tuple) else constant


def _gather_rows(images: Tensor, rows: Tensor) -> Tensor:
    return tf.gather(images, rows, batch_dims=1)


def _gather_columns(images: Tensor, columns: Tensor) -> Tensor:
    return tf.gather(images, columns, batch_dims=1, axis=2)


def _mirror(indices: Tensor, mirrored: Tensor) -> Tensor:
    """Reverse the row or column indices of the images to mirror."""
    return tf.where(mirrored > 0, tf.reverse(indices, [1]), indices)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    assert images.shape[3] in (1, 3), "the graph must know whether images are grey"
    wide = tf.cast(images, tf.int32)
    if images.shape[3] == 3:
        grey = _shifted(tf.reduce_sum(wide * tf.constant(GREY_WEIGHTS), axis=3))
    else:
        grey = wide[..., 0]
    total = tf.reduce_sum(tf.cast(grey, tf.int64), axis=[1, 2])[:, None]
    pixels = tf.cast(tf.reduce_prod(tf.shape(images)[1:3]), tf.int64)
    factor = tf.cast(factor, tf.int64)[:, None]
    levels = (tf.range(256, dtype=tf.int64) * factor * pixels + (65536 - factor) * total) // (65536 * pixels)
    flat = tf.reshape(wide, [tf.shape(images)[0], -1])
    return tf.reshape(tf.gather(_levels(levels), flat, batch_dims=1), tf.shape(images))


def _shifted(values: Tensor) -> Tensor:
    return tf.bitwise.right_shift(values, 16)


def _levels(values: Tensor) -> Tensor:
    return tf.cast(tf.clip_by_value(values, 0, 255), tf.uint8)
