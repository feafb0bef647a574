"""Local copies of caches in an object store, which are read like any other cache."""

from __future__ import annotations

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from joulecache.pipelines.cache.cleanup import delete_unlisted
from joulecache.pipelines.cache.data_file import DataFile
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.cache.manifest_io import check_files, read_stored_manifest, write_manifest
from joulecache.pipelines.core.files import hold_lock, temporary_path
from joulecache.pipelines.core.object_store import ObjectFolder, StoreError

STAGE_LIMIT_BYTES = 100_000_000_000
"""Size of the largest cache that is copied without asking."""

_ROOT_VARIABLE = "JOULECACHE_STAGE"
_LOCK = "lock"
_CONNECTIONS = 4


def copies_folder() -> Path:
    """Return the folder of all copies; raises CacheError if there is no home for it."""
    try:  # nothing expands "~" in variables of containers and services
        if given := os.environ.get(_ROOT_VARIABLE):
            return Path(given).expanduser().absolute()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "joulecache").absolute()
    except RuntimeError as error:
        raise CacheError(f"this user has no home folder to copy caches to: set {_ROOT_VARIABLE} to a folder") from error


def copy_to_machine(url: str, limit_bytes: int = STAGE_LIMIT_BYTES) -> tuple[Path, Manifest]:
    """Copy a cache from an object store, or update the copy; return its folder and its manifest.

    Copies are kept in ``$JOULECACHE_STAGE``, by default ``~/.cache/joulecache``, one folder per URL. Files of a cache that was replaced are
    deleted. Each file is checked against its SHA-256 while it is copied.

    Raises:
        CacheError: The cache is larger than `limit_bytes` or the free disk, it is damaged, or the store failed.
    """
    objects = ObjectFolder(url)
    folder = copies_folder() / hashlib.sha256(objects.url.encode()).hexdigest()[:16]
    try:
        with hold_lock(folder / _LOCK):  # several processes may start to load at once
            manifest = _update_copy(objects, folder, limit_bytes)
            check_files(folder, manifest)
    except StoreError as error:
        raise CacheError(str(error)) from error
    except OSError as error:
        raise CacheError(f"cannot copy {objects.url} to {str(folder)!r}: {error.strerror or error}") from error
    return folder, manifest


def _update_copy(objects: ObjectFolder, folder: Path, limit_bytes: int) -> Manifest:
    manifest, _ = read_stored_manifest(objects, {stored.name: stored for stored in objects.list()})
    missing = [file for file in manifest.files() if not _has_size(folder / file.name, file.bytes)]
    whole_bytes = sum(file.bytes for file in manifest.files())
    if whole_bytes > limit_bytes:
        raise CacheError(
            f"{objects.url} has {whole_bytes / 1e9:,.2f} GB, and at most {limit_bytes / 1e9:,.2f} GB are copied: raise stage_limit_bytes"
        )
    needed_bytes, free_bytes = sum(file.bytes for file in missing), shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise CacheError(
            f"cannot copy {needed_bytes / 1e9:,.2f} GB of {objects.url} to {folder}, which has {free_bytes / 1e9:,.2f} GB free: "
            f"set {_ROOT_VARIABLE}"
        )
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        list(pool.map(lambda file: _fetch(objects, folder, file), missing))
    write_manifest(folder, manifest)
    delete_unlisted(folder, manifest)
    return manifest


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _fetch(objects: ObjectFolder, folder: Path, file: DataFile) -> None:
    with temporary_path(folder) as temporary:
        digest = objects.fetch(file.name, temporary)
        if digest != file.sha256:
            raise CacheError(
                f"{objects.url}/{file.name} arrived with SHA-256 {digest[:8]}, its manifest says {file.sha256[:8]}: "
                "it is damaged, rebuild the cache"
            )
        temporary.rename(folder / file.name)
