"""What may be claimed from measured blocks: ratios with intervals, break-even epochs, verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import stdtrit

FEWEST_BLOCKS = 5  # below, nothing is claimed
FEWEST_SEEDS = 3  # the same, of accuracies
MARGIN = 0.005  # of accuracy: half a point less is still "not inferior"
CONFIDENCE = 0.95

Finding = Literal["saves", "costs", "no difference shown", "inconclusive"]
Inferiority = Literal["not inferior", "inferior", "not shown"]


@dataclass(frozen=True)
class Ratio:
    """A geometric-mean ratio with its 95% interval; the interval is None for a single block."""

    value: float
    low: float | None
    high: float | None
    blocks: int

    def contains(self, value: float) -> bool:
        """Say whether the interval holds `value`; without an interval it holds everything."""
        return self.low is None or self.high is None or self.low <= value <= self.high


@dataclass(frozen=True)
class Mean:
    """An arithmetic mean with its 95% interval; the interval is None for a single value."""

    value: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class BreakEven:
    """Epochs after which a one-time cost is paid back, with the ends of the interval; None is never."""

    epochs: float | None
    low: float | None
    high: float | None


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Return the ratio of two series that were measured in the same blocks.

    The interval is Student's t on the logarithms of the blocks' ratios: with few blocks a bootstrap claims too often. Raises
    ValueError for series that are empty, of unequal length or not positive.
    """
    if len(numerators) != len(denominators) or not numerators:
        raise ValueError(f"a ratio needs pairs, got {len(numerators)} and {len(denominators)} values")
    if min(*numerators, *denominators) <= 0:
        raise ValueError(f"a ratio needs positive values, got {min(*numerators, *denominators)}")
    logs = [math.log(a / b) for a, b in zip(numerators, denominators, strict=True)]
    centre = mean_of(logs)
    if centre.low is None or centre.high is None:
        return Ratio(math.exp(centre.value), None, None, 1)
    return Ratio(math.exp(centre.value), math.exp(centre.low), math.exp(centre.high), len(logs))


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean of values with Student's t interval; ValueError without any."""
    if not values:
        raise ValueError("a mean needs values, got none")
    centre = statistics.fmean(values)
    if len(values) == 1:
        return Mean(centre, None, None, 1)
    quantile = float(stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2))
    reach = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return Mean(centre, centre - reach, centre + reach, len(values))


def unpaired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Return the ratio of two series that were measured apart: of their geometric means, with Welch's interval on the logarithms.

    What differed between the two occasions is in it, and in no interval. `blocks` is the number of the shorter series; the
    interval is None where one has a single value. Raises ValueError for series that are empty or not positive.
    """
    if not numerators or not denominators or min(*numerators, *denominators) <= 0:
        raise ValueError(f"a ratio needs positive values, got {list(numerators)} and {list(denominators)}")
    series = [[math.log(value) for value in values] for values in (numerators, denominators)]
    centre = statistics.fmean(series[0]) - statistics.fmean(series[1])
    fewest = min(map(len, series))
    if fewest == 1:
        return Ratio(math.exp(centre), None, None, 1)
    parts = [statistics.variance(logs) / len(logs) for logs in series]
    variance = sum(parts)
    reach = 0.0
    if variance:
        # Welch and Satterthwaite's degrees of freedom
        freedom = variance**2 / sum(part**2 / (len(logs) - 1) for part, logs in zip(parts, series, strict=True))
        reach = float(stdtrit(freedom, 0.5 + CONFIDENCE / 2)) * math.sqrt(variance)
    return Ratio(math.exp(centre), math.exp(centre - reach), math.exp(centre + reach), fewest)


def break_even(extra_j: float, other_epoch_j: float, ratio: Ratio) -> BreakEven:
    """Return after how many epochs an arm has paid back what it cost more before the first.

    `extra_j`: its one-time cost less the other arm's. `other_epoch_j`: the other arm's energy per epoch. `ratio`: its energy
    per epoch over the other's. Epochs are ``extra / (other * (1 - ratio))``; the interval comes from the ratio's.
    """

    def epochs(value: float | None) -> float | None:
        if value is None:
            return None
        saving = other_epoch_j * (1 - value)
        if saving <= 0:
            return None if extra_j > 0 else 0.0
        return max(0.0, extra_j / saving)

    return BreakEven(epochs(ratio.value), epochs(ratio.low), epochs(ratio.high))


def finding(ratio: Ratio, control: Ratio, corners: Sequence[float]) -> tuple[Finding, str]:
    """Say what a ratio of energies allows to claim, and why.

    `control` is the A/A ratio: the same arm against itself. `corners` are the ratios of total energy at every end of the
    coefficients: a claim must not depend on which of them is true.
    """
    if ratio.blocks < FEWEST_BLOCKS:
        return "inconclusive", f"{ratio.blocks} blocks were measured, a claim needs {FEWEST_BLOCKS}"
    if not control.contains(1.0):
        return "inconclusive", "the control failed: the same arm measured twice differs from itself"
    assert ratio.low is not None
    assert ratio.high is not None
    if ratio.high < 1 and max(corners) < 1:
        return "saves", "the interval lies below 1, for every value of the coefficients"
    if ratio.low > 1 and min(corners) > 1:
        return "costs", "the interval lies above 1, for every value of the coefficients"
    if ratio.contains(1.0):
        return "no difference shown", "the interval contains 1"
    return "no difference shown", "the sign depends on the value of the coefficients"


def inferiority(differences: Sequence[float], margin: float = MARGIN) -> tuple[Mean, Inferiority, str]:
    """Return how far accuracies differ from others, on average, whether they are as good within a margin, and why.

    `differences`, shares of 1, are one for each seed, below 0 where the accuracy is lower. "not inferior" needs the whole 95% interval
    above ``-margin``, "inferior" the whole of it below. Where all seeds differ by the same there is no interval that could show anything:
    so it is with few held-out images, or where all of them are always right. Raises ValueError without differences.
    """
    mean, points = mean_of(differences), f"{100 * margin:g} points"
    if len(differences) < FEWEST_SEEDS:
        return mean, "not shown", f"{len(differences)} seeds were trained, a claim needs {FEWEST_SEEDS}"
    assert mean.low is not None
    assert mean.high is not None
    if max(differences) == min(differences):
        return mean, "not shown", "all seeds differ by the same, so nothing says how far others would"
    if mean.low > -margin:
        return mean, "not inferior", f"the interval lies above -{points}"
    if mean.high < -margin:
        return mean, "inferior", f"the interval lies below -{points}"
    return mean, "not shown", f"the interval holds -{points}"
