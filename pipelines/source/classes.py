"""Labelled of images: what a text or number may mean, and how many are plausible."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from joulecache.pipelines.core.checks import shown
from joulecache.pipelines.source.feature import Target
from joulecache.pipelines.source.features import LABEL, AnyFeature, ClassLabel, TargetTable, check_names
from joulecache.pipelines.source.layout import LeftOut
from joulecache.pipelines.source.records import MAX_CLASSES, SourceError

CLASS_KEYS = ("label", "class", "cls", "category", "target", "breed", "species")
"""What columns of a labels file and keys of a .json file are called that have the class of an image."""

ClassValue = int | str
"""The number of a class, or its name."""

_FEWEST_IMAGES = 20  # below this, each image may well have its own class
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|[-+]?(nan|inf)", re.ASCII | re.IGNORECASE)
_INTEGER = re.compile("0|[1-9][0-9]{0,99}")
_BETWEEN_NUMBERS = re.compile(r"[\s,;|]+")


@dataclass(frozen=True)
class Labelled:
    """The classes of the images of a source, and why some have none.

    Attributes:
        labels: The class number of each image; None without one.
        names: Name of each class.
        reasons: Why an image has no class, by its row.
        read: Number of label files that were read, by suffix.
        skipped: Number of labels that are not used, by kind.
        left_out: Why an image is no record, by its row.
        notes: What was guessed or is not used, one sentence each.
        targets: The targets of the images if these are not only classes; then a label is 0 for each image that has its targets.
    """

    labels: Sequence[int | None]
    names: tuple[str, ...]
    reasons: Mapping[int, str] = field(default_factory=dict)
    read: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    left_out: Mapping[int, LeftOut] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    targets: TargetTable | None = None


def called(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """Return the names that are known, in any case, with spaces or dashes for underscores."""
    return [name for name in names if re.sub("[ -]", "_", name.lower()) in known]


def holds_numbers(text: str) -> bool:
    """Return whether a text has one or more numbers and nothing else."""
    return all(map(_NUMBER.fullmatch, _BETWEEN_NUMBERS.split(text)))


def class_value(text: str) -> ClassValue:
    """Return the class number or name that a text means; ValueError if it means neither."""
    word = text.strip()
    if word.isascii() and word.isdigit() and len(word) <= len(str(MAX_CLASSES)) and int(word) < MAX_CLASSES:
        return int(word)
    if not word.isprintable() or not word or holds_numbers(word):
        raise ValueError(f"must have a class name or a number from 0 to {MAX_CLASSES - 1}, got {shown(text)}")
    return word


def crowding(classes: int, images: int) -> str | None:
    """Return what is wrong with a number of classes; None if classes have at least two images on average, or images are few."""
    if images < _FEWEST_IMAGES or classes * 2 <= images:
        return None
    return f"{classes:,} classes for {images:,} images"


def crowding_note(labels: Iterable[int | None]) -> tuple[str, ...]:
    """Return a note where classes have less than two images on average."""
    counts = Counter(label for label in labels if label is not None)
    return crowding_notes(len(counts), counts.total())


def crowding_notes(classes: int, images: int) -> tuple[str, ...]:
    """Return a note where classes have less than two images on average, from their numbers."""
    crowd = crowding(classes, images)
    return (f"{crowd}: check that these are classes, a model needs many images of each",) if crowd else ()


def sort_key(names: Collection[str]) -> type[int] | None:
    """Return the sort key of class names: `int` if all are integers, else None to sort them as text."""
    return int if all(map(_INTEGER.fullmatch, names)) else None


def merged(found: Sequence[Labelled], order: Sequence[str] = (), label: str = LABEL) -> Labelled:
    """Return all targets of images; SourceError if two have the same name, or one has that of a column of each cache.

    Args:
        found: The targets, each with the reasons why some images have none.
        order: Names of all targets. Default: as they were found.
        label: Name of a class that has no name.
    """
    features: dict[str, AnyFeature] = {}
    columns: dict[str, Sequence[Target | None]] = {}
    files: dict[str, pa.Table] = {}
    for each in found:
        table = each.targets or TargetTable({label: ClassLabel(each.names)}, {label: each.labels})
        if twice := features.keys() & table.features.keys():
            raise SourceError(f"there are two targets called {min(twice)!r}: rename the column, or drop one")
        features |= table.features
        columns |= table.columns
        files |= table.files
    try:
        check_names(features)
    except ValueError as error:
        raise SourceError(str(error)) from None
    labels = [None if None in of_image else 0 for of_image in zip(*(each.labels for each in found), strict=True)]
    return Labelled(
        labels,
        (),
        {row: reason for each in reversed(found) for row, reason in each.reasons.items()},
        read=sum((each.read for each in found), Counter[str]()),
        skipped=sum((each.skipped for each in found), Counter[str]()),
        left_out={row: reason for each in found for row, reason in each.left_out.items()},
        notes=tuple(note for each in found for note in each.notes),
        targets=TargetTable({name: features[name] for name in order or features}, columns, files),
    )
