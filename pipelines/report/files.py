"""Write and read reports: report.json, and the same numbers as HTML and Markdown."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from joulecache.pipelines.auditing.folder import AuditFolder
from joulecache.pipelines.auditing.results import REPORT_VERSION, Audit
from joulecache.pipelines.core import codec
from joulecache.pipelines.core.codec import JSON
from joulecache.pipelines.core.files import write_text
from joulecache.pipelines.report.describe.audit import describe_audit
from joulecache.pipelines.report.render.html import to_html
from joulecache.pipelines.report.render.markdown import to_markdown

REPORT = "report.json"


@dataclass(frozen=True)
class ReportFiles:
    """The files of a report: JSON for `read_report`, Markdown for pull requests, a self-contained HTML page with charts."""

    json: Path
    markdown: Path
    html: Path


def write_report(audit: Audit, folder: str | os.PathLike[str]) -> ReportFiles:
    """Write an audit into a folder as ``report.html``, ``report.md`` and, last, ``report.json``, each atomically.

    The folder is created if it does not exist. If it is that of the audit, the audit is done: until then, it continues when it is
    called again.

    Raises:
        ValueError: A number is not finite; the message says where.
        OSError: A file cannot be written.
    """
    text = json.dumps(audit.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    document = describe_audit(audit)
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    files = ReportFiles(root / REPORT, root / "report.md", root / "report.html")
    for path, content in (
        (files.html, to_html(document)),
        (files.markdown, to_markdown(document)),
        (files.json, f"{text}\n"),
    ):
        # file names may hold undecodable characters
        write_text(path, content, errors="backslashreplace")
    AuditFolder(root).finish()
    return files


def read_report(path: str | os.PathLike[str]) -> Audit:
    """Read and validate a report, which may come from an untrusted source.

    Args:
        path: A report.json, or the folder of an audit.

    Raises:
        ValueError: There is no such file or it is not a report; the message says where, in one line.
        OSError: The file cannot be read.
    """
    file = Path(path)
    if file.is_dir():
        file /= REPORT
        if not file.is_file():
            raise ValueError(f"{os.fspath(path)!r} is not the folder of an audit: it has no {REPORT}")
    try:
        return Audit.from_json(codec.parse_json(file.read_bytes()))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r} is not the report of an audit ({error}): expected a {REPORT}") from error


def report_schema() -> dict[str, JSON]:
    """Return the JSON schema (draft 2020-12) of report.json."""
    version: dict[str, JSON] = {
        "type": "object",
        "properties": {"report_version": {"const": REPORT_VERSION}},
        "required": ["report_version"],
    }
    return {**codec.json_schema(Audit), "allOf": [version]}
