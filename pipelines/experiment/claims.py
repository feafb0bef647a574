"""Claims that ratios of energies and differences of metrics support, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from joulecache.pipelines.core.quantities import number, plural
from joulecache.pipelines.core.statistics import Mean, mean_of
from joulecache.pipelines.experiment.statistics import Ratio
from joulecache.pipelines.models.metrics import ACCURACY, Metric

MIN_BLOCKS = 5
"""Minimum for a claim about energies."""
MIN_SEEDS = 3
"""Minimum for a claim about metrics."""
MARGIN = 0.005
"""An accuracy that is lower by this share of 1 is still "not inferior"."""
RELATIVE_MARGIN = 0.01
"""Any other metric that is worse by this share of its value is still "not inferior"."""

Finding = Literal["saves", "costs", "no difference shown", "inconclusive"]
Inferiority = Literal["not inferior", "inferior", "not shown"]


def finding(ratio: Ratio, control: Ratio, corners: Sequence[float]) -> tuple[Finding, str]:
    """Return the claim that a ratio of energies supports, and why.

    Args:
        ratio: The ratio of active energies.
        control: The A/A ratio: the reference against itself.
        corners: Ratios of total energy at every end of the coefficients; a claim must hold for all of them.
    """
    if ratio.blocks < MIN_BLOCKS:
        return "inconclusive", f"{plural(ratio.blocks, 'block')} measured, a claim needs {MIN_BLOCKS}"
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


def margin_of(metric: Metric, value: float) -> float:
    """Return how much worse than `value` a metric may be and still be "not inferior"."""
    return MARGIN if metric.is_accuracy else RELATIVE_MARGIN * abs(value)


def inferiority(
    differences: Sequence[float], margin: float = MARGIN, metric: Metric = ACCURACY
) -> tuple[Mean, Inferiority, str]:
    """Return the mean difference of a metric, one per seed, whether it shows inferiority, and why.

    "not inferior" needs the whole 95% interval on the better side of the margin, "inferior" the whole of it on the other. If all
    seeds differ by the same amount there is no interval: this happens with few held-out images, or if all of them are classified
    correctly. If nothing says which values are better, nothing is claimed.

    Raises:
        ValueError: There are no differences.
    """
    mean = mean_of(differences)
    if metric.higher_is_better is None:
        return mean, "not shown", f"whether a higher {metric.name} is better is unknown"
    if len(differences) < MIN_SEEDS:
        return mean, "not shown", f"{len(differences)} seeds were trained, a claim needs {MIN_SEEDS}"
    assert mean.low is not None
    assert mean.high is not None
    if max(differences) == min(differences):
        return mean, "not shown", "all seeds differ by the same amount, so their spread is unknown"
    worst, best, sign, better, worse = (mean.low, mean.high, "-", "above", "below")
    if not metric.higher_is_better:
        worst, best, sign, better, worse = (-mean.high, -mean.low, "+", "below", "above")
    limit = sign + (f"{100 * margin:g} points" if metric.is_accuracy else number(margin))
    if worst > -margin:
        return mean, "not inferior", f"the interval lies {better} {limit}"
    if best < -margin:
        return mean, "inferior", f"the interval lies {worse} {limit}"
    return mean, "not shown", f"the interval contains {limit}"
