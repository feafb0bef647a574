"""What the runs of a workload amount to: each arm's figures, and what may be claimed of them."""

from __future__ import annotations

import functools
import operator
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from joulecache.pipelines.auditing.claims import Ratio, break_even, finding, paired_ratio
from joulecache.pipelines.auditing.results import ArmResult, Comparison, Joules, WorkloadResult
from joulecache.pipelines.auditing.runs import CONTROL, Run
from joulecache.pipelines.auditing.workloads import Workload


def summarize(
    workload: Workload,
    names: Sequence[str],
    records: int,
    runs: Sequence[Run],
    one_time: Mapping[str, Joules],
    blocks: int,
    horizon: int,
    trainings: int,
) -> WorkloadResult:
    """Summarize runs in complete blocks. Naive's second run of a block is the control; `one_time` is spent before the first epoch:

    the build once for `trainings` runs of `horizon` epochs, another arm's in each.
    """
    by_arm: dict[str, list[Run]] = {name: [] for name in (*names, CONTROL)}
    for run in runs:
        by_arm[run.arm].append(run)
    active = {name: [run.energy.active_j / run.images for run in of] for name, of in by_arm.items()}
    control = paired_ratio(active[CONTROL], active["naive"])
    # Both runs of naive in a block are measurements of it.
    active["naive"] = [(a + b) / 2 for a, b in zip(active["naive"], active[CONTROL], strict=True)]
    both = {**by_arm, "naive": [*by_arm["naive"], *by_arm[CONTROL]]}
    once = {name: one_time.get(name, Joules(0.0, 0.0, 0.0)) for name in names}

    def compared(name: str, other: str) -> tuple[Ratio, tuple[Any, str]]:
        ratio = paired_ratio(active[name], active[other])
        corners = [
            _mean_per_image(both[name], end) / _mean_per_image(both[other], end)
            for end in ("low_j", "total_j", "high_j")
        ]
        return ratio, finding(ratio, control, corners)

    results = []
    for name in names:
        ratio, (found, why) = compared(name, "naive")
        results.append(_arm_result(name, both[name], active[name], once[name], ratio, found, why))
    comparisons = []
    for other in names:
        if other == "optimized" or "optimized" not in names:
            continue
        ratio, (found, why) = compared("optimized", other)
        epoch_j = records * statistics.fmean(active[other])
        built_j, filled_j = once["optimized"].value, once[other].value
        paid = break_even(built_j - filled_j, epoch_j, ratio)
        over_runs = break_even(built_j - trainings * filled_j, trainings * epoch_j, ratio)
        whole = (once["optimized"].value + horizon * epoch_j * ratio.value) / (once[other].value + horizon * epoch_j)
        comparisons.append(Comparison(other, ratio, found, why, paid, trainings, over_runs, whole))
    return WorkloadResult(workload.name, blocks, workload.epochs, control, tuple(results), tuple(comparisons))


def _arm_result(
    name: str, runs: Sequence[Run], blocks: Sequence[float], once: Joules, ratio: Ratio, found: Any, why: str
) -> ArmResult:
    images = statistics.fmean(run.images for run in runs)
    wall_s = statistics.fmean(run.energy.duration_s / run.images for run in runs)
    accuracies = [run.accuracy for run in runs if run.accuracy is not None]
    read = [run.energy.read_bytes / run.images for run in runs if run.energy.read_bytes is not None]
    peaks = [run.energy.peak_rss_bytes for run in runs if run.energy.peak_rss_bytes is not None]
    carbon = [run.energy.carbon_g / run.images * 1000 for run in runs if run.energy.carbon_g is not None]
    whole = functools.reduce(operator.add, (run.energy for run in runs))
    return ArmResult(
        name=name,
        runs=len(runs),
        images_per_run=round(images),
        active_j_per_1000=_per_1000(runs, "active_j", "active_low_j", "active_high_j"),
        active_j_per_1000_by_block=tuple(1000 * each for each in blocks),
        total_j_per_1000=_per_1000(runs, "total_j", "low_j", "high_j"),
        cpu_us_per_image=statistics.fmean(run.energy.cpu_s / run.images for run in runs) * 1e6,
        wall_us_per_image=wall_s * 1e6,
        images_per_s=1 / wall_s,
        read_bytes_per_image=statistics.fmean(read) if read else None,
        peak_rss_bytes=max(peaks) if peaks else None,
        carbon_g_per_1000=statistics.fmean(carbon) if carbon else None,
        one_time=once,
        ratio=ratio,
        finding=found,
        why=why,
        accuracy=(statistics.fmean(accuracies), min(accuracies), max(accuracies)) if accuracies else None,
        contamination=whole.contamination_shares,
        flags=whole.flags,
        flagged_runs=sum(bool(run.energy.flags) for run in runs),
    )


def _mean_per_image(runs: Sequence[Run], attribute: str) -> float:
    return statistics.fmean(getattr(run.energy, attribute) / run.images for run in runs)


def _per_1000(runs: Sequence[Run], *attributes: str) -> Joules:
    return Joules(*(1000 * _mean_per_image(runs, attribute) for attribute in attributes))
