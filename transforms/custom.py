"""Find custom ops and run their methods: on read-only arrays, with one-line errors, and with checks of what they return."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from joulecache.transforms.coordinates import Coordinates
from joulecache.transforms.images import Array
from joulecache.transforms.ops import BUILT_IN
from joulecache.transforms.ops.arguments import op_name
from joulecache.transforms.ops.base import Drawn, Op

_Level = TypeVar("_Level", np.uint8, np.float32)


def custom_ops(ops: Iterable[Op]) -> dict[str, type[Op]]:
    """Return the custom ones of some ops by name, as `parse` accepts them."""
    return {op_name(type(op)): type(op) for op in ops if type(op) not in BUILT_IN}


def draw(op: Op, words: Sequence[int], height: int, width: int) -> Drawn:
    """Run `draw`."""
    with _failures(op):
        return op.draw(words, height, width)


def pixels(op: Op, image: Array, drawn: Drawn) -> Array:
    """Run `pixels`."""
    height, width, channels = image.shape
    with _failures(op):
        expected = (*op.output_size(height, width), op.output_channels(channels))
        result = op.pixels(_read_only(image), drawn)
    return _checked(op, result, np.uint8, expected)


def mask(op: Op, ids: Array, drawn: Drawn) -> Array:
    """Run `mask`."""
    with _failures(op):
        result = op.mask(_read_only(ids), drawn)
    return _checked(op, result, np.uint8, (*op.output_size(*ids.shape[:2]), 1), " from mask()")


def boxes(op: Op, rows: Coordinates, drawn: Drawn, size: tuple[int, int]) -> Coordinates:
    """Run `boxes`."""
    with _failures(op):
        result = op.boxes(_read_only(rows), drawn, size)
    return _checked(op, result, np.float32, rows.shape, " from boxes()")


def points(op: Op, rows: Coordinates, drawn: Drawn, size: tuple[int, int]) -> Coordinates:
    """Run `points`."""
    with _failures(op):
        result = op.points(_read_only(rows), drawn, size)
    return _checked(op, result, np.float32, rows.shape, " from points()")


def _read_only(array: NDArray[_Level]) -> NDArray[_Level]:
    view = array.view()
    view.flags.writeable = False  # it may be a view of a mapped cache file
    return view


@contextmanager
def _failures(op: Op) -> Iterator[None]:
    try:
        yield
    except MemoryError:  # no fault of the image
        raise
    except Exception as error:  # user code may raise anything
        raise ValueError(f"{op_name(type(op))} failed: {type(error).__name__}: {error}".splitlines()[0]) from error


def _checked(
    op: Op, result: NDArray[_Level], dtype: DTypeLike, shape: tuple[int, ...], method: str = ""
) -> NDArray[_Level]:
    if not isinstance(result, np.ndarray) or result.dtype != dtype or result.shape != shape:
        got = f"{result.dtype} {result.shape}" if isinstance(result, np.ndarray) else repr(type(result))
        raise ValueError(
            f"{op_name(type(op))} must return a {np.dtype(dtype)} array of shape {shape}{method}, got {got}"
        )
    return result
