"""Reuse of draws: how often a cache with few variants repeats them, and how that affects the trained model and energy."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from joulecache.pipelines.auditing.config import AuditConfig
from joulecache.pipelines.auditing.results import DrawReuse, VariantPoint
from joulecache.pipelines.cache.cache import Cache
from joulecache.pipelines.core.statistics import mean_of
from joulecache.pipelines.experiment.arms import Arm
from joulecache.pipelines.experiment.blocks import Bench, Entry
from joulecache.pipelines.experiment.claims import MARGIN, MIN_SEEDS, inferiority, margin_of
from joulecache.pipelines.experiment.failures import ArmError
from joulecache.pipelines.experiment.runs import Run, Slot
from joulecache.pipelines.experiment.summary import ACTIVE, per_1000
from joulecache.pipelines.experiment.workloads import Training, Workload
from joulecache.pipelines.loading.loader import load
from joulecache.pipelines.models.metrics import ACCURACY, Metric
from joulecache.transforms.ops import Op

FRESH = "fresh"
"""Name of the cache with a variant for each epoch of a training."""
_WORKLOAD = "variants"


class Diverged(ArmError):
    """A training whose score is not finite."""


class _CachedTraining(Workload):
    """A training on a cache whose seed sets the weights, the order of the records and the draws after the cut.

    Every seed trains on different epochs, the same ones for all caches. If one dataset continued from run to run, its epochs would
    depend on the runs before, and on where an audit was stopped.
    """

    name = _WORKLOAD

    def __init__(
        self, training: Training, cache: Cache, batch_size: int, ops: Mapping[str, type[Op]] | None = None
    ) -> None:
        self.blocks, self.epochs = training.blocks, training.epochs
        self._training, self._cache, self._batch_size, self._ops = training, cache, batch_size, ops

    def prepare(self, seed: int) -> None:
        """Set the weights, and load the cache from the first epoch of the seed."""
        self._training.prepare(seed)
        self._dataset = load(self._cache, "train", self._batch_size, start=(seed * self.epochs, 0), ops=self._ops)
        self._training.timed(self._dataset)

    def run(self, arm: Arm, first_epoch: int) -> int:
        """Train for the epochs of the seed."""
        return self._training.run(replace(arm, dataset=self._dataset), first_epoch)

    def score(self) -> float | None:
        """Return the model's first metric on the held-out records."""
        return self._training.score()

    def waited_s(self, duration_s: float) -> float | None:
        """Return the seconds for which the last run waited for batches."""
        return self._training.waited_s(duration_s)


def draw_reuse(
    config: AuditConfig, points: Sequence[VariantPoint] = (), why: str | None = None, metric: Metric = ACCURACY
) -> DrawReuse:
    """Return how often the draws of a cache are reused, with the measured `points`, or `why` nothing was measured."""
    variants = config.variants[0]
    return DrawReuse(
        variants=variants,
        horizon_reuse=config.epochs / variants,
        train_epochs=config.train_epochs,
        train_reuse=config.train_epochs / variants,
        margin=margin_of(metric, points[-1].score.value) if points else MARGIN,
        points=tuple(points),
        not_measured=why,
    )


def measure_variants(
    bench: Bench,
    training: Training,
    build: Callable[[int], Cache],
    config: AuditConfig,
    ops: Mapping[str, type[Op]] | None = None,
) -> tuple[VariantPoint, ...]:
    """Train on caches with different numbers of variants and on fresh draws, one seed per block; compare scores by seed.

    Fresh draws are those of a cache with a variant for each epoch of a training. The horizon would need more variants, so the
    energy of its build is spread over the epochs of one training, that of the other caches over the horizon. At least MIN_SEEDS
    seeds are trained, and every run is logged. `build` returns the cache with a number of variants, `ops` are custom ops in its chain.

    Raises:
        ArmError: The caches hold different records.
        Diverged: The score of a training is not finite.
    """
    caches = {_name(count): build(count) for count in config.variants}
    caches[FRESH] = build(config.train_epochs)
    records = _check_records(caches)
    entries = [
        Entry(Slot(name), _CachedTraining(training, cache, config.batch_size, ops), Arm(name, records, None))
        for name, cache in caches.items()
    ]
    blocks = max(MIN_SEEDS, config.pairs or training.blocks)
    runs: dict[str, list[Run]] = {name: [] for name in caches}
    for run in bench.interleave(_WORKLOAD, entries, blocks, warm_ups=entries):
        runs[run.arm].append(run)
    scores = {name: _scores(name, runs[name]) for name in caches}
    return tuple(
        _point(name, cache, runs[name], config, scores[name], scores[FRESH], training.metric)
        for name, cache in caches.items()
    )


def _check_records(caches: Mapping[str, Cache]) -> int:
    """Return how many records the caches have for training; raise ArmError if they differ."""
    records = {name: cache.split("train").records for name, cache in caches.items()}
    if len(set(records.values())) > 1:
        found = ", ".join(f"{count} in {name}" for name, count in records.items())
        raise ArmError(
            f"the caches with different numbers of variants hold different records ({found}): some could not be cached"
        )
    return records[FRESH]


def _point(
    name: str,
    cache: Cache,
    runs: Sequence[Run],
    config: AuditConfig,
    scores: Sequence[float],
    fresh: Sequence[float],
    metric: Metric,
) -> VariantPoint:
    manifest = cache.manifest
    build_epochs = config.train_epochs if name == FRESH else config.epochs
    build = manifest.build_energy
    build_j = build.active_j / (build_epochs * cache.split("train").records)  # per image
    difference = found = why = None
    if name != FRESH:
        margin = margin_of(metric, statistics.fmean(fresh))
        difference, found, why = inferiority([a - b for a, b in zip(scores, fresh, strict=True)], margin, metric)
    return VariantPoint(
        name=name,
        variants=manifest.variants,
        build=build,
        build_epochs=build_epochs,
        cache_bytes=sum(file.bytes for file in manifest.files()),
        train_reuse=config.train_epochs / manifest.variants,
        active_j_per_1000=per_1000(runs, *ACTIVE),
        with_build_j_per_1000=mean_of([1000 * (run.energy.active_j / run.images + build_j) for run in runs]),
        scores=tuple(scores),
        score=mean_of(scores),
        difference=difference,
        finding=found,
        why=why,
    )


def _name(variants: int) -> str:
    return "1 variant" if variants == 1 else f"{variants} variants"


def _scores(name: str, runs: Sequence[Run]) -> tuple[float, ...]:
    """Return the scores in the order of the seeds; raise Diverged if one is not finite."""
    scores = tuple(run.score for run in sorted(runs, key=lambda run: run.block) if run.score is not None)
    if len(scores) < len(runs):
        raise Diverged(f"a training on {name} diverged")
    return scores
