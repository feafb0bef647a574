"""Listings of images in separate files, in a folder or tar."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from joulecache.pipelines.source.label_members import MemberLabels
from joulecache.pipelines.source.names import NamesBuilder

LABEL_SUFFIXES = frozenset([".cls", ".csv", ".json", ".jsonl", ".tsv", ".txt", ".xml"])
"""Suffixes of files that may have labels."""


METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Tables of images, as Hugging Face's ImageFolder has them. The first that a folder has is read."""

FILES_AT_ONCE = 1024
"""Files that progress counts together."""


def may_have_labels(file: str, kind: str) -> bool:
    """Return whether a file that is not an image may have labels, by its name and suffix."""
    return kind in LABEL_SUFFIXES or file in METADATA


@dataclass(frozen=True)
class ImageListing:
    """The images of one folder or tar.

    Attributes:
        prefix: Start of each key, before the name.
        names: Name of each image.
        places: The table of `image_places`.
        labels: What the label files in a tar have; None for a folder, where they are not read.
        beside: Names of other files that may have labels.
        skipped: Number of files that are not images, with label files, by their folder and kind. Empty folders are listed too.
        refused: Keys that cannot be used, with reasons.
        notes: Sentences for people.
        linked: Folders outside to which links lead.
    """

    prefix: str
    names: Sequence[str]
    places: pa.Table
    labels: MemberLabels | None
    beside: Sequence[str]
    skipped: Mapping[str, Counter[str]]
    refused: Sequence[tuple[str, str]]
    notes: tuple[str, ...] = ()
    linked: tuple[Path, ...] = ()


class ListingBuilder:
    """Collects the files of a folder, or of a part of it.

    Attributes:
        beside: Names of files that may have labels.
        skipped: Number of files that are not images, by their folder and kind.
        refused: Keys that cannot be used, with reasons.
    """

    def __init__(self) -> None:
        self.beside: list[str] = []
        self.skipped: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.refused: list[tuple[str, str]] = []
        self._names = NamesBuilder()
        self._sizes, self._mtimes_ns = array("q"), array("q")

    def add(self, name: str, size_bytes: int, mtime_ns: int) -> None:
        """Add an image."""
        self._names.append(name)
        self._sizes.append(size_bytes)
        self._mtimes_ns.append(mtime_ns)

    def extend(self, part: ListingBuilder) -> None:
        """Add the files of another part."""
        self._names.extend(part._names)
        self._sizes += part._sizes
        self._mtimes_ns += part._mtimes_ns
        self.beside += part.beside
        self.refused += part.refused
        for folder, kinds in part.skipped.items():
            self.skipped[folder] += kinds

    def build(self, path: str, notes: tuple[str, ...] = (), linked: tuple[Path, ...] = ()) -> ImageListing:
        """Return all of them as the listing of the folder at `path`."""
        places = image_places(path, self._sizes, self._mtimes_ns, None)
        return ImageListing(
            "", self._names.build(), places, None, self.beside, self.skipped, self.refused, notes, linked
        )


def image_places(
    path: str, sizes: Sequence[int], mtimes_ns: Sequence[int] | NDArray[np.int64], offsets: Sequence[int] | None
) -> pa.Table:
    """Return a table of where images in a folder or tar are: path, size_bytes, mtime_ns and offset (in a tar only)."""
    count = len(sizes)
    paths = pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), pa.array([path]))
    columns = [
        paths,
        *(pa.array(np.asarray(numbers, np.int64)) for numbers in (sizes, mtimes_ns)),
        pa.nulls(count, pa.int64()) if offsets is None else pa.array(np.asarray(offsets, np.int64)),
    ]
    return pa.Table.from_arrays(columns, ["path", "size_bytes", "mtime_ns", "offset"])
