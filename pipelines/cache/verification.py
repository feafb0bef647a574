"""Check every byte of a cache against its manifest."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from joulecache.pipelines.cache.index import read_index
from joulecache.pipelines.cache.manifest import MANIFEST, encode_manifest
from joulecache.pipelines.cache.manifest_io import open_manifest, store_errors
from joulecache.pipelines.core.checks import check_path
from joulecache.pipelines.core.files import sha256_of
from joulecache.pipelines.core.object_store import ObjectFolder, is_remote, open_binary
from joulecache.pipelines.core.progress import Progress, silent


def find_problems(cache: str | os.PathLike[str], progress: Progress = silent) -> list[str]:
    """Return one line per problem of a cache in a folder or an object store; `progress` is called before each file.

    Raises:
        NoCacheError: There is no cache.
        CacheError: The manifest itself cannot be trusted, or the store failed.
    """
    location = check_path("cache", cache).rstrip("/")
    manifest = open_manifest(location, damaged=True)
    problems = []
    with store_errors(), open_binary(f"{location}/{MANIFEST}") as stream:
        if stream.read() != encode_manifest(manifest):
            problems.append(f"{MANIFEST}: same content, different bytes")
    files = manifest.files()
    for done, file in enumerate(files):
        progress("verifying files", done, len(files))
        try:
            digest = _digest_of(location, file.name)
        except OSError as error:
            problems.append(f"{file.name}: {error.strerror or error}")
            continue
        if digest != file.sha256:
            problems.append(f"{file.name}: its bytes changed (SHA-256 {digest[:8]}, expected {file.sha256[:8]})")
    if not problems and not is_remote(location):
        read_index(Path(location), manifest)
    return problems


def _digest_of(location: str, name: str) -> str:
    if not is_remote(location):
        path = Path(location, name)
        if path.exists() and not path.is_file():
            raise OSError("not a file")
        return sha256_of(path)
    digest = hashlib.sha256()
    for chunk in ObjectFolder(location).chunks(name):
        digest.update(chunk)
    return digest.hexdigest()
