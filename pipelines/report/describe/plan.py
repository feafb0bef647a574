"""What a plan measured, what it recommends, and the command that builds it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from joulecache.pipelines.core.quantities import (
    NEVER,
    Spread,
    count,
    data_size,
    joules,
    kind,
    largest,
    number,
    plural,
    seconds,
)
from joulecache.pipelines.planning.results import Choice, Plan, StepCost
from joulecache.pipelines.report.describe.values import joules_column
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
    """Describe a plan; its command builds the best choice in `cache`."""
    command = plan.command(plan.best, cache)
    blocks: list[Block] = [_steps(plan), _choices(plan), *map(Paragraph, _remarks(plan))]
    if command is not None:
        blocks.append(Command(command))
    sections = (Section("", tuple(blocks)),)
    return Document("joulecache: what to cache", plan.source, headline=(Sentence(plan.why),), sections=sections)


def _steps(plan: Plan) -> Table:
    layout = plan.best.layout

    def where(index: int, step: StepCost) -> str:  # step 0 reads the source, so op n is step n
        runs = "online" if layout is None else "cached" if index <= layout.cut else "every epoch"
        return f"{runs}, random" if step.random else runs

    sample = f"{plan.sampled:,} of {plural(plan.records, 'record')} sampled, in {seconds(plan.duration_s)}"
    return table(
        f"Steps, {sample}",
        enumerate(plan.steps),
        {
            words("Step"): lambda row: row[1].name,
            Column("CPU time per image"): lambda row: f"{row[1].cpu_us_per_image:,.1f} µs",
            Column("Output per image"): lambda row: data_size(row[1].bytes_per_image),
            words("Runs"): lambda row: where(*row),
        },
        "CPU time of the reference kernels, which builds run. Online epochs run TensorFlow's: their price was measured as a whole.",
    )


def _choices(plan: Plan) -> Table:
    tied = f"; the first {count(1 + len(plan.ties))} tie" if plan.ties else ""
    tag, shown, epochs = kind(plan.method), plan.shown, plan.epochs * plan.runs
    over, like_j = plural(epochs, "epoch"), largest(choice.total_j.value for choice in shown)

    def variants(choice: Choice) -> Spread:
        return Spread("-") if choice.reuse is None else Spread(str(choice.variants), note=f"{choice.reuse:.3g} uses")

    return table(
        f"Best {len(shown)} of {plural(len(plan.choices), 'choice')} by active energy" + tied,
        shown,
        {
            words("Cached up to"): lambda choice: (
                op_text(plan.chain.ops[choice.layout.cut - 1]) if choice.layout else "nothing: online"
            ),
            words("Stored as", priority=1): lambda choice: str(choice.layout or "-"),
            Column("Variants (uses of each)", "variants", priority=3): variants,
            Column("Build", priority=4): lambda choice: cell(joules(choice.build_j.value, like_j), tag),
            Column(f"{over}, waiting included", over, priority=2): lambda choice: cell(
                joules(epochs * (choice.epoch_j.value + choice.waiting_j.value), like_j), tag
            ),
            Column("Storage", priority=4): lambda choice: cell(joules(choice.storage_j.value, like_j), "modelled"),
            Column("Total (low to high)", "total"): joules_column(shown, lambda choice: choice.total_j, tag),
            Column("Paid back after", priority=5): lambda choice: _break_even(plan, choice),
            Column("Disk", priority=6): lambda choice: data_size(choice.cache_bytes),
        },
        "Build, epochs and storage add up to the total. Break-even is about the build alone, without storage, as in an audit.",
    )


def _break_even(plan: Plan, choice: Choice) -> str:
    if choice.layout is None or plan.online is None:
        return "-"
    paid = choice.break_even_epochs
    return NEVER if paid is None else f"{number(paid)} epochs"


def _remarks(plan: Plan) -> Iterator[str]:
    best = plan.best
    if best.layout is not None and best.layout.encoding == "jpeg":
        yield "JPEG is lossy: its pixels differ from those of an online epoch."
    if best.reuse is not None and best.reuse > 1:
        yield (
            f"Each draw of the cached random ops is used {best.reuse:.3g} times. `joulecache audit --variants` measures what that does to "
            "accuracy; --fresh keeps ops out of the cache, and `joulecache precompute --advance` replaces draws while you train."
        )
    if plan.too_large:
        yield f"{plural(plan.too_large, 'choice')} left out: larger than the disk budget."
    if plan.unmeasured:
        yield f"{plural(len(plan.unmeasured), 'layout')} not measured: time ran out, raise --seconds."
    days = "1 day" if plan.days == 1 else f"{plan.days:g} days"
    speed = data_size(plan.disk_bytes_per_s)
    yield f"Totals include storage for {days}, and reading files that do not fit into memory at {speed}/s."
