"""Read the steps of epochs as NumPy arrays. Imports no TensorFlow."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.cache.cache import Cache
from joulecache.pipelines.cache.streamed import StreamedCache
from joulecache.pipelines.core.memory import memory_limit
from joulecache.pipelines.loading.balancing import Balanced, balance
from joulecache.pipelines.loading.config import LoadConfig
from joulecache.pipelines.loading.following import NewestSplit
from joulecache.pipelines.loading.order import Order, Rows
from joulecache.pipelines.loading.permutation import VERSION
from joulecache.pipelines.loading.spatial import SpatialColumn
from joulecache.pipelines.loading.split import CachedSplit, Images, Targets
from joulecache.pipelines.loading.steps import Batches, divide, first_batch
from joulecache.pipelines.loading.streaming import Stream
from joulecache.pipelines.loading.subset import Subset, digest
from joulecache.pipelines.loading.targets import packed, select
from joulecache.pipelines.loading.where import choose
from joulecache.pipelines.source.feature import Named
from joulecache.transforms.ops import Op

_LOG = logging.getLogger("joulecache")

FINGERPRINT_BITS = 31


@dataclass(frozen=True)
class StepReader:
    """Reads the batches of one host, beginning at `start`, an (epoch, batch).

    Attributes:
        split: The split.
        order: The order of its rows.
        host: Number of the host.
        batches: The host's batches.
        start: Where it begins.
        stream: The shards of a cache in an object store.
        views: Images of each record, V.
        newest: The split that each epoch reads instead of `split`, if the draws may advance meanwhile.
    """

    split: CachedSplit
    order: Order
    host: int
    batches: Batches
    start: tuple[int, int]
    views: int = 1
    stream: Stream | None = None
    newest: NewestSplit | None = None

    def read(self, epoch: int, step: int, *, sequential: bool) -> tuple[Images, Targets]:
        """Return the K batches of a step; in the first epoch without the batches before `start`.

        Args:
            epoch: The epoch.
            step: The step; the files are checked in the first one of each epoch.
            sequential: Whether the previous step was just read, and has read this one ahead.

        Returns:
            Images ``[V, K, B, H, W, C]`` and targets ``[K, B, *shape]``.

        Raises:
            CacheError: A file was truncated or grew.
        """
        split = self._split_of(epoch, step)
        (rows, draws), first, shape = self._picks(split, epoch, step, sequential=sequential)
        place = self.batches.first + first * self.batches.batch_size
        with self.stream.holding(epoch, place, place + len(rows)) if self.stream else nullcontext():
            # Batch numbers are the same on every host, but the draws for mixing must differ.
            number = (self.host << 32) + first
            images, targets = split.batch(rows, epoch, number, draws=draws, views=self.views)
        return images.reshape(self.views, *shape, *images.shape[1:]), stacked(targets, shape)

    def read_places(self, epoch: int, step: int, *, sequential: bool) -> tuple[int, NDArray[np.int64], Targets]:
        """Return the variant and the places of the images in its array, int64 ``[K, B]``, in place of the images of `read`."""
        (rows, _), _, shape = self._picks(self.split, epoch, step, sequential=sequential)
        variant, places, targets = self.split.places(rows, epoch)
        return variant, places.reshape(shape), stacked(targets, shape)

    def _split_of(self, epoch: int, step: int) -> CachedSplit:
        if self.newest is None:
            return self.split
        return self.newest.of_epoch(epoch, begins=step == 0 and (epoch, 0) >= self.start)

    def _picks(
        self, split: CachedSplit, epoch: int, step: int, *, sequential: bool
    ) -> tuple[tuple[Rows, int | Rows], int, tuple[int, int]]:
        """Return the rows of a step and their draws, its first batch, and (batches, images of each)."""
        batches = self.batches
        if step == 0:
            split.check()
        first, end = batches.of_step(step)
        if epoch == self.start[0]:
            first = min(max(first, self.start[1]), end)
        size = batches.size(first)
        place = batches.first + first * batches.batch_size
        stop = place + (end - first) * size
        for ahead in self.order.read_ahead(epoch, place, stop, first=step == 0 or not sequential):
            for draw in split.entry.draws_of(epoch, self.views):
                split.read_ahead(draw, *ahead)
        return self.order.picks(epoch, place, stop), first, (end - first, size)

    def arrange(self, views: Sequence[Any], tensors: Sequence[Any]) -> Any:
        """Return `arrange` of the images of each view and the tensors of all targets."""
        return arrange(self.split, views, tensors)

    @property
    def gathers(self) -> bool:
        """Whether TensorFlow can gather the images, as they are in files that stay."""
        one_draw = self.views == 1 and (self.split.entry.variants == 1 or not isinstance(self.order, Balanced))
        return bool(self.split.arrays) and self.stream is None and self.newest is None and one_draw

    @property
    def class_names(self) -> list[str]:
        """The names of the classes of the only target; empty for several or others."""
        features = [self.split.cache.manifest.features[name] for name in self.split.selection.targets]
        named = [feature.names for feature in features if isinstance(feature, Named)]
        return list(named[0]) if len(features) == len(named) == 1 else []

    @property
    def fingerprint(self) -> int:
        """A number of `FINGERPRINT_BITS` bits for everything that determines the meaning of a step's number."""
        parts = [
            VERSION,
            str(self.split.chain),
            [file.sha256 for file in self.split.entry.files] if self.newest is None else self._records,
            repr(self.order),
            repr(self.batches),
            self.host,
            self.start,
            repr(self.split.selection),
            *([self.views] if self.views > 1 else []),
        ]
        digest = hashlib.sha256(json.dumps(parts).encode()).digest()
        return int.from_bytes(digest, "big") % (1 << FINGERPRINT_BITS)

    @property
    def _records(self) -> str:
        """What does not change while the draws of a cache advance: its records, in their order."""
        return f"follow {hashlib.sha256(self.split.key_hashes.tobytes()).hexdigest()}"


def stacked(targets: Targets, shape: tuple[int, int]) -> Targets:
    """Return targets ``[K * B, ...]`` as ``[K, B, ...]``."""
    return tuple(each.reshape(*shape, *each.shape[1:]) for each in targets)


def arrange(split: CachedSplit, views: Sequence[Any], tensors: Sequence[Any]) -> Any:
    """Return the images of each view and the tensors of all targets in the structure that `load` yields.

    Keras multiplies losses and weights from the last axis: weights ``[B]`` would weight the columns of masks. With targets that
    move with the pixels, weights therefore have the structure of the targets, broadcast over all losses of an image.
    """
    selection, columns = split.selection, split.targets
    images = views[0] if len(views) == 1 else tuple(views)
    if selection.sample_weight is None:
        return selection.arrange(images, packed(columns, tensors))
    *tensors, weights = tensors
    columns = columns[:-1]
    if any(isinstance(column, SpatialColumn) for column in columns):
        each = [weights[(..., *[None] * tensor.losses)] for column in columns for tensor in column.tensors]
        weights = selection.structure(packed(columns, each))
    return selection.arrange(images, packed(columns, tensors), weights)


def open_reader(
    cache: Cache,
    config: LoadConfig,
    ops: Mapping[str, type[Op]] | None = None,
    reopen: Callable[[], Cache] | None = None,
) -> StepReader:
    """Open a split for reading by step; `reopen` opens the newest state of the cache, to follow it.

    Raises:
        CacheError: The split cannot be read.
        ValueError: The config does not fit it.
    """
    selection = select(cache.manifest.features, config.targets, config.sample_weight)

    def open_split(cache: Cache) -> CachedSplit:
        split = CachedSplit(cache, config.split, config.seed, ops, selection)
        if config.shuffled == "blocks":
            split.disable_readahead()
        return split

    split = open_split(cache)
    split.check_views(config.views)
    order = _order(split, config)
    batches = divide(split, config, order.records)
    start = first_batch(config, batches.count)
    stream = Stream(cache, split.entry, order, batches, config.views) if isinstance(cache, StreamedCache) else None
    newest = None if reopen is None else NewestSplit(split, reopen, open_split)
    return StepReader(split, order, config.hosts[0], batches, start, config.views, stream, newest)


def _order(split: CachedSplit, config: LoadConfig) -> Order:
    files = tuple(file.records for file in split.entry.variant_files(0))
    chosen = None if config.where is None else choose(split.cache, split.name, config.where)
    if config.balance is not None:
        return balance(split.cache, split.name, config.balance, chosen, split.seed)
    if chosen is None:
        return Order(len(split), split.seed, *_shuffle(split, len(split), config), files)
    counts = np.diff(np.searchsorted(chosen, np.cumsum([0, *files])))
    shuffle = _shuffle(split, len(chosen), config)
    return Subset(len(chosen), split.seed, *shuffle, tuple(counts.tolist()), digest(chosen), chosen)


def _shuffle(split: CachedSplit, records: int, config: LoadConfig) -> tuple[Literal["all", "blocks"] | None, int, int]:
    """Return the shuffle, block and window of the `Order` of some records."""
    if config.shuffled != "blocks":
        return "all" if config.shuffled else None, 1, 1
    image_bytes = split.stored_bytes / (records * split.entry.variants)
    block = max(1, round(config.budget.block_bytes / image_bytes))
    return "blocks", block, max(1, round(config.budget.window_bytes / image_bytes / block))


def note_slow_shuffle(reader: StepReader, config: LoadConfig) -> None:
    """Log a full shuffle of images that do not fit in memory."""
    stored_bytes = reader.split.stored_bytes
    limit = memory_limit() if config.budget.memory_bytes is None else config.budget.memory_bytes
    if reader.order.shuffle == "all" and stored_bytes > limit:
        _LOG.warning(
            f"the images in {str(reader.split.cache.folder)!r} have {stored_bytes / 1e9:.1f} GB, but this process may use "
            f"{limit / 1e9:.1f} GB of memory: a full shuffle causes small random reads from disk in every epoch; "
            'use shuffle="blocks"'
        )
