"""Draw the charts of a document with Matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from joulecache.pipelines.core.quantities import largest
from joulecache.pipelines.report.document import Bars, Chart, Intervals, Lines, Mark, Scatter, Stack, StackedBars
from joulecache.pipelines.report.render import svg
from joulecache.pipelines.report.render.svg import COLOURS, DASHES, MARKERS, SERIES

_LONGEST_LABEL, _LONGEST_LEGEND, _LONGEST_STAGE = 16, 36, 18
_HATCHES = ("", "....", "oo")  # for more parts than colours
_ROW = 34  # height of a bar
_WIDE = 5  # ratios further apart than this use a logarithmic axis

Axes = Any  # matplotlib has no types


def draw(name: str, chart: Chart) -> str:
    """Return a chart as an SVG element, whose ids start with `name`."""
    height, paint = _painter(chart)
    return svg.draw(name, height, chart.title, chart.description, paint)


def _painter(chart: Chart) -> tuple[int, Callable[[Axes], None]]:
    """Return the height of a chart, and the function that paints it."""
    plot = chart.plot
    match plot:
        case Bars():
            return 58 + _ROW * len(plot.marks), lambda axes: _bars(axes, plot)
        case Intervals():
            return 58 + 27 * len(plot.marks), lambda axes: _intervals(axes, plot)
        case Lines():
            return 250, lambda axes: _lines(axes, plot)
        case Stack():
            entries = len(plot.parts) + (plot.rest.value > 0) + (plot.separate is not None)
            height = 96 + (_ROW if plot.separate else 0) + 17 * -(-entries // 2)
            return height, lambda axes: _stack(axes, plot)
        case StackedBars():
            return 92 + _ROW * len(plot.bars), lambda axes: _stacked_bars(axes, plot)
        case Scatter():
            return 230 + 16 * len(plot.dots), lambda axes: _scatter(axes, plot)


def _colour(series: int | None) -> str:
    return COLOURS["muted" if series is None else f"series-{series % SERIES}"]


def _label(name: str, longest: int = _LONGEST_LABEL) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _bars(axes: Axes, plot: Bars) -> None:
    for index, mark in enumerate(plot.marks):
        low, high = mark.ends or (mark.value, mark.value)
        axes.barh(index, mark.value, 0.56, color=_colour(mark.series))
        whisker = [[mark.value - low], [high - mark.value]]
        axes.errorbar(mark.value, index, xerr=whisker, color=COLOURS["ink"], capsize=3.5, linewidth=1.2)
        axes.annotate(mark.text, (high, index), (6, 0), textcoords="offset points", va="center", size=11)
    axes.set_yticks(range(len(plot.marks)), [_label(mark.label) for mark in plot.marks], color=COLOURS["ink"])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.32 * largest((mark.ends or (0, mark.value))[1] for mark in plot.marks))
    axes.set_xlabel(plot.axis)
    axes.xaxis.get_major_locator().set_params(nbins=5)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)


def _intervals(axes: Axes, plot: Intervals) -> None:
    axes.axvline(1, color=COLOURS["muted"], linewidth=1)
    for index, mark in enumerate(plot.marks):
        colour = _colour(mark.series)
        axes.plot(mark.ends or [mark.value] * 2, [index, index], color=colour, linewidth=2, solid_capstyle="round")
        fill = colour if mark.ends else COLOURS["paper"]
        axes.plot([mark.value], [index], "o", color=colour, markerfacecolor=fill, markersize=7)
    ends = [1.0, *(end for mark in plot.marks for end in mark.ends or (mark.value,))]
    _ratio_axis(axes, min(ends), max(ends))
    labels = [" / ".join(_label(part) for part in mark.label.split(" / ")) for mark in plot.marks]
    axes.set_yticks(range(len(plot.marks)), labels, color=COLOURS["ink"])
    axes.set_ylim(len(plot.marks) - 0.4, -0.6)
    axes.set_xlabel(plot.axis)
    axes.tick_params(axis="y", length=0)


def _ratio_axis(axes: Axes, low: float, high: float) -> None:
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


def _lines(axes: Axes, plot: Lines) -> None:
    for crossing in plot.crossings:
        if crossing.ends is not None:
            axes.axvspan(*crossing.ends, color=_colour(crossing.series), alpha=0.13, linewidth=0)
    for line in plot.lines:
        style = {"color": _colour(line.series), "linestyle": DASHES[line.series % SERIES]}
        axes.plot([0, plot.until], [line.start, line.end], label=_label(line.label), **style)
    ring = {"markerfacecolor": COLOURS["paper"], "markersize": 8, "markeredgewidth": 2, "zorder": 5}
    for crossing in plot.crossings:
        axes.plot([crossing.x], [crossing.y], "o", color=_colour(crossing.series), **ring)
    axes.set_xlim(0, plot.until)
    axes.set_ylim(0, None)
    axes.set_xlabel(plot.x_axis)
    axes.set_ylabel(plot.y_axis)
    axes.xaxis.get_major_locator().set_params(nbins=6)
    axes.yaxis.get_major_locator().set_params(nbins=6)
    axes.grid(axis="y")
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.22), ncols=2, handlelength=3, columnspacing=2)


def _stack(axes: Axes, plot: Stack) -> None:
    def label(mark: Mark) -> str:
        return f"{_label(mark.label, _LONGEST_STAGE)} {mark.text}".rstrip()

    left = 0.0
    for index, part in enumerate(plot.parts):
        colour = COLOURS[f"series-{1 + index % (SERIES - 1)}"]
        hatch = _HATCHES[index // (SERIES - 1) % len(_HATCHES)]
        axes.barh(0, part.value, 0.6, left, color=colour, hatch=hatch, edgecolor=COLOURS["paper"], label=label(part))
        left += part.value
    hatched: dict[str, Any] = {"height": 0.6, "color": "none"}
    if plot.rest.value > 0:
        axes.barh(
            0, plot.rest.value, left=left, hatch="////", edgecolor=COLOURS["muted"], label=label(plot.rest), **hatched
        )
    apart = 0.0
    if plot.separate is not None:
        apart = plot.separate.value
        axes.barh(1, apart, hatch="xxxx", edgecolor=COLOURS["series-0"], label=label(plot.separate), **hatched)
    axes.plot([plot.whole, plot.whole], [-0.42, 0.42], color=COLOURS["ink"], linewidth=1.6, solid_capstyle="butt")
    rows = plot.labels[: 1 if plot.separate is None else 2]
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.04 * max(plot.whole, left, apart))
    axes.set_xlabel(plot.axis)
    axes.xaxis.get_major_locator().set_params(nbins=5)
    axes.grid(axis="x")
    axes.figure.legend(loc="outside lower left", ncols=2, handlelength=1.4, columnspacing=1.2, fontsize=10)


def _stacked_bars(axes: Axes, plot: StackedBars) -> None:
    for index, bar in enumerate(plot.bars):
        left = 0.0
        for part in bar.parts:
            axes.barh(index, part.value, 0.56, left, color=_colour(part.series))
            left += part.value
        low, high = bar.ends or (left, left)
        if bar.ends:
            whisker = [[max(0.0, left - low)], [max(0.0, high - left)]]  # sums differ in the last digit
            axes.errorbar(left, index, xerr=whisker, color=COLOURS["ink"], capsize=3.5, linewidth=1.2)
        axes.annotate(bar.text, (max(left, high), index), (6, 0), textcoords="offset points", va="center", size=11)
    for label, series in {part.label: part.series for bar in plot.bars for part in bar.parts}.items():
        axes.barh(0, 0, color=_colour(series), label=label)  # one entry of the legend for all rows
    axes.set_yticks(range(len(plot.bars)), [_label(bar.label) for bar in plot.bars], color=COLOURS["ink"])
    axes.invert_yaxis()
    axes.set_xlim(
        0, 1.32 * largest(max(sum(part.value for part in bar.parts), (bar.ends or (0, 0))[1]) for bar in plot.bars)
    )
    axes.set_xlabel(plot.axis)
    axes.xaxis.get_major_locator().set_params(nbins=5)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.figure.legend(loc="outside lower left", ncols=4, handlelength=1.2, columnspacing=1.2, fontsize=10)


def _scatter(axes: Axes, plot: Scatter) -> None:
    def reach(value: float, ends: tuple[float, float] | None) -> list[list[float]] | None:
        return None if ends is None else [[value - ends[0]], [ends[1] - value]]

    for index, dot in enumerate(plot.dots):
        axes.errorbar(
            dot.x,
            dot.y,
            xerr=reach(dot.x, dot.x_ends),
            yerr=reach(dot.y, dot.y_ends),
            fmt=MARKERS[index % SERIES],
            fillstyle="full" if index < SERIES else "none",
            color=_colour(index),
            markersize=8,
            capsize=3.5,
            linewidth=1.2,
            label=_label(dot.label, _LONGEST_LEGEND),
        )
    axes.set_xlim(0, 1.15 * largest((dot.x_ends or (0, dot.x))[1] for dot in plot.dots))
    axes.set_xlabel(plot.x_axis)
    axes.set_ylabel(plot.y_axis)
    axes.xaxis.get_major_locator().set_params(nbins=5)
    axes.yaxis.get_major_locator().set_params(nbins=6)
    axes.grid()
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.22))
