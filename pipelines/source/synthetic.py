"""Synthetic photos, drawn when they are read, to try joulecache without data."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from joulecache.pipelines.core.checks import shown
from joulecache.pipelines.source.config import SourceConfig
from joulecache.pipelines.source.feature import Target
from joulecache.pipelines.source.features import LABEL, AnyFeature, ClassLabel, Features, MultiLabel, Value
from joulecache.pipelines.source.records import Record, Source, SourceError
from joulecache.pipelines.source.spatial import Boxes, Mask, Points

SYNTHETIC = "synthetic:"
SYNTHETIC_CLASSES = ("bar", "cross", "disc", "square")
SYNTHETIC_SIZE = (500, 375)  # width, height
SYNTHETIC_LIMIT = 100_000_000

_MASK = Mask(("background", *SYNTHETIC_CLASSES))
_BOXES = Boxes(SYNTHETIC_CLASSES)
_POINTS = Points(5)  # the centre of the shape, then its left, top, right and bottom end
_TAGS = MultiLabel(("large", "solid", "straight"))
_TAGS_OF = {"bar": ("straight",), "cross": ("straight",), "disc": ("solid",), "square": ("solid", "straight")}
_LARGE = 0.55  # the share of the image's height from which on a shape is large
SYNTHETIC_FEATURES: Features = MappingProxyType(
    {
        LABEL: ClassLabel(SYNTHETIC_CLASSES),
        "mask": _MASK,
        "boxes": _BOXES,
        "points": _POINTS,
        "tags": _TAGS,
        "area": Value(),
    }
)
"""The targets that `--target` can name. The default is the class."""


@dataclass(frozen=True, slots=True)
class SyntheticPhoto:
    """A photo that is drawn when it is read.

    Attributes:
        wanted: Names of its targets, of `SYNTHETIC_FEATURES`.
    """

    index: int
    wanted: tuple[str, ...] = (LABEL,)
    count: int = 1
    mtime_ns: int = 0
    size_bytes: None = None
    split: None = None

    @property
    def name(self) -> str:
        """Class folder and number, like a file name."""
        return f"{SYNTHETIC_CLASSES[self.index % len(SYNTHETIC_CLASSES)]}/{self.index:08d}.jpg"

    @property
    def targets(self) -> tuple[Target, ...] | None:
        """Number of its shape; None if it has other targets, which are known when it is drawn."""
        return (self._label,) if self.wanted == (LABEL,) else None

    @property
    def _label(self) -> int:
        return self.index % len(SYNTHETIC_CLASSES)

    def record_keys(self) -> Iterator[str]:
        """Yield its name."""
        yield self.name

    def read(self) -> Iterator[Record]:
        """Draw the photo, which takes about 15 ms."""
        photo, shape = _draw_photo(self.index)
        targets = (_target(name, self._label, shape) for name in self.wanted)
        yield Record(self.name, tuple(targets), _encoded(photo), 0)


def open_synthetic(text: str, config: SourceConfig) -> Source:
    """Return the source ``synthetic:N``; SourceError if N is not a count, or it lacks a target."""
    digits = text.removeprefix(SYNTHETIC)
    number = digits.isascii() and digits.isdigit() and len(digits) <= len(str(SYNTHETIC_LIMIT))
    if not number or not 1 <= int(digits) <= SYNTHETIC_LIMIT:
        raise SourceError(f"synthetic:N needs a count from 1 to {SYNTHETIC_LIMIT}, got {shown(text)}")
    if config.image is not None:
        raise SourceError(f"--image names a column, but {text!r} has no columns: drop --image {config.image}")
    if config.splits is not None:
        raise SourceError(f"{text!r} has no splits: drop --splits")
    features = _features(text, config)
    count = int(digits) if config.limit is None else min(int(digits), config.limit)
    wanted = tuple(features)
    return Source(
        text, features, tuple(SyntheticPhoto(index, wanted) for index in range(count)), count, False, Counter()
    )


def _features(text: str, config: SourceConfig) -> Features:
    if config.target is None:
        return {LABEL: SYNTHETIC_FEATURES[LABEL]}
    features: dict[str, AnyFeature] = {}
    for name, kind in config.targets:
        if name not in SYNTHETIC_FEATURES:
            raise SourceError(f"{text!r} has no target {name!r}: its targets are {', '.join(SYNTHETIC_FEATURES)}")
        features[name] = SYNTHETIC_FEATURES[name]
        if kind not in (None, features[name].kind):
            raise SourceError(f"target {name!r} of {text!r} is of kind {features[name].kind}, got {kind!r}")
    return features


def synthetic_photo(index: int) -> bytes:
    """Draw a photo of one shape on noise, as a JPEG of about 500x375 pixels and 40 kB.

    The noise has a spectrum like that of photographs (octaves of decreasing strength), so that decoding costs the same. Position and size
    of the shape vary.

    Args:
        index: Number of the photo; ``index % 4`` is its class, which decides the kind of shape and roughly its hue.
    """
    photo, _ = _draw_photo(index)
    return _encoded(photo)


def _encoded(photo: Image.Image) -> bytes:
    stream = io.BytesIO()
    photo.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _draw_photo(index: int) -> tuple[Image.Image, Image.Image]:
    """Draw a photo; return it, and its shape as 255 on 0."""
    rng = np.random.Generator(np.random.Philox(key=index))
    width, height = (side + int(rng.integers(-24, 25)) for side in SYNTHETIC_SIZE)
    canvas = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 8):
        cells = rng.normal(0, 38 * 0.62 ** (octave - 1), (2**octave, 2**octave, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(cells[:, :, channel]).resize((width, height), Image.Resampling.BICUBIC)
            canvas[:, :, channel] += np.asarray(layer)
    canvas = canvas * (0.6, 0.5, 0.7) + canvas.mean(axis=2, keepdims=True) * 0.5 + rng.uniform(90, 150)
    photo = Image.fromarray(np.clip(canvas + rng.normal(0, 7, (height, width, 1)), 0, 255).astype(np.uint8))
    shape = Image.new("L", (width, height))
    _draw_shape(ImageDraw.Draw(shape), SYNTHETIC_CLASSES[index % len(SYNTHETIC_CLASSES)], width, height, rng)
    hue = 360 * (index % len(SYNTHETIC_CLASSES)) / len(SYNTHETIC_CLASSES) + rng.normal(0, 30)
    colour = ImageColor.getrgb(f"hsv({hue % 360:.0f},{rng.uniform(40, 100):.0f}%,{rng.uniform(40, 100):.0f}%)")
    mixed = Image.blend(photo, Image.new("RGB", (width, height), colour), 0.75)
    photo.paste(mixed, mask=shape)
    return photo, shape


def _draw_shape(draw: ImageDraw.ImageDraw, kind: str, width: int, height: int, rng: np.random.Generator) -> None:
    reach = float(rng.uniform(0.22, 0.36)) * height
    x = float(rng.uniform(reach, width - reach))
    y = float(rng.uniform(reach, height - reach))
    thin = reach / 4
    if kind == "disc":
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=255)
    if kind == "square":
        draw.rectangle((x - 0.85 * reach, y - 0.85 * reach, x + 0.85 * reach, y + 0.85 * reach), fill=255)
    if kind in ("bar", "cross"):
        draw.rectangle((x - reach, y - thin, x + reach, y + thin), fill=255)
    if kind == "cross":
        draw.rectangle((x - thin, y - reach, x + thin, y + reach), fill=255)


def _target(name: str, label: int, shape: Image.Image) -> Target:
    """Return a target of a photo from its class and its shape, 255 on 0."""
    box = shape.getbbox()
    assert box is not None
    left, top, right, bottom = box
    match name:
        case "mask":
            stream = io.BytesIO()
            shape.point(lambda level: level and label + 1).save(stream, "PNG")
            return stream.getvalue()
        case "boxes":
            return _BOXES.encode([box], [label])
        case "points":
            x, y = (left + right) / 2, (top + bottom) / 2
            return _POINTS.encode([(x, y), (left, y), (x, top), (right, y), (x, bottom)])
        case "tags":
            large = ("large",) if right - left >= _LARGE * shape.height else ()
            return _TAGS.encode(_TAGS.numbers[tag] for tag in (*large, *_TAGS_OF[SYNTHETIC_CLASSES[label]]))
        case "area":
            return float(np.mean(np.asarray(shape) > 0, dtype=np.float32))
        case _:
            return label
