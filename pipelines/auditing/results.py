"""The result of an audit: frozen, and the same figures in JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joulecache.pipelines.auditing.claims import BreakEven, Finding, Inferiority, Mean, Ratio
from joulecache.pipelines.notebook import printed_html

REPORT_VERSION = 1


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


@dataclass(frozen=True)
class VariantPoint:
    """Training on a cache of so many variants, over several seeds: what it takes, and how well it learns beside fresh draws.

    `build` is the energy of building that cache, `build_epochs` the epochs that it is spread over, `train_reuse` how often a training
    sees a draw. `active_j_per_1000` is the training alone, with the ends of the coefficients; `with_build_j_per_1000` has its share of the
    build, with the 95% interval of the seeds, and `accuracy` has that of the held-out records. `difference` is the accuracy less that of
    fresh draws, seed by seed, `finding` what it shows; both are None for fresh draws themselves.
    """

    name: str
    variants: int
    build: Mapping[str, Any]
    build_epochs: int
    cache_bytes: int
    train_reuse: float
    active_j_per_1000: Joules
    with_build_j_per_1000: Mean
    accuracies: tuple[float, ...]
    accuracy: Mean
    difference: Mean | None
    finding: Inferiority | None
    why: str | None


@dataclass(frozen=True)
class DrawReuse:
    """How often the draws of the cached ops are seen again in a cache of so many `variants`, and what that was measured to do.

    `horizon_reuse` is how often over the horizon, `train_reuse` in a training of `train_epochs`, which is what was measured.
    `margin` is by how much an accuracy, a share of 1, may be lower and still be "not inferior". `points` are empty where nothing was
    measured, and `not_measured` says why.
    """

    variants: int
    horizon_reuse: float
    train_epochs: int
    train_reuse: float
    margin: float
    points: tuple[VariantPoint, ...]
    not_measured: str | None


@dataclass(frozen=True)
class Stage:
    """One step of the reference arm: what a run that is cut off behind it takes more than one that is cut off before it.

    `active_j_per_1000` is active energy per 1,000 images, `low` and `high` its 95% interval over the blocks. It is None where that
    interval holds 0 or lies below: then `high` says how much the step takes at most. `cached`: a cache does it once.
    """

    name: str
    active_j_per_1000: float | None
    low: float
    high: float
    cached: bool


@dataclass(frozen=True)
class Stages:
    """Where the active energy of the reference arm goes.

    `whole_j_per_1000` is what the arm takes on `workload`, measured apart from the stages; what is not in those above their resolution is
    `unattributed_j_per_1000`, below 0 where they add up to more. Each stage ran in `blocks` blocks over the same `images` files.
    """

    workload: str
    blocks: int
    images: int
    stages: tuple[Stage, ...]
    whole_j_per_1000: float
    unattributed_j_per_1000: float


@dataclass(frozen=True)
class Picture:
    """An image after the op `step`, in epoch 0, or finished in the epoch that `step` names: a small JPEG in base64.

    `cached`: whether it is what the cache holds.
    """

    step: str
    cached: bool
    jpeg: str


@dataclass(frozen=True)
class Sample:
    """A training record, by its key, as the chain changes it."""

    key: str
    class_name: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class PipelineFacts:
    """One of people's own pipelines: the function that made it, and what an epoch of it was.

    `file` and `sha256` are those of the source file where the function is defined, None where it has none. `elements` says what it
    yields. `class_names` is empty where the dataset has none.
    """

    name: str
    function: str
    file: str | None
    sha256: str | None
    elements: str
    images: int
    batches: int
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Audit:
    """A finished audit: of one chain, or of people's own `pipelines`.

    All arms are compared with the `reference`; `cached` is the one that reads a cache. Of own pipelines there is none, no source,
    chain, records, horizon or build. `energy` is that of all runs together, `method` says how its joules were obtained; `provenance`
    what is needed to repeat it. `reuse` is None where no cached op draws at random. `stages` is None where neither the input
    nor the training of a chain was measured. `samples` are a few training records to look at, none of own pipelines.
    """

    source: str | None
    chain: str | None
    pipelines: tuple[PipelineFacts, ...]
    reference: str
    cached: str | None
    records: Mapping[str, int] | None
    class_names: tuple[str, ...]
    horizon_epochs: int | None
    pixel_difference: Mapping[str, float]
    build: Mapping[str, Any] | None
    workloads: tuple[WorkloadResult, ...]
    left_out: Mapping[str, str]
    compression: Mapping[str, Any] | None
    energy: Mapping[str, Any]
    method: str
    provenance: Mapping[str, Any]
    reuse: DrawReuse | None = None
    stages: Stages | None = None
    samples: tuple[Sample, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the audit as JSON values; what was not measured, and never, are null."""
        return {"report_version": REPORT_VERSION, **dataclasses.asdict(self)}

    def _repr_html_(self) -> str:
        from joulecache.pipelines.report import print_verdict

        return printed_html(lambda console: print_verdict(self.to_json(), console))
