"""Contact sheets: records of a cache, or what a chain does to an image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from joulecache.pipelines.cache.cache import CacheLike, open_cache
from joulecache.pipelines.cache.mapped_targets import target_of
from joulecache.pipelines.cache.names import SPLITS
from joulecache.pipelines.core.files import atomic_write
from joulecache.pipelines.core.quantities import clipped
from joulecache.pipelines.report.render.overlays import Colour, Overlay
from joulecache.pipelines.source.features import AnyFeature, ClassLabel, Features, MultiLabel
from joulecache.pipelines.source.records import Record
from joulecache.pipelines.source.spatial import Boxes, Mask, Points
from joulecache.transforms import Chain
from joulecache.transforms.images import as_image

_CHARACTERS = 40
_COLUMNS, _ROWS = 8, 4
_TILE = 128  # pixels; larger images are shrunk, smaller ones enlarged without smoothing
_CAPTION = 18
_GAP = 6
_SWATCH = 10


@dataclass(frozen=True, slots=True)
class _Tile:
    """One picture of a sheet.

    Attributes:
        image: The image, of any size.
        caption: A line below it.
        overlays: What is drawn over it.
    """

    image: Image.Image
    caption: str
    overlays: Sequence[Overlay] = ()

    def fitted(self) -> Image.Image:
        """Return the picture at the size of a tile."""
        scale = _TILE / max(self.image.size)
        size = (max(1, round(self.image.width * scale)), max(1, round(self.image.height * scale)))
        smoothing = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
        picture = self.image.convert("RGB").resize(size, smoothing)
        for overlay in self.overlays:
            overlay.draw(picture, (size[0] / self.image.width, size[1] / self.image.height))
        return picture


def check_sheet(path: Path) -> None:
    """Raise ValueError unless a path is that of a PNG file in a folder that exists."""
    if path.suffix.lower() != ".png" or not path.parent.is_dir():
        raise ValueError(f"sheet must be a .png file in a folder that exists, got {str(path)!r}")


def write_contact_sheet(cache: CacheLike, path: Path) -> None:
    """Draw up to 32 records, evenly spaced over the first split that has any, to a PNG file, with their masks, boxes and points.

    Raises:
        ValueError: The path is not that of a PNG file in a folder that exists.
        CacheError: The cache has no records, or is damaged.
        OSError: The file cannot be written.
    """
    check_sheet(path)
    opened = open_cache(cache)
    name = next((name for name in SPLITS if opened.manifest.splits[name].records), SPLITS[0])
    rows = np.unique(np.linspace(0, opened.split(name).records - 1, _COLUMNS * _ROWS).astype(np.int64))
    index, features, mapped = opened.rows(name), opened.manifest.features, opened.targets(name)
    tiles = []
    for row, image in zip(rows.tolist(), opened.images(name).views(rows), strict=True):
        captions, overlays = [], []
        for target, feature in features.items():
            if isinstance(feature, Mask | Boxes | Points):
                overlays.append(Overlay(feature, target_of(mapped[target], row)))
            else:
                captions.append(_caption(feature, index[target][row].as_py()))
        tiles.append(_Tile(_cached_image(image), ", ".join(captions), overlays))
    _draw(tiles, path)


def _caption(feature: AnyFeature, value: Any) -> str:
    """Return what is shown of a target."""
    match feature:
        case ClassLabel(names):
            return str(names[value])
        case MultiLabel(names):
            return " ".join(name for name, one in zip(names, value, strict=True) if one) or "-"
        case _:
            return clipped(f"{value:g}" if isinstance(value, float) else str(value), _CHARACTERS)


def write_preview(chain: Chain, record: Record, features: Features, path: Path, seed: int = 0) -> None:
    """Write a PNG file that shows what a chain does to a record: the decoded image, cached variants, and what epochs see.

    Epochs are shown for a cache with one variant, as uint8, without the ops that return floats or mix the images of a batch. Masks,
    boxes and points are drawn where the chain moves them.

    Args:
        chain: The chain.
        record: An encoded image with its targets.
        features: The features of the targets, by name.
        path: The file.
        seed: The seed of the draws.

    Raises:
        DecodeError: The image cannot be decoded.
        ValueError: An op cannot process the image or its targets, or a target is malformed.
        OSError: The file cannot be written.
    """
    shown = Chain((*chain.prefix, *chain.on_images), chain.cut)
    cached = Chain(chain.prefix, chain.cut)
    spatial = _spatial_targets(record, features)

    def tile(of: Chain, caption: str, n: int = 0, variants: int | None = None) -> _Tile:
        moving = [overlay.target for overlay in spatial]
        pixels, moved = of.with_targets(record.data, moving, key=record.key, seed=seed, n=n, variants=variants)
        overlays = [Overlay(each.feature, target) for each, target in zip(spatial, moved, strict=True)]
        return _Tile(as_image(np.ascontiguousarray(pixels)), caption, overlays)

    tiles = [tile(Chain((chain.decode,), 1), "decoded")]
    epochs = _COLUMNS * (_ROWS - 1) if chain.on_images else 0
    variants = _COLUMNS * _ROWS - 1 - epochs if chain.cached_random else 1
    tiles += [tile(cached, f"cached, variant {n}", n) for n in range(variants)]
    if not any(op.random for op in chain.on_images):
        epochs = min(epochs, 1)
    tiles += [tile(shown, f"epoch {n}", n, variants=1) for n in range(epochs)]
    _draw(tiles, path)


def _spatial_targets(record: Record, features: Features) -> list[Overlay]:
    targets = zip(features.values(), record.targets, strict=True)
    try:
        return [
            Overlay(feature, feature.decode(target))
            for feature, target in targets
            if isinstance(feature, Mask | Boxes | Points)
        ]
    except ValueError as error:
        raise ValueError(f"{record.key!r} cannot be used: {error}") from None


def _draw(tiles: Sequence[_Tile], path: Path) -> None:
    """Draw tiles in rows, and below them the classes whose colours they have."""
    lines = -(-len(tiles) // _COLUMNS)
    width, height = _COLUMNS * (_TILE + _GAP) + _GAP, lines * (_TILE + _CAPTION + _GAP) + _GAP
    font = ImageFont.load_default(12)
    legend = _legend(tiles, font, width)
    sheet = Image.new("RGB", (width, height + legend.height), "white")
    sheet.paste(legend, (0, height))
    draw = ImageDraw.Draw(sheet)
    for index, tile in enumerate(tiles):
        left = _GAP + index % _COLUMNS * (_TILE + _GAP)
        top = _GAP + index // _COLUMNS * (_TILE + _CAPTION + _GAP)
        sheet.paste(tile.fitted(), (left, top))
        draw.text((left, top + _TILE + 2), _fitted(tile.caption, font), "black", font)
    with atomic_write(path, durable=False) as file:
        sheet.save(file, "PNG")


def _legend(tiles: Sequence[_Tile], font: Any, width: int) -> Image.Image:
    """Return the names of the classes in their colours, in as many lines as they need; an image without height if there are none."""
    classes: dict[str, Colour] = {}
    for tile in tiles:
        for overlay in tile.overlays:
            classes |= overlay.classes()
    places: list[tuple[int, int, str]] = []
    left, top = _GAP, 0
    for name in classes:
        shown = _fitted(name, font)
        needs = _SWATCH + round(font.getlength(shown)) + 3 * _GAP
        if left > _GAP and left + needs > width:
            left, top = _GAP, top + _CAPTION
        places.append((left, top, shown))
        left += needs
    legend = Image.new("RGB", (width, top + _CAPTION + _GAP if places else 0), "white")
    draw = ImageDraw.Draw(legend)
    for (x, y, name), colour in zip(places, classes.values(), strict=True):
        draw.rectangle((x, y + 2, x + _SWATCH, y + 2 + _SWATCH), fill=colour)
        draw.text((x + _SWATCH + _GAP, y), name, "black", font)
    return legend


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
