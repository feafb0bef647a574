"""Render a document as HTML: a self-contained page without scripts, or the cell of a notebook."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from joulecache.pipelines.report.document import Block, Chart, Code, Document, parts, visible
from joulecache.pipelines.report.render.charts import draw


def to_html(document: Document) -> str:
    """Return a document as one HTML page, with its charts as inline SVG."""
    return _render("page.html.j2", document)


def to_notebook(document: Document) -> str:
    """Return a brief document as HTML for the cell of a notebook."""
    return _render("notebook.html.j2", document.brief())


def _render(template: str, document: Document) -> str:
    shown = visible(document)
    charts = [block for section in shown.sections for block in section.blocks if isinstance(block, Chart)]
    charts += [shown.picture] if shown.picture else []
    names = {id(chart): f"chart-{number}" for number, chart in enumerate(charts)}
    return (
        _environment()
        .get_template(template)
        .render(document=shown, svg=lambda chart: Markup(draw(names[id(chart)], chart)))
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["code"] = lambda part: isinstance(part, Code)
    environment.tests["kind"] = lambda block, name: type(block).__name__ == name
    environment.filters["grouped"] = _grouped
    environment.filters["parts"] = parts
    return environment


def _grouped(blocks: Sequence[Block]) -> list[list[Block]]:
    """Group blocks so that adjacent charts stand side by side."""
    return [list(group) for _, group in itertools.groupby(blocks, lambda block: isinstance(block, Chart))]
