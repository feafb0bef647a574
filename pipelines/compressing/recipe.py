"""What is to be done to a model: the declaration, checked before anything is done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import keras

from joulecache.pipelines.compressing.clustering import Per
from joulecache.pipelines.compressing.pruning import Criterion, kept_channels, ratio_for_macs
from joulecache.pipelines.compressing.sparsity import prunable_layers, weighted_layers
from joulecache.pipelines.models import count_macs

Quantization = Literal["float16", "dynamic", "int8"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is done to a model, in the order of the fields: channels go, weights go, weights are shared, all is quantized.

    `prune` is the share of channels to drop (`prune_channels`); or `macs` the share of multiply-accumulates to leave at most
    (`ratio_for_macs`). `criterion` says which channels are weak, `protected` names layers whose channels all stay.
    `sparsity` is the share of weights that become zeros (`MagnitudePruning`), while `l1` times each weight's magnitude counts
    in the loss. `clusters` is how many distinct values a kernel keeps, each or with `cluster_per` "channel" in each output
    channel (`cluster_weights`). `quantize` is the precision of the TensorFlow Lite file. After each of the first three the
    model is fine-tuned for `finetune_epochs`.

    Raises ValueError for nothing to do, and for values that are out of range or do not go together.
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
        """Say whether channels are to go."""
        return bool(self.prune) or self.macs is not None

    def ratio_for(self, model: keras.Model) -> float:
        """Return the share of channels to drop from a model. Raises as `ratio_for_macs`."""
        return self.prune if self.macs is None else ratio_for_macs(model, self.macs, protected=self.protected)

    def check(self, model: keras.Model) -> None:
        """Raise ValueError, naming the layer, for a model that this cannot be done to, or that cannot be counted."""
        count_macs(model)
        if None in model.inputs[0].shape[1:]:
            raise ValueError(f"model {model.name!r} takes images of any size: give keras.Input a fixed one")
        if not model.count_params():
            raise ValueError(f"model {model.name!r} has no weights: there is nothing to compress")
        if self.prunes_channels:
            kept_channels(model, self.ratio_for(model), criterion=self.criterion, protected=self.protected)
        if self.sparsity:
            prunable_layers(model)
        if self.clusters:
            weighted_layers(model)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
