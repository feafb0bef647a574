"""Folders in an object store, s3:// and gs://: the few things that sources, builds and loaders need of one.

By obstore, the same code for both: neither pyarrow's nor Beam's file systems can write an object on condition that nobody else has.
Credentials, region and endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, ...), on
every machine from its own: they are part of no specification, manifest, log or report.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

SCHEMES = ("s3://", "gs://")
_PATIENCE = timedelta(seconds=60)  # for a store that does not answer
_READ_BYTES = 1 << 18  # of a request, where a file is read piece by piece: what takes as long as the way there and back
_DELETED_AT_ONCE = 1000
_LONGEST_MESSAGE = 300
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


class StoreError(OSError):
    """An object store that does not do what it was asked for; the message says which object, and what it answered."""


class ConflictError(StoreError):
    """An object that somebody else has written, or deleted, since it was looked at."""


def is_remote(location: str | os.PathLike[str]) -> bool:
    """Say whether a location is in an object store."""
    return os.fspath(location).startswith(SCHEMES)


@dataclass(frozen=True)
class StoredObject:
    """An object as it is listed. `name` is inside its folder; `version` is what tells it from one that is written in its place."""

    name: str
    size_bytes: int
    mtime_ns: int
    version: tuple[str | None, str | None] = field(repr=False)


@dataclass(frozen=True)
class ObjectFolder:
    """What lies under one prefix of a bucket. All methods raise StoreError."""

    url: str

    def __post_init__(self) -> None:
        """Check the address; ValueError."""
        parts = urlsplit(self.url)
        if not self.url.startswith(SCHEMES) or not parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                f"{self.url!r} is no place in an object store: give s3://bucket/folder or gs://bucket/folder"
            )
        if "@" in parts.netloc or ":" in parts.netloc:  # it may hold a password: not repeated
            raise ValueError(
                f"the bucket of a {parts.scheme}:// address holds '@' or ':': give credentials and endpoints in the environment"
            )
        object.__setattr__(self, "url", self.url.rstrip("/"))

    @property
    def _prefix(self) -> str:
        return urlsplit(self.url).path.strip("/")

    @property
    def _store(self) -> Any:
        parts = urlsplit(self.url)
        return _open_store(f"{parts.scheme}://{parts.netloc}")

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}".strip("/")

    def list(self, under: str = "") -> Iterator[StoredObject]:
        """Yield the objects below a folder of it, in no certain order."""
        inside = len(self._prefix) + 1 if self._prefix else 0
        with _explained(self.url):
            for page in _obstore().list(self._store, self._path(under) or None, chunk_size=1000):
                for meta in page:
                    yield _stored(meta["path"][inside:], meta)

    def find(self, name: str) -> StoredObject | None:
        """Return an object, None where there is none."""
        try:
            with _explained(f"{self.url}/{name}"):
                return _stored(name, _obstore().head(self._store, self._path(name)))
        except FileNotFoundError:
            return None

    def read(self, name: str) -> tuple[bytes, StoredObject]:
        """Return an object's bytes, and which version of it they are."""
        with _explained(f"{self.url}/{name}"):
            got = _obstore().get(self._store, self._path(name))
            stored = _stored(name, got.meta)
            return bytes(got.bytes()), stored

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """Return some bytes of an object, fewer where it ends before."""
        if not size:
            return b""
        with _explained(f"{self.url}/{name}"):
            return bytes(_obstore().get_range(self._store, self._path(name), start=start, length=size))

    def open(self, name: str) -> BinaryIO:
        """Open an object to read in it; what lies near is read along, and kept for a seek that stays there."""
        found = self.find(name)
        if found is None:
            raise FileNotFoundError(f"no object at {self.url}/{name}")
        return io.BufferedReader(_ObjectBytes(self, name, found.size_bytes), _READ_BYTES)

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield an object's bytes, some megabytes at a time."""
        with _explained(f"{self.url}/{name}"):
            for chunk in _obstore().get(self._store, self._path(name)).stream():
                yield bytes(chunk)

    def fetch(self, name: str, path: Path) -> str:
        """Write an object to a file; return the SHA-256 of what came."""
        digest = hashlib.sha256()
        with open(path, "wb") as file:
            for chunk in self.chunks(name):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()

    def write(self, name: str, data: Path | bytes) -> None:
        """Write an object, in place of what is there."""
        with _explained(f"{self.url}/{name}"):
            _obstore().put(self._store, self._path(name), data)

    def write_if(self, name: str, data: bytes, before: StoredObject | None) -> None:
        """Write an object if it is still as it was `before`, None: not there. Raises ConflictError if it is not."""
        mode: Any = "create"
        if before is not None:
            mode = {name: value for name, value in zip(("e_tag", "version"), before.version, strict=True) if value}
        with _explained(f"{self.url}/{name}"):
            _obstore().put(self._store, self._path(name), data, mode=mode)

    def delete(self, names: Collection[str]) -> None:
        """Delete objects; those that are gone already are no error."""
        paths = [self._path(name) for name in names]
        for first in range(0, len(paths), _DELETED_AT_ONCE):
            try:
                with _explained(self.url):
                    _obstore().delete(self._store, paths[first : first + _DELETED_AT_ONCE])
            except FileNotFoundError:
                continue


def open_binary(location: str | os.PathLike[str]) -> BinaryIO:
    """Open a file of this machine, or an object, to read in it."""
    text = os.fspath(location)
    if not is_remote(text):
        return open(text, "rb")
    folder, name = _split(text)
    return folder.open(name)


def read_bytes(folder: str, name: str) -> bytes:
    """Read a file below a folder of this machine, or an object."""
    return ObjectFolder(folder).read(name)[0] if is_remote(folder) else Path(folder, name).read_bytes()


def read_range(location: str, start: int, size: int) -> bytes:
    """Read some bytes of a file of this machine, or of an object; fewer where it ends before."""
    if is_remote(location):
        folder, name = _split(location)
        return folder.read_range(name, start, size)
    with open(location, "rb") as file:
        file.seek(start)
        return file.read(size)


def _split(location: str) -> tuple[ObjectFolder, str]:
    bucket = "/".join(location.split("/", 3)[:3])
    return ObjectFolder(bucket), location[len(bucket) + 1 :]


class _ObjectBytes(io.RawIOBase):
    """An object as Python's unbuffered files are."""

    def __init__(self, folder: ObjectFolder, name: str, size: int) -> None:
        self._folder, self._name, self._size, self._at = folder, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._folder.read_range(self._name, self._at, max(0, min(len(view), self._size - self._at)))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def _obstore() -> Any:
    try:
        import obstore
    except ImportError:
        raise StoreError(
            "s3:// and gs:// need obstore, which is not installed: pip install 'joulecache[cloud]'"
        ) from None
    return obstore


@functools.cache
def _open_store(bucket_url: str) -> Any:
    _obstore()
    from obstore.store import from_url

    with _explained(bucket_url):
        return from_url(bucket_url, retry_config={"max_retries": 4, "retry_timeout": _PATIENCE})


def _stored(name: str, meta: Any) -> StoredObject:
    modified_us = (meta["last_modified"] - _BEGINNING) // timedelta(microseconds=1)
    return StoredObject(name, meta["size"], modified_us * 1000, (meta.get("e_tag"), meta.get("version")))


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Raise obstore's errors as ours, in one line."""
    _obstore()
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"no object at {what}") from None
    except (AlreadyExistsError, PreconditionError):
        raise ConflictError(f"{what} was written by somebody else meanwhile") from None
    except (BaseError, OSError) as error:
        reason = " ".join(str(error).split())[:_LONGEST_MESSAGE]
        raise StoreError(f"{what}: {type(error).__name__}: {reason}") from None
