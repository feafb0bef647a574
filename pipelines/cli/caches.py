"""`joulecache precompute`, `inspect` and `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from joulecache.pipelines.building.config import BuildConfig
from joulecache.pipelines.cli.config_options import Given, OptionsOf
from joulecache.pipelines.cli.options import (
    SOURCE_METAVARS,
    AsJson,
    Cache,
    ChainText,
    Energy,
    OpsModule,
    Prometheus,
    Source,
    import_ops,
    make_meter,
    metrics_file,
    wrote_emissions,
    wrote_metrics,
)
from joulecache.pipelines.cli.terminal import print_json, print_line, say, show, wrote
from joulecache.pipelines.core.codec import to_json
from joulecache.pipelines.core.progress import progress_bar

if TYPE_CHECKING:
    from joulecache.pipelines.building.results import BuildProgress

_Build = Annotated[
    Given,
    OptionsOf(
        BuildConfig,
        leave_out=("chain", "val_chain"),
        repeated=("target",),
        metavars={"val_fraction": "SHARE", "max_reject_rate": "SHARE", **SOURCE_METAVARS},
    ),
]


def precompute(
    *,
    source: Source,
    cache: Annotated[str, typer.Argument(help="What to build: new, empty, or a cache; s3://, gs://.")],
    chain: ChainText,
    val_chain: Annotated[
        str | None, typer.Option(help="Chain of held-out records. Default: without random ops.")
    ] = None,
    build: _Build,
    ops: OpsModule = None,
    beam_options: Annotated[list[str] | None, typer.Argument(help="Options of Apache Beam, after --.")] = None,
    energy: Energy,
    prometheus: Prometheus = None,
    as_json: AsJson = False,
) -> None:
    """Build a cache with Apache Beam, or bring it up to date."""
    with progress_bar() as bar:
        from joulecache.pipelines.building.precomputing import precompute as build_cache
        from joulecache.transforms import parse

        custom, meter, metrics = import_ops(ops), make_meter(energy), metrics_file(prometheus)
        built = build_cache(
            source,
            cache,
            parse(chain, custom),
            val_chain=None if val_chain is None else parse(val_chain, custom),
            beam_options=beam_options or (),
            meter=meter,
            progress=lambda now: bar("records", now.done, now.records, _rates(now)),
            **build,
        )
    from joulecache.pipelines.report.prometheus import energy_metrics

    wrote_emissions(meter)
    wrote_metrics(metrics, "precompute", energy_metrics("build", built.energy, built.transformed))
    if as_json:
        facts = {"unchanged": built.unchanged, "resumed_shards": built.resumed_shards, "workers": built.workers}
        print_json({**facts, "energy": to_json(built.energy), "manifest": to_json(built.manifest)})
        return
    from joulecache.pipelines.report.describe.cache import describe_build

    show(describe_build(built, cache))


def _rates(now: BuildProgress) -> str:
    written = f"{now.written_bytes / 1e6:,.0f} MB"
    spent = "" if now.energy_j is None else f", {now.energy_j:,.0f} J"
    return f"{now.records_per_s:,.0f} images/s, {written}, {now.rejects:,} rejected{spent}"


def inspect(
    *,
    cache: Cache,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a contact sheet of some records to this PNG file.", dir_okay=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the contents of a cache."""
    from joulecache.pipelines.cache.manifest_io import open_manifest

    manifest = open_manifest(cache)
    if sheet is not None:
        from joulecache.pipelines.report.render.contact_sheet import write_contact_sheet

        write_contact_sheet(cache, sheet)
    if as_json:
        print_json(to_json(manifest))
    else:
        from joulecache.pipelines.report.describe.cache import describe_manifest

        show(describe_manifest(manifest, cache))
    if sheet is not None:
        wrote("Contact sheet", sheet, stderr=as_json)


def verify(*, cache: Cache, as_json: AsJson = False) -> None:
    """Check every byte of a cache against its manifest. The exit code is 1 if there are problems, 2 if there is no cache."""
    from joulecache.pipelines.cache.errors import CacheError, NoCacheError
    from joulecache.pipelines.cache.manifest_io import open_manifest
    from joulecache.pipelines.cache.verification import find_problems

    files = None
    try:
        files = len(open_manifest(cache, damaged=True).files())
        with progress_bar(delay_s=0.5) as bar:
            problems = find_problems(cache, bar)
    except NoCacheError:
        raise
    except CacheError as error:  # the manifest is damaged, or the index
        problems = [str(error)]
    if as_json:
        print_json({"files": files, "problems": problems})
    else:
        for problem in problems:
            say(f"{cache}: {problem}")
        if not problems:
            print_line(f"{cache}: {files} files, every byte as built")
    if problems:
        raise typer.Exit(1)
