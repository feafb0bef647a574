"""What the command line says about an exception: one line, and an exit code."""

from __future__ import annotations

import re
from typing import Any

import typer

from joulecache.pipelines.cli.logs import is_verbose
from joulecache.pipelines.cli.terminal import STDOUT
from joulecache.pipelines.core.files import LockHeldError
from joulecache.pipelines.core.user_code import describe_failure

FAILED, INVALID, INTERRUPTED, NOBODY_READS = 1, 2, 130, 141
"""Exit codes: the job failed; bad arguments; Ctrl-C and a broken pipe, as in shells."""

_MORE = "add --verbose for more"
_BUG = "this is a bug: please report it with the output of --verbose"
_LONGEST = 300  # characters of a library's message

# older typer raises click's errors, newer its own copies of them
_UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;]*m")
# before the message in the lines of TensorFlow and of its compiler
_PLACES = re.compile(r"\{\{function_node [^}]*\}\} |<unknown>:\d+: error: |loc\(.*\): ")
# lines of Keras, TensorFlow and Python that precede the message
_PREAMBLE = re.compile(
    r'Graph execution error:|Detected at node |File "|<stack traces unavailable>|Exception encountered when calling |'
    r"Traceback \(most recent|in user code:"
)


def explained(error: BaseException, command: str = "joulecache") -> tuple[str, int]:
    """Return the message and the exit code for an exception; the message is empty if there is nothing to say.

    Messages of joulecache's own errors are shown whole. Those of libraries are shortened to the line that matters.
    """
    if isinstance(error, _UsageError):
        context, text = getattr(error, "ctx", None), error.format_message()
        text = text.replace(": Value error, ", ": ").replace(
            ": Input should be ", ": must be "
        )  # pydantic's words, in newer typer
        stop = "" if text.endswith((".", "?")) else "."
        return f"{text}{stop} See `{context.command_path if context else command} --help`.", INVALID
    if isinstance(error, typer.Abort | KeyboardInterrupt):
        resume = "Run the same command again: a build or an audit resumes, anything else starts over."
        return f"stopped; no unfinished result is visible. {resume}", INTERRUPTED
    if isinstance(error, BrokenPipeError) and error.filename == STDOUT:
        return "", NOBODY_READS
    if isinstance(error, SystemExit):
        if isinstance(error.__context__, BrokenPipeError):  # raised by rich, which prints --help
            return "", NOBODY_READS
        return f"the command ended early: {describe_failure(error)}", FAILED
    if isinstance(error, MemoryError):
        return ": ".join(filter(None, ("out of memory", summary(error)))), FAILED
    ours = _is_ours(error)
    if isinstance(error, OSError):
        missing = ours and isinstance(error, FileNotFoundError) and error.errno is None  # an argument names it
        where = "" if error.filename is None else f"{error.filename}: "
        return where + (error.strerror or str(error) or type(error).__name__), INVALID if missing else FAILED
    if ours and isinstance(error, ValueError):
        return str(error), INVALID
    if ours and isinstance(error, RuntimeError | LockHeldError) and not isinstance(error, RecursionError):
        return str(error), FAILED
    text = ": ".join(filter(None, (type(error).__name__, summary(error))))
    hint = _BUG if ours else "" if is_verbose() else _MORE
    return "; ".join(filter(None, (text, hint))), FAILED


def summary(error: BaseException) -> str:
    """Return the first line of a library's message that says what is wrong, shortened."""
    lines = [" ".join(line.split()) for line in _TERMINAL_CODES.sub("", str(error)).splitlines()]
    telling = [line for line in lines if line and not _PREAMBLE.match(line)] or [""]
    text = _PLACES.sub(" ", telling[0])
    return " ".join(text.split()) if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _is_ours(error: BaseException) -> bool:
    """Return whether joulecache raised an exception, rather than a library that it uses."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is None or str(trace.tb_frame.f_globals.get("__name__")).startswith("joulecache.")
