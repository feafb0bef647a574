"""What libtiff and Pillow report about damaged TIFF files: the reason of a rejected image, instead of lines on stderr."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import _imaging

_LONGEST = 200  # bytes of a message

_print = ctypes.CDLL(None).vsnprintf
_print.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p]


class _Thread(threading.local):
    errors: list[str] | None = None


_thread = _Thread()


@contextmanager
def collected_errors() -> Iterator[list[str]]:
    """Yield a list for the first error that libtiff reports in this thread. Nothing is printed or logged."""
    _handle_errors()
    before, _thread.errors = _thread.errors, []
    try:
        yield _thread.errors
    finally:
        _thread.errors = before


@functools.cache
def _handle_errors() -> None:
    """Replace the error handler of Pillow's libtiff, and filter Pillow's log."""
    logging.getLogger("PIL.TiffImagePlugin").addFilter(lambda record: _thread.errors is None)
    try:
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(_HANDLER)  # also searches what Pillow is linked with
    except (OSError, AttributeError):  # another build of Pillow: libtiff's messages go to stderr
        return


def _handle(module: bytes | None, template: bytes, arguments: int) -> None:
    buffer = ctypes.create_string_buffer(_LONGEST)
    _print(buffer, _LONGEST, template, arguments)
    text = buffer.value.decode(errors="replace")
    if _thread.errors is None:  # not an image of joulecache: do as libtiff does
        where = f"{module.decode(errors='replace')}: " if module else ""
        os.write(2, f"{where}{text}.\n".encode())
    elif not _thread.errors:
        _thread.errors.append(text)


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)(_handle)
