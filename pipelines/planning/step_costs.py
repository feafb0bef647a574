"""The CPU time of reading and of each op, on a few records of the source and their targets."""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.planning.results import StepCost
from joulecache.pipelines.source import Record, Source, Unit
from joulecache.pipelines.source.features import Features
from joulecache.pipelines.source.spatial import SpatialFeature
from joulecache.transforms.chain import Chain, apply, apply_batch_ops, fixed_size
from joulecache.transforms.images import Array
from joulecache.transforms.ops import BatchOp, Op, op_name
from joulecache.transforms.randomness import key_hash, random_words
from joulecache.transforms.targets import SpatialTarget, apply_with_targets

_MIN_ROUNDS = 3  # rounds in which every prefix of the chain is timed
_MIN_ROUNDS_CPU_S = 0.5  # long enough for cheap ops, whose cost is a small difference
_READ_CPU_S = 0.2  # whole units are read, since a row group costs as much for one row as for all
_CHEAP_SHARE = 0.1  # share of the CPU time of all ops below which a random op runs in every epoch


def measure_steps(chain: Chain, source: Source, units: Sequence[Unit]) -> tuple[StepCost, ...]:
    """Measure the cost of reading `units`, and of each op on the records of a source: the chain up to it minus the one before.

    Raises:
        ValueError: No record runs through the chain.
    """
    records = [record for unit in source.units for record in _readable(unit)]
    read_us = read_cost_us(units)
    on_images = tuple(op for op in chain.ops if not isinstance(op, BatchOp))
    drawn = random_words(on_images, 0, 0, [key_hash(record.key) for record in records], 0)
    features = source.features
    usable = [pair for pair in zip(records, drawn, strict=True) if _runs(on_images, *pair, features)]
    if not usable:
        raise ValueError(f"no record of {len(records)} in the sample runs through {str(chain)!r}: check the images")

    def made_after(count: int) -> list[_Made]:
        return [_make(on_images[:count], record, words, features) for record, words in usable]

    prefixes = [functools.partial(made_after, count + 1) for count in range(len(on_images))]
    spent_us = _increments_us(_median_cpu_s(prefixes), len(usable))
    sizes = [statistics.fmean(made.nbytes for made in prefix()) for prefix in prefixes]
    on_batches = chain.ops[len(on_images) :]
    if on_batches:
        batch = np.stack([made.image for made in prefixes[-1]()])
        words = random_words(on_batches, len(on_images), 0, [0], 0)[0]

        def batch_after(count: int) -> NDArray[np.generic]:
            return apply_batch_ops(on_batches[:count], batch, words)

        late = [functools.partial(batch_after, count + 1) for count in range(len(on_batches))]
        spent_us += _increments_us(_median_cpu_s(late), len(usable))
        targets_bytes = sizes[-1] - batch.nbytes / len(usable)
        sizes += [prefix().nbytes / len(usable) + targets_bytes for prefix in late]
    encoded = statistics.fmean(len(record.data) for record, _ in usable)
    return (
        StepCost("read", False, False, read_us, encoded),
        *(
            StepCost(op_name(type(op)), op.random, False, cpu_us, size)
            for op, cpu_us, size in zip(chain.ops, spent_us, sizes, strict=True)
        ),
    )


def read_cost_us(units: Sequence[Unit], clock: Callable[[], float] = time.process_time) -> float:
    """Return the CPU microseconds of reading a record, from as many whole units as fit a short time."""
    started_s, count = clock(), 0
    for unit in units:
        count += len(_readable(unit))
        if clock() - started_s > _READ_CPU_S:
            break
    return (clock() - started_s) / max(1, count) * 1e6


def _readable(unit: Unit) -> list[Record]:
    try:
        return [record for record in unit.read() if record.problem is None]
    except OSError:
        return []


class _Made(NamedTuple):
    """An image, and its targets that move with its pixels."""

    image: Array
    targets: tuple[SpatialTarget, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        parts = (getattr(target, name) for target in self.targets for name in target.__slots__)
        return self.image.nbytes + sum(int(part.nbytes) for part in parts)


def _make(ops: Sequence[Op], record: Record, words: Sequence[int], features: Features) -> _Made:
    """Decode and transform an image, and its targets that move with its pixels."""
    pairs = zip(features.values(), record.targets, strict=True)
    targets = [feature.decode(target) for feature, target in pairs if isinstance(feature, SpatialFeature)]
    if not targets:
        return _Made(apply(ops, record.data, words), ())
    return _Made(*apply_with_targets(ops, record.data, words, targets))


def _runs(ops: Sequence[Op], record: Record, words: Sequence[int], features: Features) -> bool:
    try:
        _make(ops, record, words, features)
    except ValueError:  # a broken image or target, or one that an op does not accept
        return False
    return True


def _median_cpu_s(works: Sequence[Callable[[], object]]) -> list[float]:
    """Return the median CPU seconds of each function, over rounds in which all take turns."""
    spent: list[list[float]] = [[] for _ in works]
    while len(spent[0]) < _MIN_ROUNDS or sum(map(sum, spent)) < _MIN_ROUNDS_CPU_S:
        for seconds, work in zip(spent, works, strict=True):
            started_s = time.process_time()
            work()
            seconds.append(time.process_time() - started_s)
    return [statistics.median(seconds) for seconds in spent]


def _increments_us(sums_s: Sequence[float], images: int) -> list[float]:
    """Return what each sum adds to the one before, per image; 0 where noise makes it negative."""
    return [max(0.0, b - a) / images * 1e6 for a, b in itertools.pairwise([0.0, *sums_s])]


def check_fresh(chain: Chain, fresh: Sequence[str]) -> None:
    """Raise ValueError for a name that is not that of an op after decode."""
    names = [op_name(type(op)) for op in chain.ops[1:]]
    for name in fresh:
        if name not in names:
            raise ValueError(f"fresh op {name!r} is not in the chain after decode: allowed are {', '.join(names)}")


def mark_fresh(steps: Sequence[StepCost], chain: Chain, fresh: Sequence[str] | None) -> tuple[StepCost, ...]:
    """Mark the random ops that stay after the cut: the named ones or, if None are, the cheap ones.

    An op that runs before the images have one size never counts as cheap: with the cut before it, nothing could be cached.
    """
    if fresh is not None:
        return tuple(replace(step, fresh=step.name in fresh) for step in steps)
    sized = next(cut for cut in range(1, len(chain.ops) + 1) if fixed_size(chain.ops[:cut]))
    cheap_us = _CHEAP_SHARE * sum(step.cpu_us_per_image for step in steps)
    return tuple(
        replace(step, fresh=step.random and step.cpu_us_per_image < cheap_us and place > sized)
        for place, step in enumerate(steps)
    )
