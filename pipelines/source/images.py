"""Images that are files of their own, in a folder or a tar: what is known of each by its name, and of its class beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from joulecache.pipelines.source.labels import Labels
from joulecache.pipelines.source.naming import (
    IMAGE_SUFFIXES,
    file_splits,
    folder_classes,
    folder_splits,
    spread,
)
from joulecache.pipelines.source.records import Record, Source, SourceError, Unit


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image in a folder."""

    name: str
    root: str
    label: int
    split: str | None
    size_bytes: int
    mtime_ns: int
    count: int = 1

    def record_keys(self) -> Iterator[str]:
        """Yield the path inside the source."""
        yield self.name

    def read(self) -> Iterator[Record]:
        """Yield the file."""
        yield Record(self.name, self.label, Path(self.root, self.name).read_bytes(), self.mtime_ns)


@dataclass(frozen=True, slots=True)
class TarMember:
    """An image in an uncompressed tar, found by its offset."""

    name: str
    path: str
    label: int
    split: str | None
    size_bytes: int
    mtime_ns: int
    offset: int
    count: int = 1

    def record_keys(self) -> Iterator[str]:
        """Yield the member's name, behind that of its tar where there are several."""
        yield self.name

    def read(self) -> Iterator[Record]:
        """Yield the member."""
        with open(self.path, "rb") as tar:
            tar.seek(self.offset)
            data = tar.read(self.size_bytes)
        if len(data) != self.size_bytes:
            raise OSError(f"{self.path} ended inside {self.name}: the tar is cut short")
        yield Record(self.name, self.label, data, self.mtime_ns)


class Place(NamedTuple):
    """Where an image lies: in the folder `path`, or in a tar from byte `offset` on."""

    path: str
    size_bytes: int
    mtime_ns: int
    offset: int | None = None


@dataclass(frozen=True)
class Images:
    """The images of one folder or tar, by their keys, which begin with `prefix`: nothing, or the tar's name and a slash.

    `classes` are those that a tar gives beside its images; where it gives any, an image without one is refused.
    """

    prefix: str
    places: Mapping[str, Place]
    classes: Mapping[str, int]
    skipped: Counter[str]
    refused: Sequence[tuple[str, str]]


def labelled(location: str, found: Sequence[Images], limit: int | None, given: Labels | None) -> Source:
    """Give images their classes and splits; keep at most `limit` of them, spread over the classes.

    Classes are those of `given`, else those beside the images, else the folders. Raises SourceError.
    """
    skipped = sum((images.skipped for images in found), Counter[str]())
    places = {key: place for images in found for key, place in images.places.items()}
    refused = [one for images in found for one in images.refused]
    if not places:
        first = f", {len(refused)} refused, such as {': '.join(refused[0])}" if refused else ""
        raise SourceError(
            f"{location!r} holds no image ({sum(skipped.values())} other files{first}): "
            f"images end in {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    names = [key.removeprefix(images.prefix) for images in found for key in images.places]
    splits, names = folder_splits(names) or (_tar_splits(found), names)
    if given:
        labels, class_names, unused = given.of(list(places))
        skipped.update({"(label of no image)": unused} if unused else {})
        missing = f"it has no label in {given.path}"
    elif any(images.classes for images in found):
        labels = {key: label for images in found for key, label in images.classes.items()}
        class_names = tuple(map(str, range(max(labels.values()) + 1)))
        missing = "it has no .cls beside it"
    else:
        numbers, class_names = folder_classes(names, list(places))
        labels, missing = dict(zip(places, numbers, strict=True)), ""
    refused += [(key, missing) for key in places if key not in labels]
    split_of = dict(zip(places, splits, strict=True))
    units = [_unit(key, places[key], labels[key], split_of[key]) for key in spread(labels, limit)]
    return Source(location, class_names, tuple(units), skipped, tuple(refused))


def _unit(key: str, place: Place, label: int, split: str | None) -> Unit:
    path, size_bytes, mtime_ns, offset = place
    if offset is None:
        return ImageFile(key, path, label, split, size_bytes, mtime_ns)
    return TarMember(key, path, label, split, size_bytes, mtime_ns, offset)


def _tar_splits(found: Sequence[Images]) -> list[str | None]:
    """Return the split of every image by the name of its tar."""
    splits = file_splits([images.prefix.rstrip("/") for images in found]) or [None] * len(found)
    return [split for images, split in zip(found, splits, strict=True) for _ in images.places]
