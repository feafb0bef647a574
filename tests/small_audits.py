"""Small audits, and known energies, for tests."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from joulecache.pipelines.auditing import auditor
from joulecache.pipelines.auditing.config import Budget
from joulecache.pipelines.building.config import BuildConfig
from joulecache.pipelines.building.precomputing import build_cache
from joulecache.pipelines.cache.cache import Cache, open_cache
from joulecache.pipelines.energy import Component, Energy, Meter
from joulecache.pipelines.experiment.arms import Arm, make_arms
from joulecache.pipelines.experiment.files import ImageFiles
from joulecache.pipelines.experiment.names import TFRECORD
from joulecache.pipelines.experiment.tfrecord_files import tfrecord_config
from joulecache.pipelines.source import Source

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


def arms_in_order(
    names: Sequence[str], source: Source, config: BuildConfig, files: ImageFiles, cache: Cache, batch_size: int
) -> dict[str, Arm]:
    """Return unshuffled arms by name, with their files in folders next to the cache, which `config` built from the source."""
    tfrecord = None
    if TFRECORD in names:
        folder = cache.folder.with_name("tfrecord-of-arms")
        build_cache(source, folder, tfrecord_config(config, cache), Meter())
        tfrecord = open_cache(folder)
    made = make_arms(
        *(names, files, cache, batch_size),
        shuffle=False,
        folder=cache.folder.with_name("files-of-arms"),
        tfrecord=tfrecord,
    )
    return {arm.name: arm for arm in made}


def logged(out: Path, *, stages: bool = True) -> list[dict[str, Any]]:
    """Return the lines of an audit's log."""
    runs = [json.loads(line) for line in (out / "runs.jsonl").read_text("utf-8").splitlines()]
    return [run for run in runs if stages or run["workload"] != "stages"]
