"""Progress on stderr, and keeping the output of native code off the terminal."""

from __future__ import annotations

import ctypes
import io
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

_T = TypeVar("_T")

Progress = Callable[[str, int, int], None]
"""Receives a description, the number of steps done, and the number of steps."""

LINE_DELAY_S = 2.0
"""Seconds before the first line of progress, where stderr is not a terminal."""
LINE_EVERY_S = 60.0
"""Seconds between two lines about the same step."""
_NOTED_BYTES = 4000  # of output added to an exception
_TALLY_EVERY_S = 0.1


class ProgressBar(Protocol):
    """Shows progress; usable as `Progress`."""

    def __call__(self, what: str, done: int, total: int | None, detail: str = "") -> None:
        """Show that `done` of `total` steps are done, None if the total is unknown, followed by `detail`."""


_SHOWN: ContextVar[ProgressBar | None] = ContextVar("shown", default=None)


class Tally:
    """Counts the steps of work that takes no `Progress`, and shows them on the progress bar that is open, if any.

    Work of less than `LINE_DELAY_S` is not shown.

    Args:
        what: A description of the steps.
        total: The number of steps; None if it is unknown.
    """

    def __init__(self, what: str, total: int | None = None) -> None:
        self._what, self._total, self._bar = what, total, _SHOWN.get()
        self._lock = threading.Lock()
        self._done, self._next_s = 0, time.monotonic() + LINE_DELAY_S

    def add(self, steps: int = 1) -> None:
        """Count steps that are done. Any thread may call it."""
        with self._lock:
            self._done += steps
            now = time.monotonic()
            if self._bar is not None and now >= self._next_s:
                self._next_s = now + _TALLY_EVERY_S
                self._bar(self._what, self._done, self._total)

    def counted(self, items: Iterable[_T], at_once: int = 1) -> Iterator[_T]:
        """Yield items, and count each when it is done, or `at_once` of them together: cheaper where an item takes microseconds."""
        waiting = 0
        for item in items:
            yield item
            waiting += 1
            if waiting == at_once:
                self.add(waiting)
                waiting = 0
        if waiting:
            self.add(waiting)


def silent(what: str, done: int, total: int) -> None:
    """Ignore progress."""


@contextmanager
def progress_bar(
    *,
    delay_s: float = 0.0,
    line_delay_s: float = LINE_DELAY_S,
    line_every_s: float = LINE_EVERY_S,
    console: Console | None = None,
) -> Iterator[ProgressBar]:
    """Show progress on stderr: a bar on a terminal, lines elsewhere. The bar disappears at the end.

    A `Tally` that is made in this block is shown too.

    Args:
        delay_s: Seconds before the bar appears, so that short jobs show none. Without a delay it appears before the first call.
        line_delay_s: Seconds before the first line, where stderr is not a terminal.
        line_every_s: Seconds between two lines about the same step.
        console: Output; stderr by default.
    """
    from rich.console import Console

    console = console or Console(stderr=True)
    with ExitStack() as stack:
        if console.is_terminal:
            bar = stack.enter_context(_terminal_bar(console, delay_s))
        else:
            bar = _line_printer(console, line_delay_s, line_every_s)
        shown = _SHOWN.set(bar)
        stack.callback(_SHOWN.reset, shown)
        yield bar


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
    task = bars.add_task("preparing", total=None, detail="")
    started = time.monotonic()
    if not delay_s:
        bars.start()

    def bar(what: str, done: int, total: int | None, detail: str = "") -> None:
        if not bars.live.is_started:
            if time.monotonic() - started < delay_s:
                return
            bars.start()
        bars.update(task, description=what, completed=done, total=total, detail=detail)

    try:
        yield bar
    finally:
        if bars.live.is_started:
            bars.stop()


def _line_printer(console: Console, delay_s: float, every_s: float) -> ProgressBar:
    printed: dict[str, float] = {}  # time of the last line about each step
    started = time.monotonic()

    def bar(what: str, done: int, total: int | None, detail: str = "") -> None:
        step, now = what.partition(":")[0], time.monotonic()
        if now - started < delay_s or now - printed.get(step, -math.inf) < every_s:
            return
        printed[step] = now
        of = "" if total is None else f" of {total:,}"
        with suppress(OSError):  # nobody reads stderr: no reason to stop the job; rich would end the process
            console.file.write(f"{what}: {done:,}{of}" + f" ({detail})" * bool(detail) + "\n")
            console.file.flush()

    return bar


# Output of native code ------------------------------------------------------------------------------------------------


@contextmanager
def silenced_output(*, stdout: bool = True) -> Iterator[None]:
    """Keep the output of native code, and Python's stdout, off the terminal.

    Python's `sys.stderr` is silenced too if it writes to the same descriptor as native code. If the block fails, the end of the output
    becomes a note of the exception. This affects the whole process: output of other threads is lost too.

    Args:
        stdout: Silence stdout as well as stderr.
    """
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        if stdout:
            stack.enter_context(redirect_stdout(io.StringIO()))
        try:
            with _redirected([1, 2] if stdout else [2], log.fileno()):
                yield
        except BaseException as error:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - _NOTED_BYTES))
            if output := log.read().decode(errors="replace"):
                error.add_note(output)
            raise


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirect stdout of Python and native code to stderr, so that only results are printed on stdout."""
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
    ctypes.CDLL(None).fflush(None)  # C buffers what it writes to a pipe
