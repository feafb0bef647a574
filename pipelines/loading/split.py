"""One split of a cache, opened for reading: images and targets by row, with the ops after the cut applied."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.cache.cache import Cache
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.mapped_images import OneArray
from joulecache.pipelines.loading.array_pool import ArrayPool
from joulecache.pipelines.loading.decoding import DecodingThreads
from joulecache.pipelines.loading.spatial import MaskColumn, SpatialColumn, open_spatial
from joulecache.pipelines.loading.targets import Selection, TargetColumn, open_targets, select
from joulecache.pipelines.source.feature import as_numbers
from joulecache.transforms.chain import (
    apply_batch_ops,
    apply_to_each,
    output_channels,
    output_size,
    parse,
)
from joulecache.transforms.kernels import put
from joulecache.transforms.ops import Decode, Op
from joulecache.transforms.ops.batch import mix_shares
from joulecache.transforms.randomness import word_table
from joulecache.transforms.targets import apply_to_each_with_targets, check_moves

Images = NDArray[np.uint8] | NDArray[np.float32]
Targets = tuple[NDArray[Any], ...]
"""The targets of a batch, in the order of a `Selection`; boxes are two arrays, the boxes and their classes."""


class CachedSplit:
    """One split of a cache, opened for reading by row.

    Files that an update replaces while this is open are still read as they were.

    Attributes:
        name: ``train``, ``val`` or ``test``.
        cache: The cache.
        entry: The split's entry in the manifest.
        chain: The chain of the split.
        seed: Seed of the ops after the cut.
        image_shape: (height, width, channels) of the images after the ops.
        selection: Which targets `batch` returns.
        targets: The targets that `batch` returns.
        key_hashes: uint64 ``[N]``, memory-mapped: they determine the draws of each record.
        soft_labels: Whether `batch` returns class shares instead of classes, because the training chain mixes images. It holds
            for every split, so that all fit one loss.
    """

    def __init__(
        self,
        cache: Cache,
        split: str,
        seed: int | None = None,
        ops: Mapping[str, type[Op]] | None = None,
        selection: Selection | None = None,
    ) -> None:
        """Map the files of a split; the seed defaults to the cache's, the selection to all targets.

        Raises:
            CacheError: The split has no records, its images vary in size, an op is missing, or a file is damaged.
        """
        self.name, self.cache = split, cache
        self.entry = cache.split(split)
        self.chain = cache.chain(split, ops)
        self.soft_labels = parse(cache.manifest.chain, ops).mixes
        self.seed = cache.manifest.seed if seed is None else seed
        height, width, channels = self.entry.image_shape
        if height is None or width is None:
            raise CacheError(
                f"the {split} images of {cache.location!r} vary in size: batches need one size, cache them with a resize or crop"
            )
        size = output_size(self.chain.suffix, height, width)
        self.image_shape = (*size, output_channels(self.chain.ops))
        self._decode = Decode(channels=channels).pixels
        self._threads = None if cache.manifest.encoding == "raw" else DecodingThreads()
        self._arrays = ArrayPool()
        self._variants = [cache.images(split, variant) for variant in range(self.entry.variants)]
        self._guard = cache.guard(split)
        rows = cache.rows(split)
        self.key_hashes: NDArray[np.uint64] = as_numbers(rows["key_hash"])
        self.selection = selection = selection or select(cache.manifest.features, None, None)
        unmoved = open_targets(cache, split, selection, soft=self.soft_labels)
        if len(unmoved) < len(selection.names):
            check_moves(self.chain.on_images)
        spatial = open_spatial(cache, split, selection.names, size, self._threads)
        self._spatial = tuple(spatial.values())
        columns: dict[str, TargetColumn | SpatialColumn] = {**unmoved, **spatial}
        self.targets = tuple(columns[name] for name in selection.names)

    def __len__(self) -> int:
        return len(self.key_hashes)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the split's files, of all variants."""
        return sum(file.bytes for file in self.entry.files)

    @property
    def spatial_bytes(self) -> int:
        """Bytes of the loaded masks, boxes and points of one image."""
        tensors = [tensor for column in self._spatial for tensor in column.tensors]
        return sum(math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize for tensor in tensors)

    @property
    def arrays(self) -> list[OneArray]:
        """The images of each variant as an array, if they are loaded as they are; empty if not."""
        arrays = [variant for variant in self._variants if isinstance(variant, OneArray)]
        as_they_are = not self.chain.suffix and not self._spatial and len(arrays) == len(self._variants)
        return arrays if as_they_are else []

    def check_views(self, views: int) -> None:
        """Raise ValueError unless `batch` can return several views that differ."""
        if views == 1:
            return
        if self.chain.mixes:
            raise ValueError(
                f"views must be 1 with mixup and cutmix, which mix the classes of each view differently, got {views}"
            )
        if self._spatial:
            raise ValueError(
                f"views must be 1 with {self._spatial[0].name!r}, which moves with the pixels of each view, got {views}: leave it "
                "out with targets"
            )
        if views > self.entry.variants and not any(op.random for op in self.chain.on_images):
            raise ValueError(
                f"views of a record in {self.name!r} must differ, but no op after the cut is random, and the cache has "
                f"{self.entry.variants} {'variant' if self.entry.variants == 1 else 'variants'}, got views={views}"
            )

    def check(self) -> None:
        """Raise CacheError, now and in all later reads, if a file was truncated or grew since it was mapped."""
        self._guard.check()

    def read_ahead(self, epoch: int, start: int, stop: int) -> None:
        """Let the kernel read rows `start` to `stop` - 1 of the epoch's variant in the background."""
        self._guard.require_unchanged()
        variant = self.entry.variant_of(epoch)
        self._variants[variant].read_ahead(start, stop)
        for column in self._spatial:
            if isinstance(column, MaskColumn):
                column.variants[variant].read_ahead(start, stop)

    def disable_readahead(self) -> None:
        """Make the kernel read only what `read_ahead` and batches request."""
        masks = [variant for column in self._spatial if isinstance(column, MaskColumn) for variant in column.variants]
        for mapped in (*self._variants, *masks):
            mapped.disable_readahead()

    def images(self, rows: NDArray[np.int64], epoch: int) -> NDArray[np.uint8]:
        """Return images of an epoch, uint8 ``[B, H, W, C]``, by row, int64 ``[B]``, before the ops on whole batches.

        The ops after the cut run on views of the mapped files, so each image is copied once, to its position in the batch.

        Raises:
            IndexError: A row is out of range.
        """
        return self._load(rows, epoch, ())[0]

    def places(self, rows: NDArray[np.int64], epoch: int) -> tuple[int, NDArray[np.int64], Targets]:
        """Return the variant of an epoch, where some rows are in its array of `arrays`, and their targets."""
        self._guard.require_unchanged()
        variant = self.entry.variant_of(epoch)
        array = self.arrays[variant]
        return (
            variant,
            array.places(rows),
            tuple(column.take(rows) for column in self.targets if isinstance(column, TargetColumn)),
        )

    def _load(
        self, rows: NDArray[np.int64], draws: int | NDArray[np.int64], spatial: Sequence[SpatialColumn]
    ) -> tuple[NDArray[np.uint8], dict[str, tuple[NDArray[Any], ...]]]:
        """Return `images`, and the arrays of each of the targets that move with their pixels."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows must be from 0 to {len(self) - 1}, got {rows.min()} to {rows.max()}")
        self._guard.require_unchanged()  # tf.data keeps reading ahead after an error
        variant, empty, suffix = self._variant_of(draws), self._arrays.empty, self.chain.on_images
        batch: NDArray[np.uint8] = empty((len(rows), *self.image_shape), np.uint8)
        if not suffix or not len(rows):
            return self._load_unchanged(rows, variant, batch, spatial)
        images = _read(self._stored, rows, variant)
        words = word_table(suffix, self.chain.cut, self.seed, self.key_hashes[rows], draws)
        if not spatial:
            _put(batch, apply_to_each(suffix, images, words))
            return batch, {}
        targets = [*zip(*(_read(column.targets, rows, variant) for column in spatial), strict=True)]
        images, moved = apply_to_each_with_targets(suffix, images, words, targets)
        _put(batch, images)
        stacked = zip(spatial, zip(*moved, strict=True), strict=True)
        return batch, {column.name: column.stacked(found, empty) for column, found in stacked}

    def _variant_of(self, draws: int | NDArray[np.int64]) -> int | NDArray[np.int64]:
        """Return the variant of all rows, or the variants of each, given the draws of all or each."""
        if isinstance(draws, int):
            return self.entry.variant_of(draws)
        distinct, places = np.unique(draws, return_inverse=True)
        variants = np.array([self.entry.variant_of(draw) for draw in distinct.tolist()], np.int64)
        return variants[places] if len({*variants.tolist()}) > 1 else int(variants[:1].sum())

    def _load_unchanged(
        self,
        rows: NDArray[np.int64],
        variant: int | NDArray[np.int64],
        batch: NDArray[np.uint8],
        spatial: Sequence[SpatialColumn],
    ) -> tuple[NDArray[np.uint8], dict[str, tuple[NDArray[Any], ...]]]:
        """Copy cached images to a batch; return it, and the arrays of each of the targets that move with their pixels."""
        empty = self._arrays.empty
        if isinstance(variant, int):
            self._take(rows, variant, batch)
            return batch, {column.name: column.take(rows, variant, empty) for column in spatial}
        for one in np.unique(variant).tolist():
            places = np.flatnonzero(variant == one)
            if places[-1] - places[0] < len(places):  # such as the images of one view
                self._take(rows[places], one, batch[places[0] : places[-1] + 1])
            else:
                _put([batch[place] for place in places.tolist()], self._stored(rows[places], one))
        return batch, {column.name: column.stacked(_read(column.targets, rows, variant), empty) for column in spatial}

    def _take(self, rows: NDArray[np.int64], variant: int, batch: NDArray[np.uint8]) -> None:
        """Copy cached images to a batch."""
        if self._threads:
            _put(batch, self._stored(rows, variant))
        elif len(rows):
            self._variants[variant].take(rows, batch)

    def _stored(self, rows: NDArray[np.int64], variant: int) -> Sequence[Any]:
        """Return cached images, raw ones without a copy."""
        if self._threads is None:
            return self._variants[variant].views(rows)
        # Views of one record are decoded once.
        distinct, firsts, places = np.unique(rows, return_index=True, return_inverse=True)
        images = self._threads.decode(self._decode, self._variants[variant].views(distinct))
        return [  # custom ops may write to them
            images[place] if firsts[place] == number else images[place].copy()
            for number, place in enumerate(places.tolist())
        ]

    def batch(
        self,
        rows: NDArray[np.int64],
        epoch: int,
        number: int,
        *,
        draws: int | NDArray[np.int64] | None = None,
        views: int = 1,
    ) -> tuple[Images, Targets]:
        """Return a batch of an epoch by row, int64 ``[B]``, with all ops applied; ops on whole batches draw by its `number`.

        Args:
            rows: The rows.
            epoch: The epoch.
            number: Number of the batch.
            draws: The draws of all rows, or of each, int64 ``[B]``; None for those of the epoch.
            views: Images per row, V. Those of draws n have draws n * V to n * V + V - 1.

        Returns:
            Images ``[V * B, H, W, C]``, view by view, uint8, or float32 after to_float; and the targets, of which classes are int64
            ``[B]``, or float32 ``[B, K]`` if `soft_labels`.
        """
        ops = self.chain.on_batches
        words = word_table(ops, len(self.chain.ops) - len(ops), self.seed, [number], epoch)[0].tolist()
        draws = epoch if draws is None else draws
        if views == 1:
            loaded, moved = self._load(rows, draws, self._spatial)
        else:
            of_views = np.broadcast_to(draws, len(rows)) * views + np.arange(views)[:, None]
            loaded, moved = self._load(np.tile(rows, views), of_views.reshape(-1), ())
        images = apply_batch_ops(ops, loaded, words, self._arrays.empty)
        targets = tuple(
            array
            for column in self.targets
            for array in (moved[column.name] if isinstance(column, SpatialColumn) else (column.take(rows),))
        )
        if self.soft_labels:
            targets = tuple(mix_shares(ops, shares, words, self.image_shape[:2]) for shares in targets)
        return images, targets


def _read(
    read: Callable[[NDArray[np.int64], int], Sequence[Any]],
    rows: NDArray[np.int64],
    variant: int | NDArray[np.int64],
) -> Sequence[Any]:
    """Return what `read` returns for some rows of a variant, or of one variant for each."""
    if isinstance(variant, int):
        return read(rows, variant)
    found: list[Any] = [None] * len(rows)
    for one in np.unique(variant).tolist():
        places = np.flatnonzero(variant == one)
        for place, each in zip(places.tolist(), read(rows[places], one), strict=True):
            found[place] = each
    return found


def _put(batch: NDArray[np.uint8] | Sequence[NDArray[np.uint8]], images: Sequence[Any]) -> None:
    """Copy images to their places in a batch."""
    for place, image in zip(batch, images, strict=True):
        put(place, image)
