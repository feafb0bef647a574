"""A meter that keeps its windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from joulecache.pipelines.energy import Meter, Window


class Diary(Meter):
    """A meter that keeps the names of its windows as they open, and its windows as they close."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.closed: list[Window] = []

    @contextmanager
    def window(self, name: str) -> Iterator[Window]:
        with super().window(name) as window:
            self.opened.append(name)
            yield window
        self.closed.append(window)

    def left_open(self) -> set[str]:
        return set(Counter(self.opened) - Counter(window.name for window in self.closed))
