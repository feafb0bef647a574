"""Build a cache: a plain function makes one shard, Beam runs it over all of them, and a manifest makes the result visible."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from joulecache.pipelines.building import commit
from joulecache.pipelines.building.beam_graph import parse_beam_options, run_specs
from joulecache.pipelines.building.config import (
    DEFAULT_JPEG_QUALITY,
    DEFAULT_VAL_FRACTION,
    SHARD_TARGET_BYTES,
    BuildError,
    Recipe,
    require_whole,
)
from joulecache.pipelines.building.destination import Destination, open_destination
from joulecache.pipelines.building.images import mean_image_bytes, sample
from joulecache.pipelines.building.journal import ENERGY_LOG, EnergyLog, finished_result
from joulecache.pipelines.building.previous import OldRow, Previous, Reject, files_of, is_unchanged, of_shard, old_rows
from joulecache.pipelines.building.shard import UNITS, ShardResult, ShardSpec, build_shard, read_result, this_process
from joulecache.pipelines.cache.manifest import CacheError, Manifest, read_index
from joulecache.pipelines.cache.shards import SPLITS, Encoding, Format
from joulecache.pipelines.core.object_store import StoreError
from joulecache.pipelines.energy import Energy, Meter
from joulecache.pipelines.source import Source, SourceError, open_source, store_units, take
from joulecache.transforms.chain import Chain, parse
from joulecache.transforms.randomness import key_hash

__all__ = ["BuildError", "BuildProgress", "Built", "Recipe", "ShardSpec", "build_shard", "precompute"]

_LARGEST_SHARDS = 99_999


@dataclass(frozen=True)
class Built:
    """The outcome of `precompute`: the manifest, and whether the cache was found up to date.

    `resumed_shards` were left finished by a build that was stopped. `transformed` images were computed in this one, `copied` ones were
    taken from the cache that was there, into shards that changed; those of other shards were left where they are. `workers` are the
    processes that built shards, each as host:process.
    """

    manifest: Manifest
    unchanged: bool
    resumed_shards: int = 0
    transformed: int = 0
    copied: int = 0
    workers: tuple[str, ...] = ()

    def _repr_html_(self) -> str | None:
        return self.manifest._repr_html_()


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is, by the shards that it has finished; `resumed_records` of the `done` were there when it began.

    `energy_j` is None where other processes build than the one that has the meter.
    """

    done: int
    records: int
    resumed_records: int
    rejects: int
    written_bytes: int
    energy_j: float | None
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

    Records are taken to be unchanged by their size and modification time, or by their content where these differ; `rehash` reads the
    content of all. Only what changed, and variants that are new, is computed.

    `source` and `cache` may lie in an object store, s3:// or gs://: what workers build then goes there, shard by shard, and of two builds
    that end the first wins, whole; the other raises CacheError.

    `variants` is how many draws of the cached ops are kept, `val_fraction` the share of records held out (default: 0.1, or what the
    source itself holds out), `shards` the number of files per split and variant (default: 64 MiB of images each), `workers` the threads
    of one shard (default: all cores), `labels` a CSV file with the images' classes, `beam_options` Beam's own flags, such as
    ``--runner=FlinkRunner``. `replace` swaps a cache of another recipe.

    Raises ValueError for arguments, SourceError, CacheError for a folder that must not be written, BuildError when too many
    records are rejected or the disk fails, EngineError, one of them, when the Beam runner does. A failed build leaves the previous
    cache as it was. One that was killed or stopped, lost its runner or had too many rejects goes on, called again, with the shards that
    are missing. The energy of a build is unknown (None) where other processes than this one made shards.
    """
    recipe = _recipe(chain, val_chain, variants, format, encoding, quality, val_fraction, seed)
    if workers is not None:
        require_whole("workers", workers, 1, 4096)
    if shards is not None:
        require_whole("shards", shards, 1, _LARGEST_SHARDS)
    if isinstance(max_reject_rate, bool) or not 0 <= max_reject_rate <= 1:
        raise ValueError(f"max_reject_rate must be from 0 to 1, got {max_reject_rate!r}")
    options = parse_beam_options(beam_options)
    with open_destination(cache) as destination:
        destination.refuse_overlap(source)
        existing = destination.existing()
        listed = open_source(source, limit=limit, labels=labels)
        if listed.holds_out:
            if val_fraction is not None:
                raise SourceError(
                    f"{listed.location!r} holds records out itself: leave val_fraction out, got {val_fraction}"
                )
            recipe = dataclasses.replace(recipe, val_fraction=None)
        update = None
        if existing is not None and not replace:
            _refuse_other_recipe(existing, recipe, shards, cache)
            shards = existing.shards
            update = _Update.of(destination, existing, listed)
        image_bytes = functools.cache(functools.partial(mean_image_bytes, sample(listed.units), recipe))
        if shards is None:
            shards = max(1, min(_LARGEST_SHARDS, math.ceil(image_bytes() * listed.records / SHARD_TARGET_BYTES)))
        specs = _specs(listed, destination.where, shards, recipe, workers or len(os.sched_getaffinity(0)))
        listed = dataclasses.replace(listed, units=())  # they are in the specs: many are not held twice
        kept: list[ShardResult] = []
        if update is not None:
            if not rehash:
                kept = [result for spec in specs if (result := update.kept(spec))]
            if len(kept) == len(specs) and recipe.variants == update.manifest.variants:
                return Built(_refreshed(destination, update.manifest, recipe), True)
            left = {result.shard for result in kept}
            specs = [
                dataclasses.replace(spec, previous=update.previous(spec), rehash=rehash)
                for spec in specs
                if spec.shard not in left
            ]
        meter = meter or Meter()
        with _told(destination), destination.hold(specs) as work:
            found = [finished_result(work, spec, destination.is_whole) for spec in specs]
            resumed = [result for result in found if result]
            missing = [spec for spec, result in zip(specs, found, strict=True) if not result]
            ranges = [spec.shard for spec in specs]
            destination.keep_only(resumed)
            destination.refuse_full(int(image_bytes() * listed.records * len(missing) / shards))
            parts = store_units([spec.units for spec in missing], work / UNITS, destination.location(UNITS))
            if (work / UNITS).exists():
                destination.share(UNITS)
            missing = [
                dataclasses.replace(spec, units=units, work=destination.work)
                for spec, units in zip(missing, parts, strict=True)
            ]
            del specs  # and with them what is in the file now
            log = EnergyLog(meter, work / ENERGY_LOG)
            try:
                with _watched(destination, work, listed.records, [*kept, *resumed], log, progress):
                    if missing:
                        run_specs(missing, options)
                there = {result.shard for result in resumed}
                built = [read_result(work, shard) for shard in ranges]
                results = sorted([*kept, *built], key=lambda result: result.shard)
                commit.refuse_failures(results)
                commit.refuse_rejects(results, listed, max_reject_rate)
                index_parts = [
                    update.part(result) if update and not result.index else commit.read_part(work, result)
                    for result in results
                ]
                index = commit.write_index(destination.folder, index_parts)
                rejected = commit.write_rejects(destination.folder, results, listed)
            finally:
                spent = log.close()
            if update and update.manifest.energy:  # what the cache has cost so far
                spent += Energy.from_json(update.manifest.energy["energy"])
            # What other processes spent nobody has measured: a part of it would be taken for the whole.
            known = all(
                result.metered and (result.shard in there or result.worker == this_process()) for result in built
            ) and not (update and not update.manifest.energy)
            energy = {"energy": spent.to_json(), "passport": meter.passport()} if known else None
            manifest = commit.make_manifest(recipe, listed, shards, results, index, rejected, energy, index_parts)
            destination.commit(manifest)
    return Built(
        manifest,
        False,
        len(resumed),
        sum(result.transformed for result in built),
        sum(result.copied for result in built),
        tuple(sorted({result.worker for result in built})),
    )


@contextmanager
def _told(destination: Destination) -> Iterator[None]:
    """Raise what the disk or the store fails with as a BuildError."""
    try:
        yield
    except StoreError as error:
        raise BuildError(f"cannot write to {destination.where!r}: {error}") from error
    except OSError as error:
        raise BuildError(f"cannot write to {str(destination.folder)!r}: {error.strerror or error}") from error


def _recipe(
    chain: Chain | str,
    val_chain: Chain | str | None,
    variants: int,
    format: Format,
    encoding: Encoding,
    quality: int | None,
    val_fraction: float | None,
    seed: int,
) -> Recipe:
    train = parse(chain) if isinstance(chain, str) else chain
    val = train.for_validation() if val_chain is None else val_chain
    if isinstance(val, str):
        val = parse(val)
    if encoding == "jpeg" and quality is None:
        quality = DEFAULT_JPEG_QUALITY
    if val_fraction is None:
        val_fraction = DEFAULT_VAL_FRACTION
    return Recipe(train, val, variants, format, encoding, quality, val_fraction, seed)


def _specs(source: Source, where: str, shards: int, recipe: Recipe, workers: int) -> list[ShardSpec]:
    ranges: list[array[int]] = [array("q") for _ in range(shards)]
    for row, unit in enumerate(source.units):
        ranges[key_hash(unit.name) * shards >> 64].append(row)
    classes = len(source.class_names)
    return [
        ShardSpec(where, shard, shards, take(source.units, rows), classes, recipe, workers, launcher=this_process())
        for shard, rows in enumerate(ranges)
    ]


@contextmanager
def _watched(
    destination: Destination,
    work: Path,
    records: int,
    resumed: Sequence[ShardResult],
    log: EnergyLog,
    progress: Progress | None,
) -> Iterator[None]:
    """Look from time to time for finished shards: keep the energy spent on them, and tell `progress`."""
    results = {result.shard: result for result in resumed}
    before = sum(map(_records_of, resumed))
    started = time.monotonic()

    def look() -> None:
        destination.collect()
        fresh = [int(path.stem) for path in work.glob("*.json") if int(path.stem) not in results]
        results.update((shard, read_result(work, shard)) for shard in fresh)
        if fresh:
            spent_j = log.write().total_j
            destination.share(ENERGY_LOG)
            if progress:
                files = [file for result in results.values() for split in result.files.values() for file in split]
                progress(
                    BuildProgress(
                        done=sum(map(_records_of, results.values())),
                        records=records,
                        resumed_records=before,
                        rejects=sum(len(result.rejects) for result in results.values()),
                        written_bytes=sum(file.bytes for file in files),
                        energy_j=spent_j if all(result.metered for result in results.values()) else None,
                        duration_s=time.monotonic() - started,
                    )
                )

    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(destination.look_s):
            with suppress(StoreError, CacheError):  # the last look says so
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


def _refuse_other_recipe(existing: Manifest, recipe: Recipe, shards: int | None, cache: str | os.PathLike[str]) -> None:
    there: dict[str, object] = {name: split.fingerprint for name, split in existing.splits.items()}
    asked: dict[str, object] = {name: recipe.of(name)[0].fingerprint for name in SPLITS}
    for name in ("seed", "format", "encoding", "quality", "val_fraction"):
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
            f"{os.fspath(cache)!r} is a cache with {name} {was!r}, not {now!r}: give --replace to swap it, or another folder"
        )


class _Update:
    """What is there of a cache that is brought up to date."""

    def __init__(self, folder: Path, manifest: Manifest, source: Source) -> None:
        self.manifest = manifest
        self._index = read_index(folder, manifest)
        self._index.validate(full=True)
        self._rows: dict[int, list[OldRow]] = {}
        for shard, row in zip(self._index["shard"].to_pylist(), old_rows(self._index), strict=True):
            self._rows.setdefault(shard, []).append(row)
        with open(folder / manifest.rejected.name, encoding="utf-8") as lines:
            rejects = [Reject(**json.loads(line)) for line in lines]
        # What could not be read, or was refused unread, is tried again.
        self._rejects = {reject.key: reject for reject in rejects if reject.mtime_ns is not None}
        self._relabelled = manifest.class_names != source.class_names

    @classmethod
    def of(cls, destination: Destination, manifest: Manifest, source: Source) -> _Update | None:
        """Return what can be kept; None for a damaged cache, of which nothing is."""
        try:
            destination.check(manifest)
            return cls(destination.folder, manifest, source)
        except StoreError:
            raise
        except (ValueError, LookupError, TypeError, OSError):
            return None

    def kept(self, spec: ShardSpec) -> ShardResult | None:
        """Return a shard that is as it should be, None where it must be built."""
        rows = self._rows.get(spec.shard, [])
        if self._relabelled or any(spec.recipe.of(split)[1] > self.manifest.splits[split].variants for split in SPLITS):
            return None
        known: dict[str, OldRow | Reject] = {row.key: row for row in rows}
        rejects = []
        records = 0
        for unit in spec.units:
            records += unit.count
            for key in unit.record_keys():
                if key not in known and (reject := self._rejects.get(key)):
                    known[key] = reject
                    rejects.append(reject)
            if not is_unchanged(unit, known):
                return None
        if len(rows) + len(rejects) != records:
            return None  # some are gone
        files = {split: files_of(self.manifest, split, spec.shard)[: spec.recipe.of(split)[1]] for split in SPLITS}
        there = {split: of for split, of in files.items() if of}
        return ShardResult(spec.shard, there, tuple(rejects), sum(row.size for row in rows), "", "")

    def previous(self, spec: ShardSpec) -> Previous:
        """Return what the cache holds of a shard that must be built."""
        keys = (key for unit in spec.units for key in unit.record_keys())
        rejects = tuple(self._rejects[key] for key in keys if key in self._rejects)
        splits = {
            name: dataclasses.replace(split, files=files_of(self.manifest, name, spec.shard))
            for name, split in self.manifest.splits.items()
        }
        return Previous(dataclasses.replace(self.manifest, splits=splits), rejects, self._relabelled)

    def part(self, result: ShardResult) -> Any:
        """Return a kept shard's part of the index."""
        return pa.Table.from_batches([of_shard(self._index, result.shard)])


def _refreshed(destination: Destination, existing: Manifest, recipe: Recipe) -> Manifest:
    """Give a cache of the same prefix the suffix that is asked for, and take away what a killed build left: no pixel changes."""
    splits = {
        name: dataclasses.replace(split, chain=str(recipe.of(name)[0])) for name, split in existing.splits.items()
    }
    wanted = dataclasses.replace(existing, chain=str(recipe.chain), splits=splits)
    if wanted != existing or destination.was_left():
        with _told(destination), destination.hold(()):
            destination.commit(wanted)
    return wanted
