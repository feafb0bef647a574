"""Argument checks. Each raises a one-line `ValueError` that says what was expected and ends with "got X"."""

from __future__ import annotations

import dataclasses
import os
import reprlib
import sys
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Item = TypeVar("Item")

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlong = 40


def shown(value: object) -> str:
    """Return a short `repr` of any value, however long, deep or large it is."""
    try:
        return _SHORT.repr(value)
    except (ValueError, RecursionError):  # such as an integer of over 4,300 digits
        return f"a {type(value).__name__} that is too large to show"


def plain(value: object) -> object:
    """Return NumPy's numbers as Python's, which JSON needs, also those in a tuple; other values unchanged."""
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if isinstance(value, int | float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def make_plain(config: DataclassInstance) -> None:
    """Replace the fields of a frozen dataclass by their `plain` values, before they are checked."""
    for field in dataclasses.fields(config):
        object.__setattr__(config, field.name, plain(getattr(config, field.name)))


def check_integer(name: str, value: object, low: int = 1, high: int | None = None) -> int:
    """Return an integer argument, NumPy's too, as an int; raise ValueError if it is another type, a bool, or out of range."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int) or number < low or (high is not None and number > high):
        limits = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be an integer {limits}, got {shown(value)}")
    return number


def check_number(
    name: str,
    value: object,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """Return a numeric argument, NumPy's too, as an int or float; raise ValueError if it is not finite, a bool, or out of range.

    The limits `low` and `high` are inclusive, `above` and `below` are exclusive.
    """
    number = plain(value)
    if (
        isinstance(number, bool)
        or not isinstance(number, int | float)
        or not -sys.float_info.max <= number <= sys.float_info.max
        or (low is not None and number < low)
        or (high is not None and number > high)
        or (above is not None and number <= above)
        or (below is not None and number >= below)
    ):
        raise ValueError(f"{name} must be {_number_limits(low, high, above, below)}, got {shown(value)}")
    return number


def _number_limits(low: float | None, high: float | None, above: float | None, below: float | None) -> str:
    if low is not None and high is not None:
        return f"a number from {low:g} to {high:g}"
    limits = (("of at least", low), ("above", above), ("of at most", high), ("below", below))
    conditions = [f"{word} {limit:g}" for word, limit in limits if limit is not None]
    return f"a finite number {' and '.join(conditions)}".rstrip()


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise ValueError unless an argument is one of the allowed words."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {shown(value)}")


def check_choices(name: str, values: Sequence[str], allowed: Sequence[str], needed: Iterable[str] = ()) -> None:
    """Raise ValueError unless an argument lists allowed words, each once, and includes all that are needed."""
    got = shown(values) if isinstance(values, str) else ", ".join(map(str, values)) or "none"
    if (
        isinstance(values, str)
        or not values
        or len(set(values)) != len(values)
        or any(value not in allowed for value in values)
    ):
        raise ValueError(f"{name} must be some of {', '.join(allowed)}, each once, got {got}")
    missing = [word for word in needed if word not in values]
    if missing:
        raise ValueError(f"{name} must include {', '.join(missing)}, got {got}")


def check_text(name: str, value: object, *, allow_empty: bool = False) -> None:
    """Raise ValueError unless an argument is a string, which may only be empty with `allow_empty`."""
    if not isinstance(value, str) or not (value or allow_empty):
        kind = "a string" if allow_empty else "a non-empty string"
        raise ValueError(f"{name} must be {kind}, got {shown(value)}")


def check_sequence(name: str, value: Iterable[Item]) -> tuple[Item, ...]:
    """Return the items of an argument; raise ValueError for a single item, among them a string, whose letters are not meant."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list, got {shown(value)}")
    return tuple(value)


def check_path(name: str, value: object) -> str:
    """Return a path or URL as text; raise ValueError unless it is a string or an `os.PathLike` of one."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text:
        raise ValueError(f"{name} must be a path, got {shown(value)}")
    return text


def check_flag(name: str, value: object) -> None:
    """Raise ValueError unless an argument is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
