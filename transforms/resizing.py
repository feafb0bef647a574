"""Resize with a triangle filter, bilinear with antialias, in integer arithmetic that is the same on every machine.

`resize_reference` defines the result. Where cykooz-resizer has a wheel, it computes the same bytes with SIMD instructions.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from joulecache.transforms.kernels import straight

_LIBRARY = "cykooz-resizer"
_COEFFICIENT_BITS = 15
_SUM_BITS = 22  # a sum of 8-bit levels and its sign need the other 10 bits of an int32


def resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize an image.

    Args:
        image: uint8 ``[H, W, C]`` with 1, 3 or 4 channels, which are resized independently.
        height: Height of the result, in pixels.
        width: Width of the result, in pixels.

    Returns:
        uint8 ``[height, width, C]``, read-only where the library is at work.
    """
    if image.shape[:2] == (height, width):
        return image
    simd = _simd()
    return resize_reference(image, height, width) if simd is None else simd.resize(image, height, width)


def resize_mask(mask: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize a mask ``[H, W, 1]`` to ``[height, width, 1]``: nearest neighbours, by torchvision's rule for masks."""
    if mask.shape[:2] == (height, width):
        return mask
    return mask.take(_nearest(mask.shape[0], height), axis=0).take(_nearest(mask.shape[1], width), axis=1)


def _nearest(input_size: int, size: int) -> NDArray[np.int64]:
    """Return the input position of each result along one axis, int64 ``[size]``."""
    step = np.float32(input_size) / np.float32(size)  # in float32, as PyTorch computes it
    positions = np.floor(np.arange(size, dtype=np.float32) * step)
    nearest: NDArray[np.int64] = np.minimum(positions, input_size - 1).astype(np.int64)
    return nearest


def resizer() -> str:
    """Return what resizes here: the library and its version, or "NumPy"."""
    return "NumPy" if _simd() is None else f"{_LIBRARY} {metadata.version(_LIBRARY)}"


@dataclass(frozen=True)
class _Simd:
    """The SIMD implementation."""

    package: Any
    options: Any

    def resize(self, image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
        package, channels = self.package, image.shape[2]
        kinds = package.PixelType
        kind = {1: kinds.U8, 3: kinds.U8x3, 4: kinds.U8x4}[channels]
        source = package.ImageData(image.shape[1], image.shape[0], kind, straight(image).tobytes())
        result = package.ImageData(width, height, kind)
        package.Resizer().resize(source, result, self.options)  # not shared: a resizer is locked while it runs
        return np.frombuffer(result.get_buffer(), np.uint8).reshape(height, width, channels)


@functools.cache
def _simd() -> _Simd | None:
    """Return the SIMD implementation; None if it is not installed, or not equal to the reference."""
    try:
        package = import_module("cykooz_resizer")
    except ImportError:
        return None
    options = package.ResizeOptions(package.ResizeAlg.convolution(package.FilterType.bilinear), use_alpha=False)
    simd = _Simd(package, options)
    levels = (np.arange(31 * 23 * 12, dtype=np.uint32) * 2654435761 >> 24).astype(np.uint8)
    images = levels[: 31 * 23 * 3].reshape(31, 23, 3), levels.reshape(31, 23 * 3, 4)
    equal = all(np.array_equal(simd.resize(image, 7, 29), resize_reference(image, 7, 29)) for image in images)
    return simd if equal else None


# The reference --------------------------------------------------------------------------------------------------------


def resize_reference(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize an image in NumPy: first its columns, then its rows, each rounded to 8 bits.

    The arithmetic is that of fast_image_resize: every result is a sum of levels weighted by the filter in fixed point.

    Args:
        image: uint8 ``[H, W, C]``.
        height: Height of the result, in pixels.
        width: Width of the result, in pixels.

    Returns:
        uint8 ``[height, width, C]``.
    """
    if image.shape[0] != height:
        image = _filter_rows(image, height)
    if image.shape[1] != width:
        image = _filter_rows(image.swapaxes(0, 1), width).swapaxes(0, 1)
    return np.ascontiguousarray(image)


def _filter_rows(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize the first axis."""
    weights = _weights(image.shape[0], size)
    sums = np.full((size, *image.shape[1:]), 1 << weights.bits - 1, np.int32)
    for rows, factors in zip(weights.positions, weights.factors, strict=True):
        sums += image[rows] * factors[:, None, None]
    sums >>= weights.bits
    return np.clip(sums, 0, 255, out=sums).astype(np.uint8)


@dataclass(frozen=True)
class _Weights:
    """The filter along one axis, one row per tap.

    Attributes:
        positions: Input position of each tap, int64 ``[taps, size]``.
        factors: Its weight in units of ``2**-bits``, int32 ``[taps, size]``.
        bits: Fractional bits of the weights.
    """

    positions: NDArray[np.int64]
    factors: NDArray[np.int32]
    bits: int


@functools.lru_cache(maxsize=256)
def _weights(input_size: int, size: int) -> _Weights:
    scale = input_size / size
    radius = max(scale, 1.0)
    centers = (np.arange(size) + 0.5) * scale
    first = np.maximum(np.floor(centers - radius), 0.0)
    end = np.minimum(np.ceil(centers + radius), float(input_size))
    taps = first + np.arange(int((end - first).max()))[:, None]
    distances = np.abs((taps - (centers - 0.5)) * (1.0 / radius))
    weights = np.where((taps < end) & (distances < 1.0), 1.0 - distances, 0.0)
    totals = np.zeros(size)
    for tap in weights:  # in order: another order of the sum would round otherwise
        totals += tap
    weights *= 1.0 / totals
    largest = weights.max()
    bits = next(
        (bits for bits in range(_SUM_BITS - 1) if _rounded(largest * 2.0 ** (bits + 1)) >= 1 << _COEFFICIENT_BITS),
        _SUM_BITS - 1,
    )
    positions = np.minimum(taps, input_size - 1).astype(np.int64)
    return _Weights(positions, _rounded(weights * 2.0**bits).astype(np.int32), bits)


def _rounded(values: Any) -> Any:
    return np.floor(values + 0.5)
