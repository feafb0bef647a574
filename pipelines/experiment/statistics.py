"""Ratios of energies measured in blocks, with their intervals, and break-even epochs."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from joulecache.pipelines.core.codec import Amount, Count, Positive
from joulecache.pipelines.core.statistics import CONFIDENCE, mean_of


@dataclass(frozen=True)
class Ratio:
    """A ratio of geometric means with its 95% interval.

    Attributes:
        value: The ratio.
        low: Lower end of the interval; None for a single block.
        high: Upper end of the interval; None for a single block.
        blocks: Number of blocks.
    """

    value: Positive
    low: Positive | None
    high: Positive | None
    blocks: Count

    def contains(self, value: float) -> bool:
        """Return whether the interval contains `value`; without an interval it contains everything."""
        return self.low is None or self.high is None or self.low <= value <= self.high


@dataclass(frozen=True)
class BreakEven:
    """Epochs after which a one-time cost is paid back; None is never.

    Attributes:
        epochs: Epochs at the ratio's value.
        low: Epochs at the lower end of the ratio's interval; None too without an interval.
        high: Epochs at the upper end.
    """

    epochs: Amount | None
    low: Amount | None
    high: Amount | None


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float], together: int = 1) -> Ratio:
    """Return the ratio of two series that were measured in the same blocks; raise ValueError if they are not positive pairs.

    The interval is Student's t on the logarithms of the blocks' ratios: with few blocks, bootstrap intervals are too narrow. It holds
    at 95% for `together` such ratios at once: if each held alone, one of ten audits of four equal arms would claim a difference.
    """
    if len(numerators) != len(denominators) or not numerators:
        raise ValueError(f"a ratio needs pairs, got {len(numerators)} and {len(denominators)} values")
    if min(*numerators, *denominators) <= 0:
        raise ValueError(f"a ratio needs positive values, got {min(*numerators, *denominators)}")
    log = mean_of([math.log(a / b) for a, b in zip(numerators, denominators, strict=True)], together)
    if log.low is None or log.high is None:
        return Ratio(math.exp(log.value), None, None, 1)
    return Ratio(math.exp(log.value), math.exp(log.low), math.exp(log.high), log.count)


def unpaired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Return the ratio of two positive series measured on different occasions, with Welch's interval on the logarithms.

    Differences between the occasions affect the ratio, but the interval does not include them. `blocks` is the length of the
    shorter series. Raises ValueError if a series is empty or not positive.
    """
    if not numerators or not denominators or min(*numerators, *denominators) <= 0:
        raise ValueError(f"a ratio needs positive values, got {list(numerators)} and {list(denominators)}")
    a, b = ([math.log(value) for value in values] for values in (numerators, denominators))
    value = math.exp(statistics.fmean(a) - statistics.fmean(b))
    blocks = min(len(a), len(b))
    if blocks == 1:
        return Ratio(value, None, None, 1)
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # if neither series varies, the interval is NaN
        interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(CONFIDENCE)
    if math.isnan(interval.low):
        return Ratio(value, value, value, blocks)
    return Ratio(value, math.exp(interval.low), math.exp(interval.high), blocks)


def break_even(extra_j: float, other_epoch_j: float, ratio: Ratio) -> BreakEven:
    """Return the epochs after which an arm has paid back its one-time cost, `extra_j` more than the other arm's.

    Epochs are ``extra_j / (other_epoch_j * (1 - ratio))``, for the ratio of energies per epoch and the ends of its interval.
    """

    def epochs(value: float | None) -> float | None:
        if value is None:
            return None
        saving = other_epoch_j * (1 - value)
        if saving <= 0:
            return None if extra_j > 0 else 0.0
        return max(0.0, extra_j / saving)

    return BreakEven(epochs(ratio.value), epochs(ratio.low), epochs(ratio.high))
