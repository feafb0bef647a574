"""Build into a local folder, or a shared one with the same path on all workers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from joulecache.pipelines.building.config import BuildError
from joulecache.pipelines.building.specs import ShardResult, ShardSpec
from joulecache.pipelines.building.work_folder import (
    WORK,
    delete_work_files,
    energy_logs,
    hold_work_folder,
    result_name,
    was_interrupted,
)
from joulecache.pipelines.cache.cleanup import delete_unlisted
from joulecache.pipelines.cache.data_file import DataFile
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest import MANIFEST, Manifest
from joulecache.pipelines.cache.manifest_io import check_files, find_manifest, write_manifest
from joulecache.pipelines.core.files import check_folder, refuse_overlap, sha256_of
from joulecache.pipelines.source import source_paths


def existing_cache(folder: Path) -> Manifest | None:
    """Return the manifest of the cache in a folder, whose files may be missing or damaged; None for an empty or new folder.

    Raises:
        CacheError: The folder holds other files, or cannot be read.
    """
    try:
        check_folder(folder, "a joulecache cache", _is_cache, CacheError)
        return find_manifest(folder)
    except OSError as error:
        raise CacheError(f"cannot read {str(folder)!r}: {error.strerror}") from error


def _is_cache(folder: Path) -> bool:
    return (folder / MANIFEST).exists() or was_interrupted(folder)


class LocalDestination:
    """A local folder, locked while a cache is built in it. See `Destination`."""

    work, poll_s = WORK, 0.5

    def __init__(self, folder: Path) -> None:
        self.folder, self.location = folder, str(folder.absolute())
        self._before: Manifest | None = None

    def refuse_overlap(self, source: str | os.PathLike[str], linked: Sequence[Path] = ()) -> None:
        """Compare paths."""
        refuse_overlap((*source_paths(source), *linked), self.folder, "cache", CacheError)

    def existing_manifest(self) -> Manifest | None:
        """Read the manifest."""
        self._before = existing_cache(self.folder)
        return self._before

    def prepare_update(self, manifest: Manifest) -> None:
        """Check the sizes of all files."""
        check_files(self.folder, manifest)

    def was_interrupted(self) -> bool:
        """Look for a work folder."""
        return (self.folder / WORK).exists()

    def work_of(self, specs: Sequence[ShardSpec]) -> str:
        """Return the only name."""
        return WORK

    @contextmanager
    def hold(self, specs: Sequence[ShardSpec]) -> Iterator[Path]:
        """Lock the folder."""
        with hold_work_folder(self.folder) as work:
            if find_manifest(self.folder) != self._before:
                raise CacheError(f"{str(self.folder)!r} was modified concurrently: run the command again")
            yield work

    def is_intact(self, file: DataFile) -> bool:
        """Compare the SHA-256."""
        return sha256_of(self.folder / file.name) == file.sha256

    def keep_only(self, results: Sequence[ShardResult]) -> None:
        """Delete from the work folder and the cache folder; also the saved energy, if no shard is kept."""
        keep = {name for result in results for name in (result.index, result_name(result.shard))}
        if results:
            keep |= {path.name for path in energy_logs(self.folder / WORK)}
        delete_work_files(self.folder / WORK, keep)
        data_files = {file.name for result in results for file in result.data_files}
        delete_unlisted(self.folder, self._before, data_files)

    def refuse_full(self, needed: int) -> None:
        """Compare with the free space of the disk."""
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise BuildError(
                f"the cache needs about {needed / 1e6:,.1f} MB, but {self.location} has {free / 1e6:,.1f} MB free: "
                "choose another disk"
            )

    def work_location(self, name: str) -> str:
        """Return a path."""
        return str(Path(self.location, WORK, name))

    def publish(self, name: str) -> None:
        """Do nothing: workers share the folder."""

    def fetch_finished(self) -> None:
        """Do nothing: workers write here."""

    def commit(self, manifest: Manifest) -> None:
        """Rename the manifest into place, if no other build deleted the files."""
        if not all((self.folder / file.name).is_file() for file in manifest.files()):
            raise CacheError(f"{str(self.folder)!r} was modified concurrently: run the command again")
        write_manifest(self.folder, manifest)
        delete_unlisted(self.folder, manifest)
