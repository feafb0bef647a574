"""The result of an audit: frozen, and the same figures in JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joulecache.pipelines.core.notebook import printed_html
from joulecache.pipelines.experiment.results import Joules, WorkloadResult
from joulecache.pipelines.experiment.statistics import Inferiority, Mean

REPORT_VERSION = 1


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
