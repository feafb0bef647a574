"""Print results on stdout, everything else on stderr."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console

from joulecache.pipelines.report.document import Document
from joulecache.pipelines.report.render.terminal import print_document

STDOUT = "stdout"
"""The file name in errors about stdout."""


def say(line: str) -> None:
    """Print one line on stderr, above a progress bar."""
    with writing(sys.stderr):
        sys.stderr.write(f"{line}\n")  # the bar replaces `sys.stderr`; a `Console` would bypass that and tear the bar


def fail(message: str, code: int) -> int:
    """Print an error on stderr in one line; return the exit code."""
    say("joulecache: " + " ".join(message.split()))
    return code


def show(document: Document, *, stderr: bool = False) -> None:
    """Print a result."""
    with writing(sys.stderr if stderr else sys.stdout):
        print_document(document, _Console(stderr=stderr))


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise the error; rich would end the process."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def print_line(text: str) -> None:
    """Print one line on stdout."""
    _print(f"{text}\n")


def wrote(what: str, path: object, *, stderr: bool = False) -> None:
    """Name a file or folder that a command wrote; on stderr if stdout is for other things, such as JSON."""
    _print(f"{what}: {path}\n", stderr)


def print_json(body: object) -> None:
    """Print a result as JSON."""
    _print(json.dumps(body, indent=1, default=str) + "\n")


def _print(text: str, stderr: bool = False) -> None:
    stream = sys.stderr if stderr else sys.stdout
    with writing(stream):
        stream.write(text)


# Streams --------------------------------------------------------------------------------------------------------------


def prepare_streams() -> None:
    """Make stdout and stderr accept any text, even if they were closed when Python started."""
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


@contextmanager
def writing(stream: TextIO) -> Iterator[None]:
    """Flush a stream at the end of the block.

    If stdout cannot be written, the OSError names it as its file. What cannot be written to stderr is lost.
    """
    try:
        yield
        stream.flush()
    except OSError as error:
        if error.filename is not None:  # of another file
            raise
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())  # or Python would fail again when it ends
        if stream is sys.stdout:
            raise OSError(error.errno, error.strerror, STDOUT) from error
