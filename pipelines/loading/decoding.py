"""Decode the images and masks of a batch in threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from joulecache.transforms.images import Array


class DecodingThreads:
    """One thread per CPU for all caches, in each process that decodes: threads do not survive a fork."""

    _threads: ClassVar[dict[int, ThreadPoolExecutor]] = {}

    def decode(self, decode: Callable[[bytes], Array], images: Sequence[Any]) -> list[Array]:
        """Decode images, given as buffers of encoded bytes; return them in the same order."""

        def pixels(data: Any) -> Array:
            return decode(bytes(data))

        if len(images) < 2:
            return [pixels(data) for data in images]
        process = os.getpid()
        if process not in self._threads:
            self._threads[process] = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "decode")
        try:
            decoded = self._threads[process].map(pixels, images)
        except RuntimeError:  # the interpreter is ending: pools refuse work, but other threads of the script may go on
            decoded = map(pixels, images)
        return list(decoded)
