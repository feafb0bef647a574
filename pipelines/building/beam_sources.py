"""`ReadRecords` and `ReadCache`: Beam transforms that read sources and caches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np

from joulecache.pipelines.building.images import decode_cached
from joulecache.pipelines.building.reading import read_ahead, read_or_reject
from joulecache.pipelines.building.records import Place, Record, TargetValue, readable, readable_boxes
from joulecache.pipelines.building.rows import Reject, index_rows
from joulecache.pipelines.cache.cache import Cache, open_cache
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.mapped_images import MappedImages
from joulecache.pipelines.cache.mapped_targets import MappedTargets
from joulecache.pipelines.cache.spatial_columns import BoxRows
from joulecache.pipelines.core.checks import check_integer
from joulecache.pipelines.core.object_store import is_remote
from joulecache.pipelines.source import Record as SourceRecord
from joulecache.pipelines.source import Source, SourceConfig, Unit, log_notes, open_source, select
from joulecache.pipelines.source.features import AnyFeature, Features
from joulecache.pipelines.source.spatial import Boxes
from joulecache.transforms.ops.decode import decode_ids

_LEAST_RECORDS, _MOST_BLOCKS = 32, 4096
_ROWS_AT_ONCE = 256


class _Block(NamedTuple):
    """Units to read, and the position of their first record in the source."""

    first: int
    units: Sequence[Unit]


class _ReadUnits(beam.DoFn):  # type: ignore[misc]
    def __init__(self, features: Features) -> None:
        self._features = features

    def process(self, block: _Block) -> Iterator[Record]:
        position = block.first
        for unit, records in read_ahead(block.units):
            for number, found in enumerate(read_or_reject(unit, records)):
                place = Place(unit.name, position + number, unit.mtime_ns)
                if isinstance(found, Reject):
                    yield Record(found.key, None, {}, unit.split, place, found.reason)
                else:
                    yield self._record(found, unit, place)
            position += unit.count

    def _record(self, found: SourceRecord, unit: Unit, place: Place) -> Record:
        targets: Mapping[str, TargetValue] = {}
        problem = found.problem
        if problem is None:
            try:
                by_name = zip(self._features.items(), found.targets, strict=True)
                targets = {name: readable(feature, target) for (name, feature), target in by_name}
            except ValueError as error:
                problem = str(error)
        return Record(found.key, found.data, targets, unit.split, place, problem)


class ReadRecords(beam.PTransform):  # type: ignore[misc]
    """Read the records of a source, with their encoded images, as a PCollection of `Record`.

    The source is listed at once, here; workers read it, under the same name. A record that cannot be used has a `problem`, with which
    `WriteCache` rejects it.

    Args:
        source: A folder, file or pattern, a URL in an object store, ``synthetic:N`` or ``tfds:NAME``; see `open_source`.
        limit: Read at most this many records.
        labels: CSV file with the classes of the images.
        masks: Folder of masks named like the images, or a pattern of folders or files.
        coco: COCO file of the boxes (instances JSON), or a pattern of such files.
        splits: Names of the folders or files of the splits, by split.
        image: Column of the images in Parquet or TFRecord files.
        target: Targets, as ``NAME`` or ``NAME:KIND``, as in `precompute`.

    Returns:
        A PCollection of `Record`.

    Attributes:
        source: The listed source.
        features: The feature of each target, by name: for `WriteCache`.

    Raises:
        ValueError: An argument is wrong.
        SourceError: The source cannot be used.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        limit: int | None = None,
        labels: str | os.PathLike[str] | None = None,
        masks: str | os.PathLike[str] | None = None,
        coco: str | os.PathLike[str] | None = None,
        splits: Mapping[str, str] | None = None,
        image: str | None = None,
        target: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.with_output_types(Record)
        config = SourceConfig(
            limit=limit, labels=labels, masks=masks, coco=coco, splits=splits, image=image, target=target
        )
        self.source: Source = open_source(source, config)
        self.features: Features = self.source.features
        log_notes(self.source)

    def expand(self, root: beam.Pipeline) -> beam.PCollection:
        """Apply the transform; called by Beam."""
        read = (
            root
            | "List" >> beam.Create([*_blocks(self.source)], reshuffle=False)
            | "Spread over workers" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(_ReadUnits(self.features)).with_output_types(Record)
        )
        if not self.source.refused:
            return read
        refused = [Record(key, None, problem=reason) for key, reason in self.source.refused]
        return (read, root | "Refused" >> beam.Create(refused).with_output_types(Record)) | beam.Flatten()

    def display_data(self) -> dict[str, Any]:
        """Return what runners show of this transform."""
        return {"source": self.source.location, "records": self.source.records}


def _blocks(source: Source) -> Iterator[_Block]:
    """Yield the units of a source in blocks of several images, or single units of many records."""
    least = max(_LEAST_RECORDS, source.records // _MOST_BLOCKS)
    units = source.units
    first = position = start = 0
    for row, unit in enumerate(units):
        position += unit.count
        if position - first >= least or row == len(units) - 1:
            yield _Block(first, select(units, range(start, row + 1)))
            first, start = position, row + 1


# Caches ---------------------------------------------------------------------------------------------------------------


class _ReadRows(beam.DoFn):  # type: ignore[misc]
    def __init__(self, location: str, index_sha256: str, split: str, variant: int) -> None:
        self._location, self._index_sha256 = location, index_sha256
        self._split, self._variant = split, variant

    def setup(self) -> None:
        self._cache = cache = open_cache(self._location)
        if cache.manifest.index.sha256 != self._index_sha256:
            raise CacheError(f"{self._location!r} was modified after the pipeline was made: make it again")
        self._images = cache.images(self._split, self._variant)
        self._moved = cache.targets(self._split, self._variant)

    def process(self, rows: tuple[int, int]) -> Iterator[Record]:
        start, stop = rows
        features, is_raw = self._cache.manifest.features, self._cache.manifest.encoding == "raw"
        channels = self._cache.split(self._split).image_shape[2]
        index = self._cache.rows(self._split).slice(start, stop - start)
        index.validate(full=True)
        places = np.arange(start, stop)
        stored = self._images.views(places)
        for place, row, image in zip(places.tolist(), index_rows(index, features), stored, strict=True):
            targets: dict[str, TargetValue] = {}
            for (name, feature), target in zip(features.items(), row.targets, strict=True):
                column = self._moved.get(name)
                targets[name] = (
                    readable(feature, target) if column is None else _moved(feature, column, place, is_raw=is_raw)
                )
            pixels = np.array(image) if is_raw else decode_cached(bytes(image), channels)
            yield Record(row.key, pixels, targets, self._split)


def _moved(feature: AnyFeature, column: MappedTargets, row: int, *, is_raw: bool) -> TargetValue:
    """Return the target of a row that moved with the pixels, as `Record` has it."""
    match column:
        case MappedImages():
            [mask] = column.views(np.array([row]))
            return np.array(mask) if is_raw else decode_ids(bytes(mask))
        case BoxRows():
            assert isinstance(feature, Boxes)
            return readable_boxes(feature, column[row])
        case _:
            return np.array(column[row])


class ReadCache(beam.PTransform):  # type: ignore[misc]
    """Read the images of one split of a cache as a PCollection of `Record` with decoded images, uint8 ``[H, W, C]``.

    The images are as the cache has them: ops after the cut are not applied. A cache in an object store is first copied to each worker's
    machine, as `open_cache` does.

    Args:
        cache: A folder or URL, under the same name on all workers, or an opened `Cache`.
        split: ``train``, ``val`` or ``test``.
        variant: Which draw of the cached ops to read.

    Returns:
        A PCollection of `Record`.

    Raises:
        CacheError: There is no cache, or the split has no records.
        ValueError: There is no such variant.
    """

    def __init__(self, cache: Cache | str | os.PathLike[str], split: str = "train", *, variant: int = 0) -> None:
        super().__init__()
        self.with_output_types(Record)
        opened = open_cache(cache)
        found = opened.split(split)
        check_integer("variant", variant, 0, found.variants - 1)
        self._location = opened.location if is_remote(opened.location) else str(opened.folder)
        self._index_sha256 = opened.manifest.index.sha256
        self._split, self._variant, self._count = split, variant, found.records

    def expand(self, root: beam.Pipeline) -> beam.PCollection:
        """Apply the transform; called by Beam."""
        starts = range(0, self._count, _ROWS_AT_ONCE)
        rows = [(start, min(start + _ROWS_AT_ONCE, self._count)) for start in starts]
        read = _ReadRows(self._location, self._index_sha256, self._split, self._variant)
        return (
            root
            | "List" >> beam.Create(rows, reshuffle=False)
            | "Spread over workers" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(read).with_output_types(Record)
        )

    def display_data(self) -> dict[str, Any]:
        """Return what runners show of this transform."""
        return {"cache": self._location, "split": self._split, "variant": self._variant, "records": self._count}
