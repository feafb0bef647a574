"""`joulecache audit`: measure, or compare what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from joulecache.pipelines.cli.options import (
    SOURCES,
    AsJson,
    Energy,
    ModelName,
    Seed,
    import_functions,
    make_meter,
)
from joulecache.pipelines.cli.terminal import print_json, say, show
from joulecache.pipelines.core.progress import progress_bar, silenced_output, stdout_to_stderr

_COMPARISON = "Comparing two audits"
_OWN = "Your own pipelines, instead of SOURCE and --chain"


def audit(
    *,
    source: Annotated[str | None, typer.Argument(help=SOURCES)] = None,
    chain: Annotated[str | None, typer.Option(help='Ops and the cut: "decode|resize(72) || flip_lr".')] = None,
    out: Annotated[Path | None, typer.Option(help="The report's folder: new, empty, or an audit.")] = None,
    pipeline: Annotated[
        list[str] | None,
        typer.Option(
            help="Returns a batched tf.data.Dataset; once for each to compare.",
            metavar="MODULE:FUNCTION",
            rich_help_panel=_OWN,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Batches of an epoch. Default: all.", min=1, rich_help_panel=_OWN, metavar="N")
    ] = None,
    arms: Annotated[str | None, typer.Option(help="Default: naive,tuned,tf_cache,optimized.")] = None,
    workload: Annotated[
        str | None,
        typer.Option(help="Some of input, train, finetune, infer."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Horizon of the verdict, not run. Default: 30.", min=1, metavar="N")
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(help="Trainings that share the cache. Default: 1.", min=1, metavar="N"),
    ] = None,
    pairs: Annotated[
        int | None, typer.Option(help="Blocks. Default: 20 input, 5 train, 10 others.", min=1, metavar="N")
    ] = None,
    model: ModelName = "cnn",
    train_epochs: Annotated[int, typer.Option(help="Epochs of one training run.", min=1, metavar="N")] = 3,
    prune: Annotated[
        float | None,
        typer.Option(help="Channels to prune. Default: 0.5.", min=0, max=1, metavar="SHARE"),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default: 64.", min=1, metavar="N")] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most this many records.", min=1, metavar="N")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV file with the name and class of each image.", metavar="FILE.csv")
    ] = None,
    variants: Annotated[
        str | None,
        typer.Option(
            help="Draws that the cache holds, and others to compare.",
            metavar="K,...",
        ),
    ] = None,
    seed: Seed = 0,
    energy: Energy,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            help="Say what changed between two audits.",
            metavar="BEFORE.json AFTER.json",
            rich_help_panel=_COMPARISON,
        ),
    ] = None,
    fail_above: Annotated[
        float | None,
        typer.Option(
            help="Exit with 1 above this ratio of active energy.",
            metavar="RATIO",
            min=0,
            rich_help_panel=_COMPARISON,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure in joules whether caching pays, with the build charged; or what your own tf.data pipelines take."""
    own = list(pipeline or ())
    if compare is not None:
        if source is not None or chain is not None or out is not None or own:
            raise typer.BadParameter("--compare reads two reports: leave out SOURCE, --chain, --pipeline and --out")
        _compare(*compare, fail_above, as_json)
        return
    if own and (source is not None or chain is not None):
        raise typer.BadParameter("--pipeline is audited without a chain: leave out SOURCE and --chain, or --pipeline")
    if steps is not None and not own:
        raise typer.BadParameter("--steps goes with --pipeline")
    if out is None or (not own and (source is None or chain is None)):
        raise typer.BadParameter(
            "give SOURCE, --chain and --out; or --pipeline and --out; or --compare and two reports"
        )
    if fail_above is not None:
        raise typer.BadParameter("--fail-above goes with --compare")
    meter = make_meter(energy)
    with silenced_output(stdout=False):
        from joulecache.pipelines.auditing.auditor import audit as run_audit
    from joulecache.pipelines.report.describe.audit import describe_audit
    from joulecache.pipelines.report.files import write_report

    with stdout_to_stderr(), progress_bar() as tell:
        result = run_audit(
            source,
            chain,
            out,
            datasets=import_functions(own) if own else None,
            steps=steps,
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
            variants=_counts(variants),
            seed=seed,
            meter=meter,
            progress=tell,
        )
    files = write_report(result, out)
    if as_json:
        print_json(result.to_json())
        return
    show(describe_audit(result))
    Console().print(f"Report: {files.html}", markup=False, highlight=False, soft_wrap=True)


def _compare(before: Path, after: Path, fail_above: float | None, as_json: bool) -> None:
    """Print what changed between two reports; exit code 1 where an arm uses more than `fail_above` times the energy."""
    from joulecache.pipelines.auditing.changes import compare_audits
    from joulecache.pipelines.report.describe.changes import describe_changes
    from joulecache.pipelines.report.files import read_report

    changes = compare_audits(read_report(before), read_report(after))
    if as_json:
        print_json(changes.to_json())
    else:
        show(describe_changes(changes))
    worse = changes.above(fail_above) if fail_above is not None else ()
    for arm in worse:
        say(f"{arm.workload}, {arm.arm}: {arm.ratio.value:.3f} times the active energy, above {fail_above:g}")
    if worse:
        raise typer.Exit(1)


def _counts(text: str | None) -> tuple[int, ...] | None:
    """Return whole numbers with commas between them; ValueError for other texts."""
    if text is None:
        return None
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"--variants is {text!r}: give whole numbers with commas between them, like 1,2,4") from None


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return tuple(name.strip() for name in text.split(",") if name.strip())
