"""What a machine can measure, its throughput, and the cost of ops on it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from joulecache.pipelines.core import quantities
from joulecache.pipelines.core.quantities import NOT_MEASURED, Spread
from joulecache.pipelines.report.describe.values import flagged
from joulecache.pipelines.report.document import Column, Document, Paragraph, Section, Sentence, table, words

if TYPE_CHECKING:
    from joulecache.pipelines.auditing.throughput import Recommendation, Throughput
    from joulecache.pipelines.energy import Provenance


@dataclass(frozen=True)
class Check:
    """A finding of `joulecache doctor`: whether it is good, and otherwise how to fix it."""

    what: str
    good: bool
    found: str
    remedy: str | None = None


def describe_checks(checks: Sequence[Check]) -> Document:
    """Describe the checks of `joulecache doctor`."""
    shown = table(
        "",
        checks,
        {
            words("What"): lambda check: check.what,
            words("State"): lambda check: "ok" if check.good else "-",
            words("Found"): lambda check: f"{check.found}. To do: {check.remedy}" if check.remedy else check.found,
        },
    )
    return Document("joulecache: doctor", "doctor", sections=(Section("", (shown,)),))


def describe_throughputs(
    found: Sequence[Throughput], provenance: Provenance, advice: Recommendation | None
) -> Document:
    """Describe a machine's throughput at each precision, with the provenance of its joules."""
    rates = table(
        "",
        found,
        {
            words("Operation"): lambda one: one.operation,
            words("Precision"): lambda one: one.precision,
            words("Runs on", priority=1): lambda one: f"{one.device}, {one.engine}",
            Column("GFLOP/s (slowest to fastest round)", "GFLOP/s"): lambda one: Spread(
                _giga(one.flop_per_s), _giga(one.flop_per_s_low), _giga(one.flop_per_s_high)
            ),
            Column("GFLOP/s per W (low to high)", "GFLOP/s per W"): lambda one: Spread(
                _giga(one.flop_per_j),
                _giga(_per_joule(one.flop, one.energy.active_high_j)),
                _giga(_per_joule(one.flop, one.energy.active_low_j)),
            ),
        },
    )
    whole = functools.reduce(operator.add, (one.energy for one in found))
    machine = (
        f"{provenance.cpu or 'Unknown processor'}, {provenance.vcpus:g} vCPUs. Watts: active, {whole.active.method}."
    )
    recommended = "No recommendation: the power does not rise with load, so precisions differ in speed alone."
    if advice is not None:
        recommended = f"Train in {advice.training}, infer in {advice.inference}; {advice.why}."
    return Document(
        "joulecache: hardware",
        "hardware",
        headline=(Sentence(recommended),),
        warning=flagged("The measurement", whole),
        sections=(Section("", (rates, Paragraph(machine))),),
    )


def _per_joule(flop: int, joules: float) -> float | None:
    return flop / joules if joules else None


def _giga(value: float | None) -> str:
    return NOT_MEASURED if value is None else quantities.count(value / 1e9)


class OpRow(TypedDict):
    """One op as `joulecache transforms --json` prints it; the cost is None where it was not measured."""

    op: str
    usage: str
    does: str
    cpu_us_per_image: float | None


def describe_ops(rows: Sequence[OpRow]) -> Document:
    """Describe the ops and their CPU cost."""
    shown = table(
        "",
        rows,
        {
            words("Op"): lambda row: row["usage"],
            words("Does"): lambda row: row["does"],
            Column("CPU time per image", "CPU /image"): lambda row: (
                NOT_MEASURED if row["cpu_us_per_image"] is None else f"{row['cpu_us_per_image']:,.0f} µs"
            ),
        },
        "CPU time on this machine, measured now: 224x224x3, from a photo of about 500x375 or from 256x256.",
    )
    return Document("joulecache: ops", "ops", sections=(Section("", (shown,)),))
