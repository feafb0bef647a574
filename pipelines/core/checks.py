"""Argument checks. Each raises a one-line `ValueError` that says what was expected and ends with "got X"."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterable, Sequence

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


def check_integer(name: str, value: object, low: int = 1, high: int | None = None) -> int:
    """Return an integer argument; raise ValueError if it is not an integer, is a bool, or is out of range."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        limits = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be an integer {limits}, got {shown(value)}")
    return value


def check_number(
    name: str,
    value: object,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """Return a numeric argument, unconverted; raise ValueError if it is not a finite int or float, is a bool, or is out of range.

    The limits `low` and `high` are inclusive, `above` and `below` are exclusive.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not -sys.float_info.max <= value <= sys.float_info.max
        or (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
        or (below is not None and value >= below)
    ):
        raise ValueError(f"{name} must be {_number_limits(low, high, above, below)}, got {shown(value)}")
    return value


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


def check_flag(name: str, value: object) -> None:
    """Raise ValueError unless an argument is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
