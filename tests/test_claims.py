"""What may be claimed: intervals against scipy's formulas, coverage by simulation, break-even against brute force."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_audits import energy

from joulecache.pipelines.energy import Meter, Window
from joulecache.pipelines.experiment.arms import Arm
from joulecache.pipelines.experiment.blocks import Bench
from joulecache.pipelines.experiment.claims import finding
from joulecache.pipelines.experiment.runs import Run, RunLog
from joulecache.pipelines.experiment.statistics import Ratio, break_even, paired_ratio
from joulecache.pipelines.experiment.workloads import InputOnly

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


class DrawnMeter(Meter):
    """A meter of a machine that takes `noise` (of the logarithm) more or less in every run, and over an audit `drift` more."""

    def __init__(self, noise: float, drift: float) -> None:
        super().__init__()
        self.noise, self.drift = noise, drift
        self.epoch_j = 0.0  # of the arm that runs, without noise and drift

    def begin_audit(self, seed: int, windows: int) -> None:
        """Draw what the runs of an audit take."""
        noise = np.random.default_rng(seed).lognormal(0, self.noise, windows)
        self.factors = (noise * np.linspace(1, 1 + self.drift, windows)).tolist()

    @contextmanager
    def window(self, name: str) -> Iterator[Window]:
        window = Window(name)
        yield window
        spent = energy(self.epoch_j * self.factors.pop(0), bounds=(0.4, 2.2))
        window.begin(lambda: spent)
        window.end()


class Told(InputOnly):
    """Consume nothing, and tell the meter what the arm uses: its `dataset` is its joules."""

    def __init__(self, meter: DrawnMeter) -> None:
        super().__init__()
        self.meter = meter

    def run(self, arm: Arm, first_epoch: int) -> int:
        self.meter.epoch_j = arm.dataset
        return arm.records


class InMemory(RunLog):
    """A log without a file."""

    def add(self, run: Run) -> None:
        self.runs.append(run)


def findings(audits: int, blocks: int, noise: float, true_ratio: float, folder: Path) -> Counter[str]:
    """Return what so many audits with a drift of 30% find, of an arm that takes `true_ratio` times the joules of the reference."""
    found: Counter[str] = Counter()
    arms = [Arm("naive", 100, 50.0), Arm("optimized", 100, 50.0 * true_ratio)]
    meter = DrawnMeter(noise, drift=0.3)
    for seed in range(audits):
        meter.begin_audit(seed, 3 * blocks)  # no warm-up is metered, and the reference runs twice in a block
        bench = Bench(InMemory(folder / "none"), meter, seed, "naive")
        result = bench.measure(Told(meter), arms, blocks)
        found[result.arms[1].finding] += 1
        assert not meter.factors
    return found


@pytest.mark.parametrize(
    ("audits", "blocks", "noise"),
    [
        (1000, 5, 0.4),
        pytest.param(1000, 12, 0.4, marks=pytest.mark.slow),
        pytest.param(500, 12, 0.01, marks=pytest.mark.slow),
    ],
)
def test_two_equal_arms_are_rarely_claimed_to_differ(audits: int, blocks: int, noise: float, tmp_path: Path) -> None:
    """Blocks, their order, the control and the findings are the real ones; with little noise the order alone keeps the drift out."""
    found = findings(audits, blocks, noise, 1.0, tmp_path)
    false, failed = (found["saves"] + found["costs"]) / audits, found["inconclusive"] / audits
    leans = max(found["saves"], found["costs"]) / audits
    assert leans <= 0.04, f"{leans:.1%} of audits of two equal arms claim the same of them: {dict(found)}"
    assert false <= 0.07, f"{false:.1%} of audits of two equal arms claim a difference, in {blocks} blocks"
    assert failed <= 0.07, f"in {failed:.1%} of audits the reference differs from itself, in {blocks} blocks"


def test_half_the_energy_is_nearly_always_found(tmp_path: Path) -> None:
    found = findings(200, 20, 0.1, 0.5, tmp_path)
    share = found["saves"] / 200
    assert share >= 0.9, f"a ratio of 0.5 is found in {share:.1%} of audits: {dict(found)}"  # a control fails in 5%


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
