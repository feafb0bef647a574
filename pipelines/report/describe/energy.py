"""The energy of one window."""

from __future__ import annotations

from collections.abc import Sequence

from joulecache.pipelines.core.quantities import data_size, grams, plural, seconds
from joulecache.pipelines.energy import Energy
from joulecache.pipelines.report.describe.values import component_cell, flagged, share, total
from joulecache.pipelines.report.document import Column, Document, Paragraph, Section, Sentence, table, words

_FEWEST_TICKS = 10  # of the kernel's clock in a window: with fewer, one tick is over a tenth of the processors' time


def describe_energy(energy: Energy, notes: Sequence[str] = ()) -> Document:
    """Describe an energy; `notes` are the notes of its meter."""
    parts = table(
        "",
        {"active": energy.active, **energy.components}.items(),
        {
            words("Component"): lambda row: row[0],
            Column("Energy (low to high)"): lambda row: component_cell(row[1]),
            words("Method"): lambda row: row[1].method if row[1] else "",
            words("Scope", priority=1): lambda row: row[1].scope if row[1] else "",
        },
    )
    carbon = "not measured (give a country)" if energy.carbon_g is None else grams(energy.carbon_g)
    text = (
        f"Time {seconds(energy.duration_s)}, CPU time {seconds(energy.cpu_s)}. Peak memory {data_size(energy.peak_rss_bytes)}, read "
        f"{data_size(energy.read_bytes)}, written {data_size(energy.written_bytes)}. CO2 {carbon}.",
        f"Background load: {background_load(energy)}.",
        *(f"Note of the meter: {note}." for note in notes),
    )
    return Document(
        "joulecache: energy",
        "energy",
        headline=(Sentence(f"Energy: {total(energy)}, {energy.method}."),),
        warning=flagged("This window", energy),
        sections=(Section("", (parts, *map(Paragraph, text))),),
    )


def background_load(energy: Energy) -> str:
    """Say what else the machine did during a window."""
    seen, shares = energy.contamination, {name: share(each) for name, each in energy.contamination_shares.items()}
    if seen is None or not energy.duration_s:
        return "not known"
    if seen.resolution_s * _FEWEST_TICKS > seen.capacity_s:
        return "not known, the window is too short for the kernel's clock"
    cpus = round(seen.capacity_s / energy.duration_s)
    return (
        f"other processes used {shares['others']} of the machine's CPU time ({plural(cpus, 'CPU')}), and the hypervisor took "
        f"{shares['steal']} (steal); some task waited for a CPU {shares['cpu_stall']} of the time, for memory "
        f"{shares['memory_stall']}, for I/O {shares['io_stall']}"
    )
