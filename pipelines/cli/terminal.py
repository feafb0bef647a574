"""Print results on stdout, everything else on stderr."""

from __future__ import annotations

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
    try:
        sys.stderr.write(f"{line}\n")  # the bar replaces `sys.stderr`; a `Console` would bypass that and tear the bar
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)


def fail(message: str, code: int) -> int:
    """Print an error on stderr in one line; return the exit code."""
    say("joulecache: " + " ".join(message.split()))
    return code


def show(document: Document, *, stderr: bool = False) -> None:
    """Print a result."""
    console = Console(stderr=stderr)
    with console.capture() as captured:  # rich would end the process if nobody reads
        print_document(document, console)
    _print(captured.get(), stderr)


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
    if stderr:
        say(text.removesuffix("\n"))
        return
    with writing_stdout():
        sys.stdout.write(text)


# Streams --------------------------------------------------------------------------------------------------------------


def prepare_streams() -> None:
    """Make stdout and stderr accept any text. What is written to a closed stdout fails, and to a closed stderr is lost."""
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:  # or the next file that is opened becomes stdout
            os.open(os.devnull, mode)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


@contextmanager
def writing_stdout() -> Iterator[None]:
    """Flush stdout at the end of the block. An OSError in the block names stdout as its file."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        _discard(sys.stdout)
        raise OSError(error.errno, error.strerror, STDOUT) from error


def _discard(stream: TextIO) -> None:
    """Lose what is written to a broken stream, which would fail again when Python ends."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
