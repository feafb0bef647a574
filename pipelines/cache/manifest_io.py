"""Read and write the manifest of a cache, on this machine and in object stores."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from joulecache.pipelines.cache.errors import CacheError, NoCacheError, wrong_size
from joulecache.pipelines.cache.manifest import MANIFEST, Manifest, encode_manifest, parse_manifest
from joulecache.pipelines.core.checks import check_path
from joulecache.pipelines.core.files import sync_folder, unexpanded_home, write_bytes
from joulecache.pipelines.core.object_store import ObjectFolder, StoredObject, StoreError, is_remote

_LARGEST_MANIFEST = 1 << 30
_TRIES = 5

T = TypeVar("T")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit a manifest atomically and durably."""
    sync_folder(folder)  # the names of the data files must be durable first
    write_bytes(folder / MANIFEST, encode_manifest(manifest))


def write_stored_manifest(objects: ObjectFolder, manifest: Manifest, before: StoredObject | None) -> None:
    """Commit a manifest to an object store by one conditional write; raises ConflictError unless it replaces `before`."""
    objects.write_if(MANIFEST, encode_manifest(manifest), before)


def open_manifest(cache: str | os.PathLike[str], *, damaged: bool = False) -> Manifest:
    """Read the manifest of a cache in a folder or an object store, and check it and the sizes of its files.

    Nothing in it is trusted: structure, digest, file names, sizes and the offsets of the images are checked. With `damaged`, listed files
    may be missing or damaged.

    Raises:
        NoCacheError: There is no cache.
        CacheError: Its manifest or files are damaged.
    """
    location = check_path("cache", cache)
    if is_remote(location):
        with store_errors():
            objects = ObjectFolder(location)
            stored = {} if damaged else {stored.name: stored for stored in objects.list()}
            return read_stored_manifest(objects, stored, damaged=damaged)[0]
    folder = Path(location)
    manifest = read_manifest(folder)
    if not damaged:
        check_files(folder, manifest)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a folder, but not the files that it lists; raises CacheError."""
    path = folder / MANIFEST
    try:
        if not path.is_file():
            raise _no_cache(folder)
        if path.stat().st_size > _LARGEST_MANIFEST:
            raise CacheError(f"{path} is too large for a manifest: {path.stat().st_size:,} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise CacheError(f"cannot read {str(path)!r}: {error.strerror}") from error
    return parse_manifest(data, path)


def find_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a folder like `read_manifest`; return None if there is none."""
    return read_manifest(folder) if (folder / MANIFEST).exists() else None


def read_stored_manifest(
    objects: ObjectFolder, stored: Mapping[str, StoredObject], *, damaged: bool = False
) -> tuple[Manifest, StoredObject]:
    """Read the manifest of a cache in an object store, given its listing `stored`; return it and the object that holds it.

    With `damaged`, listed files may be missing or damaged: their sizes are not checked.

    Raises:
        CacheError: There is no cache, or it is damaged.
        StoreError: The store failed.
    """
    try:
        data, version = objects.read(MANIFEST)
    except FileNotFoundError as error:
        raise _no_cache(objects.url) from error
    manifest = parse_manifest(data, f"{objects.url}/{MANIFEST}")
    for file in () if damaged else manifest.files():
        found = stored.get(file.name)
        if found is None or found.size_bytes != file.bytes:
            raise CacheError(
                f"{objects.url}/{file.name} has {'no' if found is None else found.size_bytes} bytes, its manifest says {file.bytes}: "
                "restore it or rebuild the cache"
            )
    return manifest, version


def check_files(folder: Path, manifest: Manifest) -> None:
    """Check the sizes of all files that a manifest lists; raises CacheError."""
    for file in manifest.files():
        path = folder / file.name
        try:
            found = path.stat()
        except OSError as error:
            raise CacheError(f"{path} cannot be read ({error.strerror}): restore it or rebuild the cache") from error
        if found.st_size != file.bytes or not stat.S_ISREG(found.st_mode):
            raise wrong_size(path, found.st_size, file.bytes)


def manifest_version(cache: str | os.PathLike[str]) -> tuple[int, int, int] | None:
    """Return what changes with every commit to a cache in a folder; None if there is no manifest, or for an object store."""
    if is_remote(cache):
        return None
    try:
        found = Path(cache, MANIFEST).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def open_committed(cache: str | os.PathLike[str], open_files: Callable[[], T]) -> T:
    """Return what `open_files` returns; try again if a build committed meanwhile, and deleted files of the manifest that was read.

    Raises:
        CacheError: The cache cannot be opened.
    """
    for last in reversed(range(_TRIES)):
        version = manifest_version(cache)
        try:
            return open_files()
        except CacheError:
            if not last or version == manifest_version(cache):
                raise
    raise AssertionError("unreachable")


def _no_cache(where: str | Path) -> NoCacheError:
    why = unexpanded_home(Path(where)) or f": it has no {MANIFEST}; build one with `joulecache precompute`"
    return NoCacheError(f"no cache at {str(where)!r}{why}")


@contextmanager
def store_errors() -> Iterator[None]:
    """Raise an object store's errors as CacheError."""
    try:
        yield
    except StoreError as error:
        raise CacheError(str(error)) from error
