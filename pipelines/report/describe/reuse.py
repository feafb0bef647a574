"""How often augmentations are reused, and the measured effect on the trained model."""

from __future__ import annotations

from collections.abc import Callable

from joulecache.pipelines.auditing.results import DrawReuse, VariantPoint
from joulecache.pipelines.core import quantities
from joulecache.pipelines.core.quantities import Spread, plural
from joulecache.pipelines.core.statistics import Mean
from joulecache.pipelines.models.metrics import ACCURACY, Metric
from joulecache.pipelines.report.describe.values import active, ends, joules_column, score_range
from joulecache.pipelines.report.document import (
    Block,
    Cell,
    Chart,
    Column,
    Dot,
    Ends,
    Paragraph,
    Scatter,
    Section,
    Table,
    finding_cell,
    table,
    words,
)

NO_INTERVAL = "one seed, no interval"
_BETTER = {True: "Up and to the left", False: "Down and to the left", None: "To the left"}


def reuse_section(reuse: DrawReuse, horizon: int, metric: Metric = ACCURACY) -> Section:
    """Return the section of a report about the reuse of augmentations."""
    blocks: list[Block] = [Paragraph(sentence) for sentence in reuse_sentences(reuse, horizon, metric)]
    if reuse.points:
        blocks += [_chart(reuse, metric), _table(reuse, horizon, metric)]
    return Section("Augmentation reuse", tuple(blocks))


def reuse_sentences(reuse: DrawReuse, horizon: int, metric: Metric = ACCURACY) -> tuple[str, ...]:
    """Say how often draws are reused, and the measured effect, claiming no more than the findings support."""
    found = [
        f"The cache holds {plural(reuse.variants, 'variant')} of its random ops. Each is used {times(reuse.horizon_reuse)} over "
        f"{plural(horizon, 'epoch')}, and {times(reuse.train_reuse)} in a training of {plural(reuse.train_epochs, 'epoch')}."
    ]
    if reuse.not_measured is not None:
        return (*found, f"Its effect on {metric.name} was not measured: {reuse.not_measured}.")
    found += [
        _compared(point, point.difference, reuse.margin, metric)
        for point in reuse.points
        if point.difference is not None
    ]
    if reuse.horizon_reuse > reuse.train_reuse:
        found.append(f"The effect of using a draw {times(reuse.horizon_reuse)} was not measured.")
    return tuple(found)


def times(number: float) -> str:
    """Say how often a draw is used on average: "3 times"; "at most once" where there are more draws than epochs."""
    if number < 1:
        return "at most once"
    return "once" if number == 1 else f"{number:.3g} times"


def _compared(point: VariantPoint, difference: Mean, margin: float, metric: Metric) -> str:
    verb = "is" if point.variants == 1 else "are"
    claim = {
        "not inferior": f"{verb} not inferior to fresh draws",
        "inferior": f"{verb} inferior to fresh draws",
    }.get(point.finding or "", f"{verb} not shown to be as good as fresh draws")
    shown = _difference_range(metric, difference)
    interval = f"95%: {shown.interval}" if shown.low else shown.interval
    points, limit = (" points", f"{100 * margin:g}") if metric.is_accuracy else ("", quantities.number(margin))
    return (
        f"{point.name}, each used {times(point.train_reuse)}, {claim}: {metric.name} differs by {shown.value}{points} ({interval}; "
        f"{difference.count} seeds, margin {limit}); {point.why}."
    )


def _difference(metric: Metric, value: float) -> str:
    """Return a difference of a metric with its sign, of accuracies in percentage points."""
    if metric.is_accuracy:
        return f"{100 * value:+z.2f}"
    return ("+" if value > 0 else "") + quantities.number(value)


def _spread(mean: Mean, formatted: Callable[[float, float, float], Spread]) -> Spread:
    if mean.low is None or mean.high is None:
        return Spread(formatted(mean.value, mean.value, mean.value).value, note=NO_INTERVAL)
    return formatted(mean.value, mean.low, mean.high)


def _difference_range(metric: Metric, mean: Mean) -> Spread:
    return _spread(mean, lambda *values: Spread(*(_difference(metric, value) for value in values)))


def _energy_range(mean: Mean, like_j: float) -> Spread:
    return _spread(mean, lambda value, low, high: quantities.joules_range(value, low, high, like_j))


def _mean_score(metric: Metric, mean: Mean) -> Spread:
    """Return the mean of a metric over seeds; the interval of an accuracy is limited to 0% to 100%."""
    return _spread(mean, lambda *values: score_range(metric, *values))


def _tag(point: VariantPoint) -> str:
    return quantities.kind(point.build.active.method)


def _table(reuse: DrawReuse, horizon: int, metric: Metric) -> Table:
    points, tag = reuse.points, _tag(reuse.points[0])
    like_j = quantities.largest(point.with_build_j_per_1000.value for point in points)
    trained = plural(reuse.train_epochs, "epoch")
    points_of = "Points" if metric.is_accuracy else "Difference"
    better = "below" if metric.higher_is_better is False else "above"
    margin = _difference(metric, reuse.margin if better == "below" else -reuse.margin)
    return table(
        f"{metric.title} and energy by number of variants",
        points,
        {
            words("Variants"): lambda point: point.name,
            words("Uses in a training", "uses", priority=3): lambda point: times(point.train_reuse),
            Column(
                "Active energy of training per 1,000 images (low to high)", "training /1,000", priority=5
            ): joules_column(points, lambda point: point.active_j_per_1000, tag),
            Column("With its share of the build (95% interval)", "with build /1,000"): lambda point: Cell(
                _energy_range(point.with_build_j_per_1000, like_j), tag
            ),
            Column("Build (low to high)", "build", priority=6): joules_column(
                points, lambda point: active(point.build), tag
            ),
            Column("Cache", priority=4): lambda point: quantities.data_size(point.cache_bytes),
            Column(f"{metric.title} (95% interval)", f"{metric.name}, 95%"): lambda point: _mean_score(
                metric, point.score
            ),
            Column(
                f"{points_of} from fresh (95% interval)", f"{points_of.lower()} from fresh, 95%", priority=1
            ): lambda point: _difference_range(metric, point.difference) if point.difference else "reference",
            words("Finding"): lambda point: finding_cell(point.finding) if point.finding else "reference",
            words("Why", priority=7): lambda point: point.why or "-",
        },
        f"{points[-1].score.count} seeds, trainings of {trained}. With one seed, all start from the same weights and see the records "
        "in the same order; the draws are the same for every seed. The build is spread over "
        f"{plural(horizon, 'epoch')}, that of fresh draws over the {trained} that it has draws for. Not inferior: the whole interval of "
        f"the difference lies {better} {margin}{' points' if metric.is_accuracy else ''}.",
    )


def _chart(reuse: DrawReuse, metric: Metric) -> Chart:
    scale = 100 if metric.is_accuracy else 1

    def scaled(interval: Ends) -> Ends:
        return interval and (scale * interval[0], scale * interval[1])

    dots = tuple(
        Dot(
            point.name,
            point.with_build_j_per_1000.value,
            ends(point.with_build_j_per_1000),
            scale * point.score.value,
            scaled(ends(point.score)),
        )
        for point in reuse.points
    )
    like_j = quantities.largest(dot.x for dot in dots)
    shown = [
        f"{point.name} {_energy_range(point.with_build_j_per_1000, like_j)} per 1,000 images, "
        f"{metric.name} {_mean_score(metric, point.score)}"
        for point in reuse.points
    ]
    return Chart(
        f"{metric.title} and energy by number of variants",
        Scatter(
            dots,
            "active J per 1,000 images, with the build's share",
            f"{metric.name}{', %' if metric.is_accuracy else ''}",
        ),
        f"Points: {'; '.join(shown)}.",
        f"{_BETTER[metric.higher_is_better]} is better. Error bars: 95% intervals over the seeds, which share some of their variation: the "
        "table compares points seed by seed.",
        _tag(reuse.points[0]),
    )
