"""The charts of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joulecache.pipelines.report import drawing, figures
from joulecache.pipelines.report.drawing import COLOURS, DASHES, MARKERS, SERIES
from joulecache.pipelines.report.tables import active_ends
from joulecache.pipelines.report.verdict import CACHED, REFERENCE, Body, active_tag

_KNOWN = {"naive": 0, "tuned": 1, "tf_cache": 2, "optimized": 3}
_ZOOMED = 4  # a crossing in the first quarter of the horizon gets a chart of its own
_LONGEST_LABEL = 16
_LONGEST_VARIANT = 36
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
    charts = [_bars(f"{name}-energy", result, active_tag(body)), _ratios(f"{name}-ratios", result)]
    horizon = body["horizon_epochs"]
    charts.append(_epochs(f"{name}-epochs", result, body, horizon))
    paid = [compared["break_even"]["epochs"] for compared in result["comparisons"]]
    crossings = [epochs for epochs in paid if epochs is not None and 0 < epochs <= horizon / _ZOOMED]
    if crossings:
        until = max(2 * max(crossings), 1.0)
        charts.append(_epochs(f"{name}-first", result, body, until))
    return tuple(charts)


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


def _ratios(name: str, result: Body) -> Chart:
    rows = [(f"{arm['name']} / {REFERENCE}", arm["ratio"]) for arm in result["arms"] if arm["name"] != REFERENCE]
    rows += [
        (f"{CACHED} / {compared['other']}", compared["ratio"])
        for compared in result["comparisons"]
        if compared["other"] != REFERENCE
    ]
    rows.append((f"{REFERENCE} / itself", result["control"]))

    def paint(axes: Any) -> None:
        axes.axvline(1, color=COLOURS["muted"], linewidth=1)
        ends = [1.0]
        for place, (label, ratio) in enumerate(rows):
            colour = COLOURS[f"series-{_KNOWN[CACHED]}" if label.startswith(f"{CACHED} /") else "muted"]
            known = ratio["low"] is not None and ratio["high"] is not None
            low, high = (ratio["low"], ratio["high"]) if known else (ratio["value"], ratio["value"])
            ends += [low, high]
            axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
            fill = colour if known else COLOURS["paper"]
            axes.plot([ratio["value"]], [place], "o", color=colour, markerfacecolor=fill, markersize=7)
        _ratio_axis(axes, min(ends), max(ends))
        axes.set_yticks(
            range(len(rows)), [" / ".join(map(_label, label.split(" / "))) for label, _ in rows], color=COLOURS["ink"]
        )
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("ratio of active energy; below 1: less")
        axes.tick_params(axis="y", length=0)

    title = "Ratios with their 95% intervals"
    shown = "; ".join(f"{label} {figures.ratio_range(ratio)}" for label, ratio in rows)
    caption = f"An interval that holds 1 shows no difference. The last row is the control: {REFERENCE} against itself, which must hold 1."
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


def _within(epochs: float | None, until: float) -> bool:
    return epochs is not None and 0 < epochs <= until


def _variants(name: str, variants: Sequence[Body]) -> Chart:
    spent = [active_ends(variant["energy_per_image"]) for variant in variants]
    like = figures.largest(energy["value"] for energy in spent)

    def paint(axes: Any) -> None:
        for place, (variant, energy) in enumerate(zip(variants, spent, strict=True)):
            number = place % SERIES
            colour, value = COLOURS[f"series-{number}"], 100 * variant["accuracy"]
            reach = [[value - 100 * variant["accuracy_low"]], [100 * variant["accuracy_high"] - value]]
            axes.errorbar(
                1000 * energy["value"],
                value,
                yerr=reach,
                fmt=MARKERS[number],
                fillstyle="full" if place < SERIES else "none",
                color=colour,
                markersize=8,
                capsize=3.5,
                linewidth=1.2,
                label=_label(variant["name"], _LONGEST_VARIANT),
            )
        axes.set_xlim(0, 1150 * like)
        axes.set_xlabel("active J per 1,000 inferences")
        axes.set_ylabel("accuracy, %")
        axes.xaxis.get_major_locator().set_params(nbins=5)
        axes.yaxis.get_major_locator().set_params(nbins=6)
        axes.grid()
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.22))

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
