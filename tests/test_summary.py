"""What runs amount to, on joules that are known."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from small_audits import energy

from joulecache.pipelines.experiment.results import Joules
from joulecache.pipelines.experiment.runs import Run, Slot
from joulecache.pipelines.experiment.summary import CachedArm, Design, summarize

RECORDS = 100
EPOCH_J = {
    Slot("naive"): 50.0,
    Slot("naive", "control"): 50.0,
    Slot("tf_cache"): 8.0,
    Slot("optimized"): 5.0,
}
ONCE = {"tf_cache": Joules(4.0, 3.0, 5.0), "optimized": Joules(10.0, 8.0, 12.0)}


def design(blocks: int, cached: CachedArm | None = None, **changes: Any) -> Design:
    return Design(
        workload="input",
        epochs_per_run=1,
        blocks=blocks,
        arms=("naive", "tf_cache", "optimized"),
        reference="naive",
        one_time=ONCE,
        cached=cached,
        **changes,
    )


def runs(blocks: int) -> list[Run]:
    return [
        Run(
            attempt=1,
            workload="input",
            block=block,
            place=place,
            arm=slot.arm,
            role=slot.role,
            images=RECORDS,
            energy=energy(epoch_j * (1.01 if block % 2 else 1 / 1.01)),
            score=None,
        )
        for block in range(blocks)
        for place, (slot, epoch_j) in enumerate(EPOCH_J.items())
    ]


@pytest.mark.parametrize(("trainings", "epochs"), [(1, (10 - 4) / 3), (2, (10 - 2 * 4) / (2 * 3)), (3, 0)])
def test_the_build_is_spent_once_and_a_fill_in_every_training(trainings: int, epochs: float) -> None:
    found = summarize(design(6, CachedArm("optimized", RECORDS, 10, trainings)), runs(6))
    naive, tf_cache = found.comparisons
    assert (naive.other, tf_cache.other) == ("naive", "tf_cache")
    assert naive.break_even.epochs == pytest.approx(10 / 45, rel=1e-3)
    assert naive.break_even_over_runs.epochs == pytest.approx(10 / 45 / trainings, rel=1e-3)
    assert tf_cache.break_even.epochs == pytest.approx(2, rel=1e-3)
    assert tf_cache.break_even_over_runs.epochs == pytest.approx(epochs, rel=1e-3)
    assert {compared.runs for compared in found.comparisons} == {trainings}
    # of one training of 10 epochs
    assert tf_cache.horizon_ratio == pytest.approx((10 + 50) / (4 + 80), rel=1e-3)


def test_what_stays_on_disk_is_paid_once_for_all_trainings() -> None:
    cached = CachedArm("optimized", RECORDS, 10, 2)
    _, other = summarize(design(6, cached, stays=frozenset({"tf_cache", "optimized"})), runs(6)).comparisons
    assert other.break_even.epochs == pytest.approx(2, rel=1e-3)
    assert other.break_even_over_runs.epochs == pytest.approx((10 - 4) / (2 * 3), rel=1e-3)


def test_the_joules_of_each_block_are_kept() -> None:
    found = summarize(design(2), runs(2))
    naive, _, optimized = found.arms
    assert optimized.active_j_per_1000_by_block == pytest.approx((50 / 1.01, 50 * 1.01))
    assert naive.active_j_per_1000_by_block == pytest.approx((500 / 1.01, 500 * 1.01))


def test_few_audits_of_equal_arms_claim_a_difference() -> None:
    claims = 0
    for seed in range(500):
        noise = random.Random(seed)
        logged = [dataclasses.replace(run, energy=energy(noise.lognormvariate(4, 0.1))) for run in runs(6)]
        found = summarize(design(6, CachedArm("optimized", RECORDS, 10, 1)), logged)
        findings = {*(arm.finding for arm in found.arms), *(each.finding for each in found.comparisons)}
        claims += not findings.isdisjoint(("saves", "costs"))
    assert claims <= 0.06 * 500  # 5%, and the error of 500 draws; 12% if each interval held alone
