"""A whole report before it has a form."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import PurePath

from joulecache.pipelines.report import figures, tables, verdict
from joulecache.pipelines.report.tables import Cell, Table
from joulecache.pipelines.report.verdict import Body, Statement

_CLASSES_NAMED = 20


@dataclass(frozen=True)
class Tile:
    """One large figure."""

    label: str
    figure: Cell
    detail: str


@dataclass(frozen=True)
class WorkloadPart:
    """What is said about one workload; `result` is the part of the body that charts are drawn from."""

    title: str
    lead: str
    statements: tuple[Statement, ...]
    tables: tuple[Table, ...]
    result: Body


@dataclass(frozen=True)
class CompressionPart:
    """What is said about the model files; `result` is the part of the body that charts are drawn from."""

    statements: tuple[str, ...]
    table: Table
    result: Body


@dataclass(frozen=True)
class Page:
    """A whole report. `facts` say what was audited; `provenance` is what it takes to believe and to repeat it."""

    source: str
    chain: str
    facts: str
    headline: tuple[Statement, ...]
    doubts: tuple[str, ...]
    tiles: tuple[Tile, ...]
    workloads: tuple[WorkloadPart, ...]
    compression: CompressionPart | None
    provenance: tuple[Table, ...]
    notes: tuple[str, ...]
    command: str
    body: Body


def make_page(raw: Body) -> Page:
    """Say everything that the body of a report holds; its texts are made visible, nothing is escaped for a form."""
    body: Body = figures.visible(raw)
    provenance = body["provenance"]
    active, total = verdict.active_tag(body), figures.kind(body["method"])
    build = body["build"]
    return Page(
        source=body["source"],
        chain=body["chain"],
        facts=_facts(body),
        headline=verdict.headline(body),
        doubts=verdict.doubts(body),
        tiles=_tiles(body, active),
        workloads=tuple(_workload(result, body, active, total) for result in body["workloads"]),
        compression=None if body["compression"] is None else compression_part(body["compression"]),
        provenance=(
            tables.control(body["workloads"]),
            tables.build(build, active, total),
            tables.components(build["energy"]),
            tables.coefficients(provenance["meter"]),
            tables.pixels(body),
            tables.repeat(body),
            tables.machine(provenance),
        ),
        notes=tuple(provenance["meter"]["notes"]),
        command=_command_line(provenance["command"]),
        body=body,
    )


def _command_line(arguments: list[str]) -> str:
    """Return a command as a shell takes it, our own program by its name alone."""
    program, *rest = arguments or [""]
    return shlex.join(["joulecache" if PurePath(program).name == "joulecache" else program, *rest])


def _facts(body: Body) -> str:
    names = body["class_names"]
    train, val, rejected, skipped = (
        figures.count(body["records"][what]) for what in ("train", "val", "rejected", "skipped")
    )
    listed = ", ".join(names[:_CLASSES_NAMED])
    more = f" and {figures.count(len(names) - _CLASSES_NAMED)} more" if len(names) > _CLASSES_NAMED else ""
    return (
        f"{train} training images, {val} held out, {rejected} rejected, {skipped} other files skipped. "
        f"{figures.count(len(names))} {'class' if len(names) == 1 else 'classes'}: {listed}{more}."
    )


def _tiles(body: Body, tag: str) -> tuple[Tile, ...]:
    tiles = []
    result = verdict.main_workload(body)
    compared = verdict.main_comparisons(result, body) if result else ()
    if result is not None and compared:
        first, strongest = compared[0], compared[-1]
        ratio, found, job = first["ratio"], first["finding"], verdict.title_of(result["workload"])
        changed = Cell(figures.change(ratio["value"]), tag, found)
        against = f"{job}, against {first['other']}"
        tiles.append(Tile("Active energy per epoch", changed, f"{against}; {figures.change_range(ratio)}"))
        after, _, ends = figures.epochs_to(first["break_even"], ratio).partition(" (")
        tiles.append(Tile("Build paid back after", Cell(after, None, found), ends.removesuffix(")") or against))
        over = Cell(figures.change(strongest["horizon_ratio"]), tag, strongest["finding"])
        against = f"{job}, against {strongest['other']}"
        tiles.append(Tile(f"Over {body['horizon_epochs']} epochs, with the build", over, against))
    if body["compression"] is not None:
        first, last = body["compression"]["variants"][0], body["compression"]["variants"][-1]
        energy = last["energy_per_image"]
        one = Cell(figures.joules(energy["active_j"]), figures.kind(energy["active"]["method"]))
        was = f"{last['name']}; {first['name']}: {figures.joules(first['energy_per_image']['active_j'])}"
        tiles.append(Tile("One inference", one, was))
    return tuple(tiles)


def _workload(result: Body, body: Body, active: str, total: str) -> WorkloadPart:
    epochs = result["epochs_per_run"]
    lead = (
        f"{result['blocks']} interleaved blocks, in which each arm ran {epochs} epoch{'s' if epochs != 1 else ''} of "
        f"{figures.count(body['records']['train'])} images."
    )
    said = (
        tables.arms(result, active),
        tables.comparisons(result, body["horizon_epochs"]),
        tables.more(result, total, body["provenance"]["meter"]["country"]),
        tables.beside(result),
    )
    return WorkloadPart(verdict.title_of(result["workload"]), lead, verdict.statements(result, body), said, result)


def compression_part(compression: Body) -> CompressionPart:
    """Return what is said about a compression."""
    return CompressionPart(verdict.compression_sentences(compression), tables.model_files(compression), compression)
