"""The energy of a whole training, one-time costs included, against another arm's: the claim that decides for or against a cache."""

from __future__ import annotations

from dataclasses import dataclass

from joulecache.pipelines.experiment.claims import Finding
from joulecache.pipelines.experiment.results import ArmResult, Comparison, WorkloadResult
from joulecache.pipelines.experiment.statistics import Ratio


@dataclass(frozen=True)
class Horizon:
    """The cached arm against another one over all epochs, one-time costs included.

    Attributes:
        ratio: Ratio of active energies. Its interval is that of the ratio per epoch.
        finding: What the ratio allows to claim.
        why: The reason for the finding.
    """

    ratio: Ratio
    finding: Finding
    why: str


def over_horizon(result: WorkloadResult, comparison: Comparison, cached: str, images: int, epochs: int) -> Horizon:
    """Compare the cached arm with another one over a number of epochs of a number of images.

    A saving per epoch is not a saving over the horizon unless it pays back the build.
    """
    arm, other = result.arm(cached), result.arm(comparison.other)
    epochs_j = epochs * images * other.active_j_per_1000.value / 1000
    other_j = other.one_time.value + epochs_j

    def whole(ratio: float) -> float:
        return (arm.one_time.value + epochs_j * ratio) / other_j

    epoch = comparison.ratio
    low, high = (None if end is None else whole(end) for end in (epoch.low, epoch.high))
    ratio = Ratio(whole(epoch.value), low, high, epoch.blocks)
    corners = [
        _spent(arm, end, images, epochs) / _spent(other, end, images, epochs) for end in ("value", "low", "high")
    ]
    return Horizon(ratio, *_finding(ratio, comparison, corners))


def _spent(arm: ArmResult, end: str, images: int, epochs: int) -> float:
    once, per_1000 = getattr(arm.one_time, end), getattr(arm.active_j_per_1000, end)
    return float(once + epochs * images * per_1000 / 1000)


def _finding(ratio: Ratio, comparison: Comparison, corners: list[float]) -> tuple[Finding, str]:
    if comparison.finding == "inconclusive" or ratio.low is None or ratio.high is None:
        return "inconclusive", comparison.why
    if ratio.contains(1.0):
        return "no difference shown", "the interval contains 1"
    of_coefficients = comparison.finding == "no difference shown" and not comparison.ratio.contains(1.0)
    if of_coefficients or min(corners) < 1 < max(corners):
        return "no difference shown", "the sign depends on the value of the coefficients"
    side = "below" if ratio.high < 1 else "above"
    return "saves" if ratio.high < 1 else "costs", f"the interval lies {side} 1, for every value of the coefficients"
