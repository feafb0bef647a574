"""Results as sentences, tables and charts, independent of any output format.

`report.describe` turns a result into a `Document`, `report.render` turns any document into HTML, Markdown, terminal output or a notebook
cell. Texts hold no markup, as each renderer escapes them, and no line breaks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from joulecache.pipelines.core import quantities
from joulecache.pipelines.core.quantities import Spread

T = TypeVar("T")
Ends = tuple[float, float] | None
"""The ends of an interval; None for no interval."""


@dataclass(frozen=True)
class Code:
    """Text to quote verbatim, in a fixed-width font."""

    text: str


Text = str | tuple[str | Code, ...]


@dataclass(frozen=True)
class Sentence:
    """A claim, with the sentences that qualify it and the words that introduce it.

    Attributes:
        finding: "saves", "costs" and so on; None where nothing was compared.
        tag: How its joules were obtained: measured, modelled or given.
    """

    claim: str
    detail: str = ""
    finding: str | None = None
    tag: str | None = None
    lead: str = ""


@dataclass(frozen=True)
class Cell:
    """A formatted value with its tag, as in `Sentence`; a finding is shown in colour."""

    value: Spread
    tag: str | None = None
    finding: bool = False

    @property
    def text(self) -> str:
        """The value without its interval."""
        return self.value.value


@dataclass(frozen=True)
class Column:
    """The header of a column, with a shorter title for terminals.

    Where a table is too wide, columns of the highest priority are dropped first; those of priority 0 stay.
    """

    title: str
    short: str = ""
    align: Literal["left", "right"] = "right"
    priority: int = 0


@dataclass(frozen=True)
class Block:
    """A part of a section. Brief documents leave out blocks marked as details."""

    detail: bool = dataclasses.field(default=False, kw_only=True)


@dataclass(frozen=True)
class Table(Block):
    """A table with a remark on how to read it. Its first column names the rows."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    remark: str = ""


@dataclass(frozen=True)
class Paragraph(Block):
    """Running text."""

    text: Text
    muted: bool = False


@dataclass(frozen=True)
class Claims(Block):
    """Several claims of equal rank."""

    sentences: tuple[Sentence, ...]


@dataclass(frozen=True)
class Command(Block):
    """A command to copy."""

    text: str


@dataclass(frozen=True)
class Image:
    """A small JPEG in base64, a label, and a badge next to the label."""

    jpeg: str
    label: str
    badge: str = ""


@dataclass(frozen=True)
class Images(Block):
    """Images in a row, with a caption."""

    caption: Text
    images: tuple[Image, ...]


# Charts ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """A value in a chart. Its series selects the colour; None is muted."""

    label: str
    value: float
    ends: Ends = None
    series: int | None = None
    text: str = ""


@dataclass(frozen=True)
class Bars:
    """Horizontal bars with error bars."""

    marks: tuple[Mark, ...]
    axis: str


@dataclass(frozen=True)
class Intervals:
    """A forest plot: ratios with their intervals, and a line at 1."""

    marks: tuple[Mark, ...]
    axis: str


@dataclass(frozen=True)
class Line:
    """A straight line across the chart."""

    label: str
    start: float
    end: float
    series: int


@dataclass(frozen=True)
class Crossing:
    """A point where two lines cross, with the interval of `x`."""

    x: float
    y: float
    ends: Ends
    series: int


@dataclass(frozen=True)
class Lines:
    """Lines from x = 0 to `until`, with their crossings."""

    until: float
    lines: tuple[Line, ...]
    crossings: tuple[Crossing, ...]
    x_axis: str
    y_axis: str


@dataclass(frozen=True)
class Stack:
    """A stacked bar of the parts of a whole and the remainder, and a separate bar for a value outside the whole."""

    parts: tuple[Mark, ...]
    rest: Mark
    separate: Mark | None
    whole: float
    labels: tuple[str, str]
    axis: str


@dataclass(frozen=True)
class Dot:
    """A point with error bars."""

    label: str
    x: float
    x_ends: Ends
    y: float
    y_ends: Ends


@dataclass(frozen=True)
class StackedBar:
    """A row of a stacked chart: the parts of a whole, with the interval of their sum."""

    label: str
    parts: tuple[Mark, ...]
    ends: Ends
    text: str


@dataclass(frozen=True)
class StackedBars:
    """Horizontal bars of stacked parts. Parts with the same label have the same colour."""

    bars: tuple[StackedBar, ...]
    axis: str


@dataclass(frozen=True)
class Scatter:
    """A scatter plot."""

    dots: tuple[Dot, ...]
    x_axis: str
    y_axis: str


Plot = Bars | Intervals | Lines | Stack | StackedBars | Scatter


@dataclass(frozen=True)
class Chart(Block):
    """A plot with a description for screen readers, and a caption that says how to read it."""

    title: str
    plot: Plot
    description: str
    caption: str
    tag: str | None = None


# Documents ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """Blocks under an optional title."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Fact:
    """A key value, with a line of context."""

    label: str
    cell: Cell
    detail: str
    finding: str | None = None


@dataclass(frozen=True)
class NextStep:
    """What to do next, and the command that does it."""

    text: str
    command: str


@dataclass(frozen=True)
class Document:
    """The description of a result: the answer first, then key values, then sections.

    Attributes:
        name: The subject, shown as the title of the browser tab.
        picture: The chart that shows the answer.
        certainty: How sure the answer is.
        warning: Reasons to doubt the values.
        about: What was measured.
        footer: Where to find more.
    """

    title: str
    name: str
    headline: tuple[Sentence, ...] = ()
    picture: Chart | None = None
    certainty: str = ""
    next_step: NextStep | None = None
    warning: str = ""
    facts: tuple[Fact, ...] = ()
    about: Text = ""
    sections: tuple[Section, ...] = ()
    footer: str = ""

    def brief(self) -> Document:
        """Return the document without details, charts, images and remarks on tables, for terminals and notebooks."""
        sections = (Section(each.title, _brief(each.blocks)) for each in self.sections)
        return dataclasses.replace(
            self, picture=None, facts=(), sections=tuple(each for each in sections if each.blocks)
        )


def _brief(blocks: Iterable[Block]) -> tuple[Block, ...]:
    return tuple(
        dataclasses.replace(block, remark="") if isinstance(block, Table) else block
        for block in blocks
        if not block.detail and not isinstance(block, Chart | Images)
    )


def parts(text: Text) -> tuple[str | Code, ...]:
    """Return the parts of a text."""
    return (text,) if isinstance(text, str) else text


def visible(value: T) -> T:
    """Return a document, or a part of one, with control and invisible characters escaped."""
    if isinstance(value, str):
        return quantities.visible(value)  # type: ignore[return-value]
    if isinstance(value, tuple):
        return tuple(map(visible, value))  # type: ignore[return-value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{name: visible(each) for name, each in vars(value).items()})
    return value


# Tables --------------------------------------------------------------------------------------------------------


Value = Cell | Spread | str


def cell(value: Value, tag: str | None = None) -> Cell:
    """Return a value as a cell."""
    if isinstance(value, Cell):
        return value
    return Cell(Spread(value) if isinstance(value, str) else value, tag)


def finding_cell(finding: str) -> Cell:
    """Return a finding as a cell."""
    return Cell(Spread(finding), finding=True)


def words(title: str, short: str = "", priority: int = 0) -> Column:
    """Return the header of a text column."""
    return Column(title, short, "left", priority)


def table(
    title: str,
    items: Iterable[T],
    columns: Mapping[Column, Callable[[T], Value]],
    remark: str = "",
    *,
    detail: bool = False,
) -> Table:
    """Return a table with a row for each item. Each column has a function from an item to its value."""
    rows = tuple(tuple(cell(value(item)) for value in columns.values()) for item in items)
    return Table(title, tuple(columns), rows, remark, detail=detail)


def pairs(title: str, values: Mapping[str, Value], remark: str = "") -> Table:
    """Return a table of names and values."""
    columns = {words("What"): lambda what: what, words("Value"): lambda what: values[what]}
    return table(title, values, columns, remark, detail=True)
