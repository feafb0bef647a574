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
from joulecache.transforms.chain import apply, output_size, run
from joulecache.transforms.images import as_array, as_image
from joulecache.transforms.ops import Decode, Op
from joulecache.transforms.ops.decode import Header
from joulecache.transforms.randomness import key_hash, random_words

_SAMPLED_UNITS = 32
_UNKNOWN_IMAGE_BYTES = 256 << 10
_BATCHED_DRAWS = 256  # amortizes the cost of a call

Pixels: TypeAlias = NDArray[np.uint8]
CachedImage: TypeAlias = Pixels | bytes
"""An image in a cache: ``[H, W, C]`` uint8 in a raw cache, else encoded."""


class BatchedDraws:
    """The random words of records, given as (key, split), drawn in batches in the order of the records."""

    def __init__(self, records: Sequence[tuple[str, str]], config: ShardConfig) -> None:
        self._records, self._config = records, config
        self._positions = {key: position for position, (key, _) in enumerate(records)}
        self._drawn: dict[str, list[list[int]]] = {}

    def take(self, key: str, split: str) -> list[list[int]]:
        """Return the words of a record's random ops, one list per variant. Each record can be taken once."""
        if key not in self._drawn:
            self._draw_from(self._positions[key], split)
        return self._drawn.pop(key)

    def _draw_from(self, position: int, split: str) -> None:
        prefix, variants = self._config.chain_of(split).prefix, self._config.variants_of(split)
        end = position + max(1, _BATCHED_DRAWS // variants)
        keys = [key for key, key_split in self._records[position:end] if key_split == split]
        _, tail = _head_and_tail(prefix)
        hashes = np.array([key_hash(key) for key in keys], np.uint64)
        words = random_words(
            tail,
            len(prefix) - len(tail),
            self._config.seed,
            np.repeat(hashes, variants),
            np.tile(np.arange(variants), len(keys)),
        )
        for number, key in enumerate(keys):
            self._drawn[key] = words[number * variants : (number + 1) * variants]


def _head_and_tail(prefix: tuple[Op, ...]) -> tuple[tuple[Op, ...], tuple[Op, ...]]:
    """Split the cached ops before the first random one: all variants share the result of the head."""
    first_random = next((position for position, op in enumerate(prefix) if op.random_words), len(prefix))
    return prefix[:first_random], prefix[first_random:]


def make_images(
    encoded: bytes | Header, words: Sequence[Sequence[int]], config: ShardConfig, split: str
) -> tuple[list[CachedImage], list[PixelStats]]:
    """Compute the cached images of a record and their pixel sums, one per variant. The ops before the first random one run once.

    Args:
        encoded: The encoded image, or the result of `Decode.read_header`.
        words: The random words of each variant.
        config: The options of the cache.
        split: The split of the record.

    Raises:
        ValueError: The image cannot be decoded, or an op does not support it.
    """
    chain = config.chain_of(split)
    head, tail = _head_and_tail(chain.prefix)
    base = run(head, encoded, [])
    pixels = [apply(tail, base, drawn) for drawn in words]
    output_size(chain.suffix, *pixels[0].shape[:2])  # raises if the loader could not run the suffix
    if config.encoding == "raw":
        return list(pixels), list(map(pixel_stats_of, pixels))
    stored = [_encode(image, config) for image in pixels]
    if config.encoding == "jpeg":  # lossy: the statistics are those of the decoded images
        pixels = [decode_cached(image, pixels[0].shape[2]) for image in stored]
    return list(stored), list(map(pixel_stats_of, pixels))


def working_bytes(header: Header, channels: int) -> int:
    """Estimate the memory that `make_images` needs for a record: the decoded image and the result of the next op."""
    return 2 * header.width * header.height * channels


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
    sizes = []
    for unit in units:
        with suppress(OSError, ValueError):
            record = next(iter(unit.read()))
            words = BatchedDraws([(record.key, "train")], config).take(record.key, "train")
            [image], _ = make_images(record.data, words[:1], config, "train")
            sizes.append(len(image))
    return config.variants * (sum(sizes) / len(sizes) if sizes else _UNKNOWN_IMAGE_BYTES)


def decode_cached(data: bytes, channels: int) -> Pixels:
    """Decode an encoded image of a cache to ``[H, W, C]``."""
    return as_array(Decode(channels=channels).pixels(data))


def pixel_stats_of(image: Pixels) -> PixelStats:
    """Return the exact sums over the pixels of an image ``[H, W, C]``.

    Computed in float32, twice as fast as in integers: exact below 2**24, which sums of 256 squared levels do not exceed.
    """
    height, width, channels = image.shape
    sums, squares = np.zeros(channels), np.zeros(channels)
    for top in range(0, height, 256):
        strip = image[top : top + 256].reshape(-1, width * channels).astype(np.float32)
        sums += strip.sum(axis=0).reshape(width, channels).sum(axis=0, dtype=np.float64)
        squares += np.einsum("ij,ij->j", strip, strip).reshape(width, channels).sum(axis=0, dtype=np.float64)
    return PixelStats(height * width, tuple(map(int, sums)), tuple(map(int, squares)))


def _encode(pixels: Pixels, config: ShardConfig) -> bytes:
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
