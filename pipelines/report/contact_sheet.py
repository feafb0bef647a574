"""Contact sheets, to look at before training: records of a cache as they are stored, or what a chain makes of an image."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from joulecache.pipelines.cache.local_copy import staged
from joulecache.pipelines.cache.manifest import Manifest, open_manifest, read_index
from joulecache.pipelines.cache.shards import SPLITS, map_images, read_encoded
from joulecache.transforms import Chain
from joulecache.transforms.images import as_image

_COLUMNS, _ROWS = 8, 4
_TILE = 128  # pixels; larger images are shrunk, smaller ones enlarged without smoothing
_CAPTION = 18
_GAP = 6


def write_contact_sheet(cache: str | os.PathLike[str], path: Path) -> None:
    """Draw up to 32 records, evenly spread over the first split that has any, to a PNG file. Raises CacheError, OSError."""
    folder = staged(cache)
    manifest = open_manifest(folder)
    name = next((name for name in SPLITS if manifest.splits[name].records), SPLITS[0])
    records = manifest.split(name).records
    rows = np.unique(np.linspace(0, records - 1, _COLUMNS * _ROWS).astype(np.int64))
    labels = read_index(folder, manifest)["label"].to_numpy()[manifest.first_row(name) + rows]
    captions = [manifest.class_names[label] for label in labels]
    _draw(list(zip(_images(folder, manifest, name, rows), captions, strict=True)), path)


def write_preview(chain: Chain, image: Path, path: Path, seed: int = 0) -> None:
    """Draw what a chain makes of an image to a PNG file: the image, variants of what is cached, and what epochs see.

    The epochs are those of a cache of one variant, as uint8: floats and mixtures of a batch come after what can be seen. Raises
    DecodeError, OSError, ValueError for an image that an op cannot take.
    """
    shown = Chain((*chain.prefix, *chain.on_images), chain.cut)
    cached = Chain(chain.prefix, chain.cut)
    data, key = image.read_bytes(), image.name
    tiles = [(_tile(Chain((chain.decode,), 1)(data)), "decoded")]
    epochs = _COLUMNS * (_ROWS - 1) if chain.on_images else 0
    variants = _COLUMNS * _ROWS - 1 - epochs if any(op.random for op in chain.prefix) else 1
    tiles += [(_tile(cached(data, key=key, seed=seed, n=n)), f"cached, variant {n}") for n in range(variants)]
    if not any(op.random for op in chain.on_images):
        epochs = min(epochs, 1)
    tiles += [(_tile(shown(data, key=key, seed=seed, n=n, variants=1)), f"epoch {n}") for n in range(epochs)]
    _draw(tiles, path)


def _tile(pixels: Any) -> Image.Image:
    return as_image(np.ascontiguousarray(pixels))


def _draw(tiles: Sequence[tuple[Image.Image, str]], path: Path) -> None:
    """Draw images with their captions to a PNG file, whole or not at all."""
    lines = -(-len(tiles) // _COLUMNS)
    size = (_COLUMNS * (_TILE + _GAP) + _GAP, lines * (_TILE + _CAPTION + _GAP) + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for place, (image, caption) in enumerate(tiles):
        left = _GAP + place % _COLUMNS * (_TILE + _GAP)
        top = _GAP + place // _COLUMNS * (_TILE + _CAPTION + _GAP)
        scale = _TILE / max(image.size)
        fitted = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        smoothing = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
        sheet.paste(image.convert("RGB").resize(fitted, smoothing), (left, top))
        draw.text((left, top + _TILE + 2), caption[:20], "black", font)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        sheet.save(temporary, "PNG")
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _images(cache: Path, manifest: Manifest, name: str, rows: Any) -> list[Image.Image]:
    split = manifest.split(name)
    files = split.variant_files(0)
    ends = np.cumsum([file.records for file in files])
    found = []
    for row in rows:
        shard = int(np.searchsorted(ends, row, side="right"))
        inside = int(row - (ends[shard - 1] if shard else 0))
        file = files[shard]
        if manifest.encoding == "raw":
            height, width, channels = split.image_shape
            assert height is not None
            assert width is not None
            shape = (height, width, channels)
            found.append(as_image(np.ascontiguousarray(map_images(cache / file.name, file, shape)[inside])))
        else:
            found.append(Image.open(io.BytesIO(bytes(read_encoded(cache / file.name, file)[inside]))))
    return found
