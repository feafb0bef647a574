"""`joulecache plan`: choose by measured energy what to cache."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from joulecache.pipelines.cli.options import (
    AsJson,
    ChainText,
    Energy,
    OpsModule,
    Seed,
    Source,
    import_ops,
    make_meter,
)
from joulecache.pipelines.cli.terminal import print_json, show
from joulecache.pipelines.core.object_store import ObjectFolder, is_remote
from joulecache.pipelines.core.progress import progress_bar, silenced_output

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kMGT]?)(i?)B?", re.IGNORECASE)
_THOUSANDS = ["", "K", "M", "G", "T"]


def plan(
    *,
    source: Source,
    chain: ChainText,
    epochs: Annotated[int, typer.Option(help="Epochs of one training.", min=1, metavar="N")],
    runs: Annotated[int, typer.Option(help="Trainings that share the cache.", min=1, metavar="N")] = 1,
    disk_budget: Annotated[
        str | None, typer.Option(help="What a cache may take, like 20GB or 512MiB.", metavar="SIZE")
    ] = None,
    fresh: Annotated[
        str | None,
        typer.Option(help="Ops that draw anew every epoch. Default: random ops that are cheap.", metavar="OP,..."),
    ] = None,
    apply: Annotated[str | None, typer.Option(help="Build the best cache, in this folder.", metavar="CACHE")] = None,
    seconds: Annotated[float, typer.Option(help="About how long to measure.", min=1, metavar="X")] = 60.0,
    days: Annotated[
        float, typer.Option(help="How long the cache is kept, for its storage.", min=0.001, metavar="X")
    ] = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N")] = 64,
    limit: Annotated[int | None, typer.Option(help="Use at most this many records.", min=1, metavar="N")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV file with the name and class of each image.", metavar="FILE.csv")
    ] = None,
    ops: OpsModule = None,
    seed: Seed = 0,
    energy: Energy,
    as_json: AsJson = False,
) -> None:
    """Measure a sample, and choose by energy what to cache: the cut, the variants, the encoding and the format, or nothing."""
    from joulecache.transforms import parse

    parsed = parse(chain, import_ops(ops))
    budget_bytes = None if disk_budget is None else _bytes(disk_budget)
    if apply is not None and _is_taken(apply):
        raise ValueError(
            f"--apply is {str(apply)!r}, which is not empty: give a folder that is empty or does not exist"
        )
    meter = make_meter(energy)
    with silenced_output(stdout=False):
        from joulecache.pipelines.planning.planner import plan as make_plan

    with progress_bar() as tell:
        found = make_plan(
            source,
            parsed,
            epochs=epochs,
            runs=runs,
            disk_budget_bytes=budget_bytes,
            fresh=None if fresh is None else tuple(name.strip() for name in fresh.split(",") if name.strip()),
            seconds=seconds,
            days=days,
            batch_size=batch_size,
            limit=limit,
            labels=labels,
            seed=seed,
            meter=meter,
            folder=None
            if apply is None or is_remote(apply)
            else next(folder for folder in Path(apply).absolute().parents if folder.exists()),
            progress=tell,
        )
    if ops is not None:  # the command that is printed needs them too
        found = replace(found, options=(*found.options, "--ops", ops))
    built = None
    if apply is not None and found.best.layout is not None:
        from joulecache.pipelines.building.precomputing import precompute

        with progress_bar() as tell:
            built = precompute(
                source,
                apply,
                found.chain_of(found.best),
                **found.arguments(found.best),
                limit=limit,
                labels=labels,
                seed=seed,
                meter=meter,
                progress=lambda now: tell("records", now.done, now.records),
            )
    if as_json:
        print_json(found.to_json() | {"applied": None if built is None else str(apply)})
        return
    from joulecache.pipelines.report.describe.cache import describe_manifest
    from joulecache.pipelines.report.describe.plan import describe_plan

    show(describe_plan(found, "cache/" if apply is None else apply))
    if built is not None and apply is not None:
        show(describe_manifest(built.manifest, apply))


def _is_taken(cache: str) -> bool:
    """Say whether something is where a cache is to be built."""
    if is_remote(cache):
        return any(True for _ in ObjectFolder(cache).list())
    return Path(cache).is_file() or (Path(cache).exists() and any(Path(cache).iterdir()))


def _bytes(text: str) -> float:
    """Return a size such as 20GB, 1.5 TB or 512MiB in bytes; ValueError for what is none."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"--disk-budget is {text!r}: give a number and a unit, like 500MB, 20GB or 512MiB")
    number, thousands, binary = match.groups()
    base = 1024.0 if binary else 1000.0
    return float(number) * float(base ** _THOUSANDS.index(thousands.upper()))
