"""TFRecord files of `tf.train.Example` with encoded images."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from joulecache.pipelines import tfrecord
from joulecache.pipelines.source.records import MOST_CLASSES, Record, SourceError
from joulecache.pipelines.source.rows import RowFile, RowRange

IMAGES = ("image", "image/encoded", "image_raw")
LABELS = ("label", "image/class/label")
_UNIT_RECORDS = 64  # small, so that the units spread evenly over the shards


@dataclass(frozen=True, slots=True)
class RecordRange(RowRange):
    """Some consecutive records of a TFRecord file, the first of which starts at byte `offset`."""

    offset: int

    def read(self) -> Iterator[Record]:
        """Yield the records, one at a time in memory."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            for key in self.record_keys():
                try:
                    data, intact = tfrecord.read_record(file)
                except ValueError as error:
                    raise OSError(f"{self.path} has changed since it was listed: {error}") from error
                yield self._record(key, data, intact)

    def _record(self, key: str, data: bytes, intact: bool) -> Record:
        try:
            if not intact:
                raise ValueError("its bytes changed since they were written: the checksum fails")
            image, label = _image_and_label(data, 0, len(data))
            return Record(key, label, data[image.start : image.stop], self.mtime_ns)
        except ValueError as error:
            return Record(key, -1, b"", self.mtime_ns, str(error))


def list_tfrecord(path: Path, key: str) -> RowFile:
    """List the records of a file by their lengths, and look at their labels; the images are not read.

    Raises SourceError for a damaged or compressed file, and for one in which no record has an image and a label.
    """
    ends, last, problem = array("q", [0]), -1, "it holds no records"
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for start, stop in tfrecord.records(data):
                ends.append(tfrecord.record_end(stop))
                try:
                    _, label = _image_and_label(data, start, stop)
                    last = max(last, label if label < MOST_CLASSES else -1)
                except ValueError as error:
                    problem = str(error)
    except ValueError as error:
        raise SourceError(f"cannot read {str(path)!r} as TFRecord: {error}") from error
    if last < 0:
        raise SourceError(f"{str(path)!r} is of no use as a source: {problem}")
    mtime_ns, where, rows = path.stat().st_mtime_ns, str(path.absolute()), len(ends) - 1
    units = [
        RecordRange(f"{key}#{row}", where, key, row, mtime_ns, min(_UNIT_RECORDS, rows - row), None, ends[row])
        for row in range(0, rows, _UNIT_RECORDS)
    ]
    return RowFile(key, units, None, last)


def _image_and_label(data: bytes | mmap.mmap, start: int, stop: int) -> tuple[tfrecord.Feature, int]:
    """Return where the image of an Example lies, and its label; ValueError when it has none."""
    features = tfrecord.features(data, start, stop)

    def find(names: Sequence[str], kind: int, what: str) -> tfrecord.Feature:
        found = next((features[name] for name in names if name in features), None)
        if found is None or found.kind != kind:
            there = ", ".join(sorted(features)) or "no features"
            raise ValueError(f"no {what} in an Example of {there}: it is looked for in {' or '.join(names)}")
        return found

    image = find(IMAGES, tfrecord.BYTES, "encoded image")
    return image, tfrecord.integer(data, find(LABELS, tfrecord.INTEGER, "integer label"))
