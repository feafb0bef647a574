"""Checks of op arguments. Each returns the canonical form of the argument, or raises a ValueError that names op and argument."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from joulecache.transforms.images import Fill

if TYPE_CHECKING:
    from joulecache.transforms.ops.base import Op

Size = int | tuple[int, int]
"""A square's side, or (height, width), in pixels."""
Range = float | tuple[float, float]
"""A number, or (low, high)."""

MAX_SIDE = 65_535  # the limit of JPEG
INTERPOLATIONS = ("nearest", "bilinear")


def op_name(kind: type[Op]) -> str:
    """Return an op's name in chain text: ``RandomCrop`` is ``random_crop``."""
    return "".join("_" + c.lower() if c.isupper() else c for c in kind.__name__).lstrip("_")


def plain(value: object) -> object:
    """Return lists and arrays as tuples, and NumPy scalars as Python numbers; any other value unchanged."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return tuple(plain(part) for part in value) if type(value) is list or type(value) is tuple else value


def integer(op: Op, name: str, value: object, low: int, high: int) -> int:
    """Check an integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{_argument(op, name)} must be an integer from {low} to {high}, got {value!r}")
    return value


def number(op: Op, name: str, value: object, low: float, high: float) -> float:
    """Check a number in [low, high]; return a float, so that 1 and 1.0 are the same argument, as are 0.0 and -0.0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{_argument(op, name)} must be a number from {low:g} to {high:g}, got {value!r}")
    return float(value) + 0.0


def size_pair(op: Op, value: object) -> tuple[int, int]:
    """Check a size; return (height, width)."""
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{_argument(op, 'size')} must be an integer or (height, width), got {value!r}")
    height, width = (integer(op, "size", side, 1, MAX_SIDE) for side in pair)
    return height, width


def interval(op: Op, name: str, value: object, low: float, high: float) -> tuple[float, float]:
    """Check a pair (low, high)."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise ValueError(f"{_argument(op, name)} must be a pair (low, high), got {value!r}")
    first, last = (number(op, name, end, low, high) for end in value)
    if first > last:
        raise ValueError(f"{_argument(op, name)} must be (low, high) with low <= high, got {value!r}")
    return first, last


def number_or_interval(op: Op, name: str, value: object, low: float, high: float) -> Range:
    """Check a number or a pair (low, high)."""
    return interval(op, name, value, low, high) if isinstance(value, tuple) else number(op, name, value, low, high)


def symmetric(op: Op, name: str, value: object, limit: float) -> Range:
    """Check a number d, short for (-d, d), or a pair (low, high); return d for the pair (-d, d)."""
    if not isinstance(value, tuple):
        return number(op, name, value, 0.0, limit)
    low, high = interval(op, name, value, -limit, limit)
    return high if low == -high else (low, high)


def ends(value: Range) -> tuple[float, float]:
    """Return (low, high) for a range checked by `symmetric`."""
    return value if isinstance(value, tuple) else (-value, value)


def one_of(op: Op, name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Check that a value is one of the allowed words."""
    if value not in allowed:
        raise ValueError(f"{_argument(op, name)} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def fill_value(op: Op, name: str, value: object) -> Fill:
    """Check a level, or (red, green, blue)."""
    if not isinstance(value, tuple):
        return integer(op, name, value, 0, 255)
    if len(value) != 3:
        raise ValueError(f"{_argument(op, name)} must be a level or (red, green, blue), got {value!r}")
    red, green, blue = (integer(op, name, level, 0, 255) for level in value)
    return red, green, blue


def per_channel(op: Op, name: str, value: object, channels: int) -> None:
    """Check that a value with one number per channel matches the number of channels."""
    if isinstance(value, tuple) and len(value) != channels:
        raise ValueError(f"{_argument(op, name)} {value!r} has {len(value)} numbers, the image {channels} channel(s)")


def _argument(op: Op, name: str) -> str:
    return f"{op_name(type(op))}: {name}"
