"""Decoding: the op that every chain begins with."""

from __future__ import annotations

from dataclasses import dataclass

from joulecache.transforms.ops.base import LARGEST_SIDE, Fill, Op, level_or_colour, whole

LARGEST_PIXELS = 178_956_970  # Pillow refuses to open more, twice its `MAX_IMAGE_PIXELS`


@dataclass(frozen=True)
class Decode(Op):
    """Decode an encoded image, upright as EXIF says.

    Bytes to ``[H, W, channels]`` uint8. `channels`: 3 (RGB) or 1 (grey). `shorter`: decode a JPEG at the smallest DCT scale (1,
    1/2, 1/4, 1/8) whose shorter side is at least that many pixels before it is rounded up; other formats are not scaled.
    `truncated`: accept a file that ends early. Images of more than `max_pixels` are refused before they are decompressed.
    `background`: what transparent pixels are laid over, a level or (red, green, blue); None drops the transparency and shows
    the colours under it, as torchvision and TensorFlow do. Of an animation the first frame is taken, of 16-bit levels the high
    byte. Always the first op of a chain.
    """

    channels: int = 3
    shorter: int | None = None
    truncated: bool = False
    max_pixels: int = 178_000_000
    background: Fill | None = None

    def __post_init__(self) -> None:
        if type(self.channels) is not int or self.channels not in (1, 3):
            raise ValueError(f"decode: channels must be 1 or 3, got {self.channels!r}")
        if self.shorter is not None:
            whole(self, "shorter", self.shorter, 1, LARGEST_SIDE)
        if not isinstance(self.truncated, bool):
            raise ValueError(f"decode: truncated must be True or False, got {self.truncated!r}")
        whole(self, "max_pixels", self.max_pixels, 1, LARGEST_PIXELS)
        if self.background is not None:
            level_or_colour(self, "background", self.background)

    def output_channels(self, channels: int) -> int:
        """Return the channels that were asked for, whatever the file has."""
        return self.channels

    def jpeg_scale(self, height: int, width: int) -> int:
        """Return the denominator of the DCT scale for a JPEG of that size: 1, 2, 4 or 8."""
        if self.shorter is None:
            return 1
        fitting = min(height, width) // self.shorter
        return next(scale for scale in (8, 4, 2, 1) if scale <= max(fitting, 1))
