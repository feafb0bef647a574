"""Compute the cached images of a record."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.building.config import ShardConfig
from joulecache.pipelines.building.spatial_targets import CachedTarget
from joulecache.pipelines.cache.data_file import PixelStats
from joulecache.pipelines.source import Unit
from joulecache.pipelines.source.feature import Target
from joulecache.pipelines.source.features import Features
from joulecache.pipelines.source.spatial import Mask, SpatialFeature
from joulecache.transforms.chain import apply, output_channels, output_size
from joulecache.transforms.images import as_image, encode_png
from joulecache.transforms.kernels import channel_sums
from joulecache.transforms.ops import Decode, Op
from joulecache.transforms.randomness import key_hash, random_words
from joulecache.transforms.targets import MaskTarget, SpatialTarget, apply_with_targets

_SAMPLED_UNITS = 32
_UNKNOWN_IMAGE_BYTES = 256 << 10

Pixels: TypeAlias = NDArray[np.uint8]
CachedImage: TypeAlias = Pixels | bytes
"""An image in a cache: ``[H, W, C]`` uint8 in a raw cache, else encoded."""
Words: TypeAlias = Sequence[int]
"""The random words of the ops that draw, for one variant of one record."""


class Made(NamedTuple):
    """A computed variant of a record: its image, and its targets that move with the pixels."""

    image: Pixels
    targets: tuple[SpatialTarget, ...]


class Stored(NamedTuple):
    """A variant of a record as a cache has it: its image, and its targets that move with the pixels."""

    image: CachedImage
    targets: tuple[CachedTarget, ...]


class ImageMaker:
    """Computes the cached images of the records of one split. The ops before the first random one run once for all variants.

    Attributes:
        variants: Number of images per record.
    """

    def __init__(self, config: ShardConfig, split: str, features: Features) -> None:
        chain = config.chain_of(split)
        self.variants, self._first_draw = config.variants_of(split), config.first_draw_of(split)
        self._seed, self._suffix = config.seed, chain.suffix
        self._head, self._tail = _head_and_tail(chain.prefix)
        self._checked: set[tuple[int, ...]] = set()
        places = ((place, features[name]) for place, name in enumerate(features))
        self._spatial = [(place, feature) for place, feature in places if isinstance(feature, SpatialFeature)]

    def draw(self, hashes: Sequence[int]) -> list[list[Words]]:
        """Return the random words of each variant of records, given by the hashes of their keys. Draw many records at once."""
        if not any(op.random_words for op in self._tail):
            return [[()] * self.variants] * len(hashes)
        repeated = np.repeat(np.array(hashes, np.uint64), self.variants)
        draws = np.tile(self._first_draw + np.arange(self.variants), len(hashes))
        words = random_words(self._tail, len(self._head), self._seed, repeated, draws)
        return [list(words[first : first + self.variants]) for first in range(0, len(words), self.variants)]

    def make(self, encoded: bytes, targets: Sequence[Target], words: Sequence[Words]) -> list[Made]:
        """Compute the image of each variant, and the targets that move with its pixels, which share its draws.

        Args:
            encoded: The encoded image.
            targets: Its targets.
            words: The random words of each variant.

        Raises:
            ValueError: The image or a target cannot be decoded, they do not fit, or an op does not support the image.
        """
        if self._spatial:
            before = [feature.decode(targets[place]) for place, feature in self._spatial]
            base, head_targets = apply_with_targets(self._head, encoded, [], before)
            made = [Made(*apply_with_targets(self._tail, base, drawn, head_targets)) for drawn in words]
        else:
            base = apply(self._head, encoded, [])
            made = [Made(apply(self._tail, base, drawn), ()) for drawn in words]
        shape = made[0].image.shape
        if shape not in self._checked:
            output_size(self._suffix, *shape[:2])  # raises if the loader could not run the suffix
            self._checked.add(shape)
        return made


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


def mean_image_bytes(units: Sequence[Unit], config: ShardConfig, features: Features) -> float:
    """Return the mean bytes of a training record in the cache, including masks and all variants. Other targets are small.

    Exact for raw images, else estimated from the first record of each unit. Unusable records are skipped; without usable ones, 256 KiB
    are assumed.
    """
    size = config.raw_size_of("train")
    if size is not None:
        channels = output_channels(config.chain.prefix) + sum(isinstance(each, Mask) for each in features.values())
        return math.prod(size) * channels * config.variants
    sizes, maker = [], ImageMaker(config, "train", features)
    for unit in units:
        with suppress(OSError, ValueError):
            record = next(iter(unit.read()))
            [words] = maker.draw([key_hash(record.key)])
            [made] = maker.make(record.data, record.targets, words[:1])
            masks = [encode_png(target.ids) for target in made.targets if isinstance(target, MaskTarget)]
            sizes.append(sum(map(len, (_encoded(made.image, config), *masks))))
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
