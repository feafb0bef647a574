"""The base classes of features; `features` has the features."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from joulecache.pipelines.core.checks import shown

Target: TypeAlias = int | float | str | bytes
"""What a record has for one feature."""

MOST_ELEMENTS = 1 << 16
"""A target has at most this many numbers."""


def as_numbers(column: pa.Array) -> NDArray[Any]:
    """Return a column of numbers as an array, without a copy and, unlike ``to_numpy``, without importing pandas."""
    found: NDArray[Any] = np.from_dlpack(column)
    return found


class Feature(ABC):
    """The type of a target.

    Attributes:
        kind: Its name in ``--target NAME:KIND``.
    """

    kind: str

    @property
    @abstractmethod
    def dtype(self) -> str:
        """NumPy's name of the stored type, or ``str``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one stored target; () for a scalar."""
        return ()

    @property
    def loaded_dtype(self) -> str:
        """NumPy's name of the type that `load` yields, or ``str``."""
        return self.dtype

    @abstractmethod
    def check(self, target: Target) -> None:
        """Raise ValueError unless a record may have this target."""

    @property
    def arrow_type(self) -> pa.DataType:
        """Type of its column."""
        value = pa.string() if self.dtype == "str" else pa.from_numpy_dtype(np.dtype(self.dtype))
        return pa.fixed_shape_tensor(value, self.shape) if self.shape else value

    def columns(self, name: str) -> tuple[str, ...]:
        """Return the names of the columns of a target of this name in the shards."""
        return (name,)

    def column(self, targets: Sequence[Target]) -> pa.Array:
        """Return targets as an Arrow column."""
        if not self.shape:
            return pa.array(targets, self.arrow_type)
        joined = b"".join(target for target in targets if isinstance(target, bytes))
        values = pa.array(np.frombuffer(joined, np.dtype(self.dtype)))
        storage = pa.FixedSizeListArray.from_arrays(values, math.prod(self.shape))
        return pa.ExtensionArray.from_storage(self.arrow_type, storage.cast(self.arrow_type.storage_type))

    def array(self, column: pa.Array) -> NDArray[Any]:
        """Return a column of numbers as an array ``[N, *shape]``, without a copy."""
        if self.dtype == "str":
            return np.asarray(column.to_numpy(zero_copy_only=False))
        values = column.storage.flatten() if self.shape else column
        return as_numbers(values).reshape(len(column), *self.shape)

    def example(self, column: pa.Array, row: int) -> bytes | int | list[int] | list[float]:
        """Return the target in a row of a column as a value of a `tf.train.Example`."""
        if self.dtype == "str":
            return str(column[row].as_py()).encode()
        if self.shape or self.dtype == "float32":
            return [*self.array(column[row : row + 1]).reshape(-1).tolist()]
        return int(column[row].as_py())

    def index_value(self, target: Target) -> Target:
        """Return what the index has for a target: the target itself, unless it moves with the pixels."""
        return target

    def targets(self, column: pa.Array) -> list[Target]:
        """Return the targets in a column."""
        if not self.shape:
            return [*column.to_pylist()]
        return [each.tobytes() for each in self.array(column)]


class Named(Feature):
    """A feature of classes.

    Attributes:
        names: Names of the classes.
    """

    names: tuple[str, ...]

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each class, by name."""
        return {name: number for number, name in enumerate(self.names)}


def checked_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return names as a tuple; ValueError unless all are texts."""
    given = names if isinstance(names, str) else tuple(names)
    if isinstance(given, str) or not all(isinstance(name, str) for name in given):
        raise ValueError(f"names must be a tuple of texts, got {shown(given)}")
    return given
