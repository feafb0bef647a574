"""Detect mapped files that changed size: reading past the end of one kills the process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from joulecache.pipelines.cache.data_file import DataFile
from joulecache.pipelines.cache.errors import CacheError


class FileGuard:
    """Watches the sizes of mapped files. Deleted and replaced files are fine: their mappings stay valid."""

    def __init__(self, folder: Path, files: Sequence[DataFile]) -> None:
        self._folder, self._files = folder, files
        self._inodes: dict[str, int] = {}
        for file in files:
            with suppress(FileNotFoundError):  # deleted since it was mapped
                self._inodes[file.name] = (folder / file.name).stat().st_ino
        self._problem: str | None = None

    def check(self) -> None:
        """Check all files; raise CacheError, now and in `require_unchanged`, if one changed its size."""
        self._problem = next(filter(None, map(self._problem_of, self._files)), None)
        self.require_unchanged()

    def require_unchanged(self) -> None:
        """Raise CacheError if the last `check` found a change."""
        if self._problem:
            raise CacheError(self._problem)

    def _problem_of(self, file: DataFile) -> str | None:
        path = self._folder / file.name
        try:
            found = path.stat()
        except OSError:
            return None
        if found.st_size == file.bytes or found.st_ino != self._inodes.get(file.name):
            return None
        return f"{path} has {found.st_size} bytes, its manifest says {file.bytes}: it changed while it was read, rebuild the cache"
