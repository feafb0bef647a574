"""Masks, boxes and points, drawn over the pictures of a contact sheet."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from joulecache.pipelines.source.spatial import VOID, Boxes, Mask, Points
from joulecache.transforms.coordinates import Coordinates
from joulecache.transforms.images import Array
from joulecache.transforms.targets import BoxesTarget, MaskTarget, PointsTarget, SpatialTarget

Colour: TypeAlias = tuple[int, int, int]

_OPACITY = 0.45  # of a mask
_DOT = 2  # pixels around the centre of a point
_NAME_SIZE = 9
_MARGIN = 2
_NAME_SHARE = 3  # a box is at least this many times as large as its name
_HUE_STEP = 0.618034  # of the colour circle: neighbouring numbers have distant hues
_VOID_COLOUR = (160, 160, 160)


@dataclass(frozen=True, slots=True)
class Overlay:
    """A target to draw, with its feature, which has the names of its classes."""

    feature: Mask | Boxes | Points
    target: SpatialTarget

    def classes(self) -> dict[str, Colour]:
        """Return the colour of each class in the target, by name."""
        match self.feature, self.target:
            case Mask(names=names), MaskTarget(ids):
                found = [int(number) for number in np.unique(ids) if number]  # 0 is the background, which is not drawn
                return {_name(names, number): mask_colour(number) for number in found}
            case Boxes(names=names), BoxesTarget(classes=classes):
                return {_name(names, number): colour(number) for number in sorted({*classes.tolist()})}
            case _:
                return {}

    def draw(self, picture: Image.Image, scale: tuple[float, float]) -> None:
        """Draw the target over an RGB picture.

        Args:
            picture: The image, already scaled.
            scale: The picture's width and height as multiples of the image's.
        """
        match self.target:
            case MaskTarget(ids):
                _draw_mask(picture, ids[:, :, 0])
            case BoxesTarget(boxes, classes):
                assert isinstance(self.feature, Boxes)
                _draw_boxes(picture, _placed(boxes, picture, scale), self.feature.names, classes.tolist())
            case PointsTarget(points):
                _draw_points(picture, _placed(points[:, :2], picture, scale), points[:, 2].tolist())


def colour(number: int) -> Colour:
    """Return the colour of a class or point by its number: the same one on every sheet."""
    red, green, blue = colorsys.hsv_to_rgb(number * _HUE_STEP % 1, 0.9, 1 if number % 2 else 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def mask_colour(number: int) -> Colour:
    """Return the colour of an id of a mask, where 0 is the background."""
    return _VOID_COLOUR if number == VOID else colour(number - 1)


def _name(names: Sequence[str], number: int) -> str:
    """Return the name of a class; its number if it has none, as in a mask without names or a damaged cache."""
    return names[number] if 0 <= number < len(names) else "void" if number == VOID else str(number)


def _placed(corners: Coordinates, picture: Image.Image, scale: tuple[float, float]) -> list[list[int]]:
    """Return x and y of each corner in turn, rounded to the pixels of a picture. Those of a damaged cache may be any numbers."""
    pairs = corners.reshape(len(corners), -1, 2) * np.array(scale, np.float32)
    placed: list[list[int]] = (
        np.nan_to_num(pairs).clip(0, picture.size).round().astype(int).reshape(corners.shape).tolist()
    )
    return placed


def _draw_mask(picture: Image.Image, ids: Array) -> None:
    scaled = np.asarray(Image.fromarray(ids).resize(picture.size, Image.Resampling.NEAREST))
    colours = np.array([(0, 0, 0), *map(mask_colour, range(1, VOID + 1))], np.uint8)
    tinted = Image.blend(picture, Image.fromarray(colours[scaled]), _OPACITY)
    picture.paste(tinted, mask=Image.fromarray(np.where(scaled > 0, np.uint8(255), np.uint8(0))))


def _draw_boxes(
    picture: Image.Image, boxes: Sequence[Sequence[int]], names: Sequence[str], classes: Sequence[int]
) -> None:
    """Draw outlines, and the names of the classes where they leave most of the box visible."""
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_NAME_SIZE)
    for (left, top, right, bottom), number in zip(boxes, classes, strict=True):
        right, bottom = max(left, right - 1), max(top, bottom - 1)
        draw.rectangle((left, top, right, bottom), outline=colour(number))
        name = _name(names, number)
        _, _, width, height = draw.textbbox((_MARGIN, 0), name, font)
        if width <= right - left and _NAME_SHARE * width * height <= (right - left) * (bottom - top):
            draw.rectangle((left, top, left + width, top + height), fill=colour(number))
            draw.text((left + _MARGIN, top), name, _ink(colour(number)), font)


def _draw_points(picture: Image.Image, points: Sequence[Sequence[int]], visibility: Sequence[float]) -> None:
    draw = ImageDraw.Draw(picture)
    for number, ((x, y), visible) in enumerate(zip(points, visibility, strict=True)):
        if visible:
            draw.ellipse((x - _DOT, y - _DOT, x + _DOT, y + _DOT), fill=colour(number), outline="white")


def _ink(background: Colour) -> str:
    """Return the colour of text that reads best on a background."""
    red, green, blue = background
    return "black" if 299 * red + 587 * green + 114 * blue > 128_000 else "white"
