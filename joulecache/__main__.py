"""The `joulecache` command, which Ctrl-C stops in one line at any moment, even while it is starting."""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType

_INTERRUPTED = 130  # as in shells
_GC_THRESHOLD = (
    10_000  # imports make 170,000 objects that stay: at the default of 700, visiting them again and again costs 0.1 s
)


class _Interrupt:
    """Handles Ctrl-C: the first raises KeyboardInterrupt, so that the command can clean up; the next ends it at once.

    While a module is being imported, the first ends it at once too, since libraries swallow exceptions there.

    Attributes:
        armed: Whether the next raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self._stderr = os.dup(2)  # it may be redirected later
        self.armed = True

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.armed or _is_importing(frame):
            self.leave()
        self.armed = False
        raise KeyboardInterrupt

    def leave(self) -> None:
        """End the process at once, in one line."""
        # on a terminal: erase the line of progress, and show the cursor, which the bar hides
        start = b"\r\x1b[2K\x1b[?25h" if os.isatty(self._stderr) else b""
        try:  # noqa: SIM105 - contextlib takes time to import
            os.write(self._stderr, start + b"joulecache: stopped\n")
        except OSError:
            pass
        os._exit(_INTERRUPTED)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def main() -> None:
    """Run the command line."""
    gc.set_threshold(_GC_THRESHOLD)
    _open_standard_streams()
    interrupt = _Interrupt()
    try:
        # not if it is ignored, as in the background of a script
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, interrupt)
        try:
            _run()
        finally:
            interrupt.armed = False
    except KeyboardInterrupt:
        interrupt.leave()


def _open_standard_streams() -> None:
    """Open those that are closed, or the next file that is opened would become one. Writing to stdout then fails."""
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)


def _run() -> None:
    try:
        from joulecache.pipelines.cli import main as run
    except Exception as error:
        if "--verbose" in sys.argv:
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())
        sys.exit(f"joulecache: cannot start ({text}): reinstall joulecache in a new environment")
    run()


if __name__ == "__main__":
    main()
