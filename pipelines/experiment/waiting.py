"""What the machine burns while a training waits for its next batch."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

from joulecache.pipelines.energy import Component, Energy
from joulecache.pipelines.experiment.results import Joules, Waiting
from joulecache.pipelines.experiment.runs import Run, alone
from joulecache.pipelines.experiment.workloads import InputOnly, training_device


def inputs_of(arm: str, logged: Sequence[Run]) -> list[Run]:
    """Return the runs in which an arm fed nothing: those of its input, as a workload or as a part of a training."""
    name = InputOnly.name
    return [run for run in logged if (run.workload, run.arm) == (name, arm) or run.arm == alone(arm, name)]


def price_waiting(runs: Sequence[Run], inputs: Sequence[Run]) -> Waiting | None:
    """Return what trainings burnt while they waited for batches, None where no wait was timed.

    Each run's waited seconds are multiplied with the watts of the machine that idles: those of the run itself, and where it has a
    GPU those of the GPU over `inputs`, runs of the same input in which nothing is computed. There are no joules where one
    of the two is not known.
    """
    timed = [(run.energy, run.waited_s, run.images) for run in runs if run.waited_s is not None]
    if not timed:
        return None
    waited_s = sum(seconds for _, seconds, _ in timed)
    burnt = [_while_idle(energy, seconds) for energy, seconds, _ in timed]
    if any(energy.components["gpu"] is not None for energy, _, _ in timed):
        burnt.append(_gpu_while_idle([run.energy for run in inputs], waited_s))
    known = [part for part in burnt if part is not None]
    share_of_time = waited_s / sum(energy.duration_s for energy, _, _ in timed)
    at_most = training_device() != "CPU:0" or any(energy.components["gpu"] is not None for energy, _, _ in timed)
    if len(known) < len(burnt):
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
    """Return what the machine without its GPU takes in so many seconds of a window, when nothing is computed."""
    idle = energy.components["idle"]
    if idle is None and energy.total_j > energy.active_j:
        # counters do not tell idle from active, the meter's share of them does
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
    """Return what the GPU takes in so many seconds, from windows in which it has nothing to do."""
    known = [(energy.components["gpu"], energy.duration_s) for energy in inputs]
    parts = [part for part, _ in known if part is not None]
    if not parts or len(parts) < len(known):
        return None
    return functools.reduce(operator.add, parts) * (seconds / sum(duration_s for _, duration_s in known))
