"""Images in separate files, in a folder or tar: their keys, classes and splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from joulecache.pipelines.source.config import SourceConfig
from joulecache.pipelines.source.labelling import label_images
from joulecache.pipelines.source.labels import LabelTable
from joulecache.pipelines.source.listing import ImageListing
from joulecache.pipelines.source.naming import IMAGE_SUFFIXES, as_splits, file_splits, first_folders, sample_evenly
from joulecache.pipelines.source.records import Source, SourceError
from joulecache.pipelines.source.unit_tables import ImageTable


def make_source(
    location: str, listings: Sequence[ImageListing], config: SourceConfig, given: LabelTable | None
) -> Source:
    """Return a source of images with their classes and splits.

    Classes are those of a labels file if given, else of class files in tars, else of folders. A `limit` on the number of images keeps the
    same fraction of each class.

    Raises:
        SourceError: There are no images, no classes, or images next to class folders.
    """
    skipped = sum((listing.skipped for listing in listings), Counter[str]())
    refused = [refusal for listing in listings for refusal in listing.refused]
    names = [name for listing in listings for name in listing.names]
    keys = [listing.prefix + name if listing.prefix else name for listing in listings for name in listing.names]
    if not keys:
        first = f", {len(refused)} refused, such as {': '.join(refused[0])}" if refused else ""
        raise SourceError(
            f"no images in {location!r} ({sum(skipped.values())} other files{first}): "
            f"expected names that end in {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    folders, depth = first_folders(names)
    splits = as_splits(folders)
    if splits is None:
        splits = _tar_splits(listings)
    else:  # class folders are inside split folders
        folders, _ = first_folders([name.split("/", depth + 1)[-1] for name in names])
    labelled = label_images(location, listings, keys, folders, config, given)
    skipped = skipped - labelled.read + labelled.skipped
    refused += [(keys[row], labelled.reasons[row]) for row, label in enumerate(labelled.labels) if label is None]
    if not labelled.names:
        raise SourceError(f"no images with a class in {location!r}: {': '.join(refused[-1])}")
    table = pa.concat_tables([listing.places for listing in listings]).unify_dictionaries()
    table = table.append_column("key", pa.array(keys, pa.string()))
    table = table.append_column("label", pa.array(labelled.labels, pa.int32()))
    table = table.append_column("split", pa.array(splits, pa.string()).dictionary_encode())
    units = ImageTable(table).take(sample_evenly(keys, labelled.labels, config.limit))
    del table
    pa.default_memory_pool().release_unused()  # else it keeps the memory of temporary columns
    return Source(location, labelled.names, units, len(units), "val" in splits, skipped, tuple(refused), labelled.notes)


def _tar_splits(listings: Sequence[ImageListing]) -> list[str | None]:
    """Return the split of each image by the name of its tar."""
    splits = file_splits([listing.prefix.rstrip("/") for listing in listings]) or [None] * len(listings)
    return [split for listing, split in zip(listings, splits, strict=True) for _ in listing.names]
