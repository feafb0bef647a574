"""The power model: joules of a CPU-second, of a processor's idle second and of a gigabyte-second, with bounds."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joulecache.pipelines.core.checks import check_choice, check_number
from joulecache.pipelines.energy.measurement import Component
from joulecache.pipelines.energy.provenance import Coefficient

_CPU_RESOLUTION = f"1 us, and {1000 / os.sysconf('SC_CLK_TCK'):g} ms for each descendant alive at an edge"


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """The content of coefficients.json; `providers` holds coefficients by provider and name."""

    version: int
    formula: str
    providers: Mapping[str, Mapping[str, Coefficient]]
    memory_w_per_gb: Coefficient
    storage_w_per_tb: Coefficient
    rapl_update_s: Coefficient
    rapl_domain_limit_w: Coefficient


@functools.cache
def coefficients() -> Coefficients:
    """Read the published coefficients."""

    def parse(row: dict[str, Any]) -> Any:
        return Coefficient(**row) if "central" in row else row

    path = Path(__file__).with_name("coefficients.json")
    return Coefficients(**json.loads(path.read_text("utf-8"), object_hook=parse))


@dataclass(frozen=True)
class PowerModel:
    """The coefficients of ``PUE * (a * CPU_s + w_idle * vCPU * T + m * GB * T)``.

    Attributes:
        cpu: a: joules of one CPU-second above idle.
        idle: w_idle: joules of one processor in one second.
        dram: m: joules of one gigabyte (2**30 bytes) in one second; None where `idle` includes the memory.
        method: The method of all three.
        rows: The coefficients by name.
    """

    cpu: Component
    idle: Component
    dram: Component | None
    method: str
    rows: Mapping[str, Coefficient]


def component(row: Coefficient, method: str, scope: str, resolution: str) -> Component:
    """Return a coefficient with bounds as the component of one unit, such as a second or a gigabyte-second."""
    assert row.low is not None
    assert row.high is not None
    return Component(row.central, row.low, row.high, method, row.source, scope, resolution)


def published_model(provider: str, cpus: float) -> PowerModel:
    """Return the model with the published coefficients of a provider; ValueError for an unknown one."""
    table = coefficients()
    check_choice("provider", provider, tuple(table.providers))
    rows = {**table.providers[provider], "memory_w_per_gb": table.memory_w_per_gb}
    method = f"modelled:cpu-seconds@{table.version}"
    return PowerModel(
        cpu=component(rows["active_j_per_cpu_s"], method, "process tree", _CPU_RESOLUTION),
        idle=component(rows["idle_w_per_vcpu"], method, f"{cpus:g} vCPUs", "1 us"),
        dram=component(rows["memory_w_per_gb"], method, "process tree", "resident memory at both edges"),
        method=method,
        rows=rows,
    )


def given_model(idle_w: object, full_w: object, cpus: float) -> PowerModel:
    """Return the model with the user's watts of the whole machine, idle and with all processors busy.

    Power is assumed to be linear in between. The error of these watts is unknown: the bounds equal the value.

    Raises:
        ValueError: The watts are not finite numbers with 0 <= idle_w <= full_w.
    """
    idle, full = check_number("idle_w", idle_w, 0), check_number("full_w", full_w, 0)
    if full < idle:
        raise ValueError(f"full_w must be at least idle_w, {idle}, got {full}")
    processors = os.cpu_count() or 1

    source = f"watts of the machine as given: {idle:g} idle and {full:g} with all processors busy"

    def given(watts: float, scope: str, resolution: str) -> Component:
        return Component(watts, watts, watts, "user", source, scope, resolution)

    return PowerModel(
        cpu=given((full - idle) / processors, "process tree", _CPU_RESOLUTION),
        idle=given(idle / processors, f"{cpus:g} of {processors} processors", "1 us"),
        dram=None,
        method="user",
        rows={
            name: Coefficient(low=watts, central=watts, high=watts, source="given")
            for name, watts in (("idle_w", idle), ("full_w", full))
        },
    )
