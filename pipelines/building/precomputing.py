"""Build a cache, bring it up to date, or find that it is."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from joulecache.pipelines.building import commit
from joulecache.pipelines.building.beam_graph import parse_beam_options, run_specs
from joulecache.pipelines.building.config import BuildConfig, BuildError, ShardConfig
from joulecache.pipelines.building.destination import Destination, open_destination
from joulecache.pipelines.building.energy_log import EnergyLog
from joulecache.pipelines.building.job import Job, make_job
from joulecache.pipelines.building.monitor import Monitor
from joulecache.pipelines.building.results import BuildProgress, Built, Progress
from joulecache.pipelines.building.resume import finished_result
from joulecache.pipelines.building.specs import ShardResult, ShardSpec, read_result, this_process
from joulecache.pipelines.building.work_folder import ENERGY_LOG, UNITS
from joulecache.pipelines.cache.manifest import BuildEnergy, Manifest
from joulecache.pipelines.cache.names import Encoding, Format
from joulecache.pipelines.core.object_store import StoreError
from joulecache.pipelines.energy import Energy, Meter
from joulecache.pipelines.source import open_source, store_units
from joulecache.transforms.chain import Chain, parse

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
    max_reject_rate: float = 0.05,
    replace: bool = False,
    rehash: bool = False,
    beam_options: Sequence[str] = (),
    meter: Meter | None = None,
    progress: Progress | None = None,
) -> Built:
    """Build the cache of a source, bring it up to date, or find that it is.

    An update computes only what changed: records that are new or have other content, and variants that are missing. A build that is
    interrupted, loses its runner or has too many rejects keeps its finished shards; called again, it builds the missing ones. A failed
    build leaves the previous cache as it was. In an object store, the first of several concurrent builds wins; the others raise CacheError.

    Args:
        source: A folder, file or pattern, a URL in an object store, ``synthetic:N`` or ``tfds:NAME``; see `open_source`.
        cache: The folder to build, or its URL (s3://, gs://): new, empty, or a cache.
        chain: The ops, as a `Chain` or as text. The ops before the cut are cached.
        val_chain: The chain of held-out records. Default: `chain` without its random ops.
        variants: Draws of the cached ops to keep of each training record.
        format: Shard format, ``arrow`` or ``tfrecord``.
        encoding: How images are stored: ``raw`` (uint8, one size), ``jpeg`` or ``png``.
        quality: JPEG quality, 1 to 100. Default: 95.
        val_fraction: Share of records to hold out. Default: 0.1, or the source's own split.
        seed: Seed of every draw.
        shards: Files per split and variant. Default: about 64 MiB each.
        workers: Threads per shard. Default: all cores.
        limit: Read at most this many records.
        labels: CSV file with the classes of the images.
        max_reject_rate: Share of records that may be rejected, 0 to 1.
        replace: Replace a cache that was built with other options.
        rehash: Read all records and compare their content. Otherwise a record whose size and modification time are unchanged is not read.
        beam_options: Options of Apache Beam, such as ``--runner=FlinkRunner``.
        meter: Meters the build. The manifest has no energy (None) if other processes built shards.
        progress: Called from another thread whenever shards are finished.

    Returns:
        The manifest, and what was done.

    Raises:
        ValueError: An argument is wrong.
        SourceError: The source cannot be used.
        CacheError: The folder is not a cache, holds one that was built with other options, or is being built.
        BuildError: All or too many records were rejected (`RejectsError`), the Beam runner failed (`EngineError`), or the disk did.
    """
    config = BuildConfig(
        chain=_parsed(chain),
        val_chain=None if val_chain is None else _parsed(val_chain),
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
        max_reject_rate=max_reject_rate,
        replace=replace,
        rehash=rehash,
        beam_options=tuple(beam_options),
    )
    runner_options = parse_beam_options(config.beam_options)
    with open_destination(cache) as destination:
        destination.refuse_overlap(source)
        existing = destination.existing_manifest()
        listed = open_source(source, limit=config.limit, labels=config.labels)
        job = make_job(config, listed, destination, existing)
        del listed  # the job has its units
        if (manifest := job.unchanged_manifest) is not None:
            return Built(_with_suffix(destination, manifest, job.config), unchanged=True)
        with _write_errors(destination), destination.hold(job.specs) as work:
            return _build(job, destination, work, runner_options, meter or Meter(), progress)


def _parsed(chain: Chain | str) -> Chain:
    return parse(chain) if isinstance(chain, str) else chain


@contextmanager
def _write_errors(destination: Destination) -> Iterator[None]:
    """Raise errors of the disk or the store as BuildError."""
    try:
        yield
    except StoreError as error:
        raise BuildError(f"cannot write to {destination.location!r}: {error}") from error
    except OSError as error:
        raise BuildError(f"cannot write to {str(destination.folder)!r}: {error.strerror or error}") from error


def _with_suffix(destination: Destination, existing: Manifest, config: ShardConfig) -> Manifest:
    """Give an up-to-date cache the suffix of `config`, and delete what a killed build left. No image changes."""
    splits = {
        name: dataclasses.replace(split, chain=str(config.chain_of(name))) for name, split in existing.splits.items()
    }
    wanted = dataclasses.replace(existing, chain=str(config.chain), splits=splits)
    if wanted != existing or destination.was_interrupted():
        with _write_errors(destination), destination.hold(()):
            destination.commit(wanted)
    return wanted


def _build(
    job: Job, destination: Destination, work: Path, runner_options: Any, meter: Meter, progress: Progress | None
) -> Built:
    shards = [spec.shard for spec in job.specs]
    resumed, missing = _resume(job, destination, work)
    destination.refuse_full(int(job.image_bytes() * job.source.records * len(missing) / job.shards))
    missing = _with_stored_units(missing, destination, work)
    job.specs.clear()  # frees their units, which are in a file now
    log = EnergyLog(meter, work / ENERGY_LOG)
    try:
        monitor = Monitor(destination, work, log, job.source.records, [*job.kept, *resumed], progress)
        with monitor.running():
            if missing:
                run_specs(missing, runner_options)
        built = [read_result(work, shard) for shard in shards]
        contents = commit.complete(job, built, destination.folder, work)
    finally:
        spent = log.close()
    energy = _total_energy(job, built, {result.shard for result in resumed}, spent, meter)
    manifest = commit.make_manifest(job, contents, energy)
    destination.commit(manifest)
    return Built(
        manifest=manifest,
        unchanged=False,
        resumed_shards=len(resumed),
        transformed=sum(result.transformed for result in built),
        copied=sum(result.copied for result in built),
        workers=tuple(sorted({result.worker for result in built})),
    )


def _resume(job: Job, destination: Destination, work: Path) -> tuple[list[ShardResult], list[ShardSpec]]:
    """Return the shards that an interrupted build finished, and those that are missing. Delete everything else that it left."""
    resumed, missing = [], []
    for spec in job.specs:
        result = finished_result(work, spec, destination.is_intact)
        if result is not None:
            resumed.append(result)
        else:
            missing.append(spec)
    destination.keep_only(resumed)
    return resumed, missing


def _with_stored_units(specs: Sequence[ShardSpec], destination: Destination, work: Path) -> list[ShardSpec]:
    """Return the specs as they travel to workers: with their units in a file, if there are many."""
    units = store_units([spec.units for spec in specs], work / UNITS, destination.work_location(UNITS))
    if (work / UNITS).exists():
        destination.publish(UNITS)
    return [
        dataclasses.replace(spec, units=stored, work=destination.work)
        for spec, stored in zip(specs, units, strict=True)
    ]


def _total_energy(
    job: Job, built: Sequence[ShardResult], resumed: set[int], spent: Energy, meter: Meter
) -> BuildEnergy | None:
    """Return the energy of all builds that went into the cache; None if a part of it was not measured.

    What other processes used is not measured, and the rest alone would be mistaken for the whole.
    """
    here = this_process()
    if not all(result.metered if result.shard in resumed else result.worker == here for result in built):
        return None
    if job.update:
        if not job.update.manifest.energy:
            return None
        spent += job.update.manifest.energy.energy
    return BuildEnergy(spent, meter.provenance())
