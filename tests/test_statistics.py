"""Intervals of means and proportions, against published tables."""

from __future__ import annotations

import math

import pytest

from joulecache.pipelines.core.statistics import Mean, mean_of, proportion_interval


def test_a_mean_has_students_interval() -> None:
    mean = mean_of([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445 * math.sqrt(2.5 / 5)  # Student's t of 4 degrees of freedom
    assert (mean.value, mean.count) == (3, 5)
    assert (mean.low, mean.high) == pytest.approx((3 - half, 3 + half), rel=1e-6)


def test_one_value_has_no_interval() -> None:
    assert mean_of([7.0]) == Mean(7, None, None, 1)
    with pytest.raises(ValueError, match="at least one value"):
        mean_of([])


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (6140, 10_000, 0.6044, 0.6235)],
)
def test_a_proportion_has_wilsons_interval(successes: int, trials: int, low: float, high: float) -> None:
    assert proportion_interval(successes, trials) == pytest.approx((low, high), abs=1e-4)
    assert 0 <= proportion_interval(successes, trials)[0] <= successes / trials


@pytest.mark.parametrize("counts", [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1 trial"):
        proportion_interval(*counts)
