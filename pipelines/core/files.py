"""Files and folders: atomic writes, locks, digests, and checks of output folders."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STORES = (("s3:",), ("gs:",))  # first parts of URLs taken for paths
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")
_NAME_DIGITS = 8  # hex digits of the SHA-256 in the name of a content-named file
_HASHED_BYTES = 1 << 18  # written, then hashed while still in the CPU cache: a tenth cheaper
_BUFFER_BYTES = 1 << 16  # for small writes; larger ones bypass the buffer

# Writing --------------------------------------------------------------------------------------------------------------


def is_temporary(name: str) -> bool:
    """Return whether `temporary_path` generates such a file name; a killed process may leave a file behind."""
    return _TEMPORARY.fullmatch(name) is not None


@contextmanager
def temporary_path(folder: Path) -> Iterator[Path]:
    """Yield an unused path in a folder. A file at this path is deleted at the end: rename it to keep it."""
    path = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Yield a file that replaces `path` when the block succeeds.

    Readers see either the old content or the new content. An exception leaves the old content.

    Args:
        path: The file to write, in an existing folder.
        durable: Make content and name survive a power failure, which costs two calls to fsync.
    """
    with temporary_path(path.parent) as temporary:
        with _naming(path):
            temporary.touch(exist_ok=False)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        with _naming(path):
            temporary.replace(path)
        if durable:
            sync_folder(path.parent)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let errors name a path that was asked for instead of a temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_bytes(path: Path, data: ReadableBuffer, *, durable: bool = True) -> None:
    """Write a file atomically; see `atomic_write`."""
    with atomic_write(path, durable=durable) as file:
        file.write(data)


def write_text(path: Path, text: str, *, durable: bool = True, errors: str = "strict") -> None:
    """Write a UTF-8 file atomically; see `atomic_write`. `errors` is passed to `str.encode`."""
    write_bytes(path, text.encode("utf-8", errors), durable=durable)


class NamedFile(NamedTuple):
    """Size, SHA-256 and name of a file that is named by its content."""

    bytes: int
    sha256: str
    name: str


def write_named(folder: Path, write: Callable[[BinaryIO], object], name: Callable[[str], str]) -> NamedFile:
    """Write a durable file whose name depends on its content. A failure leaves no file.

    The folder is not synced: call `sync_folder` once, after the last file.

    Args:
        folder: The folder of the file.
        write: Writes the content to an open file.
        name: Returns the file's name for the first 8 hex digits of the content's SHA-256.
    """
    with temporary_path(folder) as temporary:
        with open(temporary, "xb", buffering=0) as raw:
            hashing = HashingFile(raw)
            file = io.BufferedWriter(hashing, _BUFFER_BYTES)
            write(file)
            file.flush()
            os.fsync(raw.fileno())
        named = NamedFile(hashing.size, hashing.sha256, name(hashing.sha256[:_NAME_DIGITS]))
        temporary.replace(folder / named.name)
        return named


class HashingFile(io.RawIOBase):
    """A raw file that is hashed while it is written, which avoids reading it again.

    Attributes:
        size: Bytes written so far.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes written so far, 64 hex digits."""
        return self._hash.hexdigest()

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: ReadableBuffer) -> int:
        """Write and hash bytes; return their number."""
        view = memoryview(data).cast("B")
        before = self.size
        for start in range(0, len(view), _HASHED_BYTES):
            piece = view[start : start + _HASHED_BYTES]
            written = self._file.write(piece)
            self._hash.update(piece[:written])
            self.size += written
            if written < len(piece):
                break
        return self.size - before


class RangeReader(io.RawIOBase):
    """An unbuffered file of `size` bytes, which are read by `read_at(start, size)`."""

    def __init__(self, read_at: Callable[[int, int], bytes], size: int) -> None:
        self._read_at, self._size, self._at = read_at, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position; return it."""
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read up to the size of the buffer; return the number of bytes."""
        view = memoryview(buffer).cast("B")
        data = self._read_at(self._at, max(0, min(len(view), self._size - self._at)))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def sync_folder(folder: Path) -> None:
    """Make the file names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# Locks ----------------------------------------------------------------------------------------------------------------


class LockHeldError(Exception):
    """Another process holds a lock. Not an OSError, since the file system works.

    Attributes:
        path: The locked file.
        holder: Process id in the file, or "unknown".
    """

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{str(path)!r} is locked by process {holder}: wait for it or stop it")
        self.path, self.holder = path, holder


@contextmanager
def hold_lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a lock file, created with its folder if missing.

    The lock is released when its process ends, even if killed. The file stays, with the process id of the holder. Inside the block,
    the holder may delete the file and its folder: the next holder creates them again.

    Args:
        path: The lock file, without other content.
        wait: Wait while another process holds the lock.

    Raises:
        LockHeldError: Another process holds the lock, and `wait` is False.
        OSError: The file cannot be created.
    """
    with _locked(path, wait, make_folder=True) as descriptor:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield


@contextmanager
def lock_path(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold an exclusive lock on a file that has content, or on a folder.

    Args:
        path: A folder, or a file in an existing folder; a missing file is created.
        wait: Wait while another process holds the lock.

    Yields:
        The open file descriptor. Writes to a file are appended. It is closed at the end.

    Raises:
        LockHeldError: Another process holds the lock, and `wait` is False.
        OSError: The path cannot be opened. FileNotFoundError: Its folder is missing, or was deleted during the wait.
    """
    with _locked(path, wait, make_folder=False) as descriptor:
        yield descriptor


@contextmanager
def _locked(path: Path, wait: bool, *, make_folder: bool) -> Iterator[int]:
    descriptor = None
    while descriptor is None:
        try:
            if make_folder:
                path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _acquire(path, wait)
        except (FileNotFoundError, FileExistsError):
            # a previous holder may have deleted the folder at any time, even during mkdir
            if not make_folder or (os.path.lexists(path.parent) and not path.parent.is_dir()):
                raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _acquire(path: Path, wait: bool) -> int | None:
    """Return the descriptor of a locked file; None if its previous holder deleted it after it was opened here."""
    descriptor = _open_to_lock(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
    except BlockingIOError as error:
        held = LockHeldError(path, _holder(descriptor))
        os.close(descriptor)
        raise held from error
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _open_to_lock(path: Path) -> int:
    if path.is_dir():
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def _holder(descriptor: int) -> str:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return "unknown"
    text = os.pread(descriptor, 20, 0)
    return text.decode() if text.isdigit() else "unknown"


# Folders --------------------------------------------------------------------------------------------------------------


def mtime_ns(status: os.stat_result) -> int:
    """Return when a file was modified, in nanoseconds; a time that 64 bits cannot hold, after the year 2262, as the last one."""
    return min(status.st_mtime_ns, 2**63 - 1)


def unexpanded_home(path: Path) -> str:
    """Return the rest of an error message for a path that begins with ``~`` or ``~user``; "" for any other."""
    expanded = os.path.expanduser(path)  # noqa: PTH111 - pathlib raises where there is no home
    return "" if expanded == str(path) else f": only shells expand '~', and not after '=': write {expanded!r}"


def check_folder(
    folder: Path, what: str, is_expected: Callable[[Path], bool], error: Callable[[str], Exception] = ValueError
) -> None:
    """Refuse to write to a folder that holds the user's files.

    Args:
        folder: The folder, which need not exist.
        what: The expected content, for the message: "a joulecache cache".
        is_expected: Returns whether a folder has this content.
        error: The exception to raise.

    Raises:
        ValueError: `folder` is a file, has other content, or begins with ``~``. `error` replaces ValueError.
        OSError: The folder cannot be read.
    """
    if not os.path.lexists(folder):
        if hint := unexpanded_home(folder):
            raise error(f"no folder {str(folder)!r}{hint}")
        return
    advice = "choose a folder that is empty or does not exist"
    if not folder.is_dir():
        raise error(f"{str(folder)!r} is not a folder: {advice}")
    with os.scandir(folder) as entries:
        is_empty = next(entries, None) is None
    if not is_empty and not is_expected(folder):
        raise error(f"{str(folder)!r} is not empty and not {what}: {advice}")


def check_writable(folder: Path, what: str) -> None:
    """Raise ValueError if no file can be created in a folder, or if it does not exist and cannot be created.

    A file or folder is created there and deleted: permission bits say nothing about root, quotas and read-only file systems.

    Args:
        folder: The folder, which need not exist.
        what: Name of the argument, for the message: "out".
    """
    if folder.parts[:1] in _STORES:
        raise ValueError(f"{what} must be a folder on this machine, not in an object store, got {str(folder)!r}")
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    probe = nearest / f".{uuid.uuid4().hex}.tmp"
    try:
        if nearest == folder.absolute():
            probe.touch(exist_ok=False)
            probe.unlink()
        else:
            probe.mkdir()
            probe.rmdir()
    except OSError as error:
        raise ValueError(
            f"{what} must be a folder that can be written to ({error.strerror}), got {str(folder)!r}"
        ) from error


def overlap(one: Path, other: Path) -> bool:
    """Return whether two paths are the same or one contains the other. Links are followed."""
    first, second = one.resolve(), other.resolve()
    return first == second or first in second.parents or second in first.parents


def refuse_overlap(
    sources: Iterable[Path], folder: Path, what: str, error: Callable[[str], Exception] = ValueError
) -> None:
    """Refuse an output folder that contains a source or is inside one. Links are followed.

    Args:
        sources: Files and folders to read.
        folder: The output folder.
        what: Name of the output folder, for the message: "cache".
        error: The exception to raise.

    Raises:
        ValueError: They overlap. `error` replaces ValueError.
    """
    for source in sources:
        if overlap(source, folder):
            raise error(f"source {str(source)!r} and {what} {str(folder)!r} overlap: choose another {what} folder")


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Create a folder and its parents; if the block fails, delete the new ones that are still empty."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):  # not empty
            for path in new:
                path.rmdir()
        raise


@contextmanager
def staged_folder(out: Path, *, last: str | None = None, stale: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty folder next to `out` that becomes `out` when the block succeeds, and is deleted when it fails.

    If `out` exists, the new files are moved into it one by one, over files of the same name, and other files stay. Call `check_folder`
    first.

    Args:
        out: The folder to create, with its parents.
        last: The file to move last: the one that lists the others.
        stale: Names of files in `out` to delete if they are not replaced.
    """
    out = out.absolute()  # the parent of "." is not "."
    staging = out.parent / f".{out.name}-{uuid.uuid4().hex[:8]}.partial"
    with _naming(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
    try:
        yield staging
        if not out.exists():
            staging.rename(out)
            return
        names = {path.name for path in staging.iterdir()}
        for name in sorted(names, key=lambda name: name == last):
            (staging / name).replace(out / name)
        for name in set(stale) - names:
            (out / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
