"""The folder in which a worker builds a shard: that of the cache, or a temporary one for a remote cache."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

from joulecache.pipelines.building.metering import ProcessLog
from joulecache.pipelines.building.specs import ShardResult, ShardSpec, write_result
from joulecache.pipelines.building.work_folder import WORK, result_name
from joulecache.pipelines.building.work_log import WorkLog, begin_shard
from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.core.files import write_text
from joulecache.pipelines.core.object_store import ObjectFolder, is_remote


class Workspace:
    """The folder in which one shard is built. Another thread may close it.

    Attributes:
        spec: The shard's specification, with this folder as its cache.
    """

    def __init__(self, spec: ShardSpec) -> None:
        """Fetch the shard's files of an existing remote cache. Raises StoreError."""
        self.spec = spec
        self._objects: ObjectFolder | None = None
        self._work = spec.work
        if is_remote(spec.cache):
            self._objects = ObjectFolder(spec.cache)
            self._scratch = tempfile.TemporaryDirectory(prefix="joulecache-")
            folder = Path(self._scratch.name)
            (folder / WORK).mkdir()
            self.spec = dataclasses.replace(spec, cache=str(folder), work=WORK)
        self._log: WorkLog | None = begin_shard(spec.cache, spec.work, spec.shard, spec.metering, self._save)
        try:
            if self._objects and spec.previous:
                _fetch(self._objects, spec.previous.manifest, Path(self.spec.cache))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def upload(self, result: ShardResult, *names: str) -> None:
        """Upload the files of a shard, and files of the work folder by their names, to a remote cache."""
        if not self._objects:
            return
        previous = self.spec.previous.manifest.files() if self.spec.previous else ()
        new = {file.name for file in result.data_files} - {file.name for file in previous}
        for name in sorted(new):
            self._objects.write(name, Path(self.spec.cache, name))
        self._upload_work(self._objects, *names)

    def finish(self) -> ProcessLog:
        """Return what this process used since it last finished a shard."""
        assert self._log is not None
        log, self._log = self._log, None
        return log.finish(self.spec.shard, self._save)

    def keep(self, result: ShardResult) -> None:
        """Write the result to the work folder, also of a remote cache: the shard is then finished."""
        write_result(Path(self.spec.cache, WORK), result)
        if self._objects:
            self._upload_work(self._objects, result_name(result.shard))

    def fail(self, reason: str) -> None:
        """Record that the shard could not be written. Raises OSError if that fails too."""
        self.keep(ShardResult(self.spec.shard, {}, (), 0, "", self.spec.digest, error=reason))

    def close(self) -> None:
        """Delete the temporary folder."""
        if self._log:
            self._log.abandon(self.spec.shard, self._save)
            self._log = None
        if self._objects:
            self._scratch.cleanup()

    def _save(self, name: str, text: str) -> None:
        """Write a log to the work folder, for what commits the build. Where that fails, only the energy is not known."""
        if not self.spec.metering.build:
            return
        with suppress(OSError):
            if self._objects:
                self._objects.write(f"{self._work}/{name}", text.encode())
            else:
                write_text(Path(self.spec.cache, self.spec.work, name), text, durable=False)

    def _upload_work(self, objects: ObjectFolder, *names: str) -> None:
        for name in names:
            objects.write(f"{self._work}/{name}", Path(self.spec.cache, WORK, name))


def _fetch(objects: ObjectFolder, manifest: Manifest, folder: Path) -> None:
    for split in manifest.splits.values():
        for file in split.files:
            objects.fetch(file.name, folder / file.name)
    index = manifest.index.name
    (folder / index).symlink_to(_fetched_index(objects, index).path)


class _FetchedIndex:
    """The index of a remote cache, in a temporary folder that is deleted with this object."""

    def __init__(self, objects: ObjectFolder, name: str) -> None:
        folder = tempfile.mkdtemp(prefix="joulecache-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.path = Path(folder, name)
        objects.fetch(name, self.path)


_fetched_index = functools.lru_cache(maxsize=1)(_FetchedIndex)  # fetched once for all shards of this process
