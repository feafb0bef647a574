"""The result of an audit: frozen, and the same figures in JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joulecache.pipelines.auditing.claims import BreakEven, Finding, Ratio

REPORT_VERSION = 1


@dataclass(frozen=True)
class Joules:
    """An energy with the ends of its coefficients, in joules."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ArmResult:
    """What one arm cost on one workload; figures are means over the runs.

    `active_j_per_1000`: energy per 1,000 images without the idle share of the machine, and that of each block;
    `total_j_per_1000` with it. `one_time`: active
    energy spent once (the build, or what the epoch that fills `cache()` costs beyond a later one). `ratio` and `finding`
    are against `naive`. `accuracy`, on the held-out records: mean, lowest and highest of the runs. `contamination` are shares of what
    else the machine did, over all runs; `flags` what makes their sum doubtful; `flagged_runs` how many of them are flagged.
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


@dataclass(frozen=True)
class Comparison:
    """The optimized arm against another: ratio of active energy per epoch, what it allows to claim, and the break-even.

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
    """All arms on one workload. `control` is naive against itself."""

    workload: str
    blocks: int
    epochs_per_run: int
    control: Ratio
    arms: tuple[ArmResult, ...]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Audit:
    """A finished audit. `method` says how joules were obtained; `provenance` what is needed to repeat it."""

    source: str
    chain: str
    records: Mapping[str, int]
    class_names: tuple[str, ...]
    horizon_epochs: int
    pixel_difference: Mapping[str, float]
    build: Mapping[str, Any]
    workloads: tuple[WorkloadResult, ...]
    left_out: Mapping[str, str]
    compression: Mapping[str, Any] | None
    method: str
    provenance: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the audit as JSON values; what was not measured, and never, are null."""
        return {"report_version": REPORT_VERSION, **dataclasses.asdict(self)}
