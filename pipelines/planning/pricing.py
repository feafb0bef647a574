"""Price feeding a training over all its epochs, from measurements of a sample."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from joulecache.pipelines.energy.storage import storage_energy
from joulecache.pipelines.experiment.results import Joules
from joulecache.pipelines.planning.results import CacheLayout, Choice

MAX_USES = 4
"""Maximum uses of a draw of a cached random op: more would save energy in the build and cost accuracy."""


@dataclass(frozen=True)
class Line:
    """A figure that grows with the number of images: `fixed` + `per_image` * images."""

    fixed: float
    per_image: float

    @classmethod
    def through(cls, few: tuple[int, float], many: tuple[int, float]) -> Line:
        """Return the line through two measurements, (images, figure) each; neither part is negative.

        If both have the same number of images, or a part would be negative, the whole figure is proportional to the images.
        """
        (m, of_few), (n, of_many) = few, many
        slope = (of_many - of_few) / (n - m) if n > m else 0.0
        if not 0 < slope * n <= of_many:
            return cls(0.0, of_many / n)
        return cls(of_many - slope * n, slope)

    def at(self, images: float) -> float:
        """Return the figure for a number of images."""
        return self.fixed + self.per_image * images


@dataclass(frozen=True)
class EpochCost:
    """Active joules and seconds of an epoch, by its number of images, if nothing is read from a disk.

    `relative_error` is the standard error of the joules, as a share of them.
    """

    active_j: Line
    duration_s: Line
    relative_error: float = 0.0


@dataclass(frozen=True)
class CacheCost:
    """The cost of one cache layout; `random` is whether a cached op draws.

    `build_j` is the active joules of building one variant, by the number of records; each further variant adds `variant_j_per_image`.
    """

    layout: CacheLayout
    random: bool
    build_j: Line
    variant_j_per_image: float
    epoch: EpochCost
    stored_bytes_per_image: float


@dataclass(frozen=True)
class Job:
    """The training to feed, and the machine.

    If an epoch's files exceed `memory_bytes`, they are read from the disk. `ends` are the lowest and the highest active joules
    relative to the central ones; `pue` is the power usage effectiveness of the building. `build_error` is the standard error of the
    joules of a build, as a share of them.
    """

    train_records: int
    val_records: int
    source_bytes: float
    epochs: int
    runs: int
    days: float
    memory_bytes: float
    disk_bytes_per_s: float
    idle_w: Joules
    ends: tuple[float, float]
    pue: float
    build_error: float = 0.0


def price(caches: Iterable[CacheCost], online: EpochCost | None, job: Job) -> tuple[Choice, ...]:
    """Price every layout with every number of variants, and feeding online; return the cheapest first.

    ``total = build + runs * epochs * (epoch + waiting) + storage``. Ties keep this order: online, then as `caches`.
    """
    choices = [] if online is None else [_price(None, online, 1, job)]
    for cost in caches:
        choices += [_price(cost, cost.epoch, variants, job) for variants in variants_for(cost.random, job.epochs)]
    if online is not None:
        online_j = choices[0].epoch_j.value
        choices = [choices[0], *(_with_break_even(choice, online_j) for choice in choices[1:])]
    return tuple(sorted(choices, key=lambda choice: choice.total_j.value))


def variants_for(random: bool, epochs: int) -> Sequence[int]:
    """Return the numbers of variants to price: one if the cached ops do not draw, else those with at most `MAX_USES` uses per draw."""
    return sorted({math.ceil(epochs / uses) for uses in (MAX_USES, 2, 1)}) if random else (1,)


def _price(cost: CacheCost | None, epoch: EpochCost, variants: int, job: Job) -> Choice:
    build = stored = 0.0
    if cost is not None:
        records = job.train_records + job.val_records
        build = cost.build_j.at(records) + (variants - 1) * cost.variant_j_per_image * job.train_records
        stored = cost.stored_bytes_per_image * (variants * job.train_records + job.val_records)
    files_bytes = job.source_bytes if cost is None else stored
    epoch_bytes = files_bytes if cost is None else cost.stored_bytes_per_image * job.train_records
    read_s = epoch_bytes / job.disk_bytes_per_s if files_bytes > job.memory_bytes else 0.0
    waiting_s = max(0.0, read_s - epoch.duration_s.at(job.train_records))
    build_j = _with_ends(build, job)
    epoch_j = _with_ends(epoch.active_j.at(job.train_records), job)
    waiting_j = _times(job.idle_w, waiting_s)
    drive = storage_energy(stored, job.days, job.pue)
    storage_j = Joules(drive.value_j, drive.low_j, drive.high_j)
    epochs = job.runs * job.epochs
    return Choice(
        layout=None if cost is None else cost.layout,
        variants=variants,
        reuse=job.epochs / variants if cost is not None and cost.random else None,
        cache_bytes=stored,
        build_j=build_j,
        epoch_j=epoch_j,
        waiting_j=waiting_j,
        storage_j=storage_j,
        total_j=_sum(build_j, _times(epoch_j, epochs), _times(waiting_j, epochs), storage_j),
        error_j=math.hypot(build_j.value * job.build_error, epochs * epoch_j.value * epoch.relative_error),
        break_even_epochs=None,
    )


def _with_break_even(choice: Choice, online_j: float) -> Choice:
    saved_j = online_j - choice.epoch_j.value
    return dataclasses.replace(choice, break_even_epochs=choice.build_j.value / saved_j if saved_j > 0 else None)


def _with_ends(value_j: float, job: Job) -> Joules:
    low, high = job.ends
    return Joules(value_j, value_j * low, value_j * high)


def _times(energy: Joules, factor: float) -> Joules:
    return Joules(energy.value * factor, energy.low * factor, energy.high * factor)


def _sum(*energies: Joules) -> Joules:
    return Joules(*(math.fsum(getattr(energy, end) for energy in energies) for end in ("value", "low", "high")))
