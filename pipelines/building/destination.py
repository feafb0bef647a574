"""Where a cache is built: a folder of this machine, or one in an object store that every worker reaches."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from joulecache.pipelines.building.folder import (
    delete_unlisted,
    existing_cache,
    keep_only,
    refuse_full_disk,
    refuse_overlap,
    work_folder,
)
from joulecache.pipelines.building.shard import UNITS, WORK, WORK_FILE, ShardResult, ShardSpec, index_part, result_name
from joulecache.pipelines.cache.manifest import (
    MANIFEST,
    CacheError,
    Manifest,
    check_files,
    read_manifest,
    read_stored_manifest,
    write_manifest,
    write_stored_manifest,
)
from joulecache.pipelines.cache.shards import DataFile, is_data_file
from joulecache.pipelines.core.object_store import ConflictError, ObjectFolder, StoredObject, is_remote
from joulecache.pipelines.source import source_paths


class Destination(Protocol):
    """Where a cache is built.

    `where` is what workers are told, `work` the work folder in it, `folder` the folder of this machine in which the rest is done. `look_s`
    is how often to look for what workers have finished.
    """

    where: str
    work: str
    folder: Path
    look_s: float

    def refuse_overlap(self, source: str | os.PathLike[str]) -> None:
        """Raise CacheError when the source and the cache are, or contain, each other."""

    def existing(self) -> Manifest | None:
        """Return the manifest of the cache that is there, None where one may be built; CacheError where none may."""

    def check(self, manifest: Manifest) -> None:
        """Bring here what an update of the cache needs; CacheError when its files are missing or damaged."""

    def was_left(self) -> bool:
        """Say whether a build was killed there."""

    def hold(self, specs: Sequence[ShardSpec]) -> AbstractContextManager[Path]:
        """Hold it for one build; return the work folder of this machine, with what a stopped one left, which is gone afterwards.

        Raises CacheError where another build is at work, or has ended since `existing`.
        """

    def is_whole(self, file: DataFile) -> bool:
        """Say whether a shard that was left there has its bytes."""

    def keep_only(self, results: Sequence[ShardResult]) -> None:
        """Delete what earlier builds left but these shards."""

    def refuse_full(self, needed: int) -> None:
        """Raise BuildError where so many bytes do not fit."""

    def location(self, name: str) -> str:
        """Return where workers find a file of the work folder that is shared."""

    def share(self, name: str) -> None:
        """Let workers, and a later build, read a file of the work folder."""

    def collect(self) -> None:
        """Bring into the work folder what workers have finished since; CacheError when the cache is somebody else's by now."""

    def commit(self, manifest: Manifest) -> None:
        """Make a manifest visible, with the files that it names, and delete what it does not; CacheError where another one was made."""


def open_destination(cache: str | os.PathLike[str]) -> AbstractContextManager[Destination]:
    """Return where a cache is to be built."""
    return _in_store(os.fspath(cache)) if is_remote(cache) else _in_folder(Path(cache))


@contextmanager
def _in_folder(folder: Path) -> Iterator[Destination]:
    yield LocalFolder(folder)


@contextmanager
def _in_store(url: str) -> Iterator[Destination]:
    with tempfile.TemporaryDirectory(prefix="joulecache-") as mirror:
        yield StoreFolder(url, Path(mirror, "cache"))


class LocalFolder:
    """A folder of this machine, or one that all workers see by the same name."""

    work, look_s = WORK, 0.5

    def __init__(self, folder: Path) -> None:
        """Take the folder, which need not be there."""
        self.folder, self.where = folder, str(folder.absolute())
        self._before: Manifest | None = None

    def refuse_overlap(self, source: str | os.PathLike[str]) -> None:
        """Compare paths, links followed."""
        refuse_overlap(source_paths(source), self.folder)

    def existing(self) -> Manifest | None:
        """Look into the folder."""
        self._before = existing_cache(self.folder)
        return self._before

    def check(self, manifest: Manifest) -> None:
        """Look at sizes."""
        check_files(self.folder, manifest)

    def was_left(self) -> bool:
        """Look for its work folder."""
        return (self.folder / WORK).exists()

    @contextmanager
    def hold(self, specs: Sequence[ShardSpec]) -> Iterator[Path]:
        """Lock the folder."""
        with work_folder(self.folder) as work:
            now = read_manifest(self.folder) if (self.folder / MANIFEST).exists() else None
            if now != self._before:
                raise CacheError(f"{str(self.folder)!r} was rebuilt meanwhile: run the command again")
            yield work

    def is_whole(self, file: DataFile) -> bool:
        """Hash it."""
        with open(self.folder / file.name, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256

    def keep_only(self, results: Sequence[ShardResult]) -> None:
        """Delete files."""
        keep_only(self.folder, results)

    def refuse_full(self, needed: int) -> None:
        """Ask the disk."""
        refuse_full_disk(self.folder, needed)

    def location(self, name: str) -> str:
        """Return its path."""
        return str(Path(self.where, WORK, name))

    def share(self, name: str) -> None:
        """Do nothing: workers see the folder."""

    def collect(self) -> None:
        """Do nothing: workers write here."""

    def commit(self, manifest: Manifest) -> None:
        """Rename it into place."""
        write_manifest(self.folder, manifest)
        delete_unlisted(self.folder)


class StoreFolder:
    """A folder in an object store, with a mirror here of what is no image.

    Nothing locks it. Two builds of the same recipe and source share their shards, other ones do not meet: data files are named by their
    content, the rest lies in a work folder for each build. Of those that finish, the first that writes its manifest wins: the write
    succeeds only if the manifest is still the one that the build began with.
    """

    look_s = 5.0  # each look is a request

    def __init__(self, url: str, mirror: Path) -> None:
        """Take the address, and a folder of this machine to work in."""
        self._objects, self.folder = ObjectFolder(url), mirror
        self.where, self.work = self._objects.url, WORK
        self._before: StoredObject | None = None
        self._there: dict[str, StoredObject] = {}

    def refuse_overlap(self, source: str | os.PathLike[str]) -> None:
        """Compare addresses."""
        one, other = (f"{each.rstrip('/')}/" for each in (os.fspath(source), self.where))
        if one.startswith(other) or other.startswith(one):
            raise CacheError(
                f"source {one!r} and cache {self.where!r} lie inside each other: choose another cache folder"
            )

    def existing(self) -> Manifest | None:
        """List the folder, and read the manifest and the index."""
        self._there = {stored.name: stored for stored in self._objects.list()}
        self.folder.mkdir(parents=True, exist_ok=True)
        if MANIFEST in self._there:
            manifest, self._before = read_stored_manifest(self._objects, self._there, damaged=True)
            write_manifest(self.folder, manifest)
            return manifest
        strange = next((name for name in self._there if not _is_ours(name)), None)
        if strange:
            raise CacheError(
                f"{self.where!r} is not empty and no cache of ours, it holds {strange!r}: choose a folder that is empty or does not exist"
            )
        return None

    def check(self, manifest: Manifest) -> None:
        """Look at sizes, and fetch the index and the rejects."""
        read_stored_manifest(self._objects, self._there)
        for file in (manifest.index, manifest.rejected):
            if self._objects.fetch(file.name, self.folder / file.name) != file.sha256:
                raise CacheError(f"{self.where}/{file.name} is damaged: its bytes changed")

    def was_left(self) -> bool:
        """No: what stopped builds left is deleted by the next commit, and is in nobody's way."""
        return False

    @contextmanager
    def hold(self, specs: Sequence[ShardSpec]) -> Iterator[Path]:
        """Fetch what a stopped build of the same specifications has finished."""
        digest = hashlib.sha256("".join(spec.digest for spec in specs).encode())
        self.work = f"{WORK}/{digest.hexdigest()[:16]}"
        with work_folder(self.folder) as work:
            self.collect()
            yield work

    def is_whole(self, file: DataFile) -> bool:
        """Look at its size: objects are written whole or not at all."""
        return file.name in self._there and self._there[file.name].size_bytes == file.bytes

    def keep_only(self, results: Sequence[ShardResult]) -> None:
        """Delete the results of the other shards of this build, or `collect` would take them for new ones; no data files."""
        keep = {result.shard for result in results}
        useless = [int(path.stem) for path in (self.folder / WORK).glob("*.json") if int(path.stem) not in keep]
        names = [name for shard in useless for name in (result_name(shard), index_part(shard))]
        self._objects.delete([f"{self.work}/{name}" for name in names])
        for name in names:
            (self.folder / WORK / name).unlink(missing_ok=True)

    def refuse_full(self, needed: int) -> None:
        """Do nothing: object stores do not fill up. Workers need room for two shards each."""

    def location(self, name: str) -> str:
        """Return its address."""
        return f"{self.where}/{self.work}/{name}"

    def share(self, name: str) -> None:
        """Upload it."""
        self._objects.write(f"{self.work}/{name}", self.folder / WORK / name)

    def collect(self) -> None:
        """Fetch what is new of the work folder; a shard's result last, after what it names."""
        now = self._objects.find(MANIFEST)
        if (now and now.version) != (self._before and self._before.version):
            raise self._lost()
        fresh = [
            name
            for stored in self._objects.list(self.work)
            if WORK_FILE.fullmatch(name := stored.name.rpartition("/")[2])
            and name != UNITS
            and not (self.folder / WORK / name).exists()
        ]
        for name in sorted(fresh, key=lambda name: name.endswith(".json")):
            temporary = self.folder / WORK / f"{name}.fetched"
            self._objects.fetch(f"{self.work}/{name}", temporary)
            temporary.rename(self.folder / WORK / name)

    def commit(self, manifest: Manifest) -> None:
        """Upload index and rejects, see that all is there, and write the manifest if nobody else has."""
        for file in (manifest.index, manifest.rejected):
            if file.name not in self._there:
                self._objects.write(file.name, self.folder / file.name)
        there = {stored.name for stored in self._objects.list()}
        keep = {file.name for file in manifest.files()}
        if not keep <= there:  # a build that has won deleted some
            raise self._lost()
        try:
            write_stored_manifest(self._objects, manifest, self._before)
        except ConflictError:
            raise self._lost() from None
        # Whoever began before this commit can win no more, and whoever begins after it has written nothing that `there` lists.
        self._objects.delete([name for name in there - keep if _is_ours(name)])

    def _lost(self) -> CacheError:
        return CacheError(
            f"{self.where!r} was built by somebody else meanwhile, and is theirs now: look at it, and run the command again"
        )


def _is_ours(name: str) -> bool:
    """Say whether an object of a cache folder has a name that a build gives."""
    folder, _, last = name.rpartition("/")
    if folder.startswith(f"{WORK}/"):
        return WORK_FILE.fullmatch(last) is not None
    return is_data_file(name)
