"""Arguments of audits: checked here, and shown by the command line with the help texts from here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.core.checks import check_choices, check_integer, check_number
from joulecache.pipelines.experiment.names import ARMS, CACHED, INFER, INPUT, REFERENCE, TRAIN, WORKLOADS
from joulecache.transforms.chain import Chain

PIPELINE_WORKLOADS = (INPUT, TRAIN)

T = TypeVar("T")


def _option(default: T, text: str) -> T:
    return field(default=default, metadata={"help": text})


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
    """Arguments of every audit, as in `audit`, with a help text for the command line."""

    pairs: int | None = _option(None, "Blocks. Default: 20 input, 5 train, 10 others.")
    model: str = _option("cnn", "cnn, mlp, resnet8, mobilenet:0.25, shufflenet:0.5, or a .keras or .h5 file.")
    train_epochs: int = _option(3, "Epochs of one training run.")
    seed: int = _option(0, "Seed of every draw.")
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        if self.pairs is not None:
            check_integer("pairs", self.pairs)
        check_integer("train_epochs", self.train_epochs)


@dataclass(frozen=True, kw_only=True)
class PipelinesConfig(_Config):
    """Arguments of an audit of custom pipelines; raises ValueError for one that is out of range."""

    workloads: tuple[str, ...] = _option(PIPELINE_WORKLOADS, "Some of input, train.")
    steps: int | None = _option(None, "Batches of an epoch. Default: all.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices("workloads", self.workloads, PIPELINE_WORKLOADS)
        if self.steps is not None:
            check_integer("steps", self.steps)


@dataclass(frozen=True, kw_only=True)
class AuditConfig(_Config):
    """Arguments of an audit of a chain; raises ValueError if one is out of range, or contradicts another."""

    arms: tuple[str, ...] = _option(ARMS, "Arms to compare.")
    workloads: tuple[str, ...] = _option((INPUT, TRAIN, INFER), "Some of input, train, finetune, infer.")
    epochs: int = _option(30, "Horizon of the verdict, not run.")
    runs: int = _option(1, "Trainings that share the cache.")
    prune: float = _option(0.5, "Share of the channels to prune.")
    batch_size: int = _option(64, "Images in a batch.")
    limit: int | None = _option(None, "Use at most this many records.")
    labels: str | None = _option(None, "CSV file with the name and class of each image, and a header line.")
    variants: tuple[int, ...] = _option((1,), "Draws that the cache holds, and others to compare.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices("arms", self.arms, ARMS, needed=(REFERENCE, CACHED))
        check_choices("workloads", self.workloads, WORKLOADS)
        for name in ("epochs", "runs", "batch_size"):
            check_integer(name, getattr(self, name))
        _ = self.recipe  # checks prune
        self._check_variants()

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
        if self.variants != (1,) and not draws_before_cut(chain):
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
                f"variants {listed(self.variants)} differ in accuracy, but no records are held out to measure it on: use more images"
            )
        return "no records are held out"


def draws_before_cut(chain: Chain) -> bool:
    """Return whether an op before the cut draws at random, so that a cache holds variants."""
    return any(op.random for op in chain.prefix)


def listed(counts: Sequence[int]) -> str:
    """Return numbers as text, separated by commas."""
    return ", ".join(map(str, counts))


def counted_epochs(count: int) -> str:
    """Return "1 epoch" or "3 epochs"."""
    return f"{count} epoch{'s' if count != 1 else ''}"
