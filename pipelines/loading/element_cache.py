"""`cached`: the elements of any tf.data pipeline, computed once, and shared by runs and processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf
from numpy.typing import NDArray

from joulecache.pipelines.cache.arrow_shards import PAGE
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.core.checks import check_path, check_text
from joulecache.pipelines.core.progress import LINE_DELAY_S, progress_bar
from joulecache.pipelines.loading.element_files import DTYPES, Component, is_filled, map_elements
from joulecache.pipelines.loading.element_filling import ElementProgress, fill
from joulecache.pipelines.loading.iterators import keep_iterators_at_exit
from joulecache.pipelines.loading.light_functions import slices_of

_BATCH_BYTES = 1 << 21  # written at a time
_BATCH_ELEMENTS = 1 << 14  # maximum per batch, even of small elements


def cached(
    directory: str | os.PathLike[str],
    *,
    fingerprint: str = "",
    progress: Callable[[int, int | None], None] | None = None,
) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """Cache the elements of a dataset in a folder: ``ds.apply(cached("dir/"))`` replaces ``ds.cache()``.

    Applying it fills the folder, using little memory. From then on any number of processes memory-map its files, and the
    dataset does not run. Every iteration yields the elements in the order in which they were written: random ops and shuffles
    before it are frozen, as with ``cache()``, so shuffle after it.

    A folder holds one dataset. Another element spec or `fingerprint` is an error; other changes of the pipeline are not
    detected. A fill that fails or is killed leaves nothing that later runs read. If several processes fill a folder at once, all of
    them use the elements of the first to finish. Opening checks headers and sizes, not every byte.

    Args:
        directory: A folder that is empty, does not exist, or was filled before.
        fingerprint: Any text that identifies the elements: ``"v2 of my augmentation"``.
        progress: Called with the elements done and their total (None: unknown). By default progress is shown on stderr.

    Returns:
        A function for `tf.data.Dataset.apply`. Elements are tuples, dicts or NamedTuples, possibly nested, of tensors with a
        fixed shape and a dtype of fixed width. It raises ValueError for others, and CacheError for a folder that holds
        something else or is damaged.

    Raises:
        ValueError: `fingerprint` is not a string.
    """
    check_text("fingerprint", fingerprint, allow_empty=True)
    folder = Path(check_path("directory", directory))

    def apply(dataset: tf.data.Dataset) -> tf.data.Dataset:
        if not tf.executing_eagerly():
            raise ValueError("cached() fills its folder when it is applied: apply it outside of tf.function")
        keep_iterators_at_exit()
        components = _components(dataset)
        try:
            if not is_filled(folder):
                _fill(folder, dataset, components, fingerprint, progress)
            count, arrays = map_elements(folder, components, fingerprint)
        except OSError as error:
            raise CacheError(f"cannot read or write {str(folder)!r}: {error.strerror or error}") from error
        return _mapped_dataset(arrays, components, count, dataset)

    return apply


def _components(dataset: tf.data.Dataset) -> list[Component]:
    """Return the tensors of an element in the order of `tf.nest.flatten`; raise ValueError for unsupported ones."""
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("the dataset is infinite and cannot be cached: put its repeat() after cached(...)")
    components = []
    for path, spec in _leaves(dataset.element_spec, "element"):
        if not isinstance(spec, tf.TensorSpec):
            raise ValueError(
                f"{path} is a {type(spec).__name__}, but cached() needs tensors of one shape: convert it (to_tensor with a shape, "
                f"tf.sparse.to_dense), or leave it out"
            )
        if spec.dtype.name not in DTYPES:
            raise ValueError(
                f"{path} has dtype {spec.dtype.name}, but cached() supports {', '.join(DTYPES)}: decode or parse it before, "
                f"cast it, or leave it out"
            )
        if not spec.shape.is_fully_defined():
            raise ValueError(
                f"{path} has shape {spec.shape}, but cached() needs tensors of one known shape: resize or pad it, set_shape where it "
                f"is known, batch(..., drop_remainder=True), or batch after cached(...)"
            )
        components.append(Component(path, spec.dtype.name, tuple(spec.shape)))
    return components


def _leaves(spec: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(spec, Mapping):
        for key in sorted(spec):
            yield from _leaves(spec[key], f"{path}[{key!r}]")
    elif isinstance(spec, tuple):
        names = getattr(spec, "_fields", None)
        for place, part in enumerate(spec):
            yield from _leaves(part, f"{path}.{names[place]}" if names else f"{path}[{place}]")
    else:
        yield path, spec


def _fill(
    folder: Path,
    dataset: tf.data.Dataset,
    components: Sequence[Component],
    fingerprint: str,
    progress: ElementProgress | None,
) -> None:
    known = int(dataset.cardinality())
    with ExitStack() as stack:
        report = progress or stack.enter_context(progress_on_stderr(folder))
        fill(folder, components, fingerprint, _batches(dataset, components), known if known >= 0 else None, report)


def _batches(dataset: tf.data.Dataset, components: Sequence[Component]) -> Iterator[list[NDArray[Any]]]:
    element_bytes = sum(component.row_bytes for component in components)
    batch_size = max(1, min(_BATCH_BYTES // max(1, element_bytes), _BATCH_ELEMENTS))
    for batch in dataset.batch(batch_size).prefetch(2):
        yield [tensor.numpy() for tensor in tf.nest.flatten(batch)]


@contextmanager
def progress_on_stderr(folder: Path, delay_s: float = LINE_DELAY_S) -> Iterator[ElementProgress]:
    """Show the progress of a fill longer than `delay_s`: a bar on a terminal, elsewhere a line per minute."""
    with progress_bar(delay_s=delay_s, line_delay_s=delay_s) as bar:
        yield lambda done, total: bar(f"filling {folder}", done, total, "elements")


def _mapped_dataset(
    arrays: Sequence[NDArray[Any]], components: Sequence[Component], count: int, template: tf.data.Dataset
) -> tf.data.Dataset:
    """Return the rows of arrays, without a copy, as a dataset with the structure and the options of a template."""
    spec = template.element_spec
    with tf.device("CPU:0"):
        tensors = []
        for array, component in zip(arrays, components, strict=True):
            assert array.ctypes.data % PAGE == 0
            tensor = tf.experimental.dlpack.from_dlpack(array.__dlpack__())
            tensors.append(tf.bitcast(tensor, tf.bfloat16) if component.dtype == "bfloat16" else tensor)
        # When TensorFlow optimizes a pipeline, it allocates and fills a copy of each tensor that a dataset holds, which would
        # take twice the cache in memory. It does not look inside an Optional.
        rows = tf.experimental.Optional.from_value(tuple(tensors))

    dataset = slices_of(tf.data.Dataset.range(1), lambda _: rows.get_value(), spec)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(count))
    return dataset.with_options(template.options())
