"""Markdown that the scripts print: tables, and figures with their range."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def print_head(*titles: object, text_columns: int = 1) -> None:
    """Print the header of a table. The first columns hold text, aligned left; the others numbers, aligned right."""
    print_row(*titles)
    print_rule(text_columns, len(titles) - text_columns)


def print_rule(text_columns: int, number_columns: int) -> None:
    """Print the line between the header of a table and its rows."""
    print("|" + "---|" * text_columns + "---:|" * number_columns, flush=True)


def print_row(*cells: object) -> None:
    """Print one row of a table, at once: rows may take minutes."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def code(text: object) -> str:
    """Return text as code in a cell, with its bars escaped: they would end the cell."""
    return f"`{text}`".replace("|", r"\|")


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """Return the range of some values."""
    return f"{min(values):{form}} to {max(values):{form}}"


def median(values: Sequence[float], form: str = ".3g") -> str:
    """Return the median of some values, with their range."""
    return f"{statistics.median(values):{form}} ({spread(values, form)})"
