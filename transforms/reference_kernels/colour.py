"""Kernels that change levels, in integers: the same on every machine."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from joulecache.transforms.ops import (
    Autocontrast,
    Brightness,
    ColorJitter,
    Contrast,
    Equalize,
    GaussianBlur,
    GaussianNoise,
    Grayscale,
    Hue,
    Posterize,
    Saturation,
    Sharpness,
    Solarize,
)
from joulecache.transforms.randomness import UNIT
from joulecache.transforms.reference_kernels.images import Array, Pixels, as_array, as_image, look_up

GREY_WEIGHTS = (19589, 38470, 7471)  # 0.2989, 0.587 and 0.114 in units of 1/65536

_LEVELS = np.arange(256, dtype=np.int64)
_ORDERS = tuple(itertools.permutations(range(4)))


def brightness(op: Brightness, image: Pixels, drawn: tuple[int, ...]) -> Array:
    """Multiply by a factor."""
    return adjust_brightness(image, drawn[0])


def contrast(op: Contrast, image: Pixels, drawn: tuple[int, ...]) -> Array:
    """Blend with the mean grey."""
    return adjust_contrast(image, drawn[0])


def saturation(op: Saturation, image: Pixels, drawn: tuple[int, ...]) -> Array:
    """Blend with the grey image."""
    return adjust_saturation(image, drawn[0])


def hue(op: Hue, image: Pixels, drawn: tuple[int, ...]) -> Array:
    """Turn the hues."""
    return adjust_hue(image, drawn[0])


def color_jitter(op: ColorJitter, image: Pixels, drawn: tuple[int, ...]) -> Array:
    """Change brightness, contrast, saturation and hue in the order that was drawn."""
    array = as_array(image)
    for which in _ORDERS[drawn[0]]:
        if drawn[1 + which] != _UNCHANGED[which]:
            array = _JITTERS[which](array, drawn[1 + which])
    return array


def adjust_brightness(image: Pixels, factor: int) -> Array:
    """Multiply by a factor in units of 1/65536, rounded down."""
    return look_up(_clipped(_LEVELS * factor >> 16), image)


def adjust_contrast(image: Pixels, factor: int) -> Array:
    """Blend with the mean of the grey image by a factor in units of 1/65536, rounded down."""
    array = as_array(image)
    pixels, grey_sum = array.shape[0] * array.shape[1], grey_total(array)
    blended = _LEVELS * (factor * pixels) + (UNIT - factor) * grey_sum
    return look_up(_clipped(blended // (UNIT * pixels)), array)


def adjust_saturation(image: Pixels, factor: int) -> Array:
    """Blend with the grey image by a factor in units of 1/65536, rounded down."""
    array = as_array(image)
    if array.shape[2] == 1:
        return array
    return blend(np.broadcast_to(_grey(array)[:, :, None], array.shape), array, factor)


def adjust_hue(image: Pixels, share: int) -> Array:
    """Turn the hues by a share of the colour circle in units of 1/65536, rounded to the nearest level.

    With V the largest level, C the largest less the smallest and h the hue in sixths of the circle, a channel is
    V - C * max(0, min(k, 4 - k, 1)), k = (h + 5, 3 or 1 for red, green or blue) mod 6. All but V is computed times 65536 C, so that the
    division by C falls away.
    """
    array = as_array(image)
    if array.shape[2] == 1 or share % UNIT == 0:
        return array
    red, green, blue = (array[:, :, channel].astype(np.int32) for channel in range(3))
    most = np.maximum(np.maximum(red, green), blue)
    chroma = most - np.minimum(np.minimum(red, green), blue)
    # Products with masks: np.where takes ten times as long on masks that look random.
    is_red = most == red
    is_green = (most == green) & ~is_red
    is_blue = ~(is_red | is_green)
    sector = (green - blue) * is_red + (2 * chroma + blue - red) * is_green + (4 * chroma + red - green) * is_blue
    sixth = chroma * UNIT
    circle = (6 * sixth).view(np.uint32)
    turned = sector * UNIT + chroma * (6 * (share % UNIT))
    nothing = np.zeros_like(chroma)
    result = np.empty(array.shape, np.uint8)
    for channel, offset in enumerate((5, 3, 1)):
        k = (turned + offset * sixth).view(np.uint32)  # below 16 sixths: two circles less at most
        np.minimum(k, k - circle, out=k)  # what is less than a circle wraps to a large number
        np.minimum(k, k - circle, out=k)
        below = np.minimum(k.view(np.int32), 4 * sixth - k.view(np.int32))
        np.minimum(np.maximum(below, nothing, out=below), sixth, out=below)
        result[:, :, channel] = most - (below + UNIT // 2 >> 16)
    return result


_JITTERS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
_UNCHANGED = (UNIT, UNIT, UNIT, 0)


def grayscale(op: Grayscale, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    """Replace colours by their luma."""
    picture = as_image(image)
    grey = picture if picture.mode == "L" else picture.convert("L")
    return grey if op.num_output_channels == 1 else grey.convert("RGB")


def gaussian_blur(op: GaussianBlur, image: Pixels, drawn: tuple[int, ...]) -> Array:
    """Convolve rows, then columns: 16-bit weights, and 8 bits beside the level in between."""
    across, down = op.kernel
    array = as_array(image)
    op.output_size(*array.shape[:2])
    rows = _convolved(array.astype(np.uint32), gaussian_weights(across, drawn[0]), 1) + np.uint32(0x80) >> np.uint32(8)
    return (_convolved(rows, gaussian_weights(down, drawn[0]), 0) + 0x800000 >> 24).astype(np.uint8)


def _convolved(levels: NDArray[np.uint32], weights: tuple[int, ...], axis: int) -> NDArray[np.uint32]:
    reach = len(weights) // 2
    if reach == 0:
        return levels * np.uint32(weights[0])
    border = [(0, 0)] * 3
    border[axis] = (reach, reach)
    padded = np.pad(levels, border, mode="reflect")
    size = levels.shape[axis]

    def shifted(place: int) -> NDArray[np.uint32]:
        return padded[place : place + size] if axis == 0 else padded[:, place : place + size]

    total = shifted(reach) * np.uint32(weights[reach])
    for distance in range(1, reach + 1):
        weight = weights[reach + distance]
        if weight:
            total += (shifted(reach - distance) + shifted(reach + distance)) * np.uint32(weight)
    return total


@lru_cache(maxsize=256)
def gaussian_weights(size: int, sigma: int) -> tuple[int, ...]:
    """Return the symmetric weights of a kernel of odd `size`, in units of 1/65536, that add up to 1; `sigma` in units of 1/65536."""
    spread = 2 * (sigma / UNIT) ** 2
    half = [math.exp(-(distance**2) / spread) for distance in range(size // 2 + 1)]
    whole = half[0] + 2 * sum(half[1:])
    tail = [round(UNIT * part / whole) for part in half[1:]]
    return (*reversed(tail), UNIT - 2 * sum(tail), *tail)


def gaussian_noise(op: GaussianNoise, image: Pixels, drawn: tuple[int, ...]) -> Array:
    """Add noise from the counter-based generator that the two words are the key of."""
    array = as_array(image)
    words = np.random.Philox(key=drawn[1] << 32 | drawn[0]).random_raw(-(-array.size // 4))
    steps = words.astype("<u8", copy=False).view("<u2")[: array.size].reshape(array.shape)
    noise = _noise_table(op.mean, op.sigma)[steps]
    noise += array
    return _clipped(noise)


@lru_cache(maxsize=16)
def _noise_table(mean: float, sigma: float) -> NDArray[np.int16]:
    """Return the noise in levels at each of 65536 even quantiles."""
    return np.rint(255 * (mean + sigma * _quantiles())).astype(np.int16)


@lru_cache(maxsize=1)
def _quantiles() -> NDArray[np.float64]:
    """Return the normal quantiles at the middles of 65536 even steps."""
    normal = NormalDist()
    upper = np.array([normal.inv_cdf((step + 0.5) / UNIT) for step in range(UNIT // 2, UNIT)])
    return np.concatenate([-upper[::-1], upper])


def autocontrast(op: Autocontrast, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    """Stretch the levels of each channel."""
    return stretched(image) if drawn[0] else image


def stretched(image: Pixels) -> Array:
    """Spread the levels of each channel from 0 to 255."""
    histograms = _histograms(image)
    tables = np.empty((len(histograms), 256), np.uint8)
    for table, histogram in zip(tables, histograms, strict=True):
        found = np.flatnonzero(histogram)
        darkest, lightest = int(found[0]), int(found[-1])
        span = lightest - darkest
        table[:] = _clipped((_LEVELS - darkest) * 255 // span) if span else _LEVELS
    return look_up(tables, image)


def equalize(op: Equalize, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    """Equalize the histogram of each channel."""
    return equalized(image) if drawn[0] else image


def equalized(image: Pixels) -> Array:
    """Make all levels about as frequent, as Pillow does: by steps of the pixels that are not of the lightest level, over 255."""
    histograms = _histograms(image)
    tables = np.empty((len(histograms), 256), np.uint8)
    for table, histogram in zip(tables, histograms, strict=True):
        found = np.flatnonzero(histogram)
        step = int(histogram.sum() - histogram[found[-1]]) // 255
        before = np.cumsum(histogram) - histogram
        table[:] = _clipped((before + step // 2) // step) if step else _LEVELS
    return look_up(tables, image)


def posterize(op: Posterize, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    """Keep the high bits."""
    return posterized(image, op.bits) if drawn[0] else image


def posterized(image: Pixels, bits: int) -> Array:
    """Keep the high bits of every level."""
    return as_array(image) & np.uint8(256 - (1 << 8 - bits))


def solarize(op: Solarize, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    """Turn round the light levels."""
    return solarized(image, op.threshold) if drawn[0] else image


def solarized(image: Pixels, threshold: float) -> Array:
    """Turn levels from the threshold upwards into 255 - level."""
    return look_up(np.where(threshold <= _LEVELS, 255 - _LEVELS, _LEVELS).astype(np.uint8), image)


def sharpness(op: Sharpness, image: Pixels, drawn: tuple[int, ...]) -> Pixels:
    """Blend with the smoothed image."""
    return adjust_sharpness(image, round(op.sharpness_factor * UNIT)) if drawn[0] else image


def adjust_sharpness(image: Pixels, factor: int) -> Array:
    """Blend with the smoothed image by a factor in units of 1/65536, rounded down."""
    array = as_array(image)
    return blend(smoothed(array), array, factor)


def smoothed(image: Array) -> Array:
    """Return the mean of 3x3 pixels in which the middle one counts 5 times, the edge as it is: Pillow's ``SMOOTH``."""
    if min(image.shape[:2]) < 3:
        return image
    levels = image.astype(np.uint16)
    rows = levels[:-2] + levels[1:-1] + levels[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * levels[1:-1, 1:-1]
    result = image.copy()
    result[1:-1, 1:-1] = (total + 6) // 13
    return result


def blend(other: Array, image: Array, factor: int) -> Array:
    """Return factor * image + (1 - factor) * other, the factor in units of 1/65536, rounded down and clipped."""
    mixed = other.astype(np.int32)
    difference = image - mixed  # int32
    # factor * difference can pass 32 bits only beyond a factor of 128
    difference *= factor
    difference >>= 16
    mixed += difference
    return _clipped(mixed)


def _grey(image: Array) -> NDArray[np.int32]:
    red, green, blue = (image[:, :, channel].astype(np.int32) * GREY_WEIGHTS[channel] for channel in range(3))
    grey: NDArray[np.int32] = red + green + blue >> 16
    return grey


def grey_total(image: Array) -> int:
    """Return the sum of the grey levels of an image ``[H, W, C]``, each rounded down."""
    return int((image if image.shape[2] == 1 else _grey(image)).sum(dtype=np.int64))


def _histograms(image: Pixels) -> NDArray[np.int64]:
    """Count the levels of each channel, ``[C, 256]``."""
    return np.array(as_image(image).histogram(), np.int64).reshape(-1, 256)


def _clipped(levels: NDArray[Any]) -> Array:
    """Return levels, which may be overwritten, as uint8."""
    clipped: Array = np.clip(levels, 0, 255, out=levels).astype(np.uint8)
    return clipped
