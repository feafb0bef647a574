"""Energy and its components: sums, shares, bounds and JSON against brute force."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulecache.pipelines.energy import COMPONENTS, Component, Contamination, Energy

MODEL = "modelled:cpu-seconds@1"


joules = st.floats(0, 1e12)
texts = st.sampled_from(["x", "y", "x; y", "z"])
methods = st.sampled_from(["measured:rapl", "measured:nvml", MODEL, "user"])
maybe = st.none() | st.integers(0, 10**12) | joules


@st.composite
def components(draw: st.DrawFn) -> Component:
    low, value, high = sorted(draw(st.tuples(joules, joules, joules)))
    return Component(value, low, high, draw(methods), draw(texts), draw(texts), draw(texts))


seconds = st.floats(0, 1e9)
STALLS = ("cpu_stall_s", "memory_stall_s", "io_stall_s")


contaminations = st.builds(
    Contamination,
    capacity_s=seconds,
    resolution_s=seconds,
    **dict.fromkeys(("machine_cpu_s", "steal_s", *STALLS), st.none() | seconds),
)


@st.composite
def energies(draw: st.DrawFn) -> Energy:
    parts: dict[str, Component | None] = {name: draw(st.none() | components()) for name in COMPONENTS}
    parts["cpu"] = parts["cpu"] or (draw(components()) if not any(parts.values()) else None)
    active = next(part for part in parts.values() if part is not None)
    rest: dict[str, Any] = {
        name: draw(maybe) for name in ("read_bytes", "written_bytes", "peak_rss_bytes", "carbon_g", "update_s")
    }
    rest["contamination"] = draw(st.none() | contaminations)
    return Energy(components=parts, active=active, duration_s=draw(joules), cpu_s=draw(joules), **rest)


def close(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-300)


@given(energies(), energies())
def test_sum_adds_every_value(a: Energy, b: Energy) -> None:
    total = a + b
    for name in ("total_j", "low_j", "high_j", "active_j", "active_low_j", "active_high_j", "duration_s", "cpu_s"):
        assert close(getattr(total, name), getattr(a, name) + getattr(b, name))
    for name in ("read_bytes", "written_bytes", "carbon_g", "update_s", "contamination"):
        left, right = getattr(a, name), getattr(b, name)
        known = left is not None and right is not None
        assert getattr(total, name) == (left + right if known else None)
    peaks = (a.peak_rss_bytes, b.peak_rss_bytes)
    assert total.peak_rss_bytes == (None if None in peaks else max(peak for peak in peaks if peak is not None))
    assert total == b + a
    assert total.low_j <= total.total_j <= total.high_j


@given(energies(), energies())
def test_sum_with_a_modelled_part_is_modelled_and_partial_components_say_so(a: Energy, b: Energy) -> None:
    total = a + b
    assert set(total.method.split("+")) == set(a.method.split("+")) | set(b.method.split("+"))
    assert total.method.startswith("modelled") == ("modelled" in a.method or "modelled" in b.method)
    for name in COMPONENTS:
        left, right, part = a.components[name], b.components[name], total.components[name]
        assert (part is None) == (left is None and right is None)
        if part is not None:
            assert ("only part measured" in part.source) == (left is None or right is None)
    assert len((total + total).method) == len(total.method)


@given(energies(), st.integers(1, 10**6))
def test_division_divides_all_but_the_peak(a: Energy, n: int) -> None:
    each = a / n
    for name in ("total_j", "low_j", "high_j", "active_j", "active_high_j", "duration_s", "cpu_s"):
        assert close(getattr(each, name) * n, getattr(a, name))
    for name in ("read_bytes", "written_bytes", "carbon_g"):
        value = getattr(a, name)
        assert getattr(each, name) == (None if value is None else value / n)
    assert each.peak_rss_bytes == a.peak_rss_bytes
    assert each.method == a.method


@given(energies())
def test_json_round_trips_to_the_last_bit(a: Energy) -> None:
    assert Energy.from_json(json.loads(json.dumps(a.to_json(), allow_nan=False))) == a


def component(value_j: float = 12.3, low_j: float = 8.1, high_j: float = 20.2, method: str = MODEL) -> Component:
    return Component(value_j, low_j, high_j, method, "a table", "process tree", "1 us")


def energy(part: Component | None = None, **changes: Any) -> Energy:
    part = part or component()
    figures: dict[str, Any] = {
        "components": {"cpu": part, "dram": None, "gpu": None, "idle": None},
        "active": part,
        "duration_s": 2.0,
        "cpu_s": 1.0,
        "read_bytes": 10,
        "written_bytes": None,
        "peak_rss_bytes": 5,
        "carbon_g": None,
    }
    return Energy(**figures | changes)


def test_energy_prints_value_bounds_and_method() -> None:
    assert str(energy()) == "12.3 J (8.1 to 20.2, modelled:cpu-seconds@1)"
    assert str(energy(component(1234.5, 0, 2000))) == "1234.5 J (0.0 to 2000.0, modelled:cpu-seconds@1)"
    small = component(0.00123, 0.001, 0.002, "measured:rapl")
    assert str(energy(small)) == "0.00123 J (0.00100 to 0.00200, measured:rapl)"
    assert str(energy(component(0, 0, 0))) == "0.0 J (0.0 to 0.0, modelled:cpu-seconds@1)"


@pytest.mark.parametrize("count", [0, -3, True, 2.0, "2", None])
def test_division_refuses_what_is_not_a_count(count: Any) -> None:
    with pytest.raises(ValueError, match="integer of at least 1"):
        energy() / count
    with pytest.raises(ValueError, match="integer of at least 1"):
        component() / count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low_j": 13.0}, "low_j <= value_j"),
        ({"high_j": 12.0}, "low_j <= value_j"),
        ({"low_j": -1.0}, "low_j must be .* at least 0, got -1"),
        ({"value_j": math.nan}, "value_j must be .*, got nan"),
        ({"high_j": 10**400}, "high_j must be .*, got 1000"),
        ({"method": "guessed"}, "must be measured:rapl"),
        ({"source": ""}, "source must be .*, got ''"),
        ({"scope": None}, "scope must be .*, got None"),
    ],
)
def test_component_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(component(), **changes)


NOTHING: dict[str, None] = dict.fromkeys(COMPONENTS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"components": NOTHING}, "at least one component"),
        ({"components": {"cpu": component()}}, "components must have the keys cpu, dram"),
        ({"duration_s": None}, "duration_s must be .*, got None"),
        ({"cpu_s": -1.0}, "cpu_s must be .*, got -1"),
        ({"carbon_g": math.nan}, "carbon_g must be .*, got nan"),
        ({"active": component(99, 99, 99)}, "active must be part of the total"),
    ],
)
def test_energy_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        energy(**changes)


def spoil(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda obj: obj | changes


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (spoil(total_j=99.0), "at total_j: must be 12.3.*, got 99.0"),
        (spoil(method="measured:rapl"), "at method: must be .*, got 'measured:rapl'"),
        (spoil(watts=1), "at watts: unknown key"),
        (lambda obj: [obj], "at the top: must be a dictionary"),
        (spoil(active={}), "at active/value_j: field required"),
        (spoil(duration_s=True), "at duration_s: must be 1.*, got True"),
        (lambda obj: obj | {"components": obj["components"] | {"cpu": {**obj["active"], "low_j": -1}}}, "low_j"),
    ],
)
def test_from_json_refuses(spoiled: Callable[[dict[str, Any]], object], message: str) -> None:
    good = json.loads(json.dumps(energy().to_json()))
    assert Energy.from_json(good) == energy()
    with pytest.raises(ValueError, match=message):
        Energy.from_json(spoiled(good))


def quiet(**changes: float | None) -> Contamination:
    figures: dict[str, Any] = {"capacity_s": 4.0, "resolution_s": 0.02, "machine_cpu_s": 1.1, "steal_s": 0.0}
    return Contamination(**figures | dict.fromkeys(STALLS, 0.0) | changes)


@pytest.mark.parametrize(
    ("contamination", "update_s", "flags"),
    [
        (None, None, ()),
        (quiet(), 0.2, ()),
        (quiet(), 0.21, ("too short: 9.5 updates of the slowest counter per window, at least 10 are needed",)),
        (quiet(machine_cpu_s=1.21), None, ()),  # 5%, and what the ticks may hide
        (quiet(machine_cpu_s=1.6), None, ("other processes used 15% of the processors",)),
        (quiet(machine_cpu_s=None, steal_s=None), None, ()),
        (quiet(steal_s=0.05), None, ()),
        (quiet(steal_s=0.5), None, ("the hypervisor took 12% of the processors' time",)),
        (quiet(memory_stall_s=0.1), None, ("memory was short for 5% of the time",)),
        (quiet(cpu_stall_s=2.0, io_stall_s=2.0), None, ()),  # a program's own threads and reads cause that
    ],
)
def test_flags(contamination: Contamination | None, update_s: float | None, flags: tuple[str, ...]) -> None:
    seen = energy(contamination=contamination, update_s=update_s)
    assert seen.flags == flags
    assert seen.to_json()["flags"] == list(flags)
    # a share is the same for many windows and for one image
    assert (seen + seen).flags == (seen / 1000).flags == (seen / 3 + seen / 3).flags == flags


def test_contamination_shares() -> None:
    seen = quiet(machine_cpu_s=2.0, steal_s=0.2, cpu_stall_s=1.0, memory_stall_s=None, io_stall_s=0.5)
    assert energy(contamination=seen).contamination_shares == {
        "others": 0.25,
        "steal": 0.05,
        "cpu_stall": 0.5,
        "memory_stall": None,
        "io_stall": 0.25,
    }
    ticks = quiet(machine_cpu_s=9.5, steal_s=4.1, cpu_stall_s=2.1)  # that began before the window
    assert set(energy(contamination=ticks).contamination_shares.values()) == {0.0, 1.0}
    assert energy(contamination=ticks).flags[0] == "other processes used 100% of the processors"
    assert set(energy().contamination_shares.values()) == {None}
    nothing = Contamination(
        **dict.fromkeys(json.loads(json.dumps(energy(contamination=seen).to_json()))["contamination"], 0.0)
    )
    assert energy(contamination=nothing, duration_s=0.0).flags == ()


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, True, "1"])
def test_contamination_refuses_values_that_are_not_durations(value: Any) -> None:
    with pytest.raises(ValueError, match="steal_s must be"):
        quiet(steal_s=value)
    with pytest.raises(ValueError, match="capacity_s must be"):
        quiet(capacity_s=value)


def test_json_of_earlier_versions_is_read() -> None:
    old = json.loads(json.dumps(energy().to_json()))
    for name in ("contamination", "update_s", "flags"):
        del old[name]
    assert Energy.from_json(old) == energy()
    # the rules of flags may change between versions
    assert Energy.from_json(energy().to_json() | {"flags": ["an old one"]}) == energy()
