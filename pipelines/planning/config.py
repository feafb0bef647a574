"""Arguments of plans: checked here, and shown by the command line with the help texts from here."""

from __future__ import annotations

from dataclasses import dataclass, field

from joulecache.pipelines.core.checks import check_integer, check_number


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much a plan measures.

    Attributes:
        warm_builds: Builds of few records after the first one; the median of their energies counts.
        pass_cpu_s: Minimum CPU seconds of a measured pass over epochs. Every arm is measured for at least three of them.
        rounds: Maximum number of passes per arm.
        disk_bytes: Size of the file that measures the disk.
    """

    warm_builds: int = 3
    pass_cpu_s: float = 0.15
    rounds: int = 10
    disk_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for name in ("warm_builds", "rounds", "disk_bytes"):
            check_integer(name, getattr(self, name))
        check_number("pass_cpu_s", self.pass_cpu_s, above=0)


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Arguments of `plan`, with a help text for the command line; raises ValueError for one that is out of range."""

    epochs: int = field(metadata={"help": "Epochs of one training."})
    runs: int = field(default=1, metadata={"help": "Trainings that share the cache."})
    disk_budget_bytes: float | None = field(
        default=None, metadata={"help": "Largest cache, for example 20GB or 512MiB."}
    )
    fresh: tuple[str, ...] | None = field(
        default=None, metadata={"help": "Ops that draw in every epoch. Default: random ops that are cheap."}
    )
    seconds: float = field(default=60.0, metadata={"help": "About how long to measure."})
    days: float = field(default=1.0, metadata={"help": "How long the cache is stored."})
    batch_size: int = field(default=64, metadata={"help": "Images in a batch."})
    limit: int | None = field(default=None, metadata={"help": "Use at most this many records."})
    labels: str | None = field(
        default=None, metadata={"help": "CSV file with the name and class of each image, and a header line."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of every draw."})
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        for name in ("epochs", "runs", "batch_size"):
            check_integer(name, getattr(self, name))
        for name in ("seconds", "days", "disk_budget_bytes"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
