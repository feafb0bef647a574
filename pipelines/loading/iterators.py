"""Let the interpreter end while iterators of tf.data are alive."""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc

import tensorflow as tf


@functools.cache
def keep_iterators_at_exit() -> None:
    """Make iterators that are alive when the interpreter ends outlive it: call this before a dataset calls Python functions.

    An iterator's destructor waits for its threads. The interpreter, however, ends a thread that returns to Python from then on, in
    the middle of a step, so a destructor that the interpreter runs while it ends may wait forever. Nothing waits for iterators
    that are never destroyed: the process ends with their threads.
    """
    atexit.register(_keep_iterators)


def _keep_iterators() -> None:
    kinds = tuple(tf.data.Iterator.__subclasses__())
    for iterator in gc.get_referrers(*kinds):  # takes 25 ms; tf.data has no list of its iterators
        if isinstance(iterator, kinds):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(iterator))
