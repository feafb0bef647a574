"""One split of a cache, opened for reading: the images and labels of any rows, with the ops after the cut run on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.cache.local_copy import staged
from joulecache.pipelines.cache.manifest import CacheError, open_manifest, read_index
from joulecache.pipelines.cache.shards import SPLITS, DataFile
from joulecache.pipelines.loading.mapped_images import open_stored
from joulecache.pipelines.loading.memory import BatchMemory
from joulecache.transforms.chain import (
    apply_batch_ops,
    apply_to_each,
    mix_labels,
    output_channels,
    output_size,
    parse,
)
from joulecache.transforms.images import as_array, put
from joulecache.transforms.ops import Decode, Op
from joulecache.transforms.randomness import word_table


class CachedSplit:
    """One split of a cache, opened for reading by row.

    `labels` is int64 ``[N]``, `key_hashes` uint64 ``[N]``, both mapped; `image_shape` is the (H, W, C) that `images` gives. Where the
    training chain mixes images, `batches` gives soft labels, of every split. Files that are replaced while this is open are still
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
        self.name, self.folder = split, staged(cache)
        self.manifest = open_manifest(self.folder)
        self.listed = self.manifest.split(split)
        self.chain = self.manifest.parsed_chain(split, ops)
        self.soft_labels = parse(self.manifest.chain, ops).mixes
        self.seed = self.manifest.seed if seed is None else seed
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1, got {seed!r}")
        height, width, channels = self.listed.image_shape
        if height is None or width is None:
            raise CacheError(
                f"the {split} images of {str(cache)!r} vary in size: batches need one size, cache them with a resize or crop"
            )
        self.image_shape = (*output_size(self.chain.suffix, height, width), output_channels(self.chain.ops))
        self._decode: Callable[[Any], Any] | None = None
        if self.manifest.encoding != "raw":
            decode = Decode(channels=channels)
            self._decode = lambda data: decode.pixels(bytes(data))
            self._decoders = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "decode")
        self._memory = BatchMemory()
        shape = None if self._decode else (height, width, channels)
        files = [self.listed.variant_files(variant) for variant in range(self.listed.variants)]
        self._variants = [open_stored(self.folder, of_variant, shape) for of_variant in files]
        self._inodes = {file.name: (self.folder / file.name).stat().st_ino for file in self.listed.files}
        self._changed: str | None = None
        index = read_index(self.folder, self.manifest).slice(self.manifest.first_row(split), self.listed.records)
        self.labels: NDArray[np.int64] = index["label"].to_numpy()
        self.key_hashes: NDArray[np.uint64] = index["key_hash"].to_numpy()

    def __len__(self) -> int:
        return len(self.labels)

    def check(self) -> None:
        """Raise CacheError, here and in all that reads, if a file was cut or grew since it was mapped.

        To read behind its end would kill the process. A file that was deleted or replaced is not missed: what is mapped stays.
        """
        self._changed = next(filter(None, map(self._change_of, self.listed.files)), None)
        self._refuse_changed()

    def _change_of(self, file: DataFile) -> str | None:
        path = self.folder / file.name
        try:
            found = path.stat()
        except OSError:
            return None
        if found.st_size == file.bytes or found.st_ino != self._inodes[file.name]:
            return None
        return f"{path} has {found.st_size} bytes, its manifest says {file.bytes}: it was changed while it was read, build the cache again"

    def _refuse_changed(self) -> None:
        if self._changed:
            raise CacheError(self._changed)

    def will_need(self, epoch: int, start: int, stop: int) -> None:
        """Have the kernel read a range of rows ahead, as the epoch has them."""
        self._refuse_changed()
        self._variants[epoch % len(self._variants)].will_need(start, stop)

    def expect_random(self) -> None:
        """Tell the kernel to read nothing that `will_need` or a batch does not ask for."""
        for stored in self._variants:
            stored.expect_random()

    def images(self, rows: NDArray[np.int64], epoch: int) -> NDArray[np.uint8]:
        """Return the images of those rows as the epoch has them before ops on batches, uint8 ``[B, H, W, C]``.

        The ops after the cut run on views of the mapped files, so that each image is copied once, into its place in the batch. Raises
        IndexError for rows that are not there.
        """
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows must be from 0 to {len(self) - 1}, got {rows.min()} to {rows.max()}")
        self._refuse_changed()  # tf.data reads ahead, also behind an error
        stored = self._variants[epoch % len(self._variants)]
        batch: NDArray[np.uint8] = self._memory.array((len(rows), *self.image_shape), np.uint8)
        suffix = self.chain.on_images
        if not len(rows):
            return batch
        if not suffix and not self._decode:
            stored.take(rows, batch)
            return batch
        images = stored.views(rows)
        if self._decode:
            images = list(self._decoders.map(self._decode, images))
        if suffix:
            words = word_table(suffix, self.chain.cut, self.seed, self.key_hashes[rows], epoch)
            images = apply_to_each(suffix, images, words)
        for place, image in zip(batch, map(as_array, images), strict=True):
            put(place, image)
        return batch

    def batch(
        self, rows: NDArray[np.int64], epoch: int, number: int
    ) -> tuple[NDArray[np.uint8] | NDArray[np.float32], NDArray[np.int64] | NDArray[np.float32]]:
        """Return images ``[B, H, W, C]`` and labels of those rows, the epoch's batch of that number, with all ops run.

        Images are uint8, or float32 behind to_float; labels int64 ``[B]``, or soft, float32 ``[B, K]``.
        """
        ops = self.chain.on_batches
        words = word_table(ops, len(self.chain.ops) - len(ops), self.seed, [number], epoch)[0].tolist()
        images = apply_batch_ops(ops, self.images(rows, epoch), words, self._memory.array)
        labels = self.labels[rows]
        if not self.soft_labels:
            return images, labels
        classes = len(self.manifest.class_names)
        return images, mix_labels(ops, labels, classes, words, self.image_shape[:2])
