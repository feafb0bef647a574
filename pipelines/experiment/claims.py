"""Claims that ratios of energies and differences of accuracies support, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from joulecache.pipelines.core.quantities import plural
from joulecache.pipelines.core.statistics import Mean, mean_of
from joulecache.pipelines.experiment.statistics import Ratio

MIN_BLOCKS = 5
"""Minimum for a claim about energies."""
MIN_SEEDS = 3
"""Minimum for a claim about accuracies."""
MARGIN = 0.005
"""An accuracy that is lower by this share of 1 is still "not inferior"."""

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


def inferiority(differences: Sequence[float], margin: float = MARGIN) -> tuple[Mean, Inferiority, str]:
    """Return the mean difference of accuracies, one per seed, as shares of 1, whether it shows inferiority, and why.

    "not inferior" needs the whole 95% interval above ``-margin``, "inferior" the whole of it below. If all seeds differ by the
    same amount there is no interval: this happens with few held-out images, or if all of them are classified correctly.

    Raises:
        ValueError: There are no differences.
    """
    mean, points = mean_of(differences), f"{100 * margin:g} points"
    if len(differences) < MIN_SEEDS:
        return mean, "not shown", f"{len(differences)} seeds were trained, a claim needs {MIN_SEEDS}"
    assert mean.low is not None
    assert mean.high is not None
    if max(differences) == min(differences):
        return mean, "not shown", "all seeds differ by the same amount, so their spread is unknown"
    if mean.low > -margin:
        return mean, "not inferior", f"the interval lies above -{points}"
    if mean.high < -margin:
        return mean, "inferior", f"the interval lies below -{points}"
    return mean, "not shown", f"the interval contains -{points}"
