"""Records, and the units in which a source is read."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from joulecache.pipelines.core.files import mtime_ns
from joulecache.pipelines.source.decompressed import Decompressed
from joulecache.pipelines.source.feature import Target
from joulecache.pipelines.source.features import LABEL, ClassLabel, Features, is_labelled

_LOG = logging.getLogger("joulecache")

MAX_CLASSES = 1_000_000
"""A label of this number or more is not a class."""


class SourceError(ValueError):
    """A source cannot be used. The message says what is wrong, what is expected and what to do."""


@dataclass(frozen=True)
class Record:
    """One encoded image with its key and targets.

    Attributes:
        key: Stable name of the record in its source.
        targets: Its targets, in the order of the source's features; those of a record with a problem may be missing or wrong.
        data: The encoded image.
        mtime_ns: When its file was last written.
        problem: Why the record cannot be used; None if it can.
    """

    key: str
    targets: tuple[Target, ...]
    data: bytes
    mtime_ns: int
    problem: str | None = None


@dataclass(frozen=True)
class Archive:
    """A file with many images.

    Attributes:
        name: Its name, as given or matched.
        location: Its absolute path or URL.
        mtime_ns: When it was last written.
        content: Its content if it is compressed and read.
    """

    name: str
    location: str
    mtime_ns: int
    content: Decompressed | None = None


def local_archive(path: Path) -> Archive:
    """Return a local file as an archive."""
    return Archive(str(path), str(path.absolute()), mtime_ns(path.stat()))


class Unit(Protocol):
    """A part of a source that is read as a whole: a file, tar member, Parquet row group, range of TFRecords or synthetic photo."""

    @property
    def name(self) -> str:
        """Stable name in the source, whose hash decides the shard of the records."""

    @property
    def count(self) -> int:
        """Number of records."""

    @property
    def split(self) -> str | None:
        """The split of its records; None if a hash of their keys decides between train and val."""

    @property
    def mtime_ns(self) -> int:
        """When its file was last written; 0 without a file."""

    @property
    def size_bytes(self) -> int | None:
        """Encoded size of a single record, with its masks; None for several records, or if it is unknown before reading."""

    @property
    def targets(self) -> tuple[Target | None, ...] | None:
        """Targets of a single record, None for one in a file; None for several records, or if they are unknown before reading."""

    def record_keys(self) -> Iterator[str]:
        """Yield the keys of its records without reading them."""

    def read(self) -> Iterator[Record]:
        """Yield its records in the order of `record_keys`; OSError if their file is missing or damaged."""


@dataclass(frozen=True)
class Source:
    """A listed source.

    Attributes:
        location: The location, as given.
        features: The feature of each target, by name.
        units: Its units, in the same order on every machine. Each access may return a new object.
        records: Number of records in the units.
        holds_out: Whether some records are in split val.
        skipped: Number of files that are not images, by suffix.
        refused: (key, reason) of records that are never read, such as links in a tar.
        notes: What was skipped or guessed, one sentence each. `log_notes` logs them.
        linked: Folders outside the source with files of it: those to which links lead, and those of masks.
        columns: Names of the columns of the images and the classes, where they are not the usual ones.
    """

    location: str
    features: Features
    units: Sequence[Unit]
    records: int
    holds_out: bool
    skipped: Counter[str]
    refused: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    linked: tuple[Path, ...] = ()
    columns: tuple[str, str] | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of a source whose only target is a class; () for other targets."""
        label = self.features.get(LABEL)
        return label.names if isinstance(label, ClassLabel) and is_labelled(self.features) else ()


def log_notes(source: Source) -> None:
    """Log the notes of a source as warnings. Call it once per command, which may list the source several times."""
    for note in source.notes:
        _LOG.warning("%s", note)
