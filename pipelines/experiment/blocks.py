"""Measure workloads: discarded warm-ups, then blocks in which every arm runs once, in random order."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace

from joulecache.pipelines.core.progress import Progress, silent
from joulecache.pipelines.energy import Energy, Meter
from joulecache.pipelines.experiment.arms import Arm
from joulecache.pipelines.experiment.failures import naming_failures
from joulecache.pipelines.experiment.results import Joules, WorkloadResult
from joulecache.pipelines.experiment.runs import Run, RunLog, Slot
from joulecache.pipelines.experiment.summary import CachedArm, Design, summarize
from joulecache.pipelines.experiment.workloads import InputOnly, Workload, training_device

_FILL = "fill"


@dataclass(frozen=True)
class Entry:
    """What runs once per block.

    Attributes:
        slot: The place in the block that its runs fill.
        workload: The consumer.
        arm: What feeds the workload.
    """

    slot: Slot
    workload: Workload
    arm: Arm


@dataclass(frozen=True)
class Part:
    """A part of a workload that is also measured alone, with one arm for each arm of the whole workload."""

    name: str
    workload: Workload
    arms: Sequence[Arm]


@dataclass
class Bench:
    """Measures workloads, each fed by several arms.

    Attributes:
        log: Keeps every run.
        meter: Measures every run.
        seed: Seed of the weights and of the order of the runs.
        reference: Name of the arm that all others are compared with.
        progress: Called with a description, steps done and their total.
        cached: The arm that reads a cache, if one was built.
        one_time: By arm, the energy it uses once before the first epoch; the cost of filling a cache is added.
    """

    log: RunLog
    meter: Meter
    seed: int
    reference: str
    progress: Progress = silent
    cached: CachedArm | None = None
    one_time: dict[str, Joules] = field(default_factory=dict)
    _epoch: int = field(default=1, init=False)

    def measure(
        self, workload: Workload, arms: Sequence[Arm], blocks: int | None = None, parts: Sequence[Part] = ()
    ) -> WorkloadResult:
        """Measure a workload: each arm and each part once per block, the reference twice, in random order.

        The order depends on the seed, the workload and the block alone. Blocks that are in the log do not run again. By
        default, the workload sets the number of blocks.

        Raises:
            ArmError: The input of an arm fails.
        """
        blocks = blocks or workload.blocks
        entries = [Entry(Slot(arm.name), workload, arm) for arm in arms]
        entries += [
            Entry(Slot(arm.name, "part", part.name), part.workload, alone)
            for part in parts
            for arm, alone in zip(arms, part.arms, strict=True)
        ]
        reference = next(arm for arm in arms if arm.name == self.reference)
        control = Entry(Slot(self.reference, "control"), workload, reference)
        self.one_time |= self._fill([arm for arm in arms if arm.fills and arm.name not in self.one_time])
        design = Design(
            workload=workload.name,
            epochs_per_run=workload.epochs,
            blocks=blocks,
            arms=tuple(arm.name for arm in arms),
            reference=self.reference,
            parts=tuple(part.name for part in parts),
            one_time=self.one_time,
            stays=frozenset(arm.name for arm in arms if arm.stays),
            cached=self.cached,
            on_accelerator=training_device() != "CPU:0",
            device=workload.device and replace(workload.device, pue=self.meter.provenance().pue),
        )
        runs = self.interleave(workload.name, [*entries, control], blocks, warm_ups=entries)
        return summarize(design, runs, self.log.runs)

    def interleave(self, name: str, entries: Sequence[Entry], blocks: int, warm_ups: Sequence[Entry]) -> list[Run]:
        """Run every entry once per block, in random order; return the runs, which the log keeps under a workload's `name`.

        The warm-ups run before the first block that is not in the log, and are discarded.
        """
        slots = [entry.slot for entry in entries]
        runs: list[Run] = []
        steps, warm = len(warm_ups) + blocks * len(entries), False
        for block in range(blocks):
            known = self.log.block(name, block, slots)
            if known is not None:
                runs += known
                continue
            if not warm:
                self._warm_up(name, warm_ups, steps)
                warm = True
            order = random.Random(f"{self.seed} {name} {block}").sample(list(entries), len(entries))
            for place, entry in enumerate(order):
                self.progress(f"{name}: block {block + 1} of {blocks}", len(warm_ups) + len(runs), steps)
                runs.append(self._run(name, entry, block, place))
        return runs

    def _warm_up(self, name: str, entries: Sequence[Entry], steps: int) -> None:
        for done, entry in enumerate(entries):
            self.progress(f"{name}: warm-up", done, steps)
            entry.workload.prepare(0)
            with _released(entry.workload), naming_failures(entry.arm.name):
                entry.workload.run(entry.arm, 0)

    def _fill(self, arms: Sequence[Arm]) -> dict[str, Joules]:
        """Return, by arm, the energy of the epoch that fills its cache, less that of the next epoch."""
        entries = [Entry(Slot(arm.name), InputOnly(), arm) for arm in arms]
        known = [self.log.block(_FILL, epoch, [entry.slot for entry in entries]) for epoch in range(2)]
        runs = [run for found in known for run in found or ()]
        if None in known:
            runs = [self._run(_FILL, entry, epoch, 0) for entry in entries for epoch in range(2)]
        spent = {(run.arm, run.block): astuple(active_joules(run.energy)) for run in runs}
        return {
            arm.name: Joules(*(max(0.0, a - b) for a, b in zip(spent[arm.name, 0], spent[arm.name, 1], strict=True)))
            for arm in arms
        }

    def _run(self, name: str, entry: Entry, block: int, place: int) -> Run:
        workload, arm = entry.workload, entry.arm
        workload.prepare(block)
        with _released(workload), naming_failures(arm.name), self.meter.window(name) as window:
            images = workload.run(arm, self._epoch)
        self._epoch += math.ceil(images / arm.records)
        run = Run(
            attempt=self.log.attempt,
            workload=name,
            block=block,
            place=place,
            arm=entry.slot.arm,
            images=images,
            energy=window.energy,
            score=workload.score(),
            waited_s=workload.waited_s(window.energy.duration_s),
            role=entry.slot.role,
            part=entry.slot.part,
        )
        self.log.add(run)
        return run


@contextmanager
def _released(workload: Workload) -> Iterator[None]:
    """Release the workload even if the run fails."""
    try:
        yield
    finally:
        workload.release()


def active_joules(energy: Energy) -> Joules:
    """Return the active part of an energy."""
    return Joules(energy.active_j, energy.active_low_j, energy.active_high_j)
