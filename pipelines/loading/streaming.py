"""Which shards of a cache in an object store are needed, and which come next. Imports no TensorFlow."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager

from joulecache.pipelines.cache.cache import Cache
from joulecache.pipelines.cache.data_file import DataFile
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.local_copy import find_remote
from joulecache.pipelines.cache.manifest import Split
from joulecache.pipelines.cache.streamed import StreamedCache, stream
from joulecache.pipelines.loading.config import LoadConfig, Verify
from joulecache.pipelines.loading.order import Order
from joulecache.pipelines.loading.steps import Batches

_LOG = logging.getLogger("joulecache")
_AHEAD_BYTES = 512 << 20
"""What is fetched ahead, if that is more than the next group of shards."""

Group = tuple[DataFile, ...]


class Stream:
    """The shards that one host needs, step by step: those of the step's groups and views, and those that follow, also in the next epoch.

    Raises:
        CacheError: The limit of the local files is too low for two groups of shards.
    """

    def __init__(self, cache: StreamedCache, entry: Split, order: Order, batches: Batches, views: int) -> None:
        self._views, self._shards, self._entry, self._order, self._batches = views, cache.shards, entry, order, batches
        self._room = cache.shards.limit_bytes - cache.manifest.index.bytes
        self._step: tuple[Group, ...] = ()
        self._ahead: Group = ()
        files = entry.variant_files(0)
        largest = max(file.bytes for file in entry.files)
        window = (
            0
            if order.shuffle is None
            else order.block * order.window * sum(each.bytes for each in files) // order.records
        )
        needed = min(2 * min(views, entry.variants) * (largest + window), sum(file.bytes for file in entry.files))
        if needed > self._room:
            raise CacheError(
                f"{cache.location} is read in groups of shards, of which two need {needed / 1e9:,.2f} GB on this machine, got "
                f"{max(self._room, 0) / 1e9:,.2f} GB: raise stage_limit_bytes, or rebuild the cache with more --shards"
            )

    def holding(self, epoch: int, start: int, stop: int) -> AbstractContextManager[None]:
        """Keep the shards of positions `start` to `stop` - 1 of an epoch on this machine, and fetch those that follow."""
        step = tuple(self._of(epoch, group) for group in self._order.groups(epoch, start, stop))
        if step != self._step:
            self._step, self._ahead = step, self._next(epoch, start, step)
        return self._shards.holding([file for group in step for file in group], self._ahead)

    def _next(self, epoch: int, start: int, step: tuple[Group, ...]) -> Group:
        chosen: dict[str, DataFile] = {}
        total = sum(file.bytes for group in step for file in group)
        names = {file.name for group in step for file in group}
        for number, group in enumerate(itertools.islice(self._groups(epoch, start), len(step), None)):
            new = {file.name: file for file in group if file.name not in names and file.name not in chosen}
            total += sum(file.bytes for file in new.values())
            ahead = sum(file.bytes for file in chosen.values())
            if total > self._room or (number and ahead >= _AHEAD_BYTES):
                break
            if number > len(self._entry.files):  # all are here
                break
            chosen |= new
        return tuple(chosen.values())

    def _groups(self, epoch: int, start: int) -> Iterator[Group]:
        """Yield the groups from a position on, without end."""
        end = self._batches.first + self._batches.records
        for each in itertools.count(epoch):
            first = start if each == epoch else self._batches.first
            yield from (self._of(each, group) for group in self._order.groups(each, first, end))

    def _of(self, epoch: int, group: list[int]) -> Group:
        variants = map(self._entry.variant_of, self._entry.draws_of(epoch, self._views))
        return tuple(self._entry.variant_files(variant)[number] for variant in variants for number in group)


def open_remote(url: str, config: LoadConfig, verify: Verify, stage_limit_bytes: int) -> tuple[Cache, LoadConfig]:
    """Open a cache in an object store for reading as `config` says; return it and the config with its shuffle.

    A full shuffle needs all of the cache on this machine. Others fetch shards as they need them, and a cache that does not fit is
    shuffled in blocks by default.

    Raises:
        CacheError: There is no cache, or a full shuffle needs more than `stage_limit_bytes`.
    """
    remote = find_remote(url, stage_limit_bytes)
    if config.shuffled is True and not remote.fits:
        if config.shuffle is True or config.balance is not None:
            what, way = ("a full shuffle", 'use shuffle="blocks", or ') if config.balance is None else ("balance", "")
            raise CacheError(
                f"{remote.url} has {remote.bytes / 1e9:,.2f} GB, but at most {stage_limit_bytes / 1e9:,.2f} GB may be on this machine, "
                f"and {what} needs all of it: {way}raise stage_limit_bytes"
            )
        _LOG.warning(
            f"{remote.url} has {remote.bytes / 1e9:,.2f} GB, more than stage_limit_bytes, {stage_limit_bytes / 1e9:,.2f} GB: it is read "
            'shard by shard, with shuffle="blocks"'
        )
        config = dataclasses.replace(config, shuffle="blocks")
    if config.shuffled is True or (verify == "full" and remote.fits):
        return Cache(url, remote.copy(), remote.manifest), config
    return stream(remote), config
