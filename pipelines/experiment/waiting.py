"""The energy of the idle machine while a training waits for its next batch."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

from joulecache.pipelines.energy import Component, Energy
from joulecache.pipelines.experiment.names import INPUT
from joulecache.pipelines.experiment.results import Joules, Waiting
from joulecache.pipelines.experiment.runs import Run


def input_runs(arm: str, runs: Sequence[Run]) -> list[Run]:
    """Return the runs that only iterated over an arm's batches, as a workload or as a part of a training."""
    return [
        run
        for run in runs
        if run.arm == arm and (run.part == INPUT if run.role == "part" else run.workload == INPUT and run.role == "arm")
    ]


def price_waiting(runs: Sequence[Run], inputs: Sequence[Run], *, on_accelerator: bool = False) -> Waiting | None:
    """Return the energy of trainings while they waited for batches; None if no wait was timed.

    Each run's waiting time is multiplied by the idle power of the machine: the run's own, and for a GPU its power during `inputs`,
    runs of the same input without computation. There are no joules if one of the two is unknown. An accelerator may still compute
    while the next batch is requested.
    """
    timed = [(run.energy, run.waited_s, run.images) for run in runs if run.waited_s is not None]
    if not timed:
        return None
    waited_s = sum(seconds for _, seconds, _ in timed)
    parts = [_while_idle(energy, seconds) for energy, seconds, _ in timed]
    has_gpu = any(energy.components["gpu"] is not None for energy, _, _ in timed)
    if has_gpu:
        parts.append(_gpu_while_idle([run.energy for run in inputs], waited_s))
    known = [part for part in parts if part is not None]
    share_of_time = waited_s / sum(energy.duration_s for energy, _, _ in timed)
    at_most = on_accelerator or has_gpu
    if len(known) < len(parts):
        return Waiting(share_of_time, None, None, None, at_most)
    whole = functools.reduce(operator.add, known)
    per_1000 = 1000 / sum(images for _, _, images in timed)
    return Waiting(
        share_of_time=share_of_time,
        total_j_per_1000=Joules(*(per_1000 * end for end in (whole.value_j, whole.low_j, whole.high_j))),
        share_of_total=whole.value_j / sum(energy.total_j for energy, _, _ in timed),
        method=whole.method,
        at_most=at_most,
    )


def _while_idle(energy: Energy, seconds: float) -> Component | None:
    """Return the energy of the idle machine, without its GPU, in some seconds of a window."""
    idle = energy.components["idle"]
    if idle is None and energy.total_j > energy.active_j:
        # counters do not separate idle from active energy; the meter's split does
        idle = Component(
            value_j=energy.total_j - energy.active_j,
            low_j=max(0.0, energy.low_j - energy.active_high_j),
            high_j=energy.high_j - energy.active_low_j,
            method=energy.active.method,
            source=energy.active.source,
            scope=energy.active.scope,
            resolution=energy.active.resolution,
        )
    return idle and idle * (seconds / energy.duration_s)


def _gpu_while_idle(inputs: Sequence[Energy], seconds: float) -> Component | None:
    """Return the energy of an idle GPU in some seconds, from windows in which it is idle."""
    known = [(energy.components["gpu"], energy.duration_s) for energy in inputs]
    parts = [part for part, _ in known if part is not None]
    if not parts or len(parts) < len(known):
        return None
    return functools.reduce(operator.add, parts) * (seconds / sum(duration_s for _, duration_s in known))
