"""The folder of a cache: whose it is, who may write to it, and what may be deleted from it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from joulecache.pipelines.building.config import BuildError, EngineError, RejectsError
from joulecache.pipelines.building.journal import ENERGY_LOG
from joulecache.pipelines.building.shard import WORK, WORK_FILE, ShardResult
from joulecache.pipelines.cache.manifest import MANIFEST, CacheError, Manifest, read_manifest
from joulecache.pipelines.cache.shards import is_data_file

_LOCK = "lock"
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")


def refuse_overlap(paths: Sequence[Path], folder: Path) -> None:
    """Raise CacheError when a path of the source and the cache are, or contain, each other."""
    outer = folder.resolve()
    for path in paths:
        inner = path.resolve()
        if inner == outer or outer in inner.parents or inner in outer.parents:
            raise CacheError(
                f"source {str(path)!r} and cache {str(folder)!r} lie inside each other: choose another cache folder"
            )


def existing_cache(folder: Path) -> Manifest | None:
    """Return the manifest of a cache that is there, None for a folder that may be filled; CacheError for any other.

    The files of the cache may be missing or damaged.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise CacheError(f"{str(folder)!r} is a file: choose a folder that is empty or does not exist")
        if not folder.exists():
            return None
        if (folder / MANIFEST).exists():
            return read_manifest(folder)
        if any(folder.iterdir()) and not _was_killed(folder / WORK):
            raise CacheError(
                f"{str(folder)!r} is not empty and no cache of ours: choose a folder that is empty or does not exist"
            )
    except OSError as error:
        raise CacheError(f"cannot read {str(folder)!r}: {error.strerror}") from error
    return None


def _was_killed(work: Path) -> bool:
    """Say whether a build was killed here before its first manifest, perhaps before it had its lock."""
    return (work / _LOCK).is_file() or (work.is_dir() and not any(work.iterdir()))


def refuse_full_disk(folder: Path, needed: int) -> None:
    """Raise BuildError when the disk that holds `folder` has fewer than `needed` bytes free."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if needed > free:
        raise BuildError(
            f"the cache takes about {needed / 1e6:,.1f} MB, {there} has {free / 1e6:,.1f} MB free: choose another disk"
        )


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """Hold the folder for one build; what the build keeps in it is gone afterwards.

    A build that is stopped, whose runner fails, or that has too many rejects leaves its finished shards for the next. One that fails
    in another way before the first manifest leaves no folder behind where there was none.
    """
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        lock = _hold_lock(folder)
    except OSError as error:
        raise BuildError(f"cannot write to {str(folder)!r}: {error.strerror}") from error
    with lock:
        try:
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield folder / WORK
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | EngineError | RejectsError) and any(
                (folder / WORK).glob("*.json")
            ):
                raise
            delete_unlisted(folder)
            _delete_work(folder)
            with suppress(OSError):  # someone else's file is in it by now
                for path in made:
                    path.rmdir()
            raise
        else:
            _delete_work(folder)


def _hold_lock(folder: Path) -> IO[str]:
    """Return the open lock of the folder, held by us; CacheError when another build holds it."""
    path = folder / WORK / _LOCK
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "a+", opener=_no_link)  # noqa: SIM115 - held for the whole build
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read() or "unknown"
            lock.close()
            raise CacheError(f"{str(folder)!r} is being built by process {holder}: wait for it or stop it") from error
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(lock.fileno())):
                return lock
        lock.close()  # the build that held it has ended since, and taken it along: make another


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _delete_work(folder: Path) -> None:
    with suppress(OSError):  # the next build deletes what is left
        _delete_work_files(folder)
        (folder / WORK / _LOCK).unlink()
        (folder / WORK).rmdir()


def _delete_work_files(folder: Path) -> None:
    for path in (folder / WORK).iterdir():
        if WORK_FILE.fullmatch(path.name):
            path.unlink()


def keep_only(folder: Path, results: Sequence[ShardResult]) -> None:
    """Delete what earlier builds left but the results of these shards; all of it, their energy too, where there is none."""
    keep = {name for result in results for name in (result.index, f"{result.shard:05d}.json", ENERGY_LOG)}
    for path in (folder / WORK).iterdir():
        if WORK_FILE.fullmatch(path.name) and path.name not in keep:
            path.unlink()
    delete_unlisted(folder, {file.name for result in results for files in result.files.values() for file in files})


def delete_unlisted(folder: Path, also_keep: Collection[str] = ()) -> None:
    """Delete data files that the manifest does not name, and temporary ones: only names of our own pattern."""
    manifest = read_manifest(folder) if (folder / MANIFEST).exists() else None
    keep = {file.name for file in manifest.files()} if manifest else set()
    keep.update(also_keep)
    for path in folder.iterdir():
        if path.name not in keep and (is_data_file(path.name) or _TEMPORARY.fullmatch(path.name)):
            path.unlink()
