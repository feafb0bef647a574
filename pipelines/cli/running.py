"""Run any command, with its whole process tree in a window."""

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

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP)


def run_metered(command: Sequence[str], meter: Meter, stdout: IO[str] | None = None) -> tuple[int, Energy]:
    """Run a command to its end and return its exit code and energy; 128 + N where signal N ended it, as shells say.

    Ctrl-C reaches the command as it would without us, and SIGTERM and SIGHUP are passed on: what was used until then is measured.
    Processes that outlive their parents are adopted, so that theirs counts as long as the command itself runs. `stdout` is
    where its output goes instead of our own. Raises OSError for a command that cannot be started.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with meter.window(Path(command[0]).name) as window, _signals() as started:
        code = started(subprocess.Popen(command, stdout=stdout)).wait()
    return code if code >= 0 else 128 - code, window.energy


@contextmanager
def _signals() -> Iterator[Callable[[subprocess.Popen[bytes]], subprocess.Popen[bytes]]]:
    """Leave Ctrl-C to the child, and pass on what asks to end; yield what to call with the child.

    What came before that, while it was being started, is passed on then.
    """
    children: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        if not children:
            early.append(number)
        for process in children:
            with suppress(ProcessLookupError):
                process.send_signal(number)

    def started(child: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        children.append(child)
        for number in early:
            pass_on(number, None)
        return child

    # functions, not SIG_IGN: a command inherits what is ignored, and handlers are reset for it
    handlers = {signal.SIGINT: lambda number, frame: None, **dict.fromkeys(_PASSED_ON, pass_on)}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield started
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
