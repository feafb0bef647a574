"""What may be claimed: intervals against scipy's formulas, coverage by simulation, break-even against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulecache.pipelines.auditing.claims import Ratio, break_even, finding, paired_ratio

positive = st.floats(1e-6, 1e6)
series = st.lists(st.tuples(positive, positive), min_size=2, max_size=30)


@given(series)
def test_ratio_is_the_geometric_mean_of_the_blocks(pairs: list[tuple[float, float]]) -> None:
    ratio = paired_ratio([a for a, _ in pairs], [b for _, b in pairs])
    brute = math.prod((a / b) ** (1 / len(pairs)) for a, b in pairs)
    assert ratio.value == pytest.approx(brute, rel=1e-9)
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low <= ratio.value * (1 + 1e-12)
    assert ratio.value <= ratio.high * (1 + 1e-12)


def test_interval_is_students_t_on_the_logarithms() -> None:
    ratio = paired_ratio([math.e, math.e**3], [1.0, 1.0])
    # mean 2, standard deviation sqrt(2), t(1, 0.975) = 12.7062
    assert ratio.high == pytest.approx(math.exp(2 + 12.706204736 * 1.0), rel=1e-6)


def test_one_block_has_no_interval() -> None:
    assert paired_ratio([1.0], [2.0]) == Ratio(0.5, None, None, 1)


@pytest.mark.parametrize(
    ("numerators", "denominators"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([1.0], [-1.0])]
)
def test_ratio_refuses_what_has_no_logarithm_or_no_partner(numerators: list[float], denominators: list[float]) -> None:
    with pytest.raises(ValueError, match="a ratio needs"):
        paired_ratio(numerators, denominators)


@pytest.mark.parametrize("blocks", [5, 20])
def test_two_equal_arms_are_rarely_claimed_to_differ(blocks: int) -> None:
    """40% noise and a 30% linear drift within the audit: the drift cancels in the blocks, the noise is what t is for."""
    rng = np.random.default_rng(blocks)
    claims = 0
    for _ in range(1000):
        drift = np.linspace(1.0, 1.3, blocks)
        one, other, again = (drift * rng.lognormal(0, 0.4, blocks) for _ in range(3))
        ratio, control = paired_ratio(list(one), list(other)), paired_ratio(list(again), list(other))
        claims += finding(ratio, control, [ratio.value] * 3)[0] in ("saves", "costs")
    assert claims <= 70


@given(extra_j=st.floats(0.1, 1e4), epoch_j=st.floats(0.1, 1e3), value=st.floats(0.01, 0.99))
def test_break_even_is_where_the_two_totals_meet(extra_j: float, epoch_j: float, value: float) -> None:
    epochs = break_even(extra_j, epoch_j, Ratio(value, value, value, 9)).epochs
    assert epochs is not None
    assert extra_j + epochs * epoch_j * value == pytest.approx(epochs * epoch_j, rel=1e-6)


def test_no_saving_is_never_paid_back() -> None:
    paid = break_even(5.0, 1.0, Ratio(1.1, 0.9, 1.3, 9))
    assert paid.epochs is None
    assert paid.low == pytest.approx(50)
    assert paid.high is None


def test_what_cost_nothing_more_is_paid_back_at_once() -> None:
    assert break_even(-1.0, 1.0, Ratio(0.9, 0.8, 1.2, 9)).epochs == 0
    assert break_even(-1.0, 1.0, Ratio(1.2, 0.8, 1.2, 9)).epochs == 0


FAIR = Ratio(1.0, 0.98, 1.02, 9)


@pytest.mark.parametrize(
    ("ratio", "control", "corners", "expected"),
    [
        (Ratio(0.8, 0.7, 0.9, 9), FAIR, [0.7, 0.8, 0.9], "saves"),
        (Ratio(1.2, 1.1, 1.3, 9), FAIR, [1.1, 1.2, 1.3], "costs"),
        (Ratio(0.9, 0.8, 1.1, 9), FAIR, [0.9, 0.9, 0.9], "no difference shown"),
        (Ratio(0.8, 0.7, 0.9, 9), FAIR, [0.8, 0.9, 1.01], "no difference shown"),
        (Ratio(1.2, 1.1, 1.3, 9), FAIR, [0.99, 1.2, 1.2], "no difference shown"),
        (Ratio(0.8, 0.7, 0.9, 4), FAIR, [0.8, 0.8, 0.8], "inconclusive"),
        (Ratio(0.8, None, None, 1), FAIR, [0.8, 0.8, 0.8], "inconclusive"),
        (Ratio(0.8, 0.7, 0.9, 9), Ratio(1.1, 1.05, 1.15, 9), [0.8, 0.8, 0.8], "inconclusive"),
    ],
)
def test_a_saving_is_claimed_only_when_everything_agrees(
    ratio: Ratio, control: Ratio, corners: list[float], expected: str
) -> None:
    assert finding(ratio, control, corners)[0] == expected
