"""Where the numbers of an audit come from, and how to reproduce it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import PurePath

from joulecache.pipelines.auditing.results import Audit, BuildFacts
from joulecache.pipelines.core import quantities
from joulecache.pipelines.core.quantities import plural
from joulecache.pipelines.energy import Component, Energy, Provenance
from joulecache.pipelines.experiment.results import RunProvenance, WorkloadResult
from joulecache.pipelines.report.describe.values import (
    NO_COUNTRY,
    active,
    component_cell,
    joules,
    ratio,
    title_of,
    total,
)
from joulecache.pipelines.report.document import (
    Block,
    Cell,
    Column,
    Command,
    Paragraph,
    Section,
    Table,
    Value,
    pairs,
    table,
    words,
)

_NOTEBOOK = "ipykernel_launcher.py"
_HASH_DIGITS = 16  # enough to distinguish files
_LEGEND = (
    "Measured joules come from hardware counters, modelled joules from published coefficients, given ones from the user. A sum with a "
    "modelled part is modelled."
)


def provenance_section(audit: Audit) -> Section:
    """Return the provenance section of a report."""
    run = audit.provenance
    blocks: list[Block] = [Paragraph(_LEGEND, detail=True)]
    if (command := command_line(run.command)) is not None:
        blocks.append(Command(command, detail=True))
    blocks += [Paragraph(f"Note of the meter: {note}.", muted=True, detail=True) for note in run.meter.notes]
    blocks.append(_aa_control(audit))
    if audit.build is not None:
        blocks += [_storage(audit.build), _build(audit.build)]
        blocks.append(_components(audit.build.energy, "Energy of the build, by component"))
    else:
        blocks.append(_components(audit.energy, "Energy of all runs, by component"))
    blocks += [_coefficients(run.meter), *_pixels(audit), *_pipelines(audit), _reproducing(audit), _machine(run)]
    return Section("Where the numbers come from", tuple(blocks))


def command_line(arguments: tuple[str, ...]) -> str | None:
    """Return a command quoted for a shell, without the path of joulecache; None for a notebook or another interactive session."""
    program, *rest = arguments or ("",)
    name = PurePath(program).name
    if name == "joulecache":
        return shlex.join([name, *rest])
    if not name.endswith(".py") or name == _NOTEBOOK:
        return None
    return shlex.join(["python", program, *rest])


def _aa_control(audit: Audit) -> Table:
    def outcome(result: WorkloadResult) -> str:
        low, high = result.control.low, result.control.high
        if low is None or high is None:
            return "a single block shows nothing"
        return "contains 1" if low <= 1 <= high else "does not contain 1: nothing is claimed"

    return table(
        "A/A control",
        audit.workloads,
        {
            words("Workload"): lambda result: title_of(result.workload),
            Column("Ratio (95% interval)"): lambda result: ratio(result.control),
            Column("Blocks"): lambda result: quantities.count(result.blocks),
            words("Outcome"): outcome,
        },
        f"The control measures {audit.reference} against itself in every block: the ratio shows how much two identical arms differ.",
    )


def _storage(build: BuildFacts) -> Paragraph:
    size, stored = quantities.data_size(build.cache_bytes), component_cell(build.storage_per_day)
    return Paragraph(f"Storing the cache, {size}, uses {stored.value} a day, {stored.tag}; no ratio includes this.")


def _build(build: BuildFacts) -> Table:
    energy, stored = build.energy, build.storage_per_day
    return pairs(
        "Build of the cache",
        {
            "Active energy (low to high)": Cell(joules(active(energy)), quantities.kind(energy.active.method)),
            "Total energy, idle included (low to high)": Cell(total(energy), quantities.kind(energy.method)),
            "CPU time": quantities.seconds(build.cpu_s),
            "Time": quantities.seconds(build.duration_s),
            "Source": quantities.data_size(build.source_bytes),
            "Cache": f"{quantities.data_size(build.cache_bytes)}, {build.format}, {build.encoding}",
            "Variants": quantities.count(build.variants),
            "Storage for a day (low to high)": component_cell(stored),
        },
        f"The build is a one-time cost. Storage costs energy every day, {stored.method}: {stored.source}. Scope: {stored.scope}. No ratio "
        "and no break-even includes it.",
    )


def _components(energy: Energy, title: str) -> Table:
    def text(part: Component | None, name: str) -> str:
        return "" if part is None else str(getattr(part, name))

    return table(
        title,
        energy.components.items(),
        {
            words("Component"): lambda row: row[0],
            Column("Energy (low to high)"): lambda row: component_cell(row[1]),
            words("Method"): lambda row: text(row[1], "method"),
            words("Scope", priority=1): lambda row: text(row[1], "scope"),
            words("Resolution", priority=3): lambda row: text(row[1], "resolution"),
            words("Source", priority=2): lambda row: text(row[1], "source"),
        },
        detail=True,
    )


def _coefficients(meter: Provenance) -> Table:
    def shown(value: float | None) -> str:
        return "none given" if value is None else f"{value:g}"

    origin = "watts given by the user" if meter.provider is None else f"provider {meter.provider}"
    return table(
        "Coefficients",
        meter.coefficients.items(),
        {
            words("Name"): lambda row: row[0],
            Column("Low"): lambda row: shown(row[1].low),
            Column("Central"): lambda row: shown(row[1].central),
            Column("High"): lambda row: shown(row[1].high),
            words("Source", priority=1): lambda row: row[1].source,
        },
        f"Model: {meter.formula}. Coefficients version {meter.coefficients_version}, {origin}.",
        detail=True,
    )


def _pixels(audit: Audit) -> Iterator[Table]:
    """Yield the differences between the images of the arms, and the arms that were left out."""
    if audit.cached is None:
        return
    shown = {name: quantities.number(level) for name, level in audit.pixel_difference.items()}
    shown |= {name: f"left out: {reason}" for name, reason in audit.left_out.items()}
    yield table(
        "Do all arms yield the same images?",
        shown.items(),
        {words("Arm"): lambda row: row[0], words("Pixel difference"): lambda row: row[1]},
        f"Mean absolute difference from {audit.cached} over the first batch, in levels of 0 to 255.",
        detail=True,
    )


def _pipelines(audit: Audit) -> Iterator[Table]:
    """Yield the origin of custom pipelines, and the size of an epoch of each."""
    if audit.pipelines:
        yield table(
            "Pipelines",
            audit.pipelines,
            {
                words("Pipeline"): lambda each: each.name,
                words("Function"): lambda each: each.function,
                words("File"): lambda each: each.file or "no file",
                words("SHA-256 of the file", priority=2): lambda each: (each.sha256 or "-")[:_HASH_DIGITS],
                words("Yields", priority=1): lambda each: each.elements,
                Column("Images per epoch", priority=3): lambda each: quantities.count(each.images),
                Column("Batches", priority=4): lambda each: quantities.count(each.batches),
            },
            detail=True,
        )


def _reproducing(audit: Audit) -> Table:
    run, horizon = audit.provenance, audit.horizon_epochs
    facts = {
        "Seed": str(run.seed),
        "Batch size": run.batch_size and quantities.count(run.batch_size),
        "Batches per epoch": run.steps and quantities.count(run.steps),
        "Model": run.model,
        "Epochs of a training run": run.train_epochs and quantities.count(run.train_epochs),
        "Horizon of the verdict": horizon and plural(horizon, "epoch"),
        "Every single run": "runs.jsonl, next to this report",
    }
    return pairs("Reproducing this audit", {what: str(fact) for what, fact in facts.items() if fact is not None})


def _machine(run: RunProvenance) -> Table:
    meter, threads = run.meter, run.threads

    def chosen(count: int) -> str:
        return "as TensorFlow chooses" if count == 0 else str(count)

    carbon = NO_COUNTRY
    if meter.country is not None and meter.carbon_g_per_kwh is not None:
        carbon = f"{meter.country}, {quantities.number(meter.carbon_g_per_kwh)} g per kWh ({meter.carbon_source})"
    within, across = chosen(threads.intra_op), chosen(threads.inter_op)
    facts: dict[str, Value] = {
        "Processor": meter.cpu or "unknown",
        "Thermal design power": "unknown to CodeCarbon" if meter.tdp_w is None else f"{meter.tdp_w:g} W",
        "vCPUs": f"{meter.vcpus:g}",
        "Memory": f"{quantities.number(meter.memory_gb)} GiB",
        "Threads": f"{threads.cpus} CPUs; within an op {within}; across ops {across}",
        "System": run.platform,
        "Meter": meter.method,
        "RAPL counters": ", ".join(meter.rapl) or "none",
        "GPUs": ", ".join(meter.gpus) or "none",
        "PUE": f"{meter.pue:g}",
        "Carbon": carbon,
        "Python": run.python,
    }
    return pairs(
        "Machine and versions", facts | {name: version or "not installed" for name, version in run.versions.items()}
    )
