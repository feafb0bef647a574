"""Images in separate files, in a folder or tar: their keys, classes and splits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from joulecache.pipelines.source.labels import Labels
from joulecache.pipelines.source.naming import (
    IMAGE_SUFFIXES,
    as_splits,
    file_splits,
    first_folders,
    folder_classes,
    sample_evenly,
)
from joulecache.pipelines.source.records import MAX_CLASSES, Source, SourceError
from joulecache.pipelines.source.unit_tables import ImageTable

CLASS_SUFFIX = ".cls"
_CLASS = re.compile(rb"\s*([0-9]{1,7})\s*")


@dataclass(frozen=True)
class ImageListing:
    """The images of one folder or tar.

    Attributes:
        prefix: Start of each key, before the name.
        names: Name of each image.
        places: The table of `image_places`.
        classes: Content of the class files in a tar, by sample. If there are any, images without one are refused.
        skipped: Number of files that are not images, by suffix.
        refused: Keys that cannot be used, with reasons.
    """

    prefix: str
    names: Sequence[str]
    places: pa.Table
    classes: Mapping[str, bytes]
    skipped: Counter[str]
    refused: Sequence[tuple[str, str]]


def image_places(path: str, sizes: Sequence[int], mtimes_ns: Sequence[int], offsets: Sequence[int] | None) -> pa.Table:
    """Return a table of where images in a folder or tar are: path, size_bytes, mtime_ns and offset (in a tar only)."""
    count = len(sizes)
    paths = pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), pa.array([path]))
    columns = [
        paths,
        *(pa.array(np.asarray(numbers, np.int64)) for numbers in (sizes, mtimes_ns)),
        pa.nulls(count, pa.int64()) if offsets is None else pa.array(np.asarray(offsets, np.int64)),
    ]
    return pa.Table.from_arrays(columns, ["path", "size_bytes", "mtime_ns", "offset"])


def make_source(location: str, listings: Sequence[ImageListing], limit: int | None, given: Labels | None) -> Source:
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
    labels: Sequence[int | None]
    class_texts: Sequence[bytes | None] = ()
    if given:
        labels, class_names, unused = given.of(keys)
        skipped.update({"(label of no image)": unused} if unused else {})
    elif any(listing.classes for listing in listings):
        class_texts = [listing.classes.get(sample_of(name)) for listing in listings for name in listing.names]
        labels = [None if text is None else _class_number(text) for text in class_texts]
        class_names = tuple(map(str, range(max((label for label in labels if label is not None), default=-1) + 1)))
    else:
        labels, class_names = folder_classes(folders, keys)
    unlabelled = [row for row, label in enumerate(labels) if label is None]
    refused += [
        (keys[row], f"it has no label in {given.path}" if given else _no_class(class_texts[row])) for row in unlabelled
    ]
    if not class_names:
        raise SourceError(f"no images with a class in {location!r}: {': '.join(refused[-1])}")
    table = pa.concat_tables([listing.places for listing in listings]).unify_dictionaries()
    table = table.append_column("key", pa.array(keys, pa.string()))
    table = table.append_column("label", pa.array(labels, pa.int32()))
    table = table.append_column("split", pa.array(splits, pa.string()).dictionary_encode())
    units = ImageTable(table).take(sample_evenly(keys, labels, limit))
    del table
    pa.default_memory_pool().release_unused()  # else it keeps the memory of temporary columns
    return Source(location, class_names, units, len(units), "val" in splits, skipped, tuple(refused))


def sample_of(name: str) -> str:
    """Return the name that the files of a WebDataset sample share: up to the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _class_number(text: bytes) -> int | None:
    match = _CLASS.fullmatch(text)
    return int(match[1]) if match and int(match[1]) < MAX_CLASSES else None


def _no_class(text: bytes | None) -> str:
    if text is None:
        return f"it has no {CLASS_SUFFIX} file"
    return f"its {CLASS_SUFFIX} file must have a class from 0 to {MAX_CLASSES - 1}, got {text!r}"


def _tar_splits(listings: Sequence[ImageListing]) -> list[str | None]:
    """Return the split of each image by the name of its tar."""
    splits = file_splits([listing.prefix.rstrip("/") for listing in listings]) or [None] * len(listings)
    return [split for listing, split in zip(listings, splits, strict=True) for _ in listing.names]
