"""Arguments of plans, declared once: checked here, and shown by the command line with the help given here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from joulecache.pipelines.core.checks import check_integer, check_number


def _option(text: str, **default: Any) -> Any:
    return field(**default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much a plan measures.

    Attributes:
        warm_builds: Builds of few records after the first one; the median of their energies counts.
        pass_cpu_s: CPU seconds that a measured pass over epochs uses at least. Every arm is measured for three of them.
        rounds: Passes per arm at most.
        disk_bytes: Bytes of the file that measures the disk.
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
    """Arguments of a plan.

    Attributes:
        epochs: Epochs of one training.
        runs: Trainings that share the cache.
        disk_budget_bytes: Largest cache; None: no limit.
        fresh: Ops that draw in every epoch; None: random ops that use less than a tenth of the chain's CPU time.
        seconds: About how long to measure.
        days: How long the cache is stored.
        batch_size: Images in a batch.
        limit: Records of the source to use at most; None: all.
        labels: File with the labels; None: the source says them.
        seed: Seed of the draws and of the order of the runs.
        budget: How much to measure.

    Raises:
        ValueError: An argument is out of range.
    """

    epochs: int = _option("Epochs of one training.")
    runs: int = _option("Trainings that share the cache.", default=1)
    disk_budget_bytes: float | None = _option("Largest cache, for example 20GB or 512MiB.", default=None)
    fresh: tuple[str, ...] | None = _option(
        "Ops that draw in every epoch. Default: random ops that are cheap.", default=None
    )
    seconds: float = _option("About how long to measure.", default=60.0)
    days: float = _option("How long the cache is stored.", default=1.0)
    batch_size: int = _option("Images in a batch.", default=64)
    limit: int | None = _option("Use at most this many records.", default=None)
    labels: str | None = _option("CSV file with the name and class of each image, and a header line.", default=None)
    seed: int = _option("Seed of every draw.", default=0)
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        for name in ("epochs", "runs", "batch_size"):
            check_integer(name, getattr(self, name))
        for name in ("seconds", "days", "disk_budget_bytes"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
