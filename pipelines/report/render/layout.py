"""Lay out tables as lines of text. In a table that is too wide, columns are dropped, then rows become lists; words are never split."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells
from rich.text import Text

from joulecache.pipelines.core.quantities import NO_BREAK, UNITS, Spread
from joulecache.pipelines.report.document import Cell, Column, Table

STYLES = {"saves": "green", "costs": "red", "inconclusive": "yellow", "not inferior": "green", "inferior": "red"}
"""The colours of findings."""

_GAPS = (2, 1)  # between columns; the second if the table does not fit otherwise
_SHORT, _PROSE = 14, 24  # minimum width of a column of short texts, and of long ones
_LONG = 28  # texts at least this wide are long
_HEAD_LINES = 2  # of a long header, if there is room
_BETWEEN_WORDS = re.compile(r"(?<=[^\W\d]-)(?=[^\W_])")  # after a hyphen, but not within -0.5 or 1.2-3.4
_BEFORE_UNIT = re.compile(rf"(?<=\d) (?=(?:{'|'.join(UNITS)})(?!\w))")
_BETWEEN_PARTS = re.compile(r"(?<=[/\\_.,;:=&?+|-])")  # of paths and URLs


def wrap(text: str, width: int, *, at_hyphens: bool = False) -> list[str]:
    """Break a text into lines at spaces and optionally at hyphens; a word longer than a line is broken between its parts.

    A number stays with its unit.
    """
    lines, line, width = [], "", max(1, width)
    for word in _words(_BEFORE_UNIT.sub(NO_BREAK, text), width):
        for part, starts in _pieces(word, width, at_hyphens):
            joint = " " if line and starts else ""
            if line and cell_len(line + joint + part) > width:
                lines.append(line)
                line, joint = "", ""
            line += joint + part
    return [each.replace(NO_BREAK, " ") for each in (*lines, line)]


def _words(text: str, width: int) -> Iterator[str]:
    for word in text.split(" "):
        yield from [word] if cell_len(word) <= width else word.split(NO_BREAK)


def _pieces(word: str, width: int, at_hyphens: bool) -> Iterator[tuple[str, bool]]:
    """Yield the unbreakable parts of a word, and whether each starts the word."""
    starts = True
    for part in _BETWEEN_WORDS.split(word) if at_hyphens or cell_len(word) > width else [word]:
        for smaller in [part] if cell_len(part) <= width else _BETWEEN_PARTS.split(part):
            for chopped in [smaller] if cell_len(smaller) <= width else chop_cells(smaller, width):
                yield chopped, starts
                starts = False


def _longest_piece(text: str) -> int:
    return max(cell_len(part) for word in text.split(" ") for part in _BETWEEN_WORDS.split(word))


@dataclass(frozen=True)
class _Entry:
    """The styled lines of a cell before wrapping, and the text beside the first one."""

    lines: tuple[tuple[str, str], ...]
    prose: bool
    beside: str = ""

    @property
    def natural(self) -> int:
        return max(cell_len(text) for text, _ in self.lines) + cell_len(self.beside)

    @property
    def least(self) -> int:
        longest = max(_longest_piece(text) for text, _ in self.lines) + cell_len(self.beside)
        if not self.prose:
            return longest
        return max(longest, min(self.natural, _SHORT if self.natural <= _LONG else _PROSE))

    def wrapped(self, width: int) -> list[Text]:
        lines = [Text(part, style) for text, style in self.lines for part in wrap(text, width, at_hyphens=True)]
        if self.beside:
            lines[0].append(self.beside, "dim")
        return lines


def table_lines(table: Table, width: int) -> list[Text]:
    """Return a table as lines of at most `width` columns, its title and remark included."""
    tag = _common_tag(table)
    title = f"{table.title} (energy {tag})" if tag and table.title else table.title
    lines = [Text(part, "bold") for part in wrap(title, width)] if title else []
    lines += _grid(table, tag, width) or _list(table, tag, width)
    return lines + ([Text(part, "dim") for part in wrap(table.remark, width)] if table.remark else [])


def _grid(table: Table, tag: str | None, width: int) -> list[Text]:
    """Return a table as columns; an empty list if not even the required columns fit."""
    columns = table.columns
    for entries in (_entries(table, tag, beside=True), _entries(table, tag, beside=False)):
        shown, widths, gap = _fit(columns, entries, width)
        if widths and len(shown) == len(columns):
            return _grid_lines(columns, entries, shown, widths, gap)
    if not widths:
        return []
    hidden = ", ".join(column.title for index, column in enumerate(columns) if index not in shown)
    left_out = [Text(part, "dim") for part in wrap(f"Left out at this width: {hidden}.", width)]
    return _grid_lines(columns, entries, shown, widths, gap) + left_out


def _entries(table: Table, tag: str | None, *, beside: bool) -> list[list[_Entry]]:
    """Return the entries by row, with intervals beside or below the values."""
    by_column = [
        [_text_entry(row[index], tag) for row in table.rows]
        if column.align == "left"
        else _number_entries([row[index] for row in table.rows], tag, beside)
        for index, column in enumerate(table.columns)
    ]
    return [list(row) for row in zip(*by_column, strict=True)]


def _common_tag(table: Table) -> str | None:
    """Return the tag that all tagged cells share, for the title."""
    tags = {cell.tag for row in table.rows for cell in row if cell.tag}
    return tags.pop() if len(tags) == 1 else None


def _text_entry(cell: Cell, common: str | None) -> _Entry:
    return _Entry(((inline(cell, common), _style(cell)),), prose=True)


def _number_entries(cells: Sequence[Cell], common: str | None, beside: bool) -> list[_Entry]:
    """Return the entries of a column of numbers, which do not wrap."""
    values = [f"{cell.text} {cell.tag}" if cell.tag and cell.tag != common else cell.text for cell in cells]
    ends = [_compact(cell.value) for cell in cells]
    if beside and any(ends):
        size, reach = max(map(cell_len, values)), max(map(cell_len, ends))
        tails = ["  " + " " * (reach - cell_len(each)) + each for each in ends]
        return [
            _Entry(((_whole(" " * (size - cell_len(value)) + value), _style(cell)),), False, tail)
            for value, cell, tail in zip(values, cells, tails, strict=True)
        ]
    return [
        _Entry(((_whole(value), _style(cell)), *([(_whole(each), "dim")] if each else [])), False)
        for value, cell, each in zip(values, cells, ends, strict=True)
    ]


def _style(cell: Cell) -> str:
    return STYLES.get(cell.text, "") if cell.finding else ""


def _whole(text: str) -> str:
    """Return a text with no-break spaces."""
    return text.replace(" ", NO_BREAK)


def _compact(spread: Spread) -> str:
    if not spread.low:
        return spread.note
    signs = spread.low[:1] in "+-" or spread.high[:1] in "+-"
    return spread.interval if signs else f"{spread.low}-{spread.high}"


def inline(cell: Cell, common: str | None = None) -> str:
    """Return a cell as text, with its tag unless that is the common one."""
    tag = cell.tag if cell.tag != common else None
    ends = f"({cell.value.interval})" if cell.value.interval else None
    return " ".join(filter(None, (cell.text, tag, ends)))


def _head(column: Column) -> str:
    return column.short or column.title


def _fit(
    columns: Sequence[Column], entries: Sequence[Sequence[_Entry]], width: int
) -> tuple[list[int], list[int] | None, int]:
    """Return the columns to show, their widths (None: none fit) and the gap between them."""
    shown = list(range(len(columns)))
    while True:
        for gap in _GAPS:
            room = width - gap * (len(shown) - 1)
            needs = [_needs(columns[index], [row[index] for row in entries]) for index in shown]
            if sum(least for least, _ in needs) <= room:
                return shown, _spread_out(needs, room), gap
        optional = [index for index in shown if columns[index].priority]
        if not optional:
            return shown, None, 0
        shown.remove(max(optional, key=lambda index: (columns[index].priority, index)))


def _needs(column: Column, entries: Sequence[_Entry]) -> tuple[int, int]:
    """Return the minimum and the maximum useful width of a column."""
    head = _head(column)
    longest = max(map(cell_len, head.split(" ")))
    least = max([longest, *(entry.least for entry in entries)])
    lines = 1 if cell_len(head) <= _SHORT else _HEAD_LINES
    flat = next(size for size in range(longest, cell_len(head) + 1) if len(wrap(head, size)) <= lines)
    return least, max([least, flat, *(entry.natural for entry in entries)])


def _spread_out(needs: Sequence[tuple[int, int]], room: int) -> list[int]:
    """Give each column its minimum width, and distribute the rest equally, narrow columns first."""
    widths, spare = [least for least, _ in needs], room - sum(least for least, _ in needs)
    by_need = sorted(range(len(needs)), key=lambda index: needs[index][1] - needs[index][0])
    for done, index in enumerate(by_need):
        least, most = needs[index]
        more = min(most - least, spare // (len(needs) - done))
        widths[index], spare = least + more, spare - more
    return widths


def _grid_lines(
    columns: Sequence[Column],
    entries: Sequence[Sequence[_Entry]],
    shown: Sequence[int],
    widths: Sequence[int],
    gap: int,
) -> list[Text]:
    def line(parts: Sequence[Text]) -> Text:
        made = Text()
        for index, part, size in zip(shown, parts, widths, strict=True):
            space = " " * (size - part.cell_len)
            made.append_text(part if columns[index].align == "left" else Text(space))
            made.append_text(Text(space) if columns[index].align == "left" else part)
            made.append(" " * gap)
        made.rstrip()
        return made

    def rows(cells: Sequence[list[Text]], at_the_bottom: bool) -> Iterator[Text]:
        height = max(map(len, cells))
        blank = [[Text()] * (height - len(cell)) for cell in cells]
        stacks = [above + cell if at_the_bottom else cell + above for cell, above in zip(cells, blank, strict=True)]
        yield from map(line, zip(*stacks, strict=True))

    heads = [
        [Text(part, "dim") for part in wrap(_head(columns[index]), size)]
        for index, size in zip(shown, widths, strict=True)
    ]
    lines = [*rows(heads, True), Text("─" * (sum(widths) + gap * (len(widths) - 1)), "dim")]
    for row in entries:
        lines += rows([row[index].wrapped(size) for index, size in zip(shown, widths, strict=True)], False)
    return lines


def _list(table: Table, common: str | None, width: int) -> list[Text]:
    """Return each row as a list with one cell per line."""
    lines = []
    for row in table.rows:
        lines += [Text(part) for part in wrap(inline(row[0], common), width)]
        for column, cell in zip(table.columns[1:], row[1:], strict=True):
            if cell.text:
                first, *others = wrap(f"{column.title}: {_item(cell, common)}", width - 4)
                lines += [Text(f"  {first}"), *(Text(f"    {other}") for other in others)]
                if cell.finding:
                    lines[-1].highlight_words([cell.text], _style(cell))
    return lines


def _item(cell: Cell, common: str | None) -> str:
    """Return a cell as text; a number and its interval do not wrap."""
    spread = cell.value
    if not (spread.low or spread.value[:1].isdigit()) or cell_len(spread.value) > _PROSE:
        return inline(cell, common)
    ends = _whole(f"({spread.interval})") if spread.interval else None
    return " ".join(filter(None, (_whole(spread.value), cell.tag if cell.tag != common else None, ends)))
