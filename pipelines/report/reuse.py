"""What an audit says of draws that are seen again: sentences and a table, the same in every form of a report."""

from __future__ import annotations

from joulecache.pipelines.report import figures
from joulecache.pipelines.report.tables import Cell, Column, Table, active_ends
from joulecache.pipelines.report.verdict import Body

NO_INTERVAL = "one seed, no interval"


def reuse_sentences(reuse: Body, horizon: int) -> tuple[str, ...]:
    """Say how often draws are seen again, and what that was measured to do, in words that claim no more than the findings do."""
    held = f"The cache holds {_draws(reuse['variants'])} of the ops before its cut"
    trained = f"in a training of {_epochs(reuse['train_epochs'])}"
    said = [
        f"{held}: over {_epochs(horizon)} each is seen {seen(reuse['horizon_reuse'])}, {trained} {seen(reuse['train_reuse'])}."
    ]
    if reuse["not_measured"] is not None:
        return (*said, f"What that does to accuracy was not measured: {reuse['not_measured']}.")
    said += [_compared(point, reuse["margin"]) for point in reuse["points"] if point["difference"] is not None]
    if reuse["horizon_reuse"] > reuse["train_reuse"]:
        said.append(f"What it does to see a draw {seen(reuse['horizon_reuse'])} was not measured.")
    return tuple(said)


def seen(times: float) -> str:
    """Say how often a draw is seen on average: "3 times"; "at most once" where there are more draws than epochs."""
    if times < 1:
        return "at most once"
    return "once" if times == 1 else f"{times:.3g} times"


def points(difference: float) -> str:
    """Return a difference of accuracies, shares of 1, in points with its sign."""
    return f"{100 * difference:+z.2f}"


def points_range(mean: Body) -> str:
    """Return ``value (low to high)`` of a difference in points."""
    if mean["low"] is None or mean["high"] is None:
        return f"{points(mean['value'])} ({NO_INTERVAL})"
    return f"{points(mean['value'])} ({points(mean['low'])} to {points(mean['high'])})"


def mean_range(mean: Body, like_j: float) -> str:
    """Return ``value (low to high)`` of an energy over seeds."""
    if mean["low"] is None or mean["high"] is None:
        return f"{figures.joules(mean['value'], like_j)} ({NO_INTERVAL})"
    return figures.joules_range(mean, like_j)


def accuracy_range(mean: Body) -> str:
    """Return ``value (low to high)`` of an accuracy over seeds; no accuracy lies beyond 0 and 1, and so no end that is shown."""
    if mean["low"] is None or mean["high"] is None:
        return f"{figures.share(mean['value'])} ({NO_INTERVAL})"
    return figures.share_range(mean["value"], max(0.0, mean["low"]), min(1.0, mean["high"]))


def reuse_table(reuse: Body, horizon: int) -> Table:
    """Return the curve: what training costs with so many draws, and how well it learns."""
    rows, measured = [], reuse["points"]
    like = figures.largest(point["active_j_per_1000"]["value"] for point in measured)
    whole = figures.largest(point["with_build_j_per_1000"]["value"] for point in measured)
    built = figures.largest(point["build"]["active_j"] for point in measured)
    for point in measured:
        tag = figures.kind(point["build"]["active"]["method"])
        rows.append(
            (
                Cell(point["name"]),
                Cell(seen(point["train_reuse"])),
                _cell(figures.joules_range(point["active_j_per_1000"], like), tag),
                _cell(mean_range(point["with_build_j_per_1000"], whole), tag),
                _cell(figures.joules_range(active_ends(point["build"]), built), tag),
                Cell(figures.data_size(point["cache_bytes"])),
                _cell(accuracy_range(point["accuracy"])),
                Cell("reference") if point["difference"] is None else _cell(points_range(point["difference"])),
                Cell("reference") if point["finding"] is None else Cell(point["finding"], tone=point["finding"]),
                Cell(point["why"] or "-"),
            )
        )
    columns = (
        Column("Cached draws", figure=False),
        Column("A training sees each", figure=False),
        Column("Training, active energy per 1,000 images (low to high)"),
        Column("With its share of the build (95% interval)"),
        Column("The build (low to high)"),
        Column("Cache"),
        Column("Accuracy (95% interval)"),
        Column("Points from fresh (95% interval)"),
        Column("Finding", figure=False),
        Column("Why", figure=False),
    )
    seeds = measured[-1]["accuracy"]["count"]
    trained = _epochs(reuse["train_epochs"])
    remark = (
        f"{seeds} seeds, of trainings of {trained}: in each, all start from the same weights and see the records in the same order. "
        "The draws themselves are the same for every seed. The build is spread over "
        f"{_epochs(horizon)}; that of fresh draws over the {trained} that it has draws for. Not inferior: the whole interval of the "
        f"difference lies above {points(-reuse['margin'])} points."
    )
    return Table("Draws that are seen again", columns, tuple(rows), remark)


def _cell(text: str, tag: str | None = None) -> Cell:
    value, _, ends = text.partition(" (")
    return Cell(value, tag, ends=ends and f"({ends}")


def _compared(point: Body, margin: float) -> str:
    name, found, difference = point["name"], point["finding"], points_range(point["difference"])
    seeds = f"{point['difference']['count']} seeds"
    verb = "is" if point["variants"] == 1 else "are"
    claim = {
        "not inferior": f"{verb} not inferior to fresh draws",
        "inferior": f"{verb} inferior to fresh draws",
    }.get(found, f"{verb} not shown to be as good as fresh draws")
    value, _, ends = difference.partition(" (")
    interval = f"95%: {ends}" if point["difference"]["low"] is not None else ends
    return (
        f"{name}, each draw seen {seen(point['train_reuse'])}, {claim}: the accuracy differs by {value} points "
        f"({interval.removesuffix(')')}; {seeds}, margin {100 * margin:g}); {point['why']}."
    )


def _draws(count: int) -> str:
    return f"{figures.count(count)} draw{'s' if count != 1 else ''}"


def _epochs(count: int) -> str:
    return f"{figures.count(count)} epoch{'s' if count != 1 else ''}"
