"""Ops that crop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from joulecache.transforms.coordinates import Coordinates, clamped, scaled, shifted
from joulecache.transforms.images import Array
from joulecache.transforms.ops.arguments import Size, interval, op_name
from joulecache.transforms.ops.base import Drawn, Op, draw_columns
from joulecache.transforms.ops.geometry import FixedSize, ResizeShorter
from joulecache.transforms.randomness import below, log_uniform, log_uniform_array
from joulecache.transforms.resizing import resize, resize_mask

_TRIES = 10


class _Crop(FixedSize):
    """An op that returns a window of its input."""

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the window; raise ValueError if it is larger than the image."""
        crop_height, crop_width = self.target
        if crop_height > height or crop_width > width:
            raise ValueError(
                f"{op_name(type(self))}: the crop {crop_height}x{crop_width} is larger than the image {height}x{width}: "
                "resize to a larger size, or crop less"
            )
        return self.target

    def window(self, image: Array, top: int, left: int) -> Array:
        """Return the window at this corner, a view of the image."""
        height, width = self.target
        return image[top : top + height, left : left + width]

    def mask(self, mask: Array, drawn: Drawn, /) -> Array:
        return self.pixels(mask, drawn)


@dataclass(frozen=True)
class CentralCrop(_Crop):
    """Crop the central window.

    ``[H, W, C]`` uint8 to ``[*size, C]``. Half of an odd margin is rounded to even, as in torchvision's `CenterCrop`.

    Attributes:
        size: size x size, or (height, width), in pixels.
    """

    typical = (224,)
    size: Size

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """Return (top, left) of the window in an image of this size."""
        crop_height, crop_width = self.output_size(height, width)
        return _half_to_even(height - crop_height), _half_to_even(width - crop_width)

    def pixels(self, image: Array, drawn: Drawn, /) -> Array:
        return self.window(image, *self.corner(*image.shape[:2]))

    def boxes(self, boxes: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        top, left = self.corner(*size)
        return shifted(boxes, -left, -top)

    def points(self, points: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        top, left = self.corner(*size)
        return shifted(points, -left, -top)


@dataclass(frozen=True)
class RandomCrop(_Crop):
    """Crop a window at a random position.

    ``[H, W, C]`` uint8 to ``[*size, C]``, all positions equally likely: torchvision's `RandomCrop`.

    Attributes:
        size: size x size, or (height, width), in pixels.
    """

    typical = (224,)
    random_words: ClassVar[int] = 2
    draws_by_row: ClassVar[bool] = True
    size: Size

    def for_validation(self) -> tuple[Op, ...]:
        """Return the central crop of this size."""
        return (CentralCrop(self.size),)

    def draw(self, words: Sequence[int], height: int, width: int, /) -> Drawn:
        """Return (top, left) of the window."""
        crop_height, crop_width = self.output_size(height, width)
        return below(words[0], height - crop_height + 1), below(words[1], width - crop_width + 1)

    draw_batch = draw_columns

    def pixels(self, image: Array, drawn: Drawn, /) -> Array:
        return self.window(image, *drawn)

    def boxes(self, boxes: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        top, left = drawn
        return shifted(boxes, -left, -top)

    def points(self, points: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        top, left = drawn
        return shifted(points, -left, -top)


@dataclass(frozen=True)
class RandomResizedCrop(FixedSize):
    """Crop a window of random area and aspect ratio, and resize it.

    ``[H, W, C]`` uint8 to ``[*size, C]``, bilinear with antialias. If none of ten windows fits, the central window is used, with
    the nearest allowed aspect ratio, as in torchvision's `RandomResizedCrop`.

    Attributes:
        size: size x size, or (height, width), in pixels.
        scale: (low, high) of the window's fraction of the area, drawn uniformly.
        ratio: (low, high) of its width / height, drawn log-uniformly.
    """

    version: ClassVar[int] = 2
    typical = (224,)
    random_words: ClassVar[int] = 2 * _TRIES + 2  # area and aspect of each try, then top and left
    draws_by_row: ClassVar[bool] = True
    size: Size
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scale", interval(self, "scale", self.scale, 1e-6, 1.0))
        object.__setattr__(self, "ratio", interval(self, "ratio", self.ratio, 1e-3, 1e3))

    def for_validation(self) -> tuple[Op, ...]:
        """Return a resize of the shorter side and a central crop."""
        return ResizeShorter(max(self.target)), CentralCrop(self.size)

    def draw(self, words: Sequence[int], height: int, width: int, /) -> Drawn:
        """Return the window (top, left, height, width)."""
        area, (low, high) = height * width, self.scale
        for area_word, ratio_word in zip(words[0 : 2 * _TRIES : 2], words[1 : 2 * _TRIES : 2], strict=True):
            target = area * (low + (high - low) * (area_word / 2**32))
            ratio = log_uniform(ratio_word, *self.ratio)
            crop_width, crop_height = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top, left = below(words[-2], height - crop_height + 1), below(words[-1], width - crop_width + 1)
                return top, left, crop_height, crop_width
        return self._central_window(height, width)

    def draw_batch(self, words: NDArray[np.int64], height: int, width: int, /) -> list[Drawn]:
        """Draw all windows at once, with the arithmetic of `draw`."""
        windows = np.tile(np.array(self._central_window(height, width), np.int64), (len(words), 1))
        area, (low, high) = height * width, self.scale
        pending = np.arange(len(words))
        for attempt in range(_TRIES):  # most records need only one
            area_words, ratio_words = words[pending, 2 * attempt], words[pending, 2 * attempt + 1]
            target = area * (low + (high - low) * (area_words / 2**32))
            ratio = log_uniform_array(ratio_words, *self.ratio)
            widths, heights = np.rint(np.sqrt(target * ratio)), np.rint(np.sqrt(target / ratio))
            fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
            done = pending[fits]
            crop_heights, crop_widths = heights[fits].astype(np.int64), widths[fits].astype(np.int64)
            windows[done, 0] = words[done, -2] * (height - crop_heights + 1) >> 32
            windows[done, 1] = words[done, -1] * (width - crop_widths + 1) >> 32
            windows[done, 2], windows[done, 3] = crop_heights, crop_widths
            pending = pending[~fits]
            if not len(pending):
                break
        return [tuple(window) for window in windows.tolist()]

    def _central_window(self, height: int, width: int) -> Drawn:
        crop_height, crop_width = height, width
        if width / height < self.ratio[0]:
            crop_height = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            crop_width = max(1, round(height * self.ratio[1]))
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width

    def pixels(self, image: Array, drawn: Drawn, /) -> Array:
        top, left, height, width = drawn
        return resize(image[top : top + height, left : left + width], *self.target)

    def mask(self, mask: Array, drawn: Drawn, /) -> Array:
        top, left, height, width = drawn
        return resize_mask(mask[top : top + height, left : left + width], *self.target)

    def boxes(self, boxes: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        top, left, height, width = drawn
        return scaled(clamped(shifted(boxes, -left, -top), height, width), (height, width), self.target)

    def points(self, points: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        top, left, height, width = drawn
        return scaled(shifted(points, -left, -top), (height, width), self.target)


def _half_to_even(margin: int) -> int:
    half, odd = divmod(margin, 2)
    return half + (odd & half)
