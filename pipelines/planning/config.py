"""Arguments of plans. The command line shows the `Attributes:` of `PlanConfig` as help."""

from __future__ import annotations

from dataclasses import dataclass, field

from joulecache.pipelines.core.checks import check_integer, check_number
from joulecache.pipelines.source.config import SourceConfig


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
class PlanConfig(SourceConfig):
    """Arguments of `plan`.

    Attributes:
        epochs: Epochs of one training.
        runs: Trainings that share the cache.
        disk_budget_bytes: Largest size of the cache. Default: no limit.
        fresh: Ops that draw in every epoch. Default: random ops that use under 10% of the chain's CPU time.
        seconds: About how long to measure.
        days: How long the cache is stored.
        batch_size: Images in a batch.
        limit: Measure at most this many records. Prices and the command are for the whole source.
        seed: Seed of the draws and of the order of the runs.
        budget: How much to measure.

    Raises:
        ValueError: An argument is out of range.
    """

    epochs: int
    runs: int = 1
    disk_budget_bytes: float | None = None
    fresh: tuple[str, ...] | None = None
    seconds: float = 60.0
    days: float = 1.0
    batch_size: int = 64
    seed: int = 0
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "runs", "batch_size"):
            check_integer(name, getattr(self, name))
        for name in ("seconds", "days", "disk_budget_bytes"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
