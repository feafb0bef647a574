"""Plan: measure a sample, and choose what is cached, in how many variants and in which form, by the energy of the whole training."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from joulecache.pipelines.core.memory import memory_limit
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.planning.pricing import Job, price
from joulecache.pipelines.planning.results import Choice, Plan
from joulecache.pipelines.planning.sampling import Request, Tell, measure
from joulecache.transforms.chain import Chain, parse

_MEMORY_SHARE = 0.5  # of the memory, for files that are read again and again: the rest is the training's


def plan(
    source: str | os.PathLike[str],
    chain: Chain | str,
    *,
    epochs: int,
    runs: int = 1,
    disk_budget_bytes: float | None = None,
    fresh: Sequence[str] | None = None,
    seconds: float = 60.0,
    days: float = 1.0,
    batch_size: int = 64,
    limit: int | None = None,
    labels: str | os.PathLike[str] | None = None,
    seed: int = 0,
    meter: Meter | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: Tell | None = None,
) -> Plan:
    """Choose by measured energy what of a chain to cache for `runs` trainings of `epochs` epochs, or that nothing is worth it.

    Every cut, format and encoding is built and iterated on a sample, in about `seconds`; a cut in the chain is ignored. `fresh` names
    ops that draw anew in every epoch; None: random ops that take less than a tenth of the chain's CPU time. Others may be cached, in as
    many variants as keep each draw from being used more than four times. The cache is kept for `days`, on a disk with
    `disk_budget_bytes`. The sample lies in a folder inside `folder` (default: the system's for temporary files), whose disk is the
    one that is measured; it is gone at the end.

    Raises ValueError for arguments, for a chain whose images cannot be batched and a budget that no cache fits, SourceError and
    BuildError as `precompute` does.
    """
    parsed = parse(chain) if isinstance(chain, str) else chain
    for name, value in (("epochs", epochs), ("runs", runs), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    for name, number in (("seconds", seconds), ("days", days), ("disk_budget_bytes", disk_budget_bytes)):
        if number is not None and not 0 < number < float("inf"):
            raise ValueError(f"{name} must be a number above 0, got {number!r}")
    meter = meter or Meter()
    request = Request(
        source=os.fspath(source),
        chain=parsed,
        fresh=None if fresh is None else tuple(fresh),
        batch_size=batch_size,
        limit=limit,
        labels=labels,
        seed=seed,
        seconds=seconds,
    )
    with tempfile.TemporaryDirectory(prefix="joulecache-plan-", dir=folder) as work:
        sample = measure(request, Path(work), meter, progress or (lambda what, done, total: None))
    train = round(sample.records * sample.train_share)
    job = Job(
        train_records=train,
        val_records=sample.records - train,
        source_bytes=sample.source_bytes,
        epochs=epochs,
        runs=runs,
        days=days,
        memory_bytes=_MEMORY_SHARE * memory_limit(),
        disk_bytes_per_s=sample.disk_bytes_per_s,
        idle_w=sample.idle_w,
        ends=sample.ends,
        pue=meter.provenance().pue,
    )
    choices = price(sample.caches, sample.online, job)
    fitting = _within(choices, disk_budget_bytes)
    options = [*(() if limit is None else ("--limit", str(limit))), *(() if seed == 0 else ("--seed", str(seed)))]
    options += [] if labels is None else ["--labels", os.fspath(labels)]
    return Plan(
        source=request.source,
        chain=parsed,
        epochs=epochs,
        runs=runs,
        days=days,
        disk_budget_bytes=disk_budget_bytes,
        records=sample.records,
        sampled=sample.images,
        duration_s=sample.duration_s,
        steps=sample.steps,
        choices=fitting,
        too_large=len(choices) - len(fitting),
        online_refused=sample.refused,
        unmeasured=sample.unmeasured,
        disk_bytes_per_s=sample.disk_bytes_per_s,
        method=sample.method,
        options=tuple(options),
    )


def _within(choices: Sequence[Choice], budget_bytes: float | None) -> tuple[Choice, ...]:
    """Return the choices that fit a budget; ValueError where no cache does."""
    if budget_bytes is None:
        return tuple(choices)
    fitting = tuple(choice for choice in choices if choice.cache_bytes <= budget_bytes)
    if not any(choice.layout for choice in fitting):
        least = min((choice for choice in choices if choice.layout), key=lambda choice: choice.cache_bytes)
        raise ValueError(
            f"a disk budget of {budget_bytes / 1e6:,.1f} MB holds no cache of this source: the smallest ({least.layout}) takes "
            f"{least.cache_bytes / 1e6:,.1f} MB"
        )
    return fitting
