"""A plan on a terminal: what was measured, the best ways, and the command that builds the best."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from joulecache.pipelines.planning.results import Choice, Plan
from joulecache.pipelines.report import figures
from joulecache.transforms.chain import op_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_plan(plan: Plan, cache: str | os.PathLike[str], console: Console) -> None:
    """Print a plan: what the steps cost, the best ways, why the best wins, and the command that builds it in `cache`."""
    sampled = f"{plan.sampled:,} of {plan.records:,} records sampled, in {figures.seconds(plan.duration_s)}"
    console.print(_step_table(plan, sampled))
    console.print(_choice_table(plan))
    for line in _remarks(plan):
        console.print(line, markup=False, highlight=False)
    command = plan.command(plan.best, cache)
    if command is not None:
        console.print(f"\n{command}", markup=False, highlight=False, soft_wrap=True)


def _step_table(plan: Plan, title: str) -> Table:
    table = _table(title, "step", "CPU us/image", "hands on", "where")
    deepest = 0 if plan.best.layout is None else plan.best.layout.cut
    for place, step in enumerate(plan.steps):
        where = (
            "cached"
            if place <= deepest and plan.best.layout
            else "online"
            if plan.best.layout is None
            else "every epoch"
        )
        drawn = ", random" if step.random else ""
        table.add_row(
            step.name, f"{step.cpu_us_per_image:,.1f}", figures.data_size(step.bytes_per_image), where + drawn
        )
    return table


def _choice_table(plan: Plan) -> Table:
    tag, times = figures.kind(plan.method), f"{plan.epochs * plan.runs:,} epochs"
    table = _table(
        f"The best of {len(plan.choices)} ways, active energy {tag}",
        "cached up to",
        "as",
        "variants\n(uses)",
        "build",
        "epoch",
        f"{times}\nin all",
        "paid back\nafter",
        "disk",
    )
    for choice in plan.shown:
        total, _, ends = figures.joules_range(vars(choice.total_j)).removesuffix(")").partition(" (")
        table.add_row(
            "nothing: online" if choice.layout is None else op_text(plan.chain.ops[choice.layout.cut - 1]),
            "-" if choice.layout is None else str(choice.layout).replace(", ", "\n"),
            "-" if choice.reuse is None else f"{choice.variants}\n({choice.reuse:.3g})",
            figures.joules(choice.build_j.value),
            figures.joules(choice.epoch_j.value + choice.waiting_j.value),
            f"{total}\n{ends.replace(' to ', '-')}",
            "-" if choice.layout is None or plan.online is None else _after(choice),
            figures.data_size(choice.cache_bytes),
        )
    return table


def _after(choice: Choice) -> str:
    return figures.NEVER if choice.break_even_epochs is None else f"{figures.number(choice.break_even_epochs)}\nepochs"


def _remarks(plan: Plan) -> list[str]:
    said = [plan.why]
    if plan.best.layout is not None and plan.best.layout.encoding == "jpeg":
        said.append("JPEG is lossy: its pixels are not those of an online epoch.")
    if plan.best.reuse is not None and plan.best.reuse > 1:
        said.append(
            f"Each draw of the cached random ops is used {plan.best.reuse:.3g} times; `joulecache audit --variants` says what that does to "
            "the accuracy, --fresh keeps ops out of the cache."
        )
    if plan.too_large:
        said.append(f"{plan.too_large} ways take more than the disk budget.")
    if plan.unmeasured:
        said.append(f"{len(plan.unmeasured)} more ways were not measured, for want of time: give more --seconds.")
    speed = figures.data_size(plan.disk_bytes_per_s)
    days = "1 day" if plan.days == 1 else f"{plan.days:g} days"
    said.append(f"In the sums: storage for {days}, and files that memory does not hold are read at {speed}/s.")
    return said


def _table(title: str, *heads: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    for head in heads:
        words = head in ("step", "where", "cached up to", "as")
        table.add_column(head, justify="left" if words else "right", overflow="fold")
    return table
