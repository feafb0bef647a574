"""What is done to one image: ops, chains of them, their random draws and their kernels."""

from joulecache.transforms.chain import Chain, parse
from joulecache.transforms.ops import (
    Brightness,
    CentralCrop,
    Contrast,
    Decode,
    FlipLr,
    Op,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    ResizeShorter,
)

__all__ = [
    "Brightness",
    "CentralCrop",
    "Chain",
    "Contrast",
    "Decode",
    "FlipLr",
    "Op",
    "RandomCrop",
    "RandomResizedCrop",
    "Resize",
    "ResizeShorter",
    "parse",
]
