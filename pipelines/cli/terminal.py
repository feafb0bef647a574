"""Print results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys

from rich.console import Console

from joulecache.pipelines.report.document import Document
from joulecache.pipelines.report.render.terminal import print_document


def say(line: str) -> None:
    """Print one line on stderr."""
    Console(stderr=True).print(line, soft_wrap=True, markup=False, highlight=False)


def fail(message: str, code: int) -> int:
    """Print an error on stderr in one line; return the exit code."""
    say("joulecache: " + " ".join(message.split()))
    return code


def show(document: Document, *, stderr: bool = False) -> None:
    """Print a result."""
    print_document(document, Console(stderr=stderr))


def print_json(body: object) -> None:
    """Print a result as JSON."""
    sys.stdout.write(json.dumps(body, indent=1, default=str) + "\n")
