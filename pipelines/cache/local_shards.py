"""The files of a cache in an object store that are on this machine: fetched ahead of their use, and deleted where room is needed.

Processes share the folder. Under its lock, which is held briefly, each of them writes a lease of the files that it needs, reserves room for
what it fetches, and deletes files that are in no lease. Files that were fetched ahead give way to those that another reader waits for.
The lease and the files being written are locked for as long as their process lives, so what a killed process left is recognized.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal

from joulecache.pipelines.cache.data_file import DataFile
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.fetching import fetch
from joulecache.pipelines.cache.names import is_data_file
from joulecache.pipelines.core.files import hold_lock, is_temporary
from joulecache.pipelines.core.object_store import ObjectFolder

LOCK = "lock"

_THREADS = 4
_LEASE = re.compile(r"\.[0-9a-f]{32}\.lease")
_PART = ".part"
_POLL_S = 0.1
_PATIENCE_S = 60
"""How long a reader waits for a file of which nothing arrives, and for room that other readers occupy."""


class LocalShards:
    """The files of a cache that are on this machine, with those being fetched at most `limit_bytes`.

    Attributes:
        objects: The cache in the object store.
        folder: The folder for its files, which other processes may use as well.
        limit_bytes: The largest sum of the sizes of all files in the folder. Files in use are never deleted for it.
    """

    def __init__(self, objects: ObjectFolder, folder: Path, limit_bytes: int) -> None:
        self.objects, self.folder, self.limit_bytes = objects, folder, limit_bytes
        self._forget()

    def _forget(self) -> None:
        """Begin without threads and leases: a forked process must not use those of its parent."""
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._needed: dict[str, DataFile] = {}
        self._wanted: dict[str, DataFile] = {}
        self._held: Counter[str] = Counter()
        self._pinned: dict[str, DataFile] = {}
        self._present: set[str] = set()
        self._fetching: set[str] = set()
        self._failed: dict[str, CacheError] = {}
        self._crowded: set[str] = set()
        self._opened: dict[str, Any] = {}
        self._threads = 0
        self._moved_at = time.monotonic()
        self._lease: int | None = None
        self._lease_name = f".{uuid.uuid4().hex}.lease"

    @contextmanager
    def holding(self, now: Sequence[DataFile], ahead: Iterable[DataFile] = ()) -> Iterator[None]:
        """Keep files on this machine while the block runs; wait for those that are missing.

        Args:
            now: The files.
            ahead: Files to fetch in the background, in the order of their use. Files of earlier calls may be deleted unless they are here.

        Raises:
            CacheError: A file is damaged, the store does not answer, or there is no room.
        """
        if os.getpid() != self._process:
            self._forget()
        with self._changed:
            held = {name: file for name, file in self._wanted.items() if self._held[name]}  # by other readers
            needed = {file.name: file for file in (*self._pinned.values(), *held.values(), *now)}
            self._want(needed, needed | {file.name: file for file in ahead})
            self._held.update(file.name for file in now)
        try:
            self._wait(now)
            yield
        finally:
            with self._changed:
                self._held.subtract(file.name for file in now)
                self._held += Counter()  # without zeros

    def pin(self, files: Sequence[DataFile]) -> None:
        """Fetch files, and keep them on this machine while this object exists."""
        with self.holding(files), self._changed:
            self._pinned = {file.name: file for file in files}

    def opened(self, name: str, kind: str, open_file: Callable[[Path], Any]) -> Any:
        """Return what `open_file` returned for a file of `holding`; it is kept until the file is no longer needed."""
        key = f"{name}/{kind}"
        found = self._opened.get(key)
        if found is None:
            found = self._opened[key] = open_file(self.folder / name)
        return found

    def remove_others(self, names: Collection[str]) -> None:
        """Delete data files that are not in `names` and that no process has leased."""
        with self._locked():
            keep = {*names, *self._leased(ahead=True)}
            for name in self._sizes():
                if is_data_file(name) and name not in keep:
                    (self.folder / name).unlink()

    def _want(self, needed: dict[str, DataFile], wanted: dict[str, DataFile]) -> None:
        """Lease the needed files, fetch all that are wanted, and give up others; the caller holds `_changed`."""
        if ([*needed], [*wanted]) == ([*self._needed], [*self._wanted]) and self._lease is not None:
            return
        for key in [key for key in list(self._opened) if key.split("/")[0] not in needed]:
            del self._opened[key]  # a file that is mapped takes room until it is unmapped
        try:
            with self._locked():
                self._write_lease([[*needed], [*wanted]])
                sizes = self._sizes()
        except OSError as error:
            raise CacheError(f"cannot write to {str(self.folder)!r}: {error.strerror or error}") from error
        self._needed, self._wanted = needed, wanted
        self._present = {name for name, file in wanted.items() if sizes.get(name) == file.bytes}

    def _wait(self, files: Sequence[DataFile]) -> None:
        names, began_at = {file.name for file in files}, time.monotonic()
        with self._changed:
            self._start_threads()
            while missing := names - self._present:
                for name in names & self._failed.keys():
                    raise self._failed.pop(name)
                waited_s = time.monotonic() - max(began_at, self._moved_at)
                if waited_s > _PATIENCE_S and missing & self._crowded:
                    raise CacheError(
                        f"no room for {min(missing)} in {str(self.folder)!r}, whose files may have {self.limit_bytes / 1e9:,.2f} GB: "
                        "other readers use it: raise stage_limit_bytes"
                    )
                if waited_s > _PATIENCE_S * 2:
                    raise CacheError(
                        f"{self.objects.url} does not answer: nothing of {min(missing)} arrived in {_PATIENCE_S * 2} s"
                    )
                if _is_ending():
                    raise CacheError(f"the interpreter is ending: nothing is fetched from {self.objects.url} any more")
                self._start_threads()
                self._changed.wait(_POLL_S)

    def _start_threads(self) -> None:
        missing = self._wanted.keys() - self._present - self._failed.keys()
        while self._threads < min(_THREADS, len(missing)):
            self._threads += 1
            # a daemon, since the interpreter may end while the store does not answer
            threading.Thread(target=self._fetch_missing, name="joulecache-fetch", daemon=True).start()

    # In threads --------------------------------------------------------------------------------------------------------

    def _fetch_missing(self) -> None:
        """Fetch what is wanted, in order, until nothing is missing."""
        while True:
            with self._changed:
                skipped = self._present | self._fetching | self._failed.keys()
                file = next((file for name, file in self._wanted.items() if name not in skipped), None)
                if file is None:
                    self._threads -= 1
                    return
                self._fetching.add(file.name)
            error: CacheError | None = None
            arrived = False
            try:
                arrived = self._bring(file)
            except CacheError as caught:
                error = caught
            except OSError as caught:
                error = CacheError(
                    f"cannot copy {self.objects.url}/{file.name} to {str(self.folder)!r}: {caught.strerror or caught}"
                )
            with self._changed:
                self._fetching.remove(file.name)
                if error is not None:
                    self._failed[file.name] = error
                elif arrived and file.name in self._wanted and (self.folder / file.name).is_file():
                    self._present.add(file.name)  # it was leased before, so no process deletes it
                self._changed.notify_all()

    def _bring(self, file: DataFile) -> bool:
        """Fetch a file; return False, after a pause, if there is no room or another process fetches it."""
        reserved = self._reserve(file)
        if reserved is None:
            time.sleep(_POLL_S)  # then needed files are tried first
            return False
        if reserved is not True:
            self._receive(file, reserved)
        return True

    def _receive(self, file: DataFile, part: BinaryIO) -> None:
        """Fetch a file to its locked part, and rename that."""
        with part:
            try:
                fetch(self.objects, file, part, self._moved)
                with self._locked():
                    Path(part.name).rename(self.folder / file.name)
            except BaseException:
                Path(part.name).unlink(missing_ok=True)  # while it is locked
                raise

    def _moved(self) -> None:
        self._moved_at = time.monotonic()

    # In the folder -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with hold_lock(self.folder / LOCK):
            yield

    def _sizes(self) -> dict[str, int]:
        """Return the sizes of the data files and of files being written; call this under the lock."""
        sizes = {}
        for entry in os.scandir(self.folder):
            if is_data_file(entry.name) or entry.name.endswith(_PART):
                with suppress(FileNotFoundError):
                    sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
        return sizes

    def _write_lease(self, names: list[list[str]]) -> None:
        path = self.folder / self._lease_name
        if self._lease is None:
            self._remove_leftovers()
            self._lease = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(self._lease, fcntl.LOCK_EX)
        data = json.dumps(names).encode()
        os.ftruncate(self._lease, 0)
        os.pwrite(self._lease, data, 0)

    def _remove_leftovers(self) -> None:
        """Delete what processes that were killed have left."""
        for entry in list(os.scandir(self.folder)):
            name = entry.name
            if is_temporary(name) or ((name.endswith(_PART) or _LEASE.fullmatch(name)) and _is_free(Path(entry.path))):
                Path(entry.path).unlink(missing_ok=True)

    def _leased(self, *, ahead: bool) -> set[str]:
        """Return the files that readers need, or also those fetched `ahead`; delete the leases of processes that ended."""
        names: set[str] = set()
        for entry in list(os.scandir(self.folder)):
            if not _LEASE.fullmatch(entry.name):
                continue
            if _is_free(Path(entry.path)):
                Path(entry.path).unlink(missing_ok=True)
            else:
                with suppress(FileNotFoundError):  # given up in this moment
                    names.update(json.loads(Path(entry.path).read_bytes())[ahead])
        return names

    def _reserve(self, file: DataFile) -> BinaryIO | Literal[True] | None:
        """Return a locked file to write to; True if the file is there; None if there is no room, or another process fetches it."""
        path = self.folder / f".{file.name}{_PART}"
        with self._locked():
            sizes = self._sizes()
            if sizes.pop(path.name, None) is not None and not _is_free(path):
                return None
            if sizes.get(file.name) == file.bytes:
                return True
            excess = sum(sizes.values()) + file.bytes - self.limit_bytes
            if excess > 0 and not self._make_room(excess, sizes, ahead=True):
                is_needed = file.name in self._needed
                if not (is_needed and self._make_room(excess, sizes, ahead=False)):
                    self._crowded.add(file.name)
                    return None
            self._crowded.discard(file.name)
            part = open(path, "w+b")  # noqa: SIM115 - `_receive` closes it
            try:
                fcntl.flock(part, fcntl.LOCK_EX)
                part.truncate(file.bytes)  # counted from now on
            except BaseException:
                part.close()
                raise
        return part

    def _make_room(self, excess: int, sizes: dict[str, int], *, ahead: bool) -> bool:
        """Delete the oldest files that are not `_leased`, of at least `excess` bytes; none if that is not enough."""
        leased = self._leased(ahead=ahead)
        unused = [
            name for name in sizes if name not in leased and (not name.endswith(_PART) or _is_free(self.folder / name))
        ]
        unused.sort(key=lambda name: (self.folder / name).stat().st_mtime_ns)
        if sum(sizes[name] for name in unused) < excess:
            return False
        for name in unused:
            if excess <= 0:
                break
            (self.folder / name).unlink()
            excess -= sizes[name]
        return True

    def close(self) -> None:
        """Give up all files."""
        if self._lease is not None and os.getpid() == self._process:
            with suppress(OSError):
                (self.folder / self._lease_name).unlink(missing_ok=True)
                os.close(self._lease)
            self._lease = None

    def __del__(self) -> None:
        self.close()


def _is_ending() -> bool:
    """Return whether the interpreter is ending, and waits for the threads that read: then pools of threads refuse work."""
    try:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(int)
    except RuntimeError:
        return True
    return False


def _is_free(path: Path) -> bool:
    """Return whether no living process holds the lock of a file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
