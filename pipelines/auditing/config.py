"""Arguments of audits. The command line shows the `Attributes:` of the configs as help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.core.checks import check_choices, check_integer, check_number, make_plain
from joulecache.pipelines.experiment.names import (
    ACCELERATOR,
    ARMS,
    CACHED,
    DEFAULT_ARMS,
    INFER,
    INPUT,
    REFERENCE,
    TRAIN,
    WITHOUT_MODEL,
    WORKLOADS,
)
from joulecache.pipelines.experiment.results import Device
from joulecache.pipelines.source.config import SourceConfig
from joulecache.transforms.chain import Chain

PIPELINE_WORKLOADS = (INPUT, TRAIN)
"""The workloads of custom pipelines, unless others are requested."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much an audit measures.

    Attributes:
        shortest_run_s: Seconds that a run of the input lasts at least, by repeating its epochs up to 50 times.
        stage_run_s: Seconds of input over which the stages are measured; None: they are not measured. Longer runs give steadier
            figures, and cost five times that in each block.
        longest_epoch_s: Seconds after which an epoch of unknown length counts as endless.
    """

    shortest_run_s: float = 1.0
    stage_run_s: float | None = 2.0
    longest_epoch_s: float = 600.0

    def __post_init__(self) -> None:
        check_number("shortest_run_s", self.shortest_run_s, 0)
        check_number("longest_epoch_s", self.longest_epoch_s, 0)
        if self.stage_run_s is not None:
            check_number("stage_run_s", self.stage_run_s, 0)


@dataclass(frozen=True, kw_only=True)
class _Config:
    """Arguments of every audit.

    Attributes:
        pairs: Blocks. Default: 20 input, 5 train, 10 others.
        model: cnn, mlp, resnet8, mobilenet:0.25, shufflenet:0.5, a file, MODULE:FUNCTION.
        train_epochs: Epochs of one training run.
        seed: Seed of the draws, weights and order of runs.
        step_ms: Milliseconds of a step of the simulated accelerator.
        device_watts: Its watts, waiting and computing.
        budget: How much to measure.
    """

    pairs: int | None = None
    model: str = "cnn"
    train_epochs: int = 3
    seed: int = 0
    step_ms: float | None = None
    device_watts: tuple[float, float] | None = None
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        make_plain(self)
        if self.pairs is not None:
            check_integer("pairs", self.pairs)
        check_integer("train_epochs", self.train_epochs)
        check_integer("seed", self.seed, 0, 2**32 - 1)  # the limit of Keras
        if self.step_ms is not None:
            check_number("step_ms", self.step_ms, above=0)
        if self.device_watts is not None:
            self._check_watts(self.device_watts)

    @staticmethod
    def _check_watts(watts: object) -> None:
        if not isinstance(watts, Sequence) or isinstance(watts, str) or len(watts) != 2:
            raise ValueError(f"device_watts must be two numbers, idle and busy, got {watts!r}")
        idle = check_number("device_watts", watts[0], 0)
        check_number("device_watts, of a busy device,", watts[1], idle)

    def _check_device(self, workloads: Sequence[str]) -> None:
        """Raise ValueError unless a device is declared exactly if the workloads simulate one."""
        declared = {"step_ms": self.step_ms, "device_watts": self.device_watts}
        missing = [name for name, value in declared.items() if value is None]
        if ACCELERATOR in workloads and missing:
            raise ValueError(
                f"the workload {ACCELERATOR} needs {' and '.join(missing)}: the device is not here to be measured"
            )
        if ACCELERATOR not in workloads and len(missing) < len(declared):
            given = next(name for name in declared if name not in missing)
            raise ValueError(f"{given} is only for the workload {ACCELERATOR}: add it, or leave {given} out")

    @property
    def device(self) -> Device:
        """The simulated device of the workload "accelerator"."""
        assert self.step_ms is not None
        assert self.device_watts is not None
        return Device(self.step_ms / 1000, *self.device_watts)


@dataclass(frozen=True, kw_only=True)
class PipelinesConfig(_Config):
    """Arguments of an audit of custom pipelines.

    Attributes:
        workloads: Some of input, train, accelerator.
        steps: Batches in an epoch. Default: all.

    Raises:
        ValueError: An argument is out of range.
    """

    workloads: tuple[str, ...] = PIPELINE_WORKLOADS
    steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices("workloads", self.workloads, (*PIPELINE_WORKLOADS, ACCELERATOR))
        self._check_device(self.workloads)
        if self.steps is not None:
            check_integer("steps", self.steps)


@dataclass(frozen=True, kw_only=True)
class AuditConfig(_Config, SourceConfig):
    """Arguments of an audit of a chain.

    Attributes:
        arms: Arms: also tf_cache_file.
        workloads: Of input, train, finetune, infer, accelerator.
        epochs: Epochs that the verdict covers; not run.
        runs: Trainings that share the cache.
        prune: Share of the channels to prune for inference.
        batch_size: Images in a batch.
        variants: Draws that the cache holds, then others to compare in accuracy.

    Raises:
        ValueError: An argument is out of range, or arguments do not fit together.
    """

    arms: tuple[str, ...] = DEFAULT_ARMS
    workloads: tuple[str, ...] = (INPUT, TRAIN, INFER)
    epochs: int = 30
    runs: int = 1
    prune: float = 0.5
    batch_size: int = 64
    variants: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        super().__post_init__()
        SourceConfig.__post_init__(self)
        check_choices("arms", self.arms, ARMS, needed=(REFERENCE, CACHED))
        check_choices("workloads", self.workloads, WORKLOADS)
        self._check_device(self.workloads)
        for name in ("epochs", "runs", "batch_size"):
            check_integer(name, getattr(self, name))
        _ = self.recipe  # checks prune
        self._check_variants()

    @property
    def trains(self) -> bool:
        """Whether a model is needed."""
        return not WITHOUT_MODEL.issuperset(self.workloads)

    @property
    def recipe(self) -> Recipe:
        """How the model for inference is compressed."""
        return Recipe(prune=self.prune, quantize="int8")

    def _check_variants(self) -> None:
        for count in self.variants:
            check_integer("variants", count)
        if not self.variants or len(set(self.variants)) != len(self.variants):
            raise ValueError(f"variants must be different integers, got {listed(self.variants) or 'none'}")
        if len(self.variants) == 1:
            return
        if TRAIN not in self.workloads:
            raise ValueError(
                f"variants {listed(self.variants)} differ in accuracy, which the workload train measures: add it"
            )
        unseen = [count for count in self.variants if count >= self.train_epochs]
        if unseen:
            raise ValueError(
                f"a training of {counted_epochs(self.train_epochs)} sees no draw of {listed(unseen)} variants twice, like fresh draws: "
                f"leave them out, or train for at least {max(unseen) + 1} epochs with train_epochs"
            )

    def check_draws(self, chain: Chain) -> None:
        """Raise ValueError if several variants are requested, but the cached ops of the chain draw nothing."""
        if self.variants != (1,) and not chain.cached_random:
            raise ValueError(
                f"variants are {listed(self.variants)}, but the cached ops of {str(chain)!r} draw nothing at random: all would be the "
                "same, leave variants out"
            )

    def why_unmeasured(self, held_out: int) -> str | None:
        """Return why the audit cannot measure how reused draws affect accuracy, with some held-out records; None if it can.

        Raises:
            ValueError: Several numbers of variants request it, but no records are held out.
        """
        if TRAIN not in self.workloads:
            return "the workload train was not asked for"
        if self.variants[0] >= self.train_epochs:
            return f"a training of {counted_epochs(self.train_epochs)} sees no draw twice"
        if held_out:
            return None
        if len(self.variants) > 1:
            raise ValueError(
                f"variants {listed(self.variants)} differ in accuracy, but no records are held out to measure accuracy: use more images"
            )
        return "no records are held out"


def listed(counts: Sequence[int]) -> str:
    """Return numbers as text, separated by commas."""
    return ", ".join(map(str, counts))


def counted_epochs(count: int) -> str:
    """Return "1 epoch" or "3 epochs"."""
    return f"{count} epoch{'s' if count != 1 else ''}"
