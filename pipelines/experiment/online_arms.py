"""The arms that preprocess in tf.data: a chain's ops as map functions over encoded files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import tensorflow as tf

from joulecache.pipelines.cache.cache import Cache
from joulecache.pipelines.experiment import python_ops
from joulecache.pipelines.experiment.files import ImageFiles
from joulecache.pipelines.experiment.python_ops import LARGE_PIXELS, OnlineOps
from joulecache.pipelines.experiment.tfrecord_files import TFRecordFiles
from joulecache.pipelines.loading.targets import Selection
from joulecache.transforms import tensorflow as graphs
from joulecache.transforms import tensorflow_targets as moved
from joulecache.transforms.chain import Chain, fixed_size
from joulecache.transforms.ops import BatchOp, Brightness, FlipLr, RandomCrop

TF_DATA, READ, BATCH = "tf.data", "read", "batch"
"""The steps of the naive arm that are not ops."""

_CHEAPER_BY_IMAGE = (RandomCrop, FlipLr, Brightness)  # than on batches, if images are large
_SHUFFLED_BATCHES = 16  # in the buffer of what is read from disk
_MOVING = (moved.Mask, moved.Boxes, moved.Points)

_Targets: TypeAlias = tuple[Any, ...]
"""The targets of an image or a batch, in the order of the cache's features."""
_Image: TypeAlias = tuple[tf.Tensor, _Targets]
_Element: TypeAlias = tuple[tf.Tensor, _Targets, tf.Tensor]
_Map: TypeAlias = Callable[..., Any]


class OnlineChain:
    """The datasets of the online arms. Their random parameters are given, so that all arms show the same images.

    The map functions take (path or image, targets, row); row is the number of the file.
    """

    def __init__(self, files: ImageFiles, variants: int, batch_size: int, *, shuffle: bool = True) -> None:
        self._online, self._ops = files.ops, files.ops.chain.ops
        self._steady = count_steady_ops(files.ops.chain, variants)
        self._batch_size, self._shuffle, self._records = batch_size, shuffle, len(files.paths)
        self._buffer = min(self._records, _SHUFFLED_BATCHES * batch_size)
        self._names = tuple(files.targets)
        elements = (list(files.paths), tuple(files.targets.values()), np.arange(self._records))
        self._files = tf.data.Dataset.from_tensor_slices(elements)
        self._most_boxes = files.most_boxes
        # Flat, because selecting an epoch first would copy all its draws for every image.
        self._drawn, self._epochs = tf.constant(np.concatenate(files.drawn)), len(files.drawn)
        batches = -(-self._records // batch_size)
        self._batch_words = tf.constant(self._online.batch_words(files.seed, self._epochs, batches))
        self._epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._orientations = None if files.orientations is None else tf.constant(files.orientations)
        self._odd = None if files.decoded_in_python is None else tf.constant(files.decoded_in_python)

    def start_epoch(self, epoch: int) -> None:
        """Use the draws of an epoch from now on; they repeat after as many epochs as the files have."""
        self._epoch.assign(epoch % self._epochs)

    # Datasets ---------------------------------------------------------------------------------------------------------

    def naive(self) -> tf.data.Dataset:
        """Return the pipeline that people write first: map all ops over one file after the other, then batch."""
        return self.truncated(len(self._ops))

    @property
    def on_images(self) -> int:
        """The number of ops, from the first, that `naive` runs on single images: all but those that mix images."""
        return self._online.mixing

    def truncated(self, last: int) -> tf.data.Dataset:
        """Return `naive` with only the first `last` ops, at least those on single images."""
        return self._one_by_one(self._read(self.on_images), last)

    def tuned(self) -> tf.data.Dataset:
        """Return the pipeline that TensorFlow's guide recommends: parallel map and batch, cheap ops on whole batches, prefetch."""
        batched = batched_from(self._online, 1)
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
        files = TFRecordFiles(cache, self._most_boxes, soft=self._online.chain.mixes)
        examples = files.examples(self._epoch, shuffle=self._shuffle)
        if self._shuffle:
            examples = examples.shuffle(self._buffer, seed=0)
        done = self._online.chain.cut
        batched = batched_from(self._online, done)
        rest = self._on_image(done, batched)

        def function(row: tf.Tensor, example: tf.Tensor) -> _Element:
            return cast(_Element, rest(*files.parse(example), row))

        return self._batches(examples.map(function, num_parallel_calls=tf.data.AUTOTUNE), batched)

    def _after_cache(self, dataset: tf.data.Dataset, buffer: int) -> tf.data.Dataset:
        if self._shuffle:
            dataset = dataset.shuffle(buffer, seed=0)
        batched = batched_from(self._online, self._steady)
        if batched > self._steady:
            dataset = dataset.map(self._on_image(self._steady, batched), num_parallel_calls=tf.data.AUTOTUNE)
        return self._batches(dataset, batched)

    def listing(self) -> tf.data.Dataset:
        """Return `naive` without reading any file: it yields a number for each."""
        return self._one_by_one(lambda path, targets, row: (tf.cast(row, tf.int32), targets, row), self.on_images)

    def first_numbers(self, count: int) -> tf.data.Dataset:
        """Return `naive` with only the first `count` ops, at most those on single images, without the images.

        It yields the first number of each image, or without ops the file's length.
        """
        read = self._read(count)

        def function(path: tf.Tensor, targets: _Targets, row: tf.Tensor) -> _Element:
            output, targets, row = read(path, targets, row)
            numbers = tuple(
                moved.Mask(_first_number(target.ids)) if isinstance(target, moved.Mask) else target
                for target in targets
            )
            return _first_number(output), numbers, row

        return self._one_by_one(function, self.on_images)

    def _shuffled(self) -> tf.data.Dataset:
        return self._files.shuffle(self._records, seed=0) if self._shuffle else self._files

    def _one_by_one(self, function: _Map, last: int) -> tf.data.Dataset:
        """Map a function over one file after the other, batch, and run the ops that mix images, up to number `last`."""
        batches = self._shuffled().map(function).batch(self._batch_size)
        return self._mapped(batches, self._on_batch(self.on_images, last))

    def _batches(self, dataset: tf.data.Dataset, batched: int) -> tf.data.Dataset:
        """Batch, and run the ops from number `batched` on whole batches."""
        batches = dataset.batch(self._batch_size, num_parallel_calls=tf.data.AUTOTUNE)
        function = self._on_batch(batched, len(self._ops))
        return self._mapped(batches, function, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def _mapped(self, batches: tf.data.Dataset, function: _Map, **parallel: int) -> tf.data.Dataset:
        """Map a function of a batch and, if the draws of some ops depend on it, its number."""
        if self.on_images == len(self._ops):
            return batches.map(lambda *batch: function(batch, None), **parallel)
        return batches.enumerate().map(lambda number, batch: function(batch, number), **parallel)

    # Map functions: ops from number `first` up to number `last` --------------------------------------------------------

    def _parameters(self, rows: tf.Tensor, first: int, last: int) -> tf.Tensor:
        """Return the parameters of those ops in the current epoch, int32 `[..., P]`."""
        start, end = self._online.parameter_count(first), self._online.parameter_count(last)
        return tf.gather(self._drawn, self._epoch * self._records + rows)[..., start:end]

    def _read(self, last: int) -> _Map:
        def function(path: tf.Tensor, targets: _Targets, row: tf.Tensor) -> _Element:
            opened = tuple(_opened(target, decode=last > 0) for target in targets)
            return *self._run(0, last, tf.io.read_file(path), opened, row), row

        return function

    def _on_image(self, first: int, last: int) -> _Map:
        def function(image: tf.Tensor, targets: _Targets, row: tf.Tensor) -> _Element:
            return *self._run(first, last, image, targets, row), row

        return function

    def _run(self, first: int, last: int, image: tf.Tensor, targets: _Targets, row: tf.Tensor) -> _Image:
        """Run ops on one image, and on those of its targets that move with the pixels."""
        if first == 0 and last > 0 and self._odd is not None:
            encoded, whole = image, targets
            image, targets = tf.cond(
                self._odd[row],
                lambda: self._call(0, 1, True, encoded, whole, row),
                lambda: self._call(0, 1, False, encoded, whole, row),
            )
            first = 1
        for start, stop, in_python in self._online.runs(first, last):
            image, targets = self._call(start, stop, in_python, image, targets, row)
        return image, targets

    def _call(
        self, first: int, last: int, in_python: bool, image: tf.Tensor, targets: _Targets, row: tf.Tensor
    ) -> _Image:
        ops, drawn = self._ops[first:last], self._parameters(row, first, last)
        if in_python:
            shape = self._online.shape(last)
            return _moving(targets, lambda moving: python_ops.apply(ops, image, moving, drawn, shape))
        orientation = None if self._orientations is None else self._orientations[row]
        return _moving(targets, lambda moving: moved.apply(ops, image, moving, drawn, orientation))

    def _on_batch(self, first: int, last: int) -> _Map:
        """Run ops on a batch, and return it as `load` does, without the row numbers."""

        def function(batch: _Element, number: tf.Tensor | None) -> Any:
            images, targets, rows = batch
            for start, stop, in_python in self._online.runs(first, last):
                images, targets = self._call_on_batch(start, stop, in_python, images, targets, rows, number)
            found = [self._loaded(name, target) for name, target in zip(self._names, targets, strict=True)]
            return Selection(self._names).arrange(images, found)

        return function

    def _call_on_batch(
        self,
        first: int,
        last: int,
        in_python: bool,
        images: tf.Tensor,
        targets: _Targets,
        rows: tf.Tensor,
        number: tf.Tensor | None,
    ) -> _Image:
        ops, drawn = self._ops[first:last], self._parameters(rows, first, last)
        if not in_python:
            return _moving(targets, lambda moving: moved.apply_batch(ops, images, moving, drawn))
        if first >= self.on_images:
            return python_ops.mix(ops, images, targets, self._batch_words[self._epoch, number])
        shape = self._online.shape(last)
        return _moving(targets, lambda moving: python_ops.apply_batch(ops, images, moving, drawn, shape))

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


def _moving(targets: _Targets, run: Callable[[list[moved.Moving]], Any]) -> _Image:
    """Run ops on the targets that move with the pixels, and return all targets."""
    images, parts = run([target for target in targets if isinstance(target, _MOVING)])
    left = iter(parts)
    return images, tuple(next(left) if isinstance(target, _MOVING) else target for target in targets)


def count_steady_ops(chain: Chain, variants: int) -> int:
    """Return how many ops, from the first, have the same uint8 output in every epoch."""
    for place, op in enumerate(chain.ops):
        if isinstance(op, BatchOp) or (op.random and (variants > 1 or place >= chain.cut)):
            return place
    return len(chain.ops)


def batched_from(online: OnlineOps, first: int) -> int:
    """Return the number of the op, at least `first`, from which whole batches cost less than single images.

    All ops from there on need batch kernels and images of one size. The cost of small images is mostly that of calls; that
    of large ones is memory traffic: a batch of them does not fit in a processor cache, and is gathered column by column.
    """
    ops = online.chain.ops
    start = len(ops)
    while start > first and fixed_size(ops[: start - 1]):
        last = start - 1
        height, width = fixed_size(ops[:start]) or (0, 0)
        if last not in online.in_python:
            if not graphs.runs_on_batches(ops[last]):
                break
            if height * width >= LARGE_PIXELS and isinstance(ops[last], _CHEAPER_BY_IMAGE):
                break
        start = last
    return start
