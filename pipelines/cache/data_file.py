"""A data file as the manifest lists it."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple, TypeVar

from annotated_types import Ge, Le, Len, Predicate

from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.core.codec import OMITTED, Number, Whole


def is_sha256(text: str) -> bool:
    """Return whether a text is a SHA-256 in hex."""
    return re.fullmatch("[0-9a-f]{64}", text) is not None


Count = Annotated[int, Ge(0), Le(2**53)]
Sha256 = Annotated[str, Predicate(is_sha256)]
T = TypeVar("T")
_Sums = Annotated[tuple[Whole, ...], Len(1, 4)]


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


class RawLayout(NamedTuple):
    """Where the raw images or masks of a file are: number n starts at byte ``offset + n * stride``."""

    offset: int
    stride: int


@dataclass(frozen=True)
class TargetSummary:
    """The targets of one feature in a split or file. Targets that move with the pixels are counted in all variants; `+` adds two.

    Attributes:
        counts: By class: records, or pixels of a mask, or boxes. Of points: images that show each. None for other features.
        low: The smallest number, or coordinate of points; None for other features, and without any.
        high: The largest number, or coordinate of points; None for other features, and without any.
        empty: Images without a box or point, or whose mask has only 0 and 255; None for other features.
        most: The most boxes of an image; None for other features.
    """

    counts: tuple[Count, ...] | None = field(default=None, metadata=OMITTED)
    low: Number | None = field(default=None, metadata=OMITTED)
    high: Number | None = field(default=None, metadata=OMITTED)
    empty: Count | None = field(default=None, metadata=OMITTED)
    most: Count | None = field(default=None, metadata=OMITTED)

    def __add__(self, other: TargetSummary) -> TargetSummary:
        counts = self.counts or other.counts
        if self.counts and other.counts:
            counts = tuple(map(sum, itertools.zip_longest(self.counts, other.counts, fillvalue=0)))
        return TargetSummary(
            counts,
            _of_known(min, self.low, other.low),
            _of_known(max, self.high, other.high),
            _of_known(sum, self.empty, other.empty),
            _of_known(max, self.most, other.most),
        )


def _of_known(reduce: Callable[[list[T]], T], *numbers: T | None) -> T | None:
    known = [number for number in numbers if number is not None]
    return reduce(known) if known else None


@dataclass(frozen=True)
class StoredTarget:
    """The targets of one feature in a file, which move with the pixels.

    Attributes:
        summary: What they are.
        offset: Where the first raw mask starts; None if it has none.
        stride: Bytes from one raw mask to the next; None if it has none.
    """

    summary: TargetSummary
    offset: Count | None = field(default=None, metadata=OMITTED)
    stride: Count | None = field(default=None, metadata=OMITTED)


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
        targets: Its targets that move with the pixels, by name; None if it has none.
    """

    name: str
    records: Count
    bytes: Count
    sha256: Sha256
    image_offset: Count | None
    image_stride: Count | None
    pixel_stats: PixelStats | None = field(metadata={"alias": "levels"})
    # not in the repr, which is a part of the digests of specs: the SHA-256 is enough
    targets: Mapping[str, StoredTarget] | None = field(default=None, metadata=OMITTED, repr=False)

    def image_layout(self, shape: tuple[int, int, int]) -> RawLayout:
        """Return the layout of raw images of this shape; raises CacheError if they do not fit the file."""
        return self._layout("images", self.image_offset, self.image_stride, shape)

    def mask_layout(self, target: str, shape: tuple[int, int, int]) -> RawLayout:
        """Return the layout of the raw masks of a target; raises CacheError if they do not fit the file."""
        stored = (self.targets or {})[target]
        return self._layout("masks", stored.offset, stored.stride, shape)

    def _layout(self, what: str, offset: int | None, stride: int | None, shape: tuple[int, int, int]) -> RawLayout:
        if offset is None or stride is None:
            raise CacheError(f"{self.name} holds encoded {what}: they cannot be mapped")
        size = math.prod(shape)
        end = offset + (self.records - 1) * stride + size
        if offset < 0 or stride < size or self.records < 1 or end > self.bytes:
            raise CacheError(
                f"{self.name}: {self.records} {what} of {shape} from byte {offset} do not fit its {self.bytes} bytes"
            )
        return RawLayout(offset, stride)
