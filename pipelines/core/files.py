"""Files and folders: atomic writes, locks, digests, and whether a folder may be written to."""

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
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")
_NAME_DIGITS = 8  # of the SHA-256 in the name of a content-named file
_HASHED_BYTES = 1 << 18  # written and hashed in turn, while they are in the processor's cache: a tenth cheaper
_BUFFER_BYTES = 1 << 16  # of small writes; larger ones go straight through

# Writing --------------------------------------------------------------------------------------------------------------


def is_temporary(name: str) -> bool:
    """Return whether a file name is one that `temporary_path` gives; a killed process may leave such a file."""
    return _TEMPORARY.fullmatch(name) is not None


@contextmanager
def temporary_path(folder: Path) -> Iterator[Path]:
    """Yield a path in a folder that no file has; what is there at the end is deleted. Rename it to keep it."""
    path = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Yield a file to write to, which replaces `path` when the block succeeds.

    Readers see the old content or the new one, never a part. An exception leaves the old content.

    Args:
        path: The file to write, in a folder that exists.
        durable: Make content and name survive a power cut, which costs two calls of fsync.
    """
    with temporary_path(path.parent) as temporary:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            sync_folder(path.parent)


def write_bytes(path: Path, data: ReadableBuffer, *, durable: bool = True) -> None:
    """Write a file as `atomic_write` does."""
    with atomic_write(path, durable=durable) as file:
        file.write(data)


def write_text(path: Path, text: str, *, durable: bool = True, errors: str = "strict") -> None:
    """Write a file of UTF-8 as `atomic_write` does; `errors` is that of `str.encode`."""
    write_bytes(path, text.encode("utf-8", errors), durable=durable)


class NamedFile(NamedTuple):
    """A file that is named by its content.

    Attributes:
        bytes: Its size.
        sha256: Its SHA-256, 64 hex digits.
        name: Its name in its folder.
    """

    bytes: int
    sha256: str
    name: str


def write_named(folder: Path, write: Callable[[BinaryIO], object], name: Callable[[str], str]) -> NamedFile:
    """Write a durable file whose name depends on its content. A failure leaves nothing.

    The folder itself is not synced: do so once, after the last file.

    Args:
        folder: The folder of the file.
        write: Writes the content to a file.
        name: Returns the file's name from the first 8 hex digits of the content's SHA-256.
    """
    with temporary_path(folder) as temporary:
        with open(temporary, "xb", buffering=0) as raw:
            hashing = HashingFile(raw)
            file = io.BufferedWriter(hashing, _BUFFER_BYTES)
            write(file)
            file.flush()
            os.fsync(raw.fileno())
        found = NamedFile(hashing.size, hashing.sha256, name(hashing.sha256[:_NAME_DIGITS]))
        temporary.replace(folder / found.name)
        return found


class HashingFile(io.RawIOBase):
    """A raw file that is hashed while it is written, which saves reading it again.

    Attributes:
        size: Bytes written so far.
        sha256: Their SHA-256, 64 hex digits.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """The SHA-256 of what was written so far."""
        return self._hash.hexdigest()

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: ReadableBuffer) -> int:
        """Write and hash bytes; return how many."""
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


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
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
    """Another process holds a lock. It is no OSError: the disk is well.

    Attributes:
        path: The locked file.
        holder: The process id that the holder wrote into it, "unknown" where there is none.
    """

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{str(path)!r} is locked by process {holder}: wait for it or stop it")
        self.path, self.holder = path, holder


@contextmanager
def hold_lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock file for the block, exclusively; the file and its folder are made where they are missing.

    The lock ends with its process, however that ends. The file stays, with the holder's process id in it. The holder may delete it
    inside the block, and its folder: whoever waits for it makes another.

    Args:
        path: The lock file, which is for nothing else.
        wait: Wait while another process holds it.

    Raises:
        LockHeldError: Another process holds it, and `wait` is False.
        OSError: The file cannot be made.
    """
    with _locked(path, wait, make_folder=True) as descriptor:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield


@contextmanager
def lock_path(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold the lock of a file that has content of its own, or of a folder, for the block.

    Args:
        path: A folder, or a file in a folder that exists; a missing file is made.
        wait: Wait while another process holds it.

    Yields:
        The open file descriptor: what is written to a file's is appended. It is closed at the end.

    Raises:
        LockHeldError: Another process holds it, and `wait` is False.
        OSError: The path cannot be opened. FileNotFoundError where its folder is missing, or went while this process waited.
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
            # a former holder may have deleted the folder at any moment, even inside of mkdir
            if not make_folder or (os.path.lexists(path.parent) and not path.parent.is_dir()):
                raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _acquire(path: Path, wait: bool) -> int | None:
    """Return the descriptor of a locked file; None where its former holder has deleted it since it was opened."""
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


def check_folder(
    folder: Path, what: str, is_ours: Callable[[Path], bool], error: Callable[[str], Exception] = ValueError
) -> None:
    """Refuse to write to a folder that holds the user's files.

    Args:
        folder: The folder, which need not exist.
        what: What may be in it: "a joulecache cache".
        is_ours: Returns whether a folder that is not empty is one of those.
        error: The exception to raise.

    Raises:
        ValueError: Or `error`: `folder` is a file, or neither empty nor ours.
        OSError: The folder cannot be read.
    """
    if not os.path.lexists(folder):
        return
    advice = "choose a folder that is empty or does not exist"
    if not folder.is_dir():
        raise error(f"{str(folder)!r} is not a folder: {advice}")
    with os.scandir(folder) as entries:
        is_empty = next(entries, None) is None
    if not is_empty and not is_ours(folder):
        raise error(f"{str(folder)!r} is not empty and not {what}: {advice}")


def refuse_overlap(
    sources: Iterable[Path], folder: Path, what: str, error: Callable[[str], Exception] = ValueError
) -> None:
    """Refuse an output folder that contains a source, or lies inside one. Links are followed.

    Args:
        sources: Files and folders that are read.
        folder: The folder that is written to.
        what: What the message calls the folder: "cache".
        error: The exception to raise.

    Raises:
        ValueError: Or `error`: they overlap.
    """
    outer = folder.resolve()
    for source in sources:
        inner = source.resolve()
        if inner == outer or outer in inner.parents or inner in outer.parents:
            raise error(f"source {str(source)!r} and {what} {str(folder)!r} overlap: choose another {what} folder")


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; if the block fails, delete those of them that are new and still empty."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):  # it holds something by now
            for path in made:
                path.rmdir()
        raise


@contextmanager
def staged_folder(out: Path, *, last: str | None = None, stale: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty folder beside `out`, which takes its place when the block succeeds, and is deleted when it fails.

    If `out` exists, the new files are moved into it one by one, over files of the same name, and other files stay. Check first with
    `check_folder` whether it may be written to.

    Args:
        out: The folder to make; its parents are made too.
        last: The file that is moved last, the one that says what the others are.
        stale: Names of files in `out` to delete if they are not among the new ones.
    """
    out = out.absolute()  # the parent of "." is not "."
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.parent / f".{out.name}-{uuid.uuid4().hex[:8]}.partial"
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
