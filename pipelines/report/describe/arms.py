"""The section of a report about one workload: what its arms cost."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator

from joulecache.pipelines.auditing.results import Audit, BuildFacts
from joulecache.pipelines.core import quantities
from joulecache.pipelines.core.quantities import NOT_MEASURED, plural
from joulecache.pipelines.experiment.results import ArmResult, Joules, PartResult, WorkloadResult
from joulecache.pipelines.report.describe.arm_charts import workload_charts
from joulecache.pipelines.report.describe.devices import device_lead, device_tables
from joulecache.pipelines.report.describe.stages import waiting_tables
from joulecache.pipelines.report.describe.values import (
    NO_COUNTRY,
    PARTS,
    active_tag,
    component_cell,
    direction,
    epochs_to,
    joules_column,
    ratio,
    score_range,
    share,
    title_of,
)
from joulecache.pipelines.report.describe.verdict import horizon_of, sentences
from joulecache.pipelines.report.document import (
    Block,
    Claims,
    Column,
    Paragraph,
    Section,
    Table,
    Value,
    finding_cell,
    table,
    words,
)

_PER_1000 = "Active energy per 1,000 images (low to high)"
_name = operator.attrgetter("name")


def workload_section(result: WorkloadResult, audit: Audit) -> Section:
    """Return the section of a report about one workload."""
    least = "at least " if result.workload in ("input", "accelerator") else ""
    images = "" if audit.records is None else f" of {quantities.count(audit.records.train)} images"
    runner = "pipeline" if audit.records is None else "arm"
    epochs = plural(result.epochs_per_run, "epoch")
    lead = (
        f"{quantities.plural(result.blocks, 'interleaved block')}, in which each {runner} ran {least}{epochs}{images}."
    )
    if result.device is not None:
        lead += f" {device_lead(result.device)}"
    blocks: list[Block] = [Paragraph(lead, muted=True, detail=True), Claims(sentences(result, audit), detail=True)]
    blocks += workload_charts(result, audit)
    blocks += [_arms(result, audit), *device_tables(result, audit), *_parts(result, audit), *waiting_tables(result)]
    if audit.build is not None and audit.records is not None:
        blocks += [_costs(result, audit, audit.build, audit.records.train), _comparisons(result, audit)]
    return Section(title_of(result.workload), (*blocks, _other_metrics(result, audit), _background_load(result)))


def _arms(result: WorkloadResult, audit: Audit) -> Table:
    arms, reference, tag = result.arms, audit.reference, active_tag(audit, result)
    columns: dict[Column, Callable[[ArmResult], Value]] = {
        words("Arm"): _name,
        Column("CPU time per image", "CPU /image", priority=2): lambda arm: (
            f"{quantities.number(arm.cpu_us_per_image)} µs"
        ),
        Column(_PER_1000, "active energy /1,000"): joules_column(arms, lambda arm: arm.active_j_per_1000, tag),
        Column("Images/s", priority=1): lambda arm: quantities.number(arm.images_per_s),
    }
    if len(arms) > 1:
        columns[Column(f"Ratio to {reference} (95% interval)", f"ratio to {reference}, 95%")] = lambda arm: (
            "1" if arm.name == reference else ratio(arm.ratio)
        )
    if audit.cached is not None:
        once = joules_column(arms, lambda arm: arm.one_time, active_tag(audit))
        columns[Column("One-time cost (low to high)", "one-time cost", priority=3)] = once
    if len(arms) > 1:
        # colours are for findings that count the build: a saving per epoch may not pay it back
        shown = finding_cell if audit.cached is None else str
        title = "Finding" if audit.cached is None else "Finding per epoch"
        columns[words(title)] = lambda arm: "reference" if arm.name == reference else shown(arm.finding)
    metric, scored = audit.metric, any(arm.score for arm in arms)
    if scored:
        columns[Column(f"{metric.title} (range of runs)", f"{metric.name}, runs")] = lambda arm: (
            score_range(metric, *arm.score) if arm.score else NOT_MEASURED
        )
    remark = (
        "Active energy excludes the idle power of the machine. Low and high: the bounds of the coefficients. They shift all arms together, "
        "so a ratio is more certain than the values it compares."
    )
    if audit.cached is not None:
        remark += " One-time cost: the build of a cache or of TFRecord files, or the extra cost of the epoch that fills cache()."
    if scored and (better := direction(metric)):
        remark += f" On the held-out images, {better}"
    return table("Arms", arms, columns, remark)


def _parts(result: WorkloadResult, audit: Audit) -> Iterator[Table]:
    """Yield tables of what input and training cost alone, next to both together."""
    if not any(arm.parts for arm in result.arms):
        return
    thousands = {
        each.name: each.images / each.batches / 1000 for each in audit.pipelines
    }  # thousands of images per step
    rows: list[tuple[ArmResult, ArmResult | PartResult]] = []
    for arm in result.arms:
        rows += [*((arm, part) for part in arm.parts), (arm, arm)]

    def ran(arm: ArmResult, part: ArmResult | PartResult) -> str:
        return "both together" if part is arm else f"{PARTS.get(part.name, part.name)} alone"

    yield table(
        "Input and training measured separately",
        rows,
        {
            words("Pipeline"): lambda row: row[0].name,
            words("What ran"): lambda row: ran(*row),
            Column(_PER_1000, "active energy /1,000"): joules_column(
                rows, lambda row: row[1].active_j_per_1000, active_tag(audit)
            ),
            Column("Energy per step", priority=2): lambda row: quantities.joules(
                row[1].active_j_per_1000.value * thousands[row[0].name]
            ),
            Column("Time per 1,000 images", priority=3): lambda row: quantities.seconds(row[1].wall_us_per_image / 1e3),
            Column("Time per step", priority=1): lambda row: quantities.seconds(
                row[1].wall_us_per_image / 1e3 * thousands[row[0].name]
            ),
            Column("Energy, as a ratio to both together (95% interval)", "ratio to both, 95%"): lambda row: (
                "1" if row[1] is row[0] else ratio(row[1].ratio)
            ),
        },
        "All in the same blocks. Training alone: as many steps, on a batch of the same shape that stays in memory. The next batch is "
        "prepared while a step is computed, so the times overlap and need not add up.",
    )


def _costs(result: WorkloadResult, audit: Audit, build: BuildFacts, images: int) -> Table:
    """Return what each arm costs once, per epoch and per day of storage."""
    arms, tag = result.arms, active_tag(audit)
    of_epochs = active_tag(audit, result)

    def epoch(arm: ArmResult) -> Joules:
        spent = arm.active_j_per_1000
        return Joules(*(each * images / 1000 for each in (spent.value, spent.low, spent.high)))

    return table(
        "Costs by kind",
        arms,
        {
            words("Arm"): _name,
            Column("Once (low to high)"): joules_column(arms, lambda arm: arm.one_time, tag),
            Column("Per epoch (low to high)"): joules_column(arms, epoch, of_epochs),
            Column("Per day of storage (low to high)"): lambda arm: (
                component_cell(build.storage_per_day) if arm.name == audit.cached else "nothing"
            ),
        },
        "Active energy. Ratios cover epochs; break-evens cover epochs and one-time costs; neither covers storage.",
        detail=True,
    )


def _comparisons(result: WorkloadResult, audit: Audit) -> Table:
    epochs = plural(audit.horizon_epochs or 0, "epoch")
    over = f"Ratio over {epochs}"
    return table(
        "The cache against each other arm",
        result.comparisons,
        {
            words("Other arm"): lambda each: each.other,
            Column("Ratio per epoch (95% interval)", "ratio per epoch, 95%"): lambda each: ratio(each.ratio),
            words("Finding per epoch", priority=2): lambda each: each.finding,
            words("Why", priority=3): lambda each: each.why,
            Column("Break-even (95% interval)", "break-even, 95%"): lambda each: epochs_to(each.break_even, each.ratio),
            Column(f"{over}, build included (95% interval)", over, priority=1): lambda each: ratio(
                horizon_of(result, each, audit).ratio
            ),
            words(f"Finding over {epochs}", "finding"): lambda each: finding_cell(
                horizon_of(result, each, audit).finding
            ),
        },
    )


def _other_metrics(result: WorkloadResult, audit: Audit) -> Table:
    arms, country = result.arms, audit.provenance.meter.country
    method = audit.method if result.device is None else f"{audit.method}+{result.device.method}"
    total = joules_column(arms, lambda arm: arm.total_j_per_1000, quantities.kind(method))
    return table(
        "Other metrics",
        arms,
        {
            words("Arm"): _name,
            Column("Runs", priority=3): lambda arm: quantities.count(arm.runs),
            Column("Images per run", priority=4): lambda arm: quantities.count(arm.images_per_run),
            Column("Total energy per 1,000 images, idle included (low to high)", "total energy /1,000"): total,
            Column("Time per image"): lambda arm: f"{quantities.number(arm.wall_us_per_image)} µs",
            Column("Read per image", priority=1): lambda arm: quantities.data_size(arm.read_bytes_per_image),
            Column("Peak memory"): lambda arm: quantities.data_size(arm.peak_rss_bytes),
            Column("CO2 per 1,000 images", priority=2): lambda arm: (
                quantities.grams(arm.carbon_g_per_1000) if country else NO_COUNTRY
            ),
        },
        detail=True,
    )


def _background_load(result: WorkloadResult) -> Table:
    return table(
        "Background load",
        result.arms,
        {
            words("Arm"): _name,
            Column("Other processes, of all CPU time", "other processes"): lambda arm: share(arm.contamination.others),
            Column("Hypervisor (steal), of all CPU time", "steal", priority=3): lambda arm: share(
                arm.contamination.steal
            ),
            Column("Waiting for a CPU", "CPU stall", priority=4): lambda arm: share(arm.contamination.cpu_stall),
            Column("Waiting for memory", "memory stall", priority=5): lambda arm: share(arm.contamination.memory_stall),
            Column("Waiting for I/O", "I/O stall", priority=6): lambda arm: share(arm.contamination.io_stall),
            Column("Flagged runs"): lambda arm: f"{quantities.count(arm.flagged_runs)} of {quantities.count(arm.runs)}",
            words("Flags of all runs together", "flags", priority=1): lambda arm: ", ".join(arm.flags) or "none",
        },
        "The first two are shares of the time of all processors; the others are shares of time during which some task was waiting (Linux "
        "pressure stall information), tasks of the arm itself included. The kernel counts processor time in ticks: the shorter a run, the "
        "higher the load that is needed to flag it.",
        detail=True,
    )
