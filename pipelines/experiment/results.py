"""Typed results of an experiment: what every arm cost, what may be claimed of it, and how to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

from annotated_types import MinLen

from joulecache.pipelines.core.codec import OMITTED, Amount, Count, Positive, Share, Whole
from joulecache.pipelines.energy import Provenance
from joulecache.pipelines.experiment.claims import Finding
from joulecache.pipelines.experiment.statistics import BreakEven, Ratio


@dataclass(frozen=True)
class Joules:
    """An energy and its bounds.

    Attributes:
        value: Joules at the central coefficients.
        low: Joules at the lowest coefficients.
        high: Joules at the highest coefficients.
    """

    value: Amount
    low: Amount
    high: Amount


class ScoreRange(NamedTuple):
    """The model's first metric on the held-out records, over several runs.

    Attributes:
        mean: Arithmetic mean of the runs.
        lowest: The lowest of them.
        highest: The highest of them.
    """

    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class BackgroundLoad:
    """Load of the machine besides the measured work during some runs, as shares; None if the kernel does not report it.

    Attributes:
        others: CPU time of other processes, as a share of all processors' time.
        steal: CPU time stolen by the hypervisor, as a share of all processors' time.
        cpu_stall: Time in which some task waited for a processor, as a share of the runs' time.
        memory_stall: Time in which some task waited for memory, as a share of the runs' time.
        io_stall: Time in which some task waited for a disk, as a share of the runs' time.
    """

    others: Amount | None
    steal: Amount | None
    cpu_stall: Amount | None
    memory_stall: Amount | None
    io_stall: Amount | None


@dataclass(frozen=True)
class PartResult:
    """What one part of an arm cost when it ran alone, in the same blocks as the whole.

    Attributes:
        name: "input", or "training" on a batch that is kept in memory.
        active_j_per_1000: Active joules per 1,000 images.
        wall_us_per_image: Microseconds of wall time per image.
        ratio: Its active energy over that of the whole arm.
    """

    name: str
    active_j_per_1000: Joules
    wall_us_per_image: Amount
    ratio: Ratio


@dataclass(frozen=True)
class Waiting:
    """Energy that the idle machine used while training was blocked for its next batch: a part of the total energy.

    All energy of a GPU counts as active, so only the GPU's part of this is in the active energy.

    Attributes:
        share_of_time: Waiting time over the time of the runs.
        total_j_per_1000: Joules per 1,000 images; None if the idle power of the machine is unknown.
        share_of_total: That energy over the total energy of the runs; None if the idle power is unknown.
        method: How the joules were obtained; None if the idle power is unknown.
        at_most: Whether the shares are upper bounds: an accelerator may still compute while the next batch is requested.
    """

    share_of_time: Amount
    total_j_per_1000: Joules | None
    share_of_total: Amount | None
    method: str | None
    at_most: bool


@dataclass(frozen=True)
class Device:
    """An accelerator that is not here: it computes for the time of a step on each batch, and waits for the next one in between.

    Attributes:
        step_s: Seconds of one step.
        idle_w: Watts of the device while it waits.
        busy_w: Watts of the device while it computes.
        pue: Power usage effectiveness, a factor of its joules.
        method: How its joules are obtained.
    """

    step_s: Positive
    idle_w: Amount
    busy_w: Amount
    pue: Positive = 1.0
    method: str = "user"


@dataclass(frozen=True)
class DeviceUse:
    """What a simulated device and its input used in one arm.

    Attributes:
        waiting_share: Share of the time in which the device waits for a batch.
        waiting_j_per_1000: Joules of the waiting device per 1,000 images.
        computing_j_per_1000: Joules of the computing device per 1,000 images.
        input_j_per_1000: Active joules of the input alone per 1,000 images.
    """

    waiting_share: Share
    waiting_j_per_1000: Amount
    computing_j_per_1000: Amount
    input_j_per_1000: Joules


@dataclass(frozen=True)
class ArmResult:
    """What one arm cost on one workload. Figures are means over its runs.

    Attributes:
        name: Name of the arm.
        runs: Number of measured runs.
        images_per_run: Images in one run.
        active_j_per_1000: Active joules per 1,000 images: without the machine's idle power.
        active_j_per_1000_by_block: The same, block by block; of the reference the geometric mean of its two runs.
        total_j_per_1000: Joules per 1,000 images, idle power included.
        cpu_us_per_image: Microseconds of CPU time per image.
        wall_us_per_image: Microseconds of wall time per image.
        images_per_s: Throughput.
        read_bytes_per_image: Bytes read per image; None if not measured.
        peak_rss_bytes: Highest resident memory of any run; None if not measured.
        carbon_g_per_1000: Grams of CO2 per 1,000 images; None without a country.
        one_time: Active joules spent once: the build, or the cost of the epoch that fills `cache()` beyond a later one.
        ratio: Active energy over that of the reference.
        finding: What the ratio allows to claim.
        why: The reason for the finding.
        score: The model's first metric on the held-out records; None if nothing was trained or held out. "accuracy" in report.json.
        contamination: Background load during all runs.
        flags: Why the sum of all runs is doubtful.
        flagged_runs: How many runs are flagged.
        parts: What its parts cost alone; empty if not measured.
        waiting: What waiting for batches cost; None if not timed.
        device: What a simulated device used: a part of the active and the total energy; None without one.
    """

    name: str
    runs: Count
    images_per_run: Count
    active_j_per_1000: Joules
    active_j_per_1000_by_block: Annotated[tuple[Amount, ...], MinLen(1)]
    total_j_per_1000: Joules
    cpu_us_per_image: Amount
    wall_us_per_image: Amount
    images_per_s: Amount
    read_bytes_per_image: Amount | None
    peak_rss_bytes: Amount | None
    carbon_g_per_1000: Amount | None
    one_time: Joules
    ratio: Ratio
    finding: Finding
    why: str
    score: ScoreRange | None = field(metadata={"alias": "accuracy"})
    contamination: BackgroundLoad
    flags: tuple[str, ...]
    flagged_runs: Whole
    parts: tuple[PartResult, ...]
    waiting: Waiting | None = None
    device: DeviceUse | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True)
class Comparison:
    """The cached arm against another arm.

    Attributes:
        other: Name of the other arm.
        ratio: Active energy per epoch of the cached arm over the other's.
        finding: What the ratio allows to claim.
        why: The reason for the finding.
        break_even: Epochs after which one training has paid back the build.
        runs: Trainings that share the cache.
        break_even_over_runs: Epochs of each of the `runs` trainings after which the build is paid back: it is paid once, as is what
            another arm keeps on disk, but a cache in memory is filled in every training.
        horizon_ratio: Active energy over the horizon over the other's, one-time costs included.
    """

    other: str
    ratio: Ratio
    finding: Finding
    why: str
    break_even: BreakEven
    runs: Count
    break_even_over_runs: BreakEven
    horizon_ratio: Amount


@dataclass(frozen=True)
class WorkloadResult:
    """All arms on one workload.

    Attributes:
        workload: Name of the workload.
        blocks: Number of interleaved blocks.
        epochs_per_run: Epochs in one run.
        control: A/A control: the reference against itself.
        arms: The arms, in the order requested.
        comparisons: The cached arm against each other arm; empty if no cache was built.
        device: The simulated device, whose joules count as active; None without one.
    """

    workload: str
    blocks: Count
    epochs_per_run: Count
    control: Ratio
    arms: Annotated[tuple[ArmResult, ...], MinLen(1)]
    comparisons: tuple[Comparison, ...]
    device: Device | None = field(default=None, metadata=OMITTED)

    def arm(self, name: str) -> ArmResult:
        """Return the result of the arm `name`."""
        return next(arm for arm in self.arms if arm.name == name)


@dataclass(frozen=True)
class Threads:
    """Processors and threads that a measurement could use.

    Attributes:
        cpus: Processors that the process may run on.
        intra_op: TensorFlow's threads within one op; 0: TensorFlow chooses.
        inter_op: TensorFlow's threads across ops; 0: TensorFlow chooses.
    """

    cpus: Whole
    intra_op: Whole
    inter_op: Whole


@dataclass(frozen=True)
class RunProvenance:
    """What is needed to repeat an audit.

    Attributes:
        command: The command, word by word.
        seed: Seed of the arms, the weights and the order of runs.
        batch_size: Images in a batch; None if the audited pipelines make their own batches.
        model: The model that was trained; None if none was.
        train_epochs: Epochs of one training run; None if nothing was trained.
        steps: Batches of an epoch; None: all.
        threads: Processors and threads.
        platform: Operating system.
        python: Version of Python.
        versions: Versions by package; None: not installed.
        meter: What shapes the joules.
    """

    command: tuple[str, ...]
    seed: int
    batch_size: Count | None
    model: str | None
    train_epochs: Count | None
    steps: Count | None
    threads: Threads
    platform: str
    python: str
    versions: Mapping[str, str | None]
    meter: Provenance
