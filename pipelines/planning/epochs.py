"""Measure the energy per epoch of several arms, which take turns in rounds."""

from __future__ import annotations

import functools
import itertools
import math
import operator
import random
import statistics
import time
from collections.abc import Callable, Mapping

from joulecache.pipelines.core.progress import Progress
from joulecache.pipelines.energy import Energy, Meter
from joulecache.pipelines.experiment.arms import Arm
from joulecache.pipelines.experiment.workloads import InputOnly
from joulecache.pipelines.planning.config import Budget

_MIN_PASSES = 3  # per arm, even if time is short
_UNKNOWN_ERROR = 0.1
_MEDIAN_ERROR = 1.25  # standard error of a median, relative to that of a mean


class EpochRounds:
    """Measures arms in rounds, in random order; an arm with long epochs takes part in fewer rounds.

    `energies` holds, by arm, the mean energy of an epoch in each round.
    """

    def __init__(
        self,
        arms: Mapping[str, Arm],
        meter: Meter,
        seed: int,
        budget: Budget,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.energies: dict[str, list[Energy]] = {name: [] for name in arms}
        self._arms, self._meter, self._seed, self._budget, self._clock = arms, meter, seed, budget, clock

    def measure(self, until_s: float, progress: Progress) -> None:
        """Measure until a given clock time, and each arm for at least `_MIN_PASSES` passes."""
        pass_cpu_s, rounds = self._budget.pass_cpu_s, self._budget.rounds
        epochs: dict[str, int] = {}
        pass_s: dict[str, float] = {}
        spent_s = dict.fromkeys(self._arms, 0.0)
        for number, (name, arm) in enumerate(self._arms.items()):
            progress("warming up", number, len(self._arms))
            one = self.measure_pass(arm, 1)  # warm-up: the first epoch maps files and traces graphs
            if one.cpu_s < pass_cpu_s:
                one = self.measure_pass(arm, 1)
            epochs[name] = max(1, math.ceil(pass_cpu_s / max(one.cpu_s, 1e-6)))
            pass_s[name] = epochs[name] * one.duration_s
        for number in range(rounds):
            progress("measuring epochs", number, rounds)
            for name in random.Random(f"{self._seed} {number}").sample(list(self._arms), len(self._arms)):
                if spent_s[name] < _MIN_PASSES * pass_cpu_s or self._clock() + pass_s[name] < until_s:
                    mean = self.measure_pass(self._arms[name], epochs[name])
                    self.energies[name].append(mean)
                    spent_s[name] += epochs[name] * mean.cpu_s

    def measure_pass(self, arm: Arm, epochs: int) -> Energy:
        """Return the mean energy of an epoch; each has a window, as in an audit."""
        return functools.reduce(operator.add, (self._epoch(arm) for _ in range(epochs))) / epochs

    def _epoch(self, arm: Arm) -> Energy:
        work = InputOnly()
        with self._meter.window("sample") as window:
            work.run(arm, 0)
        return window.energy

    def of(self, name: str) -> tuple[float, float]:
        """Return the active joules and the seconds of an epoch: medians of the rounds."""
        energies = self.energies[name]
        joules, seconds = [one.active_j for one in energies], [one.duration_s for one in energies]
        return statistics.median(joules), statistics.median(seconds)

    def relative_error(self, name: str) -> float:
        """Return the standard error of the joules of an epoch, as a share of them.

        The variation is pooled over all arms, since each has few rounds. If no arm was measured twice, it is a tenth.
        """
        rounds = {arm: [one.active_j for one in energies] for arm, energies in self.energies.items()}
        repeated = [joules for joules in rounds.values() if len(joules) > 1]
        if not repeated:
            return _UNKNOWN_ERROR
        squares = sum(
            (len(joules) - 1) * (statistics.stdev(joules) / statistics.fmean(joules)) ** 2 for joules in repeated
        )
        variation = math.sqrt(squares / sum(len(joules) - 1 for joules in repeated))
        return _MEDIAN_ERROR * variation / math.sqrt(len(rounds[name]))

    def total(self) -> Energy:
        """Return the energy of all passes, each as one epoch."""
        return functools.reduce(operator.add, itertools.chain.from_iterable(self.energies.values()))
