"""List many tars at once, in several processes: reading headers keeps the interpreter busy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

from joulecache.pipelines.core.object_store import is_remote
from joulecache.pipelines.core.progress import Tally
from joulecache.pipelines.source.listing import ImageListing
from joulecache.pipelines.source.records import Archive
from joulecache.pipelines.source.tar import list_tar

LARGE_BYTES = 512 << 20
"""Tars with fewer bytes in all are listed faster than processes start."""

# The path is set first, so that a process finds joulecache as this one did.
_BOOT = (
    "import sys; sys.path[:] = {path!r}; from joulecache.pipelines.source.tar_listing import serve; serve({descriptor})"
)


class _LostError(Exception):
    """A process was killed."""


@dataclass(frozen=True)
class TarRequest:
    """A tar to list; see `list_tar`.

    Attributes:
        archive: The tar.
        prefix: Start of the keys.
        target: The key of the class in .json files.
        keys: Names of targets to read instead.
    """

    archive: Archive
    prefix: str = ""
    target: str | None = None
    keys: tuple[str, ...] = ()

    def list(self, members: Tally | None = None) -> ImageListing:
        """List it in this process; count its members."""
        return list_tar(self.archive, self.prefix, self.target, self.keys, members)


def list_tars(requests: Sequence[TarRequest]) -> list[ImageListing]:
    """List tars, large ones in one process per CPU; return them in the same order.

    Raises:
        SourceError: A tar is damaged or compressed, or has two images of the same name.
        StoreError: The object store failed.
    """
    if len(requests) == 1:
        return [requests[0].list(Tally("files found"))]
    archives = Tally("archives listed", len(requests))
    processes = min(len(os.sched_getaffinity(0)), len(requests))
    if processes < 2 or not _are_large(requests):
        return [request.list() for request in archives.counted(requests)]
    idle: SimpleQueue[Connection] = SimpleQueue()
    is_over = threading.Event()

    def ask(request: TarRequest) -> ImageListing:
        worker = idle.get()
        try:
            return _ask(worker, request)
        except _LostError:
            if is_over.is_set():
                raise
            return request.list()
        finally:
            idle.put(worker)
            archives.add()

    with ThreadPoolExecutor(processes) as threads, _started(processes) as connections:
        for connection in connections:
            idle.put(connection)
        listings = [threads.submit(ask, request) for request in requests]
        try:
            return [listing.result() for listing in listings]
        finally:
            is_over.set()
            for listing in listings:
                listing.cancel()


def _are_large(requests: Sequence[TarRequest]) -> bool:
    locations = [request.archive.location for request in requests]
    if any(map(is_remote, locations)):  # each header is a request
        return True
    return sum(Path(location).stat().st_size for location in locations) >= LARGE_BYTES


@contextmanager
def _started(count: int) -> Iterator[list[Connection]]:
    """Start processes that list tars, and yield connections to them. They end with this block, or with this process."""
    processes: list[subprocess.Popen[bytes]] = []
    connections: list[Connection] = []
    try:
        for _ in range(count):
            ours, theirs = Pipe()
            connections.append(ours)
            with theirs:
                boot = _BOOT.format(path=sys.path, descriptor=theirs.fileno())
                process = subprocess.Popen(
                    [sys.executable, "-c", boot], stdin=subprocess.DEVNULL, stdout=2, pass_fds=[theirs.fileno()]
                )
                processes.append(process)
        yield connections
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for connection in connections:
            connection.close()


def _ask(worker: Connection, request: TarRequest) -> ImageListing:
    try:
        worker.send(request)
        answer: ImageListing | Exception = worker.recv()
    except (OSError, EOFError) as error:
        raise _LostError from error
    if isinstance(answer, Exception):
        raise answer
    return answer


def serve(descriptor: int) -> None:
    """List the tars that the parent asks for, until it ends.

    Args:
        descriptor: File descriptor of the connection.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    connection = Connection(descriptor)
    with suppress(EOFError, OSError):
        while True:
            request: TarRequest = connection.recv()
            try:
                answer: ImageListing | Exception = request.list()
            except Exception as error:  # noqa: BLE001 - raised again by the parent
                answer = error
            connection.send(answer)
