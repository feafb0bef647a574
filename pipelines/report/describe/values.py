"""Format typed values as cells and text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from joulecache.pipelines.auditing.results import Audit
from joulecache.pipelines.core import quantities
from joulecache.pipelines.core.quantities import NOT_MEASURED, Spread
from joulecache.pipelines.core.statistics import Mean
from joulecache.pipelines.energy import Component, Energy
from joulecache.pipelines.experiment.results import Joules, WorkloadResult
from joulecache.pipelines.experiment.statistics import BreakEven, Ratio
from joulecache.pipelines.models.metrics import Metric
from joulecache.pipelines.report.document import Cell, Ends

T = TypeVar("T")
NO_COUNTRY = "no country given"
PARTS = {"input": "the input", "training": "the training"}
"""Names of the parts of a training that are measured alone."""

_TITLES = {
    "input": "Input only",
    "train": "Training",
    "finetune": "Fine-tuning",
    "infer": "Inference",
    "accelerator": "Simulated accelerator",
}


def title_of(workload: str) -> str:
    """Return the title of a workload."""
    return _TITLES.get(workload, workload)


def active_tag(audit: Audit, result: WorkloadResult | None = None) -> str:
    """Return whether the active joules of an audit are measured, modelled or given; of a result with those of a simulated device."""
    method = audit.energy.active.method
    return quantities.kind(method if result is None or result.device is None else f"{method}+{result.device.method}")


def joules(energy: Joules, like_j: float | None = None) -> Spread:
    """Return an energy with its bounds, in the unit of `like_j`, the largest of a column."""
    return quantities.joules_range(energy.value, energy.low, energy.high, like_j)


def joules_column(items: Iterable[T], energy: Callable[[T], Joules], tag: str) -> Callable[[T], Cell]:
    """Return a function from an item to its energy as a cell, in the unit of the largest. Zero energies have no tag."""
    like_j = quantities.largest(energy(item).value for item in items)

    def shown(item: T) -> Cell:
        spread = joules(energy(item), like_j)
        return Cell(spread, tag) if energy(item).high else Cell(Spread(spread.value))

    return shown


def active(energy: Energy) -> Joules:
    """Return the active part of an energy."""
    return Joules(energy.active_j, energy.active_low_j, energy.active_high_j)


def total(energy: Energy) -> Spread:
    """Return an energy, idle included, with its bounds."""
    return quantities.joules_range(energy.total_j, energy.low_j, energy.high_j)


def component_cell(part: Component | None) -> Cell:
    """Return a component of an energy as a cell."""
    if part is None:
        return Cell(Spread(NOT_MEASURED))
    return Cell(quantities.joules_range(part.value_j, part.low_j, part.high_j), quantities.kind(part.method))


def flagged(what: str, energy: Energy) -> str:
    """Say why the meter flagged an energy; "" if it did not."""
    return f"{what} is flagged by the meter: {'; '.join(energy.flags)}." if energy.flags else ""


def ratio(one: Ratio) -> Spread:
    """Return a ratio with its interval."""
    return quantities.ratio_range(one.value, one.low, one.high)


def change_interval(one: Ratio) -> str:
    """Return the interval of a ratio as a change."""
    return quantities.change_range(one.low, one.high)


def epochs_to(paid: BreakEven, of: Ratio) -> Spread:
    """Return the number of epochs after which a build is paid back."""
    return quantities.epochs_range(paid.epochs, paid.low, paid.high, has_interval=ends(of) is not None)


def ends(mean: Mean | Ratio) -> Ends:
    """Return the ends of an interval."""
    return None if mean.low is None or mean.high is None else (mean.low, mean.high)


def share(value: float | None, *, at_most: bool = False) -> str:
    """Return a share as a percentage, marked if it is an upper bound, or a note that it was not measured."""
    return NOT_MEASURED if value is None else f"{'at most ' * at_most}{quantities.share(value)}"


def score(metric: Metric, value: float | None) -> str:
    """Return the value of a metric: an accuracy in percent, any other with four digits, or a note that it was not measured."""
    if value is None:
        return NOT_MEASURED
    return quantities.share(value) if metric.is_accuracy else quantities.number(value, 4)


def score_range(metric: Metric, value: float, low: float, high: float) -> Spread:
    """Return the value of a metric with its range."""
    if metric.is_accuracy:
        return quantities.share_range(value, max(0.0, low), min(1.0, high))
    return Spread(*(score(metric, each) for each in (value, low, high)))


def direction(metric: Metric) -> str:
    """Say which values of a metric are better; "" for accuracy."""
    return "" if metric.is_accuracy else f"{metric.name}: {metric.better}."


def constant_answer(chance: float) -> str:
    """Say what chance level is."""
    return f"Always answering the most frequent class is right for {quantities.share(chance)} of the held-out images."


def class_list(names: Sequence[str], most: int) -> str:
    """Return the number of classes and the names of the first ones."""
    return f"{quantities.count(len(names))} {'class' if len(names) == 1 else 'classes'}: {quantities.shortened(names, most) or 'none'}."
