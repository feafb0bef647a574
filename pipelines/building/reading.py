"""Read units ahead of the work on them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from joulecache.pipelines.building.rows import Reject
from joulecache.pipelines.core.object_store import StoreError, is_remote
from joulecache.pipelines.source import ImageFile, Record, TarMember, Unit

_BLOCK_BYTES = 4 << 20
_LOCAL_THREADS, _LOCAL_BLOCK = 1, 32  # a block amortizes the handover between threads
_REMOTE_THREADS, _REMOTE_BLOCK = 16, 1


@dataclass(frozen=True)
class _Read:
    """A unit that was read: its records, and the error that ended them."""

    unit: Unit
    records: list[Record]
    error: Exception | None

    def replay(self) -> Iterator[Record]:
        yield from self.records
        if self.error is not None:
            raise self.error


def read_ahead(units: Sequence[Unit]) -> Iterator[tuple[Unit, Iterator[Record]]]:
    """Yield each unit with its records, in order.

    Single images are read in other threads while the caller works: a few MB ahead from a disk, many at once from an object store.
    Larger units are read when their records are consumed. An error is raised after the records before it.
    """
    first = next(iter(units), None)
    is_distant = isinstance(first, ImageFile | TarMember) and is_remote(first.location)
    threads, length = (_REMOTE_THREADS, _REMOTE_BLOCK) if is_distant else (_LOCAL_THREADS, _LOCAL_BLOCK)
    pool = ThreadPoolExecutor(threads, "read")
    ahead: deque[Future[list[_Read]] | Unit] = deque()
    try:
        for block in _blocks(units, length):
            ahead.append(pool.submit(_read, block) if isinstance(block[0], ImageFile | TarMember) else block[0])
            if len(ahead) > threads:
                yield from _records(ahead.popleft())
        while ahead:
            yield from _records(ahead.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def read_or_reject(unit: Unit, records: Iterator[Record]) -> Iterator[Record | Reject]:
    """Yield the records of a unit, then the reason for each that cannot be read.

    Raises:
        StoreError: An object store failed, which may recover.
    """
    read: list[str] = []
    try:
        for record in records:
            read.append(record.key)
            yield record
    except StoreError:
        raise
    except (OSError, pa.ArrowInvalid) as error:
        reason = f"cannot be read: {error}".splitlines()[0]
        unread = dict.fromkeys(unit.record_keys())
        for key in read:
            del unread[key]
        yield from (Reject(key, reason) for key in unread)


def _blocks(units: Sequence[Unit], length: int) -> Iterator[list[Unit]]:
    """Yield blocks of single images, and larger units alone."""
    block: list[Unit] = []
    left = _BLOCK_BYTES
    for unit in units:
        is_image = isinstance(unit, ImageFile | TarMember)
        if block and (not is_image or len(block) == length or left <= 0):
            yield block
            block, left = [], _BLOCK_BYTES
        if not is_image:
            yield [unit]
            continue
        block.append(unit)
        left -= unit.size_bytes or 0
    if block:
        yield block


def _read(block: Sequence[Unit]) -> list[_Read]:
    read: list[_Read] = []
    for unit in block:
        records: list[Record] = []
        try:
            records += unit.read()
        except Exception as error:  # noqa: BLE001 - raised again by the caller of `read_ahead`
            read.append(_Read(unit, records, error))
        else:
            read.append(_Read(unit, records, None))
    return read


def _records(block: Future[list[_Read]] | Unit) -> Iterator[tuple[Unit, Iterator[Record]]]:
    if isinstance(block, Future):
        yield from ((read.unit, read.replay()) for read in block.result())
    else:
        yield block, block.read()
