"""Every run of an audit, kept in a file as soon as it is done, so that an audit that was stopped goes on where it was."""

from __future__ import annotations

import functools
import json
import operator
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from joulecache.pipelines.energy import Energy


def again(reference: str) -> str:
    """Return the name of the reference's second run in a block, the A/A control: what it differs from the first is noise."""
    return f"{reference} again"


def alone(arm: str, part: str) -> str:
    """Return the name of the run of a part of an arm by itself, in the same block as the whole."""
    return f"{arm}, {part} alone"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One measured run of one arm. `attempt` counts the processes that worked on the audit, from 1.

    `waited_s`: how long a training waited for its next batches, None where that was not measured.
    """

    attempt: int
    workload: str
    block: int
    place: int
    arm: str
    images: int
    energy: Energy
    accuracy: float | None
    waited_s: float | None = None  # older logs do not have it

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON values."""
        return {**asdict(self), "energy": self.energy.to_json()}


@dataclass
class RunLog:
    """The runs of an audit: those in its file, and those that are added to it.

    A block whose arms did not all run in one attempt is not complete: its runs stay in the file and count for nothing. A
    last line that a kill cut short is dropped.
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
        for line in content[:end].splitlines():
            body = json.loads(line)
            self.runs.append(Run(**{**body, "energy": Energy.from_json(body["energy"])}))
        self.attempt = 1 + max((run.attempt for run in self.runs), default=0)

    def add(self, run: Run) -> None:
        """Keep a run."""
        self.runs.append(run)
        with open(self.path, "a", encoding="utf-8") as log:
            log.write(json.dumps(run.to_json()) + "\n")

    def energy(self) -> Energy:
        """Return what all runs took together."""
        return functools.reduce(operator.add, (run.energy for run in self.runs))

    def block(self, workload: str, number: int, arms: Sequence[str]) -> list[Run] | None:
        """Return the runs of a block in which each of the arms ran once, those of the last attempt; None without any."""
        for attempt in range(self.attempt, 0, -1):
            of = [run for run in self.runs if (run.attempt, run.workload, run.block) == (attempt, workload, number)]
            if sorted(run.arm for run in of) == sorted(arms):
                return of
        return None
