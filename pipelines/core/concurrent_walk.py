"""Visit the nodes of a tree on several threads, and return what they hold in the order of a walk on one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

_THREADS = 16  # they wait for a file system or an object store most of the time
_AHEAD = 4 * _THREADS  # nodes that are visited before it is their turn: what they hold is in memory until then

Node = TypeVar("Node")
Found = TypeVar("Found")
Item = TypeVar("Item")


@dataclass
class _Visit(Generic[Node, Found]):
    node: Node
    result: Future[tuple[Found, Sequence[Node]]] | None = None


def walk(root: Node, visit: Callable[[Node, threading.Event], tuple[Found, Sequence[Node]]]) -> Iterator[Found]:
    """Yield what a node holds, then what its children hold, each before the next one, and so on down the tree.

    Args:
        root: The first node.
        visit: Returns what a node holds, and its children. Other threads call it, with an event that is set when the walk has ended and
            nothing more is needed: see `until`. If it fails, the walk raises its error when it is the node's turn: the first error in
            the order of the walk.
    """
    ended = threading.Event()
    pending: list[_Visit[Node, Found]] = [_Visit(root)]  # the last one is next
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="walk")
    try:
        while pending:
            for soon in reversed(pending[-_AHEAD:]):
                soon.result = soon.result or pool.submit(visit, soon.node, ended)
            found, children = _result(pending.pop())
            yield found
            pending += map(_Visit[Node, Found], reversed(children))
    finally:
        ended.set()
        pool.shutdown(cancel_futures=True)


def until(ended: threading.Event, items: Iterable[Item]) -> Iterator[Item]:
    """Yield items until a walk has ended, so that Ctrl-C does not wait for a long visit."""
    for item in items:
        if ended.is_set():
            return
        yield item


def _result(visit: _Visit[Node, Found]) -> tuple[Found, Sequence[Node]]:
    assert visit.result is not None
    return visit.result.result()
