"""`joulecache plan`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from joulecache.pipelines.cli.config_options import Given, OptionsOf
from joulecache.pipelines.cli.logs import loading_keras
from joulecache.pipelines.cli.options import (
    SOURCE_METAVARS,
    AsJson,
    ChainText,
    Energy,
    OpsModule,
    Source,
    import_ops,
    make_meter,
    wrote_emissions,
)
from joulecache.pipelines.cli.terminal import print_json, show
from joulecache.pipelines.core.files import check_writable, refuse_overlap
from joulecache.pipelines.core.object_store import ObjectFolder, is_remote
from joulecache.pipelines.core.progress import progress_bar
from joulecache.pipelines.planning.config import PlanConfig
from joulecache.pipelines.source.config import SOURCE_OPTIONS

if TYPE_CHECKING:
    from joulecache.pipelines.building.results import Built
    from joulecache.pipelines.energy.meter import Meter
    from joulecache.pipelines.planning.results import Plan

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kMGT]?)(i?)B?", re.IGNORECASE)
_THOUSANDS = ["", "K", "M", "G", "T"]
_Settings = Annotated[
    Given,
    OptionsOf(
        PlanConfig,
        leave_out=("disk_budget_bytes", "budget"),
        repeated=("target",),
        metavars={"fresh": "OP,...", **SOURCE_METAVARS},
    ),
]


def plan(
    *,
    source: Source,
    chain: ChainText,
    disk_budget: Annotated[
        str | None, typer.Option(help="Largest size of the cache, like 20GB or 512MiB.", metavar="SIZE")
    ] = None,
    apply: Annotated[str | None, typer.Option(help="Build the best cache in this folder.", metavar="CACHE")] = None,
    settings: _Settings,
    ops: OpsModule = None,
    energy: Energy,
    as_json: AsJson = False,
) -> None:
    """Measure a sample, and choose by energy what to cache, in which form, or nothing."""
    from joulecache.transforms import parse

    parsed, meter = parse(chain, import_ops(ops)), make_meter(energy)
    settings["disk_budget_bytes"] = None if disk_budget is None else _bytes(disk_budget)
    if apply is not None:
        _check_new(apply, source)
    with loading_keras():
        from joulecache.pipelines.planning.planner import plan as make_plan

    with progress_bar() as bar:
        made = make_plan(source, parsed, **settings, meter=meter, folder=_disk_of(apply), progress=bar)
    if ops is not None:  # the printed command needs it too
        made = dataclasses.replace(made, options=(*made.options, "--ops", ops))
    from joulecache.pipelines.report.describe.cache import describe_build
    from joulecache.pipelines.report.describe.plan import describe_plan

    built = None
    if not as_json:
        show(describe_plan(made, apply or "cache/"))
    try:
        built = None if apply is None else _build(made, apply, settings, meter)
    finally:  # a build that fails does not lose the plan
        wrote_emissions(meter)
        if as_json:
            print_json(made.to_json() | {"applied": None if built is None else apply})
    if built is not None and apply is not None and not as_json:
        show(describe_build(built, apply))


def _build(made: Plan, cache: str, settings: Given, meter: Meter) -> Built | None:
    """Build the best cache; return None if no cache pays off."""
    from joulecache.pipelines.building.precomputing import precompute

    if made.best.layout is None:
        return None
    shared = {name: settings[name] for name in (*SOURCE_OPTIONS, "seed") if name in settings and name != "limit"}
    with progress_bar() as bar:
        return precompute(
            made.source,
            cache,
            made.chain_of(made.best),
            **made.arguments(made.best),
            **shared,
            meter=meter,
            progress=lambda now: bar("records", now.done, now.records),
        )


def _disk_of(cache: str | None) -> Path | None:
    """Return an existing folder on the disk of a new cache; None for the default."""
    if cache is None or is_remote(cache):
        return None
    return next(folder for folder in Path(cache).absolute().parents if folder.exists())


def _check_new(cache: str, source: str) -> None:
    """Raise ValueError if a cache cannot be built in a new folder there."""
    if is_remote(cache):
        taken = any(True for _ in ObjectFolder(cache).list())
    else:
        taken = Path(cache).is_file() or (Path(cache).exists() and any(Path(cache).iterdir()))
    if taken:
        raise ValueError(f"--apply must be a folder that is empty or does not exist, got {cache!r}")
    if not is_remote(cache):
        from joulecache.pipelines.source import source_paths

        refuse_overlap(source_paths(source), Path(cache), "cache")
        check_writable(Path(cache), "--apply")


def _bytes(text: str) -> float:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"--disk-budget must be a number and a unit, like 500MB, 20GB or 512MiB, got {text!r}")
    number, thousands, binary = match.groups()
    return float(number) * float((1024 if binary else 1000) ** _THOUSANDS.index(thousands.upper()))
