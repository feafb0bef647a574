"""`WriteCache`: a Beam transform that writes records as a cache."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows

from joulecache.pipelines.building.beam_sources import ReadRecords
from joulecache.pipelines.building.config import BuildConfig
from joulecache.pipelines.building.notes import log_repeated_draws
from joulecache.pipelines.building.piped import BuiltShard, Plan, build_records, commit_shards, make_plan
from joulecache.pipelines.building.records import Record, RecordUnit, checked
from joulecache.pipelines.building.results import WriteResult
from joulecache.pipelines.building.rows import Reject
from joulecache.pipelines.cache.names import Encoding, Format
from joulecache.pipelines.core.checks import check_path, shown
from joulecache.pipelines.source import Source
from joulecache.pipelines.source.feature import Feature
from joulecache.pipelines.source.features import AnyFeature, Features, check_names, describe_features
from joulecache.transforms.chain import Chain, as_chain

NAMESPACE = "joulecache"
"""Namespace of all Beam metrics."""

_ONE_GROUP = 0


class _CheckRecords(beam.DoFn):  # type: ignore[misc]
    """Pairs each record, or why it is rejected, with the number of its shard."""

    def __init__(self, features: Features, shards: int) -> None:
        self._features, self._shards = features, shards

    def process(self, element: Record | Mapping[str, Any]) -> Iterator[tuple[int, RecordUnit | Reject]]:
        yield checked(element, self._features, self._shards)


class _BuildShards(beam.DoFn):  # type: ignore[misc]
    """Writes the shard of a group of records."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._records, self._rejects, self._bytes, self._energy_mj = (
            Metrics.counter(NAMESPACE, name) for name in ("records", "rejects", "bytes", "energy_mj")
        )
        self._us_per_record = Metrics.distribution(NAMESPACE, "us_per_record")

    def process(self, group: tuple[int, Iterable[RecordUnit | Reject]]) -> Iterator[BuiltShard]:
        built = build_records(self._plan, *group)
        self._records.inc(built.result.cached_records)
        self._rejects.inc(len(built.result.rejects))
        self._bytes.inc(built.written_bytes)
        self._energy_mj.inc(round(built.used.energy.active_j * 1000))
        self._us_per_record.update(round(built.duration_s * 1e6 / built.received))
        yield built


class _Commit(beam.DoFn):  # type: ignore[misc]
    """Makes all shards visible at once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def process(self, group: tuple[int, Iterable[BuiltShard | None]]) -> Iterator[WriteResult]:
        yield commit_shards(self._plan, [shard for shard in group[1] if shard is not None])


class WriteCache(beam.PTransform):  # type: ignore[misc]
    """Write a bounded PCollection of records as a cache.

    Encoded images are grouped by ranges of the hash of their keys, and each group is built as one shard: its images are in memory
    meanwhile. The shards are those that `precompute` builds of the same records, byte for byte. The last step makes all of them visible
    at once, or fails if too many records were rejected. Nothing else may build the cache at the same time: the first to commit wins.

    Records are rejected, with a reason, if they have no key or image, a damaged image, a target that is missing or does not fit its
    feature, or the key of another record: of equal records one is kept, of different ones none.

    Args:
        cache: The folder of the cache, or its URL (s3://, gs://), under the same name on all workers. It must be new, empty or a cache;
            images that a cache with the same options has already are copied instead of computed.
        chain: The ops, as a `Chain` or as text. The ops before the cut are cached.
        features: The feature of each target, by name; {} for images alone. Other targets of the records are ignored.
        val_chain: The chain of held-out records. Default: `chain` without its random ops.
        variants: Number of draws of the cached ops to store for each training record.
        format: Shard format, ``arrow`` or ``tfrecord``.
        encoding: Encoding of the stored images: ``raw`` (uint8, one size), ``jpeg`` or ``png``.
        quality: JPEG quality, 1 to 100. Default: 95.
        val_fraction: Fraction of the records without a split to hold out. Default: 0.1, or the validation split of the source.
        seed: Seed of all draws.
        shards: Files per split and variant, each of which one worker builds. Default: those of an existing cache, else 16.
        max_reject_rate: Fraction of records that may be rejected, 0 to 1.
        replace: Replace a cache that was built with other options.

    Returns:
        A PCollection of one `WriteResult`.

    Raises:
        ValueError: An argument is wrong, or, when it is applied, the PCollection is unbounded.
        CacheError: When it is applied, the folder has other files, a cache with other options, or contains the source.
    """

    def __init__(
        self,
        cache: str | os.PathLike[str],
        chain: Chain | str,
        *,
        features: Mapping[str, AnyFeature],
        val_chain: Chain | str | None = None,
        variants: int = 1,
        format: Format = "arrow",
        encoding: Encoding = "raw",
        quality: int | None = None,
        val_fraction: float | None = None,
        seed: int = 0,
        shards: int | None = None,
        max_reject_rate: float = 0.05,
        replace: bool = False,
    ) -> None:
        super().__init__()
        self.with_input_types(Record | Mapping[str, Any]).with_output_types(WriteResult)
        self._cache, self._features = check_path("cache", cache), _checked_features(features)
        self._config = BuildConfig(
            chain=as_chain(chain),
            val_chain=None if val_chain is None else as_chain(val_chain),
            variants=variants,
            format=format,
            encoding=encoding,
            quality=quality,
            val_fraction=val_fraction,
            seed=seed,
            shards=shards,
            max_reject_rate=max_reject_rate,
            replace=replace,
        )

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        """Apply the transform; called by Beam."""
        if not records.is_bounded:
            name = records.producer.full_label if records.producer else "its input"
            raise ValueError(f"WriteCache needs a bounded PCollection, got the unbounded one of {name!r}")
        plan = make_plan(self._cache, self._config, self._features, _sources_of(records))
        log_repeated_draws(self._config.chain, self._config.variants)
        by_shard = (
            records
            | "Forget windows" >> beam.WindowInto(GlobalWindows())
            | "Check records"
            >> beam.ParDo(_CheckRecords(self._features, plan.spec.shards)).with_output_types(tuple[int, Any])
        )
        shards = (
            by_shard
            | "Group by shard" >> beam.GroupByKey()
            | "Build shards" >> beam.ParDo(_BuildShards(plan)).with_output_types(BuiltShard)
            | "Key shards" >> beam.WithKeys(_ONE_GROUP).with_output_types(tuple[int, Any])
        )
        # Without records there is a group too, so that the commit fails instead of not running.
        always = records.pipeline | "Always" >> beam.Create([(_ONE_GROUP, None)]).with_output_types(tuple[int, Any])
        return (
            (shards, always)
            | "Flatten shards" >> beam.Flatten()
            | "Gather shards" >> beam.GroupByKey()
            | "Commit" >> beam.ParDo(_Commit(plan)).with_output_types(WriteResult)
        )

    def display_data(self) -> dict[str, Any]:
        """Return what runners show of this transform."""
        config = self._config
        return {
            "cache": self._cache,
            "chain": str(config.chain),
            "targets": describe_features(self._features),
            "variants": config.variants,
            "shards": config.shards or "of the existing cache, or the default",
            "format": f"{config.format}, {config.encoding}",
            "max_reject_rate": config.max_reject_rate,
        }


def _checked_features(features: Mapping[str, AnyFeature]) -> Features:
    if not isinstance(features, Mapping) or not all(isinstance(each, Feature) for each in features.values()):
        raise ValueError(
            f'features must be a dict such as {{"label": jc.features.ClassLabel(names)}}, got {shown(features)}'
        )
    check_names(features)
    return dict(features)


def _sources_of(records: beam.PCollection) -> list[Source]:
    """Return the sources of `ReadRecords` from which a PCollection is made."""
    found: dict[int, Source] = {}
    seen: set[beam.PCollection] = set()
    waiting = [records]
    while waiting:
        collection = waiting.pop()
        step = collection.producer
        if collection in seen or step is None:
            continue
        seen.add(collection)
        waiting += [*step.inputs, *(side.pvalue for side in step.side_inputs)]
        while step is not None:
            if isinstance(step.transform, ReadRecords):
                found[id(step)] = step.transform.source
            step = step.parent
    return [*found.values()]
