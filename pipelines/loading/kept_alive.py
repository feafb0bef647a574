"""Objects that live as long as the tf.data pipelines that call their methods."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from joulecache.pipelines.loading.array_pool import tensor_address, tensor_block
from joulecache.pipelines.loading.iterators import keep_iterators_at_exit, python_call

Token: TypeAlias = tf.experimental.Optional


def keep_alive(kept: object) -> Token:
    """Return a token that keeps an object alive: while datasets and iterators hold the token, they hold the object.

    `kept` must not refer to the token or those datasets: Python cannot see a reference cycle through a tensor.
    """
    keep_iterators_at_exit()
    tensor = tf.experimental.dlpack.from_dlpack(np.asarray(_Keeper(kept)).__dlpack__())
    # When TensorFlow optimizes a pipeline, it may replace a tensor by a copy. It does not look inside an Optional.
    return tf.experimental.Optional.from_value(tensor)


def call_method(token: Token, method: Callable[..., Any], inputs: Sequence[tf.Tensor], types: Any) -> Any:
    """Call a method in a function of a dataset, like `tf.numpy_function`; that function captures the token of the object.

    TensorFlow refers to the functions of `tf.numpy_function` until the process ends: they would leak the files, buffers and
    threads of their objects.
    """
    weak = weakref.WeakMethod(method)

    def call(*arrays: Any) -> Any:
        found = weak()
        assert found is not None
        with python_call():
            return found(*arrays)

    token.has_value()
    return tf.numpy_function(call, inputs, types, stateful=False)


class _Keeper:
    """A scalar array in memory that keeps an object alive."""

    def __init__(self, kept: object) -> None:
        self._kept, self._block = kept, tensor_block(1)
        data = tensor_address(self._block), False
        self.__array_interface__ = {"version": 3, "data": data, "shape": (), "typestr": "|u1"}
