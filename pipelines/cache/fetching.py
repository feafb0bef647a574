"""Fetch one file of a cache from an object store, checked against its SHA-256."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from typing import BinaryIO

from joulecache.pipelines.cache.data_file import DataFile
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.core.object_store import ObjectFolder, StoreError

_TRIES = 3
_PAUSE_S = 0.5  # before the second try, twice as long before the next
_PATIENCE_S = 60


def fetch(objects: ObjectFolder, file: DataFile, part: BinaryIO, moved: Callable[[], None]) -> None:
    """Write a file of the cache to an open file, durably; go on where the connection broke.

    Args:
        objects: The cache.
        file: The file.
        part: The open file.
        moved: Called for every piece that arrives.

    Raises:
        CacheError: The store failed several times without sending anything, or what arrived is not the file.
        OSError: The file cannot be written.
    """
    for tries in range(1, _TRIES + 1):
        digest = _receive(objects, file, part, moved)
        if digest == file.sha256:
            part.flush()
            os.fsync(part.fileno())
            return
        if tries < _TRIES:
            time.sleep(_PAUSE_S * 2**tries / 2)
    raise CacheError(
        f"{objects.url}/{file.name} arrived with SHA-256 {digest[:8]}, its manifest says {file.sha256[:8]}: "
        "it is damaged, rebuild the cache"
    )


def _receive(objects: ObjectFolder, file: DataFile, part: BinaryIO, moved: Callable[[], None]) -> str:
    """Write what the store sends; return its SHA-256."""
    digest, received, failures, moved_at = hashlib.sha256(), 0, 0, time.monotonic()
    part.seek(0)
    while received < file.bytes:
        try:
            for chunk in objects.chunks(file.name, received):
                if received + len(chunk) > file.bytes:
                    return "longer"
                part.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                failures, moved_at = 0, time.monotonic()
                moved()
        except FileNotFoundError as error:
            raise CacheError(f"{error}: the cache was replaced, open it again") from error
        except StoreError as error:
            failures += 1
            if failures == _TRIES or time.monotonic() - moved_at > _PATIENCE_S:
                raise CacheError(str(error)) from error
            time.sleep(_PAUSE_S * 2**failures / 2)
        else:
            if received < file.bytes:
                return "shorter"
    return digest.hexdigest()
