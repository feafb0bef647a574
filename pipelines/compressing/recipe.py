"""The compression recipe: what to do to a model, checked before anything is done. Imports no TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Criterion = Literal["l1", "gamma"]
Per = Literal["layer", "channel"]
Quantization = Literal["float16", "dynamic", "int8"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to do to a model. Steps run in the order of the attributes, each followed by fine-tuning.

    Attributes:
        prune: Share of the channels to drop, in [0, 1).
        macs: Share of the multiply-accumulates to keep at most, in (0, 1]; replaces `prune`.
        criterion: Which channels are weak: `l1`, those whose weights have the smallest L1 norm, or `gamma`, those that
            BatchNormalization scales least.
        protected: Names of layers that keep all their channels.
        sparsity: Share of the weights to set to zero, in [0, 1).
        l1: Factor of the weights' magnitudes in the loss while weights are pruned.
        clusters: Number of distinct values per kernel, at least 2.
        cluster_per: Whether `clusters` counts per kernel (`layer`) or per output channel (`channel`).
        quantize: Precision of the last TensorFlow Lite file.
        finetune_epochs: Epochs of fine-tuning after each step but the last.

    Raises:
        ValueError: There is nothing to do, a value is out of range, or values do not go together.
    """

    prune: float = 0.0
    macs: float | None = None
    criterion: Criterion = "l1"
    protected: Sequence[str] = ()
    sparsity: float = 0.0
    l1: float = 0.0
    clusters: int | None = None
    cluster_per: Per = "layer"
    quantize: Quantization | None = None
    finetune_epochs: int = 2

    def __post_init__(self) -> None:
        for name, value in (("prune ratio", self.prune), ("sparsity", self.sparsity)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                raise ValueError(f"{name} {value!r}: give a share to drop, at least 0 and below 1")
        if self.macs is not None and self.prune:
            raise ValueError(f"prune ratio {self.prune} and a share of {self.macs} of the MACs: give one of them")
        if self.macs is not None and not 0 < self.macs <= 1:
            raise ValueError(f"share {self.macs} of the multiply-accumulates: give one above 0 and at most 1")
        if not 0 <= self.l1 < math.inf:
            raise ValueError(f"L1 strength {self.l1!r}: give a finite number of at least 0")
        if self.clusters is not None and (not _is_whole(self.clusters) or self.clusters < 2):
            raise ValueError(f"{self.clusters!r} clusters: give a whole number of at least 2, one of them for zeros")
        for name, word, allowed in (
            ("criterion", self.criterion, Criterion),
            ("cluster_per", self.cluster_per, Per),
            ("quantization", self.quantize or "int8", Quantization),
        ):
            if word not in get_args(allowed):
                raise ValueError(f"unknown {name} {word!r}: allowed are {', '.join(get_args(allowed))}")
        if not _is_whole(self.finetune_epochs) or self.finetune_epochs < 0:
            raise ValueError(f"{self.finetune_epochs!r} epochs of fine-tuning: give a whole number, 0 or more")
        if self.l1 and not (self.sparsity and self.finetune_epochs):
            raise ValueError(
                f"L1 strength {self.l1}: it works while weights are pruned in fine-tuning; give a sparsity and epochs too"
            )
        if not (self.prunes_channels or self.sparsity or self.clusters or self.quantize):
            raise ValueError(
                "nothing to do: give a prune ratio above 0, a share of MACs, a sparsity, a number of clusters, a quantization, "
                "or several of them"
            )
        if (self.protected or self.criterion != "l1") and not self.prunes_channels:
            raise ValueError(
                "a criterion and protected layers are for channels: give a prune ratio or a share of MACs too"
            )
        if self.cluster_per != "layer" and self.clusters is None:
            raise ValueError(f"cluster_per {self.cluster_per!r} is for weight sharing: give a number of clusters too")

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON values."""
        return {**asdict(self), "protected": list(self.protected)}

    @property
    def prunes_channels(self) -> bool:
        """Whether channels are dropped."""
        return bool(self.prune) or self.macs is not None


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
