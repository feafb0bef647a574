"""What is claimed of a whole training counts the build, and follows from the energies that an audit holds."""

from __future__ import annotations

import dataclasses

import pytest
from audits import TRAIN, with_arm
from hypothesis import given
from hypothesis import strategies as st

from joulecache.pipelines.experiment.claims import Finding
from joulecache.pipelines.experiment.horizon import Horizon, over_horizon
from joulecache.pipelines.experiment.results import Joules
from joulecache.pipelines.experiment.statistics import Ratio

IMAGES = 1_000
OTHER = "tuned"
joules = st.floats(0.01, 1e4)


def compared(
    once_j: float, other_once_j: float, epoch_j: float, ratio: Ratio, epochs: int, found: Finding = "saves"
) -> Horizon:
    """Return a cache that uses `ratio` times `epoch_j` in each epoch, over a number of epochs."""
    result = TRAIN
    each_j = {"optimized": (once_j, ratio.value * epoch_j), OTHER: (other_once_j, epoch_j)}
    for name, (once, epoch) in each_j.items():
        result = with_arm(
            result,
            name,
            one_time=Joules(once, 0.5 * once, 2 * once),
            active_j_per_1000=Joules(epoch, 0.5 * epoch, 2 * epoch),
            active_j_per_1000_by_block=(epoch, epoch),
        )
    one = next(each for each in TRAIN.comparisons if each.other == OTHER)
    one = dataclasses.replace(one, ratio=ratio, finding=found)
    return over_horizon(result, one, "optimized", IMAGES, epochs)


@given(joules, joules, joules, st.floats(0.01, 3), st.integers(1, 1_000))
def test_the_ratio_is_that_of_all_joules(
    once_j: float, other_j: float, epoch_j: float, value: float, epochs: int
) -> None:
    found = compared(once_j, other_j, epoch_j, Ratio(value, 0.9 * value, 1.1 * value, 5), epochs)
    assert found.ratio.value == pytest.approx((once_j + epochs * value * epoch_j) / (other_j + epochs * epoch_j))
    assert found.ratio.low is not None
    assert found.ratio.high is not None
    assert found.ratio.low <= found.ratio.value <= found.ratio.high


@given(joules, joules, st.integers(1, 1_000))
def test_nothing_is_saved_before_the_build_is_paid_back(once_j: float, epoch_j: float, epochs: int) -> None:
    ratio = Ratio(0.5, 0.45, 0.55, 5)
    found = compared(once_j, 0.0, epoch_j, ratio, epochs)
    slowest, fastest = (once_j / (epoch_j * (1 - end)) for end in (0.55, 0.45))
    if epochs > 1.001 * slowest:
        assert found.finding == "saves"
    elif epochs < 0.999 * fastest:
        assert found.finding == "costs"
    elif 1.001 * fastest < epochs < 0.999 * slowest:
        assert found.finding == "no difference shown"


def test_a_doubtful_ratio_stays_doubtful() -> None:
    below = Ratio(0.5, 0.45, 0.55, 5)
    assert compared(1.0, 0.0, 10.0, below, 30).finding == "saves"
    assert compared(1.0, 0.0, 10.0, below, 30, "inconclusive").finding == "inconclusive"
    # the interval of an epoch lies below 1, but not for every value of the coefficients
    assert compared(1.0, 0.0, 10.0, below, 30, "no difference shown").finding == "no difference shown"
    assert compared(1.0, 0.0, 10.0, Ratio(0.5, None, None, 1), 30).finding == "inconclusive"


def test_a_build_that_costs_more_than_any_epoch_could_save_is_a_cost() -> None:
    found = compared(1_000.0, 0.0, 1.0, Ratio(1.0, 0.98, 1.02, 5), 30, "no difference shown")
    assert found.finding == "costs"
