"""Labels files: a CSV of records and their classes."""

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
    """The content of a labels file.

    Attributes:
        path: The file.
        classes: Class by key, or by key without the suffix.
    """

    path: str
    classes: Mapping[str, str]

    def of(self, names: Sequence[str]) -> tuple[list[int | None], tuple[str, ...], int]:
        """Label names. Classes that are all integers are sorted as numbers.

        Returns:
            The label of each name, None without one; the class names; the number of lines that match no name.

        Raises:
            SourceError: A line matches two names, or no line matches any.
        """
        classes: list[str | None] = []
        matched: dict[str, str] = {}
        for name in names:
            stem = os.path.splitext(name)[0]  # noqa: PTH122 - a Path for each name costs more than the rest
            line = name if name in self.classes else stem
            classes.append(self.classes.get(line))
            if line in self.classes:
                if line in matched:
                    raise SourceError(
                        f"{self.path!r} labels {line!r}, which may be {matched[line]!r} or {name!r}: use names with their suffix"
                    )
                matched[line] = name
        if not matched:
            there = f"it has names such as {next(iter(self.classes))!r}" if self.classes else "it has no lines"
            raise SourceError(f"{self.path!r} labels no record: {there}, the source has names such as {min(names)!r}")
        distinct = {name for name in classes if name is not None}
        class_names = tuple(sorted(distinct, key=_sort_key(distinct)))
        index: dict[str | None, int] = {name: label for label, name in enumerate(class_names)}
        return [index.get(name) for name in classes], class_names, len(self.classes) - len(matched)


def read_labels(path: str | os.PathLike[str]) -> Labels:
    """Read a labels file.

    Args:
        path: A CSV file with a header line. The first column has the record's name; column `label`, or the second of two, its class.

    Raises:
        SourceError: The file is missing or malformed, or names a record twice.
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
                        f"{text!r}, line {lines.line_num}: expected a record and its class, as in {header}, got {line}"
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
        f"a labels file must have a header line, record names in its first column, and classes in column {_LABEL_COLUMN!r} or the "
        f"second of two; {path!r} starts with {list(header)}"
    )


def _sort_key(names: set[str]) -> type[int] | None:
    """Return the sort key of class names: `int` if all are integers, else None to sort them as text."""
    return int if all(name.isascii() and name.isdigit() and str(int(name)) == name for name in names) else None
