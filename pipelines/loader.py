"""Feed a cache to TensorFlow: mapped files, one gather a batch, the suffix fresh every epoch."""

from __future__ import annotations

import itertools
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from joulecache.pipelines.manifest import CacheError, open_manifest, read_index
from joulecache.pipelines.shards import SPLITS, map_images, read_encoded
from joulecache.transforms import reference_kernels
from joulecache.transforms.chain import output_channels, output_size, parse
from joulecache.transforms.ops import Decode, Op
from joulecache.transforms.randomness import word_table

_TENSOR_ALIGNMENT = 64  # bytes
_ORDER_CHUNK = 4096  # places of an epoch's order that are computed at once


class CachedSplit:
    """One split of a cache, opened for reading by row.

    `labels` is int64 ``[N]``, `key_hashes` uint64 ``[N]``, both mapped; `image_shape` is the (H, W, C) that `images` gives. Where the
    training chain mixes images, `batch` gives soft labels, of every split. Files that are replaced while this is open are still
    read as they were.
    """

    def __init__(
        self,
        cache: str | os.PathLike[str],
        split: str,
        seed: int | None = None,
        ops: Mapping[str, type[Op]] | None = None,
    ) -> None:
        """Open it; `seed` for the suffix's draws, the cache's own when None. Raises CacheError, or ValueError for `seed`."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        folder, self.manifest = Path(cache), open_manifest(cache)
        listed = self.manifest.split(split)
        self.chain = self.manifest.parsed_chain(split, ops)
        self.soft_labels = parse(self.manifest.chain, ops).mixes
        self.seed = self.manifest.seed if seed is None else seed
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1, got {seed!r}")
        height, width, channels = listed.image_shape
        if height is None or width is None:
            raise CacheError(
                f"the {split} images of {str(cache)!r} vary in size: batches need one size, cache them with a resize or crop"
            )
        self.image_shape = (*output_size(self.chain.suffix, height, width), output_channels(self.chain.ops))
        self._decode: Callable[[Any], Any] | None = None
        if self.manifest.encoding != "raw":
            decode = Decode(channels=channels)
            self._decode = lambda data: reference_kernels.decode(decode, bytes(data))
            self._decoders = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "decode")
        self._memory = _Memory()
        self._variants: list[list[Any]] = []
        for variant in range(listed.variants):
            files = listed.variant_files(variant)
            self._variants.append(
                [
                    read_encoded(folder / file.name, file)
                    if self._decode
                    else map_images(folder / file.name, file, (height, width, channels))
                    for file in files
                ]
            )
        self._ends = np.cumsum([file.records for file in listed.variant_files(0)])
        self._starts = np.concatenate([[0], self._ends[:-1]])
        index = read_index(folder, self.manifest).slice(self.manifest.first_row(split), listed.records)
        self.labels: NDArray[np.int64] = index["label"].to_numpy()
        self.key_hashes: NDArray[np.uint64] = index["key_hash"].to_numpy()

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, rows: NDArray[np.int64], epoch: int) -> NDArray[np.uint8]:
        """Return the images of those rows as the epoch has them before ops on batches, uint8 ``[B, H, W, C]``.

        The ops after the cut run on views of the mapped files, so that each image is copied once, into its place in the batch.
        """
        variant = self._variants[epoch % len(self._variants)]
        batch: NDArray[np.uint8] = self._memory.array((len(rows), *self.image_shape), np.uint8)
        suffix = self.chain.on_images
        if not suffix and len(variant) == 1 and isinstance(variant[0], np.ndarray) and variant[0].flags.c_contiguous:
            return variant[0].take(rows, axis=0, out=batch, mode="clip")  # another mode would make a copy of `out`
        shards = np.searchsorted(self._ends, rows, side="right")
        inside = rows - self._starts[shards]
        images = [variant[shard][row] for shard, row in zip(shards.tolist(), inside.tolist(), strict=True)]
        if self._decode:
            images = list(self._decoders.map(self._decode, images))
        if suffix:
            words = word_table(suffix, self.chain.cut, self.seed, self.key_hashes[rows], epoch)
            for place, image in zip(batch, reference_kernels.apply_batch(suffix, images, words), strict=True):
                reference_kernels.put(place, image)
        else:
            arrays = map(reference_kernels.as_array, images) if self._decode else images
            np.concatenate(list(arrays), out=batch.reshape(-1, *batch.shape[2:]))
        return batch

    def batch(
        self, rows: NDArray[np.int64], epoch: int, number: int
    ) -> tuple[NDArray[np.uint8] | NDArray[np.float32], NDArray[np.int64] | NDArray[np.float32]]:
        """Return images ``[B, H, W, C]`` and labels of those rows, the epoch's batch of that number, with all ops run.

        Images are uint8, or float32 behind to_float; labels int64 ``[B]``, or soft, float32 ``[B, K]``.
        """
        ops = self.chain.on_batches
        words = word_table(ops, len(self.chain.ops) - len(ops), self.seed, [number], epoch)[0].tolist()
        images = reference_kernels.apply_to_batch(ops, self.images(rows, epoch), words, self._memory.array)
        labels = self.labels[rows]
        if not self.soft_labels:
            return images, labels
        classes = len(self.manifest.class_names)
        return images, reference_kernels.mix_labels(ops, labels, classes, words, self.image_shape[:2])


def _shuffled(records: int, seed: int, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows at some places of an epoch's order: a permutation that is computed where it is needed, not stored."""
    chunks = [_shuffled_chunk(records, seed, epoch, int(chunk)) for chunk in np.unique(places // _ORDER_CHUNK)]
    first = places[0] // _ORDER_CHUNK * _ORDER_CHUNK
    rows: NDArray[np.int64] = np.concatenate(chunks)[places - first]
    return rows


@lru_cache(maxsize=64)
def _shuffled_chunk(records: int, seed: int, epoch: int, chunk: int) -> NDArray[np.int64]:
    start = chunk * _ORDER_CHUNK
    places = np.arange(start, min(start + _ORDER_CHUNK, records))
    key = np.array([seed, epoch], np.uint64)
    rows: NDArray[np.int64] = tf.random.experimental.index_shuffle(places, key, np.int64(records - 1)).numpy()
    return rows


class _Memory:
    """Memory for batches, that is used again when nobody holds the batch any more: new memory costs as much as filling it.

    Its arrays are such as TensorFlow takes over without a copy; it lets go of them when the tensor is gone.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, list[NDArray[np.uint8]]] = defaultdict(list)

    def array(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return an array with anything in it."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        free = self._free[size]
        try:
            block = free.pop()
        except IndexError:
            block = np.empty(size + _TENSOR_ALIGNMENT, np.uint8)
        address = block.ctypes.data + -block.ctypes.data % _TENSOR_ALIGNMENT
        return np.asarray(_Loan(block, free, address, shape, np.dtype(dtype).str))


class _Loan:
    """A block of memory while it is an array: the array and all its views hold this object, whose end gives the block back."""

    def __init__(
        self, block: NDArray[np.uint8], free: list[NDArray[np.uint8]], address: int, shape: tuple[int, ...], kind: str
    ) -> None:
        self._block, self._free = block, free
        self.__array_interface__ = {"version": 3, "data": (address, False), "shape": shape, "typestr": kind}

    def __del__(self) -> None:
        self._free.append(self._block)


def load(
    cache: str | os.PathLike[str],
    split: str,
    batch_size: int,
    *,
    shuffle: bool | None = None,
    seed: int | None = None,
    drop_remainder: bool = False,
    ops: Mapping[str, type[Op]] | None = None,
) -> Any:
    """Return a `tf.data.Dataset` of (uint8 ``[B, H, W, C]``, int64 ``[B]``) over a split of a cache.

    Images are float32 where the chain has to_float; labels are float32 ``[B, K]``, one-hot or mixed, where the training chain has mixup or
    cutmix, so that both splits fit one categorical loss.

    It has a known cardinality, is prefetched, and carries `class_names` and `num_classes`. Each time that it is iterated it
    gives the next epoch: its order, its variant and its draws of the ops after the cut. `shuffle` is a uniform permutation of
    the whole split, by default for ``train`` only; `seed` sets order and draws (default: the cache's own); `ops` are the ops of your
    own that the chain names.

    Raises CacheError for a cache that cannot be read, ValueError for arguments.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    opened = CachedSplit(cache, split, seed, ops)
    records = len(opened)
    if drop_remainder and batch_size > records:
        raise ValueError(
            f"batch_size {batch_size} with drop_remainder leaves nothing of the {records} records in {split!r}"
        )
    batches = records // batch_size if drop_remainder else math.ceil(records / batch_size)
    shuffled = split == "train" if shuffle is None else shuffle
    epochs = itertools.count()

    def read(epoch: Any, batch: Any) -> tuple[Any, Any, Any]:
        """Return the epoch that this iterator is in (-1: a new one), and its batch of that number."""
        epoch = np.int64(next(epochs)) if epoch < 0 else epoch
        rows = np.arange(batch * batch_size, min((batch + 1) * batch_size, records))
        if shuffled:
            rows = _shuffled(records, opened.seed, int(epoch), rows)
        return epoch, *opened.batch(rows, int(epoch), int(batch))

    def step(epoch: Any, batch: Any) -> tuple[Any, tuple[Any, Any]]:
        # One function with one op: an iterator of more would cost milliseconds each time an epoch begins.
        epoch, images, labels = tf.numpy_function(read, [epoch, batch], [tf.int64, image_type, label_type])
        images = tf.ensure_shape(images, [size, *opened.image_shape])
        return tf.ensure_shape(epoch, []), (images, tf.ensure_shape(labels, [size, *label_shape]))

    classes = len(opened.manifest.class_names)
    size = batch_size if records % batch_size == 0 or drop_remainder else None
    image_type = tf.float32 if opened.chain.is_float else tf.uint8
    label_type, label_shape = (tf.float32, [classes]) if opened.soft_labels else (tf.int64, [])
    dataset = tf.data.Dataset.range(batches).scan(np.int64(-1), step).prefetch(tf.data.AUTOTUNE)
    dataset.class_names = list(opened.manifest.class_names)
    dataset.num_classes = classes
    return dataset
