"""The log of an experiment: every run is saved when it is done, so that a stopped experiment can continue."""

from __future__ import annotations

import functools
import operator
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from joulecache.pipelines.core import codec
from joulecache.pipelines.energy import Energy

Role = Literal["arm", "control", "part"]


class Slot(NamedTuple):
    """A place in every block of a workload, filled by one run.

    Attributes:
        arm: The arm.
        role: "arm"; "control", the reference's second run in a block (the A/A control: it differs from the first by noise alone);
            or "part", a part of the arm that runs alone.
        part: The part; None for the whole arm.
    """

    arm: str
    role: Role = "arm"
    part: str | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One measured run.

    Attributes:
        attempt: Which process of the experiment ran it, from 1.
        workload: The workload.
        block: Number of the block, from 0.
        place: Position in the order of the block, from 0.
        arm: The arm.
        images: Images that were consumed.
        energy: Its energy.
        score: The model's first metric on the held-out records; None if not measured. "accuracy" in the log.
        waited_s: Seconds in which a training or a simulated device waited for batches; None if not measured.
        role: See `Slot`.
        part: See `Slot`.
    """

    attempt: int
    workload: str
    block: int
    place: int
    arm: str
    images: int
    energy: Energy
    score: float | None = field(metadata={"alias": "accuracy"})
    # older logs do not have these
    waited_s: float | None = None
    role: Role = "arm"
    part: str | None = None

    @property
    def slot(self) -> Slot:
        """The place in the block that it fills."""
        return Slot(self.arm, self.role, self.part)


@dataclass
class RunLog:
    """The runs of an experiment: those in its file, and those added to it.

    A block is complete if all of its runs are from one attempt; the others stay in the file and are not used. A last line that
    was cut short by a kill is dropped.

    Attributes:
        path: The file, one JSON object per line.
        runs: All runs.
        attempt: Number of this process, from 1.
    """

    path: Path
    runs: list[Run] = field(default_factory=list)
    attempt: int = 1

    def __post_init__(self) -> None:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            os.truncate(self.path, end)
        for number, line in enumerate(content[:end].splitlines(), 1):
            try:
                self.runs.append(codec.loads(Run, line, allow_unknown=True))
            except ValueError as error:
                raise ValueError(f"{str(self.path)!r}, line {number}: not a run: {error}") from error
        self.attempt = 1 + max((run.attempt for run in self.runs), default=0)

    def add(self, run: Run) -> None:
        """Append a run to the file."""
        self.runs.append(run)
        with open(self.path, "a", encoding="utf-8") as log:
            log.write(codec.dumps(run) + "\n")

    def energy(self) -> Energy:
        """Return the energy of all runs together."""
        return functools.reduce(operator.add, (run.energy for run in self.runs))

    def block(self, workload: str, number: int, slots: Iterable[Slot]) -> list[Run] | None:
        """Return the latest complete runs of a block; None if there are none."""
        wanted = Counter(slots)
        for attempt in range(self.attempt, 0, -1):
            found = [run for run in self.runs if (run.attempt, run.workload, run.block) == (attempt, workload, number)]
            if Counter(run.slot for run in found) == wanted:
                return found
        return None
