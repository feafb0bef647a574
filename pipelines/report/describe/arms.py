"""What the arms of a workload cost: its section of a report."""

from __future__ import annotations

from collections.abc import Iterator

from joulecache.pipelines.auditing.results import Audit, BuildFacts
from joulecache.pipelines.core import quantities
from joulecache.pipelines.core.quantities import NOT_MEASURED, kind
from joulecache.pipelines.experiment.results import AccuracyRange, Joules, WorkloadResult
from joulecache.pipelines.report.describe.arm_charts import workload_charts
from joulecache.pipelines.report.describe.stages import waiting_tables
from joulecache.pipelines.report.describe.values import (
    NO_COUNTRY,
    PARTS,
    active_tag,
    component_cell,
    epochs,
    epochs_to,
    joules,
    joules_cells,
    largest,
    ratio,
    title_of,
)
from joulecache.pipelines.report.describe.verdict import sentences
from joulecache.pipelines.report.document import (
    Block,
    Cell,
    Claims,
    Column,
    Paragraph,
    Section,
    Table,
    cell,
    finding_cell,
    table,
    words,
)

_PER_1000 = "Active energy per 1,000 images (low to high)"


def workload_section(result: WorkloadResult, audit: Audit) -> Section:
    """Return the section of a report about one workload."""
    least = "at least " if result.workload == "input" else ""
    images = "" if audit.records is None else f" of {quantities.count(audit.records.train)} images"
    arm = "arm" if audit.records is not None else "pipeline"
    lead = (
        f"{result.blocks} interleaved blocks, in which each {arm} ran {least}{epochs(result.epochs_per_run)}{images}."
    )
    blocks: list[Block] = [Paragraph(lead, muted=True, detail=True), Claims(sentences(result, audit), detail=True)]
    blocks += workload_charts(result, audit)
    blocks += [_arms(result, audit), *_parts(result, audit), *waiting_tables(result)]
    if audit.cached is not None and audit.build is not None:
        blocks += [*_costs(result, audit, audit.build), _comparisons(result, audit)]
    blocks += [_other_metrics(result, audit), _background_load(result)]
    return Section(title_of(result.workload), tuple(blocks))


def _arms(result: WorkloadResult, audit: Audit) -> Table:
    """Return what each arm costs."""
    arms, reference, tag = result.arms, audit.reference, active_tag(audit)
    columns: dict[Column, list[Cell]] = {
        words("Arm"): [cell(arm.name) for arm in arms],
        Column("CPU time per image", "CPU /image", priority=2): [
            cell(f"{quantities.number(arm.cpu_us_per_image)} µs") for arm in arms
        ],
        Column(_PER_1000, "active energy /1,000"): joules_cells([arm.active_j_per_1000 for arm in arms], tag),
        Column("Images/s", priority=1): [cell(quantities.number(arm.images_per_s)) for arm in arms],
    }
    if len(arms) > 1:
        columns[Column(f"Ratio to {reference} (95% interval)", f"ratio to {reference}, 95%")] = [
            cell("1" if arm.name == reference else ratio(arm.ratio)) for arm in arms
        ]
    if audit.cached is not None:
        once = _once_cells([arm.one_time for arm in arms], tag)
        columns[Column("One-time cost (low to high)", "one-time cost", priority=3)] = once
    if len(arms) > 1:
        columns[words("Finding")] = [
            cell("reference") if arm.name == reference else finding_cell(arm.finding) for arm in arms
        ]
    if any(arm.accuracy for arm in arms):
        columns[Column("Accuracy (range of runs)", "accuracy, runs")] = [_accuracy(arm.accuracy) for arm in arms]
    remark = (
        "Active energy excludes the idle power of the machine. Low and high: the ends of the coefficients. They move all arms together, so "
        "a ratio is known better than its parts."
    )
    if audit.cached is not None:
        remark += " One-time cost: the build, or what the epoch that fills cache() costs beyond a later one."
    return table("Arms", list(columns), zip(*columns.values(), strict=True), remark)


def _once_cells(energies: list[Joules], tag: str) -> list[Cell]:
    """Return a column of one-time costs; where nothing is spent there is nothing to measure or to model."""
    like_j = largest(energies)
    return [Cell(joules(each, like_j), tag) if each.high else cell(quantities.joules(0, like_j)) for each in energies]


def _accuracy(accuracy: AccuracyRange | None) -> Cell:
    return cell(NOT_MEASURED if accuracy is None else quantities.share_range(*accuracy))


def _parts(result: WorkloadResult, audit: Audit) -> Iterator[Table]:
    """Yield what the parts of a training cost when they run alone, next to both together."""
    if not any(arm.parts for arm in result.arms):
        return
    steps = {each.name: each.images / each.batches for each in audit.pipelines}  # images in a step
    measured = [(arm, part) for arm in result.arms for part in (*arm.parts, None)]
    energies = joules_cells([(part or arm).active_j_per_1000 for arm, part in measured], active_tag(audit))
    rows = [
        (
            arm.name,
            "both together" if part is None else f"{PARTS.get(part.name, part.name)} alone",
            energy,
            quantities.joules((part or arm).active_j_per_1000.value * steps[arm.name] / 1000),
            quantities.seconds((part or arm).wall_us_per_image / 1e3),
            quantities.seconds((part or arm).wall_us_per_image * steps[arm.name] / 1e6),
            "1" if part is None else ratio(part.ratio),
        )
        for (arm, part), energy in zip(measured, energies, strict=True)
    ]
    columns = (
        words("Pipeline"),
        words("What ran"),
        Column(_PER_1000, "active energy /1,000"),
        Column("Energy per step", priority=2),
        Column("Time per 1,000 images", priority=3),
        Column("Time per step", priority=1),
        Column("Energy, as a ratio to both together (95% interval)", "ratio to both, 95%"),
    )
    remark = (
        "All in the same blocks. Training alone: as many steps, on a batch of the same shape that stays in memory. The next batch is made "
        "while a step is computed, so the times overlap and need not add up."
    )
    yield table("Input and training measured separately", columns, rows, remark)


def _costs(result: WorkloadResult, audit: Audit, build: BuildFacts) -> Iterator[Table]:
    """Yield what each arm costs once, in every epoch, and for every day that its cache is stored."""
    if audit.records is None:
        return
    arms, tag, thousands = result.arms, active_tag(audit), audit.records.train / 1000
    spent = [arm.active_j_per_1000 for arm in arms]
    per_epoch = [Joules(each.value * thousands, each.low * thousands, each.high * thousands) for each in spent]
    stored = [component_cell(build.storage_per_day) if arm.name == audit.cached else cell("nothing") for arm in arms]
    names = [cell(arm.name) for arm in arms]
    once = _once_cells([arm.one_time for arm in arms], tag)
    columns = (
        words("Arm"),
        Column("Once (low to high)"),
        Column("Per epoch (low to high)"),
        Column("Per day of storage (low to high)"),
    )
    remark = "Active energy. Ratios cover epochs, break-evens epochs and one-time costs. Neither covers storage."
    rows = zip(names, once, joules_cells(per_epoch, tag), stored, strict=True)
    yield table("Costs by kind", columns, rows, remark, detail=True)


def _comparisons(result: WorkloadResult, audit: Audit) -> Table:
    """Return the cache against each other arm, with its break-even."""
    over = f"Ratio over {audit.horizon_epochs} epochs, build included"
    columns = (
        words("Other arm"),
        Column("Ratio (95% interval)", "ratio, 95%"),
        words("Finding"),
        words("Why", priority=2),
        Column("Break-even (95% interval)", "break-even, 95%"),
        Column(over, f"ratio over {audit.horizon_epochs} epochs", priority=1),
    )
    rows = [
        (
            comparison.other,
            ratio(comparison.ratio),
            finding_cell(comparison.finding),
            comparison.why,
            epochs_to(comparison.break_even, comparison.ratio),
            quantities.plain_ratio(comparison.horizon_ratio),
        )
        for comparison in result.comparisons
    ]
    return table("The cache against each other arm", columns, rows)


def _other_metrics(result: WorkloadResult, audit: Audit) -> Table:
    """Return what else was measured in the same runs."""
    arms, country = result.arms, audit.provenance.meter.country
    total = joules_cells([arm.total_j_per_1000 for arm in arms], kind(audit.method))
    rows = [
        (
            arm.name,
            quantities.count(arm.runs),
            quantities.count(arm.images_per_run),
            whole,
            f"{quantities.number(arm.wall_us_per_image)} µs",
            quantities.data_size(arm.read_bytes_per_image),
            quantities.data_size(arm.peak_rss_bytes),
            NO_COUNTRY if country is None else quantities.grams(arm.carbon_g_per_1000),
        )
        for arm, whole in zip(arms, total, strict=True)
    ]
    columns = (
        words("Arm"),
        Column("Runs", priority=3),
        Column("Images per run", priority=4),
        Column("Total energy per 1,000 images, idle included (low to high)", "total energy /1,000"),
        Column("Time per image"),
        Column("Read per image", priority=1),
        Column("Peak memory"),
        Column("CO2 per 1,000 images", priority=2),
    )
    return table("Other metrics", columns, rows, detail=True)


def _background_load(result: WorkloadResult) -> Table:
    """Return what else the machine did during the runs of each arm."""

    def share(value: float | None) -> str:
        return NOT_MEASURED if value is None else quantities.share(value)

    rows = [
        (
            arm.name,
            share(arm.contamination.others),
            share(arm.contamination.steal),
            share(arm.contamination.cpu_stall),
            share(arm.contamination.memory_stall),
            share(arm.contamination.io_stall),
            f"{quantities.count(arm.flagged_runs)} of {quantities.count(arm.runs)}",
            ", ".join(arm.flags) or "none",
        )
        for arm in result.arms
    ]
    columns = (
        words("Arm"),
        Column("Other processes"),
        Column("Hypervisor (steal)", "steal", priority=3),
        Column("Waiting for a CPU", "CPU stall", priority=4),
        Column("Waiting for memory", "memory stall", priority=5),
        Column("Waiting for I/O", "I/O stall", priority=6),
        Column("Flagged runs"),
        words("Flags of all runs together", "flags", priority=1),
    )
    remark = (
        "The first two are shares of all processors' time, the others shares of the time in which some task on the machine waited (Linux "
        "pressure stall information), which includes threads and reads of the arm itself. The kernel counts processor time in ticks: the "
        "shorter a run, the more work of others it takes to flag it."
    )
    return table("Background load", columns, rows, remark, detail=True)
