"""How workloads are measured: warm-ups that are discarded, then blocks in which every arm runs once, in random order."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field

from joulecache.pipelines.energy import Energy, Meter
from joulecache.pipelines.experiment.arms import Arm, naming_failures
from joulecache.pipelines.experiment.results import Joules, WorkloadResult
from joulecache.pipelines.experiment.runs import Run, RunLog, again, alone
from joulecache.pipelines.experiment.summary import CachedArm, summarize
from joulecache.pipelines.experiment.workloads import InputOnly, Workload

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""

Entry = tuple[str, Workload, Arm]
"""What runs once in a block: the name of the run, what eats, and what is eaten."""


@dataclass(frozen=True)
class Part:
    """A part of what a workload does, to be measured beside the whole: by its own workload, on one arm for each arm of the whole."""

    name: str
    workload: Workload
    arms: Sequence[Arm]


@dataclass
class Bench:
    """Measures workloads in arms that are compared with the `reference`, and with the `cached` one where a cache was built.

    `one_time` holds, by arm, what it spends before the first epoch; an arm that fills a cache adds that.
    """

    log: RunLog
    meter: Meter
    seed: int
    tell: Progress
    reference: str
    cached: CachedArm | None = None
    one_time: dict[str, Joules] = field(default_factory=dict)
    _epoch: int = field(default=1, init=False)

    def measure(
        self, workload: Workload, arms: Sequence[Arm], pairs: int | None, parts: Sequence[Part] = ()
    ) -> WorkloadResult:
        """Run every arm and every part of it once per block, the reference twice, in random order; the first runs are discarded.

        The order depends on the seed, the workload and the block alone. Blocks that the log has are not run again. Raises
        ArmError for an arm whose input fails.
        """
        blocks = pairs or workload.blocks
        entries: list[Entry] = [(arm.name, workload, arm) for arm in arms]
        entries += [
            (alone(arm.name, part.name), part.workload, each)
            for part in parts
            for arm, each in zip(arms, part.arms, strict=True)
        ]
        control = (again(self.reference), workload, next(arm for arm in arms if arm.name == self.reference))
        for arm in arms:
            if arm.fills and arm.name not in self.one_time:
                self.one_time[arm.name] = self._fill(arm)
        runs = self.interleave(workload.name, [*entries, control], blocks, warm_ups=entries)
        return summarize(
            workload,
            [arm.name for arm in arms],
            self.reference,
            runs,
            blocks,
            parts=[part.name for part in parts],
            logged=self.log.runs,
            one_time=self.one_time,
            cached=self.cached,
        )

    def interleave(self, of: str, entries: Sequence[Entry], blocks: int, warm_ups: Sequence[Entry]) -> list[Run]:
        """Run every entry once per block, in random order; return the runs of all blocks, which the log has under the name `of`.

        Only where blocks are to be run are there `warm_ups` before them, which are discarded.
        """
        names = [name for name, _, _ in entries]
        runs: list[Run] = []
        steps, warm = len(warm_ups) + blocks * len(entries), False
        for block in range(blocks):
            known = self.log.block(of, block, names)
            if known is not None:
                runs += known
                continue
            if not warm:
                for done, (_, workload, arm) in enumerate(warm_ups):
                    self.tell(f"{of}: warm-up", done, steps)
                    workload.prepare(0)
                    with _released(workload), naming_failures(arm.name):
                        workload.run(arm, 0)
                warm = True
            order = random.Random(f"{self.seed} {of} {block}").sample(entries, len(entries))
            for place, (name, workload, arm) in enumerate(order):
                self.tell(f"{of}: block {block + 1} of {blocks}", len(warm_ups) + len(runs), steps)
                runs.append(self._run(of, workload, name, arm, block, place))
        return runs

    def _fill(self, arm: Arm) -> Joules:
        """Return what the epoch that fills an arm's cache costs beyond the next one."""
        runs = [self.log.block("fill", epoch, [arm.name]) for epoch in range(2)]
        if None in runs:
            runs = [[self._run("fill", InputOnly("fill"), arm.name, arm, epoch, 0)] for epoch in range(2)]
        first, second = (active_joules(run.energy) for of in runs if of is not None for run in of)
        return Joules(*(max(0.0, a - b) for a, b in zip(astuple(first), astuple(second), strict=True)))

    def _run(self, of: str, workload: Workload, name: str, arm: Arm, block: int, place: int) -> Run:
        workload.prepare(block)
        with _released(workload), naming_failures(arm.name), self.meter.window(of) as window:
            images = workload.run(arm, self._epoch)
        self._epoch += math.ceil(images / arm.records)
        run = Run(
            attempt=self.log.attempt,
            workload=of,
            block=block,
            place=place,
            arm=name,
            images=images,
            energy=window.energy,
            accuracy=workload.accuracy(),
            waited_s=workload.waited_s(window.energy.duration_s),
        )
        self.log.add(run)
        return run


@contextmanager
def _released(workload: Workload) -> Iterator[None]:
    """Let go of what a run keeps, however it ends."""
    try:
        yield
    finally:
        workload.release()


def active_joules(energy: Energy) -> Joules:
    """Return the active part of an energy, with its ends."""
    return Joules(energy.active_j, energy.active_low_j, energy.active_high_j)
