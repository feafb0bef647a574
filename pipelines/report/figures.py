"""Figures as people read them: three digits, a unit, and "not measured" where there is none."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

NOT_MEASURED = "not measured"
NEVER = "never"

_JOULES = (("µJ", 1e-6), ("mJ", 1e-3), ("J", 1.0), ("kJ", 1e3), ("MJ", 1e6), ("GJ", 1e9))
_GRAMS = (("µg", 1e-6), ("mg", 1e-3), ("g", 1.0), ("kg", 1e3), ("t", 1e6))
_BYTES = (("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12))
_COUNTS = (("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9))
_SECONDS = (("µs", 1e-6), ("ms", 1e-3), ("s", 1.0))
_SMALLEST_IN_UNIT = 0.01  # below, a column's common unit hides the figure behind zeros
_TURNS_TEXT = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_KINDS = {"measured": "measured", "user": "given"}


def visible(value: Any) -> Any:
    """Return JSON values whose texts show what would act or vanish: control, direction and undecodable characters are escaped."""
    if isinstance(value, str):
        return "".join(char if _shows(char) else char.encode("unicode_escape").decode() for char in value)
    if isinstance(value, Mapping):
        return {visible(key): visible(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [visible(item) for item in value]
    return value


def _shows(char: str) -> bool:
    return char not in _TURNS_TEXT and unicodedata.category(char) not in ("Cc", "Cs", "Cn", "Co", "Zl", "Zp")


def kind(method: str) -> str:
    """Return how a figure with this method was obtained: measured, given by the user, or modelled, as a sum of kinds is too."""
    parts = {_KINDS.get(part.partition(":")[0], "modelled") for part in method.split("+")}
    return parts.pop() if len(parts) == 1 else "modelled"


def number(value: float, significant: int = 3) -> str:
    """Return a number with so many digits that count, never with an exponent."""
    rounded = float(f"{value:.{significant - 1}e}")  # first, since rounding may carry: 9.996 is 10.0
    if rounded == 0:
        return "0"
    decimals = max(0, significant - 1 - math.floor(math.log10(abs(rounded))))
    return f"{value:,.{decimals}f}"


def joules(value_j: float | None, like_j: float | None = None) -> str:
    """Return an energy with its unit; `like_j` is the largest of the column, whose unit is taken unless it hides the figure."""
    return _scaled(value_j, _JOULES, like_j)


def joules_range(energy: Mapping[str, float], like_j: float | None = None) -> str:
    """Return ``value (low to high)`` of an energy, all in the unit of the value."""
    unit = _unit(energy["value"], _JOULES, like_j)
    low, high = (number(energy[end] / unit[1]) for end in ("low", "high"))
    return f"{number(energy['value'] / unit[1])} {unit[0]} ({low} to {high})"


def largest(values: Iterable[float]) -> float:
    """Return the largest of the values; 0 without any."""
    return max(values, default=0.0)


def grams(value_g: float | None) -> str:
    """Return a mass with its unit."""
    return _scaled(value_g, _GRAMS)


def data_size(value_bytes: float | None) -> str:
    """Return an amount of data, in units of 1000."""
    return _scaled(value_bytes, _BYTES)


def seconds(value_s: float) -> str:
    """Return a duration."""
    return _scaled(value_s, _SECONDS)


def count(value: float) -> str:
    """Return a whole number with its thousands apart."""
    return f"{value:,.0f}"


def answer(value: bool | None) -> str:
    """Return yes or no; a dash where nothing was asked."""
    return "-" if value is None else "yes" if value else "no"


def short_count(value: float) -> str:
    """Return a count in thousands, millions or billions where it is large."""
    return _scaled(value, _COUNTS).rstrip()


def _unit(value: float, units: tuple[tuple[str, float], ...], like: float | None = None) -> tuple[str, float]:
    if like is not None:
        common = _unit(like, units)
        if value == 0 or abs(value) >= _SMALLEST_IN_UNIT * common[1]:
            return common
    if value == 0:
        return next(unit for unit in units if unit[1] == 1.0)
    rounded = abs(float(f"{value:.2e}"))
    return next((unit for unit in reversed(units) if rounded >= unit[1]), units[0])


def _scaled(value: float | None, units: tuple[tuple[str, float], ...], like: float | None = None) -> str:
    if value is None:
        return NOT_MEASURED
    name, size = _unit(value, units, like)
    return f"{number(value / size)} {name}"


def share(value: float) -> str:
    """Return a share of 1 as a percentage with one decimal."""
    return f"{value:.1%}"


def share_range(value: float, low: float, high: float) -> str:
    """Return ``value (low to high)`` of a share."""
    return f"{share(value)} ({share(low)} to {share(high)})"


def plain_ratio(value: float) -> str:
    """Return a ratio: three decimals, more where it is smaller, none that do not count where it is large."""
    return f"{value:.3f}" if 0.01 <= value < 10 else number(value, 2 if value < 1 else 3)


def ratio_range(ratio: Mapping[str, Any]) -> str:
    """Return ``value (low to high)`` of a ratio, or why it has no interval."""
    if ratio["low"] is None or ratio["high"] is None:
        return f"{plain_ratio(ratio['value'])} (one block, no interval)"
    return f"{plain_ratio(ratio['value'])} ({plain_ratio(ratio['low'])} to {plain_ratio(ratio['high'])})"


def change(ratio: float) -> str:
    """Say a ratio as ``42% less`` or ``13% more``."""
    return f"{_percent(abs(1 - ratio))} {'less' if ratio < 1 else 'more'}"


def change_range(ratio: Mapping[str, Any]) -> str:
    """Say a ratio's 95% interval as a change, or that there is none."""
    low, high = ratio["low"], ratio["high"]
    if low is None or high is None:
        return "one block, no interval"
    if high < 1:
        return f"95% interval {_percent(1 - high)} to {change(low)}"
    if low > 1:
        return f"95% interval {_percent(low - 1)} to {change(high)}"
    return f"95% interval {change(low)} to {change(high)}"


def _percent(size: float) -> str:
    if 0 < size < 0.0005:
        return "under 0.1%"
    # near 0 and near 1 the whole percents of an interval's ends would be the same
    decimals = 1 if size < 0.0995 or 0.9 < size < 0.9995 else 2 if 0.9995 <= size < 1 else 0
    return f"{size:,.{decimals}%}"


def epochs_to(paid: Mapping[str, Any], ratio: Mapping[str, Any]) -> str:
    """Say after how many epochs a build is paid back, with the ends of the interval where the ratio has one."""
    centre, low, high = (NEVER if paid[end] is None else number(paid[end]) for end in ("epochs", "low", "high"))
    text = centre if centre == NEVER else f"{centre} epochs"
    # an end that is None means never only where there is an interval
    if ratio["low"] is None or ratio["high"] is None:
        return f"{text} (one block, no interval)"
    return text if low == high == centre else f"{text} ({low} to {high})"
