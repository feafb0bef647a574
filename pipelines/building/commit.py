"""Turn the results of shards into an index, a list of rejects and a manifest."""

from __future__ import annotations

import functools
import math
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa

from joulecache.pipelines.building.config import BuildError, RejectsError, ShardConfig
from joulecache.pipelines.building.job import CacheSpec, Job
from joulecache.pipelines.building.rows import Reject
from joulecache.pipelines.building.specs import ShardResult
from joulecache.pipelines.cache.data_file import DataFile, PixelStats, TargetSummary
from joulecache.pipelines.cache.index import empty_index, write_index
from joulecache.pipelines.cache.manifest import BuildEnergy, Manifest, SourceSummary, Split
from joulecache.pipelines.cache.names import SPLITS
from joulecache.pipelines.cache.target_summaries import total
from joulecache.pipelines.core import codec
from joulecache.pipelines.core.files import write_named
from joulecache.pipelines.core.quantities import shortened
from joulecache.pipelines.source import Source
from joulecache.pipelines.source.feature import Feature
from joulecache.pipelines.source.features import (
    LABEL,
    AnyFeature,
    ClassLabel,
    Features,
    MultiLabel,
    Value,
    is_labelled,
    spatial_features,
)
from joulecache.transforms.chain import fixed_size, output_channels
from joulecache.transforms.versions import kernel_versions

_REJECTS_SHOWN = 3


@dataclass(frozen=True)
class Contents:
    """The files that a build wrote to the cache folder, with the rejects; by split the number of records, and what targets they have."""

    results: Sequence[ShardResult]
    rejects: Sequence[Reject]
    index: DataFile
    rejected: DataFile
    records: Mapping[str, int]
    targets: Mapping[str, Mapping[str, TargetSummary]]


def complete(
    spec: CacheSpec, shards: Iterable[ShardResult], parts: Iterable[pa.Table], folder: Path, advice: str
) -> Contents:
    """Check the results of shards, and write the index and the list of rejected records to `folder`.

    Args:
        spec: What is built.
        shards: The results, in any order.
        parts: The parts of the index, which are not read if the results are refused.
        folder: The folder.
        advice: How to accept more rejects, before the rate.

    Raises:
        BuildError: Shards could not be written, all records were rejected, or two shards have the same record.
        RejectsError: Too many records were rejected.
    """
    results = sorted(shards, key=lambda result: result.shard)
    _refuse_failures(results)
    rejects = _all_rejects(results, spec.source)
    _refuse_rejects(rejects, spec, advice)
    features = spec.source.features
    spatial = spatial_features(features)
    rows = _sorted_rows([*parts], features)
    _refuse_repeated(rows)
    split_of = rows["split"].to_numpy()
    by_split = {split: rows.filter(pa.array(split_of == number)) for number, split in enumerate(SPLITS)}
    return Contents(
        results,
        rejects,
        _write_index(folder, rows),
        _write_rejects(folder, rejects),
        {split: found.num_rows for split, found in by_split.items()},
        {
            split: {
                name: _stored(name, feature, split, results) if name in spatial else _summary(feature, found[name])
                for name, feature in features.items()
            }
            for split, found in by_split.items()
        },
    )


def _refuse_failures(results: Sequence[ShardResult]) -> None:
    failed = [result for result in results if result.error]
    if failed:
        raise BuildError(f"{len(failed)} of {len(results)} shards could not be written: {failed[0].error}")


def _all_rejects(results: Sequence[ShardResult], source: Source) -> list[Reject]:
    rejects = [reject for result in results for reject in result.rejects]
    rejects += [Reject(*refused) for refused in source.refused]
    return sorted(rejects, key=lambda each: (each.key, each.reason, each.source_bytes or 0, each.mtime_ns or 0))


def _refuse_rejects(rejects: Sequence[Reject], spec: CacheSpec, advice: str) -> None:
    rate = spec.max_reject_rate
    total = spec.source.records + len(spec.source.refused)
    if len(rejects) <= rate * total and len(rejects) < total:
        return
    first = shortened([f"{reject.key}: {reject.reason}" for reject in rejects], _REJECTS_SHOWN, "; ")
    message = f"{len(rejects)} of {total} records rejected, more than max_reject_rate {rate:g} allows: {first}"
    if len(rejects) == total:
        raise BuildError(message)
    enough = math.ceil(1000 * len(rejects) / total) / 1000
    raise RejectsError(f"{message}; {advice}{enough:g}")


def index_parts(job: Job, built: Sequence[ShardResult], work: Path) -> Iterator[pa.Table]:
    """Yield the parts of the index that built shards left in a work folder, and the rows of unchanged shards."""
    for result in built:
        with pa.ipc.open_file(pa.memory_map(str(work / result.index))) as reader:
            yield reader.read_all()
    if job.update and job.kept:  # without kept shards, the features may have changed
        yield job.update.kept_rows(job.kept)


def _sorted_rows(parts: Sequence[pa.Table], features: Features) -> pa.RecordBatch:
    """Merge the parts of the index, sorted by split, shard and row. The rows of each part are sorted."""
    table = pa.concat_tables(parts).combine_chunks()
    order = np.lexsort((table["shard"].to_numpy(), table["split"].to_numpy()))  # stable
    batches = table.take(order).combine_chunks().to_batches()
    return batches[0] if batches else empty_index(features)


def _refuse_repeated(rows: pa.RecordBatch) -> None:
    hashes = rows["key_hash"].to_numpy()
    if len(np.unique(hashes)) < len(hashes):
        key, count = Counter(rows["key"].to_pylist()).most_common(1)[0]
        if count > 1:
            raise BuildError(f"record {key!r} is in {count} shards: keys must be unique")


def _summary(feature: Feature, column: pa.Array) -> TargetSummary:
    match feature:
        case ClassLabel(names):
            return TargetSummary(tuple(np.bincount(feature.array(column), minlength=len(names)).tolist()))
        case MultiLabel():
            return TargetSummary(tuple(feature.array(column).sum(axis=0, dtype=np.int64).tolist()))
        case Value() if len(column):
            numbers = feature.array(column)
            return TargetSummary(low=numbers.min().item(), high=numbers.max().item())
        case _:
            return TargetSummary()


def _stored(name: str, feature: AnyFeature, split: str, results: Sequence[ShardResult]) -> TargetSummary:
    """Return the summary of targets that move with the pixels, in all files of a split."""
    files = (file for result in results for file in result.files.get(split, ()))
    return total(feature, ((file.targets or {})[name].summary for file in files))


def _write_index(folder: Path, rows: pa.RecordBatch) -> DataFile:
    file = write_named(folder, lambda file: write_index(file, rows), lambda digits: f"index-{digits}.arrow")
    return DataFile(file.name, rows.num_rows, file.bytes, file.sha256, None, None, None)


def _write_rejects(folder: Path, rejects: Sequence[Reject]) -> DataFile:
    """Write one JSON object per line, sorted by key."""
    data = "".join(codec.dumps(reject) + "\n" for reject in rejects).encode()
    file = write_named(folder, lambda file: file.write(data), lambda digits: f"rejected-{digits}.jsonl")
    return DataFile(file.name, len(rejects), file.bytes, file.sha256, None, None, None)


def make_manifest(spec: CacheSpec, contents: Contents, energy: BuildEnergy | None) -> Manifest:
    """Return the manifest of a build; BuildError if the number of records is not that of cached and rejected records."""
    config, source = spec.config, spec.source
    records = source.records + len(source.refused)
    if records != contents.index.records + contents.rejected.records:
        raise BuildError(
            f"{records} records went in, but {contents.index.records} were cached and {contents.rejected.records} rejected: "
            "report this as a bug"
        )
    return Manifest(
        chain=str(config.chain),
        seed=config.seed,
        variants=config.variants,
        format=config.format,
        encoding=config.encoding,
        quality=config.quality,
        val_fraction=config.val_fraction,
        shards=spec.shards,
        class_names=source.class_names,
        source=SourceSummary(
            location=source.location,
            records=records,
            bytes=sum(result.source_bytes for result in contents.results),
            skipped=dict(sorted(source.skipped.items())),
            columns=source.columns,
        ),
        splits={split: _make_split(split, config, contents, labelled=is_labelled(source.features)) for split in SPLITS},
        index=contents.index,
        rejected=contents.rejected,
        versions=_versions(),
        energy=energy,
        targets=None if is_labelled(source.features) else source.features,
    )


def _make_split(name: str, config: ShardConfig, contents: Contents, *, labelled: bool) -> Split:
    chain, variants = config.chain_of(name), config.variants_of(name)
    written = [result.files[name] for result in contents.results if name in result.files]
    files = tuple(files[variant] for variant in range(variants) for files in written)
    mean, std = _mean_and_std([file.pixel_stats for file in files if file.pixel_stats])
    return Split(
        chain=str(chain),
        fingerprint=chain.fingerprint,
        variants=variants,
        records=contents.records[name],
        image_shape=(*(fixed_size(chain.prefix) or (None, None)), output_channels(chain.prefix)),
        class_counts=(contents.targets[name][LABEL].counts or ()) if labelled else (),
        mean=mean,
        std=std,
        files=files,
        targets=None if labelled else contents.targets[name],
        first_draw=config.first_draw_of(name),
    )


def _mean_and_std(stats: Sequence[PixelStats]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, from exact integer sums."""
    if not stats:
        return (), ()
    total = functools.reduce(operator.add, stats)
    mean = tuple(first / total.pixels for first in total.sums)
    variances = (square * total.pixels - first * first for first, square in zip(total.sums, total.squares, strict=True))
    return mean, tuple(math.sqrt(variance) / total.pixels for variance in variances)


def _versions() -> dict[str, str]:
    """Return the versions of the packages that determine pixels."""
    versions: dict[str, str] = {}
    for name in ("joulecache", "pyarrow"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return versions | kernel_versions()
