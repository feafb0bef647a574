"""Print a document at the width of the terminal, or as plain text when piped."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from joulecache.pipelines.report.document import (
    Block,
    Chart,
    Claims,
    Code,
    Command,
    Document,
    Fact,
    Images,
    Paragraph,
    Sentence,
    Table,
    parts,
    visible,
)
from joulecache.pipelines.report.document import Text as DocumentText
from joulecache.pipelines.report.render.layout import STYLES, inline, table_lines, wrap


def print_document(document: Document, console: Console, *, brief: bool = True) -> None:
    """Print a document without charts and images, and without details if `brief`."""
    shown = visible(document.brief() if brief else document)
    for sentence in shown.headline:
        _print_sentence(sentence, console)
        console.print()
    if shown.certainty:
        _print(shown.certainty, console)
        console.print()
    if shown.next_step:
        _print(shown.next_step.text, console)
        _print_block(Command(shown.next_step.command), console)
    if shown.warning:
        _print(shown.warning, console, "yellow")
        console.print()
    for fact in shown.facts:
        _print_fact(fact, console)
    if shown.about:
        _print(plain(shown.about), console)
        console.print()
    for section in shown.sections:
        if section.title:
            _print(section.title, console, "bold underline")
        for block in section.blocks:
            _print_block(block, console)


def plain(text: DocumentText) -> str:
    """Return a text without markup."""
    return "".join(part.text if isinstance(part, Code) else part for part in parts(text))


def _print_block(block: Block, console: Console) -> None:
    match block:
        case Table():
            for line in table_lines(block, console.width):
                console.print(line, soft_wrap=True)
        case Paragraph():
            _print(plain(block.text), console, "dim" if block.muted else "")
        case Claims():
            for sentence in block.sentences:
                _print_sentence(sentence, console)
        case Command():
            # not wrapped, so that it can be copied
            console.print(block.text, soft_wrap=True, markup=False, highlight=False)
        case Images() | Chart():
            return
    console.print()


def _print_sentence(sentence: Sentence, console: Console) -> None:
    _print(
        f"{sentence.lead} {sentence.claim}".lstrip(), console, f"bold {STYLES.get(sentence.finding or '', '')}".strip()
    )
    tag = f"Energy: {sentence.tag}." if sentence.tag else ""
    if detail := f"{sentence.detail} {tag}".strip():
        _print(detail, console)


def _print_fact(fact: Fact, console: Console) -> None:
    detail = f"; {fact.detail}" if fact.detail else ""
    _print(f"{fact.label}: {inline(fact.cell)}{detail}", console)


def _print(text: str, console: Console, style: str = "") -> None:
    for line in wrap(text, console.width):
        console.print(Text(line, style), soft_wrap=True)
