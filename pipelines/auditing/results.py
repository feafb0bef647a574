"""Typed results of an audit; report.json holds the same figures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, MinLen, Predicate

from joulecache.pipelines.cache.names import Encoding, Format
from joulecache.pipelines.compressing.results import Compression
from joulecache.pipelines.core import codec
from joulecache.pipelines.core.codec import Amount, Count, Positive, Share, Whole
from joulecache.pipelines.core.notebook import Displayed
from joulecache.pipelines.core.statistics import Mean
from joulecache.pipelines.energy import Component, Energy
from joulecache.pipelines.experiment.claims import Inferiority
from joulecache.pipelines.experiment.results import Joules, RunProvenance, WorkloadResult
from joulecache.pipelines.models.metrics import ACCURACY, Metric

REPORT_VERSION = 1

COPY, TRAINING_STEP = "copy", "training step"
"""Names of the stages that are part of the training, not of its input."""


@dataclass(frozen=True)
class RecordCounts:
    """Records of a source.

    Attributes:
        train: Records of the training split.
        val: Records of the validation split.
        rejected: Images that could not be cached.
        skipped: Files that are not images.
        chance: Accuracy of always answering the most frequent class of the validation split; None without one.
    """

    train: Count
    val: Whole
    rejected: Whole
    skipped: Whole
    chance: Share | None = None


@dataclass(frozen=True, kw_only=True)
class BuildFacts:
    """The energy and the sizes of the build of a cache.

    Attributes:
        energy: Energy of the build.
        active_j: Its active joules.
        cpu_s: Its CPU time in seconds.
        duration_s: Its wall time in seconds.
        source_bytes: Size of the encoded source images.
        cache_bytes: Size of the cache.
        storage_per_day: Modelled energy of storing the cache for one day; part of no ratio and no break-even.
        format: Format of the shards.
        encoding: Encoding of the images.
        variants: Draws of the cached ops that the cache holds.
        unmetered_shards: Shards part of whose work is not in the energy; None without such.
    """

    energy: Energy
    active_j: float = field(init=False)
    cpu_s: float = field(init=False)
    duration_s: float = field(init=False)
    source_bytes: Whole
    cache_bytes: Whole
    storage_per_day: Component
    format: Format
    encoding: Encoding
    variants: Count
    unmetered_shards: Count | None = field(default=None, metadata=codec.OMITTED)

    def __post_init__(self) -> None:
        for name in ("active_j", "cpu_s", "duration_s"):
            object.__setattr__(self, name, getattr(self.energy, name))


@dataclass(frozen=True)
class VariantPoint:
    """Training on a cache of some number of variants, over several seeds, compared with fresh draws.

    Attributes:
        name: "2 variants", or "fresh".
        variants: Draws that the cache holds.
        build: Energy of building that cache.
        build_epochs: Epochs over which the build is spread.
        cache_bytes: Size of the cache.
        train_reuse: How often one training sees each draw.
        active_j_per_1000: Active joules per 1,000 images of the training alone.
        with_build_j_per_1000: The same with its share of the build; the interval is over the seeds.
        scores: The model's first metric on the held-out records, one per seed. "accuracies" in report.json.
        score: Their mean; the interval is over the seeds. "accuracy" in report.json.
        difference: Score minus that of fresh draws, paired by seed; None for fresh draws.
        finding: What the difference shows; None for fresh draws.
        why: The reason for the finding; None for fresh draws.
    """

    name: str
    variants: Count
    build: Energy
    build_epochs: Count
    cache_bytes: Whole
    train_reuse: Positive
    active_j_per_1000: Joules
    with_build_j_per_1000: Mean
    scores: tuple[float, ...] = field(metadata={"alias": "accuracies"})
    score: Mean = field(metadata={"alias": "accuracy"})
    difference: Mean | None
    finding: Inferiority | None
    why: str | None


@dataclass(frozen=True)
class DrawReuse:
    """How often training sees the same draws of the cached ops, and the measured effect.

    Attributes:
        variants: Draws that the audited cache holds.
        horizon_reuse: How often each is seen over the horizon.
        train_epochs: Epochs of one measured training.
        train_reuse: How often each is seen in one measured training.
        margin: How much worse a score may be and still count as "not inferior"; of accuracies, as a share of 1.
        points: The measurements, fresh draws last; empty if there are none.
        not_measured: Why nothing was measured; None if something was.
    """

    variants: Count
    horizon_reuse: Positive
    train_epochs: Count
    train_reuse: Positive
    margin: Amount
    points: tuple[VariantPoint, ...]
    not_measured: str | None


@dataclass(frozen=True)
class Stage:
    """One step of the reference arm: the energy it adds to an arm that stops before it.

    Attributes:
        name: "tf.data", "read", an op's text, "batch", `COPY` or `TRAINING_STEP`.
        active_j_per_1000: Active joules per 1,000 images; None if the interval reaches 0: below resolution.
        low: Lower end of the 95% interval over the blocks, at least 0.
        high: Upper end of the interval: the most that the step costs.
        cached: Whether a cache does this step only once.
    """

    name: str
    active_j_per_1000: Positive | None
    low: Amount
    high: Amount
    cached: bool

    @property
    def trains(self) -> bool:
        """Whether the step is part of the training, not of its input."""
        return self.name in (COPY, TRAINING_STEP)


@dataclass(frozen=True)
class Stages:
    """Where the active energy of the reference arm goes.

    Attributes:
        workload: "train" or "input": what the whole was measured on.
        blocks: Number of interleaved blocks.
        images: Files in each run.
        stages: The steps, in order.
        whole_j_per_1000: Active joules per 1,000 images of the whole arm, measured in separate runs.
        unattributed_j_per_1000: The whole minus all stages above their resolution; negative if they add up to more.
    """

    workload: Literal["input", "train"]
    blocks: Annotated[int, Ge(2)]
    images: Count
    stages: Annotated[tuple[Stage, ...], MinLen(1)]
    whole_j_per_1000: Positive
    unattributed_j_per_1000: float


def is_base64(text: str) -> bool:
    """Return whether a text is not empty and base64."""
    return re.fullmatch("[A-Za-z0-9+/]+={0,2}", text) is not None


@dataclass(frozen=True)
class ExampleImage:
    """An image after one op in epoch 0, or after all ops in a later epoch.

    Attributes:
        step: Text of the op, or the epoch.
        cached: Whether the cache holds this image.
        jpeg: A small JPEG, base64-encoded.
    """

    step: str
    cached: bool
    jpeg: Annotated[str, Predicate(is_base64)]


@dataclass(frozen=True)
class Example:
    """A training record, and the images that the chain makes of it.

    Attributes:
        key: Key of the record.
        class_name: Its class, or other targets in words.
        images: Its images; "pictures" in report.json.
    """

    key: str
    class_name: str
    images: tuple[ExampleImage, ...] = field(metadata={"alias": "pictures"})


@dataclass(frozen=True)
class PipelineFacts:
    """A custom pipeline: the function that returned it, and one epoch of it.

    Attributes:
        name: Name of the arm.
        function: The function, as module:name.
        file: Source file of the function; None if there is none.
        sha256: SHA-256 of that file; None if there is none.
        elements: Dtypes and shapes of a batch.
        images: Images in an epoch.
        batches: Batches in an epoch.
        class_names: The dataset's classes; empty if it does not name them.
    """

    name: str
    function: str
    file: str | None
    sha256: str | None
    elements: str
    images: Count
    batches: Count
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class InPython:
    """What the arms without a cache ran in Python, the reference kernels in `tf.numpy_function`: TensorFlow has none, or costlier ones.

    Attributes:
        ops: Texts of the ops.
        files: Training images that TensorFlow decodes differently or not at all, and so were decoded in Python.
    """

    ops: tuple[str, ...]
    files: Whole


@dataclass(frozen=True)
class Audit(Displayed):
    """A finished audit: of one chain, or of custom pipelines.

    Attributes:
        source: The audited source; None for custom pipelines.
        chain: The chain with its cut; None for custom pipelines.
        pipelines: The custom pipelines; empty for a chain.
        reference: The arm that all others are compared with.
        cached: The arm that reads the cache; None for custom pipelines.
        records: Records of the source; None for custom pipelines.
        class_names: Names of the classes.
        horizon_epochs: Epochs that the verdict covers; None for custom pipelines.
        pixel_difference: By arm: mean absolute difference from the cached arm over the first batch, in levels of 0 to 255.
        build: What the cache cost; None for custom pipelines.
        workloads: What was measured.
        left_out: Arms that could not run on this machine, with the reason.
        compression: What compressing the model gave; None if the model was not compressed.
        energy: Energy of all runs together.
        method: How its joules were obtained.
        provenance: What is needed to repeat the audit.
        reuse: How often draws are reused; None if no cached op is random.
        stages: Where the energy goes; None if neither the input nor the training of a chain was measured.
        examples: A few training records to look at; empty for custom pipelines. "samples" in report.json.
        targets: Kinds of the targets by name; None: one class for each image.
        trained_metric: The first metric of the trained model, by which arms are compared; None: accuracy. "metric" in report.json.
        in_python: What the arms without a cache ran in Python; None: nothing.
    """

    source: str | None
    chain: str | None
    pipelines: tuple[PipelineFacts, ...]
    reference: str
    cached: str | None
    records: RecordCounts | None
    class_names: tuple[str, ...]
    horizon_epochs: Count | None
    pixel_difference: Mapping[str, Amount]
    build: BuildFacts | None
    workloads: tuple[WorkloadResult, ...]
    left_out: Mapping[str, str]
    compression: Compression | None
    energy: Energy
    method: str
    provenance: RunProvenance
    reuse: DrawReuse | None = None
    stages: Stages | None = None
    examples: tuple[Example, ...] = field(default=(), metadata={"alias": "samples"})
    targets: Mapping[str, str] | None = field(default=None, metadata=codec.OMITTED)
    trained_metric: Metric | None = field(default=None, metadata={"alias": "metric", **codec.OMITTED})
    in_python: InPython | None = field(default=None, metadata=codec.OMITTED)

    @property
    def metric(self) -> Metric:
        """The metric by which arms are compared."""
        return self.trained_metric or ACCURACY

    def to_json(self) -> dict[str, Any]:
        """Return the body of report.json; figures that were not measured are null, as is a break-even that is never reached."""
        return {"report_version": REPORT_VERSION, **codec.to_json(self)}

    @classmethod
    def from_json(cls, body: object) -> Audit:
        """Return the audit that `to_json` wrote, ignoring unknown keys; raise ValueError, in one line, for anything else."""
        if not isinstance(body, dict) or body.get("report_version") != REPORT_VERSION:
            raise ValueError(f"not an audit report of version {REPORT_VERSION}")
        fields = {name: value for name, value in body.items() if name != "report_version"}
        return codec.from_json(cls, fields, allow_unknown=True)
