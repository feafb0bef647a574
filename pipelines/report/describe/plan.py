"""What a plan measured, what it recommends, and the command that builds it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from joulecache.pipelines.core import quantities
from joulecache.pipelines.core.quantities import NEVER, Spread, kind
from joulecache.pipelines.planning.results import Choice, Plan
from joulecache.pipelines.report.describe.values import joules_cells, plural
from joulecache.pipelines.report.document import (
    Block,
    Column,
    Command,
    Document,
    Paragraph,
    Section,
    Sentence,
    Table,
    cell,
    table,
    words,
)
from joulecache.transforms.chain import op_text


def describe_plan(plan: Plan, cache: str | os.PathLike[str] = "cache/") -> Document:
    """Return what there is to say of a plan; its command builds the best choice in `cache`."""
    command = plan.command(plan.best, cache)
    blocks: list[Block] = [_steps(plan), _choices(plan), *map(Paragraph, _remarks(plan))]
    if command is not None:
        blocks.append(Command(command))
    sections = (Section("", tuple(blocks)),)
    return Document("joulecache: what to cache", plan.source, headline=(Sentence(plan.why),), sections=sections)


def _steps(plan: Plan) -> Table:
    """Return what each step of the chain costs, and where it runs in the best choice."""
    layout = plan.best.layout
    rows = []
    for place, step in enumerate(plan.steps):  # the first one reads, so that op n is step n
        where = "online" if layout is None else "cached" if place <= layout.cut else "every epoch"
        rows.append(
            (
                step.name,
                f"{step.cpu_us_per_image:,.1f} µs",
                quantities.data_size(step.bytes_per_image),
                f"{where}, random" if step.random else where,
            )
        )
    columns = (words("Step"), Column("CPU time per image"), Column("Output per image"), words("Runs"))
    sample = f"{plan.sampled:,} of {plural(plan.records, 'record')} sampled, in {quantities.seconds(plan.duration_s)}"
    return table(f"Steps, {sample}", columns, rows)


def _choices(plan: Plan) -> Table:
    """Return the best choices with their prices."""
    tag, epochs, shown = kind(plan.method), plan.epochs * plan.runs, plan.shown
    totals = joules_cells([choice.total_j for choice in shown], tag)
    rows = [
        (
            "nothing: online" if choice.layout is None else op_text(plan.chain.ops[choice.layout.cut - 1]),
            "-" if choice.layout is None else str(choice.layout),
            "-" if choice.reuse is None else Spread(str(choice.variants), note=f"{choice.reuse:.3g} uses"),
            cell(quantities.joules(choice.build_j.value), tag),
            cell(quantities.joules(choice.epoch_j.value + choice.waiting_j.value), tag),
            total,
            _break_even(plan, choice),
            quantities.data_size(choice.cache_bytes),
        )
        for choice, total in zip(shown, totals, strict=True)
    ]
    columns = (
        words("Cached up to"),
        words("Stored as", priority=1),
        Column("Variants (uses of each)", "variants", priority=3),
        Column("Build", priority=4),
        Column("Epoch", priority=2),
        Column(f"Total over {epochs:,} epochs (low to high)", f"total, {epochs:,} epochs"),
        Column("Paid back after", priority=5),
        Column("Disk", priority=6),
    )
    return table(f"Best {len(shown)} of {plural(len(plan.choices), 'choice')}, active energy", columns, rows)


def _break_even(plan: Plan, choice: Choice) -> str:
    if choice.layout is None or plan.online is None:
        return "-"
    paid = choice.break_even_epochs
    return NEVER if paid is None else f"{quantities.number(paid)} epochs"


def _remarks(plan: Plan) -> Iterator[str]:
    best = plan.best
    if best.layout is not None and best.layout.encoding == "jpeg":
        yield "JPEG is lossy: its pixels differ from those of an online epoch."
    if best.reuse is not None and best.reuse > 1:
        yield (
            f"Each draw of the cached random ops is used {best.reuse:.3g} times. `joulecache audit --variants` measures what that does to "
            "accuracy; --fresh keeps ops out of the cache."
        )
    if plan.too_large:
        yield f"{plural(plan.too_large, 'choice')} left out: larger than the disk budget."
    if plan.unmeasured:
        yield f"{plural(len(plan.unmeasured), 'layout')} not measured for lack of time: give more --seconds."
    days = "1 day" if plan.days == 1 else f"{plan.days:g} days"
    speed = quantities.data_size(plan.disk_bytes_per_s)
    yield f"Totals include storage for {days}, and reading files that do not fit into memory at {speed}/s."
