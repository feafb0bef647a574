"""An update: which shards of an existing cache do not change, and what the others can copy from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from joulecache.pipelines.building.destination import Destination
from joulecache.pipelines.building.previous import Previous, is_unchanged, of_shard, shard_files
from joulecache.pipelines.building.rows import IndexRow, Reject, index_rows
from joulecache.pipelines.building.specs import ShardResult, ShardSpec
from joulecache.pipelines.cache.index import read_index
from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.cache.names import SPLITS
from joulecache.pipelines.core import codec
from joulecache.pipelines.core.object_store import StoreError
from joulecache.pipelines.source import Source


class Update:
    """An existing cache to update."""

    def __init__(self, folder: Path, manifest: Manifest, source: Source) -> None:
        self.manifest = manifest
        self._index = read_index(folder, manifest)
        self._index.validate(full=True)
        self._rows: dict[int, list[IndexRow]] = {}
        for shard, row in zip(
            self._index["shard"].to_pylist(), index_rows(self._index, manifest.features), strict=True
        ):
            self._rows.setdefault(shard, []).append(row)
        with open(folder / manifest.rejected.name, encoding="utf-8") as lines:
            rejects = [codec.loads(Reject, line) for line in lines]
        # Records that could not be read have no modification time: they are tried again.
        self._rejects = {reject.key: reject for reject in rejects if reject.mtime_ns is not None}
        read_now = dict(source.features), source.columns
        self._reread = (dict(manifest.features), manifest.source.columns) != read_now

    @classmethod
    def open(cls, destination: Destination, manifest: Manifest, source: Source) -> Update | None:
        """Open an existing cache; return None if it is damaged, to build everything."""
        try:
            destination.prepare_update(manifest)
            return cls(destination.folder, manifest, source)
        except StoreError:
            raise
        except (ValueError, LookupError, TypeError, OSError):
            return None

    def divide(self, specs: Sequence[ShardSpec], *, rehash: bool) -> tuple[list[ShardResult], list[ShardSpec]]:
        """Return the results of unchanged shards, and the specs to build: with `rehash`, all of them."""
        kept: list[ShardResult] = []
        changed: list[ShardSpec] = []
        for spec in specs:
            result = None if rehash else self._unchanged(spec)
            if result is not None:
                kept.append(result)
            else:
                changed.append(dataclasses.replace(spec, previous=self._previous(spec), rehash=rehash))
        return kept, changed

    def kept_rows(self, kept: Sequence[ShardResult]) -> pa.Table:
        """Return the index rows of unchanged shards."""
        shards = pa.array([result.shard for result in kept], pa.int32())
        return pa.Table.from_batches([self._index.filter(pc.is_in(self._index["shard"], shards))])

    def _unchanged(self, spec: ShardSpec) -> ShardResult | None:
        """Return the result of an unchanged shard; None for one that must be built."""
        variants = {split: spec.config.variants_of(split) for split in SPLITS}
        if self._reread or any(count > self.manifest.splits[split].variants for split, count in variants.items()):
            return None
        if spec.config.first_draw != self.manifest.first_draw:
            return None
        rows = self._rows.get(spec.shard, [])
        known: dict[str, IndexRow | Reject] = {row.key: row for row in rows}
        rejects = []
        records = 0
        for unit in spec.units:
            records += unit.count
            for key in unit.record_keys():
                if key not in known and (reject := self._rejects.get(key)):
                    known[key] = reject
                    rejects.append(reject)
            if not is_unchanged(unit, known, self.manifest.features):
                return None
        if len(rows) + len(rejects) != records:
            return None  # records were removed from the source
        files = {split: shard_files(self.manifest, split, spec.shard)[:count] for split, count in variants.items()}
        return ShardResult(
            shard=spec.shard,
            files={split: split_files for split, split_files in files.items() if split_files},
            rejects=tuple(rejects),
            source_bytes=sum(row.source_bytes for row in rows),
            index="",
            spec="",
        )

    def _previous(self, spec: ShardSpec) -> Previous:
        keys = (key for unit in spec.units for key in unit.record_keys())
        rejects = tuple(self._rejects[key] for key in keys if key in self._rejects)
        return Previous(of_shard(self.manifest, spec), rejects, self._reread)
