"""Where the joules go: the stages of the reference arm, and what waiting for input costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from joulecache.pipelines.auditing.results import Audit, Stage, Stages
from joulecache.pipelines.core import quantities
from joulecache.pipelines.core.quantities import NOT_MEASURED, Spread
from joulecache.pipelines.experiment.results import Joules, Waiting, WorkloadResult
from joulecache.pipelines.report.describe.values import active_tag, joules, share, title_of
from joulecache.pipelines.report.document import (
    Cell,
    Chart,
    Column,
    Mark,
    Paragraph,
    Section,
    Stack,
    Table,
    cell,
    table,
    words,
)

_BELOW_RESOLUTION = "below resolution"
_UNATTRIBUTED = "unattributed"
_WAITING = "waiting"
_LARGEST_REST = 0.1  # share of the whole; above it, stages are approximate


def stages_section(audit: Audit, found: Stages) -> Section:
    """Return the section of a report about where the joules go."""
    text = [Paragraph(sentence) for sentence in stage_sentences(audit, found)]
    return Section("Where the joules go", (*text, _chart(audit, found), _table(audit, found)))


def _reference_waiting(audit: Audit, found: Stages) -> Waiting | None:
    trained = (result for result in audit.workloads if result.workload == found.workload)
    return next((result.arm(audit.reference).waiting for result in trained), None)


# Sentences ------------------------------------------------------------------------------------------------------------


def stage_sentences(audit: Audit, found: Stages) -> tuple[str, ...]:
    """Say which stage uses the most energy, what a cache saves, how much the stages explain, and what waiting for input costs."""
    known = [stage for stage in found.stages if stage.active_j_per_1000 is not None]
    text = (_most(audit, found, known), _saved_by_a_cache(audit, known), _closes(found), _waits(audit, found))
    return tuple(filter(None, text))


def _sum_j(stages: Iterable[Stage]) -> float:
    return sum(stage.active_j_per_1000 or 0.0 for stage in stages)


def _most(audit: Audit, found: Stages, known: list[Stage]) -> str:
    whole_j = found.whole_j_per_1000
    about = f"({title_of(found.workload)}, {audit.reference}, {active_tag(audit)})"
    whole = f"Of {quantities.joules(whole_j)} of active energy per 1,000 images {about}"
    if not known:
        return f"{whole}, no stage is above its resolution."
    most = max(known, key=lambda stage: _sum_j([stage]))
    text = f"{whole}, the largest part is {most.name}: {share(_sum_j([most]) / whole_j)}."
    feeding = [stage for stage in known if not stage.trains]
    if not most.trains or not feeding:
        return text
    first = max(feeding, key=lambda stage: _sum_j([stage]))
    return f"{text} Within the input, it is {first.name}: {share(_sum_j([first]) / _sum_j(feeding))}."


def _saved_by_a_cache(audit: Audit, known: list[Stage]) -> str:
    feeding = [stage for stage in known if not stage.trains]
    gone = [stage for stage in feeding if stage.cached]
    if not gone:
        return ""
    names, saved = quantities.listed([stage.name for stage in gone]), share(_sum_j(gone) / _sum_j(feeding))
    instead = f" Reading the cache instead costs energy too: see the arm {audit.cached}." if audit.cached else ""
    return f"A cache saves {saved} of the input's active energy: {names}, which it runs once.{instead}"


def _closes(found: Stages) -> str:
    rest = found.unattributed_j_per_1000 / found.whole_j_per_1000
    text = f"The stages add up to {share(1 - rest)} of the whole"
    if rest < 0:
        text += ", which is more than all of it: stages and whole were measured in separate runs."
    else:
        text += f"; {share(rest)} is unattributed."
    if abs(rest) > _LARGEST_REST:
        text += " That is off by more than a tenth: the stages are approximate."
    return text


def _waits(audit: Audit, found: Stages) -> str:
    waiting = _reference_waiting(audit, found)
    if waiting is None:
        return ""
    text = f"Training waited for its next batch {share(waiting.share_of_time, at_most=waiting.at_most)} of the time"
    if waiting.total_j_per_1000 is None or waiting.share_of_total is None or waiting.method is None:
        return f"{text}; how much energy the idle machine used meanwhile is not known."
    used = "at most " * waiting.at_most + quantities.joules(waiting.total_j_per_1000.value)
    apart = ", and not part of the active energy above."
    if audit.energy.components["gpu"] is not None:
        apart = ". The active energy above counts all joules of the GPU: its part of the waiting is in both."
    return (
        f"{text}; meanwhile the idle machine used {used} per 1,000 images ({quantities.kind(waiting.method)}): "
        f"{share(waiting.share_of_total, at_most=waiting.at_most)} of the total energy{apart}"
    )


# Tables ---------------------------------------------------------------------------------------------------------------


def _table(audit: Audit, found: Stages) -> Table:
    tag, whole_j = active_tag(audit), found.whole_j_per_1000
    rows = [
        (
            stage.name,
            _stage_cell(stage, whole_j, tag),
            "-" if stage.active_j_per_1000 is None else share(stage.active_j_per_1000 / whole_j),
            "yes" if stage.cached else "no",
        )
        for stage in found.stages
    ]
    for name, value_j in ((_UNATTRIBUTED, found.unattributed_j_per_1000), ("the whole", whole_j)):
        rows.append((name, cell(quantities.joules(value_j, whole_j), tag), share(value_j / whole_j), "-"))
    columns = {
        words("Stage"): lambda row: row[0],
        Column("Active energy per 1,000 images (95% interval)", "active energy /1,000, 95%"): lambda row: row[1],
        Column("Share of the whole", "share"): lambda row: row[2],
        words("Run once by a cache", priority=1): lambda row: row[3],
    }
    return table("Stages", rows, columns, _remark(audit, found))


def _stage_cell(stage: Stage, whole_j: float, tag: str) -> Cell:
    if stage.active_j_per_1000 is None:
        return Cell(Spread(_BELOW_RESOLUTION, note=f"at most {quantities.joules(stage.high, whole_j)}"))
    return Cell(joules(Joules(stage.active_j_per_1000, stage.low, stage.high), whole_j), tag)


def _remark(audit: Audit, found: Stages) -> str:
    arm, gpu = audit.reference, audit.energy.components["gpu"] is not None
    parts = [
        f"{arm} was truncated after each of its steps in turn, in {found.blocks} interleaved blocks over {quantities.count(found.images)} "
        "files. A stage is what its step adds; below resolution: the interval contains 0. tf.data: listing and shuffling the files, and "
        "calling the map; batch: collating the images.",
    ]
    if any(stage.trains for stage in found.stages):
        parts.append(
            "copy: moving batches to the device that trains; training step: an epoch of training minus everything before it, in the same "
            "blocks."
        )
    parts.append(
        f"The whole is what {arm} uses in the workload {found.workload}, measured separately. Other coefficients would scale all stages "
        "together."
    )
    if gpu:
        parts.append("All joules of a GPU count as active: those of a GPU that waits are in the stages of the input.")
    return " ".join(parts)


def waiting_tables(result: WorkloadResult) -> Iterator[Table]:
    """Yield tables of how long training waited for input in each arm, and how much energy the idle machine used meanwhile."""
    waits = [(arm.name, arm.waiting) for arm in result.arms if arm.waiting is not None]
    remark = (
        "Energy: the time that training was blocked waiting for a batch, times the watts of the idle machine. It is part of the total "
        "energy, idle included."
    )
    if any(waiting.at_most for _, waiting in waits):
        remark += " At most: the accelerator may still have computed while the next batch was requested; that time counts too."
    if waits:
        yield table(
            "Waiting for input",
            waits,
            {
                words("Arm"): lambda row: row[0],
                Column("Time spent waiting"): lambda row: share(row[1].share_of_time, at_most=row[1].at_most),
                Column("Energy meanwhile per 1,000 images (low to high)", "energy meanwhile /1,000"): lambda row: (
                    _waiting_cell(row[1])
                ),
                Column("Share of the total energy"): lambda row: share(row[1].share_of_total, at_most=row[1].at_most),
            },
            remark,
            detail=True,
        )


def _waiting_cell(waiting: Waiting) -> Cell:
    if waiting.total_j_per_1000 is None or waiting.method is None:
        return cell(NOT_MEASURED)
    spread = joules(waiting.total_j_per_1000)
    return Cell(
        dataclasses.replace(spread, value="at most " * waiting.at_most + spread.value), quantities.kind(waiting.method)
    )


# The chart ------------------------------------------------------------------------------------------------------------


def _chart(audit: Audit, found: Stages) -> Chart:
    whole_j, rest_j = found.whole_j_per_1000, found.unattributed_j_per_1000
    parts = tuple(
        Mark(stage.name, stage.active_j_per_1000, text=share(stage.active_j_per_1000 / whole_j))
        for stage in found.stages
        if stage.active_j_per_1000 is not None
    )
    rest = Mark(_UNATTRIBUTED, rest_j, text=share(rest_j / whole_j))
    waiting = _reference_waiting(audit, found)
    waited = None if waiting is None else waiting.total_j_per_1000
    shown = [f"{part.label} {quantities.joules(part.value, whole_j)} ({part.text})" for part in parts]
    shown.append(f"{_UNATTRIBUTED} {quantities.joules(rest_j, whole_j)}")
    caption = (
        f"The active energy of {audit.reference} by stage; the line marks what it used as a whole. Stages below their resolution are left "
        "out."
    )
    if waited is not None:
        shown.append(f"separately, {_WAITING} {joules(waited)} of the total energy")
        caption += " Waiting is separate: it is part of the total energy, idle included."
    apart = None if waited is None else Mark(f"{_WAITING}, separate", waited.value)
    return Chart(
        "Energy by stage",
        Stack(parts, rest, apart, whole_j, ("active", _WAITING), "J per 1,000 images"),
        f"A bar of {quantities.joules(whole_j)}: {'; '.join(shown)}.",
        caption,
        active_tag(audit),
    )
