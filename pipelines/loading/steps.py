"""Divide an epoch into each host's share, batches, and steps: the batches that are read together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from joulecache.pipelines.loading.config import PIXEL_BYTES, LoadConfig
from joulecache.pipelines.loading.split import CachedSplit


@dataclass(frozen=True)
class Batches:
    """The batches of one host in an epoch. A smaller last batch, the remainder, is a separate step.

    Saved iterators depend on the names, order and values of these fields.

    Attributes:
        first: The host's first position in the order of an epoch.
        records: Number of the host's records.
        batch_size: Images per batch.
        drop_remainder: Whether the remainder is dropped.
        per_step: Batches that are read together.
    """

    first: int
    records: int
    batch_size: int
    drop_remainder: bool
    per_step: int

    @property
    def full(self) -> int:
        """Number of full batches."""
        return self.records // self.batch_size

    @property
    def remainder(self) -> int:
        """Size of the last batch if it is smaller, else 0."""
        return 0 if self.drop_remainder else self.records % self.batch_size

    @property
    def count(self) -> int:
        """Number of batches in an epoch."""
        return self.full + (self.remainder > 0)

    @property
    def steps(self) -> int:
        """Number of steps in an epoch."""
        return -(-self.full // self.per_step) + (self.remainder > 0)

    def step_of(self, batch: int) -> int:
        """Return the step that a batch is read in."""
        return self.steps - 1 if batch == self.full else batch // self.per_step

    def of_step(self, step: int) -> tuple[int, int]:
        """Return the first batch of a step, and the one after its last."""
        start = min(step * self.per_step, self.full)
        return (start, self.count) if start == self.full else (start, min(start + self.per_step, self.full))

    def size(self, batch: int) -> int:
        """Return the number of images in a batch."""
        return self.remainder if batch == self.full else self.batch_size


def divide(split: CachedSplit, config: LoadConfig, count: int) -> Batches:
    """Return a host's batches of epochs of `count` records; raise ValueError if there are none."""
    index, hosts = config.hosts
    inside = f" in {split.name!r}" + ("" if config.where is None else " that where selects")
    if hosts > count:
        raise ValueError(f"{hosts} hosts are more than the {count} records{inside}: each needs at least one")
    first, end = (count * number // hosts for number in (index, index + 1))
    records = count // hosts if config.drop_remainder else end - first
    if config.drop_remainder and config.batch_size > records:
        each = "" if hosts == 1 else f", {records} for each of {hosts} hosts,"
        raise ValueError(
            f"batch_size {config.batch_size} with drop_remainder leaves nothing of the {count} records{each}{inside}"
        )
    return Batches(first, records, config.batch_size, config.drop_remainder, _batches_per_step(split, config))


def _batches_per_step(split: CachedSplit, config: LoadConfig) -> int:
    if split.chain.mixes:  # every batch has its own draws
        return 1
    pixel_bytes = PIXEL_BYTES["float32" if split.chain.is_float and config.dtype == "uint8" else config.dtype]
    encoded = split.cache.manifest.encoding != "raw"
    step_bytes = config.budget.encoded_step_bytes if encoded else config.budget.step_bytes
    image_bytes = config.views * math.prod(split.image_shape) * pixel_bytes + split.spatial_bytes
    return max(1, step_bytes // (config.batch_size * image_bytes))


def first_batch(config: LoadConfig, batches: int) -> tuple[int, int]:
    """Return the epoch and the batch to start with; the end of an epoch, after `batches`, is the start of the next.

    Raises ValueError for a `start` that is out of range.
    """
    match config.start:
        case (int(epoch), int(batch)) if epoch >= 0 and 0 <= batch <= batches:
            epoch, batch = epoch + batch // batches, batch % batches
        case _:
            raise ValueError(
                f"start must be (epoch, batch) with epoch >= 0 and batch from 0 to {batches}, got {config.start!r}"
            )
    if config.epochs is not None and (epoch, batch) > (config.epochs, 0):
        raise ValueError(
            f"start {config.start!r} is after the last of {config.epochs} epochs: raise epochs or start earlier"
        )
    return epoch, batch
