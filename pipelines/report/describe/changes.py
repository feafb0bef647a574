"""What changed between two audits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from joulecache.pipelines.auditing.changes import Changes
from joulecache.pipelines.core.quantities import number, plain_ratio
from joulecache.pipelines.report.describe.values import ratio
from joulecache.pipelines.report.document import (
    Block,
    Column,
    Document,
    Paragraph,
    Section,
    Sentence,
    Table,
    table,
    words,
)


def describe_changes(changes: Changes) -> Document:
    """Describe the changes between two audits."""
    blocks: list[Block] = [Paragraph(text) for text in _settings(changes)]
    blocks.append(_arms(changes))
    blocks += [Paragraph(text) for text in _findings(changes)]
    return Document(
        "joulecache: changes",
        "changes",
        headline=tuple(_headline(changes)),
        warning=_warning(changes),
        sections=(Section("", tuple(blocks)),),
    )


def _headline(changes: Changes) -> Iterator[Sentence]:
    """Yield how many arms changed, and each of them."""
    more = [arm for arm in changes.arms if arm.ratio.low is not None and arm.ratio.low > 1]
    less = [arm for arm in changes.arms if arm.ratio.high is not None and arm.ratio.high < 1]
    rest = len(changes.arms) - len(more) - len(less)
    yield Sentence(f"Arms that use more energy: {len(more)}; less: {len(less)}; no difference shown: {rest}.")
    for arm in (*more, *less):
        yield Sentence(f"{ratio(arm.ratio)} times the active energy", lead=f"{arm.workload}, {arm.arm}:")


def _warning(changes: Changes) -> str:
    different = ", ".join(changes.settings)
    return f"The two audits differ in {different}: the ratios include the effect of that." if different else ""


def _settings(changes: Changes) -> Iterator[str]:
    for name, (before, after) in changes.settings.items():
        yield f"{name}: {_shown(before)} before, {_shown(after)} after"


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return "none" if value is None else str(value)


def _arms(changes: Changes) -> Table:
    return table(
        "Active J per 1,000 images, after over before",
        changes.arms,
        {
            words("Workload"): lambda arm: arm.workload,
            words("Arm"): lambda arm: arm.arm,
            Column("Before", priority=1): lambda arm: number(arm.before.active_j_per_1000),
            Column("After", priority=2): lambda arm: number(arm.after.active_j_per_1000),
            Column("Ratio (95% interval)", "ratio, 95%"): lambda arm: ratio(arm.ratio),
            Column("Ratio to the reference, before", "to reference before", priority=3): lambda arm: plain_ratio(
                arm.before.ratio
            ),
            Column("Ratio to the reference, after", "to reference after", priority=4): lambda arm: plain_ratio(
                arm.after.ratio
            ),
        },
    )


def _findings(changes: Changes) -> Iterator[str]:
    for arm in changes.arms:
        if arm.before.finding != arm.after.finding:
            yield f"{arm.workload}, {arm.arm}: {arm.before.finding} before, {arm.after.finding} after"
    for when, names in (("before", changes.only_before), ("after", changes.only_after)):
        if names:
            yield f"Only {when}: {'; '.join(names)}"
