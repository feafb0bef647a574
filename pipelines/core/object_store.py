"""Folders in object stores, s3:// and gs://.

Both go through obstore: the file systems of pyarrow and Beam have no conditional writes. Credentials, region and endpoint come from the
environment of each machine (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, ...): no specification, manifest, log or
report holds them.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from joulecache.pipelines.core.files import RangeReader
from joulecache.pipelines.core.quantities import clipped

SCHEMES = ("s3://", "gs://")
_RETRY_TIMEOUT = timedelta(seconds=60)
_READ_BYTES = 1 << 18  # per request when a file is read in pieces: their transfer takes about as long as the round trip
_DELETE_BATCH = 1000
PAGE_OBJECTS = 1000
"""Objects that one request lists."""
_LONGEST_MESSAGE = 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class StoreError(OSError):
    """An object store failed; the message names the object and quotes the store."""


class ConflictError(StoreError):
    """An object was written or deleted concurrently."""


def is_remote(location: str | os.PathLike[str]) -> bool:
    """Return whether a location is in an object store."""
    return os.fspath(location).startswith(SCHEMES)


@dataclass(frozen=True)
class StoredObject:
    """An object in a listing, by its name inside the folder. ETag and version change when it is overwritten."""

    name: str
    size_bytes: int
    mtime_ns: int
    version: tuple[str | None, str | None] = field(repr=False)


@dataclass(frozen=True)
class ObjectFolder:
    """The objects under one prefix of a bucket. All methods raise StoreError.

    Attributes:
        url: ``s3://bucket/folder`` or ``gs://bucket/folder``.

    Raises:
        ValueError: `url` is not such a URL, or holds credentials.
    """

    url: str

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if not self.url.startswith(SCHEMES) or not parts.netloc or parts.query or parts.fragment:
            raise ValueError(f"an object store URL must be s3://bucket/folder or gs://bucket/folder, got {self.url!r}")
        if "@" in parts.netloc or ":" in parts.netloc:  # may be a password, so the message does not repeat it
            raise ValueError(
                f"the bucket of a {parts.scheme}:// URL has '@' or ':': pass credentials and endpoints in the environment"
            )
        object.__setattr__(self, "url", self.url.rstrip("/"))

    @property
    def _prefix(self) -> str:
        return urlsplit(self.url).path.strip("/")

    @property
    def _store(self) -> Any:
        parts = urlsplit(self.url)
        return _open_store(f"{parts.scheme}://{parts.netloc}")

    @property
    def _inside(self) -> int:
        """Where the names of objects start in their paths."""
        return len(self._prefix) + 1 if self._prefix else 0

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}".strip("/")

    def list(self, under: str = "") -> Iterator[StoredObject]:
        """Yield the objects below a subfolder, in any order."""
        for page in self.pages(under):
            yield from page

    def pages(self, under: str = "") -> Iterator[Sequence[StoredObject]]:
        """Yield the objects below a subfolder in any order, those of a request at a time."""
        with _store_errors(self.url):
            for page in _obstore().list(self._store, self._path(under) or None, chunk_size=PAGE_OBJECTS):
                yield [_stored(meta["path"][self._inside :], meta) for meta in page]

    def children(self, under: str = "") -> tuple[Sequence[StoredObject], Sequence[str]]:
        """Return the objects in a subfolder, without those in folders in it, and the names of these folders, in any order."""
        with _store_errors(self.url):
            found = _obstore().list_with_delimiter(self._store, self._path(under) or None)
            objects = [_stored(meta["path"][self._inside :], meta) for meta in found["objects"]]
            return objects, [path[self._inside :] for path in found["common_prefixes"]]

    def find(self, name: str) -> StoredObject | None:
        """Return an object; None if it does not exist."""
        try:
            with _store_errors(f"{self.url}/{name}"):
                return _stored(name, _obstore().head(self._store, self._path(name)))
        except FileNotFoundError:
            return None

    def read(self, name: str) -> tuple[bytes, StoredObject]:
        """Return an object's bytes and the version that was read; FileNotFoundError if it does not exist."""
        with _store_errors(f"{self.url}/{name}"):
            got = _obstore().get(self._store, self._path(name))
            stored = _stored(name, got.meta)
            return bytes(got.bytes()), stored

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """Return bytes of an object, fewer where it ends earlier."""
        if not size:
            return b""
        with _store_errors(f"{self.url}/{name}"):
            return bytes(_obstore().get_range(self._store, self._path(name), start=start, length=size))

    def open(self, name: str) -> BinaryIO:
        """Open an object for reading and seeking, with read-ahead; FileNotFoundError if it does not exist."""
        found = self.find(name)
        if found is None:
            raise FileNotFoundError(f"no object at {self.url}/{name}")
        read_at = functools.partial(self.read_range, name)
        return io.BufferedReader(RangeReader(read_at, found.size_bytes), _READ_BYTES)

    def chunks(self, name: str, start: int = 0) -> Iterator[bytes]:
        """Yield an object's bytes from `start` on, a few megabytes at a time."""
        options: Any = {"range": {"offset": start}} if start else None
        with _store_errors(f"{self.url}/{name}"):
            for chunk in _obstore().get(self._store, self._path(name), options=options).stream():
                yield bytes(chunk)

    def fetch(self, name: str, path: Path) -> str:
        """Write an object to a file; return the SHA-256 of the bytes received."""
        digest = hashlib.sha256()
        with open(path, "wb") as file:
            for chunk in self.chunks(name):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()

    def write(self, name: str, data: Path | bytes) -> None:
        """Write an object, or overwrite it."""
        with _store_errors(f"{self.url}/{name}"):
            _obstore().put(self._store, self._path(name), data)

    def write_if(self, name: str, data: bytes, before: StoredObject | None) -> None:
        """Write an object unless it changed: `before` is the object to overwrite, None if none may exist.

        Raises:
            ConflictError: The store holds another object.
        """
        mode: Any = "create"
        if before is not None:
            mode = {name: value for name, value in zip(("e_tag", "version"), before.version, strict=True) if value}
        with _store_errors(f"{self.url}/{name}"):
            _obstore().put(self._store, self._path(name), data, mode=mode)

    def delete(self, names: Collection[str]) -> None:
        """Delete objects; ignore missing ones."""
        paths = [self._path(name) for name in names]
        for first in range(0, len(paths), _DELETE_BATCH):
            try:
                with _store_errors(self.url):
                    _obstore().delete(self._store, paths[first : first + _DELETE_BATCH])
            except FileNotFoundError:
                continue


def open_binary(location: str | os.PathLike[str]) -> BinaryIO:
    """Open a local file or an object for reading."""
    text = os.fspath(location)
    if not is_remote(text):
        return open(text, "rb")
    folder, name = _split(text)
    return folder.open(name)


def read_bytes(folder: str, name: str) -> bytes:
    """Read a file in a local folder, or an object."""
    return ObjectFolder(folder).read(name)[0] if is_remote(folder) else Path(folder, name).read_bytes()


def read_range(location: str, start: int, size: int) -> bytes:
    """Read bytes of a local file or an object, fewer where it ends earlier."""
    if is_remote(location):
        folder, name = _split(location)
        return folder.read_range(name, start, size)
    with open(location, "rb") as file:
        file.seek(start)
        return file.read(size)


def _split(location: str) -> tuple[ObjectFolder, str]:
    bucket = "/".join(location.split("/", 3)[:3])
    return ObjectFolder(bucket), location[len(bucket) + 1 :]


def _obstore() -> Any:
    try:
        import obstore
    except ImportError:
        raise StoreError(
            "s3:// and gs:// need obstore, which is not installed: run `pip install 'joulecache[cloud]'`"
        ) from None
    return obstore


@functools.cache
def _open_store(bucket_url: str) -> Any:
    _obstore()
    from obstore.store import from_url

    with _store_errors(bucket_url):
        return from_url(bucket_url, retry_config={"max_retries": 4, "retry_timeout": _RETRY_TIMEOUT})


def _stored(name: str, meta: Any) -> StoredObject:
    modified_us = (meta["last_modified"] - _EPOCH) // timedelta(microseconds=1)
    return StoredObject(name, meta["size"], modified_us * 1000, (meta.get("e_tag"), meta.get("version")))


@contextmanager
def _store_errors(what: str) -> Iterator[None]:
    """Raise obstore's errors as one-line StoreErrors."""
    _obstore()
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"no object at {what}") from None
    except (AlreadyExistsError, PreconditionError):
        raise ConflictError(f"{what} was modified concurrently") from None
    except (BaseError, OSError) as error:
        reason = clipped(str(error), _LONGEST_MESSAGE)
        raise StoreError(f"{what}: {type(error).__name__}: {reason}") from None
