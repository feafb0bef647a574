"""Where the joules go: the naive arm, cut off after each of its steps in turn, and what each step adds.

Ops that are called one by one, eagerly, mislead by 9 to 16 times: what is measured is the pipeline itself, as far as it goes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from joulecache.pipelines.auditing.results import Stage, Stages
from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.experiment.arms import BATCH, TF_DATA, Arm, Files, make_prefixes, some_files
from joulecache.pipelines.experiment.blocks import Bench, Entry
from joulecache.pipelines.experiment.results import WorkloadResult
from joulecache.pipelines.experiment.statistics import FEWEST_BLOCKS, mean_of
from joulecache.pipelines.experiment.workloads import SHORTEST_RUN_S, InputOnly, Training, consume, training_device

COPY, TRAINING_STEP = "copy", "training step"
"""The steps after the input, where something is trained."""
LONGEST_RUN_S = 2.0
"""For how long the whole input runs over the files that are used: more give steadier figures, and cost five times that in each block."""

_WORKLOAD = "stages"
_BLOCKS = 10


@dataclass
class _Copied(InputOnly):
    """Iterate over the batches, and move each to a device."""

    device: str = ""

    def _consume(self, arm: Arm, first_epoch: int, epochs: int) -> int:
        return consume(arm, first_epoch, epochs, self._copy, self.ended)

    def _copy(self, images: Any) -> None:
        with tf.device(self.device):
            tf.identity(images)


def measure_stages(
    bench: Bench,
    arm: Arm,
    files: Files,
    cache: Path,
    batch_size: int,
    pairs: int | None,
    results: Sequence[WorkloadResult],
    training: Training | None,
) -> Stages | None:
    """Measure what each step of `arm`, the naive one, adds, in blocks in which it runs once cut off at each step, in random order.

    The whole is what it took in training, where `results` has it, or else as input; without either there are no stages. `training` is
    the workload that fed it. As many files are used as the input goes through in 2 s, the same ones in an audit that goes on.
    """
    by_name = {result.workload: result for result in results}
    whole = by_name.get("train", by_name.get("input"))
    if whole is None:
        return None
    count = next((run.images for run in bench.log.runs if run.workload == _WORKLOAD), None)
    if count is None:
        bench.tell(f"{_WORKLOAD}: how many files", 0, 1)
        count = _images_within(arm, LONGEST_RUN_S)
    prefixes = make_prefixes(some_files(files, count, bench.seed), cache, batch_size)
    entries: list[Entry] = [(prefix.name, InputOnly(shortest_s=SHORTEST_RUN_S), prefix) for prefix in prefixes]
    if whole.workload == "train":
        assert training is not None
        weights = training.network.get_weights()  # which ones they are does not change what a step costs
        epoch = Training(_WORKLOAD, training.network, lambda seed: weights, None, 1)
        entries += [
            (COPY, _Copied(shortest_s=SHORTEST_RUN_S, device=training_device()), prefixes[-1]),
            (TRAINING_STEP, epoch, prefixes[-1]),
        ]
    blocks = max(FEWEST_BLOCKS, pairs or _BLOCKS)
    measured: dict[str, list[float]] = {name: [] for name, _, _ in entries}
    for run in bench.interleave(_WORKLOAD, entries, blocks, warm_ups=entries):
        measured[run.arm].append(1000 * run.energy.active_j / run.images)
    chain = open_manifest(cache).parsed_chain()
    steps = [name for name in measured if name not in (TF_DATA, BATCH, COPY, TRAINING_STEP)]  # read, then the ops
    stages = split(measured, cached=steps[: 1 + chain.cut])
    whole_j = next(each for each in whole.arms if each.name == arm.name).active_j_per_1000.value
    return Stages(whole.workload, blocks, count, stages, whole_j, unattributed_j(whole_j, stages))


def split(measured: Mapping[str, Sequence[float]], cached: Sequence[str] = ()) -> tuple[Stage, ...]:
    """Return what each stage adds to the one before it, the first one to nothing, with Student's t intervals over at least two blocks.

    `measured` has the joules per 1,000 images of each arm that is cut off behind a stage, in their order, block by block; `cached` names
    the stages that a cache does once.
    """
    before = [0.0] * len(next(iter(measured.values())))
    stages = []
    for name, joules in measured.items():
        added = mean_of([behind - ahead for behind, ahead in zip(joules, before, strict=True)])
        assert added.low is not None
        assert added.high is not None
        resolved = added.value if added.low > 0 else None
        stages.append(Stage(name, resolved, max(0.0, added.low), max(0.0, added.high), name in cached))
        before = list(joules)
    return tuple(stages)


def unattributed_j(whole_j: float, stages: Sequence[Stage]) -> float:
    """Return what of the whole is in no stage above its resolution; below 0 where these add up to more."""
    return whole_j - sum(stage.active_j_per_1000 or 0.0 for stage in stages)


def _images_within(arm: Arm, limit_s: float) -> int:
    """Return how many images an arm yields in that time, at least a batch, at most an epoch."""
    arm.start_epoch(0)
    count, end = 0, time.monotonic() + limit_s
    for images, _ in arm.dataset:
        count += images.shape[0]
        if time.monotonic() > end:
            break
    return count
