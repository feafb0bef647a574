"""An opened cache: its manifest, index and chains, read and checked once."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa

from joulecache.pipelines.cache.file_guard import FileGuard
from joulecache.pipelines.cache.index import read_index
from joulecache.pipelines.cache.local_copy import STAGE_LIMIT_BYTES, find_remote
from joulecache.pipelines.cache.manifest import Manifest, Split
from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.cache.mapped_images import MappedImages, map_variant
from joulecache.pipelines.cache.mapped_targets import MappedTargets, map_targets
from joulecache.pipelines.cache.verification import find_problems
from joulecache.pipelines.core.checks import check_path
from joulecache.pipelines.core.notebook import Displayed
from joulecache.pipelines.core.object_store import is_remote
from joulecache.pipelines.source.features import spatial_features
from joulecache.transforms.chain import Chain
from joulecache.transforms.ops import Op


@dataclass(frozen=True, eq=False)
class Cache(Displayed):
    """A cache on this machine, with its manifest checked; `open_cache` returns one.

    Files that an update deletes stay readable where they are mapped; open the cache again to see its new manifest.

    Attributes:
        location: Where the cache was opened: a folder, or a URL in an object store.
        folder: The folder on this machine that holds its files: `location`, or the local copy of a remote cache.
        manifest: What the cache holds.
    """

    location: str
    folder: Path
    manifest: Manifest

    @cached_property
    def index(self) -> pa.RecordBatch:
        """The index, mapped on first use as a batch of `index_schema`; see `read_index`."""
        return read_index(self.folder, self.manifest)

    def rows(self, split: str) -> pa.RecordBatch:
        """Return the index rows of a split, in the order of its files; raises CacheError."""
        records = self.manifest.split(split).records
        return self.index.slice(self.manifest.first_row(split), records)

    def split(self, name: str) -> Split:
        """Return a split; raises CacheError if it has no records."""
        return self.manifest.split(name)

    def images(self, split: str, variant: int = 0) -> MappedImages:
        """Map the cached images of one variant of a split, in the order of its index rows; raises CacheError."""
        found = self.manifest.split(split)
        height, width, channels = found.image_shape
        shape = None if height is None or width is None else (height, width, channels)
        files = found.variant_files(variant)
        return map_variant(self.folder, files, shape if self.manifest.encoding == "raw" else None)

    def targets(
        self, split: str, variant: int = 0, names: Collection[str] | None = None
    ) -> Mapping[str, MappedTargets]:
        """Map the targets of one variant of a split that move with the pixels, in the order of its index rows.

        Args:
            split: The split.
            variant: The variant.
            names: Names of the targets. Default: all masks, boxes and points.

        Raises:
            CacheError: A file is missing or damaged.
        """
        found = self.manifest.split(split)
        spatial = spatial_features(self.manifest.features)
        chosen = {name: feature for name, feature in spatial.items() if names is None or name in names}
        height, width, _ = found.image_shape
        size = None if self.manifest.encoding != "raw" or height is None or width is None else (height, width)
        return map_targets(self.folder, found.variant_files(variant), chosen, size)

    def guard(self, split: str) -> FileGuard:
        """Return a guard of the files of a split."""
        return FileGuard(self.folder, self.manifest.split(split).files)

    def chain(self, split: str = "train", ops: Mapping[str, type[Op]] | None = None) -> Chain:
        """Return the parsed chain of a split; see `Manifest.parsed_chain`."""
        return self.manifest.parsed_chain(split, ops)

    def verify(self) -> list[str]:
        """Check every byte on this machine against the manifest; return one line per problem."""
        return find_problems(self.folder)

    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle without what is mapped: another process on this machine maps the same files."""
        return type(self), (self.location, self.folder, self.manifest)


CacheLike: TypeAlias = Cache | str | os.PathLike[str]
"""What public functions accept as a cache: its location, or an opened one."""


def open_cache(cache: CacheLike, *, stage_limit_bytes: int = STAGE_LIMIT_BYTES) -> Cache:
    """Open a cache, as `joulecache.open_cache` describes, without its sequences of records."""
    if isinstance(cache, Cache):
        return cache
    location = check_path("cache", cache)
    if is_remote(location):
        remote = find_remote(location, stage_limit_bytes)
        return Cache(location, remote.copy(), remote.manifest)
    return Cache(location, Path(location).absolute(), open_manifest(location))


def verify(cache: CacheLike) -> list[str]:
    """Check every byte of a cache against its manifest; a remote cache is read where it is.

    Returns:
        One line per problem; none if the cache is intact.

    Raises:
        CacheError: There is no cache, or its manifest itself cannot be trusted.
    """
    return cache.verify() if isinstance(cache, Cache) else find_problems(cache)
