"""The base classes of ops, and what a custom op must satisfy."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from joulecache.transforms.coordinates import Coordinates
from joulecache.transforms.images import Array
from joulecache.transforms.ops.arguments import number, op_name, plain
from joulecache.transforms.randomness import MAX_WORDS

Drawn = tuple[int, ...]
"""An op's random parameters for one image."""

MOVES = ("mask", "boxes", "points")
"""The methods that say how targets move with the pixels."""

_BUILT_IN_MODULES = __name__.removesuffix("base")


def _is_built_in(member: object) -> bool:
    """Return whether a class or method is defined in this package."""
    return str(getattr(member, "__module__", "")).startswith(_BUILT_IN_MODULES)


class Op:
    """One transform of an image: a frozen dataclass whose fields are the op's arguments.

    Built-in and custom ops have the same interface. `draw` turns random words into parameters; `pixels` computes the result
    from an image and these parameters. An op that changes the size of images overrides `output_size`, and `target` if all
    results have the same size. An op that changes the channels overrides `output_channels`.

    An op that moves pixels says with `mask`, `boxes` and `points` how the targets move with them; one that leaves every pixel in its
    place derives from `Photometric`. A custom op that says neither runs only where an image has no such targets.

    Arguments may be lists, NumPy scalars and arrays: `__post_init__` finds them as tuples and Python numbers.

    Custom ops receive read-only arrays and return arrays. A custom op that derives from a built-in one and overrides `pixels`
    receives the random words, unless it overrides `draw` too.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Invert(Op):
    ...     random_words = 1
    ...     def draw(self, words, height, width):
    ...         return (words[0] % 2,)
    ...     def pixels(self, image, drawn):
    ...         return 255 - image if drawn[0] else image
    >>> from joulecache.transforms import parse
    >>> str(parse("decode|invert", ops={"invert": Invert}))
    'decode|invert'

    An op that mirrors along the diagonal, with all that moves:

    >>> @dataclass(frozen=True)
    ... class Transpose(Op):
    ...     def output_size(self, height, width):
    ...         return width, height
    ...     def pixels(self, image, drawn):
    ...         return image.swapaxes(0, 1)
    ...     def mask(self, mask, drawn):  # uint8 [H, W, 1]
    ...         return mask.swapaxes(0, 1)
    ...     def boxes(self, boxes, drawn, size):  # float32 [n, 4]: left, top, right, bottom
    ...         return boxes[:, [1, 0, 3, 2]]
    ...     def points(self, points, drawn, size):  # float32 [n, 3]: x, y, visibility
    ...         return points[:, [1, 0, 2]]
    >>> import numpy as np
    >>> from joulecache.transforms import BoxesTarget
    >>> chain = parse("decode|transpose", ops={"transpose": Transpose})
    >>> box = BoxesTarget(np.array([[0, 10, 40, 20]], np.float32), np.array([3]))
    >>> pixels, (moved,) = chain.with_targets(np.zeros((60, 80, 3), np.uint8), [box])
    >>> pixels.shape, moved.boxes.tolist()
    ((80, 60, 3), [[10.0, 0.0, 20.0, 40.0]])

    Attributes:
        version: Increment it when the pixels of the op change, so that caches built with the old version are rebuilt.
        accepts_alpha: Whether the op accepts images with an alpha channel, ``[H, W, 4]``.
        random_words: Number of random 32-bit words per draw, at most 1024; 0 for a deterministic op.
        draws_by_row: Whether `boxes` and `points` of a built-in op accept one draw per row: int64 ``[n]`` in place of each integer.
        typical: Arguments for which `joulecache transforms` measures the cost of a built-in op.
    """

    version: ClassVar[int] = 1
    accepts_alpha: ClassVar[bool] = False
    random_words: ClassVar[int] = 0
    draws_by_row: ClassVar[bool] = False
    typical: ClassVar[tuple[object, ...]] = ()

    def __init_subclass__(cls) -> None:
        """Reset inherited methods that no longer match what the class overrides, and make `__post_init__` find plain arguments."""
        super().__init_subclass__()
        defined = vars(cls)
        if "__post_init__" in defined:
            cls.__post_init__ = _with_plain_arguments(defined["__post_init__"])  # type: ignore[method-assign]
        if "words" in defined:  # the old name of `random_words`
            cls.random_words = defined["words"]
        stale = {"draw_batch"} if "draw" in defined else set()
        if "pixels" in defined and not _is_built_in(cls):
            stale |= {name for name in ("draw", "draw_batch", "for_validation") if _is_built_in(getattr(cls, name))}
        if {"pixels", "apply"} & defined.keys() and not _is_built_in(cls):
            stale |= {name for name in MOVES if _is_built_in(getattr(cls, name))}
        for name in stale - defined.keys():
            setattr(cls, name, getattr(Op, name))

    def __post_init__(self) -> None:
        """Replace lists and arrays by tuples, and NumPy scalars by Python numbers: equal arguments have one text."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if field.init:
                object.__setattr__(self, field.name, plain(getattr(self, field.name)))

    @property
    def random(self) -> bool:
        """Whether two draws can differ."""
        return self.random_words > 0

    @property
    def target(self) -> tuple[int, int] | None:
        """The (height, width) of all results, or None if it depends on the image."""
        return None

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the result for an input of this size; raise ValueError if it is unsupported."""
        return height, width

    def output_channels(self, channels: int) -> int:
        """Return the number of output channels for a number of input channels; raise ValueError if it is unsupported."""
        return channels

    def for_validation(self) -> tuple[Op, ...]:
        """Return the ops that replace this one in the validation chain."""
        return () if self.random else (self,)

    def draw(self, words: Sequence[int], height: int, width: int, /) -> Drawn:
        """Turn random words into the parameters of `pixels`; by default, the words themselves.

        Args:
            words: `random_words` integers in [0, 2**32).
            height: Height of the input, in pixels.
            width: Width of the input, in pixels.
        """
        return tuple(words)

    def draw_batch(self, words: NDArray[np.int64], height: int, width: int, /) -> list[Drawn]:
        """Return `draw` for every row of `words`, int64 ``[B, random_words]``, for images of one size."""
        return [self.draw(row, height, width) for row in words.tolist()]

    def pixels(self, image: Array, drawn: Drawn, /) -> Array:
        """Compute the result.

        Args:
            image: uint8 ``[H, W, C]``. Do not modify it.
            drawn: The result of `draw`.

        Returns:
            uint8 of the shape given by `output_size` and `output_channels`; may be a view of the input.
        """
        raise NotImplementedError

    def mask(self, mask: Array, drawn: Drawn, /) -> Array:
        """Move a mask with the pixels of its image, without mixing ids.

        Args:
            mask: Class ids, uint8 ``[H, W, 1]``. Do not modify it.
            drawn: The result of `draw`, which `pixels` receives too.

        Returns:
            uint8 ``[*output_size, 1]``; may be a view of the input.
        """
        raise NotImplementedError

    def boxes(self, boxes: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        """Move boxes with the pixels. They are then clipped to the result, and those that are less than a pixel high or wide dropped.

        Args:
            boxes: Left, top, right, bottom in pixels, float32 ``[n, 4]``. Do not modify them.
            drawn: The result of `draw`.
            size: (height, width) of the input.

        Returns:
            float32 ``[n, 4]``, in the same order.
        """
        raise NotImplementedError

    def points(self, points: Coordinates, drawn: Drawn, size: tuple[int, int], /) -> Coordinates:
        """Move points with the pixels. The visibility of those that lie outside the result then becomes 0.

        Args:
            points: x, y in pixels and visibility, float32 ``[n, 3]``. Do not modify them.
            drawn: The result of `draw`.
            size: (height, width) of the input.

        Returns:
            float32 ``[n, 3]``, in the same order.
        """
        raise NotImplementedError


class Photometric(Op):
    """An op that changes levels and leaves every pixel in its place: masks, boxes and points stay as they are."""


def _with_plain_arguments(check: Callable[..., None]) -> Callable[..., None]:
    """Return a `__post_init__` that makes the arguments plain before it checks them."""

    @functools.wraps(check)
    def make_plain_and_check(self: Op, *args: object) -> None:
        Op.__post_init__(self)
        check(self, *args)

    return make_plain_and_check


def draw_columns(op: Op, words: NDArray[np.int64], height: int, width: int, /) -> list[Drawn]:
    """Call `draw` once on whole columns of words: the `draw_batch` of ops whose `draw` is plain arithmetic."""
    columns = op.draw(cast("Sequence[int]", words.T), height, width)
    return list(zip(*(column.tolist() for column in cast("tuple[NDArray[np.int64], ...]", columns)), strict=True))


def word_columns(ops: Sequence[Op]) -> Iterator[tuple[Op, slice]]:
    """Yield each op with the slice that holds its words among the random words of all `ops`."""
    stop = 0
    for op in ops:
        start, stop = stop, stop + op.random_words
        yield op, slice(start, stop)


class RandomApply(Op):
    """An op that is applied with a probability and otherwise leaves the image unchanged.

    Attributes:
        probability: From 0 to 1.
    """

    random_words: ClassVar[int] = 1
    probability: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "probability", number(self, "probability", self.probability, 0.0, 1.0))

    @property
    def random(self) -> bool:
        """Whether two draws can differ: not with a probability of 0 or 1."""
        return 0 < self.probability < 1

    def draw(self, words: Sequence[int], height: int, width: int, /) -> Drawn:
        """Return (0 or 1,): whether to apply the op."""
        return ((words[0] < round(self.probability * 2**32)) * 1,)

    draw_batch = draw_columns

    def pixels(self, image: Array, drawn: Drawn, /) -> Array:
        """Apply the op if it was drawn."""
        return self.apply(image) if drawn[0] else image

    def apply(self, image: Array) -> Array:
        """Compute the result where the op is applied."""
        raise NotImplementedError


def describe(kind: type[Op]) -> tuple[str, str]:
    """Return the signature of an op with its defaults, and the summary line of its docstring."""
    arguments = [
        field.name if field.default is dataclasses.MISSING else f"{field.name}={_short(field.default)}"
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
    ]
    summary = (kind.__doc__ or "").strip().partition("\n")[0]
    return f"{op_name(kind)}({', '.join(arguments)})" if arguments else op_name(kind), summary


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


# Custom ops -----------------------------------------------------------------------------------------------------------


def ops_of(module: ModuleType) -> dict[str, type[Op]]:
    """Return the ops that a module defines, by name.

    Imported classes and names that begin with an underscore are skipped.

    Raises:
        ValueError: The module defines no op, or an invalid one.
    """
    ops = {
        op_name(kind): kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Op) and kind.__module__ == module.__name__
        if not kind.__name__.startswith("_")
    }
    if not ops:
        raise ValueError(f"module {module.__name__} defines no op: write a frozen dataclass that derives from Op")
    check_custom_ops(ops)
    return ops


def check_custom_ops(ops: Mapping[str, type[Op]]) -> None:
    """Raise ValueError unless every class is a valid op under its own name."""
    for name, kind in ops.items():
        if not isinstance(kind, type) or not issubclass(kind, Op):
            raise ValueError(f"op {name!r} must be a class that derives from Op, got {kind!r}")
        if op_name(kind) != name:
            raise ValueError(f"op {name!r} must be listed as {op_name(kind)!r}, the name of its class {kind.__name__}")
        check_custom_op(kind)


def check_custom_op(kind: type[Op]) -> None:
    """Raise ValueError unless a class is a valid op."""
    name = op_name(kind)
    dataclass_params = vars(kind).get("__dataclass_params__")
    if dataclass_params is None or not dataclass_params.frozen:
        raise ValueError(
            f"{name}: an op is a frozen dataclass: put @dataclass(frozen=True) before class {kind.__name__}"
        )
    for attribute, low, high in (("version", 1, 2**31), ("random_words", 0, MAX_WORDS)):
        value = getattr(kind, attribute)
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{name}: {attribute} must be an integer from {low} to {high}, got {value!r}")
    if kind.pixels is Op.pixels:
        raise ValueError(f"{name}: class {kind.__name__} must define pixels(image, drawn), which computes the op")
