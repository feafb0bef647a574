"""Format quantities: three digits and a unit, or "not measured"."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NOT_MEASURED = "not measured"
NEVER = "never"
NO_INTERVAL = "one block, no interval"
NO_BREAK = "\u00a0"
"""A space at which terminals do not break a line."""

_Units = tuple[tuple[str, float], ...]
_JOULES: _Units = (("µJ", 1e-6), ("mJ", 1e-3), ("J", 1.0), ("kJ", 1e3), ("MJ", 1e6), ("GJ", 1e9))
_GRAMS: _Units = (("µg", 1e-6), ("mg", 1e-3), ("g", 1.0), ("kg", 1e3), ("t", 1e6))
_BYTES: _Units = (("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12))
_COUNTS: _Units = (("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9))
_SECONDS: _Units = (("µs", 1e-6), ("ms", 1e-3), ("s", 1.0))
UNITS = tuple(name for names in (_JOULES, _GRAMS, _BYTES, _SECONDS) for name, _ in names)
"""Every unit that follows a number."""
_CLIPPED = " ..."
_SMALLEST_IN_UNIT = 0.01  # a smaller value does not use the common unit of its column: it would be mostly zeros
_BIDI_CONTROLS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_KINDS = {"measured": "measured", "user": "given"}


@dataclass(frozen=True)
class Spread:
    """A formatted value with its interval. `str` returns ``12.3 J (11.0 to 13.2)``.

    Attributes:
        value: The value, with its unit: "12.3 J".
        low: The lower end, in the unit of the value: "11.0"; "" without an interval.
        high: The upper end.
        note: Why there is no interval; "" if there is one, or if its width is 0.
    """

    value: str
    low: str = ""
    high: str = ""
    note: str = ""

    @property
    def interval(self) -> str:
        """The interval, "11.0 to 13.2", or why there is none."""
        return f"{self.low} to {self.high}" if self.low else self.note

    def __str__(self) -> str:
        return f"{self.value} ({self.interval})" if self.interval else self.value


def visible(text: str) -> str:
    """Escape control characters, text direction marks and undecodable characters."""
    return "".join(char if _shows(char) else char.encode("unicode_escape").decode() for char in text)


def clipped(text: str, most: int) -> str:
    """Return a text in one line of at most `most` characters. What is too long ends after a word, so that URLs and paths stay whole.

    Only a first word that is too long itself is cut.
    """
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    first = line[: most - len(_CLIPPED) + 1]
    return (first.rpartition(" ")[0] or first[:-1]) + _CLIPPED


def _shows(char: str) -> bool:
    return char not in _BIDI_CONTROLS and unicodedata.category(char) not in ("Cc", "Cs", "Cn", "Co", "Zl", "Zp")


def kind(method: str) -> str:
    """Return the kind of a method: measured, given (by the user) or modelled, which includes mixtures."""
    parts = {_KINDS.get(part.partition(":")[0], "modelled") for part in method.split("+")}
    return parts.pop() if len(parts) == 1 else "modelled"


# Numbers with a unit --------------------------------------------------------------------------------------------------


def number(value: float, significant: int = 3) -> str:
    """Return a number with `significant` digits, without an exponent."""
    rounded = float(f"{value:.{significant - 1}e}")  # first, since rounding may add a digit: 9.996 is 10.0
    if rounded == 0:
        return "0"
    decimals = max(0, significant - 1 - math.floor(math.log10(abs(rounded))))
    return f"{value:,.{decimals}f}"


def joules(value_j: float | None, like_j: float | None = None) -> str:
    """Return an energy in the unit that suits it, or in that of `like_j` (the largest of a column) if that is readable."""
    return _scaled(value_j, _JOULES, like_j)


def joules_range(value_j: float, low_j: float, high_j: float, like_j: float | None = None) -> Spread:
    """Return an energy with its bounds, all in the unit of the value."""
    name, size = _unit(value_j, _JOULES, like_j)
    return Spread(f"{number(value_j / size)} {name}", number(low_j / size), number(high_j / size))


def largest(values: Iterable[float]) -> float:
    """Return the largest value; 0 if there are none."""
    return max(values, default=0.0)


def grams(value_g: float | None) -> str:
    """Return a mass with its unit."""
    return _scaled(value_g, _GRAMS)


def data_size(value_bytes: float | None) -> str:
    """Return an amount of data, in units of 1000."""
    return _scaled(value_bytes, _BYTES)


def seconds(value_s: float | None) -> str:
    """Return a duration with its unit."""
    return _scaled(value_s, _SECONDS)


def count(value: float) -> str:
    """Return an integer with thousands separators."""
    return f"{value:,.0f}"


def plural(number: int, noun: str) -> str:
    """Return a number with its noun: "1 epoch", "30 epochs"."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def short_count(value: float) -> str:
    """Return a count, a large one in thousands (k), millions (M) or billions (G)."""
    return _scaled(value, _COUNTS).rstrip()


def answer(value: bool | None) -> str:
    """Return yes or no; a dash for None."""
    return "-" if value is None else "yes" if value else "no"


def _unit(value: float, units: _Units, like: float | None = None) -> tuple[str, float]:
    if like is not None:
        common = _unit(like, units)
        if value == 0 or abs(value) >= _SMALLEST_IN_UNIT * common[1]:
            return common
    if value == 0:
        return next(unit for unit in units if unit[1] == 1.0)
    rounded = abs(float(f"{value:.2e}"))
    return next((unit for unit in reversed(units) if rounded >= unit[1]), units[0])


def _scaled(value: float | None, units: _Units, like: float | None = None) -> str:
    if value is None:
        return NOT_MEASURED
    name, size = _unit(value, units, like)
    return f"{number(value / size)} {name}"


# Names ----------------------------------------------------------------------------------------------------------------


def listed(names: Sequence[str]) -> str:
    """Join names, as in "a, b and c"."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def shortened(names: Sequence[str], most: int, joint: str = ", ") -> str:
    """Join the first names, as in "a, b and 3 more"."""
    more = f" and {count(len(names) - most)} more" if len(names) > most else ""
    return f"{joint.join(names[:most])}{more}"


# Shares and ratios ----------------------------------------------------------------------------------------------------


def share(value: float) -> str:
    """Return a fraction as a percentage with one decimal."""
    return f"{value:.1%}"


def share_range(value: float, low: float, high: float) -> Spread:
    """Return a fraction as a percentage with its bounds."""
    return Spread(share(value), share(low), share(high))


def plain_ratio(value: float) -> str:
    """Return a ratio with three decimals from 0.01 to 10, else with two or three significant digits."""
    return f"{value:.3f}" if 0.01 <= value < 10 else number(value, 2 if value < 1 else 3)


def ratio_range(value: float, low: float | None, high: float | None) -> Spread:
    """Return a ratio with its interval; None for no interval."""
    if low is None or high is None:
        return Spread(plain_ratio(value), note=NO_INTERVAL)
    return Spread(plain_ratio(value), plain_ratio(low), plain_ratio(high))


def change(ratio: float) -> str:
    """Return a ratio as a change: ``42% less``, ``13% more``."""
    return f"{_percent(abs(1 - ratio))} {'less' if ratio < 1 else 'more'}"


def change_range(low: float | None, high: float | None) -> str:
    """Return the 95% interval of a ratio as a change; None for no interval."""
    if low is None or high is None:
        return NO_INTERVAL
    if high < 1:
        return f"95% interval {_percent(1 - high)} to {change(low)}"
    if low > 1:
        return f"95% interval {_percent(low - 1)} to {change(high)}"
    return f"95% interval {change(low)} to {change(high)}"


def _percent(size: float) -> str:
    if 0 < size < 0.0005:
        return "under 0.1%"
    # near 0% and 100%, so that both ends of an interval differ
    decimals = 1 if size < 0.0995 or 0.9 < size < 0.9995 else 2 if 0.9995 <= size < 1 else 0
    return f"{size:,.{decimals}%}"


def epochs_range(epochs: float | None, low: float | None, high: float | None, *, has_interval: bool) -> Spread:
    """Return the number of epochs after which a build pays off.

    Args:
        epochs: The estimate; None for never.
        low: The lower end of its interval; None for never.
        high: The upper end; None for never.
        has_interval: False for a single block, which has no interval.
    """
    centre, first, last = (NEVER if end is None else number(end) for end in (epochs, low, high))
    text = centre if centre == NEVER else f"{centre} epochs"
    if not has_interval:
        return Spread(text, note=NO_INTERVAL)
    return Spread(text) if first == last == centre else Spread(text, first, last)
