"""The compression recipe: which steps to apply to a model. Imports no TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from annotated_types import Ge, Gt, Le, Lt

from joulecache.pipelines.core.checks import check_choice, check_integer, check_number, make_plain
from joulecache.pipelines.core.codec import Amount, Whole

Criterion = Literal["l1", "gamma"]
Per = Literal["layer", "channel"]
Quantization = Literal["float16", "dynamic", "int8"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The steps that compress a model. They run in the order of the attributes; fine-tuning follows each but the last.

    Attributes:
        prune: Share of the channels to drop, in [0, 1).
        macs: Share of the multiply-accumulates to keep at most, in (0, 1]; an alternative to `prune`.
        criterion: Which channels go first: those with the smallest L1 norm of weights (l1) or the smallest
            BatchNormalization scale (gamma).
        protected: Names of layers that keep all channels.
        sparsity: Share of the weights to set to zero, in [0, 1).
        l1: Weight of the L1 penalty in the loss while weights are pruned.
        clusters: Distinct values per kernel, at least 2.
        cluster_per: Whether `clusters` is a number per kernel (layer) or per output channel (channel).
        quantize: Precision of the final TensorFlow Lite files.
        finetune_epochs: Epochs of fine-tuning after each step.

    Raises:
        ValueError: The recipe is empty, or a value is out of range or contradicts another.
    """

    prune: Annotated[float, Ge(0), Lt(1)] = 0.0
    macs: Annotated[float, Gt(0), Le(1)] | None = None
    criterion: Criterion = "l1"
    protected: tuple[str, ...] = ()
    sparsity: Annotated[float, Ge(0), Lt(1)] = 0.0
    l1: Amount = 0.0
    clusters: Annotated[int, Ge(2)] | None = None
    cluster_per: Per = "layer"
    quantize: Quantization | None = None
    finetune_epochs: Whole = 2

    def __post_init__(self) -> None:
        make_plain(self)
        check_number("prune", self.prune, low=0, below=1)
        check_number("sparsity", self.sparsity, low=0, below=1)
        check_number("l1", self.l1, low=0)
        check_integer("finetune_epochs", self.finetune_epochs, 0)
        check_choice("criterion", self.criterion, get_args(Criterion))
        check_choice("cluster_per", self.cluster_per, get_args(Per))
        if self.macs is not None:
            check_number("macs", self.macs, above=0, high=1)
        if self.clusters is not None:
            check_integer("clusters", self.clusters, 2)
        if self.quantize is not None:
            check_choice("quantize", self.quantize, get_args(Quantization))
        object.__setattr__(self, "protected", tuple(self.protected))
        self._check_combination()

    def _check_combination(self) -> None:
        if not (self.prunes_channels or self.sparsity or self.clusters or self.quantize):
            raise ValueError("the recipe is empty: set prune, macs, sparsity, clusters or quantize")
        if self.macs is not None and self.prune:
            raise ValueError(f"prune and macs exclude each other: set one, got {self.prune} and {self.macs}")
        if self.l1 and not (self.sparsity and self.finetune_epochs):
            raise ValueError(f"l1 acts while weights are pruned: set sparsity and finetune_epochs too, got {self.l1}")
        if (self.protected or self.criterion != "l1") and not self.prunes_channels:
            raise ValueError("criterion and protected are about channels: set prune or macs too")
        if self.cluster_per != "layer" and self.clusters is None:
            raise ValueError(f"cluster_per is about weight sharing: set clusters too, got {self.cluster_per!r}")

    @property
    def prunes_channels(self) -> bool:
        """Whether channels are dropped."""
        return bool(self.prune) or self.macs is not None

    @property
    def changes_weights(self) -> bool:
        """Whether there are steps before quantization."""
        return self.prunes_channels or bool(self.sparsity) or self.clusters is not None
