"""Listings of images in separate files, in a folder or tar."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from joulecache.pipelines.source.label_members import MemberLabels

LABEL_SUFFIXES = frozenset([".cls", ".csv", ".json", ".jsonl", ".tsv", ".txt", ".xml"])
"""Suffixes of files that may have labels."""


METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Tables of images, as Hugging Face's ImageFolder has them. The first that a folder has is read."""


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
