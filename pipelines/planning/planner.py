"""Plan a cache: measure a sample, and price every choice."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from joulecache.pipelines.core.checks import check_path, check_sequence
from joulecache.pipelines.core.memory import memory_limit
from joulecache.pipelines.core.progress import Progress, silent
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.planning.config import Budget, PlanConfig
from joulecache.pipelines.planning.pricing import Job, price
from joulecache.pipelines.planning.results import Choice, Plan, ranked
from joulecache.pipelines.planning.sampling import Sample, Sampler
from joulecache.transforms.chain import Chain, as_chain

_PAGE_CACHE_SHARE = 0.5  # share of the memory; the training needs the rest


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
    masks: str | os.PathLike[str] | None = None,
    coco: str | os.PathLike[str] | None = None,
    splits: Mapping[str, str] | None = None,
    image: str | None = None,
    target: str | Sequence[str] | None = None,
    seed: int = 0,
    meter: Meter | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    budget: Budget | None = None,
) -> Plan:
    """Choose by measured energy which part of a chain to cache for some trainings, or find that no cache pays.

    Every cut, format and encoding is built and iterated on a sample. Random ops may be cached, in enough variants that no draw is
    used more than four times.

    Args:
        source: Any source that `precompute` reads.
        chain: The chain; its cut is ignored.
        epochs: Epochs of one training.
        runs: Trainings that share the cache.
        disk_budget_bytes: Largest cache; None: no limit.
        fresh: Names of ops that draw in every epoch. None: random ops that use less than a tenth of the chain's CPU time.
        seconds: Approximate duration of the measurement.
        days: Duration for which the cache is stored.
        batch_size: Images in a batch.
        limit: Maximum number of records to measure; prices and the command are for the whole source.
        labels: CSV file with the classes of the images.
        masks: Folder of masks named like the images, or a pattern of folders or files.
        coco: COCO file of the boxes (instances JSON), or a pattern of such files.
        splits: Names of the folders or files of the splits, by split.
        image: Column of the images in Parquet or TFRecord files.
        target: Targets, as ``NAME`` or ``NAME:KIND``, KIND being class, multilabel, value, text, mask, boxes or points: columns of
            Parquet or TFRecord files or of `labels`, or keys of the .json files of a tar. Several as a sequence; ``none`` for images alone.
        seed: Seed of the draws and of the order of the runs.
        meter: Measures the sample. None: a new one.
        folder: Where the sample is stored, in a folder that is deleted at the end; its disk is measured. None: the system's folder
            for temporary files.
        progress: Called with a description, steps done and their total.
        budget: How much to measure.

    Returns:
        The plan.

    Raises:
        ValueError: An argument is out of range, the chain's images cannot be batched, or no cache fits the budget.
        SourceError: The source cannot be read.
        BuildError: A cache of the sample cannot be built.
    """
    location, parsed = check_path("source", source), as_chain(chain)
    config = PlanConfig(
        epochs=epochs,
        runs=runs,
        disk_budget_bytes=disk_budget_bytes,
        fresh=None if fresh is None else check_sequence("fresh", fresh),
        seconds=seconds,
        days=days,
        batch_size=batch_size,
        limit=limit,
        labels=labels,
        masks=masks,
        coco=coco,
        splits=splits,
        image=image,
        target=target,
        seed=seed,
        budget=budget or Budget(),
    )
    return _plan(location, parsed, config, folder, meter or Meter(), progress or silent)


def _plan(
    source: str,
    chain: Chain,
    config: PlanConfig,
    folder: str | os.PathLike[str] | None,
    meter: Meter,
    progress: Progress,
) -> Plan:
    """Measure a sample in a folder that is deleted at the end, and price every choice."""
    with tempfile.TemporaryDirectory(prefix="joulecache-plan-", dir=folder) as work:
        sample = Sampler(source, chain, config, Path(work), meter, progress).measure()
    choices = price(sample.caches, sample.online, _job(sample, config, meter.provenance().pue))
    fitting = within_budget(choices, config.disk_budget_bytes)
    return Plan(
        source=source,
        chain=chain,
        epochs=config.epochs,
        runs=config.runs,
        days=config.days,
        disk_budget_bytes=config.disk_budget_bytes,
        records=sample.records,
        sampled=sample.images,
        duration_s=sample.duration_s,
        steps=sample.steps,
        choices=ranked(fitting),
        too_large=len(choices) - len(fitting),
        online_refused=sample.refused,
        unmeasured=sample.unmeasured,
        disk_bytes_per_s=sample.disk_bytes_per_s,
        method=sample.method,
        options=build_options(config),
    )


def _job(sample: Sample, config: PlanConfig, pue: float) -> Job:
    train = round(sample.records * sample.train_share)
    return Job(
        train_records=train,
        val_records=sample.records - train,
        source_bytes=sample.source_bytes,
        epochs=config.epochs,
        runs=config.runs,
        days=config.days,
        memory_bytes=_PAGE_CACHE_SHARE * memory_limit(),
        disk_bytes_per_s=sample.disk_bytes_per_s,
        idle_w=sample.idle_w,
        ends=sample.ends,
        pue=pue,
        build_error=sample.build_error,
    )


def build_options(config: PlanConfig) -> tuple[str, ...]:
    """Return the options of the command that builds a cache of the whole source, except those of a choice."""
    options = dataclasses.replace(config, limit=None).source_options() | (
        {} if config.seed == 0 else {"seed": config.seed}
    )
    if config.splits is not None:
        options["splits"] = ",".join(f"{split}={name}" for split, name in config.splits.items())
    repeated = [
        (name, each) for name, value in options.items() for each in (value if isinstance(value, tuple) else (value,))
    ]
    return tuple(word for name, value in repeated for word in (f"--{name}", str(value)))


def within_budget(choices: Sequence[Choice], budget_bytes: float | None) -> tuple[Choice, ...]:
    """Return the choices that fit a disk budget; raise ValueError if no cache does."""
    if budget_bytes is None:
        return tuple(choices)
    fitting = tuple(choice for choice in choices if choice.cache_bytes <= budget_bytes)
    if not any(choice.layout for choice in fitting):
        least = min((choice for choice in choices if choice.layout), key=lambda choice: choice.cache_bytes)
        raise ValueError(
            f"no cache of this source fits a disk budget of {budget_bytes / 1e6:,.1f} MB: the smallest ({least.layout}) needs "
            f"{least.cache_bytes / 1e6:,.1f} MB"
        )
    return fitting
