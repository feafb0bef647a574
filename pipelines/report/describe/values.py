"""Typed values as cells and texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from joulecache.pipelines.auditing.results import Audit
from joulecache.pipelines.core import quantities
from joulecache.pipelines.core.quantities import Spread
from joulecache.pipelines.core.statistics import Mean
from joulecache.pipelines.energy import Component, Energy
from joulecache.pipelines.experiment.results import Joules
from joulecache.pipelines.experiment.statistics import BreakEven, Ratio
from joulecache.pipelines.report.document import Cell

NO_COUNTRY = "no country given"
PARTS = {"input": "the input", "training": "the training"}
"""Names of the parts of a training that are measured alone."""

_TITLES = {"input": "Input only", "train": "Training", "finetune": "Fine-tuning", "infer": "Inference"}


def title_of(workload: str) -> str:
    """Return the title of a workload."""
    return _TITLES.get(workload, workload)


def active_tag(audit: Audit) -> str:
    """Return how the active joules of an audit were obtained."""
    return quantities.kind(audit.energy.active.method)


def joules(energy: Joules, like_j: float | None = None) -> Spread:
    """Return an energy with its bounds, in the unit of `like_j`, the largest of a column."""
    return quantities.joules_range(energy.value, energy.low, energy.high, like_j)


def joules_cells(energies: Iterable[Joules], tag: str) -> list[Cell]:
    """Return the cells of a column of energies, all in one unit."""
    column = list(energies)
    like_j = largest(column)
    return [Cell(joules(energy, like_j), tag) for energy in column]


def largest(energies: Iterable[Joules]) -> float:
    """Return the largest value of a column."""
    return quantities.largest(energy.value for energy in energies)


def active(energy: Energy) -> Joules:
    """Return the active part of an energy."""
    return Joules(energy.active_j, energy.active_low_j, energy.active_high_j)


def component_cell(part: Component | None) -> Cell:
    """Return a component of an energy as a cell."""
    if part is None:
        return Cell(Spread(quantities.NOT_MEASURED))
    return Cell(quantities.joules_range(part.value_j, part.low_j, part.high_j), quantities.kind(part.method))


def ratio(one: Ratio) -> Spread:
    """Return a ratio with its interval."""
    return quantities.ratio_range(one.value, one.low, one.high)


def change_interval(one: Ratio) -> str:
    """Return the interval of a ratio as a change."""
    return quantities.change_range(one.low, one.high)


def epochs_to(paid: BreakEven, of: Ratio) -> Spread:
    """Return after how many epochs a build is paid back."""
    has_interval = of.low is not None and of.high is not None
    return quantities.epochs_range(paid.epochs, paid.low, paid.high, has_interval=has_interval)


def ends(mean: Mean | Ratio) -> tuple[float, float] | None:
    """Return the ends of an interval; None where there is none."""
    return None if mean.low is None or mean.high is None else (mean.low, mean.high)


def epochs(number: int) -> str:
    """Return a number of epochs: "1 epoch", "30 epochs"."""
    return plural(number, "epoch")


def plural(number: int, noun: str) -> str:
    """Return a number with its noun: "1 epoch", "30 epochs"."""
    return f"{quantities.count(number)} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Return names as in "a, b and c"."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
