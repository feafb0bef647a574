"""Audit: arms measured in interleaved blocks, of one chain with what each cost beforehand, or people's own pipelines."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from joulecache.pipelines.auditing.chains import audit_chain
from joulecache.pipelines.auditing.own import audit_pipelines
from joulecache.pipelines.auditing.results import Audit
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.experiment.blocks import Progress
from joulecache.pipelines.experiment.workloads import check_whole
from joulecache.transforms.chain import Chain


def audit(
    source: str | os.PathLike[str] | None = None,
    chain: Chain | str | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    datasets: Mapping[str, Callable[[], Any]] | None = None,
    steps: int | None = None,
    arms: Sequence[str] | None = None,
    workloads: Sequence[str] | None = None,
    epochs: int | None = None,
    runs: int | None = None,
    pairs: int | None = None,
    model: str = "cnn",
    train_epochs: int = 3,
    prune: float | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    labels: str | os.PathLike[str] | None = None,
    variants: Sequence[int] | None = None,
    seed: int = 0,
    meter: Meter | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Measure what feeding a model costs in several arms: whether a cache of a chain pays, or which of your own pipelines costs less.

    A chain is audited over a `source`, in the four `arms` (default: all). `epochs` is the horizon of the verdict (default: 30), and
    `runs` how many trainings share the cache (default: 1): neither is what is run. The model that `infer` runs has lost the share
    `prune` of its channels (default: 0.5); batches are of `batch_size` (default: 64). Sources other than folders are unpacked to
    files for the online arms, which is not measured.

    Where ops before the cut draw at random, the cache holds the first of `variants` draws of them (default: 1). It, all others given and
    fresh draws are trained on, with one seed in each of at least 3 blocks, where `train` is among the workloads and a training has
    more epochs than the cache has variants: what that does to accuracy is in the audit's `reuse`. Where the input or the training of a
    chain is measured, `stages` says which steps of the naive arm take its joules.

    Own pipelines are `datasets`: functions by name, each called once, that take nothing and return a batched `tf.data.Dataset` of
    (images [B, H, W, C], integer labels [B]); for the workload `input` alone, of any elements whose first tensor has the batch
    first. The first one is the reference. An epoch is `steps` batches, by default all. Workloads are `input` and `train`; what goes
    with a chain is refused.

    `pairs` is the number of blocks (default: 20 for the input, 5 for training and fine-tuning, 10 for inference and for stages, which
    have at least 5), `train_epochs` the epochs of one training run. Every run is kept in ``runs.jsonl`` and every model file in
    ``models/`` of the folder `out`. An audit that was stopped goes on when it is called again with the same arguments.

    Raises ValueError for arguments and for a folder `out` that holds other things, ArmError for an arm that cannot run, and what
    `precompute` raises.
    """
    if out is None:
        raise ValueError("give out, the folder of the audit")
    check_whole(pairs=1 if pairs is None else pairs, train_epochs=train_epochs)
    of_chains: dict[str, Any] = {
        "arms": arms,
        "epochs": epochs,
        "runs": runs,
        "prune": prune,
        "batch_size": batch_size,
        "limit": limit,
        "labels": labels,
        "variants": variants,
    }
    given = {name: value for name, value in of_chains.items() if value is not None}
    common: dict[str, Any] = {
        "pairs": pairs,
        "model": model,
        "train_epochs": train_epochs,
        "seed": seed,
        "meter": meter or Meter(),
        "tell": progress or (lambda what, done, total: None),
    }
    if workloads is not None:
        common["workloads"] = workloads
    if datasets is None:
        if source is None or chain is None:
            raise ValueError("give a source and a chain to audit, or datasets: functions that return one")
        if steps is not None:
            raise ValueError("steps are those of own datasets: leave them out for a chain, or give a limit")
        return audit_chain(source, chain, Path(out), **given, **common)
    given |= {name: value for name, value in (("source", source), ("chain", chain)) if value is not None}
    if given:
        raise ValueError(f"{', '.join(given)}: only the audit of a chain has such, leave it out for own datasets")
    return audit_pipelines(datasets, Path(out), steps=steps, **common)
