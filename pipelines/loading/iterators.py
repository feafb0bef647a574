"""Let the interpreter end while iterators of tf.data are alive, and their threads run Python functions."""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import tensorflow as tf

_LONGEST_WAIT_S = 10
_calls: set[object] = set()
_ending = threading.Event()


@functools.cache
def keep_iterators_at_exit() -> None:
    """Make iterators that are alive when the interpreter ends outlive it: call this before a dataset calls Python functions.

    An iterator's destructor waits for its threads. The interpreter, however, ends a thread that returns to Python from then on, in
    the middle of a step, so a destructor that the interpreter runs while it ends may wait forever. Nothing waits for iterators
    that are never destroyed: the process ends with their threads.
    """
    atexit.register(_at_exit)


@contextmanager
def python_call() -> Iterator[None]:
    """Let the interpreter wait, at its end, for what a thread of tf.data does in this context, and not begin it any more.

    A thread that returns from C++ code to Python after that would not only end, but often abort the process.
    """
    call = object()
    _calls.add(call)  # before it is checked whether the interpreter is ending, so that `_at_exit` misses none
    if _ending.is_set():
        _calls.remove(call)
        time.sleep(_LONGEST_WAIT_S)  # the process has ended then, unless a later function of `atexit` reads batches
        _ending.clear()
        _calls.add(call)
    try:
        yield
    finally:
        _calls.remove(call)


def _at_exit() -> None:
    kinds = tuple(tf.data.Iterator.__subclasses__())
    for iterator in gc.get_referrers(*kinds):  # takes 25 ms; tf.data has no list of its iterators
        if isinstance(iterator, kinds):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(iterator))
    _ending.set()
    latest = time.monotonic() + _LONGEST_WAIT_S
    with suppress(KeyboardInterrupt):
        while _calls and time.monotonic() < latest:
            time.sleep(0.001)
