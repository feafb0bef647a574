"""What is logged: notes of joulecache are always printed; logs of libraries, their warnings and tracebacks with --verbose."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from joulecache.pipelines.cli.terminal import say
from joulecache.pipelines.core.progress import silenced_output

_ROOT = logging.getLogger()
_OURS = logging.getLogger("joulecache")
_BEAM = logging.getLogger("apache_beam")  # builds silence it, unless it has a level
_TENSORFLOW_LEVEL = "TF_CPP_MIN_LOG_LEVEL"  # TensorFlow reads it when it is imported
_FORMAT = "%(levelname)s %(name)s: %(message)s"


def is_verbose() -> bool:
    """Return whether `be_verbose` was called."""
    return _OURS.isEnabledFor(logging.INFO)


def be_verbose() -> None:
    """Print all that is logged from now on."""
    for logger in (_ROOT, _OURS, _BEAM):
        logger.setLevel(logging.INFO)
    os.environ[_TENSORFLOW_LEVEL] = "0"


@contextmanager
def loading(library: str) -> Iterator[None]:
    """Say on a terminal what is being imported, which takes seconds, and keep its output off the terminal."""
    os.environ.setdefault(_TENSORFLOW_LEVEL, "3")
    text = f"loading {library} ..."
    if is_verbose():
        say(text)
        yield
        return
    shown = sys.stderr.isatty()
    if shown:
        sys.stderr.write(text)
        sys.stderr.flush()
    try:
        with silenced_output(stdout=False):
            yield
    finally:
        if shown:
            sys.stderr.write("\r\x1b[2K")  # erase the line
            sys.stderr.flush()


@contextmanager
def loading_keras() -> Iterator[None]:
    """Do the same for Keras; raise ValueError if it is told to run on another backend, whose import may fail."""
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        raise ValueError(f"KERAS_BACKEND is {backend!r}, but joulecache needs Keras on TensorFlow: unset it")
    with loading("TensorFlow"):
        yield


@contextmanager
def printed_notes() -> Iterator[None]:
    """Print what is logged inside the block: warnings of joulecache and errors of libraries, each once and in one line.

    All else, and the tracebacks of errors that Python would print and ignore, is printed after `be_verbose` only.
    """
    with ExitStack() as stack:
        for logger in (_ROOT, _OURS, _BEAM):
            stack.callback(logger.setLevel, logger.level)
        _ROOT.setLevel(logging.ERROR)
        _OURS.setLevel(logging.WARNING)
        printer = _Printer()
        _ROOT.addHandler(printer)
        stack.callback(_ROOT.removeHandler, printer)
        logging.captureWarnings(True)
        stack.callback(logging.captureWarnings, False)
        stack.callback(setattr, logging, "raiseExceptions", logging.raiseExceptions)
        logging.raiseExceptions = False  # or a bad call in a library would print a traceback
        stack.callback(setattr, threading, "excepthook", threading.excepthook)
        threading.excepthook = _thread_failed
        stack.callback(setattr, sys, "unraisablehook", sys.unraisablehook)
        sys.unraisablehook = _ignored
        yield


class _Printer(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(_FORMAT))
        self._noted: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        ours = record.name.partition(".")[0] == _OURS.name
        if is_verbose() and (not ours or record.exc_info):
            say(self.format(record))
        elif record.levelno >= (logging.WARNING if ours else logging.ERROR):
            note = " ".join(record.getMessage().split())
            if note not in self._noted:
                self._noted.add(note)
                say(f"joulecache: note: {note}" if ours else f"joulecache: note: {record.name}: {note}")


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_type is not SystemExit:
        _OURS.warning("a thread failed: %s: %s", failed.exc_type.__name__, failed.exc_value, exc_info=failed.exc_value)


def _ignored(ignored: sys.UnraisableHookArgs) -> None:
    """Log an exception that nothing can catch, as in a destructor. Ctrl-C there still counts."""
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    _OURS.info("%s: %r", ignored.err_msg or "exception ignored in", ignored.object, exc_info=ignored.exc_value)
