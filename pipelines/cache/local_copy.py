"""Caches in an object store, brought to a folder of this machine, from which they are read as any other."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from joulecache.pipelines.cache.cleanup import delete_unlisted
from joulecache.pipelines.cache.manifest import CacheError, read_stored_manifest, write_manifest
from joulecache.pipelines.cache.shards import DataFile
from joulecache.pipelines.core.object_store import ObjectFolder, StoreError, is_remote

STAGE_LIMIT_BYTES = 100_000_000_000
"""Of one cache: larger ones are not brought here unless asked for."""

_FOLDER = "JOULECACHE_STAGE"
_LOCK = "lock"
_AT_ONCE = 4  # files that are copied


def staged(cache: str | os.PathLike[str], limit_bytes: int = STAGE_LIMIT_BYTES) -> Path:
    """Return the folder of this machine in which a cache lies: itself, or for one in an object store a copy, made or brought up to date.

    Copies are kept in ``$JOULECACHE_STAGE``, by default in ``~/.cache/joulecache``, a folder for each address; the files of a cache that
    was replaced are deleted. Every file is checked against its SHA-256 when it comes. Raises CacheError for a cache that is larger than
    `limit_bytes` or the disk, that is damaged, or that the store does not give.
    """
    if not is_remote(cache):
        return Path(cache)
    objects = ObjectFolder(os.fspath(cache))
    root = os.environ.get(_FOLDER) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "joulecache")
    folder = Path(root, hashlib.sha256(objects.url.encode()).hexdigest()[:16])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / _LOCK, "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # several processes may begin to load at once
            _bring(objects, folder, limit_bytes)
    except StoreError as error:
        raise CacheError(str(error)) from error
    except OSError as error:
        raise CacheError(
            f"cannot keep a copy of {objects.url} in {str(folder)!r}: {error.strerror or error}"
        ) from error
    return folder


def _bring(objects: ObjectFolder, folder: Path, limit_bytes: int) -> None:
    there = {stored.name: stored for stored in objects.list()}
    manifest, _ = read_stored_manifest(objects, there)
    missing = [file for file in manifest.files() if not _is_here(folder / file.name, file.bytes)]
    whole = sum(file.bytes for file in manifest.files())
    if whole > limit_bytes:
        raise CacheError(
            f"{objects.url} has {whole / 1e9:,.2f} GB, and {limit_bytes / 1e9:,.2f} GB may be copied here: raise stage_limit_bytes"
        )
    needed, free = sum(file.bytes for file in missing), shutil.disk_usage(folder).free
    if needed > free:
        raise CacheError(
            f"{needed / 1e9:,.2f} GB of {objects.url} are to be copied to {folder}, which has {free / 1e9:,.2f} GB free: set {_FOLDER}"
        )
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda file: _fetch(objects, folder, file), missing))
    write_manifest(folder, manifest)
    delete_unlisted(folder, manifest)


def _is_here(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _fetch(objects: ObjectFolder, folder: Path, file: DataFile) -> None:
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        digest = objects.fetch(file.name, temporary)
        if digest != file.sha256:
            raise CacheError(
                f"{objects.url}/{file.name} came with SHA-256 {digest[:8]}, the manifest says {file.sha256[:8]}: "
                "it is damaged, build the cache again"
            )
        temporary.rename(folder / file.name)
    finally:
        temporary.unlink(missing_ok=True)
