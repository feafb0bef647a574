#!/usr/bin/env python3
"""Draw joules and time per 1,000 images of every arm of an audit, in light and dark, as the README shows them.

    scripts/draw_savings.py REPORT OUT

REPORT is a report.json of an audit of a chain. Writes OUT-light.svg and OUT-dark.svg, and prints the caption: what was measured, and where.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from environment import argument_parser, enter

if TYPE_CHECKING:
    from joulecache.pipelines.auditing.results import Audit
    from joulecache.pipelines.experiment.results import WorkloadResult

NAMES = {
    "naive": "tf.data, naive",
    "tuned": "tf.data, tuned",
    "tf_cache": "cache() in memory",
    "optimized": "joulecache",
}
COLOURS = {"light": ("#1b1f24", "#8a94a0", "#0b8a6b"), "dark": ("#e8ebee", "#7d8792", "#3fc79f")}
"""By theme: ink, the bars of other arms, the bar of the cache."""


def main(report: Path, out: Path) -> None:
    """Draw both pictures and print their caption."""
    from joulecache.pipelines.report.describe.verdict import main_workload
    from joulecache.pipelines.report.files import read_report

    audit = read_report(report)
    result = main_workload(audit)
    assert result is not None
    for theme in COLOURS:
        draw(audit, result, theme, Path(f"{out}-{theme}.svg"))
    run = audit.provenance
    assert audit.records is not None
    print(
        f"Active joules ({run.meter.method}) and seconds per 1,000 images over {audit.horizon_epochs} epochs, one-time costs included: "
        f"{audit.records.train:,} images, chain `{audit.chain}`, {result.workload} of {run.model}, {result.blocks} blocks, on "
        f"{run.meter.vcpus:g} CPUs of {run.meter.cpu}."
    )


def draw(audit: Audit, result: WorkloadResult, theme: str, path: Path) -> None:
    """Draw the joules on the left and the seconds on the right, with a bar for each arm."""
    import matplotlib.style
    from matplotlib.figure import Figure

    ink, other, cached = COLOURS[theme]
    assert audit.records is not None
    images = audit.records.train * (audit.horizon_epochs or 1) / 1000
    joules = [arm.active_j_per_1000.value + arm.one_time.value / images for arm in result.arms]
    seconds = [arm.wall_us_per_image / 1000 for arm in result.arms]
    colours = [cached if arm.name == audit.cached else other for arm in result.arms]
    with matplotlib.style.context(
        ["default", {"svg.fonttype": "none", "svg.hashsalt": theme, "font.size": 11, "text.color": ink}]
    ):
        figure = Figure(figsize=(8, 2.1), layout="constrained")
        figure.patch.set_visible(False)
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, values, title in ((left, joules, "J per 1,000 images"), (right, seconds, "s per 1,000 images")):
            bars(axes, values, colours, title, ink)
        left.set_yticks(range(len(joules)), [NAMES.get(arm.name, arm.name) for arm in result.arms])
        left.invert_yaxis()
        figure.savefig(path, metadata={"Date": None})


def bars(axes: Any, values: list[float], colours: list[str], title: str, ink: str) -> None:
    """Draw bars with their values, without a frame."""
    axes.patch.set_visible(False)
    axes.barh(range(len(values)), values, 0.62, color=colours)
    for place, value in enumerate(values):
        axes.annotate(f"{value:.3g}", (value, place), (5, 0), textcoords="offset points", va="center", color=ink)
    axes.set_title(title, fontsize=11, color=ink, loc="left")
    axes.set_xlim(0, 1.15 * max(values))
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0, colors=ink)
    axes.spines[:].set_visible(False)


if __name__ == "__main__":
    enter()
    parser = argument_parser(__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    main(given.report, given.out)
