"""The images of a directory as a grain dataset, for ``image_dataset_from_directory(format="grain")``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.loading.directory_cache import DirectoryCache

if TYPE_CHECKING:
    pass

_Element = NDArray[np.uint8] | tuple[NDArray[np.uint8], NDArray[Any]]


def grain_dataset(
    images: DirectoryCache,
    rows: NDArray[np.int64],
    labels: NDArray[Any] | None,
    seed: int | None,
    batch_size: int | None,
) -> Any:
    """Return the dataset that Keras yields for ``format="grain"``.

    Args:
        images: The cached images.
        rows: Rows of the images in the order of Keras' listing, int64 ``[N]``.
        labels: Labels as Keras yields them, ``[N]`` or ``[N, K]``; None for images alone.
        seed: Seed of the shuffle; None for the order of `rows`.
        batch_size: Images per batch; None for single images.

    Returns:
        A `grain.IterDataset` of tensors of Keras' backend.

    Raises:
        ImportError: grain is not installed.
    """
    dataset = require_grain().MapDataset.source(_Rows(images, rows, labels))
    if seed is not None:
        dataset = dataset.shuffle(seed=seed)
    if batch_size is None:
        return dataset.map(_as_tensors).to_iter_dataset()
    return dataset.to_iter_dataset().batch(batch_size, batch_fn=_batched)


def require_grain() -> ModuleType:
    """Return the package, or raise ImportError with the command that installs it."""
    try:
        return import_module("grain")
    except ImportError as error:
        raise ImportError("format='grain' needs grain: pip install 'joulecache[grain]'") from error


@dataclass(frozen=True)
class _Rows:
    """A grain `RandomAccessDataSource` of single images as they are cached, uint8, and labels."""

    images: DirectoryCache
    rows: NDArray[np.int64]
    labels: NDArray[Any] | None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> _Element:
        image = self.images.images(self.rows[index])
        return image if self.labels is None else (image, self.labels[index])


def _batched(elements: Sequence[_Element]) -> Any:
    if isinstance(elements[0], tuple):
        return _as_tensors(tuple(map(np.stack, zip(*elements, strict=True))))
    return _as_tensors(np.stack(elements))


def _as_tensors(element: Any) -> Any:
    """Return images as float32 and labels as they are, on the CPU as Keras does."""
    to_tensor: Callable[..., Any] = keras.ops.convert_to_tensor
    with keras.device("cpu"):
        if isinstance(element, tuple):
            images, labels = element
            return to_tensor(images, "float32"), to_tensor(labels)
        return to_tensor(element, "float32")
