"""Print results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from joulecache.pipelines.report.document import Document
from joulecache.pipelines.report.render.terminal import print_document

_NOTES = logging.getLogger("joulecache")


class _NotePrinter(logging.Handler):
    """Prints each distinct message once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        note = " ".join(record.getMessage().split())
        if note not in self._printed:
            self._printed.add(note)
            say(f"joulecache: note: {note}")


@contextmanager
def printed_notes() -> Iterator[None]:
    """Print warnings that joulecache logs inside the block as notes on stderr."""
    printer, before = _NotePrinter(), (_NOTES.level, _NOTES.propagate)
    _NOTES.addHandler(printer)
    _NOTES.setLevel(logging.WARNING)
    _NOTES.propagate = False
    try:
        yield
    finally:
        _NOTES.removeHandler(printer)
        _NOTES.setLevel(before[0])
        _NOTES.propagate = before[1]


def say(line: str) -> None:
    """Print one line on stderr, above a progress bar."""
    sys.stderr.write(f"{line}\n")  # the bar replaces `sys.stderr`; a `Console` would bypass that and tear the bar
    sys.stderr.flush()


def fail(message: str, code: int) -> int:
    """Print an error on stderr in one line; return the exit code."""
    say("joulecache: " + " ".join(message.split()))
    return code


def show(document: Document, *, stderr: bool = False) -> None:
    """Print a result."""
    print_document(document, Console(stderr=stderr))


def wrote(what: str, path: object, *, stderr: bool = False) -> None:
    """Name a file or folder that a command wrote; on stderr if stdout is for other things, such as JSON."""
    Console(stderr=stderr).print(f"{what}: {path}", soft_wrap=True, markup=False, highlight=False)


def print_json(body: object) -> None:
    """Print a result as JSON."""
    sys.stdout.write(json.dumps(body, indent=1, default=str) + "\n")
