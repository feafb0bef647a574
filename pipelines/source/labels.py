"""Labels that lie in a file of their own: a CSV of records and their classes."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from joulecache.pipelines.source.records import SourceError

_LABEL_COLUMN = "label"


@dataclass(frozen=True)
class Labels:
    """The class of each record, by its key or its key without the suffix, as a CSV file gives it."""

    path: str
    classes: Mapping[str, str]

    def of(self, names: Sequence[str]) -> tuple[list[int | None], tuple[str, ...], int]:
        """Return the labels of names, None for one without, the class names, and how many lines are of no such name.

        Classes that are all whole numbers are ordered as numbers. Raises SourceError for a line that two names fit, or when none does.
        """
        chosen: list[str | None] = []
        taken: dict[str, str] = {}
        for name in names:
            stem = os.path.splitext(name)[0]  # noqa: PTH122 - a Path for every name costs more than all the rest
            line = name if name in self.classes else stem
            chosen.append(self.classes.get(line))
            if line in self.classes:
                if line in taken:
                    raise SourceError(
                        f"{self.path!r} labels {line!r}, which may be {taken[line]!r} or {name!r}: give names with their suffix"
                    )
                taken[line] = name
        if not taken:
            there = f"it has names like {next(iter(self.classes))!r}" if self.classes else "it has no lines"
            raise SourceError(f"{self.path!r} labels no record: {there}, the source has names like {min(names)!r}")
        found = {name for name in chosen if name is not None}
        class_names = tuple(sorted(found, key=_order(found)))
        index: dict[str | None, int] = {name: label for label, name in enumerate(class_names)}
        return [index.get(name) for name in chosen], class_names, len(self.classes) - len(taken)


def read_labels(path: str | os.PathLike[str]) -> Labels:
    """Read a CSV file with a header line, whose first column names a record and whose `label` column, or second one, its class.

    Raises SourceError for any other file, and for a record that is named twice.
    """
    text = os.fspath(path)
    try:
        with open(Path(text), encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            column = _column(text, header)
            classes: dict[str, str] = {}
            for line in lines:
                if not line:
                    continue
                if len(line) != len(header) or not line[0] or not line[column]:
                    raise SourceError(
                        f"{text!r}, line {lines.line_num}: {line} does not give a record and its class, as {header} does"
                    )
                name = line[0].removeprefix("./")
                if name in classes:
                    raise SourceError(f"{text!r}, line {lines.line_num}: {name!r} is labelled twice")
                classes[name] = line[column]
    except OSError as error:
        raise SourceError(f"cannot read the labels {text!r}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise SourceError(f"cannot read the labels {text!r} as CSV: {error}") from error
    return Labels(text, classes)


def _column(path: str, header: Sequence[str]) -> int:
    if _LABEL_COLUMN in header[1:]:
        return header.index(_LABEL_COLUMN, 1)
    if len(header) == 2:
        return 1
    raise SourceError(
        f"{path!r} begins with {list(header)}: a file of labels has a header line, the records' names in its first column and "
        f"their classes in one called {_LABEL_COLUMN!r}, or in the second of two"
    )


def _order(names: set[str]) -> type[int] | None:
    """Return how to sort class names: as numbers where all are, in the way that numbers are written."""
    return int if all(name.isascii() and name.isdigit() and str(int(name)) == name for name in names) else None
