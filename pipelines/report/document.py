"""Results as sentences, tables and charts, independent of any output format.

`report.describe` turns a result into a `Document`, `report.render` turns any document into HTML, Markdown, terminal output or a notebook
cell. Texts are plain: each renderer escapes them. They hold no line breaks.
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
"""The ends of an interval; None where there is none."""


@dataclass(frozen=True)
class Code:
    """Text to quote verbatim, in a fixed-width font."""

    text: str


Text = str | tuple[str | Code, ...]


@dataclass(frozen=True)
class Sentence:
    """A claim and what qualifies it.

    Attributes:
        claim: The claim.
        detail: The sentences that qualify it.
        finding: What was found ("saves", "costs", ...); None where nothing was compared.
        tag: How its joules were obtained: measured, modelled or given.
        lead: What introduces the claim where it is not the first one.
    """

    claim: str
    detail: str = ""
    finding: str | None = None
    tag: str | None = None
    lead: str = ""


@dataclass(frozen=True)
class Cell:
    """One value of a table.

    Attributes:
        value: The formatted value, with its interval where it has one.
        tag: How its joules were obtained; None where it is not an energy.
        finding: Whether the value is a finding, which is shown in colour.
    """

    value: Spread
    tag: str | None = None
    finding: bool = False

    @property
    def text(self) -> str:
        """The value without its interval."""
        return self.value.value


@dataclass(frozen=True)
class Column:
    """The head of a column.

    Attributes:
        title: The full title.
        short: A shorter one for terminals; the title by default.
        align: Numbers are aligned right.
        priority: Where a table is too wide, columns of the highest priority are left out first; those of priority 0 stay.
    """

    title: str
    short: str = ""
    align: Literal["left", "right"] = "right"
    priority: int = 0


@dataclass(frozen=True)
class Block:
    """A part of a section. Short forms leave it out if it is a detail."""

    detail: bool = dataclasses.field(default=False, kw_only=True)


@dataclass(frozen=True)
class Table(Block):
    """A table, whose first column names the rows, with a remark on how to read it."""

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
    """A small JPEG in base64, a label, and a mark next to the label."""

    jpeg: str
    label: str
    mark: str = ""


@dataclass(frozen=True)
class Images(Block):
    """Images in a row, with a caption."""

    caption: Text
    images: tuple[Image, ...]


# Charts ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """A value in a chart, the number of its colour (None: muted), and the value as text."""

    label: str
    value: float
    ends: Ends = None
    series: int | None = None
    text: str = ""


@dataclass(frozen=True)
class Bars:
    """Horizontal bars with whiskers."""

    marks: tuple[Mark, ...]
    axis: str


@dataclass(frozen=True)
class Intervals:
    """Ratios with their intervals, one below the other, and a line at 1."""

    marks: tuple[Mark, ...]
    axis: str


@dataclass(frozen=True)
class Line:
    """A straight line from 0 to the right end of the chart."""

    label: str
    start: float
    end: float
    series: int


@dataclass(frozen=True)
class Crossing:
    """A point where two lines meet, with the interval of its abscissa."""

    x: float
    y: float
    ends: Ends
    series: int


@dataclass(frozen=True)
class Lines:
    """Lines from 0 to `until`, with their crossings."""

    until: float
    lines: tuple[Line, ...]
    crossings: tuple[Crossing, ...]
    x_axis: str
    y_axis: str


@dataclass(frozen=True)
class Stack:
    """Parts of a `whole` in one bar, in order; the `rest` of it; and a value that is not a part, in a separate bar."""

    parts: tuple[Mark, ...]
    rest: Mark
    separate: Mark | None
    whole: float
    labels: tuple[str, str]
    axis: str


@dataclass(frozen=True)
class Dot:
    """A point with its intervals."""

    label: str
    x: float
    x_ends: Ends
    y: float
    y_ends: Ends


@dataclass(frozen=True)
class Scatter:
    """Points in a plane."""

    dots: tuple[Dot, ...]
    x_axis: str
    y_axis: str


Plot = Bars | Intervals | Lines | Stack | Scatter


@dataclass(frozen=True)
class Chart(Block):
    """A chart.

    Attributes:
        title: What it shows.
        plot: What is drawn.
        description: The same in words, for those who cannot see it.
        caption: How to read it.
        tag: How its joules were obtained; None: it shows none.
    """

    title: str
    plot: Plot
    description: str
    caption: str
    tag: str | None = None


# The whole ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """Blocks under a title; "" for none."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Fact:
    """One large value, with what it is and what it holds for."""

    label: str
    cell: Cell
    detail: str
    finding: str | None = None


@dataclass(frozen=True)
class Document:
    """The description of a result.

    Attributes:
        title: Its title.
        name: What it is about.
        headline: The answer, the most important sentence first.
        warning: What makes the values doubtful; "" for nothing.
        facts: The values that matter most.
        about: What was measured.
        sections: The rest.
        footer: Where there is more.
    """

    title: str
    name: str
    headline: tuple[Sentence, ...] = ()
    warning: str = ""
    facts: tuple[Fact, ...] = ()
    about: Text = ""
    sections: tuple[Section, ...] = ()
    footer: str = ""

    def brief(self) -> Document:
        """Return the document without details and remarks on tables, for terminals and notebooks."""
        sections = (Section(each.title, tuple(map(_brief, _shown(each)))) for each in self.sections if _shown(each))
        return dataclasses.replace(self, facts=(), sections=tuple(sections))


def _shown(section: Section) -> list[Block]:
    return [block for block in section.blocks if not block.detail and not isinstance(block, Chart | Images)]


def _brief(block: Block) -> Block:
    return dataclasses.replace(block, remark="") if isinstance(block, Table) else block


def visible(value: T) -> T:
    """Return a document, or a part of one, in which characters that act or vanish are escaped."""
    if isinstance(value, str):
        return quantities.visible(value)  # type: ignore[return-value]
    if isinstance(value, tuple):
        return tuple(map(visible, value))  # type: ignore[return-value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{name: visible(each) for name, each in vars(value).items()})
    return value


# Making tables --------------------------------------------------------------------------------------------------------


def cell(value: Cell | Spread | str, tag: str | None = None) -> Cell:
    """Return a value as a cell."""
    if isinstance(value, Cell):
        return value
    return Cell(Spread(value) if isinstance(value, str) else value, tag)


def finding_cell(finding: str) -> Cell:
    """Return a finding as a cell."""
    return Cell(Spread(finding), finding=True)


def words(title: str, short: str = "", priority: int = 0) -> Column:
    """Return the head of a column of words."""
    return Column(title, short, "left", priority)


def table(
    title: str,
    items: Iterable[T],
    columns: Mapping[Column, Callable[[T], Cell | Spread | str]],
    remark: str = "",
    *,
    detail: bool = False,
) -> Table:
    """Return a table with a row for each item; each column has the function that returns its value for an item."""
    rows = tuple(tuple(cell(value(item)) for value in columns.values()) for item in items)
    return Table(title, tuple(columns), rows, remark, detail=detail)


def pairs(title: str, values: Mapping[str, Cell | Spread | str], remark: str = "") -> Table:
    """Return a table of names and values."""
    columns = {words("What"): lambda what: what, words("Value"): lambda what: values[what]}
    return table(title, values, columns, remark, detail=True)
