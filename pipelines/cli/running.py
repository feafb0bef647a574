"""Measure any command with its process tree."""

from __future__ import annotations

import ctypes
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from joulecache.pipelines.energy import Energy, Meter

_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37  # linux/prctl.h
_FORWARDED = (signal.SIGTERM, signal.SIGHUP)


def run_metered(command: Sequence[str], meter: Meter, stdout: IO[str] | None = None) -> tuple[int, Energy]:
    """Run a command until it ends; return its exit code, 128 + N if signal N ended it, and its energy.

    Ctrl-C reaches the command as usual; SIGTERM and SIGHUP are forwarded. Orphaned processes are adopted, so that they count while the
    command runs.

    Raises:
        OSError: The command cannot be started.
    """
    name = Path(command[0]).name or "command"
    with _adopted_orphans(), meter.window(name) as window, _signals() as started:
        code = started(subprocess.Popen(command, stdout=stdout)).wait()
    return code if code >= 0 else 128 - code, window.energy


@contextmanager
def _adopted_orphans() -> Iterator[None]:
    """Make this process the parent of descendants whose parent ends."""
    prctl, before = ctypes.CDLL(None).prctl, ctypes.c_int()
    prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


@contextmanager
def _signals() -> Iterator[Callable[[subprocess.Popen[bytes]], subprocess.Popen[bytes]]]:
    """Leave Ctrl-C to the child and forward other signals; yield a function to call with the started child.

    That call also forwards signals received earlier.
    """
    children: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def forward(number: int, frame: object) -> None:
        if not children:
            early.append(number)
        for process in children:
            with suppress(ProcessLookupError):
                process.send_signal(number)

    def started(child: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        children.append(child)
        for number in early:
            forward(number, None)
        return child

    def interrupt(number: int, frame: object) -> None:
        if not children:
            raise KeyboardInterrupt

    # not SIG_IGN: a child inherits ignored signals, but not handlers
    handlers = {signal.SIGINT: interrupt, **dict.fromkeys(_FORWARDED, forward)}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield started
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
