"""A cache of all images of a directory, without labels, for `image_dataset_from_directory`."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.building.local_destination import existing_cache
from joulecache.pipelines.building.precomputing import BuildProgress, Progress, precompute
from joulecache.pipelines.cache.cache import Cache, open_cache
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.names import SPLITS
from joulecache.pipelines.core.progress import progress_bar
from joulecache.pipelines.core.quantities import shortened
from joulecache.pipelines.loading.split import CachedSplit
from joulecache.pipelines.source import SourceError
from joulecache.pipelines.source.folder import list_folder
from joulecache.pipelines.source.naming import is_ignored
from joulecache.transforms.chain import Chain
from joulecache.transforms.randomness import key_hash

_CLASS = "all"  # the class of every image in the cache: labels may differ between calls
_CLASSES_SHOWN = 5
_PROGRESS_DELAY_S = 2


def cache_directory(directory: Path, cache: Path, chain: Chain, *, verbose: bool) -> DirectoryCache:
    """Cache images that are new or changed.

    Args:
        directory: The directory; all images below it are cached.
        cache: The folder of the cache.
        chain: The ops to cache.
        verbose: Show the progress of a long build on a terminal.

    Raises:
        CacheError: The folder holds something else.
        BuildError: No image can be cached, or the disk failed.
    """
    _check_same_images(directory, cache, chain)
    _build(directory, cache, chain, verbose)
    return DirectoryCache(directory, open_cache(cache))


class DirectoryCache:
    """The images of a directory, by row, of shape `image_shape`: (height, width, channels). Pickled, it is opened again."""

    def __init__(self, directory: Path, opened: Cache) -> None:
        # Folders named train, val and test are splits in a cache, but may be classes in Keras.
        self._splits = [CachedSplit(opened, name) for name in SPLITS if opened.manifest.splits[name].records]
        self._ends = np.cumsum([len(split) for split in self._splits])
        self._directory, self._opened = directory, opened
        self.image_shape = self._splits[0].image_shape

    def __reduce__(self) -> tuple[type[DirectoryCache], tuple[Path, Cache]]:
        return DirectoryCache, (self._directory, self._opened)

    def rows(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return the rows of images, int64 ``[N]``, by their paths in the directory; raise SourceError if one is not cached."""
        hashes = np.concatenate([split.key_hashes for split in self._splits])
        row_of = {hashed: row for row, hashed in enumerate(hashes.tolist())}
        rows = [row_of.get(key_hash(name), -1) for name in names]
        missing = [name for name, row in zip(names, rows, strict=True) if row < 0]
        if missing:
            raise SourceError(
                f"{len(missing)} of {len(names)} images in {str(self._directory)!r} cannot be cached, such as "
                f"{min(missing)!r}, {self._reason(min(missing))}: repair or delete it, or use Keras' function"
            )
        return np.array(rows, np.int64)

    def images(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images of rows of any shape, uint8 ``[*rows, H, W, C]``."""
        flat = np.reshape(rows, -1)
        if len(self._splits) == 1:
            images = self._splits[0].images(flat, 0)
        else:
            images = np.empty((len(flat), *self.image_shape), np.uint8)
            which = np.searchsorted(self._ends, flat, side="right")
            for place, split in enumerate(self._splits):
                images[which == place] = split.images(flat[which == place] - (self._ends[place] - len(split)), 0)
        return images.reshape(*np.shape(rows), *self.image_shape)

    def _reason(self, name: str) -> str:
        with open(self._opened.folder / self._opened.manifest.rejected.name, encoding="utf-8") as lines:
            for reject in map(json.loads, lines):
                if reject["key"] == name:
                    return str(reject["reason"])
        if any(map(is_ignored, name.split("/"))):
            return "which is hidden or in a system folder"
        return "which is not a regular file"


def _check_same_images(directory: Path, cache: Path, chain: Chain) -> None:
    """Refuse the cache of another directory, or of other images of this one: every call would rebuild it."""
    manifest = existing_cache(cache)
    if manifest is None:
        return
    source = Path(manifest.source.location)  # it may have moved since
    if source.exists() and not source.samefile(directory):
        raise CacheError(
            f"{str(cache)!r} holds the images of {str(source)!r}: use a separate cache_dir for {str(directory)!r}"
        )
    if (manifest.chain, manifest.class_names) != (str(chain), (_CLASS,)):
        raise CacheError(
            f"{str(cache)!r} holds {manifest.chain!r} with classes {shortened(manifest.class_names, _CLASSES_SHOWN)}, "
            f"not {str(chain)!r} without: use a separate cache_dir for each image_size, aspect ratio option and color_mode"
        )


def _build(directory: Path, cache: Path, chain: Chain, verbose: bool) -> None:
    names = list_folder(directory).names
    with tempfile.TemporaryDirectory() as folder, _shown_progress(verbose) as progress:
        labels = Path(folder, "labels.csv")
        with open(labels, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("name", "label"), *((name, _CLASS) for name in names)])
        precompute(
            directory,
            cache,
            chain,
            val_fraction=0,
            labels=labels,
            splits={"train": "."},  # folders may be classes in Keras
            max_reject_rate=1,  # `rows` raises for those that are used
            progress=progress,
        )


@contextmanager
def _shown_progress(verbose: bool) -> Iterator[Progress | None]:
    if not verbose:
        yield None
        return
    with progress_bar(delay_s=_PROGRESS_DELAY_S, line_delay_s=math.inf) as bar:

        def show(progress: BuildProgress) -> None:
            bar("caching images", progress.done, progress.records)

        yield show
