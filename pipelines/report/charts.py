"""The charts of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joulecache.pipelines.report import drawing, figures
from joulecache.pipelines.report.drawing import COLOURS, DASHES, MARKERS, SERIES
from joulecache.pipelines.report.reuse import accuracy_range, mean_range
from joulecache.pipelines.report.stages import UNATTRIBUTED, WAITING, reference_waiting
from joulecache.pipelines.report.tables import active_ends
from joulecache.pipelines.report.verdict import Body, active_tag

_KNOWN = {"naive": 0, "tuned": 1, "tf_cache": 2, "optimized": 3}
_ZOOMED = 4  # a crossing in the first quarter of the horizon gets a chart of its own
_LONGEST_LABEL = 16
_LONGEST_VARIANT = 36
_LONGEST_STAGE = 18
_HATCHES = ("", "....", "oo")  # where there are more stages than colours
_ROW = 34  # units of height for a bar or an interval
_WIDE = 5  # ratios further apart than this stand on a logarithmic axis


@dataclass(frozen=True)
class Chart:
    """A drawing as SVG text, its title and caption, and how its joules were obtained (None: it shows none)."""

    title: str
    svg: str
    caption: str
    tag: str | None


def workload_charts(result: Body, body: Body) -> tuple[Chart, ...]:
    """Return the charts of one workload: energy, ratios, energy over epochs and, where it is too small there, the crossing."""
    name = f"chart-{body['workloads'].index(result)}"
    charts = [_bars(f"{name}-energy", result, active_tag(body)), _ratios(f"{name}-ratios", result, body)]
    horizon = body["horizon_epochs"]
    if horizon is None:
        return tuple(charts)
    charts.append(_epochs(f"{name}-epochs", result, body, horizon))
    paid = [compared["break_even"]["epochs"] for compared in result["comparisons"]]
    crossings = [epochs for epochs in paid if epochs is not None and 0 < epochs <= horizon / _ZOOMED]
    if crossings:
        until = max(2 * max(crossings), 1.0)
        charts.append(_epochs(f"{name}-first", result, body, until))
    return tuple(charts)


def stage_charts(body: Body) -> tuple[Chart, ...]:
    """Return the chart of where the joules go."""
    return (_stages("chart-stages", body),)


def compression_charts(compression: Body) -> tuple[Chart, ...]:
    """Return the chart of the model files: accuracy against energy."""
    return (_variants("chart-variants", compression["variants"]),)


def _series(names: Sequence[str]) -> Mapping[str, int]:
    """Return the colour of each arm: fixed for ours, the others in turn."""
    others = [name for name in names if name not in _KNOWN]
    return {**_KNOWN, **{name: (len(_KNOWN) + i) % SERIES for i, name in enumerate(others)}}


def _label(name: str, longest: int = _LONGEST_LABEL) -> str:
    """Return a name that leaves room for the chart."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _bars(name: str, result: Body, tag: str) -> Chart:
    arms = result["arms"]
    series = _series([arm["name"] for arm in arms])
    energies = [arm["active_j_per_1000"] for arm in arms]
    like = figures.largest(energy["value"] for energy in energies)

    def paint(axes: Any) -> None:
        for place, (arm, energy) in enumerate(zip(arms, energies, strict=True)):
            value, low, high = energy["value"], energy["low"], energy["high"]
            axes.barh(place, value, 0.56, color=COLOURS[f"series-{series[arm['name']]}"])
            axes.errorbar(
                value, place, xerr=[[value - low], [high - value]], color=COLOURS["ink"], capsize=3.5, linewidth=1.2
            )
            axes.annotate(
                figures.joules(value, like), (high, place), (6, 0), textcoords="offset points", va="center", size=11
            )
        axes.set_yticks(range(len(arms)), [_label(arm["name"]) for arm in arms], color=COLOURS["ink"])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.32 * figures.largest(energy["high"] for energy in energies))
        axes.set_xlabel("active J per 1,000 images")
        axes.xaxis.get_major_locator().set_params(nbins=5)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)

    title = "Active energy per 1,000 images"
    shown = [f"{arm['name']} {figures.joules_range(energy, like)}" for arm, energy in zip(arms, energies, strict=True)]
    caption = (
        "Whiskers reach from the lowest to the highest published coefficients: how far the joules may be wrong, all arms together. "
        "How well the arms are told apart is in the ratios."
    )
    svg = drawing.draw(name, 58 + _ROW * len(arms), title, f"Bars: {'; '.join(shown)}.", paint)
    return Chart(title, svg, caption, tag)


def _ratios(name: str, result: Body, body: Body) -> Chart:
    reference, cached = body["reference"], body["cached"]
    rows = [((arm["name"], reference), arm["ratio"]) for arm in result["arms"] if arm["name"] != reference]
    rows += [
        ((cached, compared["other"]), compared["ratio"])
        for compared in result["comparisons"]
        if compared["other"] != reference
    ]
    rows.append(((reference, "itself"), result["control"]))

    def paint(axes: Any) -> None:
        axes.axvline(1, color=COLOURS["muted"], linewidth=1)
        ends = [1.0]
        for place, ((one, _), ratio) in enumerate(rows):
            colour = COLOURS[f"series-{_KNOWN[one]}" if one == cached else "muted"]
            known = ratio["low"] is not None and ratio["high"] is not None
            low, high = (ratio["low"], ratio["high"]) if known else (ratio["value"], ratio["value"])
            ends += [low, high]
            axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
            fill = colour if known else COLOURS["paper"]
            axes.plot([ratio["value"]], [place], "o", color=colour, markerfacecolor=fill, markersize=7)
        _ratio_axis(axes, min(ends), max(ends))
        axes.set_yticks(range(len(rows)), [" / ".join(map(_label, pair)) for pair, _ in rows], color=COLOURS["ink"])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("ratio of active energy; below 1: less")
        axes.tick_params(axis="y", length=0)

    title = "Ratios with their 95% intervals"
    shown = "; ".join(f"{one} / {other} {figures.ratio_range(ratio)}" for (one, other), ratio in rows)
    caption = f"An interval that holds 1 shows no difference. The last row is the control: {reference} against itself, which must hold 1."
    return Chart(title, drawing.draw(name, 58 + 27 * len(rows), title, f"{shown}.", paint), caption, None)


def _ratio_axis(axes: Any, low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.grid(axis="x")
    if high <= _WIDE * low:
        margin = 0.08 * (high - low) or 0.1
        axes.set_xlim(low - margin, high + margin)
        axes.xaxis.get_major_locator().set_params(nbins=5)
        return
    axes.set_xscale("log")
    axes.set_xlim(low / 1.25, high * 1.25)
    steps = (1, 2, 5) if high < 100 * low else (1,)
    ticks = [step * 10.0**power for power in range(-9, 10) for step in steps]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low / 1.25 <= tick <= high * 1.25]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))


def _epochs(name: str, result: Body, body: Body, until: float) -> Chart:
    arms = result["arms"]
    series = _series([arm["name"] for arm in arms])
    records = body["records"]["train"]

    def energy_j(arm: Body, epochs: float) -> float:
        return float(arm["one_time"]["value"] + epochs * records * arm["active_j_per_1000"]["value"] / 1000)

    by_name = {arm["name"]: arm for arm in arms}
    crossed = [compared for compared in result["comparisons"] if _within(compared["break_even"]["epochs"], until)]

    def paint(axes: Any) -> None:
        for compared in crossed:
            paid, colour = compared["break_even"], COLOURS[f"series-{series[compared['other']]}"]
            if compared["ratio"]["low"] is not None:
                end = until if paid["high"] is None else min(paid["high"], until)
                axes.axvspan(paid["low"], end, color=colour, alpha=0.13, linewidth=0)
        for arm in arms:
            number = series[arm["name"]]
            axes.plot(
                [0, until],
                [energy_j(arm, 0), energy_j(arm, until)],
                color=COLOURS[f"series-{number}"],
                linestyle=DASHES[number],
                label=_label(arm["name"]),
            )
        for compared in crossed:
            epochs = compared["break_even"]["epochs"]
            axes.plot(
                [epochs],
                [energy_j(by_name[compared["other"]], epochs)],
                "o",
                color=COLOURS[f"series-{series[compared['other']]}"],
                markerfacecolor=COLOURS["paper"],
                markersize=8,
                markeredgewidth=2,
                zorder=5,
            )
        axes.set_xlim(0, until)
        axes.set_ylim(0, None)
        axes.set_xlabel("epochs")
        axes.set_ylabel("active J")
        axes.xaxis.get_major_locator().set_params(nbins=6)
        axes.yaxis.get_major_locator().set_params(nbins=6)
        axes.grid(axis="y")
        axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.22), ncols=2, handlelength=3, columnspacing=2)

    lines = [
        f"{arm['name']} from {figures.joules(energy_j(arm, 0))} to {figures.joules(energy_j(arm, until))}"
        for arm in arms
    ]
    paid_back = [
        f"{compared['other']}: {figures.epochs_to(compared['break_even'], compared['ratio'])}"
        for compared in result["comparisons"]
    ]
    said = f"Epochs until the build is paid back, against {'; '.join(paid_back)}."
    marked = "Rings and bands mark them where they fall on the chart." if crossed else ""
    title, caption = (
        f"Energy over {body['horizon_epochs']} epochs",
        f"Lines begin at what is spent once. {said} {marked}",
    )
    if until < body["horizon_epochs"]:
        title, caption = "The first epochs", "The beginning of the same lines, where the build is paid back."
    description = f"Lines over 0 to {figures.number(until)} epochs: {'; '.join(lines)}. {said}"
    return Chart(title, drawing.draw(name, 250, title, description, paint), caption, active_tag(body))


def _stages(name: str, body: Body) -> Chart:
    found, tag = body["stages"], active_tag(body)
    whole_j, rest_j = found["whole_j_per_1000"], found["unattributed_j_per_1000"]
    known = [
        (stage["name"], stage["active_j_per_1000"])
        for stage in found["stages"]
        if stage["active_j_per_1000"] is not None
    ]
    waiting = reference_waiting(body)
    waited = None if waiting is None else waiting["total_j_per_1000"]

    def paint(axes: Any) -> None:
        left = 0.0
        for place, (stage, value) in enumerate(known):
            colour, hatch = (
                COLOURS[f"series-{1 + place % (SERIES - 1)}"],
                _HATCHES[place // (SERIES - 1) % len(_HATCHES)],
            )
            label = f"{_label(stage, _LONGEST_STAGE)} {figures.share(value / whole_j)}"
            axes.barh(0, value, 0.6, left, color=colour, hatch=hatch, edgecolor=COLOURS["paper"], label=label)
            left += value
        if rest_j > 0:
            label = f"{UNATTRIBUTED} {figures.share(rest_j / whole_j)}"
            axes.barh(0, rest_j, 0.6, left, color="none", hatch="////", edgecolor=COLOURS["muted"], label=label)
        if waited is not None:
            axes.barh(
                1,
                waited["value"],
                0.6,
                color="none",
                hatch="xxxx",
                edgecolor=COLOURS["series-0"],
                label=f"{WAITING}, apart",
            )
        axes.plot([whole_j, whole_j], [-0.42, 0.42], color=COLOURS["ink"], linewidth=1.6, solid_capstyle="butt")
        axes.set_yticks([0] if waited is None else [0, 1], ["active"] if waited is None else ["active", WAITING])
        axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.04 * max(whole_j, left, 0.0 if waited is None else waited["value"]))
        axes.set_xlabel("J per 1,000 images")
        axes.xaxis.get_major_locator().set_params(nbins=5)
        axes.grid(axis="x")
        axes.figure.legend(loc="outside lower left", ncols=2, handlelength=1.4, columnspacing=1.2, fontsize=10)

    shown = [f"{stage} {figures.joules(value, whole_j)} ({figures.share(value / whole_j)})" for stage, value in known]
    shown.append(f"{UNATTRIBUTED} {figures.joules(rest_j, whole_j)}")
    shown += [] if waited is None else [f"apart from that {WAITING} {figures.joules_range(waited)} of the total energy"]
    title = "Where the joules go"
    caption = (
        f"The active energy of {body['reference']} by stage; the line marks what it took as a whole. Stages below their resolution are "
        "left out."
    )
    if waited is not None:
        caption += " Waiting stands apart: it is a part of the total energy, idle included."
    entries = len(known) + (rest_j > 0) + (waited is not None)
    height = 96 + (0 if waited is None else _ROW) + 17 * -(-entries // 2)
    svg = drawing.draw(name, height, title, f"A bar of {figures.joules(whole_j)}: {'; '.join(shown)}.", paint)
    return Chart(title, svg, caption, tag)


def _within(epochs: float | None, until: float) -> bool:
    return epochs is not None and 0 < epochs <= until


@dataclass(frozen=True)
class _Dot:
    """A point of accuracy against energy: joules and a share of 1, with the ends of their intervals where there are such."""

    name: str
    energy_j: float
    energy_ends: tuple[float, float] | None
    accuracy: float
    accuracy_ends: tuple[float, float] | None


def _scatter(axes: Any, dots: Sequence[_Dot], energy: str) -> None:
    """Paint accuracy against energy."""

    def reach(value: float, ends: tuple[float, float] | None, scale: float) -> list[list[float]] | None:
        return None if ends is None else [[scale * (value - ends[0])], [scale * (ends[1] - value)]]

    for place, dot in enumerate(dots):
        number = place % SERIES
        axes.errorbar(
            dot.energy_j,
            100 * dot.accuracy,
            xerr=reach(dot.energy_j, dot.energy_ends, 1),
            yerr=reach(dot.accuracy, dot.accuracy_ends, 100),
            fmt=MARKERS[number],
            fillstyle="full" if place < SERIES else "none",
            color=COLOURS[f"series-{number}"],
            markersize=8,
            capsize=3.5,
            linewidth=1.2,
            label=_label(dot.name, _LONGEST_VARIANT),
        )
    axes.set_xlim(0, 1.15 * figures.largest((dot.energy_ends or (0, dot.energy_j))[1] for dot in dots))
    axes.set_xlabel(energy)
    axes.set_ylabel("accuracy, %")
    axes.xaxis.get_major_locator().set_params(nbins=5)
    axes.yaxis.get_major_locator().set_params(nbins=6)
    axes.grid()
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.22))


def reuse_charts(reuse: Body) -> tuple[Chart, ...]:
    """Return the chart of draws that are seen again: accuracy against energy, both with their intervals; none where none was measured."""
    points = reuse["points"]
    if not points:
        return ()

    def ends(mean: Body) -> tuple[float, float] | None:
        return None if mean["low"] is None or mean["high"] is None else (mean["low"], mean["high"])

    dots = [
        _Dot(
            point["name"],
            point["with_build_j_per_1000"]["value"],
            ends(point["with_build_j_per_1000"]),
            point["accuracy"]["value"],
            ends(point["accuracy"]),
        )
        for point in points
    ]
    like = figures.largest(dot.energy_j for dot in dots)
    shown = [
        f"{point['name']} {mean_range(point['with_build_j_per_1000'], like)} per 1,000 images, accuracy {accuracy_range(point['accuracy'])}"
        for point in points
    ]
    title = "Accuracy against energy, by the number of cached draws"
    caption = (
        "Up and to the left is better. Whiskers: 95% intervals over the seeds. What seeds share is in them too: whether two points differ "
        "is in the table, seed by seed."
    )
    tag = figures.kind(points[0]["build"]["active"]["method"])

    def paint(axes: Any) -> None:
        _scatter(axes, dots, "active J per 1,000 images, with the build's share")

    height = 230 + 16 * len(dots)
    return (
        Chart(title, drawing.draw("chart-reuse", height, title, f"Points: {'; '.join(shown)}.", paint), caption, tag),
    )


def _variants(name: str, variants: Sequence[Body]) -> Chart:
    spent = [active_ends(variant["energy_per_image"]) for variant in variants]
    like = figures.largest(energy["value"] for energy in spent)
    dots = [
        _Dot(
            variant["name"],
            1000 * energy["value"],
            None,
            variant["accuracy"],
            (variant["accuracy_low"], variant["accuracy_high"]),
        )
        for variant, energy in zip(variants, spent, strict=True)
    ]

    def paint(axes: Any) -> None:
        _scatter(axes, dots, "active J per 1,000 inferences")

    title = "Accuracy against energy"
    shown = [
        f"{variant['name']} {figures.joules_range(energy, like)} per image, accuracy "
        f"{figures.share_range(variant['accuracy'], variant['accuracy_low'], variant['accuracy_high'])}"
        for variant, energy in zip(variants, spent, strict=True)
    ]
    caption = "Up and to the left is better. Whiskers: the 95% interval of the accuracy on the held-out images."
    tag = figures.kind(variants[0]["energy_per_image"]["active"]["method"])
    return Chart(
        title, drawing.draw(name, 230 + 16 * len(variants), title, f"Points: {'; '.join(shown)}.", paint), caption, tag
    )
