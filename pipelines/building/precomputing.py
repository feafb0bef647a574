"""Build or update a cache."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from joulecache.pipelines.building import commit
from joulecache.pipelines.building.beam_graph import BeamOptions, parse_beam_options, run_specs
from joulecache.pipelines.building.config import BuildConfig, ShardConfig
from joulecache.pipelines.building.destination import Destination, open_destination, write_errors
from joulecache.pipelines.building.energy_log import EnergyLog, total_energy
from joulecache.pipelines.building.job import Job, first_draw, make_job
from joulecache.pipelines.building.metering import Metering
from joulecache.pipelines.building.monitor import Monitor
from joulecache.pipelines.building.notes import log_repeated_draws
from joulecache.pipelines.building.results import BuildProgress, Built, Progress
from joulecache.pipelines.building.resume import finished_result
from joulecache.pipelines.building.shard_memory import PROCESS_BYTES
from joulecache.pipelines.building.specs import ShardResult, ShardSpec, read_result
from joulecache.pipelines.building.stored_features import StoredFeatures, write_features
from joulecache.pipelines.building.work_folder import UNITS
from joulecache.pipelines.building.worker_pool import worker_count
from joulecache.pipelines.cache.manifest import BuildEnergy, Manifest
from joulecache.pipelines.cache.names import Encoding, Format
from joulecache.pipelines.core.checks import check_path
from joulecache.pipelines.core.object_store import StoreError
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.source import Source, log_notes, open_source, store_units
from joulecache.transforms.chain import Chain, as_chain

_FEW_RECORDS, _FEW_BYTES = 1000, 32 << 20
_ACCEPT_REJECTS = "finished shards are kept: to accept these rejects, pass --max-reject-rate "

__all__ = ["BuildProgress", "Built", "Progress", "precompute"]


def precompute(
    source: str | os.PathLike[str],
    cache: str | os.PathLike[str],
    chain: Chain | str,
    *,
    val_chain: Chain | str | None = None,
    variants: int = 1,
    format: Format = "arrow",
    encoding: Encoding = "raw",
    quality: int | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
    shards: int | None = None,
    workers: int | None = None,
    limit: int | None = None,
    labels: str | os.PathLike[str] | None = None,
    masks: str | os.PathLike[str] | None = None,
    coco: str | os.PathLike[str] | None = None,
    splits: Mapping[str, str] | None = None,
    image: str | None = None,
    target: str | Sequence[str] | None = None,
    max_reject_rate: float = 0.05,
    advance: int | None = None,
    replace: bool = False,
    rehash: bool = False,
    beam_options: BeamOptions = (),
    meter: Meter | None = None,
    progress: Progress | None = None,
) -> Built:
    """Build or update the cache of a source; do nothing if it is up to date.

    An update computes only new and changed records and missing variants. A build that is interrupted, loses its runner or has too many
    rejects keeps its finished shards: call it again to build the missing ones. A failed build does not change an existing cache. In an
    object store, the first of several concurrent builds wins, and the others raise CacheError.

    Args:
        source: A folder, file or pattern, a URL in an object store, ``synthetic:N`` or ``tfds:NAME``; see `open_source`.
        cache: The folder of the cache, or its URL (s3://, gs://). It must be new, empty or a cache.
        chain: The ops, as a `Chain` or as text. The ops before the cut are cached.
        val_chain: The chain of held-out records. Default: `chain` without its random ops.
        variants: Number of draws of the cached ops to store for each training record.
        format: Shard format, ``arrow`` or ``tfrecord``.
        encoding: Encoding of the stored images: ``raw`` (uint8, one size), ``jpeg`` or ``png``.
        quality: JPEG quality, 1 to 100. Default: 95.
        val_fraction: Fraction of records to hold out. Default: 0.1, or the validation split of the source.
        seed: Seed of all draws.
        shards: Files per split and variant. Default: about 64 MiB each, up to 16 of 4 MiB, at most 8,000.
        workers: Worker processes. Default: one per CPU, or none for a small source.
        limit: Read at most this many records.
        labels: CSV file with the classes of the images.
        masks: Folder of masks named like the images, or a pattern of folders or files.
        coco: COCO file of the boxes (instances JSON), or a pattern of such files.
        splits: Names of the folders or files of the splits, by split: ``{"train": "training", "test": "holdout"}``.
        image: Column of the images in Parquet or TFRecord files.
        target: Targets, as ``NAME`` or ``NAME:KIND``, KIND being class, multilabel, value, text, mask, boxes or points: columns of
            Parquet or TFRecord files or of `labels`, or keys of the .json files of a tar. Several as a sequence; ``none`` for images alone.
        max_reject_rate: Fraction of records that may be rejected, 0 to 1.
        advance: Compute the next draws of an existing cache, this many, and drop as many of the oldest. Its trainings go on: what is open
            stays readable. Every call that succeeds advances; one that fails can be repeated.
        replace: Replace a cache that was built with other options.
        rehash: Read all records and compare their content, instead of skipping those with unchanged size and modification time.
        beam_options: Options of Apache Beam: a list, such as ``["--runner=FlinkRunner"]``, or Beam's ``PipelineOptions``.
        meter: Meters the build. Workers elsewhere meter themselves with the same coefficients.
        progress: Called from another thread when shards are finished.

    Returns:
        The manifest, and counts of what was done.

    Raises:
        ValueError: An argument is wrong.
        SourceError: The source cannot be used.
        CacheError: The folder has other files, a cache with other options, or a concurrent build.
        BuildError: The cache cannot be written, all or too many records were rejected (`RejectsError`), or the Beam runner failed
            (`EngineError`).
    """
    source, cache = check_path("source", source), check_path("cache", cache)
    config = BuildConfig(
        chain=as_chain(chain),
        val_chain=None if val_chain is None else as_chain(val_chain),
        variants=variants,
        format=format,
        encoding=encoding,
        quality=quality,
        val_fraction=val_fraction,
        seed=seed,
        shards=shards,
        workers=workers,
        limit=limit,
        labels=labels,
        masks=masks,
        coco=coco,
        splits=splits,
        image=image,
        target=target,
        max_reject_rate=max_reject_rate,
        advance=advance,
        replace=replace,
        rehash=rehash,
    )
    return _list_and_build(source, cache, config, parse_beam_options(beam_options), meter or Meter(), progress)


def _list_and_build(
    source: str | os.PathLike[str],
    cache: str | os.PathLike[str],
    config: BuildConfig,
    runner_options: Any,
    meter: Meter,
    progress: Progress | None,
) -> Built:
    with open_destination(cache) as destination:
        destination.refuse_overlap(source)
        existing = destination.existing_manifest()
        first_draw(config, existing)  # raises before the source is listed
        listed = open_source(source, config)
        destination.refuse_overlap(source, listed.linked)
        log_notes(listed)
        job = make_job(config, listed, destination, existing)
        if job.unchanged_manifest is None and config.advance is None:
            log_repeated_draws(config.chain, config.variants)
        del listed  # the job has its units
        return _run(job, destination, runner_options, meter, progress)


def build_cache(source: Source, cache: str | os.PathLike[str], config: BuildConfig, meter: Meter) -> Built:
    """Build or update the cache of a listed source, as `precompute` does, without its notes."""
    with open_destination(cache) as destination:
        job = make_job(config, source, destination, destination.existing_manifest())
        return _run(job, destination, None, meter, None)


def _with_suffix(destination: Destination, existing: Manifest, config: ShardConfig) -> Manifest:
    """Set the suffix of an up-to-date cache to that of `config`, and delete leftovers of a killed build. Images do not change."""
    splits = {
        name: dataclasses.replace(split, chain=str(config.chain_of(name))) for name, split in existing.splits.items()
    }
    wanted = dataclasses.replace(existing, chain=str(config.chain), splits=splits)
    if wanted != existing or destination.was_interrupted():
        with write_errors(destination), destination.hold(()):
            destination.commit(wanted)
    return wanted


def _run(job: Job, destination: Destination, runner_options: Any, meter: Meter, progress: Progress | None) -> Built:
    if (manifest := job.unchanged_manifest) is not None:
        return Built(_with_suffix(destination, manifest, job.config), unchanged=True)
    with write_errors(destination), destination.hold(job.specs) as work:
        return _build(job, destination, work, runner_options, meter, progress)


def _build(
    job: Job,
    destination: Destination,
    work: Path,
    runner_options: Any,
    meter: Meter,
    progress: Progress | None,
) -> Built:
    shards = [spec.shard for spec in job.specs]
    resumed, missing = _resume(job, destination, work)
    destination.refuse_full(int(job.image_bytes() * job.new_share * job.source.records * len(missing) / job.shards))
    metering = Metering.like(meter.provenance())
    missing = _with_stored_units(missing, destination, work, metering)
    job.specs.clear()  # frees their units, which are now in a file
    log = EnergyLog(meter, work)
    destination.publish(log.name)
    try:
        monitor = Monitor(destination, work, log, job.source.records, [*job.kept, *resumed], progress)
        with monitor.running():
            if missing:
                run_specs(missing, runner_options, 1 if runner_options else _workers(job, len(missing)))
        built = [read_result(work, shard) for shard in shards]
        results, parts = [*job.kept, *built], commit.index_parts(job, built, work)
        contents = commit.complete(job, results, parts, destination.folder, _ACCEPT_REJECTS)
    finally:
        logs = log.close()
        with suppress(StoreError):  # of a build that failed, it is for the next one
            destination.publish(log.name)
    spent = total_energy(logs, built, meter.provenance())
    manifest = commit.make_manifest(job, contents, _total_energy(job, spent))
    destination.commit(manifest)
    return Built(
        manifest=manifest,
        unchanged=False,
        resumed_shards=len(resumed),
        transformed=sum(result.transformed for result in built),
        copied=sum(result.copied for result in built),
        workers=tuple(sorted({result.worker for result in built})),
        energy=spent.energy,
    )


def _workers(job: Job, shards: int) -> int:
    """Return the number of worker processes: 1, for this process, where others would cost more than they save."""
    share = shards / job.shards
    is_small = job.source.records * share < _FEW_RECORDS and (job.source_bytes or 0) * share < _FEW_BYTES
    if is_small and job.workers is None:
        return 1
    shard_bytes = min(job.source.records / job.shards * job.image_bytes(), PROCESS_BYTES)
    return worker_count(job.workers, shards, shard_bytes)


def _resume(job: Job, destination: Destination, work: Path) -> tuple[list[ShardResult], list[ShardSpec]]:
    """Return the shards that an interrupted build finished, and those that are missing. Delete its other files."""
    resumed, missing = [], []
    for spec in job.specs:
        result = finished_result(work, spec, destination.is_intact)
        if result is not None:
            resumed.append(result)
        else:
            missing.append(spec)
    destination.keep_only(resumed)
    return resumed, missing


def _with_stored_units(
    specs: Sequence[ShardSpec], destination: Destination, work: Path, metering: Metering
) -> list[ShardSpec]:
    """Return the specs to send to workers, with large lists of units in a file, and the features in another."""
    if not specs:
        return []
    features = write_features(specs[0].features, work)
    destination.publish(features)
    stored_features = StoredFeatures(destination.work_location(features))
    units = store_units([spec.units for spec in specs], work / UNITS, destination.work_location(UNITS))
    if (work / UNITS).exists():
        destination.publish(UNITS)
    return [
        dataclasses.replace(spec, units=stored, features=stored_features, work=destination.work, metering=metering)
        for spec, stored in zip(specs, units, strict=True)
    ]


def _total_energy(job: Job, spent: BuildEnergy) -> BuildEnergy | None:
    """Return the energy of all builds that went into the cache; None if an earlier version did not measure one of them."""
    if not job.update:
        return spent
    before = job.update.manifest.energy
    return before and before + spent
