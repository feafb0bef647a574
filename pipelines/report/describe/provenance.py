"""Where the numbers of an audit come from, and what it takes to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import PurePath

from joulecache.pipelines.auditing.results import Audit, BuildFacts
from joulecache.pipelines.core import quantities
from joulecache.pipelines.core.quantities import kind
from joulecache.pipelines.energy import Energy, Provenance
from joulecache.pipelines.experiment.results import RunProvenance
from joulecache.pipelines.experiment.statistics import Ratio
from joulecache.pipelines.report.describe.values import (
    NO_COUNTRY,
    active,
    component_cell,
    epochs,
    joules,
    ratio,
    title_of,
)
from joulecache.pipelines.report.document import (
    Block,
    Cell,
    Column,
    Command,
    Paragraph,
    Section,
    Table,
    table,
    words,
)

_RUNS = "runs.jsonl"
_HASH_DIGITS = 16  # enough to tell two files apart
_LEGEND = (
    "Measured joules come from hardware counters, modelled joules from published coefficients, given ones from the user. A sum with a "
    "modelled part is modelled."
)


def provenance_section(audit: Audit) -> Section:
    """Return the section of a report about where its numbers come from."""
    run = audit.provenance
    blocks: list[Block] = [Paragraph(_LEGEND, detail=True), Command(command_line(run.command), detail=True)]
    blocks += [Paragraph(f"Note of the meter: {note}.", muted=True, detail=True) for note in run.meter.notes]
    blocks.append(_control(audit))
    if audit.build is not None:
        blocks += [_storage(audit.build), _build(audit.build)]
        blocks.append(components(audit.build.energy, "Energy of the build, by component"))
    else:
        blocks.append(components(audit.energy, "Energy of all runs, by component"))
    blocks += [_coefficients(run.meter), *_pixels(audit), *_pipelines(audit), _repeat(audit), _machine(run)]
    return Section("Where the numbers come from", tuple(blocks))


def command_line(arguments: tuple[str, ...]) -> str:
    """Return a command as a shell takes it, with our own program by its name alone."""
    program, *rest = arguments or ("",)
    return shlex.join(["joulecache" if PurePath(program).name == "joulecache" else program, *rest])


def _control(audit: Audit) -> Table:
    """Return the A/A control of each workload."""

    def outcome(one: Ratio) -> str:
        if one.low is None or one.high is None:
            return "one block cannot show anything"
        return "holds 1" if one.low <= 1 <= one.high else "does not hold 1: nothing is claimed"

    rows = [
        (
            title_of(result.workload),
            ratio(result.control),
            quantities.count(result.blocks),
            outcome(result.control),
        )
        for result in audit.workloads
    ]
    columns = (words("Workload"), Column("Ratio (95% interval)"), Column("Blocks"), words("Outcome"))
    remark = f"The control measures {audit.reference} against itself in every block: its ratio shows how far two equal arms come out apart."
    return table("A/A control", columns, rows, remark)


def _storage(build: BuildFacts) -> Paragraph:
    stored = build.storage_per_day
    spread = quantities.joules_range(stored.value_j, stored.low_j, stored.high_j)
    size = quantities.data_size(build.cache_bytes)
    return Paragraph(
        f"Storing the cache, {size}, uses {spread.value} a day ({spread.interval}), {kind(stored.method)}; this is in no ratio."
    )


def _build(build: BuildFacts) -> Table:
    """Return what building the cache cost."""
    energy, stored = build.energy, build.storage_per_day
    whole = quantities.joules_range(energy.total_j, energy.low_j, energy.high_j)
    rows: list[tuple[str, Cell | str]] = [
        ("Active energy (low to high)", Cell(joules(active(energy)), kind(energy.active.method))),
        ("Total energy, idle included (low to high)", Cell(whole, kind(energy.method))),
        ("CPU time", quantities.seconds(build.cpu_s)),
        ("Time", quantities.seconds(build.duration_s)),
        ("Source", quantities.data_size(build.source_bytes)),
        ("Cache", f"{quantities.data_size(build.cache_bytes)}, {build.format}, {build.encoding}"),
        ("Variants", quantities.count(build.variants)),
        ("Storage for a day (low to high)", component_cell(stored)),
    ]
    remark = (
        f"The build is a one-time cost. Storage costs energy every day, {stored.method}: {stored.source}. Scope: {stored.scope}. It is in "
        "no ratio and in no break-even."
    )
    return _pairs("Build of the cache", rows, remark)


def _pairs(title: str, rows: list[tuple[str, Cell | str]], remark: str = "") -> Table:
    return table(title, (words("What"), words("Value")), rows, remark, detail=True)


def components(energy: Energy, title: str, *, detail: bool = True) -> Table:
    """Return where joules come from, component by component."""
    rows = [
        (
            name,
            component_cell(part),
            *((part.method, part.scope, part.resolution, part.source) if part is not None else ("", "", "", "")),
        )
        for name, part in energy.components.items()
    ]
    columns = (
        words("Component"),
        Column("Energy (low to high)"),
        words("Method"),
        words("Scope", priority=1),
        words("Resolution", priority=3),
        words("Source", priority=2),
    )
    return table(title, columns, rows, detail=detail)


def _coefficients(meter: Provenance) -> Table:
    """Return the coefficients of the energy model."""

    def shown(value: float | None) -> str:
        return "none given" if value is None else f"{value:g}"

    rows = [
        (name, shown(row.low), shown(row.central), shown(row.high), row.source)
        for name, row in meter.coefficients.items()
    ]
    origin = "watts given by the user" if meter.provider is None else f"provider {meter.provider}"
    remark = f"Model: {meter.formula}. Coefficients version {meter.coefficients_version}, {origin}."
    columns = (words("Name"), Column("Low"), Column("Central"), Column("High"), words("Source", priority=1))
    return table("Coefficients", columns, rows, remark, detail=True)


def _pixels(audit: Audit) -> Iterator[Table]:
    """Yield how far the images of the arms differ, and which arms were left out."""
    if audit.cached is None:
        return
    rows = [(name, quantities.number(level)) for name, level in audit.pixel_difference.items()]
    rows += [(name, f"left out: {reason}") for name, reason in audit.left_out.items()]
    remark = f"Mean absolute difference from {audit.cached} over the first batch, in levels of 0 to 255."
    columns = (words("Arm"), words("Pixel difference"))
    yield table("Do all arms yield the same images?", columns, rows, remark, detail=True)


def _pipelines(audit: Audit) -> Iterator[Table]:
    """Yield where custom pipelines come from, and what one epoch of each is."""
    if not audit.pipelines:
        return
    rows = [
        (
            each.name,
            each.function,
            each.file or "no file",
            (each.sha256 or "-")[:_HASH_DIGITS],
            each.elements,
            quantities.count(each.images),
            quantities.count(each.batches),
        )
        for each in audit.pipelines
    ]
    columns = (
        words("Pipeline"),
        words("Function"),
        words("File"),
        words("SHA-256 of the file", priority=2),
        words("Yields", priority=1),
        Column("Images per epoch", priority=3),
        Column("Batches", priority=4),
    )
    yield table("Pipelines", columns, rows, detail=True)


def _repeat(audit: Audit) -> Table:
    """Return what is needed to run the audit again."""
    run, horizon = audit.provenance, audit.horizon_epochs
    rows: list[tuple[str, str | None]] = [
        ("Seed", str(run.seed)),
        ("Batch size", _count(run.batch_size)),
        ("Batches per epoch", _count(run.steps)),
        ("Model", run.model),
        ("Epochs of a training run", _count(run.train_epochs)),
        ("Horizon of the verdict", None if horizon is None else epochs(horizon)),
        ("Every single run", f"{_RUNS}, next to this report"),
    ]
    return _pairs("To repeat this audit", [(what, value) for what, value in rows if value is not None])


def _count(value: int | None) -> str | None:
    return None if value is None else quantities.count(value)


def _machine(run: RunProvenance) -> Table:
    """Return the machine, and the versions of the software."""
    meter, threads = run.meter, run.threads

    def chosen(count: int) -> str:
        return "as TensorFlow chooses" if count == 0 else str(count)

    carbon = NO_COUNTRY
    if meter.country is not None and meter.carbon_g_per_kwh is not None:
        carbon = f"{meter.country}, {quantities.number(meter.carbon_g_per_kwh)} g per kWh ({meter.carbon_source})"
    rows: list[tuple[str, Cell | str]] = [
        ("Processor", meter.cpu or "unknown"),
        ("Thermal design power", "unknown to CodeCarbon" if meter.tdp_w is None else f"{meter.tdp_w:g} W"),
        ("vCPUs", f"{meter.vcpus:g}"),
        ("Memory", f"{quantities.number(meter.memory_gb)} GiB"),
        (
            "Threads",
            f"{threads.cpus} CPUs; within an op {chosen(threads.intra_op)}; across ops {chosen(threads.inter_op)}",
        ),
        ("System", run.platform),
        ("Meter", meter.method),
        ("RAPL counters", ", ".join(meter.rapl) or "none"),
        ("GPUs", ", ".join(meter.gpus) or "none"),
        ("PUE", f"{meter.pue:g}"),
        ("Carbon", carbon),
        ("Python", run.python),
        *((name, version or "not installed") for name, version in run.versions.items()),
    ]
    return _pairs("Machine and versions", rows)
