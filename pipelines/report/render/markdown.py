"""Render a document as Markdown, for reviews and pull requests, without charts and images."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from joulecache.pipelines.report.document import (
    Block,
    Cell,
    Chart,
    Claims,
    Code,
    Command,
    Document,
    Images,
    Paragraph,
    Sentence,
    Table,
    Text,
    parts,
    visible,
)

# Underscores inside words are not markup: tf_cache reads better than tf\_cache.
_MARKS = re.compile(r"[\\`*{}\[\]<>#!|~$&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|^[-+]")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def to_markdown(document: Document) -> str:
    """Return a document as Markdown."""
    shown = visible(document)
    lines = [f"# {escape(shown.title)}", ""]
    for sentence in shown.headline:
        lines += [f"{escape(sentence.lead)} {_sentence(sentence)}".lstrip(), ""]
    if shown.certainty:
        lines += [escape(shown.certainty), ""]
    if shown.next_step:
        lines += [f"{escape(shown.next_step.text)} {code(shown.next_step.command)}", ""]
    if shown.warning:
        lines += [f"> {escape(shown.warning)}", ""]
    for fact in shown.facts:
        lines.append(f"- {escape(fact.label)}: **{_cell(fact.cell)}** {escape(fact.detail)}".rstrip())
    lines += ["", *_paragraph(shown.about)]
    lines += sections_markdown(shown)
    if shown.footer:
        lines.append(escape(shown.footer))
    return "\n".join(lines).rstrip() + "\n"


def sections_markdown(document: Document) -> list[str]:
    """Return the sections of a document as lines of Markdown."""
    lines = []
    for section in visible(document).sections:
        lines += [f"## {escape(section.title)}", ""] if section.title else []
        lines += [line for block in section.blocks for line in _block(block)]
    return lines


def escape(text: str) -> str:
    """Escape text so that Markdown shows it unchanged, also in a table."""
    return _MARKS.sub(lambda match: _ENTITIES.get(match[0], f"\\{match[0]}"), text)


def code(text: str) -> str:
    """Return text as a code span, with a fence longer than any run of backticks in it."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _block(block: Block) -> Iterator[str]:
    match block:
        case Table():
            yield from _table(block)
        case Paragraph():
            yield from _paragraph(block.text)
        case Claims():
            yield from (f"- {_sentence(sentence)}" for sentence in block.sentences)
            yield ""
        case Command():
            yield from (code(block.text), "")
        case Chart() | Images():
            return


def _paragraph(text: Text) -> list[str]:
    line = "".join(code(part.text) if isinstance(part, Code) else escape(part) for part in parts(text))
    return [line, ""] if line else []


def _sentence(sentence: Sentence) -> str:
    marks = ", ".join(escape(mark) for mark in (sentence.finding, sentence.tag) if mark)
    texts = (f"**{escape(sentence.claim)}**", escape(sentence.detail), marks and f"\\[{marks}\\]")
    return " ".join(filter(None, texts))


def _table(table: Table) -> Iterator[str]:
    if table.title:
        yield from (f"### {escape(table.title)}", "")
    yield _row(escape(column.title) for column in table.columns)
    yield _row("---:" if column.align == "right" else "---" for column in table.columns)
    yield from (_row(map(_cell, row)) for row in table.rows)
    yield ""
    yield from _paragraph(table.remark)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    ends = f"({cell.value.interval})" if cell.value.interval else ""
    return " ".join(filter(None, (escape(cell.text), cell.tag, escape(ends))))
