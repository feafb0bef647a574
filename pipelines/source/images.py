"""Images in separate files, in a folder or tar: their keys, classes and splits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from joulecache.pipelines.source.classes import Labelled
from joulecache.pipelines.source.config import SOURCE_SPLITS, SourceConfig
from joulecache.pipelines.source.features import LABEL, ClassLabel
from joulecache.pipelines.source.labelling import label_images
from joulecache.pipelines.source.labels import LabelTable
from joulecache.pipelines.source.layout import LeftOut
from joulecache.pipelines.source.listing import ImageListing
from joulecache.pipelines.source.masks import list_masks, split_masks
from joulecache.pipelines.source.names import Keys
from joulecache.pipelines.source.naming import sample_evenly
from joulecache.pipelines.source.notes import left_out_notes, no_images, skipped_notes
from joulecache.pipelines.source.records import Source, SourceError
from joulecache.pipelines.source.spatial import SpatialFeature
from joulecache.pipelines.source.splits import held_out
from joulecache.pipelines.source.tree import ImageTree
from joulecache.pipelines.source.unit_tables import FILE_COLUMNS, ImageTable, file_column, target_column

_PLAIN = {"int64": pa.int64(), "float32": pa.float64(), "str": pa.string()}


def make_source(
    location: str,
    listings: Sequence[ImageListing],
    config: SourceConfig,
    given: LabelTable | None,
    file_splits: Sequence[str] | None = None,
) -> Source:
    """Return a source of images with their classes and splits.

    Classes are those of a labels file if given, else of class files in tars, else of folders. A `limit` on the number of images keeps the
    same fraction of each class.

    Args:
        location: The location, as given.
        listings: The images.
        config: How to read the source.
        given: A labels file.
        file_splits: The split of each listing. Default: folders may be splits.

    Raises:
        SourceError: There are no images, no classes, or it is unknown which folders are classes or splits.
    """
    masks = None
    if config.masks is not None:
        masks, listings = split_masks(list_masks(config.masks), listings, location)
    keys = Keys([(listing.prefix, listing.names) for listing in listings])
    refused = [refusal for listing in listings for refusal in listing.refused]
    tree = ImageTree.of(listings, file_splits, config.splits)
    if not keys:
        raise SourceError(no_images(location, tree.skipped, refused))
    labelled = label_images(location, listings, keys, tree, config, given, masks)
    left_out = {
        **tree.left_out(
            labelled.labels, by_name=given is not None or config.masks is not None or config.coco is not None
        ),
        **labelled.left_out,
    }
    labels = labelled.labels
    if left_out:
        labels = [None if row in left_out else label for row, label in enumerate(labels)]
    refused += [
        (keys[row], labelled.reasons[row]) for row, label in enumerate(labels) if label is None and row not in left_out
    ]
    splits = _splits(tree, [*left_out])
    found = {*splits.unique().to_pylist()}
    skipped = sum(tree.skipped.values(), Counter[str]()) - labelled.read
    names_by_reason: defaultdict[LeftOut, list[str]] = defaultdict(list)
    for row, reason in left_out.items():
        names_by_reason[reason].append(keys[row])
    notes = [*skipped_notes(skipped), *left_out_notes(names_by_reason)]
    trains = np.asarray(pc.equal(splits.indices.fill_null(0), 0))  # train is the first split, null a part of it
    if not any(label is not None and is_train for label, is_train in zip(labels, trains, strict=True)):
        where = "split train of " if found - {None, "train"} else ""
        why = [*(": ".join(each) for each in refused[-1:]), *notes, "it has none"][0]
        what = "a class" if labelled.targets is None else "targets"
        raise SourceError(f"no images with {what} in {where}{location!r}: {why}")
    files = labelled.targets.files if labelled.targets else {}
    units = _image_table(listings, keys, _targets(labelled, labels), files, splits).select(
        sample_evenly(keys, labels, config.limit)
    )
    units = units if config.limit is None else units.compacted()
    pa.default_memory_pool().release_unused()  # else it keeps the memory of temporary columns
    return Source(
        location=location,
        features={LABEL: ClassLabel(labelled.names)} if labelled.targets is None else labelled.targets.features,
        units=units,
        records=len(units),
        holds_out="val" in found,
        skipped=skipped
        + labelled.skipped
        + Counter(reason.kind for reason, names in names_by_reason.items() for _ in names),
        refused=tuple(refused),
        notes=(*(note for listing in listings for note in listing.notes), *notes, *labelled.notes),
        linked=(*(folder for listing in listings for folder in listing.linked), *(masks.folders if masks else ())),
    )


def _targets(labelled: Labelled, labels: Sequence[int | None]) -> dict[str, pa.Array]:
    """Return a column for each target; those of images that are no records are null."""
    if labelled.targets is None:
        return {LABEL: pa.array(labels, pa.int32())}
    columns: dict[str, pa.Array] = {}
    for name, feature in labelled.targets.features.items():
        if name in labelled.targets.files:
            columns[name] = pa.nulls(len(labels))
        else:
            plain = not feature.shape and not isinstance(feature, SpatialFeature)
            columns[name] = pa.array(
                labelled.targets.columns[name], _PLAIN.get(feature.dtype) if plain else pa.binary()
            )
    return columns


def _splits(tree: ImageTree, left_out: Sequence[int]) -> pa.DictionaryArray:
    """Return the split of each image; null where a hash of the keys decides, and for those left out."""
    none = len(SOURCE_SPLITS)
    numbers = np.array([none if split is None else SOURCE_SPLITS.index(split) for split in tree.split_of], np.int8)
    numbers = numbers[np.asarray(tree.folder_of)]
    numbers[left_out] = none
    names = [None if number == none else SOURCE_SPLITS[number] for number in np.unique(numbers).tolist()]
    if "train" not in held_out(names):
        numbers[numbers == SOURCE_SPLITS.index("train")] = none
    return pa.DictionaryArray.from_arrays(pa.array(numbers, mask=numbers == none), pa.array(SOURCE_SPLITS))


def _image_table(
    listings: Sequence[ImageListing],
    keys: Keys,
    targets: Mapping[str, pa.Array],
    files: Mapping[str, pa.Table],
    splits: pa.DictionaryArray,
) -> ImageTable:
    """Return the units. The size of an image includes the files of its targets, the last of which decides when it was written."""
    table = pa.concat_tables([listing.places for listing in listings]).unify_dictionaries()
    for name, column in keys.columns().items():
        table = table.append_column(name, column)
    for name, column in targets.items():
        table = table.append_column(target_column(name), column)
    for name in (name for name in targets if name in files):
        places = files[name]
        table = _with(table, "size_bytes", pc.add(table["size_bytes"], pc.coalesce(places["size_bytes"], 0)))
        table = _with(table, "mtime_ns", pc.max_element_wise(table["mtime_ns"], places["mtime_ns"]))
        for place in FILE_COLUMNS:
            table = table.append_column(file_column(name, place), places[place])
    return ImageTable(table.append_column("split", splits))


def _with(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)
