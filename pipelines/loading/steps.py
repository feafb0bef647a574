"""The steps in which an epoch is read: several batches at once, where they are small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from joulecache.pipelines.loading.order import Order
from joulecache.pipelines.loading.split import CachedSplit


@dataclass(frozen=True)
class Batches:
    """The batches of one host in an epoch: places `first` up to `first` + `records` of its order, read `per_step` batches a step.

    Those of `batch_size` come first, and one that is smaller, the rest, has a step of its own.
    """

    first: int
    records: int
    batch_size: int
    drop_remainder: bool
    per_step: int

    @property
    def full(self) -> int:
        """How many batches are whole."""
        return self.records // self.batch_size

    @property
    def rest(self) -> int:
        """How many records the last batch has that is not whole, 0 where there is none."""
        return 0 if self.drop_remainder else self.records % self.batch_size

    @property
    def count(self) -> int:
        """How many batches an epoch has."""
        return self.full + (self.rest > 0)

    @property
    def steps(self) -> int:
        """How many steps an epoch has."""
        return -(-self.full // self.per_step) + (self.rest > 0)

    def step_of(self, batch: int) -> int:
        """Return the step that a batch is read in."""
        return self.steps - 1 if batch == self.full else batch // self.per_step

    def of_step(self, step: int) -> tuple[int, int]:
        """Return the first batch of a step, and the one after its last."""
        start = min(step * self.per_step, self.full)
        return (start, self.count) if start == self.full else (start, min(start + self.per_step, self.full))

    def size(self, batch: int) -> int:
        """Return how many records a batch has."""
        return self.rest if batch == self.full else self.batch_size


@dataclass(frozen=True)
class StepReader:
    """Reads the steps of one host; of epoch `start[0]` nothing before batch `start[1]`."""

    opened: CachedSplit
    order: Order
    host: int
    batches: Batches
    start: tuple[int, int]

    def read(self, epoch: int, step: int, goes_on: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the images ``[K, B, H, W, C]`` and labels ``[K, B]``, or soft ``[K, B, C]``, of the K batches of a step.

        `goes_on` says that the step before was read just now, and had this one read ahead. Raises CacheError for files that changed, which
        is looked for in the first step of an epoch.
        """
        batches = self.batches
        if step == 0:
            self.opened.check()
        first, last = batches.of_step(step)
        if epoch == self.start[0]:
            first = min(max(first, self.start[1]), last)
        size = batches.size(first)
        place = batches.first + first * batches.batch_size
        stop = place + (last - first) * size
        for ahead in self.order.ahead(epoch, place, stop, begins=step == 0 or not goes_on):
            self.opened.will_need(epoch, *ahead)
        rows = self.order.rows(epoch, place, stop)
        # Other hosts have batches of the same number, and mix them by other draws.
        images, labels = self.opened.batch(rows, epoch, (self.host << 32) + first)
        shape = last - first, size
        return images.reshape(*shape, *images.shape[1:]), labels.reshape(*shape, *labels.shape[1:])
