"""Feed a cache to TensorFlow: mapped files, one gather a batch, the suffix fresh every epoch."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from joulecache.pipelines.manifest import CacheError, open_manifest, read_index
from joulecache.pipelines.shards import SPLITS, map_images, read_encoded
from joulecache.transforms import reference_kernels
from joulecache.transforms.chain import output_size, parse
from joulecache.transforms.ops import Decode
from joulecache.transforms.randomness import random_words

_TENSOR_ALIGNMENT = 64  # bytes


class CachedSplit:
    """One split of a cache, opened for reading by row.

    `labels` is int64 ``[N]``, `key_hashes` uint64 ``[N]``, both mapped; `image_shape` is the (H, W, C) that `images` gives. Files that are
    replaced while this is open are still read as they were.
    """

    def __init__(self, cache: str | os.PathLike[str], split: str, seed: int | None = None) -> None:
        """Open it; `seed` for the suffix's draws, the cache's own when None. Raises CacheError, or ValueError for `seed`."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        folder, self.manifest = Path(cache), open_manifest(cache)
        listed = self.manifest.split(split)
        self.chain = parse(listed.chain)
        self.seed = self.manifest.seed if seed is None else seed
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1, got {seed!r}")
        height, width, channels = listed.image_shape
        if height is None or width is None:
            raise CacheError(
                f"the {split} images of {str(cache)!r} vary in size: batches need one size, cache them with a resize or crop"
            )
        self.image_shape = (*output_size(self.chain.suffix, height, width), channels)
        self._decode = None if self.manifest.encoding == "raw" else Decode(channels=channels)
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
        first = 0 if split == SPLITS[0] else self.manifest.splits[SPLITS[0]].records
        index = read_index(folder, self.manifest).slice(first, listed.records)
        self.labels: NDArray[np.int64] = index["label"].to_numpy()
        self.key_hashes: NDArray[np.uint64] = index["key_hash"].to_numpy()

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, rows: NDArray[np.int64], epoch: int) -> NDArray[np.uint8]:
        """Return the images of those rows as the epoch has them, uint8 ``[B, H, W, C]``.

        The suffix runs on views of the mapped files, so that each image is copied once, into its place in the batch.
        """
        variant = self._variants[epoch % len(self._variants)]
        shards = np.searchsorted(self._ends, rows, side="right")
        starts = np.concatenate(([0], self._ends[:-1]))
        inside = (rows - starts[shards]).tolist()
        batch = _aligned((len(rows), *self.image_shape))
        suffix = self.chain.suffix
        words = random_words(suffix, self.chain.cut, self.seed, self.key_hashes[rows], epoch)
        for place, (shard, row) in enumerate(zip(shards.tolist(), inside, strict=True)):
            image = variant[shard][row]
            if self._decode:
                image = reference_kernels.decode(self._decode, bytes(image))
            _put(batch[place], reference_kernels.apply(suffix, image, words[place]))
        return batch


def _aligned(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return a new uint8 array that TensorFlow takes over as it is: one that starts elsewhere it would copy."""
    size = math.prod(shape)
    room = np.empty(size + _TENSOR_ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _TENSOR_ALIGNMENT
    return room[start : start + size].reshape(shape)


def _put(place: NDArray[np.uint8], image: NDArray[np.uint8]) -> None:
    """Copy an image ``[H, W, C]`` to its place in a batch."""
    if image.strides[1] < 0:  # mirrored: NumPy copies single channels 3 to 4 times faster than reversed pixels
        for channel in range(image.shape[2]):
            place[:, :, channel] = image[:, :, channel]
    else:
        place[...] = image


def load(
    cache: str | os.PathLike[str],
    split: str,
    batch_size: int,
    *,
    shuffle: bool | None = None,
    seed: int | None = None,
    drop_remainder: bool = False,
) -> Any:
    """Return a `tf.data.Dataset` of (uint8 ``[B, H, W, C]``, int64 ``[B]``) over a split of a cache.

    It has a known cardinality, is prefetched, and carries `class_names` and `num_classes`. Each time that it is iterated it
    gives the next epoch: its order, its variant and its draws of the ops after the cut. `shuffle` is a uniform permutation of
    the whole split, by default for ``train`` only; `seed` sets order and draws (default: the cache's own).

    Raises CacheError for a cache that cannot be read, ValueError for arguments.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    opened = CachedSplit(cache, split, seed)
    records = len(opened)
    if drop_remainder and batch_size > records:
        raise ValueError(
            f"batch_size {batch_size} with drop_remainder leaves nothing of the {records} records in {split!r}"
        )
    batches = records // batch_size if drop_remainder else math.ceil(records / batch_size)
    shuffled = split == "train" if shuffle is None else shuffle
    order_seed = np.uint64(opened.seed).astype(np.int64)
    epochs = itertools.count()

    def next_epoch(_: Any) -> Any:
        return tf.ensure_shape(tf.numpy_function(lambda: np.int64(next(epochs)), [], tf.int64), [])

    def every_batch(epoch: Any) -> Any:
        return tf.data.Dataset.from_tensors(epoch).repeat(batches)

    def gather(batch: Any, epoch: Any) -> tuple[Any, Any]:
        rows = tf.range(batch * batch_size, tf.minimum((batch + 1) * batch_size, records))
        if shuffled:
            # A permutation that is computed, not stored: no buffer, and any batch can be had without the ones before it.
            rows = tf.random.experimental.index_shuffle(rows, [order_seed, epoch], np.int64(records - 1))
        images, labels = tf.numpy_function(
            lambda e, r: (opened.images(r, int(e)), opened.labels[r]), [epoch, rows], [tf.uint8, tf.int64]
        )
        size = batch_size if drop_remainder or records % batch_size == 0 else None
        return tf.ensure_shape(images, [size, *opened.image_shape]), tf.ensure_shape(labels, [size])

    dataset = (
        tf.data.Dataset.range(1)
        .map(next_epoch)
        .flat_map(every_batch)
        .enumerate()
        .map(gather, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
        .apply(tf.data.experimental.assert_cardinality(batches))
    )
    dataset.class_names = list(opened.manifest.class_names)
    dataset.num_classes = len(opened.manifest.class_names)
    return dataset
