"""How often augmentations are reused, and the measured effect on accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from joulecache.pipelines.auditing.results import DrawReuse, VariantPoint
from joulecache.pipelines.core import quantities
from joulecache.pipelines.core.quantities import Spread, plural
from joulecache.pipelines.core.statistics import Mean
from joulecache.pipelines.report.describe.values import active, ends, joules_column
from joulecache.pipelines.report.document import (
    Block,
    Cell,
    Chart,
    Column,
    Dot,
    Ends,
    Fact,
    Paragraph,
    Scatter,
    Section,
    Table,
    finding_cell,
    table,
    words,
)

NO_INTERVAL = "one seed, no interval"


def reuse_section(reuse: DrawReuse, horizon: int) -> Section:
    """Return the section of a report about the reuse of augmentations."""
    blocks: list[Block] = [Paragraph(sentence) for sentence in reuse_sentences(reuse, horizon)]
    if reuse.points:
        blocks += [_chart(reuse), _table(reuse, horizon)]
    return Section("Augmentation reuse", tuple(blocks))


def reuse_facts(reuse: DrawReuse) -> Iterator[Fact]:
    """Yield the effect of the cached variants on accuracy, if it was measured."""
    cached = reuse.points[0] if reuse.points else None
    if cached is None or cached.difference is None:
        return
    difference = _points_range(cached.difference)
    detail = f"{cached.name} against fresh draws; 95% interval {difference.interval}"
    yield Fact("Accuracy change, in points", Cell(Spread(difference.value)), detail, cached.finding)


def reuse_sentences(reuse: DrawReuse, horizon: int) -> tuple[str, ...]:
    """Say how often draws are reused, and the measured effect, claiming no more than the findings support."""
    found = [
        f"The cache holds {plural(reuse.variants, 'variant')} of its random ops. Each is used {times(reuse.horizon_reuse)} over "
        f"{plural(horizon, 'epoch')}, and {times(reuse.train_reuse)} in a training of {plural(reuse.train_epochs, 'epoch')}."
    ]
    if reuse.not_measured is not None:
        return (*found, f"Its effect on accuracy was not measured: {reuse.not_measured}.")
    found += [
        _compared(point, point.difference, reuse.margin) for point in reuse.points if point.difference is not None
    ]
    if reuse.horizon_reuse > reuse.train_reuse:
        found.append(f"The effect of using a draw {times(reuse.horizon_reuse)} was not measured.")
    return tuple(found)


def times(number: float) -> str:
    """Say how often a draw is used on average: "3 times"; "at most once" where there are more draws than epochs."""
    if number < 1:
        return "at most once"
    return "once" if number == 1 else f"{number:.3g} times"


def _compared(point: VariantPoint, difference: Mean, margin: float) -> str:
    verb = "is" if point.variants == 1 else "are"
    claim = {
        "not inferior": f"{verb} not inferior to fresh draws",
        "inferior": f"{verb} inferior to fresh draws",
    }.get(point.finding or "", f"{verb} not shown to be as good as fresh draws")
    shown = _points_range(difference)
    interval = f"95%: {shown.interval}" if shown.low else shown.interval
    return (
        f"{point.name}, each used {times(point.train_reuse)}, {claim}: accuracy differs by {shown.value} points ({interval}; "
        f"{difference.count} seeds, margin {100 * margin:g}); {point.why}."
    )


def _points(difference: float) -> str:
    """Return a difference of accuracies in percentage points, with its sign."""
    return f"{100 * difference:+z.2f}"


def _spread(mean: Mean, formatted: Callable[[float, float, float], Spread]) -> Spread:
    if mean.low is None or mean.high is None:
        return Spread(formatted(mean.value, mean.value, mean.value).value, note=NO_INTERVAL)
    return formatted(mean.value, mean.low, mean.high)


def _points_range(mean: Mean) -> Spread:
    return _spread(mean, lambda *values: Spread(*map(_points, values)))


def _energy_range(mean: Mean, like_j: float) -> Spread:
    return _spread(mean, lambda value, low, high: quantities.joules_range(value, low, high, like_j))


def _accuracy_range(mean: Mean) -> Spread:
    """Return an accuracy over seeds, with its interval limited to 0% to 100%."""
    return _spread(mean, lambda value, low, high: quantities.share_range(value, max(0.0, low), min(1.0, high)))


def _tag(point: VariantPoint) -> str:
    return quantities.kind(point.build.active.method)


def _table(reuse: DrawReuse, horizon: int) -> Table:
    points, tag = reuse.points, _tag(reuse.points[0])
    like_j = quantities.largest(point.with_build_j_per_1000.value for point in points)
    trained = plural(reuse.train_epochs, "epoch")
    return table(
        "Accuracy and energy by number of variants",
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
            Column("Accuracy (95% interval)", "accuracy, 95%"): lambda point: _accuracy_range(point.accuracy),
            Column("Points from fresh (95% interval)", "points from fresh, 95%", priority=1): lambda point: (
                _points_range(point.difference) if point.difference else "reference"
            ),
            words("Finding"): lambda point: finding_cell(point.finding) if point.finding else "reference",
            words("Why", priority=7): lambda point: point.why or "-",
        },
        f"{points[-1].accuracy.count} seeds, trainings of {trained}. With one seed, all start from the same weights and see the records "
        "in the same order; the draws are the same for every seed. The build is spread over "
        f"{plural(horizon, 'epoch')}, that of fresh draws over the {trained} that it has draws for. Not inferior: the whole interval of "
        f"the difference lies above {_points(-reuse.margin)} points.",
    )


def _chart(reuse: DrawReuse) -> Chart:
    def percent(interval: Ends) -> Ends:
        return interval and (100 * interval[0], 100 * interval[1])

    dots = tuple(
        Dot(
            point.name,
            point.with_build_j_per_1000.value,
            ends(point.with_build_j_per_1000),
            100 * point.accuracy.value,
            percent(ends(point.accuracy)),
        )
        for point in reuse.points
    )
    like_j = quantities.largest(dot.x for dot in dots)
    shown = [
        f"{point.name} {_energy_range(point.with_build_j_per_1000, like_j)} per 1,000 images, accuracy {_accuracy_range(point.accuracy)}"
        for point in reuse.points
    ]
    return Chart(
        "Accuracy and energy by number of variants",
        Scatter(dots, "active J per 1,000 images, with the build's share", "accuracy, %"),
        f"Points: {'; '.join(shown)}.",
        "Up and to the left is better. Error bars: 95% intervals over the seeds, which share some of their variation: the table compares "
        "points seed by seed.",
        _tag(reuse.points[0]),
    )
