"""Fill a folder with the elements of a dataset, completely or not at all."""

from __future__ import annotations

import errno
import io
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.core.files import (
    HashingFile,
    LockHeldError,
    lock_path,
    made_folder,
    sha256_of,
    sync_folder,
)
from joulecache.pipelines.loading.element_files import (
    ELEMENTS,
    MANIFEST,
    WORK_FILE,
    WORK_FOLDER,
    Component,
    make_manifest,
    manifest_bytes,
)

ElementProgress = Callable[[int, int | None], None]
"""Called with the number of elements done and their total; None: unknown."""


def fill(
    folder: Path,
    components: Sequence[Component],
    fingerprint: str,
    batches: Iterable[Sequence[NDArray[Any]]],
    total: int | None,
    report: ElementProgress,
) -> None:
    """Write elements to a folder. If another process fills it first, its elements are kept; a failure leaves nothing.

    Args:
        folder: The folder, which need not exist.
        components: The tensors of an element.
        fingerprint: The one given to `cached`.
        batches: The elements batch by batch, an array ``[B, *shape]`` for each component.
        total: Expected number of elements; None if unknown.
        report: Receives the progress after each batch.
    """
    with made_folder(folder):
        _delete_leftovers(folder)
        with _work_folder(folder) as (work, lock):
            count, hashes = _write_components(work, components, batches, total, report)
            manifest = make_manifest(components, fingerprint, count, hashes)
            for number, file in enumerate(manifest.files):
                (work / _temporary_name(number)).rename(work / file.name)
            with open(lock, "wb", closefd=False) as file_of_manifest:
                file_of_manifest.write(manifest_bytes(manifest))
            os.fsync(lock)
            sync_folder(work)
            try:
                work.rename(folder / ELEMENTS)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process finished first
                    raise
            sync_folder(folder)


@contextmanager
def _work_folder(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield a new folder to fill, and the descriptor of its manifest, which is locked while this process lives."""
    with ExitStack() as stack:
        lock = None
        while lock is None:
            work = folder / f".fill-{uuid.uuid4().hex}"
            work.mkdir()
            with suppress(LockHeldError, FileNotFoundError):  # another process just deleted it as a leftover
                lock = stack.enter_context(lock_path(work / MANIFEST, wait=False))
        try:
            yield work, lock
        finally:
            _delete(work)


def _delete_leftovers(folder: Path) -> None:
    """Delete the folders of killed processes."""
    for work in folder.iterdir():
        if WORK_FOLDER.fullmatch(work.name):
            with suppress(LockHeldError, FileNotFoundError), lock_path(work / MANIFEST, wait=False):
                _delete(work)


def _delete(work: Path) -> None:
    with suppress(OSError):  # it was renamed, or the next fill deletes it
        for path in work.iterdir():
            if WORK_FILE.fullmatch(path.name):
                path.unlink(missing_ok=True)
        work.rmdir()


def _temporary_name(number: int) -> str:
    return f"component-{number:03d}.npy"


def _write_components(
    work: Path,
    components: Sequence[Component],
    batches: Iterable[Sequence[NDArray[Any]]],
    total: int | None,
    report: ElementProgress,
) -> tuple[int, list[str]]:
    """Write the file of each component; return the number of elements and the SHA-256 of each file."""
    count = 0
    with ExitStack() as stack:
        columns = [
            stack.enter_context(_Column(work / _temporary_name(number), component, total or 0))
            for number, component in enumerate(components)
        ]
        for arrays in batches:
            for column, rows in zip(columns, arrays, strict=True):
                column.append(rows)
            count += len(arrays[0])
            report(count, total)
        return count, [column.finish(count) for column in columns]


class _Column:
    """A component's file while it is written; `announced` is the number of elements in its header."""

    def __init__(self, path: Path, component: Component, announced: int) -> None:
        self._path, self._component, self._announced = path, component, announced
        self._raw = open(path, "xb", buffering=0)  # noqa: SIM115 - closed by __exit__
        self._hashing = HashingFile(self._raw)
        self._file = io.BufferedWriter(self._hashing)
        self._file.write(component.header(announced))

    def __enter__(self) -> _Column:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def append(self, rows: NDArray[Any]) -> None:
        """Write the rows of a batch."""
        self._file.write(rows.reshape(-1).view(np.uint8).data)

    def finish(self, count: int) -> str:
        """Make the file durable, and return its SHA-256; this reads it again if `count` was not announced."""
        self._file.flush()
        if count != self._announced:
            self._raw.seek(0)
            self._raw.write(self._component.header(count))
        os.fsync(self._raw.fileno())
        return self._hashing.sha256 if count == self._announced else sha256_of(self._path)
