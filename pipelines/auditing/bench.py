"""How workloads are measured: warm-ups that are discarded, then blocks in which every arm runs once, in random order."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field

from joulecache.pipelines.auditing.arms import Arm
from joulecache.pipelines.auditing.results import Joules, WorkloadResult
from joulecache.pipelines.auditing.runs import CONTROL, Run, RunLog
from joulecache.pipelines.auditing.summary import summarize
from joulecache.pipelines.auditing.workloads import InputOnly, Workload
from joulecache.pipelines.meter import Energy, Meter

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""


@dataclass
class Bench:
    """Measures workloads in the given arms. `one_time` holds, by arm, what it spends before the first epoch; `tf_cache` adds its fill.

    Verdicts are on `trainings` trainings of `horizon` epochs.
    """

    log: RunLog
    meter: Meter
    seed: int
    tell: Progress
    one_time: dict[str, Joules]
    horizon: int
    trainings: int
    _epoch: int = field(default=0, init=False)

    def measure(self, workload: Workload, arms: Sequence[Arm], pairs: int | None) -> WorkloadResult:
        """Run every arm once per block, naive twice, in random order; the first run of each arm is discarded.

        The order depends on the seed, the workload and the block alone. Blocks that the log has are not run again.
        """
        blocks = pairs or workload.blocks
        entries = [(arm.name, arm) for arm in arms]
        entries.append((CONTROL, next(arm for arm in arms if arm.name == "naive")))
        names = [name for name, _ in entries]
        for arm in arms:
            if arm.name == "tf_cache" and arm.name not in self.one_time:
                self.one_time[arm.name] = self._fill(arm)
        runs: list[Run] = []
        steps, warm = len(arms) + blocks * len(entries), False
        for block in range(blocks):
            known = self.log.block(workload.name, block, names)
            if known is not None:
                runs += known
                continue
            if not warm:
                for done, arm in enumerate(arms):
                    self.tell(f"{workload.name}: warm-up", done, steps)
                    workload.prepare(0)
                    workload.run(arm, 0)
                warm = True
            order = random.Random(f"{self.seed} {workload.name} {block}").sample(entries, len(entries))
            for place, (name, arm) in enumerate(order):
                self.tell(f"{workload.name}: block {block + 1} of {blocks}", len(arms) + len(runs), steps)
                runs.append(self._run(workload, name, arm, block, place))
        return summarize(
            workload,
            [arm.name for arm in arms],
            arms[0].records,
            runs,
            self.one_time,
            blocks,
            self.horizon,
            self.trainings,
        )

    def _fill(self, arm: Arm) -> Joules:
        """Return what the epoch that fills an arm's cache costs beyond the next one."""
        runs = [self.log.block("fill", epoch, [arm.name]) for epoch in range(2)]
        if None in runs:
            runs = [[self._run(InputOnly("fill"), arm.name, arm, epoch, 0)] for epoch in range(2)]
        first, second = (active_joules(run.energy) for of in runs if of is not None for run in of)
        return Joules(*(max(0.0, a - b) for a, b in zip(astuple(first), astuple(second), strict=True)))

    def _run(self, workload: Workload, name: str, arm: Arm, block: int, place: int) -> Run:
        workload.prepare(block)
        self._epoch += workload.epochs
        with self.meter.window(workload.name) as window:
            images = workload.run(arm, self._epoch)
        run = Run(
            attempt=self.log.attempt,
            workload=workload.name,
            block=block,
            place=place,
            arm=name,
            images=images,
            energy=window.energy,
            accuracy=workload.accuracy(),
        )
        self.log.add(run)
        return run


def active_joules(energy: Energy) -> Joules:
    """Return the active part of an energy, with its ends."""
    return Joules(energy.active_j, energy.active_low_j, energy.active_high_j)
