"""Splits of a cache as sequences of records. Imports no TensorFlow."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from functools import cached_property
from typing import Any, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.cache import cache as stored
from joulecache.pipelines.cache.cache import CacheLike
from joulecache.pipelines.cache.local_copy import STAGE_LIMIT_BYTES
from joulecache.pipelines.core.checks import check_integer
from joulecache.pipelines.loading.config import LoadConfig
from joulecache.pipelines.loading.reader import arrange
from joulecache.pipelines.loading.split import CachedSplit
from joulecache.pipelines.loading.targets import select
from joulecache.pipelines.loading.where import Where, choose
from joulecache.transforms.ops import Op


class Cache(stored.Cache):
    """A cache on this machine, with its manifest checked; `open_cache` returns one. ``cache["train"]`` are the records of a split.

    Files that an update deletes stay readable where they are mapped; open the cache again to see its new manifest.

    Attributes:
        location: Where the cache was opened: a folder, or a URL in an object store.
        folder: The folder on this machine that holds its files: `location`, or the local copy of a remote cache.
        manifest: What the cache holds.
    """

    def __getitem__(self, split: str) -> Records:
        """Return the records of a split in epoch 0."""
        return Records(self, split)

    def records(
        self,
        split: str,
        *,
        epoch: int = 0,
        seed: int | None = None,
        targets: str | Sequence[str] | None = None,
        sample_weight: str | None = None,
        where: Where | None = None,
        views: int = 1,
        ops: Mapping[str, type[Op]] | None = None,
    ) -> Records:
        """Return the records of a split in an epoch, as `Records` describes them."""
        return Records(
            self,
            split,
            epoch=epoch,
            seed=seed,
            targets=targets,
            sample_weight=sample_weight,
            where=where,
            views=views,
            ops=ops,
        )


@dataclass(frozen=True, eq=False, repr=False)
class Records(Sequence[Any]):
    """The records of a split in an epoch, as a sequence in the order of the cache.

    A record is ``(image, target)``, as an element of a batch of `batches`: an image, uint8 ``[H, W, C]``, float32 after to_float, and
    the class, int64, or another target; with several targets a dict of them by name, without any the image alone. It has the
    pixels and targets that `load` yields for this record in this epoch.

    It can be read by several threads and, forked or pickled, by several processes.

    Attributes:
        cache: The cache.
        split: ``train``, ``val`` or ``test``.
        epoch: The epoch, which determines the variant and the draws of the ops after the cut.
        seed: Seed of the draws; None for the cache's.
        targets: Names of the targets; None for all, but for `sample_weight`.
        sample_weight: Name of a `Value` that becomes the third element of a record.
        where: The records, as in `load`; None for all. A function must be one that can be pickled, to go to other processes.
        views: Images of each record, as in `load`; several are a tuple.
        ops: Custom ops in the chain, by name.

    Raises:
        CacheError: The split cannot be read.
        ValueError: An argument is invalid, or the chain has mixup or cutmix, which need batches.
    """

    cache: stored.Cache
    split: str
    _: KW_ONLY
    epoch: int = 0
    seed: int | None = None
    targets: str | Sequence[str] | None = None
    sample_weight: str | None = None
    where: Where | None = None
    views: int = 1
    ops: Mapping[str, type[Op]] | None = None

    def __post_init__(self) -> None:
        check_integer("epoch", self.epoch, 0)
        if self._opened.chain.mixes:
            raise ValueError(
                f"{str(self._opened.chain)!r} mixes the images of batches, not single records: use batches"
            )
        self._opened.check_views(self.views)
        self._rows  # noqa: B018 (raises for a `where` that selects nothing)

    @property
    def _config(self) -> LoadConfig:
        return LoadConfig(
            self.split,
            1,
            seed=self.seed,
            targets=self.targets,
            sample_weight=self.sample_weight,
            where=self.where,
            views=self.views,
        )

    @cached_property
    def _opened(self) -> CachedSplit:
        config = self._config
        selection = select(self.cache.manifest.features, config.targets, config.sample_weight)
        return CachedSplit(self.cache, config.split, config.seed, self.ops, selection)

    @cached_property
    def _rows(self) -> NDArray[np.int64] | range:
        return range(len(self._opened)) if self.where is None else choose(self.cache, self.split, self.where)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        if isinstance(index, slice):
            return self.__getitems__(range(len(self))[index])
        [record] = self.__getitems__([index])
        return record

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[Any]:
        """Return several records, which is faster than one by one; PyTorch's `DataLoader` calls this."""
        rows = [self._rows[operator.index(index)] for index in indices]
        images, targets = self._opened.batch(np.array(rows, np.int64), self.epoch, 0, views=self.views)
        views = images.reshape(self.views, len(rows), *images.shape[1:])
        return [arrange(self._opened, [*views[:, row]], [each[row] for each in targets]) for row in range(len(rows))]

    def __repr__(self) -> str:
        return f"Records({self.cache.location!r}, {self.split!r}, epoch={self.epoch})"

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle what opens the split again."""
        chosen = {field.name: getattr(self, field.name) for field in fields(self)}
        return _open_records, (chosen,)


def _open_records(chosen: Mapping[str, Any]) -> Records:
    return Records(**chosen)


def open_cache(cache: CacheLike, *, stage_limit_bytes: int = STAGE_LIMIT_BYTES) -> Cache:
    """Open a cache: read its manifest, and check it and the sizes of its files.

    A cache in an object store is first copied to ``$JOULECACHE_STAGE``, by default ``~/.cache/joulecache``; files that are
    already there are not copied again.

    Args:
        cache: A folder, the URL of a cache in an object store, or an opened `Cache`, which is returned unchanged.
        stage_limit_bytes: The largest cache to copy from an object store.

    Returns:
        The opened cache, whose splits are sequences: ``cache["train"]``. Functions that take it do not read its manifest again.

    Raises:
        CacheError: There is no cache, its manifest cannot be trusted, or it cannot be copied.
    """
    opened = stored.open_cache(cache, stage_limit_bytes=stage_limit_bytes)
    return opened if isinstance(opened, Cache) else Cache(opened.location, opened.folder, opened.manifest)
