"""From an encoded record to the images that are cached of it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from joulecache.pipelines.building.config import Recipe
from joulecache.pipelines.cache.shards import Levels
from joulecache.pipelines.source import Unit
from joulecache.transforms import reference_kernels
from joulecache.transforms.chain import output_size
from joulecache.transforms.ops import Decode, Op
from joulecache.transforms.randomness import key_hash, random_words

_SAMPLE_UNITS = 32
_UNKNOWN_IMAGE_BYTES = 256 << 10
_DRAWN_AT_ONCE = 256  # draws that are made in one go: enough to hide the cost of a go


class Draws:
    """The random words of records, drawn for many records at once, in the order in which they are asked for."""

    def __init__(self, records: Sequence[tuple[str, str]], recipe: Recipe) -> None:
        """`records` are their keys and splits."""
        self._records, self._recipe = records, recipe
        self._places = {key: place for place, (key, _) in enumerate(records)}
        self._drawn: dict[str, list[list[int]]] = {}

    def of(self, key: str, split: str) -> list[list[int]]:
        """Return the words of a record's random ops, one list per variant."""
        if key not in self._drawn:
            chain, variants = self._recipe.of(split)
            place, records = self._places[key], max(1, _DRAWN_AT_ONCE // variants)
            keys = [other for other, its in self._records[place : place + records] if its == split]
            _, tail = _head_and_tail(chain.prefix)
            hashes = np.array([key_hash(other) for other in keys], np.uint64)
            words = random_words(
                tail,
                len(chain.prefix) - len(tail),
                self._recipe.seed,
                np.repeat(hashes, variants),
                np.tile(np.arange(variants), len(keys)),
            )
            for number, other in enumerate(keys):
                self._drawn[other] = words[number * variants : (number + 1) * variants]
        return self._drawn.pop(key)


def _head_and_tail(prefix: tuple[Op, ...]) -> tuple[tuple[Op, ...], tuple[Op, ...]]:
    """Cut the cached ops at the first that draws: what precedes it is the same in every variant."""
    steady = next((i for i, op in enumerate(prefix) if op.words), len(prefix))
    return prefix[:steady], prefix[steady:]


def make_pictures(
    encoded: bytes | Image.Image, words: Sequence[Sequence[int]], recipe: Recipe, split: str
) -> tuple[list[Any], list[Levels]]:
    """Return a record's cached images, one for each variant's words, and their levels.

    `encoded` is the record, or what `read_header` gave for it. What precedes the first random op is computed once. Raises ValueError for
    an image that does not decode, or that an op cannot take.
    """
    chain, _ = recipe.of(split)
    head, tail = _head_and_tail(chain.prefix)
    base = reference_kernels.run(head, encoded, [])
    finished = [reference_kernels.apply(tail, base, drawn) for drawn in words]
    output_size(chain.suffix, *finished[0].shape[:2])  # reject here what the loader could not take
    if recipe.encoding == "raw":
        return finished, list(map(levels_of, finished))
    stored = [_encode(pixels, recipe) for pixels in finished]
    if recipe.encoding == "jpeg":  # what was lost shows only when it is decoded
        finished = [decoded(one, finished[0].shape[2]) for one in stored]
    return stored, list(map(levels_of, finished))


def working_bytes(header: Image.Image, channels: int) -> int:
    """Estimate the memory that `make_pictures` takes for a record: the decoded image, and what the first op makes of it."""
    return 2 * header.width * header.height * channels


def sample(units: Sequence[Unit]) -> list[Unit]:
    """Return a few units, evenly spread."""
    return list(units[:: max(1, len(units) // _SAMPLE_UNITS)][:_SAMPLE_UNITS])


def mean_image_bytes(units: Sequence[Unit], recipe: Recipe) -> float:
    """Return the bytes that the cached images of a training record take, all variants: known for raw, else the mean of some units.

    Records that cannot be used are left out; where none can, photos of 256 kB are assumed.
    """
    if recipe.raw_bytes is not None:
        return recipe.raw_bytes * recipe.variants
    sizes = []
    for unit in units:
        with suppress(OSError, ValueError):
            record = next(iter(unit.read()))
            words = Draws([(record.key, "train")], recipe).of(record.key, "train")
            [stored], _ = make_pictures(record.data, words[:1], recipe, "train")
            sizes.append(len(stored))
    return recipe.variants * (sum(sizes) / len(sizes) if sizes else _UNKNOWN_IMAGE_BYTES)


def decoded(data: bytes, channels: int) -> NDArray[np.uint8]:
    """Return the pixels of a cached image, ``[H, W, C]``."""
    return reference_kernels.as_array(reference_kernels.decode(Decode(channels=channels), data))


def levels_of(image: NDArray[np.uint8]) -> Levels:
    """Return the exact sums over one image ``[H, W, C]``.

    In float32, where whole numbers below 2**24 are exact: 256 squares of levels stay below it. Twice as fast as integers.
    """
    height, width, channels = image.shape
    sums, squares = np.zeros(channels), np.zeros(channels)
    for top in range(0, height, 256):
        strip = image[top : top + 256].reshape(-1, width * channels).astype(np.float32)
        sums += strip.sum(axis=0).reshape(width, channels).sum(axis=0, dtype=np.float64)
        squares += np.einsum("ij,ij->j", strip, strip).reshape(width, channels).sum(axis=0, dtype=np.float64)
    return Levels(height * width, tuple(map(int, sums)), tuple(map(int, squares)))


def _encode(pixels: NDArray[np.uint8], recipe: Recipe) -> bytes:
    stream = io.BytesIO()
    image = reference_kernels.as_image(np.ascontiguousarray(pixels))
    try:
        if recipe.encoding == "jpeg":
            image.save(stream, "JPEG", quality=recipe.quality)
        else:
            image.save(stream, "PNG")
    except OSError as error:  # such as a side that JPEG cannot hold
        height, width = pixels.shape[:2]
        raise ValueError(f"its {height}x{width} pixels cannot be saved as {recipe.encoding}: {error}") from error
    return stream.getvalue()
