"""Build a cache: a plain function makes one shard, Beam runs it over all of them, and a manifest makes the result visible."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from joulecache.pipelines.build import commit
from joulecache.pipelines.build.beam_graph import parse_beam_options, run_specs
from joulecache.pipelines.build.folder import (
    delete_unlisted,
    existing_cache,
    keep_only,
    refuse_full_disk,
    refuse_overlap,
    work_folder,
)
from joulecache.pipelines.build.journal import ENERGY_LOG, EnergyLog, finished_result
from joulecache.pipelines.build.recipe import (
    DEFAULT_JPEG_QUALITY,
    SHARD_TARGET_BYTES,
    BuildError,
    Recipe,
    require_whole,
)
from joulecache.pipelines.build.shard import WORK, ShardResult, ShardSpec, build_shard, read_result
from joulecache.pipelines.manifest import (
    CacheError,
    Manifest,
    check_files,
    read_index,
    read_manifest,
    write_manifest,
)
from joulecache.pipelines.meter import Meter
from joulecache.pipelines.shards import SPLITS, Encoding, Format
from joulecache.pipelines.source import Source, Unit, open_source
from joulecache.transforms.chain import Chain, parse
from joulecache.transforms.randomness import key_hash

__all__ = ["BuildError", "BuildProgress", "Built", "Recipe", "ShardSpec", "build_shard", "precompute"]

_LARGEST_SHARDS = 99_999
_LOOK_S = 0.5


@dataclass(frozen=True)
class Built:
    """The outcome of `precompute`: the manifest, whether the cache was found up to date, and shards that a stopped build left."""

    manifest: Manifest
    unchanged: bool
    resumed_shards: int = 0


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is, by the shards that it has finished; `resumed_records` of the `done` were there when it began."""

    done: int
    records: int
    resumed_records: int
    rejects: int
    written_bytes: int
    energy_j: float
    duration_s: float

    @property
    def records_per_s(self) -> float:
        """Records finished in a second of this run."""
        return (self.done - self.resumed_records) / max(self.duration_s, 1e-9)


Progress = Callable[[BuildProgress], None]
"""Called while a build runs, when shards are finished."""


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
    val_fraction: float = 0.1,
    seed: int = 0,
    shards: int | None = None,
    workers: int | None = None,
    limit: int | None = None,
    max_reject_rate: float = 0.05,
    replace: bool = False,
    beam_options: Sequence[str] = (),
    meter: Meter | None = None,
    progress: Progress | None = None,
) -> Built:
    """Build the cache of a source, or find it up to date.

    `variants` is how many draws of the cached ops are kept, `val_fraction` the share of records held out, `shards` the number
    of files per split and variant (default: 64 MiB of images each), `workers` the threads of one shard (default: all cores),
    `beam_options` Beam's own flags, such as ``--runner=FlinkRunner``. `replace` swaps a cache of another recipe.

    Raises ValueError for arguments, SourceError, CacheError for a folder that must not be written, BuildError when too many
    records are rejected or the disk fails. A failed build leaves the previous cache as it was. One that was killed, stopped or had
    too many rejects goes on, called again, with the shards that are missing.
    """
    recipe = _recipe(chain, val_chain, variants, format, encoding, quality, val_fraction, seed)
    if workers is not None:
        require_whole("workers", workers, 1, 4096)
    if shards is not None:
        require_whole("shards", shards, 1, _LARGEST_SHARDS)
    if isinstance(max_reject_rate, bool) or not 0 <= max_reject_rate <= 1:
        raise ValueError(f"max_reject_rate must be from 0 to 1, got {max_reject_rate!r}")
    options = parse_beam_options(beam_options)
    folder = Path(cache)
    refuse_overlap(source, folder)
    existing = existing_cache(folder)
    listed = open_source(source, limit=limit)
    if existing is not None and not replace:
        _refuse_other_recipe(existing, recipe, shards, folder)
        if _is_current(folder, existing, listed):
            return Built(_refreshed(folder, existing, recipe), True)
        shards = existing.shards
    payload = recipe.image_bytes * listed.records
    count = shards or max(1, min(_LARGEST_SHARDS, math.ceil(payload / SHARD_TARGET_BYTES)))
    specs = _specs(listed, folder, count, recipe, workers or len(os.sched_getaffinity(0)))
    meter = meter or Meter()
    try:
        with work_folder(folder) as work:
            found = [finished_result(folder, spec) for spec in specs]
            resumed = [result for result in found if result]
            missing = [spec for spec, result in zip(specs, found, strict=True) if not result]
            keep_only(folder, resumed)
            refuse_full_disk(folder, payload * len(missing) // len(specs))
            log = EnergyLog(meter, work / ENERGY_LOG)
            try:
                with _watched(work, listed.records, resumed, log, progress):
                    if missing:
                        run_specs(missing, options)
                results = [read_result(work, spec.shard) for spec in specs]
                commit.refuse_failures(results)
                commit.refuse_rejects(results, listed, max_reject_rate)
                index = commit.write_index(folder, work, results)
                rejected = commit.write_rejects(folder, results, listed)
            finally:
                spent = log.close()
            energy = {"energy": spent.to_json(), "passport": meter.passport()}
            manifest = commit.make_manifest(recipe, listed, count, results, index, rejected, energy, work)
            write_manifest(folder, manifest)
            delete_unlisted(folder)
    except OSError as error:
        raise BuildError(f"cannot write to {str(folder)!r}: {error.strerror or error}") from error
    return Built(manifest, False, len(resumed))


def _recipe(
    chain: Chain | str,
    val_chain: Chain | str | None,
    variants: int,
    format: Format,
    encoding: Encoding,
    quality: int | None,
    val_fraction: float,
    seed: int,
) -> Recipe:
    train = parse(chain) if isinstance(chain, str) else chain
    val = train.for_validation() if val_chain is None else val_chain
    if isinstance(val, str):
        val = parse(val)
    if encoding == "jpeg" and quality is None:
        quality = DEFAULT_JPEG_QUALITY
    return Recipe(train, val, variants, format, encoding, quality, val_fraction, seed)


def _specs(source: Source, folder: Path, shards: int, recipe: Recipe, workers: int) -> list[ShardSpec]:
    ranges: list[list[Unit]] = [[] for _ in range(shards)]
    for unit in source.units:
        ranges[key_hash(unit.name) * shards >> 64].append(unit)
    where = str(folder.absolute())
    classes = len(source.class_names)
    return [
        ShardSpec(where, shard, shards, tuple(units), classes, recipe, workers) for shard, units in enumerate(ranges)
    ]


@contextmanager
def _watched(
    work: Path, records: int, resumed: Sequence[ShardResult], log: EnergyLog, progress: Progress | None
) -> Iterator[None]:
    """Look twice a second for finished shards: end a piece of the energy after them, and tell `progress`."""
    results = {result.shard: result for result in resumed}
    before = sum(map(_records_of, resumed))
    started = time.monotonic()

    def look() -> None:
        fresh = [int(path.stem) for path in work.glob("*.json") if int(path.stem) not in results]
        results.update((shard, read_result(work, shard)) for shard in fresh)
        if fresh:
            energy_j = log.cut()
            if progress:
                files = [file for result in results.values() for split in result.files.values() for file in split]
                progress(
                    BuildProgress(
                        done=sum(map(_records_of, results.values())),
                        records=records,
                        resumed_records=before,
                        rejects=sum(len(result.rejects) for result in results.values()),
                        written_bytes=sum(file.bytes for file in files),
                        energy_j=energy_j,
                        duration_s=time.monotonic() - started,
                    )
                )

    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(_LOOK_S):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()
        look()


def _records_of(result: ShardResult) -> int:
    return sum(files[0].records for files in result.files.values()) + len(result.rejects)


def _refuse_other_recipe(existing: Manifest, recipe: Recipe, shards: int | None, folder: Path) -> None:
    there: dict[str, object] = {name: split.fingerprint for name, split in existing.splits.items()}
    asked: dict[str, object] = {name: recipe.of(name)[0].fingerprint for name in SPLITS}
    for name in ("seed", "variants", "format", "encoding", "quality", "val_fraction"):
        there[name], asked[name] = getattr(existing, name), getattr(recipe, name)
    there["shards"], asked["shards"] = existing.shards, shards or existing.shards
    other = [name for name in asked if asked[name] != there[name]]
    if other:
        name = other[0]
        was, now = there[name], asked[name]
        if name in SPLITS:
            was, now = existing.splits[name].chain, str(recipe.of(name)[0])
            name = f"{name} chain"
        raise CacheError(
            f"{str(folder)!r} is a cache with {name} {was!r}, not {now!r}: give --replace to swap it, or another folder"
        )


def _is_current(folder: Path, existing: Manifest, source: Source) -> bool:
    """Say whether a cache is there, and was built from exactly these records, by key and modification time."""
    if existing.class_names != source.class_names:
        return False
    try:
        check_files(folder, existing)
        index = read_index(folder, existing)
        index.validate(full=True)
        known: dict[str, int | None] = dict(zip(index["key"].to_pylist(), index["mtime_ns"].to_pylist(), strict=True))
        with open(folder / existing.rejected.name, encoding="utf-8") as lines:
            for line in lines:
                reject = json.loads(line)
                if reject["mtime_ns"] is not None:
                    known[reject["key"]] = reject["mtime_ns"]
    except (ValueError, LookupError, TypeError, OSError):  # a damaged cache is not one to keep
        return False
    times = {key: unit.mtime_ns for unit in source.units for key in unit.record_keys()}
    return times == known


def _refreshed(folder: Path, existing: Manifest, recipe: Recipe) -> Manifest:
    """Give a cache of the same prefix the suffix that is asked for, and take away what a killed build left: no pixel changes."""
    splits = {
        name: dataclasses.replace(split, chain=str(recipe.of(name)[0])) for name, split in existing.splits.items()
    }
    wanted = dataclasses.replace(existing, chain=str(recipe.chain), splits=splits)
    if wanted != existing or (folder / WORK).exists():
        try:
            with work_folder(folder):
                if read_manifest(folder) != existing:
                    raise CacheError(f"{str(folder)!r} was rebuilt meanwhile: run the command again")
                write_manifest(folder, wanted)
                delete_unlisted(folder)
        except OSError as error:
            raise BuildError(f"cannot write to {str(folder)!r}: {error.strerror or error}") from error
    return wanted
