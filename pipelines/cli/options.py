"""Arguments and options that several commands share."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from joulecache.pipelines.cli.config_options import Given, OptionsOf
from joulecache.pipelines.cli.terminal import wrote
from joulecache.pipelines.core.user_code import import_user_module

if TYPE_CHECKING:
    from joulecache.pipelines.energy.meter import Meter
    from joulecache.pipelines.report.prometheus import Metric, MetricsFile
    from joulecache.transforms.ops import Op

SOURCES = (
    "A folder of class folders; a .tar, Parquet or TFRecord file or pattern; s3://, gs://; synthetic:N; tfds:NAME."
)
SOURCE_METAVARS = {
    "labels": "FILE",
    "masks": "DIR",
    "coco": "FILE",
    "splits": "SPLIT=NAME,...",
    "image": "COLUMN",
    "target": "NAME:KIND",
}
Source = Annotated[str, typer.Argument(help=SOURCES)]
Cache = Annotated[str, typer.Argument(help="A cache: a folder, or its address in s3:// or gs://.")]
ChainText = Annotated[str, typer.Option("--chain", help='Ops and the cut: "decode|resize(72) || flip_lr".')]
ModelName = Annotated[
    str,
    typer.Option(
        "--model", help="cnn, mlp, resnet8, mobilenet:0.25, shufflenet:0.5, a .keras or .h5 file, or MODULE:FUNCTION."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of every draw.", min=0, metavar="N")]
OpsModule = Annotated[str | None, typer.Option("--ops", help="A module with custom ops.", metavar="MODULE")]
Prometheus = Annotated[
    Path | None,
    typer.Option(
        help="Write the energy to this .prom file for node exporter.", metavar="FILE", rich_help_panel="Energy"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@dataclass(frozen=True, kw_only=True)
class EnergyOptions:
    """How energy is measured.

    Attributes:
        country: ISO code of the grid's country, like FRA, for grams of CO2.
        provider: Whose coefficients to use: generic, aws, gcp or azure.
        watts: Watts of this machine, instead of counters and coefficients.
        pue: Power usage effectiveness, a factor of every joule.
        emissions: Folder in which to add rows to CodeCarbon's emissions.csv.
    """

    country: str | None = None
    provider: str = "generic"
    watts: str | None = None
    pue: float = 1.0
    emissions: Path | None = None


_METAVARS = {"country": "CODE", "watts": "IDLE:FULL", "emissions": "DIR"}
Energy = Annotated[Given, OptionsOf(EnergyOptions, metavars=_METAVARS, panel="Energy")]


def make_meter(energy: Given) -> Meter:
    """Return the meter of `EnergyOptions`; ValueError if an option is invalid."""
    from joulecache.pipelines.energy.meter import Meter

    options = dict(energy)
    watts = options.pop("watts", None)
    if watts is not None:
        try:
            options["idle_w"], options["full_w"] = (float(word) for word in watts.split(":"))
        except ValueError:
            raise ValueError(f"--watts must be two numbers, IDLE:FULL, like 12:65, got {watts!r}") from None
    return Meter(**options)


def metrics_file(path: Path | None) -> MetricsFile | None:
    """Return the file of --prometheus, if it was given; ValueError if it cannot be written."""
    from joulecache.pipelines.report.prometheus import MetricsFile

    return None if path is None else MetricsFile(path)


def wrote_metrics(file: MetricsFile | None, command: str, metrics: Iterable[Metric]) -> None:
    """Write the metrics of a finished command, if a file was asked for, and say so on stderr."""
    if file is not None:
        file.write(command, metrics)
        wrote("Metrics", file.path, stderr=True)


def wrote_emissions(meter: Meter) -> None:
    """Say on stderr how many rows a meter added to emissions.csv, if it writes one."""
    if (file := meter.emissions) is not None:
        wrote("Emissions", f"{file.rows} {'row' if file.rows == 1 else 'rows'} added to {file.path}", stderr=True)


def import_ops(module: str | None) -> dict[str, type[Op]] | None:
    """Import a module and return the ops that it defines; ValueError if that fails."""
    if module is None:
        return None
    from joulecache.transforms import ops_of

    return ops_of(import_user_module("--ops", module))


def import_functions(texts: Sequence[str]) -> dict[str, Callable[[], Any]]:
    """Import functions, each given as module:function, and return them by these texts; ValueError if that fails."""
    if len(set(texts)) < len(texts):
        raise ValueError(f"--pipeline must name each function once, got {', '.join(texts)}")
    return {text: _import_function("--pipeline", text, "make_dataset") for text in texts}


def import_model(text: str) -> str | Callable[..., Any]:
    """Return the function that makes a model if the text is module:function, else the text; ValueError if the import fails."""
    if not text.rpartition(":")[2].isidentifier() or ":" not in text:  # such as mobilenet:0.25
        return text
    return _import_function("--model", text, "make_model")


def _import_function(option: str, text: str, example: str) -> Callable[..., Any]:
    module, _, name = text.partition(":")
    if not module or not name:
        raise ValueError(f"{option} must be a module and a function, like my_module:{example}, got {text!r}")
    imported = import_user_module(option, module)
    function: Callable[..., Any] | None = getattr(imported, name, None)
    if function is None or not callable(function):
        known = [other for other, each in vars(imported).items() if callable(each) and not other.startswith("_")]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it defines {', '.join(known) or 'none'}"
        raise ValueError(f"{option} {text!r}: {module} has no function {name}: {hint}")
    return function
