"""Follow a cache whose draws advance: every epoch reads the newest ones. Imports no TensorFlow."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pyarrow as pa

from joulecache.pipelines.cache.cache import Cache
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.cache.manifest_io import manifest_version, open_committed
from joulecache.pipelines.loading.split import CachedSplit
from joulecache.pipelines.source.spatial import Boxes

_LOG = logging.getLogger("joulecache")
_EPOCHS = 2  # while an epoch ends, the next one is read ahead


class NewestSplit:
    """A split whose draws may advance while it is read. An epoch reads the draws that the cache has when it begins, until it ends.

    Old files stay open, on disk too, until the next epoch but one begins.
    """

    def __init__(
        self, split: CachedSplit, open_cache: Callable[[], Cache], open_split: Callable[[Cache], CachedSplit]
    ) -> None:
        """Begin with an opened split.

        Args:
            split: The split.
            open_cache: Opens the newest state of its cache.
            open_split: Opens the same split of it.

        Raises:
            ValueError: The split has boxes, which have another shape in each set of draws.
        """
        features = split.cache.manifest.features
        boxes = [name for name in split.selection.names if isinstance(features[name], Boxes)]
        if boxes:
            raise ValueError(
                f"follow cannot pad the boxes of {boxes[0]!r}, whose largest number changes with the draws: leave them out with targets, "
                "or load the cache again in each epoch"
            )
        self._newest, self._open_cache, self._open_split = split, open_cache, open_split
        self._version: tuple[int, int, int] | None = None
        self._refused: Manifest | None = None
        self._of_epoch: dict[int, CachedSplit] = {}
        self._lock = threading.Lock()

    def of_epoch(self, epoch: int, *, begins: bool) -> CachedSplit:
        """Return the split that an epoch reads: the newest one if the epoch `begins`.

        Raises:
            CacheError: The cache cannot be read any more.
        """
        with self._lock:
            if begins or epoch not in self._of_epoch:
                self._refresh()
                if not begins and (draw := self._newest.entry.draw_of(epoch)) != epoch:
                    _LOG.warning(
                        "epoch %d is resumed with draw %d: it began with another if the cache has advanced since",
                        epoch,
                        draw,
                    )
                self._of_epoch.pop(epoch, None)
                self._of_epoch[epoch] = self._newest
                for old in [*self._of_epoch][:-_EPOCHS]:
                    del self._of_epoch[old]
            return self._of_epoch[epoch]

    def draw_of(self, epoch: int, *, begins: bool = False) -> int:
        """Return the draw of the cached ops that an epoch reads."""
        return self.of_epoch(epoch, begins=begins).entry.draw_of(epoch)

    def _refresh(self) -> None:
        """Open the cache again if it has changed."""
        location = self._newest.cache.location
        version = manifest_version(location)
        if version is None or version != self._version:
            open_committed(location, lambda: self._take(self._open_cache()))
            self._version = version

    def _take(self, cache: Cache) -> None:
        """Take a cache as the newest, unless its records differ: then an epoch would have other steps."""
        current, manifest = self._newest.cache.manifest, cache.manifest
        if manifest in (current, self._refused):
            return
        if not _has_same_records(self._newest, cache):
            self._refused = manifest
            entry = self._newest.entry
            _LOG.warning(
                "%s now has other records or options: epochs go on with draws %d to %d, until it is loaded again",
                cache.location,
                entry.first_draw,
                entry.first_draw + entry.variants - 1,
            )
            return
        self._newest = self._open_split(cache)


def _has_same_records(split: CachedSplit, cache: Cache) -> bool:
    """Return whether another state of a cache has the records of a split in the same order, and the same options."""
    old, new, name = split.cache.manifest, cache.manifest, split.name
    options = ("seed", "format", "encoding", "features")
    if any(getattr(old, option) != getattr(new, option) for option in options):
        return False
    before, after = split.entry, new.splits[name]
    if (before.chain, before.fingerprint, before.records, before.image_shape) != (
        after.chain,
        after.fingerprint,
        after.records,
        after.image_shape,
    ):
        return False
    if old.index.sha256 == new.index.sha256:
        return True
    columns = ["key_hash", *(column for column in split.cache.index.schema.names if column in old.features)]
    rows, others = (each.rows(name).select(columns) for each in (split.cache, cache))
    try:
        for each in (rows, others):
            each.validate(full=True)
    except pa.ArrowException as error:
        raise CacheError(f"the index of {cache.location} is damaged ({error}): rebuild the cache") from error
    return bool(rows.equals(others))
