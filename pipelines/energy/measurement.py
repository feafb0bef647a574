"""Energy with a passport: components with their bounds, method, source, scope and resolution."""

from __future__ import annotations

import math
import operator
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, SupportsIndex

from joulecache.pipelines.core.notebook import Displayed

COMPONENTS = ("cpu", "dram", "gpu", "idle")
CONTAMINATION = ("others", "steal", "cpu_stall", "memory_stall", "io_stall")
_BOUNDS = ("value_j", "low_j", "high_j")
_TOTALS = ("total_j", "low_j", "high_j")
_ACTIVES = ("active_j", "active_low_j", "active_high_j")
_TEXTS = ("method", "source", "scope", "resolution")
_SUMMED = ("duration_s", "cpu_s", "read_bytes", "written_bytes", "carbon_g", "update_s")
_FEWEST_UPDATES = 10  # of a counter in a window: below, what one update hides is over a tenth of it
# Shares worth a flag: stolen time and swapping stretch whatever runs, a twentieth is what a quiet machine's own services take.
_MOST_STOLEN = 0.01
_MOST_BY_OTHERS = 0.05
_MOST_MEMORY_STALL = 0.01
_METHOD = re.compile(r"measured:(rapl|nvml)|modelled:[\w.@-]+|user")


def check_number(name: str, value: object, at_least: float = 0.0) -> None:
    """Raise ValueError unless `value` is a finite number of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not at_least <= value <= sys.float_info.max:
        raise ValueError(f"{name} is {value!r}: give a finite number of at least {at_least:g}")


def _check_keys(what: str, obj: object, keys: Iterable[str]) -> dict[str, Any]:
    if not isinstance(obj, dict) or set(obj) != set(keys):
        got = list(obj) if isinstance(obj, dict) else repr(obj)
        raise ValueError(f"{what} is {got}: give an object with exactly the keys {sorted(keys)}")
    return obj


def _count(count: SupportsIndex) -> int:
    if isinstance(count, bool) or not hasattr(count, "__index__") or operator.index(count) < 1:
        raise ValueError(f"energy divided by {count!r}: divide by a whole count of at least 1")
    return operator.index(count)


def _plus(left: Any, right: Any) -> Any:
    return None if left is None or right is None else left + right


def _union(separator: str, texts: Iterable[str]) -> str:
    """Join the distinct parts of joined texts, modelled ones first: a sum of many windows stays short."""
    parts = {part for text in texts for part in text.split(separator)}
    return separator.join(sorted(parts, key=lambda part: (not part.startswith("modelled"), part)))


@dataclass(frozen=True)
class Component:
    """Hold one part of an energy with its passport.

    `value_j`, `low_j`, `high_j`: joules, 0 <= low <= value <= high. `method`: `measured:rapl`, `measured:nvml`,
    `modelled:<id>` or `user`, in a sum joined by `+`, modelled ones first. `source` names the counter or the
    publication, `scope` what is covered, `resolution` how fine it is. Raises ValueError where this is not so.
    """

    value_j: float
    low_j: float
    high_j: float
    method: str
    source: str
    scope: str
    resolution: str

    def __post_init__(self) -> None:
        for name in _BOUNDS:
            check_number(name, getattr(self, name))
        if not self.low_j <= self.value_j <= self.high_j:
            got = f"low_j {self.low_j}, value_j {self.value_j}, high_j {self.high_j}"
            raise ValueError(f"{got}: give low_j <= value_j <= high_j")
        for name in _TEXTS:
            if not isinstance(text := getattr(self, name), str) or not text:
                raise ValueError(f"{name} is {text!r}: give a non-empty text")
        if not all(_METHOD.fullmatch(part) for part in self.method.split("+")):
            allowed = "measured:rapl, measured:nvml, modelled:<id>, user, or several joined by +"
            raise ValueError(f"method is {self.method!r}: allowed are {allowed}")

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
        return self * (1 / _count(count))


@dataclass(frozen=True, kw_only=True)
class Contamination:
    """Hold what the whole machine did in a window, in seconds; None: this kernel does not say.

    `capacity_s` is what all processors had to give, `machine_cpu_s` what they spent on anybody's work, `steal_s` what
    a hypervisor gave to others instead (/proc/stat). `cpu_stall_s`, `memory_stall_s` and `io_stall_s` are the time in
    which some task waited for a processor, for memory, for a disk (/proc/pressure): a program's own threads and reads
    count there too. `resolution_s` is how fine the first three are: a tick of the kernel's clock for each processor.
    `+` adds, `/ n` divides. Raises ValueError for numbers that are not finite or are negative.
    """

    capacity_s: float
    resolution_s: float
    machine_cpu_s: float | None
    steal_s: float | None
    cpu_stall_s: float | None
    memory_stall_s: float | None
    io_stall_s: float | None

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None or one.name in ("capacity_s", "resolution_s"):
                check_number(one.name, value)

    def __add__(self, other: Contamination) -> Contamination:
        if not isinstance(other, Contamination):
            return NotImplemented
        return Contamination(
            **{one.name: _plus(getattr(self, one.name), getattr(other, one.name)) for one in fields(self)}
        )

    def __truediv__(self, count: SupportsIndex) -> Contamination:
        n = _count(count)
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        shares: dict[str, Any] = {name: None if value is None else value / n for name, value in values.items()}
        return Contamination(**shares)


@dataclass(frozen=True, kw_only=True)
class Energy(Displayed):
    """Hold the energy of a window, or of a sum of windows, and what was seen beside it.

    `total_j`, `low_j`, `high_j`, `method` sum the `components` (cpu, dram, gpu, idle; None: not measured, not in the
    total); `method` begins with `modelled` as soon as one of them does. `active` is the total without the idle
    share, with a method of its own, since no counter tells active from idle; `active_j`, `active_low_j`,
    `active_high_j` are its joules. `duration_s` is monotonic time, `cpu_s` user and system seconds of the process
    tree. `read_bytes` and `written_bytes` are what the tree passed through read() and write(): page cache, pipes
    and /proc included, mapped files not (rchar and wchar of /proc/PID/io). `peak_rss_bytes` is the most resident
    memory seen: the peak itself in a process without children whose high-water mark rose in the window, else a
    lower bound, the larger of the window's edges. `carbon_g` is grams of CO2. `contamination` is what the machine did
    beside it. `update_s` is the period of the slowest counter that was read, once for each window. None: not measured.
    `flags` says in words what makes the figure doubtful: a window too short for its counters, a machine that was not
    the window's alone. Nothing is dropped for it.

    `+` adds, but keeps the larger peak. A component known on one side only is kept, and its source says so; any
    other figure known on one side only becomes None. `/ n` divides by a count, but for the peak.
    Raises ValueError for numbers that are not finite or are negative, and for a count below 1.
    """

    components: Mapping[str, Component | None]
    active: Component
    duration_s: float
    cpu_s: float
    read_bytes: float | None
    written_bytes: float | None
    peak_rss_bytes: float | None
    carbon_g: float | None
    contamination: Contamination | None = None
    update_s: float | None = None
    total_j: float = field(init=False)
    low_j: float = field(init=False)
    high_j: float = field(init=False)
    method: str = field(init=False)
    active_j: float = field(init=False)
    active_low_j: float = field(init=False)
    active_high_j: float = field(init=False)
    flags: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        _check_keys("components", self.components, COMPONENTS)
        known = [part for name in COMPONENTS if (part := self.components[name]) is not None]
        if not known:
            raise ValueError("components are all None: what was not measured is None instead of an Energy")
        for name in (*_SUMMED, "peak_rss_bytes"):
            value = getattr(self, name)
            if value is not None or name in ("duration_s", "cpu_s"):
                check_number(name, value)
        for bound, total, active in zip(_BOUNDS, _TOTALS, _ACTIVES, strict=True):
            object.__setattr__(self, total, sum(getattr(part, bound) for part in known))
            object.__setattr__(self, active, getattr(self.active, bound))
        object.__setattr__(self, "method", _union("+", (part.method for part in known)))
        if self.active_j > self.total_j * (1 + 1e-9):
            raise ValueError(f"active is {self.active_j} J: give a part of the total, {self.total_j} J")
        object.__setattr__(self, "flags", tuple(self._flags()))

    @property
    def contamination_shares(self) -> dict[str, float | None]:
        """What the machine did beside the window, as shares.

        `others` and `steal` are shares of the processors' time, used by processes that are not of the tree and taken by a
        hypervisor; `cpu_stall`, `memory_stall` and `io_stall` shares of the window's. None: not known.
        """
        seen = self.contamination

        def share(seconds: float | None, whole_s: float) -> float | None:
            return None if seconds is None or not whole_s else max(0.0, seconds) / whole_s

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
            yield f"too short: {updates:.1f} updates of the slowest counter a window, {_FEWEST_UPDATES} are needed"
        seen = self.contamination
        if seen is not None and seen.capacity_s:
            coarse, shares = seen.resolution_s / seen.capacity_s, self.contamination_shares
            for name, most, slack, text in (
                ("others", _MOST_BY_OTHERS, coarse, "other processes used {:.0%} of the processors"),
                ("steal", _MOST_STOLEN, coarse, "the hypervisor took {:.0%} of the processors' time"),
                ("memory_stall", _MOST_MEMORY_STALL, 0.0, "memory was short for {:.0%} of the time"),
            ):
                share = shares[name]
                if share is not None and share > most + slack:
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

    def __truediv__(self, count: SupportsIndex) -> Energy:
        n = _count(count)
        shares: dict[str, Any] = {name: getattr(self, name) for name in _SUMMED}
        shares = {name: None if value is None else value / n for name, value in shares.items()}
        components = {name: part and part / n for name, part in self.components.items()}
        seen = self.contamination and self.contamination / n
        return replace(self, components=components, active=self.active / n, contamination=seen, **shares)

    def __str__(self) -> str:
        # three significant digits and at least one decimal: a small energy must not print as 0
        digits = max(1, 2 - math.floor(math.log10(self.total_j))) if self.total_j > 0 else 1
        bounds = f"{self.low_j:.{digits}f} to {self.high_j:.{digits}f}"
        return f"{self.total_j:.{digits}f} J ({bounds}, {self.method})"

    def to_json(self) -> dict[str, object]:
        """Return every field as JSON values; None where not measured."""
        return asdict(self) | {"flags": list(self.flags)}

    @classmethod
    def from_json(cls, obj: object) -> Energy:
        """Return the Energy that `to_json` wrote, equal to the last bit.

        `contamination`, `update_s` and `flags` may be missing: earlier versions did not record them. Raises ValueError,
        naming the field, for other missing or unknown keys, bad values, and sums that disagree.
        """
        if isinstance(obj, dict):
            obj = {"contamination": None, "update_s": None, "flags": None, **obj}
        data = dict(_check_keys("energy", obj, [field.name for field in fields(cls)]))
        derived = {field.name: data.pop(field.name) for field in fields(cls) if not field.init}
        del derived["flags"]  # of figures that are checked; what is worth a flag may change
        keys = [field.name for field in fields(Component)]
        parts = _check_keys("components", data["components"], COMPONENTS)
        data["components"] = {
            name: None if part is None else Component(**_check_keys(name, part, keys)) for name, part in parts.items()
        }
        data["active"] = Component(**_check_keys("active", data["active"], keys))
        if (seen := data["contamination"]) is not None:
            names = [field.name for field in fields(Contamination)]
            data["contamination"] = Contamination(**_check_keys("contamination", seen, names))
        energy = cls(**data)
        for name, value in derived.items():
            if value != getattr(energy, name):
                raise ValueError(f"{name} is {value!r}: the components give {getattr(energy, name)!r}")
        return energy
