"""The work folder: temporary files of a build inside the cache folder."""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from joulecache.pipelines.building.config import BuildError, EngineError, RejectsError
from joulecache.pipelines.cache.cleanup import delete_unlisted
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest_io import find_manifest
from joulecache.pipelines.core.files import LockHeldError, hold_lock, made_folder

WORK = ".building"
UNITS = "units.arrow"
_LOCK = "lock"
_ENERGY_LOG = re.compile(r"energy-[0-9a-f]{32}\.log")
_FILE = re.compile(
    rf"\d{{5,}}\.(json|tmp)|features-[0-9a-f]{{8}}\.txt|index-\d{{5,}}\.arrow|energy\.(log|tmp)|{_ENERGY_LOG.pattern}|units\.arrow|\.[0-9a-f]{{32}}\.tmp"
)


def result_name(shard: int) -> str:
    """Return the name of a shard's result."""
    return f"{shard:05d}.json"


def features_name(digest: str) -> str:
    """Return the name of the features, given the first 8 hex digits of their SHA-256."""
    return f"features-{digest}.txt"  # of JSON: the .json files are results


def index_name(shard: int) -> str:
    """Return the name of a shard's part of the index."""
    return f"index-{shard:05d}.arrow"


def energy_log_name() -> str:
    """Return a new name for the energy log of a process."""
    return f"energy-{uuid.uuid4().hex}.log"


def is_energy_log(name: str) -> bool:
    """Return whether a file of the work folder is the energy log of a process, which changes while the process works."""
    return _ENERGY_LOG.fullmatch(name) is not None


def energy_logs(work: Path) -> list[Path]:
    """Return the energy logs of all processes."""
    return sorted(path for path in work.glob("*.log") if is_energy_log(path.name))


def is_work_file(name: str) -> bool:
    """Return whether builds use this file name in the work folder. Files with other names are never deleted."""
    return _FILE.fullmatch(name) is not None


def finished_shards(work: Path) -> set[int]:
    """Return the shards with a result."""
    return {int(path.stem) for path in work.glob("*.json") if is_work_file(path.name)}


def was_interrupted(folder: Path) -> bool:
    """Return whether a build of a cache folder was killed, perhaps before it locked the folder."""
    work = folder / WORK
    return (work / _LOCK).is_file() or (work.is_dir() and all(is_work_file(path.name) for path in work.iterdir()))


@contextmanager
def hold_work_folder(folder: Path) -> Iterator[Path]:
    """Lock a cache folder for a build and yield its work folder, which is deleted at the end.

    The work folder and finished shards are kept if the build is interrupted, its runner fails or it has too many rejects, and the next
    build resumes. After other failures, all files that the manifest does not list are deleted, and so is a new cache folder.

    Raises:
        CacheError: Another build holds the folder.
        BuildError: The folder cannot be written to.
    """
    work = folder / WORK
    with ExitStack() as stack:
        try:
            stack.enter_context(made_folder(folder))
            stack.enter_context(hold_lock(work / _LOCK, wait=False))
        except LockHeldError as error:
            raise CacheError(
                f"{str(folder)!r} is being built by process {error.holder}: wait for it or stop it"
            ) from error
        except OSError as error:
            raise BuildError(f"cannot write to {str(folder)!r}: {error.strerror}") from error
        try:
            yield work
        except BaseException as error:
            if not (_keeps_shards(error) and finished_shards(work)):
                delete_unlisted(folder, find_manifest(folder))
                _delete(work)
            raise
        _delete(work)


def _keeps_shards(error: BaseException) -> bool:
    return isinstance(error, KeyboardInterrupt | EngineError | RejectsError)


def _delete(work: Path) -> None:
    with suppress(OSError):  # the next build deletes the rest
        delete_work_files(work)
        (work / _LOCK).unlink()
        work.rmdir()


def delete_work_files(work: Path, keep: Collection[str] = ()) -> None:
    """Delete the files of earlier builds in a work folder, except the lock and `keep`."""
    for path in work.iterdir():
        if is_work_file(path.name) and path.name not in keep:
            path.unlink()
