"""A report as Markdown: the same sentences and tables, for terminals, reviews and pull requests."""

from __future__ import annotations

import re
from collections.abc import Iterable

from joulecache.pipelines.report import figures
from joulecache.pipelines.report.page import CompressionPart, Page, compression_part
from joulecache.pipelines.report.tables import Cell, Table
from joulecache.pipelines.report.verdict import Body, Statement

# Underscores stay inside words, where they mark nothing: tf_cache reads better than tf\_cache.
_MARKS = re.compile(r"[\\`*{}\[\]<>#!|~$&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|^[-+]")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, in a table too."""
    return _MARKS.sub(lambda match: _ENTITIES.get(match[0], f"\\{match[0]}"), text)


def code(text: str) -> str:
    """Return text as a code span, which no backtick in it ends."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def to_markdown(page: Page) -> str:
    """Return the report as one Markdown text."""
    lines = [f"# joulecache: {page.question}", ""]
    if not page.headline:
        lines += ["Nothing was compared with the cache.", ""]
    for said in page.headline:
        lead = f"{said.lead} " if said.lead else ""
        lines += [f"{lead}**{escape(said.claim)}** {escape(said.detail)} {_tags(said)}", ""]
    if page.doubts:
        lines += [f"**Flagged by the meter.** {escape(page.doubts)}", ""]
    for tile in page.tiles:
        lines.append(f"- {escape(tile.label)}: **{_cell(tile.figure)}** {escape(tile.detail)}")
    subject = ", ".join(f"{label} {code(text)}" for label, text in page.subject)
    lines += ["", f"{subject}. {escape(page.facts)}", ""]
    if page.stages is not None:
        lines += ["## Where the joules go", ""]
        lines += [line for sentence in page.stages.statements for line in (escape(sentence), "")]
        lines += _tables([page.stages.table])
    for part in page.workloads:
        lines += [f"## {escape(part.title)}", "", escape(part.lead), ""]
        lines += [f"- **{escape(said.claim)}** {escape(said.detail)} {_tags(said)}" for said in part.statements]
        lines += ["", *_tables(part.tables)]
    if page.reuse is not None:
        lines += ["## Draws that are seen again", ""]
        lines += [line for sentence in page.reuse.statements for line in (escape(sentence), "")]
        lines += _tables(page.reuse.tables)
    if page.may_compress:
        lines += ["## The compressed model", ""]
        lines += ["No model was compressed.", ""] if page.compression is None else _compression(page.compression)
    lines += [
        "## Where the figures come from",
        "",
        "Measured joules come from hardware counters, modelled joules from published coefficients, given ones from the user. A sum "
        "with a modelled part is modelled.",
        "",
    ]
    lines += [f"Command: {code(page.command)}", ""]
    lines += [f"- Note of the meter: {escape(note)}." for note in page.notes]
    lines += ["", *_tables(page.provenance)]
    lines.append("Charts are in report.html, the figures for machines in report.json, every single run in runs.jsonl.")
    return "\n".join(lines) + "\n"


def compression_markdown(compression: Body) -> str:
    """Return what a compression gave, as `Compression.to_json` has it, as Markdown: sentences and the table of the files."""
    return "\n".join(_compression(compression_part(figures.visible(compression))))


def _compression(part: CompressionPart) -> list[str]:
    lines = [line for sentence in part.statements for line in (escape(sentence), "")]
    return lines + _tables(part.tables)


def _tags(said: Statement) -> str:
    return f"\\[{', '.join(filter(None, (said.finding, said.tag)))}\\]"


def _tables(tables: Iterable[Table]) -> list[str]:
    lines: list[str] = []
    for table in tables:
        lines += [f"### {escape(table.title)}", ""]
        lines.append(_row(escape(column.title) for column in table.columns))
        lines.append(_row("---:" if column.figure else "---" for column in table.columns))
        lines += [_row(map(_cell, row)) for row in table.rows]
        lines.append("")
        if table.remark:
            lines += [escape(table.remark), ""]
    return lines


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    return " ".join(filter(None, (escape(cell.text), cell.tag, escape(cell.ends))))
