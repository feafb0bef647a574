"""What an experiment measured, arm by arm, and what may be claimed of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from joulecache.pipelines.experiment.statistics import BreakEven, Finding, Ratio


@dataclass(frozen=True)
class Joules:
    """An energy with the ends of its coefficients, in joules."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PartResult:
    """What a part of an arm cost by itself, in the same blocks: its "input", or the "training" on a batch that is kept in memory.

    `ratio` is that of its active energy to the whole's.
    """

    name: str
    active_j_per_1000: Joules
    wall_us_per_image: float
    ratio: Ratio


@dataclass(frozen=True)
class Waiting:
    """What the idle machine burnt while a training was blocked for its next batch: a part of the total energy.

    Of it only a GPU's joules count as active, as all of a GPU's do.
    `total_j_per_1000` is per 1,000 images, with the ends of the coefficients; it, `share_of_total` (of the runs' total energy) and
    `method` are None where the watts of the idle machine are not known. `at_most`: an accelerator may still have computed while the
    next batch was asked for; what overlaps is counted too, so that both shares are the most that waiting took.
    """

    share_of_time: float
    total_j_per_1000: Joules | None
    share_of_total: float | None
    method: str | None
    at_most: bool


@dataclass(frozen=True)
class ArmResult:
    """What one arm cost on one workload; figures are means over the runs.

    `active_j_per_1000`: energy per 1,000 images without the idle share of the machine, and that of each block;
    `total_j_per_1000` with it. `one_time`: active
    energy spent once (the build, or what the epoch that fills `cache()` costs beyond a later one). `ratio` and `finding`
    are against the reference. `accuracy`, on the held-out records: mean, lowest and highest of the runs. `contamination` are shares of what
    else the machine did, over all runs; `flags` what makes their sum doubtful; `flagged_runs` how many of them are flagged.
    `waiting` is None where no wait was timed.
    """

    name: str
    runs: int
    images_per_run: int
    active_j_per_1000: Joules
    active_j_per_1000_by_block: tuple[float, ...]
    total_j_per_1000: Joules
    cpu_us_per_image: float
    wall_us_per_image: float
    images_per_s: float
    read_bytes_per_image: float | None
    peak_rss_bytes: float | None
    carbon_g_per_1000: float | None
    one_time: Joules
    ratio: Ratio
    finding: Finding
    why: str
    accuracy: tuple[float, float, float] | None
    contamination: Mapping[str, float | None]
    flags: tuple[str, ...]
    flagged_runs: int
    parts: tuple[PartResult, ...]
    waiting: Waiting | None = None


@dataclass(frozen=True)
class Comparison:
    """The cached arm against another: ratio of active energy per epoch, what it allows to claim, and the break-even.

    `break_even` is for one run; `break_even_over_runs` says how many epochs each of `runs` runs on the same cache takes, which is
    built once, while the other arm spends its one-time cost in every run.
    """

    other: str
    ratio: Ratio
    finding: Finding
    why: str
    break_even: BreakEven
    runs: int
    break_even_over_runs: BreakEven
    horizon_ratio: float


@dataclass(frozen=True)
class WorkloadResult:
    """All arms on one workload. `control` is the reference against itself; `comparisons` are empty where no cache was built."""

    workload: str
    blocks: int
    epochs_per_run: int
    control: Ratio
    arms: tuple[ArmResult, ...]
    comparisons: tuple[Comparison, ...]
