"""Run any command with its whole process tree in a window."""

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
    """Run a command to its end.

    Ctrl-C reaches the command as usual, SIGTERM and SIGHUP are passed on, and the energy used until then is measured. Processes that
    outlive their parents are adopted, so that they count for as long as the command itself runs.

    Args:
        command: The command, word by word.
        meter: The meter of the window.
        stdout: Where the command's output goes; None for this process' own stdout.

    Returns:
        The exit code, as in shells 128 + N if signal N ended the command, and the energy.

    Raises:
        OSError: The command cannot be started.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with meter.window(Path(command[0]).name) as window, _signals() as started:
        code = started(subprocess.Popen(command, stdout=stdout)).wait()
    return code if code >= 0 else 128 - code, window.energy


@contextmanager
def _signals() -> Iterator[Callable[[subprocess.Popen[bytes]], subprocess.Popen[bytes]]]:
    """Leave Ctrl-C to the child, and pass on signals that ask to end; yield a function to call with the started child.

    Signals that arrive before the child has started are passed on once it has.
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

    # Functions, not SIG_IGN: a child inherits ignored signals, while handlers are reset.
    handlers = {signal.SIGINT: lambda number, frame: None, **dict.fromkeys(_PASSED_ON, pass_on)}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield started
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
