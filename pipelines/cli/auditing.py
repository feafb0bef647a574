"""`joulecache audit`: measure, or compare what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from joulecache.pipelines.cli.options import (
    SOURCES,
    AsJson,
    Country,
    Emissions,
    Labels,
    Limit,
    ModelName,
    Provider,
    Pue,
    Seed,
    Watts,
    make_meter,
)
from joulecache.pipelines.cli.terminal import no_greetings, print_json, progress, say

_COMPARISON = "Comparing two audits"


def audit(
    source: Annotated[str | None, typer.Argument(help=SOURCES)] = None,
    chain: Annotated[
        str | None, typer.Option(help='Ops and the cut, like "decode|resize(72) || random_crop(64)|flip_lr".')
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of the report: new, empty, or an audit of ours.")] = None,
    arms: Annotated[str, typer.Option(help="Arms to compare.")] = "naive,tuned,tf_cache,optimized",
    workload: Annotated[str, typer.Option(help="What they feed: input, train, finetune, infer.")] = "input,train,infer",
    epochs: Annotated[int, typer.Option(help="Horizon of the verdict, not what is run.", min=1)] = 30,
    runs: Annotated[int, typer.Option(help="Trainings that share the cache, for the break-even.", min=1)] = 1,
    pairs: Annotated[int | None, typer.Option(help="Blocks. Default: 20 input, 5 train, 10 infer.", min=1)] = None,
    model: ModelName = "cnn",
    train_epochs: Annotated[int, typer.Option(help="Epochs of one training run.", min=1)] = 3,
    prune: Annotated[float, typer.Option(help="Share of channels to prune, below 1.", min=0, max=1)] = 0.5,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    limit: Limit = None,
    labels: Labels = None,
    seed: Seed = 0,
    country: Country = None,
    provider: Provider = "generic",
    watts: Watts = None,
    pue: Pue = 1.0,
    emissions: Emissions = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            help="Say what changed between the report.json of two audits, and measure nothing.",
            metavar="BEFORE.json AFTER.json",
            rich_help_panel=_COMPARISON,
        ),
    ] = None,
    fail_above: Annotated[
        float | None,
        typer.Option(
            help="Exit with 1 where an arm takes more than this times its active energy per image.",
            metavar="RATIO",
            min=0,
            rich_help_panel=_COMPARISON,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure whether caching pays: four ways to feed the same images, in joules, with the build charged."""
    if compare is not None:
        if source is not None or chain is not None or out is not None:
            raise typer.BadParameter("--compare reads two reports: leave out SOURCE, --chain and --out")
        _compare(*compare, fail_above, as_json)
        return
    if source is None or chain is None or out is None:
        raise typer.BadParameter("give SOURCE, --chain and --out; or --compare and two reports")
    if fail_above is not None:
        raise typer.BadParameter("--fail-above goes with --compare")
    meter = make_meter(country, provider, watts, pue, emissions)
    with no_greetings():
        from joulecache.pipelines.auditing import audit as run_audit
    from joulecache.pipelines.report import print_verdict, write_report

    with progress() as tell:
        result = run_audit(
            source,
            chain,
            out,
            arms=_names(arms),
            workloads=_names(workload),
            epochs=epochs,
            runs=runs,
            pairs=pairs,
            model=model,
            train_epochs=train_epochs,
            prune=prune,
            batch_size=batch_size,
            limit=limit,
            labels=labels,
            seed=seed,
            meter=meter,
            progress=tell,
        )
    body = result.to_json()
    files = write_report(body, out)
    if as_json:
        print_json(body)
        return
    console = Console()
    print_verdict(body, console)
    console.print(f"Report: {files.html}", soft_wrap=True)


def _compare(before: Path, after: Path, fail_above: float | None, as_json: bool) -> None:
    """Print what changed between two reports; exit code 1 where an arm takes more than `fail_above` times what it took."""
    with no_greetings():
        from joulecache.pipelines.auditing.changes import compare_audits
    from joulecache.pipelines.report import print_changes

    changes = compare_audits(_report(before), _report(after))
    if as_json:
        print_json(changes.to_json())
    else:
        print_changes(changes.to_json(), Console())
    worse = changes.above(fail_above) if fail_above is not None else ()
    for arm in worse:
        say(f"{arm.workload}, {arm.arm}: {arm.ratio.value:.3f} times the active energy, above {fail_above:g}")
    if worse:
        raise typer.Exit(1)


def _report(path: Path) -> dict[str, object]:
    """Return the report of an audit; ValueError where a file is none."""
    from joulecache.pipelines.report import check_body

    try:
        body = json.loads(path.read_text("utf-8"))
        check_body(body)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no report of an audit ({error}): give a report.json") from error
    return body  # type: ignore[no-any-return]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
