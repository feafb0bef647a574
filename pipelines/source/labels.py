"""Labels files: tables of images and their classes, separated by commas, semicolons or tabs."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import shlex
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from joulecache.pipelines.core.checks import shown
from joulecache.pipelines.core.files import unexpanded_home
from joulecache.pipelines.core.object_store import open_binary
from joulecache.pipelines.core.quantities import listed, plural, shortened
from joulecache.pipelines.source.classes import CLASS_KEYS, Labelled, called, crowding, holds_numbers, sort_key
from joulecache.pipelines.source.matching import FindKey, Matches, match_names
from joulecache.pipelines.source.records import SourceError
from joulecache.pipelines.source.splits import split_words

_NAME_COLUMNS = (
    *("file", "filename", "file_name", "filepath", "file_path", "path", "key"),
    *("image", "image_id", "image_name", "image_path", "img", "id"),
)
_DELIMITERS = ("\t", ";", ",")
_EXPECTED = "expected a header line such as 'file,label', then a line for each image"
_ONE_CLASS = "only one class for each image can be used, in words or integers"
_UNNAMED = re.compile(r"(Unnamed: [0-9]+)?")  # how pandas writes and reads an index
_MISSING = ("", "nan")
_SHOWN = 10


@dataclass(frozen=True)
class LabelTable:
    """The content of a labels file.

    Attributes:
        path: The file.
        header: Names of the columns.
        rows: Cells of each line after the header, without spaces around them.
        lines: Number of each line.
    """

    path: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    lines: Sequence[int]

    def column(self, index: int) -> list[str]:
        """Return the cells of a column."""
        return [row[index] for row in self.rows]


def read_labels(path: str | os.PathLike[str]) -> LabelTable:
    """Read a labels file; SourceError if it is missing, not a table in UTF-8, or has lines of different lengths."""
    name = os.fspath(path)
    try:
        with open_binary(name) as file:
            data = file.read()
    except OSError as error:
        why = unexpanded_home(Path(name)) or f": {error.strerror or error}"
        raise SourceError(f"cannot read the labels {name!r}{why}") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
        raise SourceError(f"cannot read the labels {name!r}: got UTF-16 or a binary file, save them as CSV in UTF-8")
    if data.lstrip().startswith((b"{", b"[")):
        raise SourceError(f"cannot read the labels {name!r}: got JSON, save them as CSV in UTF-8")
    try:
        text = data.decode("utf-8-sig")
        (_, header), *numbered = _lines(text) or [(1, [])]
    except (csv.Error, UnicodeDecodeError) as error:
        raise SourceError(f"cannot read the labels {name!r} as CSV in UTF-8: {error}") from error
    if len(header) < 2:
        raise SourceError(
            f"the labels {name!r} have fewer than two columns: {_EXPECTED}, separated by commas, semicolons or tabs, got {_cut(header)}"
        )
    rows = []
    for line, cells in numbered:
        if len(cells) < len(header) or any(cells[len(header) :]):  # spreadsheets append empty cells
            raise SourceError(
                f"{name!r}, line {line}: expected {len(header)} values, as in {_cut(header)}, got {_cut(cells)}"
            )
        rows.append(cells[: len(header)])
    return LabelTable(name, header, rows, [line for line, _ in numbered])


def _lines(text: str) -> list[tuple[int, list[str]]]:
    """Return the number and cells of each line that is not blank; raise csv.Error."""
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), skipinitialspace=True, strict=True)
    stripped = ([cell.strip() for cell in cells] for cells in lines)
    return [(lines.line_num, cells) for cells in stripped if any(cells)]


def _delimiter(text: str) -> str:
    """Return the delimiter that finds the most columns of a known name in the header line, or else the most columns."""
    header = re.split("[\r\n]", text.lstrip("\r\n "), maxsplit=1)[0]

    def columns(delimiter: str) -> tuple[int, int]:
        cells = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])
        return len(called(cells, _NAME_COLUMNS + CLASS_KEYS)), len(cells)

    return max(_DELIMITERS, key=columns)


def table_labels(
    table: LabelTable,
    keys: Sequence[str],
    *,
    image: str | None = None,
    target: str | None = None,
    find_key: FindKey | None = None,
) -> Labelled:
    """Return the classes of images by a labels file. Names that are all integers are sorted as numbers.

    Args:
        table: The labels file.
        keys: Keys of the images.
        image: Column with the names of the images. Default: a column of a conventional name, else the first that names images.
        target: Column with the classes. Default: the only column of a conventional name, else the other one of two.
        find_key: Return the key of the file at a path. Default: the images are not in a local folder.

    Raises:
        SourceError: The columns are unknown or ambiguous, a name means two images, no name means any, or values are not classes.
    """
    _refuse_missing_header(table, keys)
    unnamed = [index for index, name in enumerate(table.header) if _UNNAMED.fullmatch(name)]
    columns = [index for index in range(len(table.header)) if index not in unnamed]
    classes = _class_column(table, columns, target)
    columns = [index for index in columns if index != classes]
    # pandas writes an index without a header; it may be the names
    candidates = [columns, unnamed] if image is None else [[_column(table, image, "--image")]]
    names, matches = _name_column(table, candidates, keys, find_key)
    unused = [index for index in columns if index != names]
    notes: list[str] = []
    if classes is None:
        if len(unused) != 1:
            raise SourceError(
                f"no column of the labels {table.path!r} is called {_or(CLASS_KEYS)}: name the column of the classes with --target "
                f"({_ONE_CLASS}), got {_cut(table.header)}"
            )
        [classes] = unused
    elif target is None and (unused := [index for index in unused if not called([table.header[index]], _NAME_COLUMNS)]):
        _refuse_splits(table, unused, table.header[classes])
        others = shortened([repr(table.header[index]) for index in unused], _SHOWN)
        notes.append(
            f"classes are in column {table.header[classes]!r} of {table.path}; {plural(len(unused), 'column')} not used: {others}"
        )
    values = ["" if cell.lower() in _MISSING else cell for cell in table.column(classes)]
    _check_classes(table.path, table.header[classes], values)
    return _labelled(table, keys, table.column(names), values, matches, notes)


def _refuse_splits(table: LabelTable, columns: Sequence[int], classes: str) -> None:
    """Refuse a table with a column of splits: test images must not be trained on."""
    for index in columns:
        values = set(table.column(index))
        splits = split_words(values)
        if len(set(splits.values())) > 1 and values <= {*splits, *_MISSING}:
            raise SourceError(
                f"column {table.header[index]!r} of the labels {table.path!r} has splits, which are not read: move the images to folders "
                f"such as {' and '.join(sorted(splits))}, or pass --target {shlex.quote(classes)} to ignore this column"
            )


def _refuse_missing_header(table: LabelTable, keys: Sequence[str]) -> None:
    if called(table.header, _NAME_COLUMNS + CLASS_KEYS):
        return
    if found := match_names(table.header, keys).rows:
        raise SourceError(
            f"the labels {table.path!r} have no header line, their first line is about the image {keys[found[min(found)]]!r}: "
            f"{_EXPECTED}"
        )


def _column(table: LabelTable, name: str, option: str) -> int:
    if table.header.count(name) != 1:
        raise SourceError(
            f"the labels {table.path!r} must have one column {name!r} for {option}, got {_cut(table.header)}"
        )
    return table.header.index(name)


def _class_column(table: LabelTable, columns: Sequence[int], target: str | None) -> int | None:
    """Return the column with the classes, None if no column has a conventional name."""
    if target is not None:
        return _column(table, target, "--target")
    known = [index for index in columns if called([table.header[index]], CLASS_KEYS)]
    if len(known) > 1:
        names = listed([repr(table.header[index]) for index in known])
        raise SourceError(
            f"the labels {table.path!r} may have the classes in {names}: name one column with --target; {_ONE_CLASS}"
        )
    return known[0] if known else None


def _name_column(
    table: LabelTable, candidates: Sequence[Sequence[int]], keys: Sequence[str], find_key: FindKey | None
) -> tuple[int, Matches]:
    """Return the column with the names of the images, of the first candidates that have any, and which images they mean."""
    matches: dict[int, Matches] = {}
    for columns in candidates:
        known = [index for index in columns if called([table.header[index]], _NAME_COLUMNS)]
        matches = {index: match_names(table.column(index), keys, find_key) for index in known or columns}
        if any(found.rows for found in matches.values()):
            break
    most = max((len(found.rows) for found in matches.values()), default=0)
    if not most:
        shown_column = next((index for columns in candidates for index in columns), 0)
        there = f"such as {table.rows[0][shown_column]!r}" if table.rows else "no lines"
        raise SourceError(
            f"the labels {table.path!r} name no image of the source: got {there}, expected names such as {min(keys)!r}"
        )
    first, *others = [index for index, found in matches.items() if 2 * len(found.rows) >= most]
    for other in others:
        if matches[other].rows != matches[first].rows:
            raise SourceError(
                f"the labels {table.path!r} name different images in the columns {table.header[first]!r} and {table.header[other]!r}: "
                f"choose one with --image"
            )
    return first, matches[first]


def _check_classes(path: str, column: str, values: Sequence[str]) -> None:
    """Raise SourceError if the values of a column are not classes, but numbers or several labels in one."""
    given = list(filter(None, values))
    distinct = set(given)
    problem = None
    if several := next((value for value in given if _is_list(value, distinct)), None):
        problem = f"several labels in one value, such as {shown(several)}"
    elif all(map(holds_numbers, distinct)) and (number := next((text for text in given if not text.isdigit()), None)):
        problem = f"numbers that are not classes, such as {shown(number)}"
    elif crowd := crowding(len(distinct), len(given)):
        problem = crowd
    if problem:
        raise SourceError(
            f"column {column!r} of the labels {path!r} has {problem}: {_ONE_CLASS}; name another column with --target if there is one"
        )


def _is_list(value: str, values: Set[str]) -> bool:
    """Return whether a value holds several labels: with a semicolon or bar, in brackets, several numbers, or a list of other values."""
    if ";" in value or "|" in value or (value[0], value[-1]) in (("[", "]"), ("{", "}")):
        return True
    parts = re.split("[ ,]+", value)
    return len(parts) > 1 and (
        all(map(holds_numbers, parts))
        or set(parts) <= values
        or ("," in value and all(part.strip() in values for part in value.split(",")))
    )


def _labelled(
    table: LabelTable,
    keys: Sequence[str],
    names: Sequence[str],
    values: Sequence[str],
    matches: Matches,
    notes: Sequence[str],
) -> Labelled:
    path = table.path
    if "" in names:
        index = names.index("")
        raise SourceError(
            f"{path!r}, line {table.lines[index]}: expected the name of an image, got {_cut(table.rows[index])}"
        )
    if matches.either:
        index, *rows = matches.either
        one, other = sorted(keys[row] for row in rows)
        raise SourceError(
            f"{path!r}, line {table.lines[index]}: {names[index]!r} may be {one!r} or {other!r}: use longer paths, with suffix"
        )
    if matches.twice:
        earlier, index = matches.twice
        raise SourceError(
            f"{path!r}, line {table.lines[index]}: {names[index]!r} is labelled twice, first in line {table.lines[earlier]}"
        )
    class_of: list[str | None] = [None] * len(keys)
    for index, row in matches.rows.items():
        class_of[row] = values[index]
    distinct = set(filter(None, class_of))
    class_names = tuple(sorted(distinct, key=sort_key(distinct)))
    index_of: dict[str | None, int] = {name: label for label, name in enumerate(class_names)}
    reasons = {
        row: f"it has no label in {path}" if name is None else f"its label in {path} is empty"
        for row, name in enumerate(class_of)
        if not name
    }
    said = list(notes)
    if matches.tails:
        index, row = next(iter(matches.rows.items()))
        said.append(f"{path} was matched by the ends of paths, such as {names[index]!r} with {keys[row]!r}")
    unused = len(names) - len(matches.rows)
    if unused:
        lost = next(name for index, name in enumerate(names) if index not in matches.rows)
        said.append(f"{path} has labels for {plural(unused, 'image')} that the source does not have, such as {lost!r}")
    skipped = Counter({"(label of no image)": unused} if unused else {})
    return Labelled([index_of.get(name) for name in class_of], class_names, reasons, skipped=skipped, notes=tuple(said))


def _or(names: Sequence[str]) -> str:
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}"


def _cut(cells: Sequence[str]) -> str:
    """Show the first cells."""
    return f"[{shortened(list(map(shown, cells)), _SHOWN)}]"
