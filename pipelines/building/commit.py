"""From the results of shards to the manifest that makes them a cache."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import operator
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import features

from joulecache.pipelines.building.config import BuildError, Recipe, RejectsError
from joulecache.pipelines.building.previous import Reject
from joulecache.pipelines.building.shard import ShardResult
from joulecache.pipelines.cache.manifest import INDEX_SCHEMA, Manifest, Split
from joulecache.pipelines.cache.manifest import write_index as write_index_file
from joulecache.pipelines.cache.shards import SPLITS, DataFile, Levels, write_named
from joulecache.pipelines.source import Source
from joulecache.transforms.chain import fixed_size, output_channels


def refuse_failures(results: Sequence[ShardResult]) -> None:
    """Raise BuildError when a shard could not be written."""
    failed = [result for result in results if result.error]
    if failed:
        raise BuildError(f"{len(failed)} of {len(results)} shards could not be written: {failed[0].error}")


def refuse_rejects(results: Sequence[ShardResult], source: Source, rate: float) -> None:
    """Raise RejectsError when more than `rate` of the records were rejected, BuildError when all of them were."""
    rejects = _rejects(results, source)
    total = source.records + len(source.refused)
    if len(rejects) <= rate * total and len(rejects) < total:
        return
    first = "; ".join(f"{reject.key}: {reject.reason}" for reject in rejects[:3])
    message = f"{len(rejects)} of {total} records rejected, more than max_reject_rate {rate:g} allows: {first}"
    if len(rejects) == total:
        raise BuildError(message)
    enough = math.ceil(1000 * len(rejects) / total) / 1000
    raise RejectsError(f"{message}; the others are kept: to finish without these give --max-reject-rate {enough:g}")


def _rejects(results: Sequence[ShardResult], source: Source) -> list[Reject]:
    rejects = [reject for result in results for reject in result.rejects]
    rejects += [Reject(*refused) for refused in source.refused]
    return sorted(rejects, key=lambda reject: reject.key)


def write_index(folder: Path, parts: Sequence[Any]) -> DataFile:
    """Merge the shards' parts of the index, in the order of the shards, into one file ordered by split, shard and row."""
    table = pa.concat_tables(parts).combine_chunks()
    split = table["split"].to_numpy()
    # Parts come by shard and hold the splits in their order: a stable sort by split gives split, shard, row.
    batch = table.take(np.argsort(split, kind="stable")).combine_chunks().to_batches()
    rows = batch[0] if batch else pa.RecordBatch.from_pylist([], INDEX_SCHEMA)
    size, digest, name = write_named(
        folder, lambda file: write_index_file(file, rows), lambda hashed: f"index-{hashed}.arrow"
    )
    return DataFile(name, rows.num_rows, size, digest)


def write_rejects(folder: Path, results: Sequence[ShardResult], source: Source) -> DataFile:
    """Write the rejected records, one JSON object a line, ordered by key."""
    lines = [json.dumps(dataclasses.asdict(reject)) + "\n" for reject in _rejects(results, source)]
    size, digest, name = write_named(
        folder, lambda file: file.writelines(line.encode() for line in lines), lambda hashed: f"rejected-{hashed}.jsonl"
    )
    return DataFile(name, len(lines), size, digest)


def make_manifest(
    recipe: Recipe,
    source: Source,
    shards: int,
    results: Sequence[ShardResult],
    index: DataFile,
    rejected: DataFile,
    energy: Mapping[str, Any] | None,
    parts: Sequence[Any],
) -> Manifest:
    """Put the manifest together; BuildError when records in are not records cached plus records rejected."""
    came = source.records + len(source.refused)
    if came != index.records + rejected.records:
        raise BuildError(
            f"{came} records came in, {index.records} were cached and {rejected.records} rejected: none may be lost"
        )
    classes = len(source.class_names)
    counts = {split: np.zeros(classes, np.int64) for split in SPLITS}
    for part in parts:
        labels, of_split = part["label"].to_numpy(), part["split"].to_numpy()
        for number, split in enumerate(SPLITS):
            counts[split] += np.bincount(labels[of_split == number], minlength=classes)
    return Manifest(
        chain=str(recipe.chain),
        seed=recipe.seed,
        variants=recipe.variants,
        format=recipe.format,
        encoding=recipe.encoding,
        quality=recipe.quality,
        val_fraction=recipe.val_fraction,
        shards=shards,
        class_names=source.class_names,
        source={
            "location": source.location,
            "records": came,
            "bytes": sum(result.source_bytes for result in results),
            "skipped": dict(sorted(source.skipped.items())),
        },
        splits={split: _split(split, recipe, results, counts[split]) for split in SPLITS},
        index=index,
        rejected=rejected,
        versions=_versions(),
        energy=energy,
    )


def _split(name: str, recipe: Recipe, results: Sequence[ShardResult], class_counts: NDArray[np.int64]) -> Split:
    chain, variants = recipe.of(name)
    written = [result.files[name] for result in results if name in result.files]
    files = tuple(files[variant] for variant in range(variants) for files in written)
    mean, std = _level_statistics([file.levels for file in files if file.levels])
    size = fixed_size(chain.prefix)
    return Split(
        chain=str(chain),
        fingerprint=chain.fingerprint,
        variants=variants,
        records=int(class_counts.sum()),
        image_shape=(*(size or (None, None)), output_channels(chain.prefix)),
        class_counts=tuple(class_counts.tolist()),
        mean=mean,
        std=std,
        files=files,
    )


def _level_statistics(levels: Sequence[Levels]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, from exact integer sums."""
    if not levels:
        return (), ()
    total = functools.reduce(operator.add, levels)
    mean = tuple(first / total.pixels for first in total.sums)
    spreads = (second * total.pixels - first * first for first, second in zip(total.sums, total.squares, strict=True))
    return mean, tuple(math.sqrt(spread) / total.pixels for spread in spreads)


def read_part(work: Path, result: ShardResult) -> Any:
    """Return a shard's part of the index."""
    with pa.ipc.open_file(pa.memory_map(str(work / result.index))) as reader:
        return reader.read_all()


def _versions() -> dict[str, str]:
    """Return the versions of what shapes pixels."""
    names = ("joulecache", "numpy", "pillow", "pyarrow")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return {**found, "libjpeg_turbo": features.version_feature("libjpeg_turbo") or "unknown"}
