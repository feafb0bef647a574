"""Hypothesis strategies for every op, with all arguments that it accepts, and a custom op."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from joulecache.transforms import (
    Affine,
    Autocontrast,
    Brightness,
    CentralCrop,
    ColorJitter,
    Contrast,
    Cutmix,
    Cutout,
    Decode,
    Equalize,
    FlipLr,
    FlipUd,
    GaussianBlur,
    GaussianNoise,
    Grayscale,
    Hue,
    Mixup,
    Normalize,
    Op,
    Pad,
    Posterize,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    ResizeShorter,
    Rotate,
    Saturation,
    Sharpness,
    Solarize,
    ToFloat,
    TrivialAugment,
)
from joulecache.transforms.ops import MAX_PIXELS, OPS, BatchOp
from joulecache.transforms.ops.arguments import INTERPOLATIONS
from joulecache.transforms.ops.geometry import FITS, PADDING_MODES


@dataclass(frozen=True)
class Own(Op):
    """A custom op that takes any arguments."""

    random_words: ClassVar[int] = 3
    size: Any = 4
    more: Any = None

    def pixels(self, image: NDArray[np.uint8], drawn: tuple[int, ...]) -> NDArray[np.uint8]:
        return image ^ np.uint8(drawn[0] & 0xFF)


Ops = dict[type[Op], st.SearchStrategy[Op]]

shares = st.floats(0, 1)
levels = st.integers(0, 255)
fills = levels | st.tuples(levels, levels, levels)
modes = st.sampled_from(INTERPOLATIONS)


def ranges(low: float, high: float) -> st.SearchStrategy[tuple[float, float]]:
    end = st.floats(low, high)
    return st.tuples(end, end).map(lambda pair: (min(pair), max(pair)))


def spreads(most: float) -> st.SearchStrategy[float | tuple[float, float]]:
    """A number, a pair, or a pair that is spelled as a number."""
    return st.floats(0, most) | ranges(-most, most) | st.floats(0, most).map(lambda d: (-d, d))


def every_op(largest: int) -> Ops:
    """Return a strategy for each op, with sizes and borders of at most `largest` pixels."""
    side, border, place = st.integers(1, largest), st.integers(0, largest), st.floats(-largest, largest)
    size = side | st.tuples(side, side)
    center = st.none() | st.tuples(place, place)
    odd = st.integers(0, min(largest, 255) // 2).map(lambda half: min(2 * half + 1, 255))
    sigmas, factors = st.floats(0.01, 255) | ranges(0.01, 255), st.floats(0, 100) | ranges(0, 100)
    means, stds = st.floats(-1e6, 1e6), st.floats(1e-6, 1e6)
    shears = st.tuples(ranges(-89, 89), ranges(-89, 89)).map(lambda two: two[0] + two[1])
    made: Ops = {
        Decode: st.builds(
            Decode,
            st.sampled_from([1, 3]),
            st.none() | side,
            st.booleans(),
            st.integers(1, MAX_PIXELS),
            st.none() | fills,
        ),
        Resize: st.builds(Resize, size, st.sampled_from(FITS)),
        ResizeShorter: st.builds(ResizeShorter, side),
        CentralCrop: st.builds(CentralCrop, size),
        RandomCrop: st.builds(RandomCrop, size),
        RandomResizedCrop: st.builds(RandomResizedCrop, size, ranges(1e-6, 1), ranges(1e-3, 1e3))
        | st.builds(RandomResizedCrop, size, ratio=ranges(1e-3, 1e3)),
        Pad: st.builds(
            Pad,
            border | st.tuples(border, border) | st.tuples(border, border, border, border),
            fills,
            st.sampled_from(PADDING_MODES),
        ),
        FlipLr: st.builds(FlipLr, shares),
        FlipUd: st.builds(FlipUd, shares),
        Rotate: st.builds(Rotate, spreads(360), modes, fills, center) | st.builds(Rotate, spreads(360), center=center),
        Affine: st.builds(
            Affine,
            spreads(360),
            st.none() | st.tuples(shares, shares),
            st.none() | ranges(0.01, 100),
            st.none() | spreads(89) | shears,
            modes,
            fills,
            center,
        )
        | st.builds(Affine, spreads(360), shear=spreads(89)),
        Cutout: st.builds(Cutout, size, fills),
        Brightness: st.builds(Brightness, shares),
        Contrast: st.builds(Contrast, shares),
        Saturation: st.builds(Saturation, shares),
        Hue: st.builds(Hue, st.floats(0, 0.5)),
        ColorJitter: st.builds(ColorJitter, factors, factors, factors, spreads(0.5))
        | st.builds(ColorJitter, hue=spreads(0.5)),
        Grayscale: st.builds(Grayscale, st.sampled_from([1, 3])),
        GaussianBlur: st.builds(GaussianBlur, odd | st.tuples(odd, odd), sigmas),
        GaussianNoise: st.builds(GaussianNoise, st.floats(-1, 1), shares),
        Autocontrast: st.builds(Autocontrast, shares),
        Equalize: st.builds(Equalize, shares),
        Posterize: st.builds(Posterize, st.integers(0, 8), shares),
        Solarize: st.builds(Solarize, st.floats(0, 256), shares),
        Sharpness: st.builds(Sharpness, st.floats(0, 100), shares),
        RandAugment: st.builds(RandAugment, st.integers(1, 6), st.integers(0, 9), st.integers(10, 1000), modes, fills)
        | st.builds(RandAugment, fill=fills),
        TrivialAugment: st.builds(TrivialAugment, st.integers(2, 1000), modes, fills),
        ToFloat: st.builds(ToFloat),
        Normalize: st.builds(Normalize, means | st.tuples(means, means, means), stds | st.tuples(stds, stds, stds)),
        Mixup: st.builds(Mixup, st.just(1.0) | st.floats(0.01, 100)),
        Cutmix: st.builds(Cutmix, st.just(1.0) | st.floats(0.01, 100)),
    }
    assert list(made) == list(OPS.values()), "an op is missing here"
    return made


ON_IMAGES = [kind for kind in OPS.values() if kind is not Decode and not issubclass(kind, BatchOp)]
"""The ops that run on single decoded images."""
