"""The arms that preprocess in TensorFlow: a chain's ops as map functions over encoded files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import tensorflow as tf

from joulecache.pipelines.cache.cache import Cache
from joulecache.pipelines.experiment.files import ImageFiles
from joulecache.pipelines.experiment.tfrecord_files import TFRecordFiles
from joulecache.pipelines.loading.targets import Selection
from joulecache.transforms import tensorflow as graphs
from joulecache.transforms import tensorflow_targets as moved
from joulecache.transforms.chain import Chain, fixed_size
from joulecache.transforms.ops import BatchOp, Brightness, FlipLr, Op, RandomCrop

TF_DATA, READ, BATCH = "tf.data", "read", "batch"
"""The steps of the naive arm that are not ops."""

_LARGE_PIXELS = 120 * 120  # from this size on, `_CHEAPER_BY_IMAGE` cost less on single images than on batches
_CHEAPER_BY_IMAGE = (RandomCrop, FlipLr, Brightness)
_SHUFFLED_BATCHES = 16  # in the buffer of what is read from disk
_MOVING = (moved.Mask, moved.Boxes, moved.Points)

_Targets: TypeAlias = tuple[Any, ...]
"""The targets of an image or a batch, in the order of the cache's features."""
_Element: TypeAlias = tuple[tf.Tensor, _Targets, tf.Tensor]
_Map: TypeAlias = Callable[..., Any]


class OnlineChain:
    """The datasets of the online arms. Their random parameters are given, so that all arms show the same images.

    The map functions take (path or image, targets, row); row is the number of the file.
    """

    def __init__(
        self, chain: Chain, variants: int, files: ImageFiles, batch_size: int, *, shuffle: bool = True
    ) -> None:
        self._ops, self._steady = chain.ops, count_steady_ops(chain, variants)
        self._batch_size, self._shuffle, self._records = batch_size, shuffle, len(files.paths)
        self._buffer = min(self._records, _SHUFFLED_BATCHES * batch_size)
        self._names = tuple(files.targets)
        elements = (list(files.paths), tuple(files.targets.values()), np.arange(self._records))
        self._files = tf.data.Dataset.from_tensor_slices(elements)
        self._most_boxes = files.most_boxes
        # Flat, because selecting an epoch first would copy all its draws for every image.
        self._drawn, self._epochs = tf.constant(np.concatenate(files.drawn)), len(files.drawn)
        self._epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._orientations = None if files.orientations is None else tf.constant(files.orientations)

    def start_epoch(self, epoch: int) -> None:
        """Use the draws of an epoch from now on; they repeat after as many epochs as the files have."""
        self._epoch.assign(epoch % self._epochs)

    # Datasets ---------------------------------------------------------------------------------------------------------

    def naive(self) -> tf.data.Dataset:
        """Return the pipeline that people write first: map all ops over one file after the other, then batch."""
        return self._one_by_one(self._read(len(self._ops)))

    def tuned(self) -> tf.data.Dataset:
        """Return the pipeline that TensorFlow's guide recommends: parallel map and batch, cheap ops on whole batches, prefetch."""
        batched = batched_from(self._ops, 1)
        return self._batches(self._shuffled().map(self._read(batched), num_parallel_calls=tf.data.AUTOTUNE), batched)

    def cached_in_memory(self) -> tf.data.Dataset:
        """Return `tuned` with `cache()` as uint8 in RAM after the ops whose output is the same in every epoch."""
        dataset = self._files.map(self._read(self._steady), num_parallel_calls=tf.data.AUTOTUNE).cache()
        # over the whole set, as files are sorted by class; the buffer holds only references to images in RAM
        return self._after_cache(dataset, self._records)

    def cached_in_file(self, path: Path) -> tf.data.Dataset:
        """Return `cached_in_memory` with `cache(filename)` on disk, in shuffled order, read through a small shuffle buffer."""
        path.parent.mkdir(parents=True, exist_ok=True)
        files = self._files
        if self._shuffle:
            files = files.shuffle(self._records, seed=0, reshuffle_each_iteration=False)
        dataset = files.map(self._read(self._steady), num_parallel_calls=tf.data.AUTOTUNE).cache(str(path))
        return self._after_cache(dataset, self._buffer)

    def precomputed(self, cache: Cache) -> tf.data.Dataset:
        """Return `tuned` from the TFRecord files of a cache, which holds what the cached ops make of the same files."""
        files = TFRecordFiles(cache, self._most_boxes)
        examples = files.examples(self._epoch, shuffle=self._shuffle)
        if self._shuffle:
            examples = examples.shuffle(self._buffer, seed=0)
        done = cache.chain().cut
        batched = batched_from(self._ops, done)
        rest = self._on_image(done, batched)

        def function(row: tf.Tensor, example: tf.Tensor) -> _Element:
            return cast(_Element, rest(*files.parse(example), row))

        return self._batches(examples.map(function, num_parallel_calls=tf.data.AUTOTUNE), batched)

    def _after_cache(self, dataset: tf.data.Dataset, buffer: int) -> tf.data.Dataset:
        if self._shuffle:
            dataset = dataset.shuffle(buffer, seed=0)
        batched = batched_from(self._ops, self._steady)
        if batched > self._steady:
            dataset = dataset.map(self._on_image(self._steady, batched), num_parallel_calls=tf.data.AUTOTUNE)
        return self._batches(dataset, batched)

    def listing(self) -> tf.data.Dataset:
        """Return `naive` without reading any file: it yields a number for each."""
        return self._one_by_one(lambda path, targets, row: (tf.cast(row, tf.int32), targets, row))

    def first_numbers(self, count: int) -> tf.data.Dataset:
        """Return `naive` with only the first `count` ops: it yields the first number of each image, or without ops the file's length."""
        read = self._read(count)

        def function(path: tf.Tensor, targets: _Targets, row: tf.Tensor) -> _Element:
            output, targets, row = read(path, targets, row)
            numbers = tuple(
                moved.Mask(_first_number(target.ids)) if isinstance(target, moved.Mask) else target
                for target in targets
            )
            return _first_number(output), numbers, row

        return self._one_by_one(function)

    def _shuffled(self) -> tf.data.Dataset:
        return self._files.shuffle(self._records, seed=0) if self._shuffle else self._files

    def _one_by_one(self, function: _Map) -> tf.data.Dataset:
        return self._shuffled().map(function).batch(self._batch_size).map(self._on_batch(len(self._ops)))

    def _batches(self, dataset: tf.data.Dataset, batched: int) -> tf.data.Dataset:
        """Batch, and run the ops from number `batched` on whole batches."""
        return (
            dataset.batch(self._batch_size, num_parallel_calls=tf.data.AUTOTUNE)
            .map(self._on_batch(batched), num_parallel_calls=tf.data.AUTOTUNE)
            .prefetch(tf.data.AUTOTUNE)
        )

    # Map functions: ops from number `first` up to number `last` --------------------------------------------------------

    def _parameters(self, rows: tf.Tensor, first: int, last: int) -> tf.Tensor:
        """Return the random parameters of those ops in the current epoch, int32 `[..., P]`."""
        start, end = graphs.drawn_count(self._ops[:first]), graphs.drawn_count(self._ops[:last])
        return tf.gather(self._drawn, self._epoch * self._records + rows)[..., start:end]

    def _read(self, last: int) -> _Map:
        def function(path: tf.Tensor, targets: _Targets, row: tf.Tensor) -> _Element:
            orientation = None if self._orientations is None else self._orientations[row]
            drawn = self._parameters(row, 0, last)
            opened = tuple(_opened(target, decode=last > 0) for target in targets)
            return *_run(moved.apply, self._ops[:last], tf.io.read_file(path), opened, drawn, orientation), row

        return function

    def _on_image(self, first: int, last: int) -> _Map:
        def function(image: tf.Tensor, targets: _Targets, row: tf.Tensor) -> _Element:
            return *_run(moved.apply, self._ops[first:last], image, targets, self._parameters(row, first, last)), row

        return function

    def _on_batch(self, first: int) -> _Map:
        """Run the ops from `first` on a batch, and return it as `load` does, without the row numbers."""

        def function(images: tf.Tensor, targets: _Targets, rows: tf.Tensor) -> Any:
            drawn = self._parameters(rows, first, len(self._ops))
            images, targets = _run(moved.apply_batch, self._ops[first:], images, targets, drawn)
            found = [self._loaded(name, target) for name, target in zip(self._names, targets, strict=True)]
            return Selection(self._names).arrange(images, found)

        return function

    # AutoGraph cannot convert `match`, and logs a warning.
    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def _loaded(self, name: str, target: Any) -> Any:
        """Return a target of a batch as `load` yields it."""
        match target:
            case moved.Mask():
                return target.ids
            case moved.Points():
                return target.points
            case moved.Boxes():
                return moved.packed(target, self._most_boxes[name])._asdict()
        return target


def _opened(target: Any, *, decode: bool) -> Any:
    """Return a target with its mask read and decoded."""
    if not isinstance(target, moved.Mask):
        return target
    data = tf.io.read_file(target.ids)
    return moved.Mask(tf.io.decode_png(data, channels=1) if decode else data)


def _first_number(image: tf.Tensor) -> tf.Tensor:
    """Return the first number of an image, or the length of encoded bytes."""
    return tf.strings.length(image) if image.dtype == tf.string else tf.cast(image[0, 0, 0], tf.int32)


def _run(apply: Callable[..., Any], ops: tuple[Op, ...], images: tf.Tensor, targets: _Targets, *drawn: Any) -> Any:
    """Run ops on one image or a batch, and on those of its targets that move with the pixels."""
    images, parts = apply(ops, images, [target for target in targets if isinstance(target, _MOVING)], *drawn)
    left = iter(parts)
    return images, tuple(next(left) if isinstance(target, _MOVING) else target for target in targets)


def count_steady_ops(chain: Chain, variants: int) -> int:
    """Return how many ops, from the first, have the same uint8 output in every epoch."""
    for place, op in enumerate(chain.ops):
        if isinstance(op, BatchOp) or (op.random and (variants > 1 or place >= chain.cut)):
            return place
    return len(chain.ops)


def batched_from(ops: tuple[Op, ...], first: int) -> int:
    """Return the number of the op, at least `first`, from which whole batches cost less than single images.

    All ops from there on need batch kernels and images of one size. The cost of small images is mostly that of calls; that
    of large ones is memory traffic: a batch of them does not fit in a processor cache, and is gathered column by column.
    """
    start = len(ops)
    while start > first and graphs.runs_on_batches(ops[start - 1]) and fixed_size(ops[: start - 1]):
        height, width = fixed_size(ops[:start]) or (0, 0)
        if height * width >= _LARGE_PIXELS and isinstance(ops[start - 1], _CHEAPER_BY_IMAGE):
            break
        start -= 1
    return start
