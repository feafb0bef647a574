"""Synthetic photos, drawn when they are read, to try joulecache without data."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from joulecache.pipelines.core.checks import shown
from joulecache.pipelines.source.features import LABEL, ClassLabel
from joulecache.pipelines.source.records import Record, Source, SourceError

SYNTHETIC = "synthetic:"
SYNTHETIC_CLASSES = ("bar", "cross", "disc", "square")
SYNTHETIC_SIZE = (500, 375)  # width, height
SYNTHETIC_LIMIT = 100_000_000


@dataclass(frozen=True, slots=True)
class SyntheticPhoto:
    """A photo that is drawn when it is read."""

    index: int
    count: int = 1
    mtime_ns: int = 0
    size_bytes: None = None
    split: None = None

    @property
    def name(self) -> str:
        """Class folder and number, like a file name."""
        return f"{SYNTHETIC_CLASSES[self.index % len(SYNTHETIC_CLASSES)]}/{self.index:08d}.jpg"

    @property
    def targets(self) -> tuple[int]:
        """Number of its shape."""
        return (self.index % len(SYNTHETIC_CLASSES),)

    def record_keys(self) -> Iterator[str]:
        """Yield its name."""
        yield self.name

    def read(self) -> Iterator[Record]:
        """Draw the photo, which takes about 15 ms."""
        yield Record(self.name, self.targets, synthetic_photo(self.index), 0)


def open_synthetic(text: str, limit: int | None) -> Source:
    """Return the source ``synthetic:N``; SourceError if N is not a count."""
    digits = text.removeprefix(SYNTHETIC)
    number = digits.isascii() and digits.isdigit() and len(digits) <= len(str(SYNTHETIC_LIMIT))
    if not number or not 1 <= int(digits) <= SYNTHETIC_LIMIT:
        raise SourceError(f"synthetic:N needs a count from 1 to {SYNTHETIC_LIMIT}, got {shown(text)}")
    count = int(digits) if limit is None else min(int(digits), limit)
    return Source(
        text, {LABEL: ClassLabel(SYNTHETIC_CLASSES)}, tuple(map(SyntheticPhoto, range(count))), count, False, Counter()
    )


def synthetic_photo(index: int) -> bytes:
    """Draw a photo of one shape on noise, as a JPEG of about 500x375 pixels and 40 kB.

    The noise has a spectrum like that of photographs (octaves of decreasing strength), so that decoding costs the same. Position and size
    of the shape vary.

    Args:
        index: Number of the photo; ``index % 4`` is its class, which decides the kind of shape and roughly its hue.
    """
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
    mask = Image.new("L", (width, height))
    _draw_shape(ImageDraw.Draw(mask), SYNTHETIC_CLASSES[index % len(SYNTHETIC_CLASSES)], width, height, rng)
    hue = 360 * (index % len(SYNTHETIC_CLASSES)) / len(SYNTHETIC_CLASSES) + rng.normal(0, 30)
    colour = ImageColor.getrgb(f"hsv({hue % 360:.0f},{rng.uniform(40, 100):.0f}%,{rng.uniform(40, 100):.0f}%)")
    mixed = Image.blend(photo, Image.new("RGB", (width, height), colour), 0.75)
    photo.paste(mixed, mask=mask)
    stream = io.BytesIO()
    photo.save(stream, "JPEG", quality=85)
    return stream.getvalue()


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
