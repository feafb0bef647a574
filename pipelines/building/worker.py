"""The worker process of a local build: receives shards to build over a pipe until the pipe is closed."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from multiprocessing.connection import Connection
from queue import SimpleQueue

from joulecache.pipelines.building.config import BuildError
from joulecache.pipelines.building.shard_builder import ShardBuilder
from joulecache.pipelines.building.specs import ShardSpec


@dataclass(frozen=True)
class Transformed:
    """A worker is ready for another shard."""


@dataclass(frozen=True)
class Written:
    """A shard was written, or its failure was.

    Attributes:
        shard: Its number.
    """

    shard: int


@dataclass(frozen=True)
class Failed:
    """A shard raised an error.

    Attributes:
        shard: Its number.
        error: The error in one line.
        is_build_error: It is a BuildError.
        details: The traceback.
    """

    shard: int
    error: str
    is_build_error: bool
    details: str


Message = Transformed | Written | Failed


def main(descriptor: int) -> None:
    """Build shards until the launcher closes the pipe, or is gone.

    Args:
        descriptor: File descriptor of the pipe.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launcher, which ends its workers
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # blocked until here by the launcher
    _hide_pandas_from_pyarrow()
    connection, sending = Connection(descriptor), threading.Lock()
    specs: SimpleQueue[ShardSpec] = SimpleQueue()

    def send(message: Message) -> None:
        with sending:
            connection.send(message)

    def receive() -> None:
        try:
            while True:
                specs.put(connection.recv())
        except (EOFError, OSError):  # nobody needs the rest
            os._exit(0)
        except Exception as error:  # noqa: BLE001 - the module of an op cannot be imported
            send(_failure(-1, error))

    threading.Thread(target=receive, daemon=True).start()
    _build(specs, send)


def _build(specs: SimpleQueue[ShardSpec], send: Callable[[Message], None]) -> None:
    builder = ShardBuilder()
    while True:
        spec = specs.get()
        try:
            writing = builder.build(spec)
        except Exception as error:  # noqa: BLE001 - sent to the launcher, whatever it is
            send(_failure(spec.shard, error))
            continue
        writing.add_done_callback(functools.partial(_report, send, spec.shard))
        send(Transformed())


def _report(send: Callable[[Message], None], shard: int, writing: Future[None]) -> None:
    error = writing.exception()
    send(Written(shard) if error is None else _failure(shard, error))


def _failure(shard: int, error: BaseException) -> Failed:
    line = str(error).strip().rpartition("\n")[2]
    is_build_error = isinstance(error, BuildError)
    text = line if is_build_error else f"{type(error).__name__}: {line}"
    return Failed(shard, text, is_build_error, "".join(traceback.format_exception(error)))


class _NoPandas(MetaPathFinder):
    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname)


def _hide_pandas_from_pyarrow() -> None:
    """Keep pyarrow from importing pandas, which costs every worker 0.3 s of CPU. It asks once, at the first array."""
    import pyarrow as pa

    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(finder)
