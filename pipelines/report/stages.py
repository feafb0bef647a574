"""Where the joules go: the stages of the reference arm, and what waiting for input burns, as tables and in sentences."""

from __future__ import annotations

from joulecache.pipelines.report import figures
from joulecache.pipelines.report.tables import Cell, Column, Table
from joulecache.pipelines.report.verdict import Body, active_tag, title_of

BELOW_RESOLUTION = "below resolution"
UNATTRIBUTED = "unattributed"
WAITING = "waiting"

_LEARNING = ("copy", "training step")  # the stages that are no part of the input
_LARGEST_REST = 0.1  # of the whole: beyond, stages are a rough picture


def stage_table(body: Body) -> Table:
    """Return what each stage takes of the whole, what is unattributed, and apart from that what waiting burns."""
    rows = stage_rows(body)
    waiting = reference_waiting(body)
    if waiting is not None:
        rows.append((Cell(f"{WAITING}, apart"), _burnt(waiting, "coefficients "), _share_of_total(waiting), Cell("-")))
    columns = (
        Column("Stage", figure=False),
        Column("Active energy per 1,000 images (95% interval)"),
        Column("Share of the whole"),
        Column("Done once by a cache", figure=False),
    )
    return Table("Stages", columns, tuple(rows), _stage_remark(body))


def stage_rows(body: Body) -> list[tuple[Cell, ...]]:
    """Return each stage, what is unattributed and the whole: name, active energy, share of the whole, whether a cache does it once."""
    found, tag = body["stages"], active_tag(body)
    whole_j = found["whole_j_per_1000"]
    rows: list[tuple[Cell, ...]] = [
        (
            Cell(stage["name"]),
            _stage_cell(stage, whole_j, tag),
            Cell("-" if stage["active_j_per_1000"] is None else figures.share(stage["active_j_per_1000"] / whole_j)),
            Cell("yes" if stage["cached"] else "no"),
        )
        for stage in found["stages"]
    ]
    rest_j = found["unattributed_j_per_1000"]
    rest = Cell(figures.joules(rest_j, whole_j), tag)
    rows.append((Cell(UNATTRIBUTED), rest, Cell(figures.share(rest_j / whole_j)), Cell("-")))
    rows.append((Cell("the whole"), Cell(figures.joules(whole_j), tag), Cell(figures.share(1)), Cell("-")))
    return rows


def _stage_cell(stage: Body, whole_j: float, tag: str) -> Cell:
    """Return a stage's energy with its interval, or below resolution with what it takes at most."""
    if stage["active_j_per_1000"] is None:
        return Cell(BELOW_RESOLUTION, ends=f"(at most {figures.joules(stage['high'], whole_j)})")
    ends = {"value": stage["active_j_per_1000"], "low": stage["low"], "high": stage["high"]}
    value, _, spread = figures.joules_range(ends, whole_j).partition(" (")
    return Cell(value, tag, ends=f"({spread}")


def _stage_remark(body: Body) -> str:
    found, arm = body["stages"], body["reference"]
    said = [
        f"{arm} was cut off behind each of its steps in turn, in {found['blocks']} interleaved blocks over "
        f"{figures.count(found['images'])} files. A stage is what it then takes more than cut off one step before; below resolution: "
        "the interval holds 0. tf.data: listing and shuffling the files, and calling the map; batch: collating the images.",
    ]
    if found["workload"] == "train":
        said.append(
            "copy: moving batches to the device that trains; training step: an epoch of training less all before it, in the same blocks."
        )
    said.append(
        f"The whole is what {arm} takes in the workload {found['workload']}, measured apart. The coefficients move all stages together."
    )
    gpu = body["energy"]["components"]["gpu"] is not None
    if gpu:
        said.append("All joules of a GPU count as active: those in which it only waits are in the stages of the input.")
    if reference_waiting(body) is not None:
        apart = "" if gpu else ", and in no share of the active energy above it"
        said.append(f"Waiting is a part of the total energy, idle included{apart}.")
    return " ".join(said)


def waiting_table(result: Body) -> Table | None:
    """Return how long each arm of a training waited for its input, and what the idle machine burnt meanwhile."""
    waits = [(arm["name"], arm["waiting"]) for arm in result["arms"] if arm["waiting"] is not None]
    if not waits:
        return None
    rows = tuple(
        (Cell(name), Cell(_at_most(waiting, figures.share(waiting["share_of_time"]))), _burnt(waiting), _total(waiting))
        for name, waiting in waits
    )
    columns = (
        Column("Arm", figure=False),
        Column("Waited, of the time"),
        Column("Burnt meanwhile per 1,000 images (low to high)"),
        Column("Of the total energy"),
    )
    remark = (
        "How long training was blocked for its next batch, times the watts of the idle machine: a part of the total energy, idle "
        "included."
    )
    if any(waiting["at_most"] for _, waiting in waits):
        remark += " At most: the accelerator may still have computed while the next batch was asked for, which is counted too."
    return Table("Waiting for input", columns, rows, remark)


def reference_waiting(body: Body) -> Body | None:
    """Return the waiting of the reference arm in the training that the stages are of, None where there is none."""
    of = [result for result in body["workloads"] if result["workload"] == body["stages"]["workload"]]
    found: Body | None = (
        next(arm["waiting"] for arm in of[0]["arms"] if arm["name"] == body["reference"]) if of else None
    )
    return found


def _burnt(waiting: Body, of_ends: str = "") -> Cell:
    if waiting["total_j_per_1000"] is None:
        return Cell(figures.NOT_MEASURED)
    value, _, ends = figures.joules_range(waiting["total_j_per_1000"]).partition(" (")
    return Cell(_at_most(waiting, value), figures.kind(waiting["method"]), ends=f"({of_ends}{ends}")


def _total(waiting: Body) -> Cell:
    share = waiting["share_of_total"]
    return Cell(figures.NOT_MEASURED if share is None else _at_most(waiting, figures.share(share)))


def _share_of_total(waiting: Body) -> Cell:
    share = waiting["share_of_total"]
    return Cell(figures.NOT_MEASURED if share is None else f"{_at_most(waiting, figures.share(share))} of the total")


def _at_most(waiting: Body, text: str) -> str:
    return f"at most {text}" if waiting["at_most"] else text


def stage_sentences(body: Body) -> tuple[str, ...]:
    """Say which stage takes most, what of the input a cache takes away, how far the stages explain the whole, and what waiting burns."""
    found = body["stages"]
    whole_j = found["whole_j_per_1000"]
    known = [stage for stage in found["stages"] if stage["active_j_per_1000"] is not None]
    return tuple(filter(None, (_most(body, known), _cached(body, known), _closes(found, whole_j), _waits(body))))


def _joules(stages: list[Body]) -> float:
    return sum(float(stage["active_j_per_1000"]) for stage in stages)


def _most(body: Body, known: list[Body]) -> str:
    found = body["stages"]
    whole_j, tag = found["whole_j_per_1000"], active_tag(body)
    whole = f"{figures.joules(whole_j)} of active energy per 1,000 images ({title_of(found['workload'])}, {body['reference']}, {tag})"
    if not known:
        return f"Of {whole} no stage is above its resolution."
    most = max(known, key=lambda stage: float(stage["active_j_per_1000"]))
    text = f"Of {whole}, {most['name']} takes most: {figures.share(_joules([most]) / whole_j)}."
    feeding = [stage for stage in known if stage["name"] not in _LEARNING]
    if most["name"] not in _LEARNING or not feeding:
        return text
    first = max(feeding, key=lambda stage: float(stage["active_j_per_1000"]))
    return f"{text} Of the input alone it is {first['name']}: {figures.share(_joules([first]) / _joules(feeding))}."


def _cached(body: Body, known: list[Body]) -> str:
    feeding = [stage for stage in known if stage["name"] not in _LEARNING]
    gone = [stage for stage in feeding if stage["cached"]]
    if not gone:
        return ""
    *others, last = (stage["name"] for stage in gone)
    names = f"{', '.join(others)} and {last}" if others else last
    instead = f" What reading it takes instead is in the arm {body['cached']}." if body["cached"] is not None else ""
    return (
        f"A cache takes away {figures.share(_joules(gone) / _joules(feeding))} of the input's active energy: {names}, which it does once."
        f"{instead}"
    )


def _closes(found: Body, whole_j: float) -> str:
    rest = found["unattributed_j_per_1000"] / whole_j
    together = f"The stages add up to {figures.share(1 - rest)} of the whole"
    if rest < 0:
        text = f"{together}, which is more than there is: they and it were measured in runs of their own."
    else:
        text = f"{together}; {figures.share(rest)} is unattributed."
    return (
        text if abs(rest) <= _LARGEST_REST else f"{text} That is more than a tenth: take the stages as a rough picture."
    )


def _waits(body: Body) -> str:
    waiting = reference_waiting(body)
    if waiting is None:
        return ""
    waited = f"Training waited for its next batch for {_at_most(waiting, figures.share(waiting['share_of_time']))} of its time"
    if waiting["total_j_per_1000"] is None:
        return f"{waited}; what the idle machine burnt meanwhile is not known."
    burnt = _at_most(waiting, figures.joules(waiting["total_j_per_1000"]["value"]))
    apart = ", and no part of the active energy above"
    if body["energy"]["components"]["gpu"] is not None:
        apart = ". The active energy above counts all joules of the GPU: its part of the waiting is in both"
    return (
        f"{waited}, in which the idle machine burnt {burnt} per 1,000 images ({figures.kind(waiting['method'])}): "
        f"{_at_most(waiting, figures.share(waiting['share_of_total']))} of the total energy{apart}."
    )
