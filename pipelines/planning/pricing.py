"""What feeding a training costs over all its epochs, from what was measured on a sample: arithmetic alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from joulecache.pipelines.energy.storage import storage_energy
from joulecache.pipelines.experiment.results import Joules
from joulecache.pipelines.planning.results import CacheLayout, Choice

MOST_USES = 4
"""How often a draw of a cached random op is used at most: more would save energy in the build, at the price of accuracy."""


@dataclass(frozen=True)
class Line:
    """A figure that grows with the images: `fixed` + `per_image` * images."""

    fixed: float
    per_image: float

    @classmethod
    def through(cls, few: tuple[int, float], many: tuple[int, float]) -> Line:
        """Lay a line through two measurements, (images, figure) each; neither part is negative.

        Where both are of as many images, or the smaller one was the dearer, all of it is taken to grow with the images.
        """
        (m, of_few), (n, of_many) = few, many
        slope = (of_many - of_few) / (n - m) if n > m else 0.0
        if not 0 < slope * n <= of_many:
            return cls(0.0, of_many / n)
        return cls(of_many - slope * n, slope)

    def at(self, images: float) -> float:
        """Return the figure for so many images."""
        return self.fixed + self.per_image * images


@dataclass(frozen=True)
class EpochCost:
    """What an epoch takes: active joules, and seconds while nothing has to come from a disk."""

    active_j: Line
    duration_s: Line


@dataclass(frozen=True)
class CacheCost:
    """What one way to cache costs.

    `random`: some cached op draws. `build_j` is of one variant, by the records; `variant_j_per_image` of each further one.
    """

    layout: CacheLayout
    random: bool
    build_j: Line
    variant_j_per_image: float
    epoch: EpochCost
    stored_bytes_per_image: float


@dataclass(frozen=True)
class Job:
    """The training to be fed, `runs` times `epochs`, and what the machine has.

    `memory_bytes` is what may keep files that are read again: an epoch of more comes from the disk, and the machine idles at `idle_w`
    where that takes longer than the work does. `ends` are the lowest and highest active joules over the central ones.
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


def price(caches: Iterable[CacheCost], online: EpochCost | None, job: Job) -> tuple[Choice, ...]:
    """Price every way to cache with every number of variants, and feeding online: the cheapest first.

    total = build + runs * epochs * (epoch + waiting) + storage. What needs the same joules to the last digit keeps the order given.
    """
    choices = [] if online is None else [_priced(None, online, 1, job)]
    for cost in caches:
        choices += [_priced(cost, cost.epoch, variants, job) for variants in variants_for(cost.random, job.epochs)]
    if online is not None:
        fed = choices[0].epoch_j.value
        choices = [choices[0], *(_paid_back(choice, fed) for choice in choices[1:])]
    return tuple(sorted(choices, key=lambda choice: choice.total_j.value))


def variants_for(random: bool, epochs: int) -> Sequence[int]:
    """Return how many variants are worth a price: one where the cached ops do not draw, else as many as keep `MOST_USES` and fewer uses."""
    return sorted({math.ceil(epochs / uses) for uses in (MOST_USES, 2, 1)}) if random else (1,)


def _priced(cost: CacheCost | None, epoch: EpochCost, variants: int, job: Job) -> Choice:
    build = stored = 0.0
    if cost is not None:
        records = job.train_records + job.val_records
        build = cost.build_j.at(records) + (variants - 1) * cost.variant_j_per_image * job.train_records
        stored = cost.stored_bytes_per_image * (variants * job.train_records + job.val_records)
    kept = job.source_bytes if cost is None else stored
    epoch_bytes = kept if cost is None else cost.stored_bytes_per_image * job.train_records
    read_s = epoch_bytes / job.disk_bytes_per_s if kept > job.memory_bytes else 0.0
    waits_s = max(0.0, read_s - epoch.duration_s.at(job.train_records))
    built = _active(build, job)
    fed = _active(epoch.active_j.at(job.train_records), job)
    waiting = _times(job.idle_w, waits_s)
    drive = storage_energy(stored, job.days, job.pue)
    storage = Joules(drive.value_j, drive.low_j, drive.high_j)
    epochs = job.runs * job.epochs
    return Choice(
        layout=None if cost is None else cost.layout,
        variants=variants,
        reuse=job.epochs / variants if cost is not None and cost.random else None,
        cache_bytes=stored,
        build_j=built,
        epoch_j=fed,
        waiting_j=waiting,
        storage_j=storage,
        total_j=_sum(built, _times(fed, epochs), _times(waiting, epochs), storage),
        break_even_epochs=None,
    )


def _paid_back(choice: Choice, online_j: float) -> Choice:
    saved = online_j - choice.epoch_j.value
    return dataclasses.replace(choice, break_even_epochs=choice.build_j.value / saved if saved > 0 else None)


def _active(value_j: float, job: Job) -> Joules:
    low, high = job.ends
    return Joules(value_j, value_j * low, value_j * high)


def _times(energy: Joules, factor: float) -> Joules:
    return Joules(energy.value * factor, energy.low * factor, energy.high * factor)


def _sum(*energies: Joules) -> Joules:
    return Joules(*(math.fsum(getattr(energy, end) for energy in energies) for end in ("value", "low", "high")))
