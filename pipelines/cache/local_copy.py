"""Caches in an object store, whose files are copied to this machine: all of them at once, or as they are needed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.local_shards import LOCK, LocalShards
from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.cache.manifest_io import check_files, read_stored_manifest, store_errors, write_manifest
from joulecache.pipelines.core.files import hold_lock
from joulecache.pipelines.core.object_store import ObjectFolder

STAGE_LIMIT_BYTES = 100_000_000_000
"""The disk that the local files of a cache may use by default."""

_ROOT_VARIABLE = "JOULECACHE_STAGE"
_COPIES: dict[Path, LocalShards] = {}
"""Leases of this process on whole copies: other processes with a lower limit delete none of their files."""


def copies_folder() -> Path:
    """Return the folder of all copies; raises CacheError if there is no home for it."""
    try:  # nothing expands "~" in variables of containers and services
        if given := os.environ.get(_ROOT_VARIABLE):
            return Path(given).expanduser().absolute()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "joulecache").absolute()
    except RuntimeError as error:
        raise CacheError(f"this user has no home folder to copy caches to: set {_ROOT_VARIABLE} to a folder") from error


@dataclass(frozen=True)
class RemoteCache:
    """A cache in an object store, of which the manifest was read and nothing copied; `find_remote` returns one.

    Copies are kept in ``$JOULECACHE_STAGE``, by default ``~/.cache/joulecache``, one folder per URL. Each file is checked against its
    SHA-256 while it is copied.

    Attributes:
        url: Its URL.
        manifest: What it holds.
        limit_bytes: The disk that its files on this machine may use.
    """

    url: str
    manifest: Manifest
    limit_bytes: int

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(file.bytes for file in self.manifest.files())

    @property
    def fits(self) -> bool:
        """Whether all files may be on this machine."""
        return self.bytes <= self.limit_bytes

    @property
    def folder(self) -> Path:
        """The folder of its files on this machine."""
        return copies_folder() / hashlib.sha256(self.url.encode()).hexdigest()[:16]

    def copy(self) -> Path:
        """Copy all files that are not on this machine yet, delete those of a cache that was replaced, and return the folder.

        Raises:
            CacheError: The cache is larger than `limit_bytes` or the free disk, it is damaged, or the store failed.
        """
        if not self.fits:
            raise CacheError(
                f"{self.url} has {self.bytes / 1e9:,.2f} GB, and at most {self.limit_bytes / 1e9:,.2f} GB are copied: "
                "raise stage_limit_bytes"
            )
        folder = self.folder
        with _copy_errors(self.url, folder):
            _COPIES.pop(folder, None)
            shards = self.shards()
            _check_free(self, folder)
            shards.pin(self.manifest.files())
            _COPIES[folder] = shards
            with hold_lock(folder / LOCK):
                write_manifest(folder, self.manifest)
            check_files(folder, self.manifest)
        return folder

    def shards(self) -> LocalShards:
        """Return its files on this machine, without those of a cache that was replaced."""
        with _copy_errors(self.url, self.folder):
            shards = LocalShards(ObjectFolder(self.url), self.folder, self.limit_bytes)
            shards.remove_others({file.name for file in self.manifest.files()})
        return shards


def find_remote(url: str, limit_bytes: int) -> RemoteCache:
    """Read the manifest of a cache in an object store; raises CacheError if there is none or it is damaged."""
    objects = ObjectFolder(url)
    with store_errors():
        manifest, _ = read_stored_manifest(objects, {stored.name: stored for stored in objects.list()})
    return RemoteCache(objects.url, manifest, limit_bytes)


@contextmanager
def _copy_errors(url: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CacheError(f"cannot copy {url} to {str(folder)!r}: {error.strerror or error}") from error


def _check_free(remote: RemoteCache, folder: Path) -> None:
    missing = [file for file in remote.manifest.files() if not _has_size(folder / file.name, file.bytes)]
    needed_bytes, free_bytes = sum(file.bytes for file in missing), shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise CacheError(
            f"cannot copy {needed_bytes / 1e9:,.2f} GB of {remote.url} to {folder}, which has {free_bytes / 1e9:,.2f} GB free: "
            f"set {_ROOT_VARIABLE}"
        )


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
