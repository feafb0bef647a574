"""A data file as the manifest lists it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

from annotated_types import Ge, Le, Len, Predicate

from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.core.codec import Whole


def is_sha256(text: str) -> bool:
    """Return whether a text is a SHA-256 in hex."""
    return re.fullmatch("[0-9a-f]{64}", text) is not None


Count = Annotated[int, Ge(0), Le(2**53)]
Sha256 = Annotated[str, Predicate(is_sha256)]
_Sums = Annotated[tuple[Whole, ...], Len(1, 3)]


@dataclass(frozen=True)
class PixelStats:
    """Exact sums over the pixels of a file's images, from which the mean and deviation of any set of files follow; `+` adds them.

    Attributes:
        pixels: Number of pixels.
        sums: Sum of the values of each channel.
        squares: Sum of the squared values of each channel.
    """

    pixels: Count
    sums: _Sums
    squares: _Sums

    def __add__(self, other: PixelStats) -> PixelStats:
        return PixelStats(
            self.pixels + other.pixels,
            tuple(map(sum, zip(self.sums, other.sums, strict=True))),
            tuple(map(sum, zip(self.squares, other.squares, strict=True))),
        )


class ImageLayout(NamedTuple):
    """Where the raw images of a file are: image n starts at byte ``offset + n * stride``."""

    offset: int
    stride: int


@dataclass(frozen=True)
class DataFile:
    """A data file of a cache: a shard, the index, or the list of rejected records.

    Attributes:
        name: Its name in the cache folder, which ends in the first digits of `sha256`.
        records: Number of records in it.
        bytes: Its size.
        sha256: SHA-256 of its content, 64 hex digits.
        image_offset: Where the first raw image starts; None if it has none.
        image_stride: Bytes from one raw image to the next; None if it has none.
        pixel_stats: Sums over the pixels of its images; None if it has none.
    """

    name: str
    records: Count
    bytes: Count
    sha256: Sha256
    image_offset: Count | None
    image_stride: Count | None
    pixel_stats: PixelStats | None = field(metadata={"alias": "levels"})

    def image_layout(self, shape: tuple[int, int, int]) -> ImageLayout:
        """Return the layout of raw images of this shape; raises CacheError if they do not fit the file."""
        offset, stride, image_bytes = self.image_offset, self.image_stride, math.prod(shape)
        if offset is None or stride is None:
            raise CacheError(f"{self.name} holds encoded images: they cannot be mapped")
        end = offset + (self.records - 1) * stride + image_bytes
        if offset < 0 or stride < image_bytes or self.records < 1 or end > self.bytes:
            raise CacheError(
                f"{self.name}: {self.records} images of {shape} from byte {offset} do not fit its {self.bytes} bytes"
            )
        return ImageLayout(offset, stride)
