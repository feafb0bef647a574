"""What the runs of a workload amount to: each arm's figures, and what may be claimed of them."""

from __future__ import annotations

import functools
import math
import operator
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joulecache.pipelines.experiment.results import (
    AccuracyRange,
    ArmResult,
    BackgroundLoad,
    Comparison,
    Joules,
    PartResult,
    Waiting,
    WorkloadResult,
)
from joulecache.pipelines.experiment.runs import Run, again, alone
from joulecache.pipelines.experiment.statistics import Ratio, break_even, finding, paired_ratio
from joulecache.pipelines.experiment.waiting import inputs_of, price_waiting
from joulecache.pipelines.experiment.workloads import Workload

ACTIVE = ("active_j", "active_low_j", "active_high_j")


@dataclass(frozen=True)
class CachedArm:
    """The arm that reads a cache, which was built before the first epoch.

    Verdicts on it look at `trainings` trainings of `horizon` epochs, each of `records` images.
    """

    name: str
    records: int
    horizon: int
    trainings: int


def summarize(
    workload: Workload,
    names: Sequence[str],
    reference: str,
    runs: Sequence[Run],
    blocks: int,
    *,
    parts: Sequence[str] = (),
    logged: Sequence[Run] = (),
    one_time: Mapping[str, Joules] | None = None,
    cached: CachedArm | None = None,
) -> WorkloadResult:
    """Summarize runs in complete blocks. The reference's second run of a block is the control; `one_time` is spent before the first

    epoch: the build once for all trainings on a cache, another arm's in each. `parts` were measured by themselves in the same blocks;
    all that was `logged` may say what the machine takes while a training waits.
    """
    control_name = again(reference)
    by_arm: dict[str, list[Run]] = {name: [] for name in (*names, control_name)}
    by_arm |= {alone(name, part): [] for name in names for part in parts}
    for run in runs:
        by_arm[run.arm].append(run)
    active = {name: [run.energy.active_j / run.images for run in of] for name, of in by_arm.items()}
    control = paired_ratio(active[control_name], active[reference])
    # Both runs of the reference in a block are measurements of it. Ratios are judged by their logarithms, in which the arithmetic mean of
    # two noisy runs lies above either: with 40% noise and 20 blocks equal arms were then claimed to save in 5% of audits, to cost in 1%.
    active[reference] = [math.sqrt(a * b) for a, b in zip(active[reference], active[control_name], strict=True)]
    both = {**by_arm, reference: [*by_arm[reference], *by_arm[control_name]]}
    once = {name: (one_time or {}).get(name, Joules(0.0, 0.0, 0.0)) for name in names}

    def compared(name: str, other: str) -> tuple[Ratio, tuple[Any, str]]:
        ratio = paired_ratio(active[name], active[other])
        corners = [
            _mean_per_image(both[name], end) / _mean_per_image(both[other], end)
            for end in ("low_j", "total_j", "high_j")
        ]
        return ratio, finding(ratio, control, corners)

    def part_result(name: str, part: str) -> PartResult:
        of = by_arm[alone(name, part)]
        return PartResult(
            name=part,
            active_j_per_1000=per_1000(of, *ACTIVE),
            wall_us_per_image=_wall_us(of),
            ratio=paired_ratio(active[alone(name, part)], active[name]),
        )

    results = []
    for name in names:
        ratio, (found, why) = compared(name, reference)
        measured = tuple(part_result(name, part) for part in parts)
        waiting = price_waiting(both[name], inputs_of(name, logged))
        results.append(_arm_result(name, both[name], active[name], once[name], ratio, found, why, measured, waiting))
    comparisons = []
    for other in names:
        if cached is None or other == cached.name:
            continue
        ratio, (found, why) = compared(cached.name, other)
        epoch_j = cached.records * statistics.fmean(active[other])
        built_j, filled_j = once[cached.name].value, once[other].value
        paid = break_even(built_j - filled_j, epoch_j, ratio)
        over_runs = break_even(built_j - cached.trainings * filled_j, cached.trainings * epoch_j, ratio)
        whole = (built_j + cached.horizon * epoch_j * ratio.value) / (filled_j + cached.horizon * epoch_j)
        comparisons.append(Comparison(other, ratio, found, why, paid, cached.trainings, over_runs, whole))
    return WorkloadResult(workload.name, blocks, workload.epochs, control, tuple(results), tuple(comparisons))


def _arm_result(
    name: str,
    runs: Sequence[Run],
    blocks: Sequence[float],
    once: Joules,
    ratio: Ratio,
    found: Any,
    why: str,
    parts: tuple[PartResult, ...],
    waiting: Waiting | None,
) -> ArmResult:
    images = statistics.fmean(run.images for run in runs)
    wall_us = _wall_us(runs)
    accuracies = [run.accuracy for run in runs if run.accuracy is not None]
    read = [run.energy.read_bytes / run.images for run in runs if run.energy.read_bytes is not None]
    peaks = [run.energy.peak_rss_bytes for run in runs if run.energy.peak_rss_bytes is not None]
    carbon = [run.energy.carbon_g / run.images * 1000 for run in runs if run.energy.carbon_g is not None]
    whole = functools.reduce(operator.add, (run.energy for run in runs))
    return ArmResult(
        name=name,
        runs=len(runs),
        images_per_run=round(images),
        active_j_per_1000=per_1000(runs, *ACTIVE),
        active_j_per_1000_by_block=tuple(1000 * each for each in blocks),
        total_j_per_1000=per_1000(runs, "total_j", "low_j", "high_j"),
        cpu_us_per_image=statistics.fmean(run.energy.cpu_s / run.images for run in runs) * 1e6,
        wall_us_per_image=wall_us,
        images_per_s=1e6 / wall_us,
        read_bytes_per_image=statistics.fmean(read) if read else None,
        peak_rss_bytes=max(peaks) if peaks else None,
        carbon_g_per_1000=statistics.fmean(carbon) if carbon else None,
        one_time=once,
        ratio=ratio,
        finding=found,
        why=why,
        accuracy=AccuracyRange(statistics.fmean(accuracies), min(accuracies), max(accuracies)) if accuracies else None,
        contamination=BackgroundLoad(**whole.contamination_shares),
        flags=whole.flags,
        flagged_runs=sum(bool(run.energy.flags) for run in runs),
        parts=parts,
        waiting=waiting,
    )


def _wall_us(runs: Sequence[Run]) -> float:
    return statistics.fmean(run.energy.duration_s / run.images for run in runs) * 1e6


def _mean_per_image(runs: Sequence[Run], attribute: str) -> float:
    return statistics.fmean(getattr(run.energy, attribute) / run.images for run in runs)


def per_1000(runs: Sequence[Run], *attributes: str) -> Joules:
    """Return the mean energies per 1,000 images of some runs: value, low and high, by the attributes of Energy that hold them."""
    return Joules(*(1000 * _mean_per_image(runs, attribute) for attribute in attributes))
