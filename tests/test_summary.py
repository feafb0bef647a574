"""What runs amount to, on joules that are known."""

from __future__ import annotations

import pytest

from joulecache.pipelines.energy import Component, Energy
from joulecache.pipelines.experiment.results import Joules
from joulecache.pipelines.experiment.runs import Run, again
from joulecache.pipelines.experiment.summary import CachedArm, summarize
from joulecache.pipelines.experiment.workloads import InputOnly

RECORDS = 100
EPOCH_J = {"naive": 50.0, again("naive"): 50.0, "tf_cache": 8.0, "optimized": 5.0}
ONCE = {"tf_cache": Joules(4.0, 3.0, 5.0), "optimized": Joules(10.0, 8.0, 12.0)}


def energy(active_j: float) -> Energy:
    part = Component(active_j, active_j, active_j, "user", "a number", "this test", "exact")
    return Energy(
        components={"cpu": part, **dict.fromkeys(("dram", "gpu", "idle"))},
        active=part,
        duration_s=1.0,
        cpu_s=1.0,
        read_bytes=None,
        written_bytes=None,
        peak_rss_bytes=None,
        carbon_g=None,
    )


def runs(blocks: int) -> list[Run]:
    return [
        Run(
            attempt=1,
            workload="input",
            block=block,
            place=place,
            arm=arm,
            images=RECORDS,
            energy=energy(epoch_j * (1.01 if block % 2 else 1 / 1.01)),
            accuracy=None,
        )
        for block in range(blocks)
        for place, (arm, epoch_j) in enumerate(EPOCH_J.items())
    ]


@pytest.mark.parametrize(("trainings", "epochs"), [(1, (10 - 4) / 3), (2, (10 - 2 * 4) / (2 * 3)), (3, 0)])
def test_the_build_is_spent_once_and_a_fill_in_every_training(trainings: int, epochs: float) -> None:
    names = ("naive", "tf_cache", "optimized")
    found = summarize(
        InputOnly(), names, "naive", runs(6), 6, one_time=ONCE, cached=CachedArm("optimized", RECORDS, 10, trainings)
    )
    naive, tf_cache = found.comparisons
    assert (naive.other, tf_cache.other) == ("naive", "tf_cache")
    assert naive.break_even.epochs == pytest.approx(10 / 45, rel=1e-3)
    assert naive.break_even_over_runs.epochs == pytest.approx(10 / 45 / trainings, rel=1e-3)
    assert tf_cache.break_even.epochs == pytest.approx(2, rel=1e-3)
    assert tf_cache.break_even_over_runs.epochs == pytest.approx(epochs, rel=1e-3)
    assert {compared.runs for compared in found.comparisons} == {trainings}
    # of one training of 10 epochs
    assert tf_cache.horizon_ratio == pytest.approx((10 + 50) / (4 + 80), rel=1e-3)


def test_the_joules_of_each_block_are_kept() -> None:
    found = summarize(InputOnly(), ("naive", "tf_cache", "optimized"), "naive", runs(2), 2, one_time=ONCE)
    naive, _, optimized = found.arms
    assert optimized.active_j_per_1000_by_block == pytest.approx((50 / 1.01, 50 * 1.01))
    assert naive.active_j_per_1000_by_block == pytest.approx((500 / 1.01, 500 * 1.01))
