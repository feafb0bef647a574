"""Kernels on OpenCV's SIMD code. No other module imports OpenCV.

OpenCV chooses its code by the CPU's instructions, but every kernel returns the same bytes on every CPU: it only moves levels, looks
them up, or computes in integers or in float32 without rounding, so that the order of operations does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from joulecache.transforms.images import Array, Fill
from joulecache.transforms.randomness import UNIT

Channel = NDArray[np.uint8]
"""One channel of an image, ``[H, W]`` uint8."""
Levels = NDArray[np.uint8]
"""An image or a channel."""

GREY_WEIGHTS = (19589, 38470, 7471)
"""0.2989, 0.587 and 0.114 in units of 1/65536: torchvision's grey."""
LUMA_WEIGHTS = (19595, 38470, 7471)
"""ITU-R 601 in units of 1/65536: Pillow's grey."""
WEIGHT_UNIT = 4096
"""The weights of a blur are integers in units of 1 / WEIGHT_UNIT."""

_LEVELS, _DIFFERENCES = np.arange(256, dtype=np.int64), np.arange(-255, 256, dtype=np.int64)
_STRIP = 160_000  # values at a time: intermediate results stay in the CPU's cache
_MAX_COUNT = 1 << 24  # float32 holds all integers up to here
_SUMMED_PIXELS = 1 << 20
_GREY, _LUMA = np.array([GREY_WEIGHTS]) / UNIT, np.array([[*LUMA_WEIGHTS, UNIT // 2]]) / UNIT  # the last one rounds
_UNFILTERED = np.array([0.0, 1.0, 0.0])  # with a single weight, OpenCV's code is slow
_HAS_WIDE_TABLES = int(cv2.__version__.partition(".")[0]) >= 5
_BORDERS = {"edge": cv2.BORDER_REPLICATE, "reflect": cv2.BORDER_REFLECT_101, "symmetric": cv2.BORDER_REFLECT}

cv2.setNumThreads(1)  # builds and loaders run images in parallel


def opencv_version() -> str:
    """Return the version of OpenCV."""
    return str(cv2.__version__)


# Moving pixels --------------------------------------------------------------------------------------------------------


def put(slot: Array, image: Array) -> None:
    """Copy an image ``[H, W, C]`` into its slot of a batch.

    Raises:
        ValueError: The slot has another shape.
    """
    if slot.shape != image.shape:
        raise ValueError(f"an image {image.shape} does not fit into a slot {slot.shape}")
    is_mirrored = image.strides[1] < 0
    cv2.copyTo(image[:, ::-1] if is_mirrored else image, None, slot)
    if is_mirrored:  # in place, in the CPU's cache: faster than mirroring into the batch
        cv2.flip(slot, 1, slot)


def pad(image: Array, sides: tuple[int, int, int, int], mode: str, fill: Fill) -> Array:
    """Add a border of (left, top, right, bottom) pixels, in a mode of `Pad`."""
    left, top, right, bottom = sides
    border = _BORDERS.get(mode, cv2.BORDER_CONSTANT)
    return _image(cv2.copyMakeBorder(straight(image), top, bottom, left, right, border, None, _scalar(fill)))


def fetch(image: Array, columns: NDArray[np.float32], rows: NDArray[np.float32], fill: Fill) -> Array:
    """Return the pixels of an image at columns and rows, whole numbers ``[H, W]``, and a colour for places outside of it."""
    border = cv2.BORDER_CONSTANT
    return _image(cv2.remap(straight(image), columns, rows, cv2.INTER_NEAREST, None, border, _scalar(fill)))


def split(image: Array) -> list[Channel]:
    """Return the channels of an image."""
    height, width, count = image.shape
    if count == 1:
        return [np.ascontiguousarray(image[:, :, 0])]
    channels = list(np.empty((count, height, width), np.uint8))
    cv2.split(straight(image), channels)  # into new arrays, it takes four times as long
    return channels


def merge(channels: Sequence[Channel]) -> Array:
    """Return the image of channels."""
    return _image(cv2.merge(channels))


# Levels ---------------------------------------------------------------------------------------------------------------


def look_up(table: NDArray[np.uint8], levels: Levels) -> Levels:
    """Return a new array with every level replaced by its entry in a table ``[256]``."""
    found: Levels = cv2.LUT(straight(levels), table)
    return found.reshape(levels.shape)


def look_up_wide(table: NDArray[np.int16], indices: NDArray[np.uint16]) -> NDArray[np.int16]:
    """Return the entries of a table ``[65536]`` at indices ``[N]``."""
    if _HAS_WIDE_TABLES:
        found: NDArray[np.int16] = cv2.LUT(indices, table)
        return found.reshape(indices.shape)
    return table.take(indices, mode="clip")  # three times as fast as table[indices]


def linear(levels: Levels, slope: int, offset: int, denominator: int) -> Levels:
    """Return (slope * level + offset) / denominator for every level, rounded down and clipped."""
    exact = _LEVELS * slope + offset
    factor, summand = slope / denominator, offset / denominator
    middle = _middle_of_fractions(exact, denominator, 255 * abs(factor) + abs(summand))
    if middle is None:
        return look_up(np.clip(exact // denominator, 0, 255).astype(np.uint8), levels)
    readable = straight(levels)
    rounded: Levels = cv2.addWeighted(readable, factor, readable, 0, summand - middle)
    return rounded.reshape(levels.shape)


def blend(other: Array, image: Array, factor: int) -> Array:
    """Return factor * image + (1 - factor) * other, rounded down and clipped; `factor` in units of 1/65536, at least 0."""
    share = factor / UNIT
    middle = _middle_of_fractions(_DIFFERENCES * factor, UNIT, 255 * (share + abs(1 - share)))
    if middle is not None:
        return _image(cv2.addWeighted(straight(image), share, straight(other), 1 - share, -middle))
    more = linear(_image(cv2.subtract(image, other)), factor, 0, UNIT)  # 0 where negative
    less = linear(_image(cv2.subtract(other, image)), factor, UNIT - 1, UNIT)  # rounded up
    return _image(cv2.subtract(cv2.add(other, more), less))


def _middle_of_fractions(numerators: NDArray[np.int64], denominator: int, largest: float) -> float | None:
    """Return the middle of the quotients' fractional parts. A quotient minus it, rounded to the nearest, is rounded down.

    OpenCV rounds to the nearest. That takes half the time of a table, but must be exact in float32.

    Args:
        numerators: All that occur.
        denominator: The denominator.
        largest: The sum of what is added up, at most.

    Returns:
        The middle; None if float32 might round one of the quotients in another way.
    """
    rest = numerators % denominator
    low, high = int(rest.min()) / denominator, int(rest.max()) / denominator
    error = 4 * (largest + 1) / (1 << 24)  # at most four times: of a factor, the products and two sums
    return None if high - low + 2 * error >= 1 else (low + high) / 2


def histogram(channel: Channel) -> NDArray[np.int64]:
    """Count the levels of a channel, int64 ``[256]``."""
    counts = np.zeros(256, np.int64)
    rows = max(1, _MAX_COUNT // channel.shape[1])  # OpenCV counts in float32
    for first in range(0, len(channel), rows):
        found = cv2.calcHist([channel[first : first + rows]], [0], None, [256], (0, 256))
        counts += found.ravel().astype(np.int64)
    return counts


def channel_sums(images: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sums of the levels, and of their squares, of each channel of images ``[..., H, W, C]``, int64 ``[C]``.

    OpenCV returns mean and deviation in double precision, from which a million pixels' sums follow without an error.
    """
    rows = np.ascontiguousarray(images).reshape(-1, 1, images.shape[-1])
    sums, squares = np.zeros(images.shape[-1], np.int64), np.zeros(images.shape[-1], np.int64)
    for first in range(0, len(rows), _SUMMED_PIXELS):
        part = rows[first : first + _SUMMED_PIXELS]
        mean, deviation = (each[:, 0] for each in cv2.meanStdDev(part))
        sums += np.rint(mean * len(part)).astype(np.int64)
        squares += np.rint((deviation**2 + mean**2) * len(part)).astype(np.int64)
    return sums, squares


# Colours --------------------------------------------------------------------------------------------------------------


def luma(image: Array) -> Array:
    """Convert RGB to the luma of ITU-R 601, one channel."""
    return _weighted(image, _LUMA)


def grey(image: Array) -> Array:
    """Convert RGB to torchvision's grey, one channel, rounded down."""
    return _weighted(image, _GREY)


def _weighted(image: Array, weights: NDArray[np.float64]) -> Array:
    image, result = straight(image), np.empty((*image.shape[:2], 1), np.uint8)
    for rows in _strips(image):
        result[rows, :, 0] = cv2.transform(image[rows].astype(np.float32, order="C"), weights)
    return result


def repeat(image: Array) -> Array:
    """Repeat the channel of a grey image three times."""
    return _image(cv2.cvtColor(straight(image), cv2.COLOR_GRAY2RGB))


def total(image: Array) -> int:
    """Return the sum of a grey image's levels."""
    return int(cv2.sumElems(straight(image))[0])


def turn_hue(image: Array, fraction: int) -> Array:
    """Rotate the hues of an RGB image by a fraction of the colour circle in units of 1/65536, rounded to the nearest level.

    With V the largest level, C its difference from the smallest and h the hue in sixths of the circle, a channel is
    V - C * max(0, min(k, 4 - k, 1)), k = (h + 5, 3 or 1 for red, green or blue) mod 6. C * h is an integer before the turn.
    """
    exact = _LEVELS * 6 * (fraction % UNIT)
    whole, rest = exact >> 16, exact & UNIT - 1
    half_levels = 2 * whole + (rest >= UNIT // 2) + (rest > UNIT // 2)  # only a tie is odd
    turned = [_turned(split(image[rows]), half_levels.astype(np.uint16)) for rows in _strips(image)]
    return turned[0] if len(turned) == 1 else np.concatenate(turned)


def _turned(channels: Sequence[Channel], turns: NDArray[np.uint16]) -> Array:
    """Add to C * h the turn of each C. All is in half levels, so that a tie can be told from what rounds up to an integer."""
    red, green, blue = channels
    least = np.minimum(np.minimum(red, green), blue)
    chroma = np.maximum(np.maximum(red, green), blue) - least
    sixth = chroma.astype(np.uint16)
    sixth += sixth
    # The hue is 5 C + R - B where green is the smallest level, 3 C + B - G where red is, C + G - R where blue is.
    hue, plus, minus = 5 * sixth, red.copy(), blue.copy()
    for smallest, others in ((red, (3 * sixth, blue, green)), (blue, (sixth, green, red))):
        mask = cv2.compare(smallest, least, cv2.CMP_EQ)
        for other, result in zip(others, (hue, plus, minus), strict=True):
            cv2.copyTo(other, mask, result)
    difference = plus.astype(np.uint16)
    difference -= minus
    difference += difference
    hue += difference
    hue += cv2.LUT(chroma, turns)
    np.minimum(hue, hue - 6 * sixth, out=hue)  # a negative difference wraps to a large number
    third = 2 * sixth
    levels = (
        cv2.subtract(cv2.absdiff(hue, 3 * sixth), sixth),  # 0 where negative
        cv2.subtract(third, cv2.absdiff(hue, third)),
        cv2.subtract(third, cv2.absdiff(hue, 4 * sixth)),
    )
    for level in levels:
        np.minimum(level, sixth, out=level)
        level >>= 1
    return merge([least + level.astype(np.uint8) for level in levels])


# Filters --------------------------------------------------------------------------------------------------------------


def blur(image: Array, across: Sequence[int], down: Sequence[int]) -> Array:
    """Filter rows, then columns, with mirrored edges. Rows are rounded to 1/16 level, columns to a level, ties to even.

    Args:
        image: uint8 ``[H, W, C]``.
        across: Weights along rows, an odd number of them, which add up to `WEIGHT_UNIT`.
        down: Weights along columns.
    """
    # Levels of 8 bits and rows of 12 bits, times weights of 12 bits: float32 holds all sums.
    along_x, along_y = np.array(across) / (WEIGHT_UNIT >> 4), np.array(down) / (WEIGHT_UNIT << 4)
    border = cv2.BORDER_REFLECT_101
    rows = cv2.sepFilter2D(straight(image), cv2.CV_16S, along_x, _UNFILTERED, borderType=border)
    return _image(cv2.sepFilter2D(rows, cv2.CV_16S, np.ones(1), along_y, borderType=border).astype(np.uint8))


def smooth(image: Array) -> Array:
    """Return the mean of 3x3 pixels with a weight of 5 for the central one, rounded to the nearest; the edge is unchanged."""
    image = straight(image)
    sums = _image(cv2.boxFilter(image, cv2.CV_16U, (3, 3), normalize=False))
    sums += 4 * image.astype(np.uint16)
    sums += 6
    sums //= 13
    result = image.copy("C")
    result[1:-1, 1:-1] = sums[1:-1, 1:-1]
    return result


# Arrays for OpenCV ----------------------------------------------------------------------------------------------------


def _strips(image: Array) -> Iterator[slice]:
    """Yield the rows of an image in strips that fit in the CPU's cache."""
    height, width, channels = image.shape
    rows = max(1, _STRIP // max(1, width * channels))
    return (slice(first, first + rows) for first in range(0, height, rows))


def straight(levels: Levels) -> Levels:
    """Return levels without mirrored rows, which OpenCV would copy slowly."""
    if levels.strides[1] >= 0:
        return levels
    flipped: Levels = cv2.flip(levels[:, ::-1], 1)
    return flipped.reshape(levels.shape)


def _image(result: NDArray[Any]) -> NDArray[Any]:
    """Return a result as ``[H, W, C]``: OpenCV drops a single channel."""
    return result if result.ndim == 3 else result[:, :, None]


def _scalar(fill: Fill) -> tuple[int, int, int]:
    return fill if isinstance(fill, tuple) else (fill, fill, fill)
