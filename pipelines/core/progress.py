"""Progress on stderr, and keeping the output of native code off the terminal."""

from __future__ import annotations

import ctypes
import io
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[str, int, int], None]
"""Receives what is being done, how many steps of it are done, and how many there are."""

LINE_DELAY_S = 2.0
"""How long a job runs before its first line of progress, where stderr is not a terminal."""
LINE_EVERY_S = 60.0
"""The time between two lines about the same step."""
_NOTED_BYTES = 4000  # of the output before an exception


class ProgressBar(Protocol):
    """Shows progress. It can be passed as `Progress`."""

    def __call__(self, what: str, done: int, total: int | None, detail: str = "") -> None:
        """Show that `done` of `total` steps are done; None: the total is unknown. `detail` is shown after them."""


def silent(what: str, done: int, total: int) -> None:
    """Ignore progress."""


@contextmanager
def progress_bar(
    *,
    delay_s: float = 0.0,
    lines: bool = True,
    line_delay_s: float = LINE_DELAY_S,
    line_every_s: float = LINE_EVERY_S,
    console: Console | None = None,
) -> Iterator[ProgressBar]:
    """Show progress on stderr: a bar on a terminal, lines elsewhere. The bar disappears at the end.

    Args:
        delay_s: Seconds before the bar appears; short jobs then show none.
        lines: Print lines where stderr is not a terminal: one for every new step, and one a minute.
        line_delay_s: Seconds before the first line.
        line_every_s: Seconds between two lines about the same step.
        console: Where to show it; stderr by default.
    """
    from rich.console import Console

    console = console or Console(stderr=True)
    if console.is_terminal:
        with _terminal_bar(console, delay_s) as bar:
            yield bar
    elif lines:
        yield _line_printer(console, line_delay_s, line_every_s)
    else:
        yield lambda what, done, total, detail="": None


@contextmanager
def _terminal_bar(console: Console, delay_s: float) -> Iterator[ProgressBar]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    def text(template: str) -> TextColumn:
        return TextColumn(template, markup=False)

    columns = (
        text("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        text("{task.fields[detail]}"),
    )
    bars = Bars(*columns, console=console, transient=True)
    task = bars.add_task("", total=None, detail="")
    begun = time.monotonic()

    def bar(what: str, done: int, total: int | None, detail: str = "") -> None:
        if not bars.live.is_started:
            if time.monotonic() - begun < delay_s:
                return
            bars.start()
        bars.update(task, description=what, completed=done, total=total, detail=detail)

    try:
        yield bar
    finally:
        if bars.live.is_started:
            bars.stop()


def _line_printer(console: Console, delay_s: float, every_s: float) -> ProgressBar:
    printed: dict[str, float] = {}  # when a step was last printed
    begun = time.monotonic()

    def bar(what: str, done: int, total: int | None, detail: str = "") -> None:
        step, now = what.partition(":")[0], time.monotonic()
        if now - begun < delay_s or now - printed.get(step, -math.inf) < every_s:
            return
        printed[step] = now
        of = "" if total is None else f" of {total:,}"
        console.print(
            f"{what}: {done:,}{of}" + f" ({detail})" * bool(detail), soft_wrap=True, markup=False, highlight=False
        )

    return bar


# Output of native code ------------------------------------------------------------------------------------------------


@contextmanager
def silenced_output(*, stdout: bool = True, stderr: bool = True) -> Iterator[None]:
    """Keep off the terminal what is printed by native code, and by Python on stdout.

    If the block fails, the end of the output becomes a note of the exception. File descriptors belong to the process: output of other
    threads is lost too.

    Args:
        stdout: Silence stdout, Python's `sys.stdout` included.
        stderr: Silence native stderr; Python's `sys.stderr` only where it writes to the same descriptor.
    """
    descriptors = [descriptor for descriptor, wanted in ((1, stdout), (2, stderr)) if wanted]
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        if stdout:
            stack.enter_context(redirect_stdout(io.StringIO()))
        try:
            with _redirected(descriptors, log.fileno()):
                yield
        except BaseException as error:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - _NOTED_BYTES))
            if said := log.read().decode(errors="replace"):
                error.add_note(said)
            raise


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send to stderr what is printed on stdout, by Python or by native code, so that stdout holds results alone."""
    with _redirected([1], 2), redirect_stdout(sys.stderr):
        yield


@contextmanager
def _redirected(descriptors: Sequence[int], target: int) -> Iterator[None]:
    _flush()
    saved = [(descriptor, os.dup(descriptor)) for descriptor in descriptors]
    try:
        for descriptor, _ in saved:
            os.dup2(target, descriptor)
        yield
    finally:
        _flush()
        for descriptor, copy in saved:
            os.dup2(copy, descriptor)
            os.close(copy)


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    ctypes.CDLL(None).fflush(None)  # what C holds back for a pipe
