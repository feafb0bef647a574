"""Reports: one result as JSON, Markdown, a self-contained HTML page, and on the terminal, all with the same figures.

A report is made from the JSON body of an audit, so that one can be made again from an old report.json. TensorFlow is not needed.
"""

from __future__ import annotations

import functools
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joulecache.pipelines.core.files import sync_folder
from joulecache.pipelines.report.charts import compression_charts, reuse_charts, stage_charts, workload_charts
from joulecache.pipelines.report.markdown import compression_markdown, to_markdown
from joulecache.pipelines.report.page import Page, make_page
from joulecache.pipelines.report.terminal import print_changes, print_compression, print_verdict

__all__ = [
    "ReportFiles",
    "check_body",
    "compression_markdown",
    "print_changes",
    "print_compression",
    "print_verdict",
    "to_html",
    "write_report",
]

_JSON, _MARKDOWN, _HTML = "report.json", "report.md", "report.html"
_SCHEMA = "report-1.schema.json"
_TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class ReportFiles:
    """The files of a report."""

    json: Path
    markdown: Path
    html: Path


def write_report(body: Mapping[str, Any], folder: str | os.PathLike[str]) -> ReportFiles:
    """Write ``report.html``, ``report.md`` and, last, ``report.json`` into a folder; each appears whole or not at all.

    `body` is what `Audit.to_json` returns, or was read from a report.json. Raises ValueError, saying where, for a body that is
    none, and for numbers that are not finite.
    """
    text = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False)
    checked = json.loads(text)  # tuples become lists: what is checked and shown is what a reader of the file gets
    check_body(checked)
    page = make_page(checked)
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    files = ReportFiles(root / _JSON, root / _MARKDOWN, root / _HTML)
    _replace(files.html, to_html(page))
    _replace(files.markdown, to_markdown(page))
    _replace(files.json, text + "\n")
    return files


def check_body(body: object) -> None:
    """Raise ValueError, naming the place, unless a body follows the schema of its version."""
    import jsonschema

    error = jsonschema.exceptions.best_match(_validator().iter_errors(body))
    if error is not None:
        place = "/".join(map(str, error.absolute_path)) or "the top"
        raise ValueError(f"no report of version 1: at {place}: {error.message[:200]}")


@functools.cache
def _validator() -> Any:
    import jsonschema

    return jsonschema.Draft202012Validator(json.loads(Path(__file__).with_name(_SCHEMA).read_text("utf-8")))


def to_html(page: Page) -> str:
    """Return the report as one HTML page that loads nothing and runs nothing."""
    import jinja2
    from markupsafe import Markup

    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)

    def drawn(charts: Any) -> list[dict[str, Any]]:
        # the only text that is not escaped here: ElementTree, which wrote it, did
        return [{**vars(chart), "svg": Markup(chart.svg)} for chart in charts]

    return template.from_string(Path(__file__).with_name(_TEMPLATE).read_text("utf-8")).render(
        page=page,
        charts=[drawn(workload_charts(part.result, page.body)) for part in page.workloads],
        reuse_charts=[] if page.reuse is None else drawn(reuse_charts(page.reuse.result)),
        stage_charts=[] if page.stages is None else drawn(stage_charts(page.body)),
        compression_charts=[] if page.compression is None else drawn(compression_charts(page.compression.result)),
    )


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            # half a character, which a file's name may hold, is escaped: as JSON and Python write it
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
