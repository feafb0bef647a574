"""Failures of an arm, in one line that says why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from joulecache.pipelines.core.user_code import describe_failure


class ArmError(ValueError):
    """An arm that cannot run on this chain, source or machine; the message says why."""


@contextmanager
def naming_failures(name: str) -> Iterator[None]:
    """Turn TensorFlow's errors inside the block into an ArmError of one line that names the arm."""
    try:
        yield
    except tf.errors.OpError as error:
        raise ArmError(f"{name} failed: {describe_failure(error)}") from error
