"""Results in notebooks: `report` registers how each type is shown, and `Displayed` types look that up."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH = 100
_PRINTED = '<pre style="line-height:1.25;font-family:ui-monospace,monospace">{code}</pre>'

T = TypeVar("T")
Render = Callable[[T], str]

_renders: dict[type, Render[Any]] = {}
_loaders: list[Callable[[], object]] = []


class Displayed:
    """A result that notebooks show as the function registered for its type renders it."""

    def _repr_html_(self) -> str | None:
        return to_html(self)


def register(kind: type[T], render: Render[T]) -> None:
    """Render a type, and its subclasses, as HTML by a function."""
    _renders[kind] = render


def register_on_first_use(load: Callable[[], object]) -> None:
    """Call `load`, which registers functions, when something is first shown: until then nothing that renders is imported."""
    _loaders.append(load)


def to_html(value: object) -> str | None:
    """Return a value as HTML, or None where no function is registered for its type."""
    while _loaders:
        _loaders.pop()()
    found = (_renders[kind] for kind in type(value).__mro__ if kind in _renders)
    render = next(found, None)
    return None if render is None else render(value)


def table_html(title: str, rows: Mapping[str, str]) -> str:
    """Return a table of names and texts as HTML; both are escaped."""
    lines = (
        f'<tr><th style="text-align:left">{html.escape(name)}</th><td style="text-align:left">{html.escape(text)}</td></tr>'
        for name, text in rows.items()
    )
    return f"<table><caption>{html.escape(title)}</caption>{''.join(lines)}</table>"


def printed_html(show: Callable[[Console], None]) -> str:
    """Return as HTML what a function prints to a terminal, colours included."""
    from rich.console import Console

    console = Console(record=True, file=io.StringIO(), width=_WIDTH, force_terminal=True)
    show(console)
    return console.export_html(inline_styles=True, code_format=_PRINTED)
