"""Small audits, and known energies, for tests."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from joulecache.pipelines.auditing import auditor
from joulecache.pipelines.auditing.config import Budget
from joulecache.pipelines.energy import Component, Energy

QUICK = Budget(shortest_run_s=0.0, stage_run_s=0.0)
"""Runs of one epoch, however short, and stages over one batch."""
NO_STAGES = Budget(shortest_run_s=0.0, stage_run_s=None)

audit = functools.partial(auditor.audit, budget=QUICK)

CHAIN = "decode|resize(24)|random_crop(20) || flip_lr"
"""The chain of the fixture `chain_audit`."""


def energy(
    active_j: float,
    gpu_j: float | None = None,
    idle_j: float | None = None,
    *,
    duration_s: float = 1.0,
    bounds: tuple[float, float] = (1.0, 1.0),
    method: str = "measured:rapl",
) -> Energy:
    """Return an energy; `bounds` are the low and high joules over the value."""

    def part(value_j: float | None, method: str) -> Component | None:
        if value_j is None:
            return None
        return Component(value_j, value_j * bounds[0], value_j * bounds[1], method, "one", "all", "1 J")

    cpu, gpu = part(active_j, method), part(gpu_j, "measured:nvml")
    assert cpu is not None
    return Energy(
        components={"cpu": cpu, "dram": None, "gpu": gpu, "idle": part(idle_j, method)},
        active=cpu if gpu is None else cpu + gpu,
        duration_s=duration_s,
        cpu_s=1.0,
        read_bytes=None,
        written_bytes=None,
        peak_rss_bytes=None,
        carbon_g=None,
    )


def logged(out: Path, *, stages: bool = True) -> list[dict[str, Any]]:
    """Return the lines of an audit's log."""
    runs = [json.loads(line) for line in (out / "runs.jsonl").read_text("utf-8").splitlines()]
    return [run for run in runs if stages or run["workload"] != "stages"]
