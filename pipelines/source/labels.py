"""Labels files: tables of images and their classes, separated by commas, semicolons or tabs."""

from __future__ import annotations

import codecs
import csv
import functools
import io
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from joulecache.pipelines.core.checks import shown
from joulecache.pipelines.core.quantities import listed, plural, shortened
from joulecache.pipelines.source.classes import CLASS_KEYS, Labelled, called, merged, sort_key
from joulecache.pipelines.source.config import Wanted
from joulecache.pipelines.source.documents import read_document
from joulecache.pipelines.source.matching import FindKey, Matches, match_names
from joulecache.pipelines.source.records import SourceError
from joulecache.pipelines.source.splits import split_words
from joulecache.pipelines.source.targets import cell_text, infer_kind, read_table

_NAME_COLUMNS = (
    *("file", "filename", "file_name", "filepath", "file_path", "path", "key"),
    *("image", "image_id", "image_name", "image_path", "image_file_name", "img", "id"),
)
_DELIMITERS = ("\t", ";", ",")
_EXPECTED = "expected a header line such as 'file,label', then a line for each image"
INDICATORS = "labels"
"""The name of a multi-label target whose classes are columns of 0 and 1."""

FindMasks: TypeAlias = Callable[[str, Sequence[str | None], str, str], Labelled]
"""Returns the masks of a column: of a name, the cells, the folder in which they start, and the table."""

_FILE_NAME = "_file_name"  # after the name of a mask, as Hugging Face's ImageFolder has it
_OBJECTS = "objects"
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
        root: Where the paths in it start. Default: its folder.
        others: Other files whose lines it has too.
    """

    path: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    lines: Sequence[int]
    root: str | None = None
    others: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Where the paths in it start."""
        return os.path.dirname(self.path) if self.root is None else self.root  # noqa: PTH120 - may be a URL

    def column(self, index: int) -> list[str]:
        """Return the cells of a column."""
        return [row[index] for row in self.rows]


def read_labels(path: str | os.PathLike[str]) -> LabelTable:
    """Read a labels file; SourceError if it is missing, not a table in UTF-8, or has lines of different lengths."""
    name = os.fspath(path)
    data = read_document("the labels", name)
    if name.endswith((".jsonl", ".parquet")):
        return _typed_table(name, data)
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


def _typed_table(name: str, data: bytes) -> LabelTable:
    """Read JSON lines or Parquet: their values become cells."""
    lines: list[int] = []
    objects: list[dict[str, object]] = []
    try:
        if name.endswith(".parquet"):
            objects = pq.read_table(pa.BufferReader(data)).to_pylist()
            lines = list(range(1, len(objects) + 1))
        else:
            for line, text in enumerate(data.decode("utf-8-sig").splitlines(), 1):
                if text.strip():
                    found = json.loads(text)
                    if not isinstance(found, dict):
                        raise ValueError(f"line {line} must be an object, got {shown(found)}")
                    objects.append(found)
                    lines.append(line)
        header = list(dict.fromkeys(key for each in objects for key in each))
        rows = [[cell_text(each.get(key)).strip() for key in header] for each in objects]
    except (ValueError, RecursionError, pa.ArrowException, OSError) as error:
        raise SourceError(f"cannot read the labels {name!r}: {error}") from error
    if len(header) < 2:
        raise SourceError(f"the labels {name!r} have fewer than two columns: {_EXPECTED}, got {_cut(header)}")
    return LabelTable(name, header, rows, lines)


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
    targets: Sequence[Wanted] = (),
    find_key: FindKey | None = None,
    find_masks: FindMasks | None = None,
) -> Labelled:
    """Return the targets of images by a labels file. Names that are all integers are sorted as numbers.

    Args:
        table: The labels file.
        keys: Keys of the images.
        image: Column with the names of the images. Default: a column of a conventional name, else the first that names images.
        targets: Columns of targets. Default: the only column of a conventional name, else columns of masks and boxes, else the other
            one of two, else all columns if these have only 0 and 1, as classes of a multi-label.
        find_key: Return the key of the file at a path. Default: the images are not in a local folder.
        find_masks: Return the masks that a column names. Default: there are none.

    Raises:
        SourceError: The columns are unknown or ambiguous, a name means two images, no name means any, or values are not classes.
    """
    _refuse_missing_header(table, keys)
    unnamed = [index for index, name in enumerate(table.header) if is_unnamed(name)]
    columns = [index for index in range(len(table.header)) if index not in unnamed]
    joined = [each for each in targets if _are_indicators(table, each)]
    chosen = _chosen_columns(table, columns, [each for each in targets if each not in joined], inferred=not targets)
    columns = [index for index in columns if index not in chosen.values()]
    # pandas writes an index without a header; it may be the names
    candidates = [columns, unnamed] if image is None else [[_column(table, image, "--image")]]
    names, matches = _name_column(table, candidates, keys, find_key)
    unused = [index for index in columns if index != names]
    _check_matches(table, keys, table.column(names), matches)
    read = functools.partial(_with_targets, table, keys, names, matches, find_masks)
    notes: list[str] = []
    if joined:
        unused = _indicator_columns(table, [index for index in unused if index not in chosen.values()])
    if (joined or not chosen) and (notes := _indicator_note(table, unused)):
        joined = [Wanted(INDICATORS, "multilabel")]
    elif joined:
        raise SourceError(
            f"--target {INDICATORS}:multilabel needs a column {INDICATORS!r}, or two or more columns of 0 and 1 in the labels "
            f"{table.path!r}, got {_cut(table.header)}"
        )
    elif not chosen:
        chosen = _only_column(table, unused)
    elif not targets:
        notes = _unused_notes(table, [*chosen.values()], unused)
    where = f"the labels {table.path!r}"
    wanted = [
        each if each.kind else Wanted(each.name, infer_kind(each.name, table.column(index), where))
        for each, index in chosen.items()
    ]
    cells = [table.column(index) for index in chosen.values()]
    if joined:
        return read([*wanted, *joined], [*cells, _indicators(table, unused)], notes)
    if [kind for _, kind in wanted] == ["class"]:
        values = ["" if cell.lower() in _MISSING else cell for cell in cells[0]]
        return _labelled(table, keys, table.column(names), values, matches, notes)
    if not targets and [*chosen] != wanted:
        [(name, kind)] = wanted
        notes.append(f"column {name!r} of {table.path} is read as {kind}: pass --target {name}:KIND for another kind")
    return read(wanted, cells, notes)


def _chosen_columns(
    table: LabelTable, columns: Sequence[int], targets: Sequence[Wanted], *, inferred: bool
) -> dict[Wanted, int]:
    """Return the columns of targets: those that the user names; if `inferred`, one called like a class, else those of masks and boxes."""
    if not inferred:
        return {
            Wanted(each.name, each.kind or ("mask" if name.endswith(_FILE_NAME) else None)): _column(
                table, name, "--target"
            )
            for each, name in ((each, _column_name(table, each)) for each in targets)
        }
    if known := _class_column(table, columns):
        return {Wanted(table.header[known[0]], None): known[0]}
    return {each: _column(table, _column_name(table, each), "--target") for each in spatial_columns(table)}


def _only_column(table: LabelTable, columns: Sequence[int]) -> dict[Wanted, int]:
    if len(columns) != 1:
        ways = " ".join(f"--target {shlex.quote(table.header[index])}" for index in columns[:_SHOWN])
        raise SourceError(
            f"no column of the labels {table.path!r} is called {_or(CLASS_KEYS)}: name the columns of the targets, such as {ways}; "
            f"got {_cut(table.header)}"
        )
    return {Wanted(table.header[columns[0]], None): columns[0]}


def _unused_notes(table: LabelTable, chosen: Sequence[int], others: Sequence[int]) -> list[str]:
    unused = [index for index in others if not called([table.header[index]], _NAME_COLUMNS)]
    if not unused:
        return []
    names = listed([repr(table.header[index]) for index in chosen])
    _refuse_splits(table, unused, table.header[chosen[0]])
    shown_names = shortened([repr(table.header[index]) for index in unused], _SHOWN)
    where = f"in column {names}" if len(chosen) == 1 else f"in the columns {names}"
    return [f"targets are {where} of {table.path}; {plural(len(unused), 'column')} not used: {shown_names}"]


def _with_targets(
    table: LabelTable,
    keys: Sequence[str],
    names: int,
    matches: Matches,
    find_masks: FindMasks | None,
    wanted: Sequence[Wanted],
    columns: Sequence[Sequence[str]],
    notes: Sequence[str],
) -> Labelled:
    """Return the targets of images in some columns."""
    cells: dict[str, list[str | None]] = {}
    for each, column in zip(wanted, columns, strict=True):
        cells[each.name] = [None] * len(keys)
        for index, row in matches.rows.items():
            cells[each.name][row] = column[index]
    others = [each for each in wanted if each.kind != "mask"]
    found, reasons, said = read_table(others, {each.name: cells[each.name] for each in others}, table.path)
    skipped, unmatched = _unmatched(table, keys, table.column(names), matches)
    labelled = Labelled(
        [None if row in reasons else 0 for row in range(len(keys))],
        (),
        reasons,
        skipped=skipped,
        notes=(*notes, *said, *unmatched),
        targets=found,
    )
    named = [each.name for each in wanted if each not in others]
    if not named or find_masks is None:
        return labelled
    masks = [find_masks(name, cells[name], table.folder, table.path) for name in named]
    return merged([labelled, *masks], [each.name for each in wanted])


def spatial_columns(table: LabelTable) -> list[Wanted]:
    """Return the targets in columns of masks, which are called like ``mask_file_name``, and of boxes, called ``objects``."""
    masks = [name for name in table.header if _names_masks(name)]
    boxes = [Wanted("boxes", "boxes")] if _OBJECTS in table.header else []
    return [*(Wanted(name.removesuffix(_FILE_NAME), "mask") for name in masks), *boxes]


def _indicator_note(table: LabelTable, columns: Sequence[int]) -> list[str]:
    """Return a note if columns have only 0 and 1, so that each is a class of a multi-label; else none."""
    if len(columns) < 2 or not table.rows or any({*table.column(index)} - {"0", "1"} for index in columns):
        return []
    shown_names = shortened([repr(table.header[index]) for index in columns], _SHOWN)
    return [f"columns of 0 and 1 in {table.path} are read as one multi-label target {INDICATORS!r}: {shown_names}"]


def _are_indicators(table: LabelTable, wanted: Wanted) -> bool:
    """Return whether a target is the columns of 0 and 1 together."""
    return wanted == Wanted(INDICATORS, "multilabel") and INDICATORS not in table.header


def _indicator_columns(table: LabelTable, columns: Sequence[int]) -> list[int]:
    return [index for index in columns if not {*table.column(index)} - {"0", "1"}]


def _indicators(table: LabelTable, columns: Sequence[int]) -> list[str]:
    return [json.dumps([table.header[index] for index in columns if row[index] == "1"]) for row in table.rows]


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


def is_unnamed(column: str) -> bool:
    """Return whether a column is the index of a pandas table."""
    return _UNNAMED.fullmatch(column) is not None


def has_columns(table: LabelTable, targets: Sequence[Wanted]) -> bool:
    """Return whether a table has the columns of all targets."""
    return all(_are_indicators(table, wanted) or _column_name(table, wanted) in table.header for wanted in targets)


def _names_masks(column: str) -> bool:
    return column.endswith(_FILE_NAME) and column not in (_FILE_NAME, *_NAME_COLUMNS)


def _column_name(table: LabelTable, wanted: Wanted) -> str:
    """Return the name of the column of a target: that of its name, or else ``NAME_file_name`` for a mask, or ``objects`` for boxes."""
    known = {"mask": wanted.name + _FILE_NAME, "boxes": _OBJECTS}
    also = [
        name for kind, name in known.items() if wanted.kind == kind or (wanted.kind is None and kind in wanted.name)
    ]
    return next((name for name in also if wanted.name not in table.header and name in table.header), wanted.name)


def _class_column(table: LabelTable, columns: Sequence[int]) -> list[int]:
    """Return the column with the classes, none if no column has a conventional name."""
    known = [index for index in columns if called([table.header[index]], CLASS_KEYS)]
    if len(known) > 1:
        names = listed([repr(table.header[index]) for index in known])
        raise SourceError(
            f"the labels {table.path!r} may have the classes in {names}: name one column with --target, or each of several"
        )
    return known


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


def _check_matches(table: LabelTable, keys: Sequence[str], names: Sequence[str], matches: Matches) -> None:
    """Raise SourceError if a name is missing, means two images, or is there twice."""
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


def _unmatched(
    table: LabelTable, keys: Sequence[str], names: Sequence[str], matches: Matches
) -> tuple[Counter[str], list[str]]:
    """Return the number of labels without an image, and notes about how names were matched."""
    said = []
    if matches.tails:
        index, row = next(iter(matches.rows.items()))
        said.append(f"{table.path} was matched by the ends of paths, such as {names[index]!r} with {keys[row]!r}")
    unused = len(names) - len(matches.rows)
    if unused:
        lost = next(name for index, name in enumerate(names) if index not in matches.rows)
        said.append(
            f"{table.path} has labels for {plural(unused, 'image')} that the source does not have, such as {lost!r}"
        )
    return Counter({"(label of no image)": unused} if unused else {}), said


def _labelled(
    table: LabelTable,
    keys: Sequence[str],
    names: Sequence[str],
    values: Sequence[str],
    matches: Matches,
    notes: Sequence[str],
) -> Labelled:
    path = table.path
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
    skipped, said = _unmatched(table, keys, names, matches)
    return Labelled(
        [index_of.get(name) for name in class_of], class_names, reasons, skipped=skipped, notes=(*notes, *said)
    )


def _or(names: Sequence[str]) -> str:
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}"


def _cut(cells: Sequence[str]) -> str:
    """Show the first cells."""
    return f"[{shortened(list(map(shown, cells)), _SHOWN)}]"
