"""Contact sheets: records of a cache, or what a chain does to an image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from joulecache.pipelines.cache.cache import CacheLike, open_cache
from joulecache.pipelines.cache.names import SPLITS
from joulecache.pipelines.core.files import atomic_write
from joulecache.pipelines.core.quantities import clipped
from joulecache.pipelines.source.features import AnyFeature, ClassLabel, MultiLabel
from joulecache.transforms import Chain
from joulecache.transforms.images import as_image

_CHARACTERS = 40
_COLUMNS, _ROWS = 8, 4
_TILE = 128  # pixels; larger images are shrunk, smaller ones enlarged without smoothing
_CAPTION = 18
_GAP = 6


def write_contact_sheet(cache: CacheLike, path: Path) -> None:
    """Draw up to 32 records, evenly spaced over the first split that has any, to a PNG file.

    Raises:
        CacheError: The cache has no records, or is damaged.
        OSError: The file cannot be written.
    """
    opened = open_cache(cache)
    name = next((name for name in SPLITS if opened.manifest.splits[name].records), SPLITS[0])
    rows = np.unique(np.linspace(0, opened.split(name).records - 1, _COLUMNS * _ROWS).astype(np.int64))
    index, features = opened.rows(name), opened.manifest.features
    targets = [
        [_caption(feature, index[target][row].as_py()) for row in rows.tolist()] for target, feature in features.items()
    ]
    captions = [", ".join(of_record) for of_record in zip(*targets, strict=True)] or [""] * len(rows)
    images = map(_cached_image, opened.images(name).views(rows))
    _draw(list(zip(images, captions, strict=True)), path)


def _caption(feature: AnyFeature, value: Any) -> str:
    """Return what is shown of a target."""
    match feature:
        case ClassLabel(names):
            return str(names[value])
        case MultiLabel(names):
            return " ".join(name for name, one in zip(names, value, strict=True) if one) or "-"
        case _:
            return clipped(f"{value:g}" if isinstance(value, float) else str(value), _CHARACTERS)


def write_preview(chain: Chain, image: Path, path: Path, seed: int = 0) -> None:
    """Write a PNG file that shows what a chain does to an encoded image: the decoded image, cached variants, and what epochs see.

    Epochs are shown for a cache with one variant, as uint8, without the ops that return floats or mix the images of a batch.

    Raises:
        DecodeError: The image cannot be decoded.
        ValueError: An op cannot process the image.
        OSError: A file cannot be read or written.
    """
    shown = Chain((*chain.prefix, *chain.on_images), chain.cut)
    cached = Chain(chain.prefix, chain.cut)
    data, key = image.read_bytes(), image.name
    tiles = [(_tile(Chain((chain.decode,), 1)(data)), "decoded")]
    epochs = _COLUMNS * (_ROWS - 1) if chain.on_images else 0
    variants = _COLUMNS * _ROWS - 1 - epochs if chain.cached_random else 1
    tiles += [(_tile(cached(data, key=key, seed=seed, n=n)), f"cached, variant {n}") for n in range(variants)]
    if not any(op.random for op in chain.on_images):
        epochs = min(epochs, 1)
    tiles += [(_tile(shown(data, key=key, seed=seed, n=n, variants=1)), f"epoch {n}") for n in range(epochs)]
    _draw(tiles, path)


def _tile(pixels: NDArray[np.generic]) -> Image.Image:
    return as_image(np.ascontiguousarray(pixels))


def _draw(tiles: Sequence[tuple[Image.Image, str]], path: Path) -> None:
    lines = -(-len(tiles) // _COLUMNS)
    size = (_COLUMNS * (_TILE + _GAP) + _GAP, lines * (_TILE + _CAPTION + _GAP) + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for index, (image, caption) in enumerate(tiles):
        left = _GAP + index % _COLUMNS * (_TILE + _GAP)
        top = _GAP + index // _COLUMNS * (_TILE + _CAPTION + _GAP)
        scale = _TILE / max(image.size)
        fitted = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        smoothing = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
        sheet.paste(image.convert("RGB").resize(fitted, smoothing), (left, top))
        draw.text((left, top + _TILE + 2), _fitted(caption, font), "black", font)
    with atomic_write(path, durable=False) as file:
        sheet.save(file, "PNG")


def _fitted(caption: str, font: Any) -> str:
    """Return a caption that is at most as wide as a tile, with an ellipsis where it is cut."""
    if font.getlength(caption) <= _TILE:
        return caption
    while caption and font.getlength(f"{caption}…") > _TILE:
        caption = caption[:-1]
    return f"{caption}…"


def _cached_image(cached: Any) -> Image.Image:
    if isinstance(cached, np.ndarray) and cached.ndim == 3:
        return as_image(np.ascontiguousarray(cached))
    return Image.open(io.BytesIO(bytes(cached)))
