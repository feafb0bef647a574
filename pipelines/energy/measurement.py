"""Energy and its components: joules with bounds and provenance."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, SupportsIndex

from joulecache.pipelines.core.checks import check_number, check_text, shown
from joulecache.pipelines.core.codec import JSON, UNCHECKED, Number, from_json, to_json
from joulecache.pipelines.core.notebook import Displayed

COMPONENTS = ("cpu", "dram", "gpu", "idle")
CONTAMINATION = ("others", "steal", "cpu_stall", "memory_stall", "io_stall")
"""Names of `Energy.contamination_shares`."""

_BOUNDS = ("value_j", "low_j", "high_j")
_TOTALS = ("total_j", "low_j", "high_j")
_ACTIVES = ("active_j", "active_low_j", "active_high_j")
_TEXTS = ("method", "source", "scope", "resolution")
_SUMMED = ("duration_s", "cpu_s", "read_bytes", "written_bytes", "carbon_g", "update_s")
_METHOD = re.compile(r"measured:(rapl|nvml)|modelled:[\w.@-]+|user")

_FEWEST_UPDATES = 10  # of a counter in a window: with fewer, one update is over a tenth of the value
# Stolen time and swapping stretch everything that runs; the services of a quiet machine use up to 5% of the processors.
_STEAL_LIMIT = 0.01
_OTHERS_LIMIT = 0.05
_MEMORY_STALL_LIMIT = 0.01


def _divisor(count: SupportsIndex) -> int:
    if isinstance(count, bool) or not hasattr(count, "__index__") or operator.index(count) < 1:
        raise ValueError(f"energy can be divided by an integer of at least 1, got {shown(count)}")
    return operator.index(count)


def _plus(left: Any, right: Any) -> Any:
    return None if left is None or right is None else left + right


def _union(separator: str, texts: Iterable[str]) -> str:
    """Join the distinct parts of joined texts, modelled ones first: the text of a sum of many windows stays short."""
    parts = {part for text in texts for part in text.split(separator)}
    return separator.join(sorted(parts, key=lambda part: (not part.startswith("modelled"), part)))


@dataclass(frozen=True)
class Component:
    """One part of an energy, with its provenance.

    `+` adds two components, `* factor` scales one, `/ n` divides one by a count.

    Attributes:
        value_j: Joules.
        low_j: Lower bound, at most `value_j`.
        high_j: Upper bound, at least `value_j`.
        method: ``measured:rapl``, ``measured:nvml``, ``modelled:<id>`` or ``user``; in a sum several of them, joined by ``+``,
            modelled ones first.
        source: The counter or the publication.
        scope: What the value covers: the machine, the process tree.
        resolution: The smallest difference in energy and in time that it shows.

    Raises:
        ValueError: A number is negative or not finite, the bounds do not enclose the value, or a text is empty.
    """

    value_j: Number
    low_j: Number
    high_j: Number
    method: str
    source: str
    scope: str
    resolution: str

    def __post_init__(self) -> None:
        for name in _BOUNDS:
            check_number(name, getattr(self, name), 0)
        if not self.low_j <= self.value_j <= self.high_j:
            raise ValueError(
                f"a component needs low_j <= value_j <= high_j, got {self.low_j}, {self.value_j} and {self.high_j}"
            )
        for name in _TEXTS:
            check_text(name, getattr(self, name))
        if not all(_METHOD.fullmatch(part) for part in self.method.split("+")):
            raise ValueError(
                "method must be measured:rapl, measured:nvml, modelled:<id>, user, or several joined by +, "
                f"got {shown(self.method)}"
            )

    def __add__(self, other: Component) -> Component:
        if not isinstance(other, Component):
            return NotImplemented
        sums: dict[str, Any] = {name: getattr(self, name) + getattr(other, name) for name in _BOUNDS}
        for name in _TEXTS:
            separator = "+" if name == "method" else "; "
            sums[name] = _union(separator, (getattr(self, name), getattr(other, name)))
        return Component(**sums)

    def __mul__(self, factor: float) -> Component:
        return replace(self, **{name: getattr(self, name) * factor for name in _BOUNDS})

    def __truediv__(self, count: SupportsIndex) -> Component:
        return self * (1 / _divisor(count))


@dataclass(frozen=True, kw_only=True)
class Contamination:
    """What the whole machine did during a window, in seconds; None if the kernel does not say.

    `+` adds two windows, `* factor` scales one, `/ n` divides by a count.

    Attributes:
        capacity_s: Processor time that the machine had: processors times duration.
        resolution_s: Resolution of `machine_cpu_s` and `steal_s`: one tick of the kernel's clock per processor.
        machine_cpu_s: Processor time that all processes used (/proc/stat).
        steal_s: Processor time that the hypervisor gave to other virtual machines (/proc/stat).
        cpu_stall_s: Time during which some task waited for a processor (/proc/pressure). In this and the next two, waits inside
            the metered process tree count too.
        memory_stall_s: Time during which some task waited for memory.
        io_stall_s: Time during which some task waited for a disk.

    Raises:
        ValueError: A number is negative or not finite.
    """

    capacity_s: Number
    resolution_s: Number
    machine_cpu_s: Number | None
    steal_s: Number | None
    cpu_stall_s: Number | None
    memory_stall_s: Number | None
    io_stall_s: Number | None

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None or one.name in ("capacity_s", "resolution_s"):
                check_number(one.name, value, 0)

    def __add__(self, other: Contamination) -> Contamination:
        if not isinstance(other, Contamination):
            return NotImplemented
        return Contamination(
            **{one.name: _plus(getattr(self, one.name), getattr(other, one.name)) for one in fields(self)}
        )

    def __mul__(self, factor: float) -> Contamination:
        return self._scaled(lambda seconds: seconds * factor)

    def __truediv__(self, count: SupportsIndex) -> Contamination:
        n = _divisor(count)
        return self._scaled(lambda seconds: seconds / n)

    def _scaled(self, scale: Callable[[Any], Any]) -> Contamination:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        scaled: dict[str, Any] = {name: None if value is None else scale(value) for name, value in values.items()}
        return Contamination(**scaled)


@dataclass(frozen=True, kw_only=True)
class Energy(Displayed):
    """The energy of a window, or of a sum of windows. What was not measured is None, never 0.

    `+` adds every value, except that it keeps the larger peak. A component that only one side has is kept, and its source says so; any
    other value that only one side has becomes None. `* factor` scales everything except the peak, `/ n` divides it by a count.

    Attributes:
        components: Parts by name: ``cpu``, ``dram``, ``gpu``, ``idle``. One that is None is not in the total.
        active: The total without the idle share. It has its own method, since no counter separates active from idle.
        duration_s: Elapsed (monotonic) time.
        cpu_s: User and system time of the process tree.
        read_bytes: Bytes that the process tree passed through read() (rchar of /proc/PID/io): page cache, pipes and /proc
            included, mapped files not.
        written_bytes: The same for write() (wchar).
        peak_rss_bytes: The most resident memory seen: the true peak for a process without children whose high-water mark rose
            during the window, else the larger value of the window's two edges, a lower bound.
        carbon_g: Grams of CO2 equivalent.
        contamination: What the whole machine did during the window.
        update_s: Update period of the slowest counter that was read, summed over windows.
        total_j: Joules of all components.
        low_j: Lower bound of `total_j`.
        high_j: Upper bound of `total_j`.
        method: Methods of all components; starts with ``modelled`` as soon as one of them is modelled.
        active_j: Joules of `active`.
        active_low_j: Lower bound of `active_j`.
        active_high_j: Upper bound of `active_j`.
        flags: Reasons to doubt the value: a window too short for its counters, a machine that did other work. The value is kept.

    Raises:
        ValueError: A number is negative or not finite, no component is known, or `active` exceeds the total.
    """

    components: Mapping[str, Component | None]
    active: Component
    duration_s: Number
    cpu_s: Number
    read_bytes: Number | None
    written_bytes: Number | None
    peak_rss_bytes: Number | None
    carbon_g: Number | None
    contamination: Contamination | None = None
    update_s: Number | None = None
    total_j: float = field(init=False)
    low_j: float = field(init=False)
    high_j: float = field(init=False)
    method: str = field(init=False)
    active_j: float = field(init=False)
    active_low_j: float = field(init=False)
    active_high_j: float = field(init=False)
    flags: tuple[str, ...] = field(init=False, metadata=UNCHECKED)

    def __post_init__(self) -> None:
        if set(self.components) != set(COMPONENTS):
            raise ValueError(f"components must have the keys {', '.join(COMPONENTS)}, got {shown([*self.components])}")
        known = [part for name in COMPONENTS if (part := self.components[name]) is not None]
        if not known:
            raise ValueError("an energy needs at least one component, got None for all: use None instead of an Energy")
        for name in (*_SUMMED, "peak_rss_bytes"):
            value = getattr(self, name)
            if value is not None or name in ("duration_s", "cpu_s"):
                check_number(name, value, 0)
        for bound, total, active in zip(_BOUNDS, _TOTALS, _ACTIVES, strict=True):
            object.__setattr__(self, total, sum(getattr(part, bound) for part in known))
            object.__setattr__(self, active, getattr(self.active, bound))
        object.__setattr__(self, "method", _union("+", (part.method for part in known)))
        if self.active_j > self.total_j * (1 + 1e-9):
            raise ValueError(f"active must be part of the total, {self.total_j} J, got {self.active_j} J")
        object.__setattr__(self, "flags", tuple(self._flags()))

    @property
    def contamination_shares(self) -> dict[str, float | None]:
        """Background load during the window, as shares from 0 to 1 by the names in `CONTAMINATION`; None if unknown.

        ``others`` is the share of all processors' time that processes outside the tree used, ``steal`` the share that the hypervisor
        gave to other virtual machines. ``cpu_stall``, ``memory_stall`` and ``io_stall`` are shares of the window's duration.
        """
        seen = self.contamination

        def share(seconds: float | None, whole_s: float) -> float | None:
            # the kernel counts in ticks, which may begin before the window
            return None if seconds is None or not whole_s else min(max(0.0, seconds) / whole_s, 1.0)

        if seen is None:
            return dict.fromkeys(CONTAMINATION)
        others_s = None if seen.machine_cpu_s is None else seen.machine_cpu_s - self.cpu_s
        return {
            "others": share(others_s, seen.capacity_s),
            "steal": share(seen.steal_s, seen.capacity_s),
            "cpu_stall": share(seen.cpu_stall_s, self.duration_s),
            "memory_stall": share(seen.memory_stall_s, self.duration_s),
            "io_stall": share(seen.io_stall_s, self.duration_s),
        }

    def _flags(self) -> Iterator[str]:
        if self.update_s is not None and self.update_s * _FEWEST_UPDATES > self.duration_s:
            updates = self.duration_s / self.update_s
            yield f"too short: {updates:.1f} updates of the slowest counter per window, at least {_FEWEST_UPDATES} are needed"
        seen = self.contamination
        if seen is not None and seen.capacity_s:
            coarse, shares = seen.resolution_s / seen.capacity_s, self.contamination_shares
            for name, limit, slack, text in (
                ("others", _OTHERS_LIMIT, coarse, "other processes used {:.0%} of the processors"),
                ("steal", _STEAL_LIMIT, coarse, "the hypervisor took {:.0%} of the processors' time"),
                ("memory_stall", _MEMORY_STALL_LIMIT, 0.0, "memory was short for {:.0%} of the time"),
            ):
                share = shares[name]
                if share is not None and share > limit + slack:
                    yield text.format(share)

    def __add__(self, other: Energy) -> Energy:
        if not isinstance(other, Energy):
            return NotImplemented
        sums = {name: _plus(getattr(self, name), getattr(other, name)) for name in _SUMMED}
        components = {name: _plus(self.components[name], other.components[name]) for name in COMPONENTS}
        for name, both in components.items():
            if both is None and (one := self.components[name] or other.components[name]):
                components[name] = replace(one, source=_union("; ", (one.source, "only part measured")))
        mine, others = self.peak_rss_bytes, other.peak_rss_bytes
        peak = None if mine is None or others is None else max(mine, others)
        seen = _plus(self.contamination, other.contamination)
        return Energy(
            components=components, active=self.active + other.active, peak_rss_bytes=peak, contamination=seen, **sums
        )

    def __mul__(self, factor: float) -> Energy:
        return self._scaled(lambda part: part * factor)

    def __truediv__(self, count: SupportsIndex) -> Energy:
        n = _divisor(count)
        return self._scaled(lambda part: part / n)

    def _scaled(self, scale: Callable[[Any], Any]) -> Energy:
        values: dict[str, Any] = {name: getattr(self, name) for name in (*_SUMMED, "active", "contamination")}
        values = {name: None if value is None else scale(value) for name, value in values.items()}
        components = {name: None if part is None else scale(part) for name, part in self.components.items()}
        return replace(self, components=components, **values)

    def __str__(self) -> str:
        # three significant digits and at least one decimal: a small energy must not print as 0
        digits = max(1, 2 - math.floor(math.log10(self.total_j))) if self.total_j > 0 else 1
        bounds = f"{self.low_j:.{digits}f} to {self.high_j:.{digits}f}"
        return f"{self.total_j:.{digits}f} J ({bounds}, {self.method})"

    def to_json(self) -> dict[str, JSON]:
        """Return every field as JSON values; null where not measured."""
        return to_json(self)

    @classmethod
    def from_json(cls, body: object) -> Energy:
        """Return the energy that `to_json` encoded. Files of earlier versions lack `contamination`, `update_s` and `flags`.

        Raises:
            ValueError: A key is missing or unknown, a value is not allowed, or a total is not the sum of its components.
        """
        return from_json(cls, body)
