"""TFRecord files of `tf.train.Example`s with encoded images."""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from joulecache.pipelines.core import tfrecord
from joulecache.pipelines.core.object_store import is_remote, open_binary
from joulecache.pipelines.source.records import MAX_CLASSES, Archive, Record, SourceError
from joulecache.pipelines.source.rows import RowFile, RowRange

IMAGES = ("image", "image/encoded", "image_raw")
LABELS = ("label", "image/class/label")
_UNIT_RECORDS = 64  # small, so that the units spread evenly over the shards


@dataclass(frozen=True, slots=True)
class RecordRange(RowRange):
    """Consecutive records of a TFRecord file; the first starts at byte `offset`."""

    offset: int

    def read(self) -> Iterator[Record]:
        """Yield the records. Only one is in memory at a time."""
        with open_binary(self.path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(self.offset)
            for key in self.record_keys():
                try:
                    data, intact = tfrecord.read_record(file, size)
                except ValueError as error:
                    raise OSError(f"{self.path} has changed since it was listed: {error}") from error
                yield self._record(key, data, intact)

    def _record(self, key: str, data: bytes, intact: bool) -> Record:
        try:
            if not intact:
                raise ValueError("its bytes do not match their checksum")
            image, label = _image_and_label(data, 0, len(data))
            return Record(key, label, data[image.start : image.stop], self.mtime_ns)
        except ValueError as error:
            return Record(key, -1, b"", self.mtime_ns, str(error))


class _Slices:
    """The bytes of an open file, read when they are accessed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, file.seek(0, os.SEEK_END)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: Any) -> Any:
        start, stop, _ = (place if isinstance(place, slice) else slice(place, place + 1)).indices(self._size)
        self._file.seek(start)
        data = self._file.read(stop - start)
        return data if isinstance(place, slice) else data[0]


@contextmanager
def _contents(location: str) -> Iterator[Any]:
    with open_binary(location) as file:
        if is_remote(location):
            yield _Slices(file)
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data


def list_tfrecord(file: Archive, key: str) -> RowFile:
    """List the records of a file and read their labels, but not the images.

    Raise SourceError if the file is damaged or compressed, or no record has an image and a label.
    """
    ends, last, problem = array("q", [0]), -1, "it has no records"
    try:
        with _contents(file.location) as data:
            for start, stop in tfrecord.records(data):
                ends.append(tfrecord.record_end(stop))
                try:
                    _, label = _image_and_label(data, start, stop)
                    last = max(last, label if label < MAX_CLASSES else -1)
                except ValueError as error:
                    problem = str(error)
    except ValueError as error:
        raise SourceError(f"cannot read {file.name!r} as TFRecord: {error}") from error
    if last < 0:
        raise SourceError(f"no records with an image and a label in {file.name!r}: {problem}")
    rows = len(ends) - 1
    units = [
        RecordRange(
            f"{key}#{row}", file.location, key, row, file.mtime_ns, min(_UNIT_RECORDS, rows - row), None, ends[row]
        )
        for row in range(0, rows, _UNIT_RECORDS)
    ]
    return RowFile(key, units, None, last)


def _image_and_label(data: Any, start: int, stop: int) -> tuple[tfrecord.Feature, int]:
    """Return where the image of an Example is, and its label; ValueError if one is missing."""
    features = tfrecord.features(data, start, stop)

    def find(names: Sequence[str], kind: int, what: str) -> tfrecord.Feature:
        found = next((features[name] for name in names if name in features), None)
        if found is None or found.kind != kind:
            got = ", ".join(sorted(features)) or "no features"
            raise ValueError(f"an Example must have {what} named {' or '.join(names)}, got {got}")
        return found

    image = find(IMAGES, tfrecord.BYTES, "an encoded image")
    return image, tfrecord.integer(data, find(LABELS, tfrecord.INTEGER, "an integer label"))
