"""The folder of a cache: whose it is, who may write to it, and what may be deleted from it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from joulecache.pipelines.build.recipe import BuildError
from joulecache.pipelines.build.shard import WORK
from joulecache.pipelines.manifest import MANIFEST, CacheError, Manifest, open_manifest
from joulecache.pipelines.shards import is_data_file

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")


def refuse_overlap(source: str | os.PathLike[str], folder: Path) -> None:
    """Raise CacheError when source and cache are, or contain, each other."""
    if os.fspath(source).startswith("synthetic:"):
        return
    inner, outer = Path(source).resolve(), folder.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise CacheError(
            f"source {str(source)!r} and cache {str(folder)!r} lie inside each other: choose another cache folder"
        )


def existing_cache(folder: Path) -> Manifest | None:
    """Return the manifest of a cache that is there, None for a folder that may be filled; CacheError for any other."""
    if folder.exists() and not folder.is_dir():
        raise CacheError(f"{str(folder)!r} is a file: choose a folder that is empty or does not exist")
    if not folder.exists():
        return None
    if (folder / MANIFEST).exists():
        return open_manifest(folder)
    ours = (folder / WORK / "lock").exists()  # a build that was killed before its first manifest
    if any(folder.iterdir()) and not ours:
        raise CacheError(
            f"{str(folder)!r} is not empty and no cache of ours: choose a folder that is empty or does not exist"
        )
    return None


def refuse_full_disk(folder: Path, needed: int) -> None:
    """Raise BuildError when the disk that holds `folder` has fewer than `needed` bytes free."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if needed > free:
        raise BuildError(
            f"the cache takes about {needed / 1e9:.1f} GB, {there} has {free / 1e9:.1f} GB free: choose another disk"
        )


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """Hold the folder for one build; what the build keeps in it is gone afterwards, whatever happened.

    A build that fails before the first manifest leaves no folder behind where there was none.
    """
    work = folder / WORK
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        work.mkdir(parents=True, exist_ok=True)
        lock = open(work / "lock", "a+")  # noqa: SIM115 - held for the whole build
    except OSError as error:
        raise BuildError(f"cannot write to {str(folder)!r}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise CacheError(
                f"{str(folder)!r} is being built by process {lock.read() or 'unknown'}: wait for it or stop it"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        for path in work.iterdir():
            if path.name != "lock":
                path.unlink()
        try:
            yield work
        except BaseException:
            _delete_work(folder)
            if not (folder / MANIFEST).exists():
                _delete_data(folder, keep=frozenset())
                for path in made:
                    path.rmdir()
            raise
        else:
            _delete_work(folder)


def _delete_work(folder: Path) -> None:
    shutil.rmtree(folder / WORK, ignore_errors=True)


def delete_unlisted(folder: Path, manifest: Manifest) -> None:
    """Delete what earlier builds left and the manifest does not name: only files of our own pattern."""
    _delete_data(folder, keep=frozenset(file.name for file in manifest.files()))


def _delete_data(folder: Path, keep: frozenset[str]) -> None:
    """Delete data files that are not to be kept, and temporary ones: only names of our own pattern."""
    for path in folder.iterdir():
        if path.name not in keep and (is_data_file(path.name) or _TEMPORARY.fullmatch(path.name)):
            path.unlink(missing_ok=True)
