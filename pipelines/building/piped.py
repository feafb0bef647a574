"""A cache built inside somebody's Beam pipeline: its plan, its shards, and the commit that ends it. Imports no Beam.

Nothing holds the cache folder while such a pipeline runs. Data files are named by their content, so that pipelines and tries of the same
work do not interfere; the commit locks the folder, and fails if another build has changed it.
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from joulecache.pipelines.building import commit
from joulecache.pipelines.building.config import BuildConfig, BuildError
from joulecache.pipelines.building.destination import Destination, open_destination, write_errors
from joulecache.pipelines.building.energy_log import read_logs, total_energy
from joulecache.pipelines.building.job import CacheSpec, check_targets, first_draw, refuse_other_options
from joulecache.pipelines.building.metering import Metering, ProcessLog
from joulecache.pipelines.building.previous import Previous, of_shard
from joulecache.pipelines.building.records import RecordUnit
from joulecache.pipelines.building.results import WriteResult
from joulecache.pipelines.building.rows import Reject
from joulecache.pipelines.building.shard import transform_shard, write_files
from joulecache.pipelines.building.specs import ShardResult, ShardSpec
from joulecache.pipelines.building.work_folder import WORK
from joulecache.pipelines.building.workspace import Workspace
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest import BuildEnergy, Manifest
from joulecache.pipelines.core.object_store import StoreError, is_remote
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.source import Source
from joulecache.pipelines.source.features import Features

SOURCE = "a Beam pipeline"
"""The source's location in the manifest."""
DEFAULT_SHARDS = 16
_ACCEPT_REJECTS = "to accept these rejects, pass max_reject_rate="


@dataclass(frozen=True)
class Plan:
    """What a pipeline builds, and what the cache was when the pipeline was made.

    Attributes:
        cache: Absolute path or URL of the cache.
        spec: What is built; its source has no records yet.
        before: The manifest that the cache had.
        copied: The same, if its images can be copied.
        metering: How workers meter themselves.
        work: Name of the folder of their energy logs in the cache.
        is_new: The cache is a local folder that did not exist.
    """

    cache: str
    spec: CacheSpec
    before: Manifest | None = field(repr=False)
    copied: Manifest | None = field(repr=False)
    metering: Metering
    work: str
    is_new: bool

    def shard_spec(self, shard: int, units: Sequence[RecordUnit]) -> ShardSpec:
        """Return the specification of a shard of these records."""
        spec = self.spec
        built = ShardSpec(
            cache=self.cache,
            shard=shard,
            shards=spec.shards,
            units=units,
            features=spec.source.features,
            config=spec.config,
            metering=self.metering,
            work=self.work,
        )
        if self.copied is None:
            return built
        return dataclasses.replace(built, previous=Previous(of_shard(self.copied, built), (), reread=True))


@dataclass(frozen=True)
class BuiltShard:
    """A shard whose files are written.

    Attributes:
        result: Its result.
        received: Records that it received.
        index: Its part of the index, as an Arrow stream.
        duration_s: Seconds that it took.
        used: What its worker used since its last shard.
    """

    result: ShardResult
    received: int
    index: bytes = field(repr=False)
    duration_s: float
    used: ProcessLog

    @property
    def written_bytes(self) -> int:
        """Bytes of its files, of all splits and variants."""
        return sum(file.bytes for file in self.result.data_files)


def make_plan(cache: str, config: BuildConfig, features: Features, sources: Sequence[Source]) -> Plan:
    """Plan a cache that is built from records; nothing is written.

    Args:
        cache: The cache.
        config: The options of the cache.
        features: The features of the records' targets.
        sources: The sources from which the records are read.

    Raises:
        CacheError: The folder has other files, a cache with other options, or contains a source.
        ValueError: A cached op does not say how targets move with the pixels, or targets need the same column.
    """
    holds_out = config.val_fraction is None and any(source.holds_out for source in sources)
    check_targets(features, config.shard_config(holds_out=holds_out))
    with open_destination(cache) as destination:
        for source in sources:
            destination.refuse_overlap(source.location, source.linked)
        before = destination.existing_manifest()
        shard_config = config.shard_config(holds_out=holds_out, first_draw=first_draw(config, before))
        shards, copied = config.shards, None
        if before is not None and not config.replace:
            refuse_other_options(before, shard_config, shards, destination.location)
            shards, copied = before.shards, _intact(destination, before)
        spec = CacheSpec(
            config=shard_config,
            max_reject_rate=config.max_reject_rate,
            source=Source(SOURCE, features, (), 0, holds_out=False, skipped=Counter()),
            shards=shards or DEFAULT_SHARDS,
        )
        metering = Metering(build=uuid.uuid4().hex)
        is_new = not is_remote(cache) and not Path(cache).exists()
        return Plan(destination.location, spec, before, copied, metering, destination.work_of(()), is_new)


def _intact(destination: Destination, manifest: Manifest) -> Manifest | None:
    try:
        destination.prepare_update(manifest)
    except StoreError:
        raise
    except (CacheError, OSError):
        return None
    return manifest


# Shards ---------------------------------------------------------------------------------------------------------------


def build_records(plan: Plan, shard: int, received: Iterable[RecordUnit | Reject]) -> BuiltShard:
    """Build the shard of some records, which are held in memory.

    Raises:
        OSError: The cache cannot be written to.
    """
    started = time.monotonic()
    if not is_remote(plan.cache):
        Path(plan.cache, WORK).mkdir(parents=True, exist_ok=True)  # says that an unfinished cache is ours
    with Workspace(plan.shard_spec(shard, ())) as workspace:  # receiving is metered too
        elements = [*received]
        units, rejects = _distinct([unit for unit in elements if isinstance(unit, RecordUnit)])
        rejects += [reject for reject in elements if isinstance(reject, Reject)]
        transformed = transform_shard(dataclasses.replace(workspace.spec, units=units))
        transformed.rejects.extend(rejects)
        result, rows = write_files(transformed)
        workspace.upload(result)
        used = workspace.finish()
    if result.records != len(elements):
        raise BuildError(
            f"shard {shard} received {len(elements)} records, but has {result.records}: report this as a bug"
        )
    return BuiltShard(result, len(elements), _to_bytes(rows), time.monotonic() - started, used)


def _distinct(units: Iterable[RecordUnit]) -> tuple[list[RecordUnit], list[Reject]]:
    """Return the records in the order of the shard, and those that have the key of another one.

    Of equal records one is kept; of different records with one key, none.
    """
    by_key: dict[str, list[RecordUnit]] = {}
    for unit in units:
        by_key.setdefault(unit.name, []).append(unit)
    kept: list[RecordUnit] = []
    rejects: list[Reject] = []
    for same in by_key.values():
        same.sort(key=lambda unit: (unit.position, unit.mtime_ns))
        is_equal = all(unit.content == same[0].content for unit in same)
        kept += same[:is_equal]
        reason = f"its key occurs {len(same)} times" + ("" if is_equal else ", with different images or targets")
        rejects += [Reject(unit.name, reason, unit.size_bytes, unit.mtime_ns) for unit in same[is_equal:]]
    return sorted(kept, key=lambda unit: (unit.position, unit.name)), rejects


def _to_bytes(rows: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return bytes(sink.getvalue())


def _from_bytes(data: bytes) -> pa.Table:
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()


# Commit ---------------------------------------------------------------------------------------------------------------


def commit_shards(plan: Plan, shards: Sequence[BuiltShard]) -> WriteResult:
    """Make the shards of a pipeline visible as a cache. A second try finds that the first one succeeded.

    Raises:
        BuildError: There are no records, too many were rejected (`RejectsError`), or the cache cannot be written to.
        CacheError: Another build changed the cache, or holds it.
    """
    try:
        return _commit(plan, shards)
    except BaseException:
        if plan.is_new:
            with suppress(OSError):  # another pipeline writes to it, or there is none
                Path(plan.cache).rmdir()
        raise


def _commit(plan: Plan, shards: Sequence[BuiltShard]) -> WriteResult:
    if not shards:
        raise BuildError(f"no records reached WriteCache: {plan.cache!r} is unchanged")
    source = dataclasses.replace(plan.spec.source, records=sum(shard.received for shard in shards))
    spec = dataclasses.replace(plan.spec, source=source)
    results = [shard.result for shard in shards]
    with open_destination(plan.cache) as destination:
        existing = destination.existing_manifest()
        with write_errors(destination), destination.hold(()) as work:
            parts = (_from_bytes(shard.index) for shard in shards)
            contents = commit.complete(spec, results, parts, destination.folder, _ACCEPT_REJECTS)
            manifest = commit.make_manifest(spec, contents, _energy(plan, shards, work))
            if existing is not None and dataclasses.replace(manifest, energy=existing.energy) == existing:
                manifest = existing
            elif existing != plan.before:
                raise CacheError(f"{plan.cache!r} was modified concurrently: run the pipeline again")
            else:
                destination.commit(manifest)
    return WriteResult(
        manifest=manifest,
        records=contents.index.records,
        rejects=tuple(contents.rejects),
        transformed=sum(result.transformed for result in results),
        copied=sum(result.copied for result in results),
        workers=tuple(sorted({result.worker for result in results})),
    )


def _energy(plan: Plan, shards: Sequence[BuiltShard], work: Path) -> BuildEnergy | None:
    """Return the energy of all builds that went into the cache; None if an earlier version did not measure one of them.

    The logs in the work folder include what was lost with a worker. A result has that of a worker whose log could not be written.
    """
    logs = [log for log in read_logs(work) if log.build == plan.metering.build]
    logged = {log.process for log in logs}
    logs += [shard.used for shard in shards if shard.used.process not in logged]
    spent = total_energy(logs, (), Meter().provenance())
    if plan.copied is None:
        return spent
    return plan.copied.energy and plan.copied.energy + spent
