"""A small source whose records have masks, boxes and points, and other targets."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from joulecache.pipelines.source import Record, Source
from joulecache.pipelines.source.feature import Target
from joulecache.pipelines.source.features import AnyFeature, ClassLabel, Features, Value
from joulecache.pipelines.source.spatial import Boxes, Mask, Points

FEATURES: Features = {
    "label": ClassLabel(("cat", "dog")),
    "area": Mask(("background", "fur", "eye")),
    "objects": Boxes(("head", "paw", "tail")),
    "age": Value(),
    "joints": Points(4),
}
"""All features that move with the pixels, between others."""

SIZES = ((48, 64), (64, 48), (50, 50), (90, 61))
"""Height and width of the images."""


@dataclass(frozen=True)
class Drawn:
    """An image with its targets; a `Unit` like an image in a folder whose masks are files.

    Attributes:
        name: Its key.
        contents: Its targets.
        features: Their features.
        data: The encoded image.
        mtime_ns: Changes with its content.
        split: Its split.
    """

    name: str
    contents: tuple[Target, ...]
    features: tuple[AnyFeature, ...]
    data: bytes
    mtime_ns: int = 1
    split: str | None = None
    count: int = 1

    @property
    def targets(self) -> tuple[Target | None, ...]:
        """Its targets; None for masks, which are in files."""
        pairs = zip(self.features, self.contents, strict=True)
        return tuple(None if isinstance(feature, Mask) else target for feature, target in pairs)

    @property
    def size_bytes(self) -> int:
        """Encoded size of the image and its masks."""
        pairs = zip(self.features, self.contents, strict=True)
        masks = (target for feature, target in pairs if isinstance(feature, Mask) and isinstance(target, bytes))
        return len(self.data) + sum(map(len, masks))

    def record_keys(self) -> Iterator[str]:
        """Yield its key."""
        yield self.name

    def read(self) -> Iterator[Record]:
        """Yield its record."""
        yield Record(self.name, self.contents, self.data, self.mtime_ns)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode an image or a mask ``[H, W]`` or ``[H, W, C]``."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Encode an image as a JPEG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


Encode: TypeAlias = Callable[[NDArray[np.uint8]], bytes]


def drawn(number: int, features: Features = FEATURES, encode: Encode = png) -> Drawn:
    """Return the image of a number; every fourth has no boxes, no points and an empty mask."""
    rng = np.random.default_rng(number)
    height, width = SIZES[number % len(SIZES)]
    data = encode(rng.integers(0, 256, (height, width, 3), np.uint8))
    targets = tuple(_target(feature, number, (height, width), rng) for feature in features.values())
    return Drawn(f"{number:03d}.png", targets, tuple(features.values()), data)


def _target(feature: AnyFeature, number: int, size: tuple[int, int], rng: np.random.Generator) -> Target:
    height, width = size
    count = number % 4
    match feature:
        case Mask(names):
            ids = rng.integers(0, max(len(names), 2), (height // 8 + 1, width // 8 + 1), np.uint8)
            whole = np.kron(ids, np.ones((8, 8), np.uint8))[:height, :width] * (count > 0)
            whole[0, :3] = 255
            return png(whole)
        case Boxes(names):
            lefts, tops = rng.uniform(0, width - 12, count), rng.uniform(0, height - 12, count)
            sides = rng.uniform(2, 12, (2, count))
            corners = np.stack([lefts, tops, lefts + sides[0], tops + sides[1]], axis=1).astype(np.float32)
            return feature.encode(corners, rng.integers(0, len(names), count).tolist())
        case Points(n):
            places = rng.uniform(0, 1, (n, 2)) * (width, height)
            there = rng.integers(0, 3, (n, 1)) * (count > 0)
            return feature.encode(np.concatenate([places, there], axis=1).astype(np.float32))
        case ClassLabel(names):
            return number % len(names)
        case Value(shape=()):
            return float(number)
        case _:
            raise TypeError(f"no {feature} here")


def spatial_source(count: int = 12, features: Features = FEATURES, units: Sequence[Drawn] | None = None) -> Source:
    """Return a source of drawn images, or of `units`."""
    found = tuple(drawn(number, features) for number in range(count)) if units is None else tuple(units)
    return Source("drawn", features, found, len(found), False, Counter())


def with_target(unit: Drawn, place: int, target: Target) -> Drawn:
    """Return an image with another target in a place, as if it was written later."""
    contents = list(unit.contents)
    contents[place] = target
    return replace(unit, contents=tuple(contents), mtime_ns=unit.mtime_ns + 1)
