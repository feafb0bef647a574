"""Files of many records with their labels, such as Parquet and TFRecord."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from joulecache.pipelines.source.classes import crowding, crowding_notes, sort_key
from joulecache.pipelines.source.columns import Choice, Columns, class_text
from joulecache.pipelines.source.features import LABEL, ClassLabel, Features, check_names
from joulecache.pipelines.source.layout import unlabelled
from joulecache.pipelines.source.notes import left_out_note
from joulecache.pipelines.source.records import MAX_CLASSES, Record, Source, SourceError, Unit
from joulecache.pipelines.source.row_targets import RowTarget, ValuesSeen, boxes_found, join_features
from joulecache.pipelines.source.splits import held_out

NO_LABEL = -1
"""The label of records without a class, as in test splits whose labels are not published."""


@dataclass(frozen=True, slots=True)
class RowRange:
    """A `Unit` of consecutive records of a file, whose keys are ``file_key#row``."""

    name: str
    path: str
    file_key: str
    first_row: int
    mtime_ns: int
    count: int
    split: str | None
    columns: Columns

    @property
    def size_bytes(self) -> None:
        """None: not known before reading."""
        return

    @property
    def targets(self) -> None:
        """None: not known before reading."""
        return

    def record_keys(self) -> Iterator[str]:
        """Yield ``file#row`` for each record."""
        return (f"{self.file_key}#{row}" for row in range(self.first_row, self.first_row + self.count))

    def read(self) -> Iterator[Record]:
        """Yield the records."""
        raise NotImplementedError


@dataclass
class LabelsSeen:
    """The labels of a file.

    Attributes:
        texts: Those that are text.
        last: The largest number that is a class; `NO_LABEL` without.
        labelled: Whether there is a label other than `NO_LABEL`.
    """

    texts: set[str] = field(default_factory=set)
    last: int = NO_LABEL
    labelled: bool = False

    def add(self, label: bool | int | str | bytes | None) -> None:
        """Add a label; None and "" are none. ValueError if it is not text, or there are too many classes."""
        if isinstance(label, int):
            self.labelled = self.labelled or label != NO_LABEL
            self.last = max(self.last, int(label) if label < MAX_CLASSES else NO_LABEL)
        elif label and (text := class_text(label)):
            self.labelled = True
            self.texts.add(text)
            if len(self.texts) > MAX_CLASSES:
                raise ValueError(f"the labels have more than {MAX_CLASSES:,} different values")


@dataclass(frozen=True)
class RowFile:
    """A listed file.

    Attributes:
        key: Start of the keys of its records.
        ranges: Its units.
        class_names: Names of the classes that the file declares; None without.
        labels: The labels of its records; None if it has no such column.
        seen: The values of other targets than one class; None for the class.
        targets: These targets.
    """

    key: str
    ranges: Sequence[RowRange]
    class_names: tuple[str, ...] | None
    labels: LabelsSeen | None
    seen: Sequence[ValuesSeen] | None = None
    targets: Sequence[RowTarget] = ()

    @property
    def rows(self) -> int:
        """Number of records."""
        return sum(rows.count for rows in self.ranges)


def join_files(
    location: str,
    files: Sequence[RowFile],
    choice: Choice,
    limit: int | None,
    splits: Sequence[str | None],
) -> Source:
    """Return one source of several files.

    A `limit` on the number of records takes the same fraction of each file, from its start. A split without labels is left out,
    unless it is train.

    Raises:
        SourceError: The files have different classes, no labels, or no rows.
    """
    if not any(file.rows for file in files):
        raise SourceError(f"{location!r} has no rows")
    split_notes = () if any(splits) else choice.split_notes()
    left_out: dict[str | None, int] = {}
    class_names: tuple[str, ...] = ()
    found: list[str] = []
    features: Features
    if choice.wanted is None:
        left_out = _unlabelled_splits(location, files, splits, choice)
        files = [file for file, split in zip(files, splits, strict=True) if split not in left_out]
        seen = [_labels_in(file, choice) for file in files]
        class_names = _class_names(location, files, seen, choice)
        is_text = any(labels.texts for labels in seen)
        columns = dataclasses.replace(choice.columns, classes=class_names) if is_text else choice.columns
        features = {LABEL: ClassLabel(class_names)}
    else:
        features = _features(files)
        sources = tuple(target.column for target in files[0].targets)
        columns = dataclasses.replace(choice.columns, features=features, sources=sources)
        found = boxes_found(files[0].targets, [file.seen or () for file in files], features)
    splits = held_out([split for split in splits if split not in left_out])
    total = sum(file.rows for file in files)
    taken = total if limit is None else min(total, limit)
    units: list[Unit] = []
    before = 0
    for file, split in zip(files, splits, strict=True):
        left = taken * (before + file.rows) // total - taken * before // total
        before += file.rows
        for rows in file.ranges:
            used = min(rows.count, left)
            left -= used
            if used:
                units.append(dataclasses.replace(rows, count=used, split=split, columns=columns))
    return Source(
        location,
        features,
        tuple(units),
        taken,
        "val" in splits,
        skipped=Counter({unlabelled(split).kind: images for split, images in left_out.items()}),
        notes=(
            *choice.notes(len(class_names)),
            *found,
            *split_notes,
            *(left_out_note(unlabelled(split), images) for split, images in left_out.items()),
            *(crowding_notes(len(class_names), total) if class_names and files[0].class_names is None else ()),
        ),
        columns=None if choice.by_default else (choice.image.name, choice.target.name),
    )


def _features(files: Sequence[RowFile]) -> Features:
    """Return the features of targets; SourceError if one has the name of a column of each cache, or no value."""
    targets = files[0].targets
    try:
        check_names(target.name for target in targets)
        return join_features(targets, [file.seen or () for file in files])
    except ValueError as error:
        raise SourceError(str(error)) from None


def _unlabelled_splits(
    location: str, files: Sequence[RowFile], splits: Sequence[str | None], choice: Choice
) -> dict[str | None, int]:
    """Return the splits without labels, and their number of records; SourceError if nothing is left to train on."""
    labelled = {split for file, split in zip(files, splits, strict=True) if file.labels and file.labels.labelled}
    without: Counter[str | None] = Counter()
    for file, split in zip(files, splits, strict=True):
        if split not in labelled:
            without[split] += file.rows
    if not labelled or not labelled & {None, "train"}:
        where = f"split train of {location!r}" if labelled else repr(location)
        raise SourceError(
            f"{where} has no labels: column {choice.target.name} is missing, empty or {NO_LABEL} in every row, as in test sets whose "
            "labels are not published; use files with labels"
        )
    return {split: images for split, images in without.items() if images}


def _labels_in(file: RowFile, choice: Choice) -> LabelsSeen:
    """Return the labels of a file; SourceError if it has none, unlike the rest of its split."""
    if file.labels is None:
        raise SourceError(
            f"{file.key!r} has no column {choice.target.name!r}, which {choice.file!r} has: use files with the same columns"
        )
    return file.labels


def _class_names(
    location: str, files: Sequence[RowFile], seen: Sequence[LabelsSeen], choice: Choice
) -> tuple[str, ...]:
    """Return the names of the classes; SourceError if files declare different ones, or text labels are not classes."""
    other = next((file for file in files if file.class_names != files[0].class_names), None)
    if other is not None:
        raise SourceError(f"{files[0].key!r} and {other.key!r} have different classes: use files with the same classes")
    if (names := files[0].class_names) is not None:
        return names
    texts = set[str]().union(*(labels.texts for labels in seen))
    if not texts:
        return tuple(map(str, range(max(labels.last for labels in seen) + 1)))
    if crowd := crowding(len(texts), sum(file.rows for file in files)):
        raise SourceError(
            f"column {choice.target.name!r} of {location!r} has {crowd}: name another column with --target, or pass "
            f"--target {choice.target.name}:text"
        )
    return tuple(sorted(texts, key=sort_key(texts)))
