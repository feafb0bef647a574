"""Means and proportions with their 95% intervals.

SciPy is imported on first use, which takes 0.2 s (`scipy.special`) to 0.7 s (`scipy.stats`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
"""The level of every interval."""


@dataclass(frozen=True)
class Mean:
    """An arithmetic mean with its 95% interval.

    Attributes:
        value: The mean.
        low: The lower end of the interval; None for a single value.
        high: The upper end of the interval; None for a single value.
        count: The number of values.
    """

    value: float
    low: float | None
    high: float | None
    count: int


def mean_of(values: Sequence[float], together: int = 1) -> Mean:
    """Return the mean of values with Student's t interval; raise ValueError without values.

    Args:
        values: The values.
        together: Number of means whose intervals hold together at 95%.
    """
    if not values:
        raise ValueError("a mean needs at least one value, got none")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Mean(mean, None, None, 1)
    half = student_t(len(values) - 1, together) * statistics.stdev(values) / math.sqrt(len(values))
    return Mean(mean, mean - half, mean + half, len(values))


def student_t(freedom: float, together: int = 1) -> float:
    """Return the two-sided quantile of Student's t distribution for degrees of freedom, which may be fractional.

    For intervals that hold together, each has Bonferroni's share of the error.
    """
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - (1 - CONFIDENCE) / 2 / together))


def proportion_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion as (low, high); raise ValueError for impossible counts."""
    from scipy import stats

    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"an interval needs at least 1 trial and from 0 to that many successes, got {successes} of {trials}"
        )
    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def is_at_chance(accuracy: float, images: int, chance: float) -> bool:
    """Return whether the interval of an accuracy, measured on some images, includes `chance` or lies below it."""
    return proportion_interval(round(accuracy * images), images)[0] <= chance
