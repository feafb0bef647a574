"""What a source consists of: records, and the units in which they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MOST_CLASSES = 1_000_000  # a larger label is no class


class SourceError(ValueError):
    """A source that cannot be used; the message says what was got, what is allowed and what to do."""


@dataclass(frozen=True)
class Record:
    """One encoded image with its key and label.

    `mtime_ns` is that of the file that holds it; `problem` says why a record cannot be used that could be read.
    """

    key: str
    label: int
    data: bytes
    mtime_ns: int
    problem: str | None = None


@dataclass(frozen=True)
class Archive:
    """A file of a source that holds many images: `name` as it was given or matched, `location` what opens it from anywhere."""

    name: str
    location: str
    mtime_ns: int


def local_archive(path: Path) -> Archive:
    """Return a file of this machine."""
    return Archive(str(path), str(path.absolute()), path.stat().st_mtime_ns)


class Unit(Protocol):
    """What is read at once: a file, a tar member, a Parquet row group, some records of a TFRecord file, a synthetic photo."""

    @property
    def name(self) -> str:
        """Stable inside the source; its hash says which shard the unit's records go to."""

    @property
    def count(self) -> int:
        """How many records it holds."""

    @property
    def split(self) -> str | None:
        """The split that the source puts its records into, None where a hash of their keys decides between train and val."""

    @property
    def mtime_ns(self) -> int:
        """When what holds it was last changed, 0 where nothing holds it."""

    @property
    def size_bytes(self) -> int | None:
        """The encoded size of its one record; None where that is not known without reading, or it holds many."""

    def record_keys(self) -> Iterator[str]:
        """Yield the records' keys without reading them."""

    def read(self) -> Iterator[Record]:
        """Yield the records, in the order of `record_keys`; OSError when what holds them is gone or damaged."""


@dataclass(frozen=True)
class Source:
    """A listed source.

    `units` come in one order on every machine: by name, or as they are numbered. They may be made anew each time that they are looked at.
    `records` counts what they hold, `holds_out` says whether some are of a split val. `skipped` counts sidecar files by suffix.
    `refused` are (key, reason) of records that are never read, such as links out of a tar.
    """

    location: str
    class_names: tuple[str, ...]
    units: Sequence[Unit]
    records: int
    holds_out: bool
    skipped: Counter[str]
    refused: tuple[tuple[str, str], ...] = ()
