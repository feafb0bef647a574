"""The energy of several processes of one host: what belongs to a process adds up, what belongs to the host counts once."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from joulecache.pipelines.core.codec import Number
from joulecache.pipelines.energy.measurement import COMPONENTS, Component, Contamination, Energy

_ONCE = "each instant of a host once"
_PARTLY = "only part measured"
_BOUNDS = ("value_j", "low_j", "high_j")
_WHOLE = 1 - 1e-9  # rounding must not leave a share


@dataclass(frozen=True)
class Span:
    """A time in which a process and its descendants were metered.

    Attributes:
        start_s: The clock at its start: the monotonic one, which all processes of a host share.
        end_s: The clock at its end.
        energy: Energy of the time in between.
    """

    start_s: Number
    end_s: Number
    energy: Energy

    @property
    def is_counted(self) -> bool:
        """Whether counters of the whole machine measured it (RAPL), which include the idle share."""
        return self.energy.components["idle"] is None


def host_energy(spans: Sequence[Span]) -> Energy:
    """Return the energy of processes of one host, none of which descends from another.

    CPU time, and what is modelled from it and from the memory of a process, adds up. Idle shares, GPUs, and counters of the whole machine
    are in the window of every process: they count once for each instant, in the longest window that covers it, one with counters if there
    is any. Where there are counters, they are the total, and its active part follows from the CPU time of all processes.
    """
    if len(spans) == 1:
        return spans[0].energy
    ordered = sorted(spans, key=lambda span: (not span.is_counted, span.start_s - span.end_s, span.start_s))
    covered = _Covered()
    shares = [covered.add(span) for span in ordered]
    of_counters = _Covered()
    counted = [span for span in ordered if span.is_counted]
    for span in counted:
        of_counters.add(span)
    modelled = [0.0 if span.is_counted else 1 - of_counters.share(span) for span in ordered]
    components = {name: _component(name, ordered, shares, modelled) for name in COMPONENTS}
    energies = [span.energy for span in ordered]
    total_j = sum(part.value_j for part in components.values() if part)
    peaks = [energy.peak_rss_bytes for energy in energies]
    carbon_g = _sum_known(energy.carbon_g for energy in energies)
    return Energy(
        components=components,
        active=_active(ordered, shares, modelled),
        duration_s=sum(share * span.energy.duration_s for span, share in zip(ordered, shares, strict=True)),
        cpu_s=math.fsum(energy.cpu_s for energy in energies),
        read_bytes=_sum_known(energy.read_bytes for energy in energies),
        written_bytes=_sum_known(energy.written_bytes for energy in energies),
        peak_rss_bytes=None if None in peaks else max(peak or 0 for peak in peaks),
        carbon_g=None if carbon_g is None else carbon_g * _ratio(total_j, sum(energy.total_j for energy in energies)),
        contamination=_contamination(energies, shares),
        update_s=_sum_known(
            None if energy.update_s is None else energy.update_s * share
            for energy, share in zip(energies, shares, strict=True)
        ),
    )


def process_energies(spans: Sequence[Span]) -> list[Energy]:
    """Return the part of each span in `host_energy`, which is their sum: its own memory, and of the rest the share of its CPU time."""
    host, of_counters = host_energy(spans), _Covered()
    for span in spans:
        if span.is_counted:
            of_counters.add(span)
    memory = [None if span.is_counted else _memory(span, 1 - of_counters.share(span)) for span in spans]
    known = [own for own in memory if own is not None]
    whole = functools.reduce(operator.add, known) if known else None
    parts = []
    for span, own in zip(spans, memory, strict=True):
        share = span.energy.cpu_s / host.cpu_s if host.cpu_s else 1 / len(spans)
        part, dram = host * share, host.components["dram"]
        moved = {name: _bound(own, name) - share * _bound(whole, name) for name in _BOUNDS}
        parts.append(
            replace(
                part,
                components={**part.components, "dram": dram and _moved(dram * share, moved)},
                active=_moved(part.active, moved),
                carbon_g=part.carbon_g and part.carbon_g * (1 + moved["value_j"] / part.total_j),
                read_bytes=span.energy.read_bytes,
                written_bytes=span.energy.written_bytes,
                peak_rss_bytes=span.energy.peak_rss_bytes,
            )
        )
    return parts


def _memory(span: Span, share: float) -> Component | None:
    dram = span.energy.components["dram"]
    return dram and dram * share


def _bound(part: Component | None, name: str) -> float:
    return float(getattr(part, name)) if part else 0.0


def _moved(part: Component, by_j: Mapping[str, float]) -> Component:
    """Add joules to each bound of a component."""
    value_j, low_j, high_j = (max(0.0, getattr(part, name) + by_j[name]) for name in _BOUNDS)
    return replace(part, value_j=value_j, low_j=min(low_j, value_j), high_j=max(high_j, value_j))


class _Covered:
    """The instants that some spans cover, as disjoint intervals."""

    def __init__(self) -> None:
        self._intervals: list[tuple[float, float]] = []

    def share(self, span: Span) -> float:
        """Return which share of a span is covered."""
        within = (min(end, span.end_s) - max(start, span.start_s) for start, end in self._intervals)
        length_s = span.end_s - span.start_s
        covered = sum(max(0.0, both) for both in within) / length_s if length_s > 0 else 0.0
        return covered if covered < _WHOLE else 1.0

    def add(self, span: Span) -> float:
        """Cover a span; return which share of it was not covered before."""
        new = 1 - self.share(span)
        start, end, apart = span.start_s, span.end_s, []
        for other in self._intervals:
            if other[1] < start or end < other[0]:
                apart.append(other)
            else:
                start, end = min(start, other[0]), max(end, other[1])
        self._intervals = [*apart, (start, end)]
        return new


def _component(
    name: str, spans: Sequence[Span], shares: Sequence[float], modelled: Sequence[float]
) -> Component | None:
    """Return a component of the host, given which share of each span counts: of the host's part, and of the process's own."""
    parts, is_part = [], False
    for span, share, own in zip(spans, shares, modelled, strict=True):
        factor = share if name in ("gpu", "idle") or span.is_counted else own
        part = span.energy.components[name]
        if part is not None and factor > 0:
            parts.append(part * factor)
        is_part = is_part or (part is None and factor > 0 and name != "idle")
    if not parts:
        return None
    whole = functools.reduce(operator.add, parts)
    if name == "idle":
        whole = replace(whole, scope=f"{whole.scope}; {_ONCE}")
    return replace(whole, source=f"{whole.source}; {_PARTLY}") if is_part else whole


def _active(spans: Sequence[Span], shares: Sequence[float], modelled: Sequence[float]) -> Component:
    """Return the active part: all GPUs, what is modelled from processes, and of counters the share of their CPU time."""
    texts = functools.reduce(operator.add, (span.energy.active for span in spans))
    values = []
    for bound in _BOUNDS:
        active_j = counted_j = counted_s = 0.0
        for span, share, own in zip(spans, shares, modelled, strict=True):
            active_j += share * _joules(span, bound, "gpu")
            if span.is_counted:
                counted_j += share * _joules(span, bound, "cpu", "dram")
                counted_s += share * span.energy.duration_s
            else:
                active_j += own * _joules(span, bound, "cpu", "dram")
        if counted_s:
            odds = sum(
                _odds(span, bound) * (1 - own) * span.energy.duration_s / counted_s
                for span, own in zip(spans, modelled, strict=True)
                if own < 1
            )
            active_j += counted_j * (1 - 1 / (1 + odds))
        values.append(active_j)
    value_j, low_j, high_j = values
    return replace(texts, value_j=value_j, low_j=min(low_j, value_j), high_j=max(high_j, value_j))


def _odds(span: Span, bound: str) -> float:
    """Return the ratio of active to idle joules of a span's processors."""
    if span.is_counted:
        active_j = getattr(span.energy.active, bound) - _joules(span, bound, "gpu")
        return _ratio(active_j, _joules(span, bound, "cpu", "dram") - active_j)
    opposite = {"low_j": "high_j", "high_j": "low_j"}.get(bound, bound)
    return _ratio(_joules(span, bound, "cpu"), _joules(span, opposite, "idle"))


def _ratio(part: float, other: float) -> float:
    return part / other if other > 0 else math.inf if part > 0 else 0.0


def _joules(span: Span, bound: str, *names: str) -> float:
    parts = (span.energy.components[name] for name in names)
    return float(sum(getattr(part, bound) for part in parts if part))


def _contamination(energies: Sequence[Energy], shares: Sequence[float]) -> Contamination | None:
    seen = [energy.contamination for energy in energies]
    scaled = [one * share for one, share in zip(seen, shares, strict=True) if one and share > 0]
    return functools.reduce(operator.add, scaled) if scaled and None not in seen else None


def _sum_known(values: Iterable[float | None]) -> float | None:
    """Return a sum; None if a value is not known."""
    found = [*values]
    known = [value for value in found if value is not None]
    return sum(known) if len(known) == len(found) else None
