"""Worker processes of a local build: each builds whole shards, since threads would share one interpreter lock."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait

import cloudpickle

from joulecache.pipelines.building.config import BuildError, EngineError
from joulecache.pipelines.building.specs import ShardSpec
from joulecache.pipelines.building.worker import Failed, Message, Written
from joulecache.pipelines.core.memory import memory_limit

_LOG = logging.getLogger("joulecache")
# The objects that imports make stay: collecting garbage among them less often saves a worker some 40 ms.
_BOOT = (
    "import gc, sys; gc.set_threshold(10_000); sys.path[:] = {path!r}; "
    "from joulecache.pipelines.building.worker import main; main({descriptor})"
)
_MOST_TRIES = 2
_MEMORY_SHARE = 0.7
_PROCESS_BYTES = 200e6
_SHARDS_IN_MEMORY = 2


class WorkerError(EngineError):
    """A shard ended its worker process twice, or raised an error that no unit or op should."""


@dataclass(eq=False)
class _Worker:
    """A running process, and the shards that it was given and has not written."""

    process: subprocess.Popen[bytes]
    connection: Connection
    is_ready: bool = True
    specs: dict[int, ShardSpec] = field(default_factory=dict)


class WorkerPool:
    """Processes that build shards. They end with this object, and at the latest with this process.

    A worker is a new interpreter: it inherits no locks from a process with threads, and never runs its main module.
    """

    def __init__(self, count: int) -> None:
        """Start `count` workers."""
        self._workers: list[_Worker] = []
        self._is_closed = False
        for _ in range(count):
            self._start()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers, wherever they are."""
        self._is_closed = True
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
            worker.connection.close()
        self._workers.clear()

    def build(self, specs: Iterable[ShardSpec]) -> None:
        """Build shards; return when all of them, or their failures, are written.

        Raises:
            BuildError: Neither a shard nor its result could be written.
            WorkerError: A shard raised an error, or ended its worker twice.
        """
        waiting = deque(specs)
        ended: Counter[int] = Counter()
        while waiting or any(worker.specs for worker in self._workers):
            for worker in self._workers:
                if waiting and worker.is_ready:
                    self._give(worker, waiting.popleft())
            for worker in self._heard():
                try:
                    self._handle(worker, worker.connection.recv())
                except (EOFError, OSError):
                    waiting.extendleft(self._replace(worker, ended))

    def _start(self) -> None:
        ours, theirs = Pipe()
        with theirs:
            descriptor = theirs.fileno()
            boot = _BOOT.format(path=sys.path, descriptor=descriptor)
            # a worker inherits the mask: Ctrl-C does not reach it before it can ignore it
            before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            try:
                process = subprocess.Popen(
                    [sys.executable, "-u", "-c", boot],
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # what ops print must not mix with results on stdout
                    pass_fds=[descriptor],
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._workers.append(_Worker(process, ours))

    def _give(self, worker: _Worker, spec: ShardSpec) -> None:
        worker.is_ready = False
        worker.specs[spec.shard] = spec
        with suppress(OSError):  # it has ended, which the next wait finds
            worker.connection.send_bytes(cloudpickle.dumps(spec))  # by value where ops are defined in the main module

    def _heard(self) -> list[_Worker]:
        """Wait for messages; return the workers that have sent one, or have ended."""
        heard = wait([worker.connection for worker in self._workers])
        return [worker for worker in self._workers if worker.connection in heard]

    def _handle(self, worker: _Worker, message: Message) -> None:
        match message:
            case Written(shard):
                del worker.specs[shard]
            case Failed(_, error, is_build_error, details):
                _LOG.debug("a worker process failed:\n%s", details)
                raise BuildError(error) if is_build_error else WorkerError(error)
            case _:
                worker.is_ready = True

    def _replace(self, worker: _Worker, ended: Counter[int]) -> Sequence[ShardSpec]:
        """Start another worker in place of one that has ended; return its shards."""
        if self._is_closed:
            raise WorkerError("stopped")
        how = _describe_end(worker.process.wait())
        worker.connection.close()
        self._workers.remove(worker)
        ended.update(worker.specs.keys())
        shards = ", ".join(map(str, worker.specs))
        if any(ended[shard] == _MOST_TRIES for shard in worker.specs):
            raise WorkerError(
                f"a worker process {how} twice while it built shard {shards}; use fewer --workers if memory is short"
            )
        _LOG.warning("a worker process %s: building its shards again (%s)", how, shards or "none")
        self._start()
        return list(worker.specs.values())


def worker_count(requested: int | None, shards: int, shard_bytes: float) -> int:
    """Return how many processes build shards: at most one for each shard and CPU, and only as many as memory holds.

    Args:
        requested: The number to start with; None for one per CPU.
        shards: Number of shards to build.
        shard_bytes: Bytes of a shard in memory.
    """
    wanted = max(1, min(requested or len(os.sched_getaffinity(0)), shards))
    fitting = int(_MEMORY_SHARE * memory_limit() / (_PROCESS_BYTES + _SHARDS_IN_MEMORY * shard_bytes))
    if fitting < wanted:
        _LOG.warning(
            "building with %d instead of %d workers: memory does not hold the shards of more", max(1, fitting), wanted
        )
    return max(1, min(wanted, fitting))


def _describe_end(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    hint = ", perhaps for lack of memory" if -code == signal.SIGKILL else ""
    return f"was stopped by {name}{hint}"
