"""The command line. Each command parses its arguments, calls public functions and prints what they return."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import typer

from joulecache.pipelines.cli.commands import app
from joulecache.pipelines.cli.terminal import fail, printed_notes
from joulecache.pipelines.core.files import LockHeldError

INTERRUPTED = 130
"""The exit code after Ctrl-C, as in shells."""
_DEBUG = "JOULECACHE_DEBUG"

# older typer raises click's errors, newer its own copies of them
_UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def main() -> None:
    """Run the command line.

    Every error is one line on stderr. The exit code is 1 if the job failed, and 2 for bad arguments.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow reads it when it is imported
    logging.getLogger().setLevel(logging.ERROR)
    try:
        with printed_notes():
            command = typer.main.get_command(app)
            code = command.main(sys.argv[1:] or ["--help"], prog_name="joulecache", standalone_mode=False)
        if code == INTERRUPTED:  # newer typer returns this code after Ctrl-C, older raises Abort
            raise KeyboardInterrupt
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get(_DEBUG):
            raise
        message, code = explained(error)
        fail(message, code)
    sys.exit(code or 0)


def explained(error: BaseException) -> tuple[str, int]:
    """Return the message and the exit code for an error."""
    if isinstance(error, _UsageError):
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "joulecache"
        return f"{error.format_message()} See `{path} --help`.", 2
    if isinstance(error, typer.Abort | KeyboardInterrupt):
        resume = "Run the same command again: a build or an audit resumes, anything else starts over."
        return f"stopped; no unfinished result is visible. {resume}", INTERRUPTED
    if isinstance(error, ValueError):
        return str(error), 2
    if isinstance(error, OSError | RuntimeError | LockHeldError):
        return str(error), 1
    return f"{type(error).__name__}: {error}. This is a bug: set {_DEBUG}=1 for a traceback, and report it.", 1
