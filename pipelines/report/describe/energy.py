"""What a meter measured in one window."""

from __future__ import annotations

from collections.abc import Sequence

from joulecache.pipelines.core import quantities
from joulecache.pipelines.core.quantities import NOT_MEASURED
from joulecache.pipelines.energy import Energy
from joulecache.pipelines.report.describe.values import component_cell
from joulecache.pipelines.report.document import Column, Document, Paragraph, Section, Sentence, table, words


def describe_energy(energy: Energy, notes: Sequence[str] = ()) -> Document:
    """Return what there is to say of an energy; `notes` are those of its meter."""
    total = quantities.joules_range(energy.total_j, energy.low_j, energy.high_j)
    rows = [
        (
            name,
            component_cell(part),
            *(("", "") if part is None else (part.method, part.scope)),
        )
        for name, part in {"active": energy.active, **energy.components}.items()
    ]
    columns = (words("Component"), Column("Energy (low to high)"), words("Method"), words("Scope", priority=1))
    shares = ((name.replace("_", " "), share) for name, share in energy.contamination_shares.items())
    load = ", ".join(f"{name} {NOT_MEASURED if share is None else quantities.share(share)}" for name, share in shares)
    carbon = "not measured (give a country)" if energy.carbon_g is None else quantities.grams(energy.carbon_g)
    text = (
        f"Time {quantities.seconds(energy.duration_s)}, CPU time {quantities.seconds(energy.cpu_s)}. Peak memory "
        f"{quantities.data_size(energy.peak_rss_bytes)}, read {quantities.data_size(energy.read_bytes)}, written "
        f"{quantities.data_size(energy.written_bytes)}. CO2 {carbon}.",
        f"Background load: {load}.",
        *(f"Note of the meter: {note}." for note in notes),
    )
    return Document(
        "joulecache: energy",
        "energy",
        headline=(Sentence(f"Energy: {total}, {energy.method}."),),
        warning=f"Flagged by the meter: {'; '.join(energy.flags)}." if energy.flags else "",
        sections=(Section("", (table("", columns, rows), *map(Paragraph, text))),),
    )
