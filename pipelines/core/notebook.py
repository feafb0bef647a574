"""How results look in a notebook."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH = 100
_PRINTED = '<pre style="line-height:1.25;font-family:ui-monospace,monospace">{code}</pre>'


def table_html(title: str, rows: Mapping[str, str]) -> str:
    """Return names and what there is to say of each as an HTML table; all of it is escaped."""
    lines = (
        f'<tr><th style="text-align:left">{html.escape(name)}</th><td style="text-align:left">{html.escape(said)}</td></tr>'
        for name, said in rows.items()
    )
    return f"<table><caption>{html.escape(title)}</caption>{''.join(lines)}</table>"


def printed_html(show: Callable[[Console], None]) -> str:
    """Return as HTML what a function prints on a terminal, colours included."""
    from rich.console import Console

    console = Console(record=True, file=io.StringIO(), width=_WIDTH, force_terminal=True)
    show(console)
    return console.export_html(inline_styles=True, code_format=_PRINTED)
