"""`joulecache run`, `doctor` and `hardware`."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import nullcontext
from typing import Annotated

import typer

from joulecache.pipelines.cli.logs import loading
from joulecache.pipelines.cli.options import (
    AsJson,
    Energy,
    Prometheus,
    make_meter,
    metrics_file,
    wrote_emissions,
    wrote_metrics,
)
from joulecache.pipelines.cli.terminal import fail, print_json, say, show
from joulecache.pipelines.core.codec import to_json
from joulecache.pipelines.core.progress import progress_bar

_NOT_RUN = 127  # as in shells


def run(
    *,
    command: Annotated[list[str], typer.Argument(help="A command with its arguments.")],
    cross_check: Annotated[
        bool,
        typer.Option("--cross-check", help="Run CodeCarbon's tracker too, to compare.", rich_help_panel="Energy"),
    ] = False,
    energy: Energy,
    prometheus: Prometheus = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on stdout; the command's own output goes to stderr.")
    ] = False,
) -> None:
    """Measure a command with all its child processes. The exit code is the command's."""
    from joulecache.pipelines.cli.running import run_metered
    from joulecache.pipelines.energy.cross_check import cross_checked
    from joulecache.pipelines.report.describe.energy import describe_energy
    from joulecache.pipelines.report.prometheus import Metric, energy_metrics

    meter, metrics = make_meter(energy), metrics_file(prometheus)
    checked = cross_checked(energy.get("country"), energy.get("pue", 1.0)) if cross_check else nullcontext()
    with checked as check:
        try:
            code, used = run_metered(command, meter, sys.stderr if as_json else None)
        except OSError as error:
            raise typer.Exit(fail(f"cannot run {command[0]!r}: {error.strerror}", _NOT_RUN)) from error
    wrote_emissions(meter)
    wrote_metrics(metrics, "run", [Metric("joulecache_exit_code", code), *energy_metrics("command", used)])
    other = check and check.result
    if as_json:
        body = {
            "command": command,
            "exit_code": code,
            "energy": used.to_json(),
            "passport": to_json(meter.provenance()),
        }
        print_json(body | {"cross_check": other and dataclasses.asdict(other)})
    else:
        show(describe_energy(used, meter.notes), stderr=True)
        if other:
            ratio = f"joulecache: {used.total_j / other.energy_j:.2f} times that" if other.energy_j else "no ratio"
            say(f"CodeCarbon: {other.energy_j:.4g} J ({other.method}); {ratio}")
        elif check:
            say("CodeCarbon: not measured; its tracker gives no reason")
    raise typer.Exit(code)


def doctor(*, as_json: AsJson = False) -> None:
    """Show what works on this machine, what is missing for what, and how to fix it. The exit code is 1 if TensorFlow is unusable."""
    from joulecache.pipelines.cli.diagnosis import examine, import_tensorflow
    from joulecache.pipelines.report.describe.machine import describe_checks

    with loading("TensorFlow"):
        broken = import_tensorflow()
    with progress_bar() as bar:
        checks = examine(broken, progress=bar)
    if as_json:
        print_json([dataclasses.asdict(check) for check in checks])
    else:
        show(describe_checks(checks))
    if broken:
        raise typer.Exit(1)


def hardware(
    *,
    seconds: Annotated[float, typer.Option(help="Seconds for each measurement.", min=0.01, metavar="X")] = 0.5,
    rounds: Annotated[int, typer.Option(help="Rounds of interleaved measurements.", min=1, metavar="N")] = 5,
    energy: Energy,
    as_json: AsJson = False,
) -> None:
    """Measure operations per second and per joule at float32, bfloat16 and int8, and recommend a precision."""
    meter = make_meter(energy)
    with loading("TensorFlow"):
        from joulecache.pipelines.auditing.hardware import measure_hardware
        from joulecache.pipelines.auditing.throughput import recommend

    with progress_bar() as bar:
        found = measure_hardware(meter=meter, seconds=seconds, rounds=rounds, progress=bar)
    wrote_emissions(meter)
    advice = recommend(found)
    if as_json:
        rows = [one.to_json() for one in found]
        print_json(
            {"throughputs": rows, "recommendation": advice and vars(advice), "passport": to_json(meter.provenance())}
        )
        return
    from joulecache.pipelines.report.describe.machine import describe_throughputs

    show(describe_throughputs(found, meter.provenance(), advice))
