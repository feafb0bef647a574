"""A result in words, tables and charts, before it has a form.

`report.describe` makes a `Document` of a result, `report.render` turns any document into HTML, Markdown, terminal output or a notebook
cell. Texts are plain: each renderer escapes them for its form. They hold no line breaks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from joulecache.pipelines.core import quantities
from joulecache.pipelines.core.quantities import Spread

Tag = Literal["measured", "modelled", "given"]
"""How joules were obtained: by hardware counters, from published coefficients, or from the user's own watts."""


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
        tag: How its joules were obtained.
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
class Table:
    """A table. The first column names the rows.

    Attributes:
        title: What it shows.
        columns: The heads.
        rows: The cells, row by row.
        remark: How to read it.
        detail: Whether short forms leave it out.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    remark: str = ""
    detail: bool = False


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: Text
    muted: bool = False
    detail: bool = False


@dataclass(frozen=True)
class Claims:
    """Several claims of equal rank."""

    sentences: tuple[Sentence, ...]
    detail: bool = False


@dataclass(frozen=True)
class Command:
    """A command to copy."""

    text: str
    detail: bool = False


@dataclass(frozen=True)
class Image:
    """A small JPEG in base64, what it shows, and a mark beside that."""

    jpeg: str
    label: str
    mark: str = ""


@dataclass(frozen=True)
class Images:
    """Images in a row, with a caption."""

    caption: Text
    images: tuple[Image, ...]
    detail: bool = True


# Charts ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """One value in a chart.

    Attributes:
        label: Its name.
        value: The value.
        ends: The ends of its interval; None: there is none.
        series: The number of its colour; None: muted.
        text: The value as shown beside it.
    """

    label: str
    value: float
    ends: tuple[float, float] | None
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
    ends: tuple[float, float] | None
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
    """Parts of a whole in one bar.

    Attributes:
        parts: The parts that are known, in order.
        rest: What is left of the whole; not drawn unless above 0.
        apart: A value that is not a part, in a bar of its own; None: there is none.
        whole: The whole.
        labels: What the two bars are.
        axis: What the axis shows.
    """

    parts: tuple[Mark, ...]
    rest: Mark
    apart: Mark | None
    whole: float
    labels: tuple[str, str]
    axis: str


@dataclass(frozen=True)
class Dot:
    """A point with its intervals; None: there is none."""

    label: str
    x: float
    x_ends: tuple[float, float] | None
    y: float
    y_ends: tuple[float, float] | None


@dataclass(frozen=True)
class Scatter:
    """Points in a plane."""

    dots: tuple[Dot, ...]
    x_axis: str
    y_axis: str


Plot = Bars | Intervals | Lines | Stack | Scatter


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        title: What it shows.
        plot: What is drawn.
        description: The same in words, for those who cannot see it.
        caption: How to read it.
        tag: How its joules were obtained; None: it shows none.
        detail: Whether short forms leave it out.
    """

    title: str
    plot: Plot
    description: str
    caption: str
    tag: str | None = None
    detail: bool = True


# The whole ------------------------------------------------------------------------------------------------------------

Block = Paragraph | Claims | Table | Chart | Images | Command


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
    """All there is to say of a result.

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
        sections = (
            dataclasses.replace(section, blocks=tuple(_brief(block) for block in section.blocks if not block.detail))
            for section in self.sections
        )
        return dataclasses.replace(self, facts=(), sections=tuple(each for each in sections if each.blocks))


def _brief(block: Block) -> Block:
    return dataclasses.replace(block, remark="") if isinstance(block, Table) else block


T = TypeVar("T")


def visible(value: T) -> T:
    """Return a document, or a part of one, in which characters that act or vanish are escaped."""
    if isinstance(value, str):
        return quantities.visible(value)  # type: ignore[return-value]
    if isinstance(value, tuple):
        return tuple(map(visible, value))  # type: ignore[return-value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{name: visible(getattr(value, name)) for name in names})
    return value


def cell(value: Cell | Spread | str, tag: str | None = None) -> Cell:
    """Return a value as a cell."""
    if isinstance(value, Cell):
        return value
    return Cell(Spread(value) if isinstance(value, str) else value, tag)


def finding_cell(finding: str) -> Cell:
    """Return a finding as a cell."""
    return Cell(Spread(finding), finding=True)


def table(
    title: str,
    columns: Sequence[Column],
    rows: Iterable[Iterable[Cell | Spread | str]],
    remark: str = "",
    *,
    detail: bool = False,
) -> Table:
    """Return a table of cells, or of values that become cells."""
    cells = tuple(tuple(map(cell, row)) for row in rows)
    return Table(title, tuple(columns), cells, remark, detail)


def words(title: str, short: str = "", priority: int = 0) -> Column:
    """Return the head of a column of words."""
    return Column(title, short, "left", priority)
