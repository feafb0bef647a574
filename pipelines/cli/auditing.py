"""`joulecache audit`: measure, or compare two reports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from joulecache.pipelines.auditing.config import AuditConfig, PipelinesConfig
from joulecache.pipelines.cli.config_options import Given, OptionsOf
from joulecache.pipelines.cli.logs import loading_keras
from joulecache.pipelines.cli.options import (
    SOURCE_METAVARS,
    SOURCES,
    AsJson,
    Energy,
    OpsModule,
    Prometheus,
    import_functions,
    import_model,
    import_ops,
    make_meter,
    metrics_file,
    wrote_emissions,
    wrote_metrics,
)
from joulecache.pipelines.cli.terminal import print_json, print_line, say, show, wrote
from joulecache.pipelines.core.checks import check_number
from joulecache.pipelines.core.progress import progress_bar, stdout_to_stderr

if TYPE_CHECKING:
    from joulecache.transforms import Chain

_EXPECTED = "expected SOURCE, --chain and --out; or --pipeline and --out; or --compare and two reports"
_COMPARISON = "Comparing two audits"
_CUSTOM = "Your own pipelines, instead of SOURCE and --chain"
_Settings = Annotated[
    Given,
    OptionsOf(
        AuditConfig,
        leave_out=("budget",),
        names={"workloads": "--workload"},
        repeated=("target",),
        metavars={"prune": "SHARE", "variants": "K,...", "device_watts": "IDLE:BUSY", **SOURCE_METAVARS},
    ),
]
_Steps = Annotated[Given, OptionsOf(PipelinesConfig, only=("steps",), panel=_CUSTOM)]


def audit(
    *,
    source: Annotated[str | None, typer.Argument(help=SOURCES)] = None,
    chain: Annotated[str | None, typer.Option(help='Ops and the cut: "decode|resize(72) || flip_lr".')] = None,
    ops: OpsModule = None,
    out: Annotated[Path | None, typer.Option(help="The report's folder: new, empty, or an audit.")] = None,
    pipeline: Annotated[
        list[str] | None,
        typer.Option(
            help="Function that returns a batched tf.data.Dataset; repeat to compare.",
            metavar="MODULE:FUNCTION",
            rich_help_panel=_CUSTOM,
        ),
    ] = None,
    steps: _Steps,
    settings: _Settings,
    energy: Energy,
    prometheus: Prometheus = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            help="Show what changed between two audits: their folders, or report.json files.",
            metavar="BEFORE AFTER",
            exists=True,
            rich_help_panel=_COMPARISON,
        ),
    ] = None,
    fail_above: Annotated[
        float | None,
        typer.Option(help="Exit with 1 above this ratio of active energy.", metavar="X", rich_help_panel=_COMPARISON),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a comment for a pull request.", rich_help_panel=_COMPARISON)
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure whether caching a chain saves energy, build included, or how much your own tf.data pipelines use."""
    of_chain = source is not None or chain is not None or ops is not None
    if compare is not None:
        if of_chain or out is not None or pipeline or steps or settings or energy or prometheus:
            raise typer.BadParameter(
                "--compare reads two reports: leave out all but --fail-above, --markdown and --json"
            )
        _compare(*compare, fail_above, markdown, as_json)
        return
    if pipeline and of_chain:
        raise typer.BadParameter(
            "--pipeline is audited without a chain: leave out SOURCE, --chain and --ops, or --pipeline"
        )
    if steps and not pipeline:
        raise typer.BadParameter("--steps needs --pipeline")
    if out is None or (not pipeline and (source is None or chain is None)):
        raise typer.BadParameter(_EXPECTED)
    if fail_above is not None or markdown:
        raise typer.BadParameter("--fail-above and --markdown need --compare")
    _measure(source, _with_ops(chain, ops), out, pipeline, {**steps, **settings}, energy, prometheus, as_json)


def _with_ops(chain: str | None, ops: str | None) -> Chain | str | None:
    """Return a chain, parsed if it may name custom ops."""
    if chain is None or ops is None:
        return chain
    from joulecache.transforms import parse

    return parse(chain, import_ops(ops))


def _measure(
    source: str | None,
    chain: Chain | str | None,
    out: Path,
    pipeline: list[str] | None,
    settings: Given,
    energy: Given,
    prometheus: Path | None,
    as_json: bool,
) -> None:
    meter, metrics = make_meter(energy), metrics_file(prometheus)
    with loading_keras():
        from joulecache.pipelines.auditing.auditor import audit as run_audit
        from joulecache.pipelines.report.describe.audit import describe_audit
        from joulecache.pipelines.report.files import write_report
        from joulecache.pipelines.report.prometheus import audit_metrics

    with stdout_to_stderr(), progress_bar() as bar:
        datasets = import_functions(pipeline) if pipeline else None
        if "model" in settings:
            settings["model"] = import_model(settings["model"])
        result = run_audit(source, chain, out, datasets=datasets, **settings, meter=meter, progress=bar)
    try:
        files = write_report(result, out)
    except OSError as error:
        raise OSError(
            f"cannot write the report ({error}); the measurements are kept: repeat the command when it can be written"
        ) from error
    wrote_emissions(meter)
    wrote_metrics(metrics, "audit", audit_metrics(result))
    if as_json:
        wrote("Report", files.html, stderr=True)
        print_json(result.to_json())
        return
    show(describe_audit(result))
    wrote("Report", files.html)


def _compare(before: Path, after: Path, fail_above: float | None, markdown: bool, as_json: bool) -> None:
    """Print what changed between two reports; exit code 1 if an arm uses more than `fail_above` times the energy."""
    from joulecache.pipelines.auditing.changes import compare_audits
    from joulecache.pipelines.report.describe.changes import describe_changes
    from joulecache.pipelines.report.files import read_report
    from joulecache.pipelines.report.render.markdown import to_markdown

    if fail_above is not None:
        check_number("--fail-above", fail_above, above=0)
    if markdown and as_json:
        raise typer.BadParameter("--markdown and --json exclude each other: leave out one")
    changes = compare_audits(read_report(before), read_report(after))
    if as_json:
        print_json(changes.to_json())
    elif markdown:
        print_line(to_markdown(describe_changes(changes)).rstrip())
    else:
        show(describe_changes(changes))
    worse = changes.above(fail_above) if fail_above is not None else ()
    for arm in worse:
        say(f"{arm.workload}, {arm.arm}: {arm.ratio.value:.3f} times the active energy, above {fail_above:g}")
    if worse:
        raise typer.Exit(1)
