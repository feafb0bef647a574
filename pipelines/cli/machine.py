"""Subcommands about the machine: what any command takes on it, and what it achieves."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import nullcontext
from typing import Annotated

import typer
from rich.console import Console

from joulecache.pipelines.cli.options import AsJson, Country, Emissions, Provider, Pue, Watts, make_meter
from joulecache.pipelines.cli.terminal import (
    fail,
    no_greetings,
    print_findings,
    print_json,
    print_throughputs,
    progress,
    say,
    say_energy,
)
from joulecache.pipelines.core.codec import to_json

_NOT_RUN = 127  # as shells say it


def run(
    command: Annotated[list[str], typer.Argument(help="A command with its arguments.")],
    cross_check: Annotated[
        bool, typer.Option("--cross-check", help="Run CodeCarbon's tracker beside our meter.", rich_help_panel="Energy")
    ] = False,
    country: Country = None,
    provider: Provider = "generic",
    watts: Watts = None,
    pue: Pue = 1.0,
    emissions: Emissions = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on stdout; what the command prints goes to stderr.")
    ] = False,
) -> None:
    """Measure what a command takes, its whole process tree; its exit code becomes ours."""
    from joulecache.pipelines.cli.running import run_metered
    from joulecache.pipelines.energy.cross_check import cross_checked

    meter = make_meter(country, provider, watts, pue, emissions)
    with cross_checked(country, pue) if cross_check else nullcontext() as theirs:
        try:
            code, energy = run_metered(command, meter, sys.stderr if as_json else None)
        except OSError as error:
            raise typer.Exit(fail(f"cannot run {command[0]!r}: {error.strerror}", _NOT_RUN)) from error
    other = theirs and theirs.result
    if as_json:
        body = {
            "command": command,
            "exit_code": code,
            "energy": energy.to_json(),
            "passport": to_json(meter.provenance()),
        }
        print_json(body | {"cross_check": other and dataclasses.asdict(other)})
    else:
        say_energy(energy, meter.notes)
        if theirs and other is None:
            say("CodeCarbon: not measured: its tracker does not say why")
        elif other:
            ratio = f"ours is {energy.total_j / other.energy_j:.2f} times that" if other.energy_j else "no ratio"
            say(f"CodeCarbon: {other.energy_j:.4g} J ({other.method}); {ratio}")
    raise typer.Exit(code)


def doctor(as_json: AsJson = False) -> None:
    """Say what can be measured here, what cannot, and what to do about each; exit code 1 when TensorFlow cannot be used."""
    from joulecache.pipelines.cli.diagnosis import examine, import_tensorflow

    with progress() as tell:
        tell("importing TensorFlow", 0, 1)
        with no_greetings():
            broken = import_tensorflow()
        found = examine(broken, tell=tell)
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in found])
    else:
        print_findings(found)
    if broken:
        raise typer.Exit(1)


def hardware(
    seconds: Annotated[float, typer.Option(help="Seconds for each measurement.", min=0.01, metavar="X")] = 0.5,
    rounds: Annotated[int, typer.Option(help="Rounds, in which all take turns.", min=1, metavar="N")] = 5,
    country: Country = None,
    provider: Provider = "generic",
    watts: Watts = None,
    pue: Pue = 1.0,
    emissions: Emissions = None,
    as_json: AsJson = False,
) -> None:
    """Measure operations per second and per joule at float32, bfloat16 and int8, and recommend a precision."""
    meter = make_meter(country, provider, watts, pue, emissions)
    with no_greetings():
        from joulecache.pipelines.auditing.hardware import measure_hardware, recommend

    with progress() as tell:
        found = measure_hardware(meter=meter, seconds=seconds, rounds=rounds, progress=tell)
    if as_json:
        rows = [one.to_json() for one in found]
        print_json(
            {"throughputs": rows, "recommendation": vars(recommend(found)), "passport": to_json(meter.provenance())}
        )
        return
    print_throughputs(found, meter.provenance())
    advice = recommend(found)
    Console().print(
        f"Train in {advice.training}, infer in {advice.inference}; {advice.why}.", soft_wrap=True, highlight=False
    )
