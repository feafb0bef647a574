"""What every op is, and the checks of the arguments that ops have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Size = int | tuple[int, int]
Fill = int | tuple[int, int, int]

LARGEST_SIDE = 65_535  # the largest side that JPEG can hold
MOST_WORDS = 1024  # what `randomness` has room for at one position


class Op:
    """One transform. A subclass is a frozen dataclass whose fields are the arguments.

    `version` changes when the pixels change. `words` is how many random 32-bit words one draw takes: 0 for an op that is
    the same every time.

    An op of your own also has a method ``pixels(image, draw)``, which gets a read-only uint8 array ``[H, W, C]`` and its words
    as a tuple of ints in [0, 2**32), and returns another such array; where the size changes, `output_size` says to what, and
    `target` too where it is the same for every image.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Invert(Op):
    ...     words = 1
    ...     def pixels(self, image, draw):
    ...         return 255 - image if draw[0] < 2**31 else image
    >>> from joulecache.transforms import parse
    >>> str(parse("decode|invert", ops={"invert": Invert}))
    'decode|invert'
    """

    version: ClassVar[int] = 1
    words: ClassVar[int] = 0

    @property
    def random(self) -> bool:
        """Whether two draws of the op can differ."""
        return self.words > 0

    @property
    def target(self) -> tuple[int, int] | None:
        """The (height, width) of every result, None where that depends on the image."""
        return None

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the result for an input of that size; ValueError if the op cannot take it."""
        return height, width

    def output_channels(self, channels: int) -> int:
        """Return the channels of the result for an input of that many; ValueError if the op cannot take it."""
        return channels

    def pixels(self, image: NDArray[np.uint8], draw: tuple[int, ...]) -> NDArray[np.uint8]:
        """Compute the op: only asked of ops of your own, since the built-in ones have kernels."""
        raise NotImplementedError


class Sometimes(Op):
    """An op that is applied with a `probability`, and else leaves the image as it is."""

    words: ClassVar[int] = 1
    probability: float

    @property
    def random(self) -> bool:
        """Whether two draws of the op can differ: not at a probability of 0 or 1."""
        return 0 < self.probability < 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "probability", number(self, "probability", self.probability, 0.0, 1.0))


def op_name(kind: type[Op]) -> str:
    """Return an op's name in chain text: ``RandomCrop`` is ``random_crop``."""
    return "".join("_" + c.lower() if c.isupper() else c for c in kind.__name__).lstrip("_")


def describe(kind: type[Op]) -> tuple[str, str]:
    """Return how an op is written, with its defaults, and the first line of its docstring."""
    arguments = [
        field.name if field.default is dataclasses.MISSING else f"{field.name}={_short(field.default)}"
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
    ]
    does = (kind.__doc__ or "").strip().partition("\n")[0]
    return f"{op_name(kind)}({', '.join(arguments)})" if arguments else op_name(kind), does


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def ops_of(module: ModuleType) -> dict[str, type[Op]]:
    """Return the ops that a module defines, by their names; ValueError when there is none, or one is not made as it should be."""
    found = {
        op_name(kind): kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Op) and kind.__module__ == module.__name__
        if not kind.__name__.startswith("_")
    }
    if not found:
        raise ValueError(f"module {module.__name__} defines no op: write a frozen dataclass that derives from Op")
    check_own_ops(found)
    return found


def check_own_ops(ops: Mapping[str, type[Op]]) -> None:
    """Raise ValueError unless every op that somebody else wrote is made as `Op` says, and stands under its own name."""
    for name, kind in ops.items():
        if not isinstance(kind, type) or not issubclass(kind, Op):
            raise ValueError(f"op {name!r} must be a class that derives from Op, got {kind!r}")
        if op_name(kind) != name:
            raise ValueError(f"op {name!r} must be called {op_name(kind)!r}, the name of its class {kind.__name__}")
        check_own_op(kind)


def check_own_op(kind: type[Op]) -> None:
    """Raise ValueError unless an op that somebody else wrote is made as `Op` says."""
    name = op_name(kind)
    made = vars(kind).get("__dataclass_params__")
    if made is None or not made.frozen:
        raise ValueError(
            f"{name}: an op is a frozen dataclass: put @dataclass(frozen=True) before class {kind.__name__}"
        )
    for attribute, low, high in (("version", 1, 2**31), ("words", 0, MOST_WORDS)):
        value = getattr(kind, attribute)
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{name}: {attribute} must be a whole number from {low} to {high}, got {value!r}")
    if kind.pixels is Op.pixels:
        raise ValueError(f"{name}: class {kind.__name__} has no method pixels(image, draw), which computes the op")


# Arguments ------------------------------------------------------------------------------------------------------------


def _name(op: Op | str) -> str:
    return op if isinstance(op, str) else op_name(type(op))


def whole(op: Op | str, name: str, value: object, low: int, high: int) -> int:
    """Return `value`; ValueError unless it is a whole number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{_name(op)}: {name} must be a whole number from {low} to {high}, got {value!r}")
    return value


def number(op: Op | str, name: str, value: object, low: float, high: float) -> float:
    """Return `value` as a float, since 1 and 1.0 are one argument, and 0.0 and -0.0; ValueError unless it is from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{_name(op)}: {name} must be a number from {low:g} to {high:g}, got {value!r}")
    return float(value) + 0.0


def size_pair(op: Op | str, value: object) -> tuple[int, int]:
    """Return a size as (height, width)."""
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{_name(op)}: size must be a whole number or (height, width), got {value!r}")
    for side in pair:
        whole(op, "size", side, 1, LARGEST_SIDE)
    return pair


def interval(op: Op | str, name: str, value: object, low: float, high: float) -> tuple[float, float]:
    """Return a pair (low, high) as floats."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise ValueError(f"{_name(op)}: {name} must be a pair (low, high), got {value!r}")
    first, last = (number(op, name, end, low, high) for end in value)
    if first > last:
        raise ValueError(f"{_name(op)}: {name} must not fall, got {value!r}")
    return first, last


def symmetric(op: Op | str, name: str, value: object, most: float) -> float | tuple[float, float]:
    """Return a number d that means [-d, d], or a pair (low, high), in one spelling: d where the pair is (-d, d)."""
    if not isinstance(value, tuple):
        return number(op, name, value, 0.0, most)
    low, high = interval(op, name, value, -most, most)
    return high if low == -high else (low, high)


def ends(value: float | tuple[float, float]) -> tuple[float, float]:
    """Return the interval that `symmetric` spells."""
    return value if isinstance(value, tuple) else (-value, value)


def number_or_interval(op: Op | str, name: str, value: object, low: float, high: float) -> float | tuple[float, float]:
    """Return a number, or a pair (low, high), as floats."""
    return interval(op, name, value, low, high) if isinstance(value, tuple) else number(op, name, value, low, high)


def chosen(op: Op | str, name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of the `allowed` words."""
    if value not in allowed:
        raise ValueError(f"{_name(op)}: {name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def level_or_colour(op: Op | str, name: str, value: object) -> Fill:
    """Return a level, or (red, green, blue), as it is; ValueError for another thing."""
    if isinstance(value, tuple):
        if len(value) != 3:
            raise ValueError(f"{_name(op)}: {name} must be a level or (red, green, blue), got {value!r}")
        red, green, blue = (whole(op, name, level, 0, 255) for level in value)
        return red, green, blue
    return whole(op, name, value, 0, 255)


def refuse_colour_on_grey(op: Op, name: str, value: Any, channels: int) -> None:
    """Raise ValueError when `value` has a number per colour, and the image has one channel."""
    if isinstance(value, tuple) and len(value) != channels:
        raise ValueError(
            f"{op_name(type(op))}: {name} {value!r} has {len(value)} numbers, the image {channels} channel(s)"
        )
