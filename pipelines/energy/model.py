"""The model of power: joules of a CPU-second, of a processor's idle second, of a gigabyte-second, with their bounds."""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joulecache.pipelines.energy.measurement import Component, check_number


@functools.cache
def coefficients() -> dict[str, Any]:
    """Return the published coefficients of coefficients.json, each with its source."""
    return dict(json.loads(Path(__file__).with_name("coefficients.json").read_text("utf-8")))


@dataclass(frozen=True)
class PowerModel:
    """Hold what `PUE * (a * CPU_s + w_idle * vCPU * T + m * GB * T)` multiplies.

    `cpu` is a: the joules of one CPU-second above idle; `idle` w_idle: those of one processor's second; `dram` m: those of one
    gigabyte (2**30 bytes) for a second, None where `idle` holds the memory's. `method` is that of all three. `rows`
    are the figures as JSON values, for a passport.
    """

    cpu: Component
    idle: Component
    dram: Component | None
    method: str
    rows: dict[str, Any]


def published_model(provider: object, cpus: float) -> PowerModel:
    """Return the model with the published coefficients of a provider; ValueError for one that the table lacks."""
    table = coefficients()
    if not isinstance(provider, str) or provider not in table["providers"]:
        raise ValueError(f"unknown provider {provider!r}: allowed are {', '.join(table['providers'])}")
    rows = {**table["providers"][provider], "memory_w_per_gb": table["memory_w_per_gb"]}
    method = f"modelled:cpu-seconds@{table['version']}"

    def of(name: str, scope: str, resolution: str) -> Component:
        row = rows[name]
        return Component(row["central"], row["low"], row["high"], method, row["source"], scope, resolution)

    return PowerModel(
        cpu=of("active_j_per_cpu_s", "process tree", _CPU_RESOLUTION),
        idle=of("idle_w_per_vcpu", f"{cpus:g} vCPUs", "1 us"),
        dram=of("memory_w_per_gb", "process tree", "resident memory at both edges"),
        method=method,
        rows=rows,
    )


def given_model(idle_w: object, full_w: object, cpus: float) -> PowerModel:
    """Return the model with the user's own watts of the whole machine, idle and with every processor busy.

    Power is taken to be linear in between. Their error is not stated, so the bounds are the value itself. Raises ValueError unless
    both are finite numbers with 0 <= idle_w <= full_w.
    """
    check_number("idle_w", idle_w)
    check_number("full_w", full_w)
    assert isinstance(idle_w, int | float)
    assert isinstance(full_w, int | float)
    if full_w < idle_w:
        raise ValueError(f"full_w is {full_w!r}: give at least idle_w, {idle_w!r}")
    processors = os.cpu_count() or 1

    def of(watts: float, scope: str, resolution: str) -> Component:
        source = f"watts of the machine as given: {idle_w:g} idle and {full_w:g} with all processors busy"
        return Component(watts, watts, watts, "user", source, scope, resolution)

    return PowerModel(
        cpu=of((full_w - idle_w) / processors, "process tree", _CPU_RESOLUTION),
        idle=of(idle_w / processors, f"{cpus:g} of {processors} processors", "1 us"),
        dram=None,
        method="user",
        rows={
            name: {"low": watts, "central": watts, "high": watts, "source": "given"}
            for name, watts in (("idle_w", idle_w), ("full_w", full_w))
        },
    )


_CPU_RESOLUTION = f"1 us, and {1000 / os.sysconf('SC_CLK_TCK'):g} ms for each descendant alive at an edge"
