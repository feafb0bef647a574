"""Build into a folder in an object store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from joulecache.pipelines.building.specs import ShardResult, ShardSpec
from joulecache.pipelines.building.work_folder import (
    UNITS,
    WORK,
    finished_shards,
    hold_work_folder,
    index_name,
    is_energy_log,
    is_work_file,
    result_name,
)
from joulecache.pipelines.cache.cleanup import unlisted
from joulecache.pipelines.cache.data_file import DataFile
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest import MANIFEST, Manifest
from joulecache.pipelines.cache.manifest_io import read_stored_manifest, write_manifest, write_stored_manifest
from joulecache.pipelines.cache.names import is_data_file
from joulecache.pipelines.core.files import temporary_path
from joulecache.pipelines.core.object_store import ConflictError, ObjectFolder, StoredObject


class StoreDestination:
    """A folder in an object store, with a local mirror of everything but images. See `Destination`.

    There is no lock. Concurrent builds of the same source with the same options share their finished shards. Other builds do not
    interfere, since data files are named by their content, and work folders by the build. The first build to write its manifest wins:
    the write succeeds only if the manifest has not changed since the build started.
    """

    poll_s = 5.0  # each poll costs requests

    def __init__(self, url: str, mirror: Path) -> None:
        self._objects, self.folder = ObjectFolder(url), mirror
        self.location, self.work = self._objects.url, WORK
        self._before: StoredObject | None = None
        self._listed: dict[str, StoredObject] = {}
        self._logs: dict[str, StoredObject] = {}  # as fetched
        self._published: set[str] = set()
        self._compared: set[str] = set()  # objects whose bytes are those of their names

    def refuse_overlap(self, source: str | os.PathLike[str], linked: Sequence[Path] = ()) -> None:
        """Compare URLs."""
        cache_url, source_url = (f"{url.rstrip('/')}/" for url in (self.location, os.fspath(source)))
        if cache_url.startswith(source_url) or source_url.startswith(cache_url):
            raise CacheError(f"source {source_url!r} and cache {self.location!r} overlap: choose another cache folder")

    def existing_manifest(self) -> Manifest | None:
        """List the folder, and read the manifest into the mirror."""
        self._listed = {stored.name: stored for stored in self._objects.list()}
        self.folder.mkdir(parents=True, exist_ok=True)
        if MANIFEST in self._listed:
            manifest, self._before = read_stored_manifest(self._objects, self._listed, damaged=True)
            write_manifest(self.folder, manifest)
            return manifest
        foreign = next((name for name in self._listed if not (is_data_file(name) or _is_work_object(name))), None)
        if foreign:
            raise CacheError(
                f"{self.location!r} is not empty and not a joulecache cache, since it holds {foreign!r}: "
                "choose a folder that is empty or does not exist"
            )
        return None

    def prepare_update(self, manifest: Manifest) -> None:
        """Check the sizes of all files, and fetch index and rejects into the mirror."""
        read_stored_manifest(self._objects, self._listed)
        for file in (manifest.index, manifest.rejected):
            if self._objects.fetch(file.name, self.folder / file.name) != file.sha256:
                raise CacheError(f"{self.location}/{file.name} is damaged: its bytes changed")
            self._compared.add(file.name)

    def was_interrupted(self) -> bool:
        """Return False: leftovers of killed builds do no harm, and the next commit deletes them."""
        return False

    def work_of(self, specs: Sequence[ShardSpec]) -> str:
        """Name it by the specifications, so that an interrupted build is found again."""
        digest = hashlib.sha256("".join(spec.digest for spec in specs).encode())
        return f"{WORK}/{digest.hexdigest()[:16]}"

    @contextmanager
    def hold(self, specs: Sequence[ShardSpec]) -> Iterator[Path]:
        """Fetch the finished shards of an interrupted build with the same specifications."""
        self.work = self.work_of(specs)
        with hold_work_folder(self.folder) as work:
            self.fetch_finished()
            yield work

    def is_intact(self, file: DataFile) -> bool:
        """Compare the size: objects are written completely or not at all."""
        return file.name in self._listed and self._listed[file.name].size_bytes == file.bytes

    def keep_only(self, results: Sequence[ShardResult]) -> None:
        """Delete the results of other shards, which `fetch_finished` would consider new, but no data files."""
        stale = finished_shards(self.folder / WORK) - {result.shard for result in results}
        names = [name for shard in stale for name in (result_name(shard), index_name(shard))]
        self._objects.delete([f"{self.work}/{name}" for name in names])
        for name in names:
            (self.folder / WORK / name).unlink(missing_ok=True)

    def refuse_full(self, needed: int) -> None:
        """Do nothing: object stores do not fill up."""

    def work_location(self, name: str) -> str:
        """Return a URL."""
        return f"{self.location}/{self.work}/{name}"

    def publish(self, name: str) -> None:
        """Upload the file."""
        self._published.add(name)
        self._objects.write(f"{self.work}/{name}", self.folder / WORK / name)

    def fetch_finished(self) -> None:
        """Fetch new files and changed energy logs of the work folder, results last, after the files that they name."""
        now = self._objects.find(MANIFEST)
        if (now and now.version) != (self._before and self._before.version):
            raise self._conflict()
        work = self.folder / WORK
        listed = {stored.name.rpartition("/")[2]: stored for stored in self._objects.list(self.work)}
        new = [name for name, stored in listed.items() if self._is_new(name, stored)]
        for name in sorted(new, key=lambda name: name.endswith(".json")):
            with temporary_path(work) as temporary:
                self._objects.fetch(f"{self.work}/{name}", temporary)
                temporary.rename(work / name)
            if is_energy_log(name):
                self._logs[name] = listed[name]

    def _is_new(self, name: str, stored: StoredObject) -> bool:
        if is_energy_log(name):
            return name not in self._published and self._logs.get(name) != stored
        return is_work_file(name) and name != UNITS and not (self.folder / WORK / name).exists()

    def commit(self, manifest: Manifest) -> None:
        """Upload index and rejects, check that all files exist, and write the manifest if no other build has."""
        for file in (manifest.index, manifest.rejected):
            if file.name not in self._compared:
                self._objects.write(file.name, self.folder / file.name)
        names = {stored.name for stored in self._objects.list()}
        if not {file.name for file in manifest.files()} <= names:  # deleted by the build that won
            raise self._conflict()
        try:
            write_stored_manifest(self._objects, manifest, self._before)
        except ConflictError:
            raise self._conflict() from None
        # A build that started before this commit can no longer win, and one that starts after it wrote no file in `names`.
        self._objects.delete([*unlisted(names, manifest), *filter(_is_work_object, names)])

    def _conflict(self) -> CacheError:
        return CacheError(f"{self.location!r} was modified concurrently: run the command again to build on top of it")


def _is_work_object(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return folder.startswith(f"{WORK}/") and is_work_file(file)
