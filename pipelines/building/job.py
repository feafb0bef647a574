"""Plan a build: divide the source into shards, and decide which to build."""

from __future__ import annotations

import dataclasses
import functools
import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass

from joulecache.pipelines.building.config import (
    ENCODED_SHARD_BYTES,
    ENOUGH_SHARDS,
    LARGE_SHARD_BYTES,
    MANY_SHARDS,
    MAX_SHARDS,
    SMALL_SHARD_BYTES,
    BuildConfig,
    ShardConfig,
)
from joulecache.pipelines.building.destination import Destination
from joulecache.pipelines.building.images import mean_image_bytes, sample_units
from joulecache.pipelines.building.specs import ShardResult, ShardSpec
from joulecache.pipelines.building.update import Update
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.cache.names import SPLITS
from joulecache.pipelines.source import Source, SourceError, select
from joulecache.pipelines.source.features import Features, check_columns, spatial_features
from joulecache.transforms.randomness import key_hash
from joulecache.transforms.targets import check_moves


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """What a cache is built from, and how.

    Attributes:
        config: The options of the cache.
        max_reject_rate: Fraction of records that may be rejected.
        source: The source, without its units.
        shards: Number of shards per split and variant.
    """

    config: ShardConfig
    max_reject_rate: float
    source: Source
    shards: int


@dataclass(frozen=True, kw_only=True)
class Job(CacheSpec):
    """The plan of a build.

    Attributes:
        workers: Requested worker processes; None to choose.
        source_bytes: Expected encoded bytes of the source; None if unknown.
        image_bytes: Returns the expected bytes of one record in the cache, computed on first use.
        update: The existing cache to update; None to build everything.
        kept: Shards that do not change.
        specs: Shards to build.
    """

    workers: int | None
    source_bytes: float | None
    image_bytes: Callable[[], float]
    update: Update | None
    kept: list[ShardResult]
    specs: list[ShardSpec]

    @property
    def unchanged_manifest(self) -> Manifest | None:
        """The manifest of a cache that is up to date except for its suffix; None if shards must be built or dropped."""
        if self.specs or self.update is None:
            return None
        manifest, config = self.update.manifest, self.config
        has_draws = (manifest.first_draw, manifest.variants) == (config.first_draw, config.variants)
        return manifest if has_draws else None

    @property
    def new_share(self) -> float:
        """The share of the variants that are new where no record changed and the build advances; else all, as shards are written anew."""
        advanced = 0 if self.update is None else self.config.first_draw - self.update.manifest.first_draw
        return min(advanced, self.config.variants) / self.config.variants if advanced else 1.0


def make_job(config: BuildConfig, source: Source, destination: Destination, existing: Manifest | None) -> Job:
    """Plan a build, or an update of an existing cache.

    Raises:
        SourceError: The source has a validation split, and `val_fraction` was given.
        CacheError: The existing cache was built with other options.
        ValueError: A cached op does not say how targets move with the pixels, or targets need the same column.
    """
    if source.holds_out and config.val_fraction is not None:
        raise SourceError(
            f"{source.location!r} has a validation split: val_fraction must not be given, got {config.val_fraction}"
        )
    shard_config = config.shard_config(holds_out=source.holds_out, first_draw=first_draw(config, existing))
    check_targets(source.features, shard_config)
    shards, update = config.shards, None
    if existing is not None and not config.replace:
        refuse_other_options(existing, shard_config, shards, destination.location)
        shards = existing.shards
        update = Update.open(destination, existing, source)
    image_bytes = functools.cache(
        functools.partial(mean_image_bytes, sample_units(source.units), shard_config, source.features)
    )
    if shards is None:
        shards = default_shards(image_bytes() * source.records, is_raw=shard_config.encoding == "raw")
    specs = shard_specs(source, destination.location, shards, shard_config)
    kept: list[ShardResult] = []
    if update is not None:
        kept, specs = update.divide(specs, rehash=config.rehash)
    without_units = dataclasses.replace(source, units=())
    return Job(
        config=shard_config,
        max_reject_rate=config.max_reject_rate,
        source=without_units,
        workers=config.workers,
        source_bytes=_encoded_bytes(source),
        shards=shards,
        image_bytes=image_bytes,
        update=update,
        kept=kept,
        specs=specs,
    )


def first_draw(config: BuildConfig, existing: Manifest | None) -> int:
    """Return the draw of the first variant of a cache: an update leaves it as it is, unless it advances.

    Raises:
        CacheError: There is no cache to advance, or it has another number of variants.
    """
    if config.replace or (existing is None and config.advance is None):
        return 0
    if existing is None:
        raise CacheError(
            f"advance {config.advance} needs an existing cache, got none: build it first without --advance"
        )
    if config.advance is None:
        return existing.first_draw
    if config.variants != existing.variants:
        raise CacheError(
            f"advance keeps the number of variants, which is {existing.variants}, got variants {config.variants}: "
            f"pass --variants {existing.variants}"
        )
    if config.advance > existing.variants:
        raise CacheError(f"advance must be at most the {existing.variants} variants of the cache, got {config.advance}")
    return existing.first_draw + config.advance


def check_targets(features: Features, config: ShardConfig) -> None:
    """Raise ValueError if a cached op does not say how targets move with the pixels, or targets need the same column."""
    check_columns(features)
    if spatial_features(features):
        check_moves((*config.chain.prefix, *config.val_chain.prefix))


def _encoded_bytes(source: Source) -> float | None:
    """Estimate the encoded bytes of a source from a few units; return None if they do not know theirs."""
    sizes = [unit.size_bytes for unit in sample_units(source.units)]
    known = [size for size in sizes if size is not None]
    return sum(known) / len(known) * source.records if known else None


def default_shards(cache_bytes: float, *, is_raw: bool) -> int:
    """Return the number of shards per split.

    They have 64 MiB each, of all variants; less where each of many workers would otherwise have nothing to do; more where the cache
    would have too many files.
    """
    large, small = (math.ceil(cache_bytes / size) for size in (LARGE_SHARD_BYTES, SMALL_SHARD_BYTES))
    least = 1 if is_raw else math.ceil(cache_bytes / ENCODED_SHARD_BYTES)
    return max(1, min(MAX_SHARDS, max(min(large, MANY_SHARDS), min(small, ENOUGH_SHARDS), least)))


def shard_specs(source: Source, location: str, shards: int, config: ShardConfig) -> list[ShardSpec]:
    """Divide the units of a source into shards by the hash of their names."""
    rows_of_shard: list[array[int]] = [array("q") for _ in range(shards)]
    for row, unit in enumerate(source.units):
        rows_of_shard[key_hash(unit.name) * shards >> 64].append(row)
    return [
        ShardSpec(
            cache=location,
            shard=shard,
            shards=shards,
            units=select(source.units, rows),
            features=source.features,
            config=config,
        )
        for shard, rows in enumerate(rows_of_shard)
    ]


def refuse_other_options(existing: Manifest, config: ShardConfig, shards: int | None, cache: str) -> None:
    """Raise CacheError if a cache was built with options that result in different bytes."""
    differences: list[tuple[str, object, object]] = [
        (f"{name} chain", existing.splits[name].chain, str(config.chain_of(name)))
        for name in SPLITS
        if existing.splits[name].fingerprint != config.chain_of(name).fingerprint
    ]
    names = ("seed", "format", "encoding", "quality", "val_fraction")
    options = [(name, getattr(existing, name), getattr(config, name)) for name in names]
    options.append(("shards", existing.shards, shards or existing.shards))
    differences += [(name, was, now) for name, was, now in options if was != now]
    if differences:
        name, was, now = differences[0]
        if was == now:
            raise CacheError(
                f"{cache!r} was built with other versions of the ops in {was!r}, so its images differ from those of a new build: "
                "pass --replace to replace it, or choose another folder"
            )
        raise CacheError(
            f"{cache!r} was built with {name} {was!r}, not {now!r}: pass --replace to replace it, or choose another folder"
        )
