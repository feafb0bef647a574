#!/usr/bin/env python3
"""Simulate audits of equal arms with the noise of real ones, and print how many claim a difference that is not there.

    scripts/check_claims.py RUNS [RUNS ...] [--audits 1000] [--blocks 20]

RUNS are runs.jsonl files of audits. The noise of a run is its energy relative to the mean of its arm; the runs of a workload, in order,
are one series, with its drift and its bursts. Each simulated audit of the default arms takes consecutive values of such a series, starting
at a random run, in the order of its blocks: noise that lasts longer than a run affects neighbouring runs, as in the real audit.
The exit code is 1 if more than 5% of the audits make any claim.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from environment import argument_parser, enter
from tables import print_head, print_row

if TYPE_CHECKING:
    from joulecache.pipelines.experiment.results import WorkloadResult
    from joulecache.pipelines.experiment.runs import Run

LIMIT = 0.05
HORIZON, RECORDS = 30, 1_000
FEWEST = 20  # runs of a series that can show drift


def main(files: Sequence[Path], audits: int, blocks: int) -> int:
    """Print the share of audits with a claim, for every series of noise."""
    print_head("noise of", "runs", "standard deviation", "claims per epoch", "claims over the horizon", "any claim")
    worst = 0.0
    for file in files:
        for workload, (sample, noise) in series(file).items():
            claims = [claimed(simulate(sample, noise, blocks, seed)) for seed in range(audits)]
            per_epoch, over, either = (
                sum(each) / audits for each in zip(*((*one, any(one)) for one in claims), strict=True)
            )
            worst = max(worst, either)
            name = f"{file.parent.name}, {workload}"
            print_row(
                name, len(noise), f"{statistics.stdev(noise):.1%}", f"{per_epoch:.1%}", f"{over:.1%}", f"{either:.1%}"
            )
    print(f"\n{audits:,} simulated audits a row, {blocks} blocks each; at most {LIMIT:.0%} may claim anything.")
    return int(worst > LIMIT)


def series(file: Path) -> Mapping[str, tuple[Run, list[float]]]:
    """Return a run of each workload, and the energies of all its runs relative to the mean of their arm, in the order of the log."""
    from joulecache.pipelines.experiment.runs import RunLog

    runs: dict[str, list[Run]] = defaultdict(list)
    for run in RunLog(file).runs:
        runs[run.workload].append(run)
    found = {}
    for workload, each in runs.items():
        by_slot: dict[tuple[str, str | None], list[float]] = defaultdict(list)
        for run in each:
            by_slot[run.arm, run.part].append(run.energy.active_j / run.images)
        means = {slot: statistics.fmean(values) for slot, values in by_slot.items()}
        noise = [run.energy.active_j / run.images / means[run.arm, run.part] for run in each]
        if len(noise) >= FEWEST:
            found[workload] = (each[0], noise)
    return found


def simulate(sample: Run, noise: Sequence[float], blocks: int, seed: int) -> WorkloadResult:
    """Summarize an audit of equal arms."""
    from joulecache.pipelines.experiment.names import CACHED, DEFAULT_ARMS, REFERENCE
    from joulecache.pipelines.experiment.runs import Slot
    from joulecache.pipelines.experiment.summary import CachedArm, Design, summarize

    chance = random.Random(seed)
    slots = [*map(Slot, DEFAULT_ARMS), Slot(REFERENCE, "control")]
    factors = stretch(noise, chance)
    runs = [
        replace(
            sample, block=block, place=place, arm=slot.arm, role=slot.role, part=None, score=None, waited_s=None,
            energy=sample.energy * next(factors),
        )
        for block in range(blocks)
        for place, slot in enumerate(chance.sample(slots, len(slots)))
    ]  # fmt: skip
    cached = CachedArm(CACHED, RECORDS, HORIZON, 1)
    return summarize(
        Design(
            workload="input", epochs_per_run=1, blocks=blocks, arms=DEFAULT_ARMS, reference=REFERENCE, cached=cached
        ),
        runs,
    )


def stretch(noise: Sequence[float], chance: random.Random) -> Iterator[float]:
    """Yield a series from a random run to its end, again and again."""
    while True:
        yield from noise[chance.randrange(len(noise)) :]


def claimed(result: WorkloadResult) -> tuple[bool, bool]:
    """Return whether an audit claims a difference per epoch, and whether it claims one over the horizon against the strongest arm."""
    from joulecache.pipelines.experiment.horizon import over_horizon
    from joulecache.pipelines.experiment.names import CACHED

    claims = ("saves", "costs")
    least = {arm.name: arm.active_j_per_1000.value for arm in result.arms}
    strongest = min(result.comparisons, key=lambda each: least[each.other])
    over = over_horizon(result, strongest, CACHED, RECORDS, HORIZON).finding
    findings = [*(each.finding for each in result.arms), *(each.finding for each in result.comparisons)]
    return any(found in claims for found in findings), over in claims


if __name__ == "__main__":
    enter()
    parser = argument_parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--audits", type=int, default=1_000)
    parser.add_argument("--blocks", type=int, default=20)
    given = parser.parse_args()
    sys.exit(main(given.runs, given.audits, given.blocks))
