"""Attribute joules to steps: the naive arm truncated after each of its steps in turn, and the difference that each makes.

Timing ops eagerly, one by one, is off by a factor of 9 to 16, so the pipeline itself is measured, up to each step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import tensorflow as tf

from joulecache.pipelines.auditing.config import AuditConfig
from joulecache.pipelines.auditing.results import COPY, TRAINING_STEP, Stage, Stages
from joulecache.pipelines.cache.cache import Cache
from joulecache.pipelines.core.statistics import mean_of
from joulecache.pipelines.experiment.arms import Arm, make_prefix_arms
from joulecache.pipelines.experiment.blocks import Bench, Entry
from joulecache.pipelines.experiment.claims import MIN_BLOCKS
from joulecache.pipelines.experiment.files import ImageFiles
from joulecache.pipelines.experiment.names import TRAIN
from joulecache.pipelines.experiment.online_arms import BATCH, TF_DATA
from joulecache.pipelines.experiment.results import WorkloadResult
from joulecache.pipelines.experiment.runs import Slot
from joulecache.pipelines.experiment.workloads import CopyToDevice, InputOnly, Training

_WORKLOAD = "stages"
_BLOCKS = 10


def measure_stages(
    bench: Bench,
    naive: Arm,
    files: ImageFiles,
    cache: Cache,
    config: AuditConfig,
    whole: WorkloadResult,
    training: Training | None,
) -> Stages:
    """Measure what each step of the naive arm adds, in blocks in which the arm runs truncated after each step, in random order.

    It uses as many of the arm's files as the arm reads in `stage_run_s`, and the same files when an audit continues. `whole` is the
    workload that the stages explain: training, or the input, for which `training` is None.
    """
    limit_s = config.budget.stage_run_s or 0.0
    count = next((run.images for run in bench.log.runs if run.workload == _WORKLOAD), None)
    if count is None:
        bench.progress(f"{_WORKLOAD}: how many files", 0, 1)
        count = _images_within(naive, limit_s)
    entries = _entries(files.sample(count, bench.seed), cache, config, training if whole.workload == TRAIN else None)
    blocks = max(MIN_BLOCKS, config.pairs or _BLOCKS)
    measured: dict[str, list[float]] = {entry.slot.arm: [] for entry in entries}
    for run in bench.interleave(_WORKLOAD, entries, blocks, warm_ups=entries):
        measured[run.arm].append(1000 * run.energy.active_j / run.images)
    steps = [name for name in measured if name not in (TF_DATA, BATCH, COPY, TRAINING_STEP)]  # read, then the ops
    stages = split(measured, cached=steps[: 1 + files.ops.chain.cut])
    whole_j = whole.arm(naive.name).active_j_per_1000.value
    return Stages(
        workload="train" if whole.workload == TRAIN else "input",
        blocks=blocks,
        images=count,
        stages=stages,
        whole_j_per_1000=whole_j,
        unattributed_j_per_1000=unattributed_j(whole_j, stages),
    )


def _entries(files: ImageFiles, cache: Cache, config: AuditConfig, training: Training | None) -> list[Entry]:
    shortest_s = config.budget.shortest_run_s
    arms = make_prefix_arms(files, cache, config.batch_size)
    entries = [Entry(Slot(arm.name), InputOnly(shortest_s=shortest_s), arm) for arm in arms]
    if training is not None:
        weights = training.network.get_weights()  # the cost of a step does not depend on them
        epoch = Training(_WORKLOAD, training.network, lambda seed: weights, None, 1, training.metric)
        entries += [
            Entry(Slot(COPY), CopyToDevice(shortest_s=shortest_s), arms[-1]),
            Entry(Slot(TRAINING_STEP), epoch, arms[-1]),
        ]
    return entries


def split(measured: Mapping[str, Sequence[float]], cached: Sequence[str] = ()) -> tuple[Stage, ...]:
    """Return what each stage adds to the previous one, with Student's t interval.

    Args:
        measured: Joules per 1,000 images of each truncated arm, in the order of its steps: one value per block, at least two.
        cached: Names of the stages that a cache runs only once.
    """
    before = [0.0] * len(next(iter(measured.values())))
    stages = []
    for name, joules in measured.items():
        added = mean_of([after - ahead for after, ahead in zip(joules, before, strict=True)])
        assert added.low is not None
        assert added.high is not None
        resolved = added.value if added.low > 0 else None
        stages.append(Stage(name, resolved, max(0.0, added.low), max(0.0, added.high), name in cached))
        before = list(joules)
    return tuple(stages)


def unattributed_j(whole_j: float, stages: Sequence[Stage]) -> float:
    """Return the whole minus the stages above their resolution; negative if these add up to more."""
    return whole_j - sum(stage.active_j_per_1000 or 0.0 for stage in stages)


def _images_within(arm: Arm, limit_s: float) -> int:
    """Return how many images an arm yields in that time: at least a batch, at most an epoch."""
    arm.start_epoch(0)
    count, end_s = 0, time.monotonic() + limit_s
    for batch in arm.dataset:
        count += tf.nest.flatten(batch)[0].shape[0]
        if time.monotonic() > end_s:
            break
    return count
