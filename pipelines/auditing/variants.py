"""Draws that are seen again: how often a cache of few variants repeats them, and what that does to accuracy and to energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from joulecache.pipelines.auditing.results import DrawReuse, VariantPoint
from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.cache.names import SPLITS
from joulecache.pipelines.experiment.arms import Arm, ArmError
from joulecache.pipelines.experiment.blocks import Bench
from joulecache.pipelines.experiment.runs import Run
from joulecache.pipelines.experiment.statistics import FEWEST_SEEDS, MARGIN, inferiority, mean_of
from joulecache.pipelines.experiment.summary import ACTIVE, per_1000
from joulecache.pipelines.experiment.workloads import Training, check_whole
from joulecache.pipelines.loading.loader import load
from joulecache.transforms.chain import Chain

FRESH = "fresh"
_RUNS = "variants"  # what the log and the meter call them


def check_variants(variants: Sequence[int], chain: Chain, workloads: Sequence[str], train_epochs: int) -> None:
    """Raise ValueError for numbers of variants that an audit of the chain cannot compare."""
    for count in variants:
        check_whole(variants=count)
    if not variants or len(set(variants)) != len(variants):
        raise ValueError(f"variants must be different whole numbers, got {_listed(variants) or 'none'}")
    if tuple(variants) != (1,) and not draws_before_cut(chain):
        raise ValueError(
            f"variants are {_listed(variants)}, and the cached ops of {str(chain)!r} draw nothing at random: all would be the same, leave "
            "them out"
        )
    if len(variants) == 1:
        return
    if "train" not in workloads:
        raise ValueError(f"variants {_listed(variants)} differ in accuracy, which the workload train measures: add it")
    unseen = [count for count in variants if count >= train_epochs]
    if unseen:
        raise ValueError(
            f"a training of {_epochs(train_epochs)} sees no draw of {_listed(unseen)} variants twice, which is fresh draws: leave them "
            f"out, or give at least {max(unseen) + 1} train epochs"
        )


def draws_before_cut(chain: Chain) -> bool:
    """Say whether an op before the cut draws at random, so that a cache holds variants."""
    return any(op.random for op in chain.prefix)


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' if count != 1 else ''}"


@dataclass
class _CachedTraining:
    """A training on a cache whose seed sets the weights, the order of the records and the draws after the cut.

    It begins at an epoch of its own for each seed, so that all caches show a seed the same: a dataset that goes on from run to run would
    depend on what ran before, and on where an audit was stopped.
    """

    training: Training
    cache: Path
    batch_size: int
    name: str = _RUNS

    def __post_init__(self) -> None:
        self.blocks, self.epochs = self.training.blocks, self.training.epochs

    def prepare(self, seed: int) -> None:
        """Set the weights, and open the cache where the seed's epochs begin."""
        self.training.prepare(seed)
        self._dataset = load(self.cache, SPLITS[0], self.batch_size, start=(seed * self.epochs, 0))
        self.training.timed(self._dataset)

    def run(self, arm: Arm, first_epoch: int) -> int:
        """Train for the seed's epochs."""
        return self.training.run(replace(arm, dataset=self._dataset), first_epoch)

    def release(self) -> None:
        """Let go of what the training kept."""
        self.training.release()

    def accuracy(self) -> float | None:
        """Return the accuracy on the held-out records."""
        return self.training.accuracy()

    def waited_s(self, duration_s: float) -> float | None:
        """Return the seconds in which the last run waited for batches."""
        return self.training.waited_s(duration_s)


def draw_reuse(
    variants: Sequence[int],
    horizon: int,
    train_epochs: int,
    points: Sequence[VariantPoint] = (),
    why: str | None = None,
) -> DrawReuse:
    """Return how often the draws of a cache of the first of `variants` are seen, with what was measured, or `why` nothing was."""
    return DrawReuse(
        variants[0], horizon / variants[0], train_epochs, train_epochs / variants[0], MARGIN, tuple(points), why
    )


def why_unmeasured(variants: Sequence[int], workloads: Sequence[str], train_epochs: int, held_out: int) -> str | None:
    """Say why an audit cannot measure what repeated draws do to accuracy; None where it can.

    Raises ValueError where it was asked for, by several numbers of variants, and there are no records to measure it on.
    """
    if "train" not in workloads:
        return "the workload train was not asked for"
    if variants[0] >= train_epochs:
        return f"a training of {_epochs(train_epochs)} sees no draw twice"
    if held_out:
        return None
    if len(variants) > 1:
        raise ValueError(
            f"variants {_listed(variants)} differ in accuracy, and no records are held out to measure it on: give more images"
        )
    return "no records are held out"


def measure_variants(
    bench: Bench,
    training: Training,
    build: Callable[[int], Path],
    variants: Sequence[int],
    horizon: int,
    batch_size: int,
    seeds: int | None,
) -> tuple[VariantPoint, ...]:
    """Train on caches of so many variants and on fresh draws, one seed in each block, and compare their accuracies by the seed.

    `build` returns the cache of a number of variants. Fresh are the draws of one that has a variant for each epoch of a training. It
    would need more for the `horizon`, so that its build is spread over the epochs of a training, the others' over the horizon.
    Every run is in the log; there are at least FEWEST_SEEDS seeds. Raises ArmError where the caches hold different records.
    """
    caches = {_name(count): build(count) for count in variants}
    caches[FRESH] = build(training.epochs)
    manifests = {name: open_manifest(cache) for name, cache in caches.items()}
    records = {name: manifest.split(SPLITS[0]).records for name, manifest in manifests.items()}
    if len(set(records.values())) > 1:
        said = ", ".join(f"{count} in {name}" for name, count in records.items())
        raise ArmError(
            f"the caches of different numbers of variants hold different records ({said}): not all could be cached"
        )
    entries = [
        (name, _CachedTraining(training, cache, batch_size), Arm(name, records[name], None, lambda epoch: None))
        for name, cache in caches.items()
    ]
    blocks = max(FEWEST_SEEDS, seeds or training.blocks)
    by_name: dict[str, list[Run]] = {name: [] for name in caches}
    for run in bench.interleave(_RUNS, entries, blocks, warm_ups=entries):
        by_name[run.arm].append(run)
    accuracies = {name: _accuracies(runs) for name, runs in by_name.items()}
    points = []
    for name, runs in by_name.items():
        manifest = manifests[name]
        built = manifest.build_energy
        spread = training.epochs if name == FRESH else horizon
        share_j = built.active_j / (spread * records[name])
        compared = None
        if name != FRESH:
            compared = inferiority([a - b for a, b in zip(accuracies[name], accuracies[FRESH], strict=True)])
        difference, found, why = compared or (None, None, None)
        points.append(
            VariantPoint(
                name=name,
                variants=manifest.variants,
                build=built,
                build_epochs=spread,
                cache_bytes=sum(file.bytes for file in manifest.files()),
                train_reuse=training.epochs / manifest.variants,
                active_j_per_1000=per_1000(runs, *ACTIVE),
                with_build_j_per_1000=mean_of([1000 * (run.energy.active_j / run.images + share_j) for run in runs]),
                accuracies=accuracies[name],
                accuracy=mean_of(accuracies[name]),
                difference=difference,
                finding=found,
                why=why,
            )
        )
    return tuple(points)


def _name(variants: int) -> str:
    return "1 variant" if variants == 1 else f"{variants} variants"


def _accuracies(runs: Sequence[Run]) -> tuple[float, ...]:
    """Return the accuracies in the order of the seeds."""
    return tuple(run.accuracy for run in sorted(runs, key=lambda run: run.block) if run.accuracy is not None)
