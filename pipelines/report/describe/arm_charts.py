"""The charts of a workload: energies, ratios, and energy over epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from joulecache.pipelines.auditing.results import Audit
from joulecache.pipelines.core import quantities
from joulecache.pipelines.experiment.results import ArmResult, WorkloadResult
from joulecache.pipelines.experiment.statistics import Ratio
from joulecache.pipelines.report.describe.values import active_tag, ends, epochs_to, joules, ratio
from joulecache.pipelines.report.document import Bars, Chart, Crossing, Intervals, Line, Lines, Mark

# The built-in arms have the same colours in every report.
_SERIES = {"naive": 0, "tuned": 1, "tf_cache": 2, "optimized": 3, "tfrecord": 4, "tf_cache_file": 5}
_FIRST_CUSTOM = 4
_ZOOMED = 4  # a crossing in the first quarter of the horizon gets a separate chart


def workload_charts(result: WorkloadResult, audit: Audit) -> Iterator[Chart]:
    """Yield charts of energy, of ratios, and of energy over epochs, with a close-up where the build is paid back early."""
    yield _bars(result, audit)
    yield _ratios(result, audit)
    horizon = audit.horizon_epochs
    if horizon is None or audit.records is None:
        return
    images = audit.records.train
    yield _over_epochs(result, audit, images, horizon)
    paid = [comparison.break_even.epochs for comparison in result.comparisons]
    early = [epochs for epochs in paid if epochs is not None and 0 < epochs <= horizon / _ZOOMED]
    if early:
        yield _over_epochs(result, audit, images, max(2 * max(early), 1.0))


def _series(result: WorkloadResult) -> Mapping[str, int]:
    others = [arm.name for arm in result.arms if arm.name not in _SERIES]
    return {**_SERIES, **{name: _FIRST_CUSTOM + index for index, name in enumerate(others)}}


def _bars(result: WorkloadResult, audit: Audit) -> Chart:
    energies, series = [arm.active_j_per_1000 for arm in result.arms], _series(result)
    like_j = quantities.largest(each.value for each in energies)
    marks = tuple(
        Mark(arm.name, each.value, (each.low, each.high), series[arm.name], quantities.joules(each.value, like_j))
        for arm, each in zip(result.arms, energies, strict=True)
    )
    shown = [f"{arm.name} {joules(each, like_j)}" for arm, each in zip(result.arms, energies, strict=True)]
    return Chart(
        "Active energy per 1,000 images",
        Bars(marks, "active J per 1,000 images"),
        f"Bars: {'; '.join(shown)}.",
        "Error bars: from the lowest to the highest published coefficients. They show how far off the joules of all arms may be together; "
        "the ratios show how well the arms can be distinguished.",
        active_tag(audit, result),
    )


def _ratios(result: WorkloadResult, audit: Audit) -> Chart:
    reference, cached = audit.reference, audit.cached
    rows: list[tuple[str, str, Ratio]] = [
        (arm.name, reference, arm.ratio) for arm in result.arms if arm.name != reference
    ]
    if cached is not None:
        others = [comparison for comparison in result.comparisons if comparison.other != reference]
        rows += [(cached, comparison.other, comparison.ratio) for comparison in others]
    rows.append((reference, "itself", result.control))
    marks = tuple(
        Mark(f"{one} / {other}", each.value, ends(each), _SERIES.get(one) if one == cached else None)
        for one, other, each in rows
    )
    return Chart(
        "Ratios with their 95% intervals",
        Intervals(marks, "ratio of active energy; below 1: less"),
        f"{'; '.join(f'{one} / {other} {ratio(each)}' for one, other, each in rows)}.",
        f"An interval that contains 1 shows no difference. The last row is the control: {reference} against itself, which must contain 1.",
    )


def _over_epochs(result: WorkloadResult, audit: Audit, images: int, until: float) -> Chart:
    series, horizon = _series(result), audit.horizon_epochs or 0

    def energy_j(arm: ArmResult, epochs: float) -> float:
        return arm.one_time.value + epochs * images * arm.active_j_per_1000.value / 1000

    lines = tuple(Line(arm.name, energy_j(arm, 0), energy_j(arm, until), series[arm.name]) for arm in result.arms)
    crossings = []
    for comparison in result.comparisons:
        paid = comparison.break_even
        if paid.epochs is not None and 0 < paid.epochs <= until:
            band = None
            if comparison.ratio.low is not None and paid.low is not None:
                band = (paid.low, until if paid.high is None else min(paid.high, until))
            y = energy_j(result.arm(comparison.other), paid.epochs)
            crossings.append(Crossing(paid.epochs, y, band, series[comparison.other]))
    paid_back = [f"{each.other}: {epochs_to(each.break_even, each.ratio)}" for each in result.comparisons]
    when = f"Epochs until the build is paid back, against {'; '.join(paid_back)}." if paid_back else ""
    marked = " Rings and bands mark those on the chart." if crossings else ""
    title, caption = f"Energy over {horizon} epochs", f"Lines begin at the one-time cost. {when}{marked}".rstrip()
    if until < horizon:
        title, caption = "The first epochs", "The beginning of the same lines, where the build is paid back."
    shown = [f"{line.label} from {quantities.joules(line.start)} to {quantities.joules(line.end)}" for line in lines]
    description = f"Lines over 0 to {quantities.number(until)} epochs: {'; '.join(shown)}. {when}".rstrip()
    plot = Lines(until, lines, tuple(crossings), "epochs", "active J")
    return Chart(title, plot, description, caption, active_tag(audit, result))
