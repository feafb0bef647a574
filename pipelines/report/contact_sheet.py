"""A contact sheet: records of a cache as they are stored, with their classes, to look at before training on them."""

from __future__ import annotations

import io
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from joulecache.pipelines.manifest import Manifest, open_manifest, read_index
from joulecache.pipelines.shards import SPLITS, map_images, read_encoded
from joulecache.transforms.reference_kernels import as_image

_COLUMNS, _ROWS = 8, 4
_TILE = 128  # pixels; larger images are shrunk, smaller ones enlarged without smoothing
_CAPTION = 18
_GAP = 6


def write_contact_sheet(cache: Path, path: Path) -> None:
    """Draw up to 32 records, evenly spread over the first split that has any, to a PNG file. Raises CacheError, OSError."""
    manifest = open_manifest(cache)
    name = next((name for name in SPLITS if manifest.splits[name].records), SPLITS[0])
    records = manifest.split(name).records
    first = 0 if name == SPLITS[0] else manifest.splits[SPLITS[0]].records
    rows = np.unique(np.linspace(0, records - 1, _COLUMNS * _ROWS).astype(np.int64))
    labels = read_index(cache, manifest)["label"].to_numpy()[first + rows]
    lines = -(-len(rows) // _COLUMNS)
    size = (_COLUMNS * (_TILE + _GAP) + _GAP, lines * (_TILE + _CAPTION + _GAP) + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for place, (image, label) in enumerate(zip(_images(cache, manifest, name, rows), labels, strict=True)):
        left = _GAP + place % _COLUMNS * (_TILE + _GAP)
        top = _GAP + place // _COLUMNS * (_TILE + _CAPTION + _GAP)
        scale = _TILE / max(image.size)
        fitted = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        smoothing = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
        sheet.paste(image.convert("RGB").resize(fitted, smoothing), (left, top))
        draw.text((left, top + _TILE + 2), manifest.class_names[label][:20], "black", font)
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
