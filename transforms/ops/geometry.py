"""Ops that resize, pad, mirror or mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from joulecache.transforms import kernels
from joulecache.transforms.coordinates import Coordinates, clamped, mirrored, scaled, shifted
from joulecache.transforms.images import Array, Fill
from joulecache.transforms.ops.arguments import (
    MAX_SIDE,
    Size,
    fill_value,
    integer,
    one_of,
    per_channel,
    size_pair,
)
from joulecache.transforms.ops.base import Drawn, Op, Photometric, RandomApply, draw_columns
from joulecache.transforms.randomness import below
from joulecache.transforms.resizing import resize, resize_mask

PADDING_MODES = ("constant", "edge", "reflect", "symmetric")
FITS = ("stretch", "crop", "pad")

Window = tuple[int, int, int, int]
"""(top, left, height, width), in pixels."""
Padding = int | tuple[int, int] | tuple[int, int, int, int]


class FixedSize(Op):
    """An op whose results all have the size in its arguments.

    Attributes:
        size: size x size, or (height, width), in pixels.
    """

    accepts_alpha: ClassVar[bool] = True
    size: Size

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", size_pair(self, self.size))

    @property
    def target(self) -> tuple[int, int]:
        """The size as (height, width)."""
        assert isinstance(self.size, tuple)
        return self.size

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return self.target


class Filled(Op):
    """An op that fills areas outside the image.

    Attributes:
        fill: A level, or (red, green, blue).
    """

    fill: Fill

    def __post_init__(self) -> None:
        fill_value(self, "fill", self.fill)

    def output_channels(self, channels: int) -> int:
        per_channel(self, "fill", self.fill, channels)
        return channels


@dataclass(frozen=True)
class Resize(FixedSize):
    """Resize, bilinear with antialias.

    ``[H, W, C]`` uint8 to ``[*size, C]``. Within one level of Pillow's `resize` with its triangle filter, and of torchvision's
    `Resize` with antialias.

    Attributes:
        size: size x size, or (height, width), in pixels.
        fit: What to do with another aspect ratio: "stretch" changes it, "crop" uses the largest central window of the image that has
            the ratio of `size`, as Keras' `crop_to_aspect_ratio`, "pad" puts the whole image between black bars, as TensorFlow's
            `resize_with_pad`.
    """

    version: ClassVar[int] = 2
    typical = (224,)
    size: Size
    fit: str = "stretch"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "fit", self.fit, FITS)

    def pixels(self, image: Array, drawn: Drawn, /) -> Array:
        return self._fitted(image, resize)

    def mask(self, mask: Array, drawn: Drawn, /) -> Array:
        return self._fitted(mask, resize_mask)

    def boxes(self, boxes: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        if self.fit == "stretch":
            return scaled(boxes, size, self.target)
        (top, left, height, width), inside = self._windows(*size)
        used = clamped(shifted(boxes, -left, -top), height, width)
        return shifted(scaled(used, (height, width), inside[2:]), inside[1], inside[0])

    def points(self, points: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        if self.fit == "stretch":
            return scaled(points, size, self.target)
        (top, left, height, width), inside = self._windows(*size)
        return shifted(scaled(shifted(points, -left, -top), (height, width), inside[2:]), inside[1], inside[0])

    def _fitted(self, image: Array, resized: Callable[[Array, int, int], Array]) -> Array:
        (top, left, height, width), inside = self._windows(*image.shape[:2])
        window = resized(image[top : top + height, left : left + width], *inside[2:])
        if inside[2:] == self.target:
            return window
        (top, left, height, width), result = inside, np.zeros((*self.target, image.shape[2]), np.uint8)
        result[top : top + height, left : left + width] = window
        return result

    def _windows(self, height: int, width: int) -> tuple[Window, Window]:
        """Return the window of an image of this size that is used, and that of the result which it fills."""
        whole, (result_height, result_width) = (0, 0, height, width), self.target
        if self.fit == "crop":
            used_height = max(1, min(height, width * result_height // result_width))
            used_width = max(1, min(width, height * result_width // result_height))
            corner = (height - used_height) // 2, (width - used_width) // 2
            return (*corner, used_height, used_width), (0, 0, *self.target)
        if self.fit == "pad":
            return whole, _padded_window(height, width, *self.target)
        return whole, (0, 0, *self.target)


def _padded_window(height: int, width: int, result_height: int, result_width: int) -> Window:
    """Return where `resize_with_pad` puts an image, in float32 as TensorFlow computes it."""
    ratio = max(np.float32(width) / np.float32(result_width), np.float32(height) / np.float32(result_height))
    inner_height, inner_width = np.float32(height) / ratio, np.float32(width) / ratio
    top, left = (np.float32(result_height) - inner_height) / 2, (np.float32(result_width) - inner_width) / 2
    return max(0, int(top)), max(0, int(left)), max(1, int(inner_height)), max(1, int(inner_width))


@dataclass(frozen=True)
class ResizeShorter(Op):
    """Resize the shorter side and keep the aspect ratio, bilinear with antialias.

    ``[H, W, C]`` uint8 to an image whose shorter side is `size`. The longer side is ``int(size * longer / shorter)``, as in
    torchvision's `Resize`.

    Attributes:
        size: The shorter side, in pixels.
    """

    version: ClassVar[int] = 2
    accepts_alpha: ClassVar[bool] = True
    typical = (224,)
    size: int

    def __post_init__(self) -> None:
        integer(self, "size", self.size, 1, MAX_SIDE)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size; raise ValueError if the longer side is too long: a file of 1 KB could use all memory."""
        longer = self.size * max(height, width) // min(height, width)
        if longer > MAX_SIDE:
            raise ValueError(
                f"resize_shorter: the longer side of {height}x{width} would have {longer} pixels, more than {MAX_SIDE}: use resize"
            )
        return (self.size, longer) if height <= width else (longer, self.size)

    def pixels(self, image: Array, drawn: Drawn, /) -> Array:
        return resize(image, *self.output_size(*image.shape[:2]))

    def mask(self, mask: Array, drawn: Drawn, /) -> Array:
        return resize_mask(mask, *self.output_size(*mask.shape[:2]))

    def boxes(self, boxes: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        return scaled(boxes, size, self.output_size(*size))

    def points(self, points: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        return scaled(points, size, self.output_size(*size))


@dataclass(frozen=True)
class Pad(Filled):
    """Add a border.

    ``[H, W, C]`` uint8 to ``[top + H + bottom, left + W + right, C]``, as torchvision's `Pad`.

    Attributes:
        padding: Pixels on every side, or (left and right, top and bottom), or (left, top, right, bottom).
        fill: The border's colour for "constant": a level, or (red, green, blue).
        padding_mode: "constant" fills with `fill`, "edge" repeats the last pixel, "reflect" mirrors without it, "symmetric"
            mirrors with it.
    """

    typical = (4,)
    padding: Padding
    fill: Fill = 0
    padding_mode: str = "constant"

    def __post_init__(self) -> None:
        super().__post_init__()
        padding = self._padding_tuple
        if len(padding) not in (1, 2, 4):
            raise ValueError(
                f"pad: padding must be an integer, (left and right, top and bottom) or (left, top, right, bottom), got {padding!r}"
            )
        for side in padding:
            integer(self, "padding", side, 0, MAX_SIDE)
        one_of(self, "padding_mode", self.padding_mode, PADDING_MODES)
        left, top, right, bottom = self.sides
        if (left, top) == (right, bottom):
            object.__setattr__(self, "padding", left if left == top else (left, top))

    @property
    def _padding_tuple(self) -> tuple[int, ...]:
        return self.padding if isinstance(self.padding, tuple) else (self.padding,)

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """The border as (left, top, right, bottom)."""
        left, top, right, bottom = self._padding_tuple * (4 // len(self._padding_tuple))
        return left, top, right, bottom

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) with the border; raise ValueError if the image is too small to mirror that far."""
        left, top, right, bottom = self.sides
        if self.padding_mode in ("reflect", "symmetric"):
            unmirrored = 1 if self.padding_mode == "reflect" else 0
            if max(left, right) > width - unmirrored or max(top, bottom) > height - unmirrored:
                raise ValueError(
                    f"pad: padding_mode {self.padding_mode!r} cannot add a border of {self.padding} to an image of {height}x{width}: "
                    "pad less, or use padding_mode 'edge'"
                )
        return top + height + bottom, left + width + right

    def pixels(self, image: Array, drawn: Drawn, /) -> Array:
        self.output_size(*image.shape[:2])  # raises where the edges would be mirrored repeatedly
        return kernels.pad(image, self.sides, self.padding_mode, self.fill)

    def mask(self, mask: Array, drawn: Drawn, /) -> Array:
        return kernels.pad(mask, self.sides, self.padding_mode, 0)

    def boxes(self, boxes: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        return shifted(boxes, *self.sides[:2])

    def points(self, points: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        return shifted(points, *self.sides[:2])


class _Flip(RandomApply):
    """An op that mirrors."""

    accepts_alpha: ClassVar[bool] = True
    draws_by_row: ClassVar[bool] = True

    def mask(self, mask: Array, drawn: Drawn, /) -> Array:
        return self.pixels(mask, drawn)


@dataclass(frozen=True)
class FlipLr(_Flip):
    """Mirror left to right, with a probability.

    ``[H, W, C]`` uint8 to the same shape: torchvision's `RandomHorizontalFlip`.

    Attributes:
        probability: From 0 to 1.
    """

    typical = (1.0,)
    probability: float = 0.5

    def apply(self, image: Array) -> Array:
        return image[:, ::-1]

    def boxes(self, boxes: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        return mirrored(boxes, size, drawn[0], False)

    def points(self, points: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        return mirrored(points, size, drawn[0], False)


@dataclass(frozen=True)
class FlipUd(_Flip):
    """Mirror top to bottom, with a probability.

    ``[H, W, C]`` uint8 to the same shape: torchvision's `RandomVerticalFlip`.

    Attributes:
        probability: From 0 to 1.
    """

    typical = (1.0,)
    probability: float = 0.5

    def apply(self, image: Array) -> Array:
        return image[::-1]

    def boxes(self, boxes: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        return mirrored(boxes, size, False, drawn[0])

    def points(self, points: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        return mirrored(points, size, False, drawn[0])


@dataclass(frozen=True)
class Cutout(Filled, Photometric):
    """Fill a window around a random pixel.

    ``[H, W, C]`` uint8 to the same shape. The window is clipped to the image. From DeVries and Taylor, "Improved Regularization
    of Convolutional Neural Networks with Cutout" (2017).

    Attributes:
        size: The window: size x size, or (height, width), in pixels.
        fill: A level, or (red, green, blue).
    """

    typical = (56,)
    random_words: ClassVar[int] = 2
    size: Size
    fill: Fill = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "size", size_pair(self, self.size))

    def draw(self, words: Sequence[int], height: int, width: int, /) -> Drawn:
        """Return (top, left) of the window."""
        assert isinstance(self.size, tuple)
        return below(words[0], height) - self.size[0] // 2, below(words[1], width) - self.size[1] // 2

    draw_batch = draw_columns

    def pixels(self, image: Array, drawn: Drawn, /) -> Array:
        assert isinstance(self.size, tuple)
        top, left = drawn
        result = np.empty(image.shape, np.uint8)
        kernels.put(result, image)
        result[max(top, 0) : top + self.size[0], max(left, 0) : left + self.size[1]] = self.fill
        return result
