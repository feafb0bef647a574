"""Where a cache is built: a folder that all workers can access, or one in an object store."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from joulecache.pipelines.building.config import BuildError
from joulecache.pipelines.building.local_destination import LocalDestination
from joulecache.pipelines.building.specs import ShardResult, ShardSpec
from joulecache.pipelines.building.store_destination import StoreDestination
from joulecache.pipelines.cache.data_file import DataFile
from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.core.object_store import StoreError, is_remote


class Destination(Protocol):
    """Where a cache is built.

    Attributes:
        location: Absolute path or URL of the cache, for workers.
        work: Name of the work folder in the cache.
        folder: The local folder of index, rejects and manifest: the cache itself, or a mirror without images.
        poll_s: Seconds between two polls for finished shards.
    """

    location: str
    work: str
    folder: Path
    poll_s: float

    def refuse_overlap(self, source: str | os.PathLike[str], linked: Sequence[Path] = ()) -> None:
        """Raise CacheError if source and cache are the same or one contains the other; also for folders linked in the source."""

    def existing_manifest(self) -> Manifest | None:
        """Return the manifest of an existing cache, or None. Raise CacheError if the folder holds other files."""

    def prepare_update(self, manifest: Manifest) -> None:
        """Make index and rejects of an existing cache available in `folder`. Raise CacheError if files are missing or damaged."""

    def was_interrupted(self) -> bool:
        """Return whether a killed build left files that `hold` would delete."""

    def work_of(self, specs: Sequence[ShardSpec]) -> str:
        """Return the name that `hold` gives the work folder in the cache."""

    def hold(self, specs: Sequence[ShardSpec]) -> AbstractContextManager[Path]:
        """Hold the destination for a build, and yield the local work folder with the files of an interrupted build.

        The work folder is deleted at the end. Raises CacheError if another build holds the destination, or changed it after
        `existing_manifest`.
        """

    def is_intact(self, file: DataFile) -> bool:
        """Return whether a file of an interrupted build is undamaged."""

    def keep_only(self, results: Sequence[ShardResult]) -> None:
        """Delete the files of interrupted builds, except these shards."""

    def refuse_full(self, needed: int) -> None:
        """Raise BuildError if `needed` bytes do not fit."""

    def work_location(self, name: str) -> str:
        """Return the path or URL of a file of the work folder, for workers."""

    def publish(self, name: str) -> None:
        """Make a file of the work folder visible to workers and later builds."""

    def fetch_finished(self) -> None:
        """Fetch new results of workers into the work folder. Raise CacheError if another build changed the cache."""

    def commit(self, manifest: Manifest) -> None:
        """Publish the manifest and the files it lists, and delete unlisted files. Raise CacheError if another build won."""


@contextmanager
def open_destination(cache: str | os.PathLike[str]) -> Iterator[Destination]:
    """Yield the destination of a cache, without writing to it."""
    if not is_remote(cache):
        yield LocalDestination(Path(cache))
        return
    with tempfile.TemporaryDirectory(prefix="joulecache-") as mirror:
        yield StoreDestination(os.fspath(cache), Path(mirror, "cache"))


@contextmanager
def write_errors(destination: Destination) -> Iterator[None]:
    """Raise errors of the disk or the store as BuildError."""
    try:
        yield
    except StoreError as error:
        raise BuildError(f"cannot write to {destination.location!r}: {error}") from error
    except OSError as error:
        raise BuildError(f"cannot write to {str(destination.folder)!r}: {error.strerror or error}") from error
