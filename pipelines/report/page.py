"""A whole report before it has a form."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from joulecache.pipelines.report import figures, stages, tables, verdict
from joulecache.pipelines.report.reuse import points_range, reuse_sentences, reuse_table
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
class ReusePart:
    """What is said about draws that are seen again; `result` is the part of the body that charts are drawn from."""

    statements: tuple[str, ...]
    tables: tuple[Table, ...]
    result: Body


@dataclass(frozen=True)
class StagesPart:
    """What is said about where the joules go."""

    statements: tuple[str, ...]
    table: Table


@dataclass(frozen=True)
class CompressionPart:
    """What is said about the model files; `result` is the part of the body that charts are drawn from."""

    statements: tuple[str, ...]
    tables: tuple[Table, ...]
    result: Body


@dataclass(frozen=True)
class Page:
    """A whole report. `question` is its title, `name` what it is about; `subject` and `facts` say what was audited, as a label and a

    text that is quoted; `provenance` is what it takes to believe and to repeat it.
    """

    question: str
    name: str
    subject: tuple[tuple[str, str], ...]
    facts: str
    headline: tuple[Statement, ...]
    doubts: str
    tiles: tuple[Tile, ...]
    stages: StagesPart | None
    workloads: tuple[WorkloadPart, ...]
    reuse: ReusePart | None
    compression: CompressionPart | None
    may_compress: bool
    samples: tuple[Body, ...]
    provenance: tuple[Table, ...]
    notes: tuple[str, ...]
    command: str
    body: Body


def make_page(raw: Body) -> Page:
    """Say everything that the body of a report holds; its texts are made visible, nothing is escaped for a form."""
    body: Body = figures.visible(raw)
    provenance = body["provenance"]
    return Page(
        question=_question(body),
        name=", ".join(each["name"] for each in body["pipelines"]) or body["source"],
        subject=_subject(body),
        facts=_facts(body),
        headline=verdict.headline(body),
        doubts=verdict.doubts(body),
        tiles=_tiles(body) if body["cached"] is not None else _own_tiles(body),
        stages=None if body["stages"] is None else _stages(body),
        workloads=tuple(_workload(result, body) for result in body["workloads"]),
        reuse=None if body["reuse"] is None else _reuse(body["reuse"], body["horizon_epochs"]),
        compression=None if body["compression"] is None else compression_part(body["compression"]),
        may_compress=body["cached"] is not None,
        samples=tuple(body.get("samples", ())),
        provenance=_provenance(body),
        notes=tuple(provenance["meter"]["notes"]),
        command=_command_line(provenance["command"]),
        body=body,
    )


def _command_line(arguments: list[str]) -> str:
    """Return a command as a shell takes it, our own program by its name alone."""
    program, *rest = arguments or [""]
    return shlex.join(["joulecache" if PurePath(program).name == "joulecache" else program, *rest])


def _question(body: Body) -> str:
    if body["cached"] is not None:
        return "is the cache worth its energy?"
    return "which pipeline takes less energy?" if len(body["pipelines"]) > 1 else "what does the pipeline take?"


def _subject(body: Body) -> tuple[tuple[str, str], ...]:
    if not body["pipelines"]:
        return ("Source", body["source"]), ("chain", body["chain"])
    first, *others = (each["name"] for each in body["pipelines"])
    return (("The reference" if others else "Pipeline", first), *(("beside it", other) for other in others))


def _provenance(body: Body) -> tuple[Table, ...]:
    meter = body["provenance"]["meter"]
    end = (tables.repeat(body), tables.machine(body["provenance"]))
    if body["build"] is None:
        runs = tables.components(body["energy"], "all runs")
        return (tables.control(body), runs, tables.coefficients(meter), tables.pipelines(body), *end)
    return (
        tables.control(body),
        tables.build(body["build"]),
        tables.components(body["build"]["energy"], "the build"),
        tables.coefficients(meter),
        tables.pixels(body),
        *end,
    )


def _facts(body: Body) -> str:
    if body["records"] is None:
        return " ".join(
            f"{each['name']}: {figures.count(each['images'])} images in {figures.count(each['batches'])} batches an epoch."
            for each in body["pipelines"]
        )
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


def _own_tiles(body: Body) -> tuple[Tile, ...]:
    """Return the large figures of own pipelines: the leanest beside the first one, or what the only one takes."""
    result = verdict.main_workload(body)
    if result is None:
        return ()
    tag, job = verdict.active_tag(body), verdict.title_of(result["workload"])
    first = next(arm for arm in result["arms"] if arm["name"] == body["reference"])
    others = [arm for arm in result["arms"] if arm is not first]
    least = min(others, key=lambda arm: float(arm["ratio"]["value"]), default=first)
    per_s = [f"{figures.number(arm['images_per_s'])} images/s" for arm in (least, first)]
    if least is first:
        spent, _, ends = figures.joules_range(first["active_j_per_1000"]).partition(" (")
        return (
            Tile("Active energy per 1,000 images", Cell(spent, tag), f"{job}; {ends.removesuffix(')')}"),
            Tile("Throughput", Cell(per_s[0]), job),
            *_waiting_tiles(first, job),
        )
    changed = Cell(figures.change(least["ratio"]["value"]), tag, least["finding"])
    against = f"{job}, {least['name']} against {first['name']}"
    return (
        Tile("Active energy per image", changed, f"{against}; {figures.change_range(least['ratio'])}"),
        Tile("Throughput", Cell(per_s[0]), f"{job}, {least['name']}; {first['name']}: {per_s[1]}"),
    )


def _waiting_tiles(arm: Body, job: str) -> Iterator[Tile]:
    if arm["waiting"] is not None:
        at_most = "at most " if arm["waiting"]["at_most"] else ""
        yield Tile(
            "Waits for input", Cell(f"{at_most}{figures.share(arm['waiting']['share_of_time'])}"), f"{job}, of its time"
        )


def _tiles(body: Body) -> tuple[Tile, ...]:
    tiles, tag = [], verdict.active_tag(body)
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
    if body["reuse"] is not None and body["reuse"]["points"]:
        held = body["reuse"]["points"][0]
        differs, _, ends = points_range(held["difference"]).partition(" (")
        detail = f"{held['name']} against fresh draws; 95% interval {ends.removesuffix(')')}"
        tiles.append(Tile("Accuracy, in points", Cell(differs, None, held["finding"]), detail))
    if body["compression"] is not None:
        first, last = body["compression"]["variants"][0], body["compression"]["variants"][-1]
        energy = last["energy_per_image"]
        one = Cell(figures.joules(energy["active_j"]), figures.kind(energy["active"]["method"]))
        was = f"{last['name']}; {first['name']}: {figures.joules(first['energy_per_image']['active_j'])}"
        tiles.append(Tile("One inference", one, was))
    return tuple(tiles)


def _stages(body: Body) -> StagesPart:
    return StagesPart(stages.stage_sentences(body), stages.stage_table(body))


def _workload(result: Body, body: Body) -> WorkloadPart:
    epochs = result["epochs_per_run"]
    least = "at least " if result["workload"] == "input" else ""
    what = f"{least}{epochs} epoch{'s' if epochs != 1 else ''}"
    images = "" if body["records"] is None else f" of {figures.count(body['records']['train'])} images"
    lead = f"{result['blocks']} interleaved blocks, in which each {'arm' if images else 'pipeline'} ran {what}{images}."
    said = [tables.arms(result, body)]
    if any(arm["parts"] for arm in result["arms"]):
        said.append(tables.parts(result, body))
    waiting = stages.waiting_table(result)
    if waiting is not None:
        said.append(waiting)
    if body["cached"] is not None:
        said += [tables.costs(result, body), tables.comparisons(result, body)]
    said.append(tables.more(result, figures.kind(body["method"]), body["provenance"]["meter"]["country"]))
    said.append(tables.beside(result))
    return WorkloadPart(
        verdict.title_of(result["workload"]), lead, verdict.statements(result, body), tuple(said), result
    )


def _reuse(reuse: Body, horizon: int) -> ReusePart:
    tables_of = (reuse_table(reuse, horizon),) if reuse["points"] else ()
    return ReusePart(reuse_sentences(reuse, horizon), tables_of, reuse)


def compression_part(compression: Body) -> CompressionPart:
    """Return what is said about a compression."""
    flagged = tables.flagged_models(compression)
    shown = (tables.model_files(compression), *([flagged] if flagged else []))
    return CompressionPart(verdict.compression_sentences(compression), shown, compression)
