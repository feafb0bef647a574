"""Compute the cached images of a record."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.building.config import ShardConfig
from joulecache.pipelines.cache.data_file import PixelStats
from joulecache.pipelines.source import Unit
from joulecache.transforms.chain import apply, output_size
from joulecache.transforms.images import as_image
from joulecache.transforms.kernels import channel_sums
from joulecache.transforms.ops import Decode, Op
from joulecache.transforms.randomness import key_hash, random_words

_SAMPLED_UNITS = 32
_UNKNOWN_IMAGE_BYTES = 256 << 10

Pixels: TypeAlias = NDArray[np.uint8]
CachedImage: TypeAlias = Pixels | bytes
"""An image in a cache: ``[H, W, C]`` uint8 in a raw cache, else encoded."""
Words: TypeAlias = Sequence[int]
"""The random words of the ops that draw, for one variant of one record."""


class ImageMaker:
    """Computes the cached images of the records of one split. The ops before the first random one run once for all variants.

    Attributes:
        variants: Number of images per record.
    """

    def __init__(self, config: ShardConfig, split: str) -> None:
        chain = config.chain_of(split)
        self.variants = config.variants_of(split)
        self._seed, self._suffix = config.seed, chain.suffix
        self._head, self._tail = _head_and_tail(chain.prefix)
        self._checked: set[tuple[int, ...]] = set()

    def draw(self, hashes: Sequence[int]) -> list[list[Words]]:
        """Return the random words of each variant of records, given by the hashes of their keys. Draw many records at once."""
        if not any(op.random_words for op in self._tail):
            return [[()] * self.variants] * len(hashes)
        repeated = np.repeat(np.array(hashes, np.uint64), self.variants)
        numbers = np.tile(np.arange(self.variants), len(hashes))
        words = random_words(self._tail, len(self._head), self._seed, repeated, numbers)
        return [list(words[first : first + self.variants]) for first in range(0, len(words), self.variants)]

    def images(self, encoded: bytes, words: Sequence[Words]) -> list[Pixels]:
        """Compute one image for each variant.

        Args:
            encoded: The encoded image.
            words: The random words of each variant.

        Raises:
            ValueError: The image cannot be decoded, or an op does not support it.
        """
        base = apply(self._head, encoded, [])
        images = [apply(self._tail, base, drawn) for drawn in words]
        shape = images[0].shape
        if shape not in self._checked:
            output_size(self._suffix, *shape[:2])  # raises if the loader could not run the suffix
            self._checked.add(shape)
        return images


def _head_and_tail(prefix: tuple[Op, ...]) -> tuple[tuple[Op, ...], tuple[Op, ...]]:
    """Split the cached ops before the first random one: all variants share the result of the head."""
    first_random = next((position for position, op in enumerate(prefix) if op.random_words), len(prefix))
    return prefix[:first_random], prefix[first_random:]


def encode(image: Pixels, config: ShardConfig) -> tuple[bytes, PixelStats]:
    """Encode an image as the cache stores it; return it with the sums of the pixels that it decodes to."""
    stored = _encoded(image, config)
    if config.encoding == "jpeg":  # lossy
        image = decode_cached(stored, image.shape[2])
    return stored, pixel_stats_of(image)


def sample_units(units: Sequence[Unit]) -> list[Unit]:
    """Return a few evenly spaced units."""
    return list(units[:: max(1, len(units) // _SAMPLED_UNITS)][:_SAMPLED_UNITS])


def mean_image_bytes(units: Sequence[Unit], config: ShardConfig) -> float:
    """Return the mean bytes of a training record in the cache, including all variants.

    Exact for raw images, else estimated from the first record of each unit. Unusable records are skipped; without usable ones, 256 KiB
    are assumed.
    """
    if config.raw_image_bytes is not None:
        return config.raw_image_bytes * config.variants
    sizes, maker = [], ImageMaker(config, "train")
    for unit in units:
        with suppress(OSError, ValueError):
            record = next(iter(unit.read()))
            [words] = maker.draw([key_hash(record.key)])
            [image] = maker.images(record.data, words[:1])
            sizes.append(len(_encoded(image, config)))
    return config.variants * (sum(sizes) / len(sizes) if sizes else _UNKNOWN_IMAGE_BYTES)


def decode_cached(data: bytes, channels: int) -> Pixels:
    """Decode an encoded image of a cache to ``[H, W, C]``."""
    return Decode(channels=channels).pixels(data)


def pixel_stats_of(images: Pixels) -> PixelStats:
    """Return the exact sums over the pixels of one or more images, uint8 ``[..., H, W, C]``."""
    sums, squares = channel_sums(images)
    return PixelStats(images.size // images.shape[-1], tuple(sums.tolist()), tuple(squares.tolist()))


def _encoded(pixels: Pixels, config: ShardConfig) -> bytes:
    stream = io.BytesIO()
    image = as_image(np.ascontiguousarray(pixels))
    try:
        if config.encoding == "jpeg":
            image.save(stream, "JPEG", quality=config.quality)
        else:
            image.save(stream, "PNG")
    except OSError as error:  # such as a side that is too long for JPEG
        height, width = pixels.shape[:2]
        raise ValueError(f"its {height}x{width} pixels cannot be saved as {config.encoding}: {error}") from error
    return stream.getvalue()
