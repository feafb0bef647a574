"""Arguments and options that several subcommands have in common."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from joulecache.pipelines.core.user_code import import_own

if TYPE_CHECKING:
    from joulecache.pipelines.energy import Meter
    from joulecache.transforms.ops import Op

SOURCES = (
    "A folder of class folders; a .tar, Parquet or TFRecord file or pattern; s3://, gs://; synthetic:N; tfds:NAME."
)
Source = Annotated[str, typer.Argument(help=SOURCES)]
Cache = Annotated[str, typer.Argument(help="A cache: a folder, or its address in s3:// or gs://.")]
ChainText = Annotated[str, typer.Option("--chain", help='Ops and the cut: "decode|resize(72) || flip_lr".')]
Limit = Annotated[int | None, typer.Option(help="Take at most so many records.", min=1, metavar="N")]
Labels = Annotated[
    Path | None,
    typer.Option("--labels", help="Names and classes of the images, with a header line.", metavar="FILE.csv"),
]
Seed = Annotated[int, typer.Option(help="Seed of every draw.", min=0, metavar="N")]
OpsModule = Annotated[str | None, typer.Option("--ops", help="A module with ops of your own.", metavar="MODULE")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


class Quantization(StrEnum):
    """TensorFlow Lite quantizations."""

    int8 = "int8"
    float16 = "float16"
    dynamic = "dynamic"


ModelName = Annotated[
    str, typer.Option("--model", help="cnn, mlp, resnet8, mobilenet:0.25, shufflenet:0.5, or a .keras or .h5 file.")
]
_COMPRESSION = "Compression, in this order"
Prune = Annotated[
    float,
    typer.Option(
        help="Share of channels to prune, below 1.", min=0, max=1, rich_help_panel=_COMPRESSION, metavar="SHARE"
    ),
]
Sparsity = Annotated[
    float,
    typer.Option(
        help="Share of weights to make 0, below 1.", min=0, max=1, rich_help_panel=_COMPRESSION, metavar="SHARE"
    ),
]
Cluster = Annotated[
    int | None,
    typer.Option(help="Distinct values that a kernel keeps.", min=2, rich_help_panel=_COMPRESSION, metavar="N"),
]
Quantize = Annotated[
    Quantization | None, typer.Option(help="Precision of the TensorFlow Lite file.", rich_help_panel=_COMPRESSION)
]

_ENERGY = "Energy"
Country = Annotated[
    str | None, typer.Option(help="ISO code of the grid, like FRA: gives grams of CO2.", rich_help_panel=_ENERGY)
]
Provider = Annotated[str, typer.Option(help="Whose coefficients: generic, aws, gcp or azure.", rich_help_panel=_ENERGY)]
Watts = Annotated[
    str | None,
    typer.Option(
        help="Watts of this machine, in place of counters and coefficients.",
        metavar="IDLE:FULL",
        rich_help_panel=_ENERGY,
    ),
]
Pue = Annotated[
    float,
    typer.Option(help="Power usage effectiveness: times every joule.", rich_help_panel=_ENERGY, metavar="X"),
]
Emissions = Annotated[
    Path | None,
    typer.Option(
        help="Add rows to CodeCarbon's emissions.csv in this folder.",
        metavar="DIR",
        rich_help_panel=_ENERGY,
    ),
]


def make_meter(country: str | None, provider: str, watts: str | None, pue: float, emissions: Path | None) -> Meter:
    """Return the meter that the options ask for; ValueError for what it cannot be."""
    from joulecache.pipelines.energy import Meter

    idle_w = full_w = None
    if watts is not None:
        try:
            idle_w, full_w = (float(word) for word in watts.split(":"))
        except ValueError:
            raise ValueError(f"--watts is {watts!r}: give two numbers, IDLE:FULL, like 12:65") from None
    return Meter(country=country, provider=provider, pue=pue, idle_w=idle_w, full_w=full_w, emissions=emissions)


def own_ops(module: str | None) -> dict[str, type[Op]] | None:
    """Import a module and return the ops that it defines; ValueError when that fails."""
    if module is None:
        return None
    from joulecache.transforms import ops_of

    return ops_of(import_own("--ops", module))


def own_functions(texts: Sequence[str]) -> dict[str, Callable[[], Any]]:
    """Import functions, each given as module:function, and return them by what was given; ValueError when that fails."""
    if len(set(texts)) < len(texts):
        raise ValueError(f"--pipeline is given twice for the same function, got {', '.join(texts)}: give each once")
    return {text: _own_function(text) for text in texts}


def _own_function(text: str) -> Callable[[], Any]:
    module, _, name = text.partition(":")
    if not module or not name:
        raise ValueError(f"--pipeline is {text!r}: give a module and a function, like my_module:make_dataset")
    imported = import_own("--pipeline", module)
    function: Callable[[], Any] | None = getattr(imported, name, None)
    if function is None or not callable(function):
        known = [other for other, each in vars(imported).items() if callable(each) and not other.startswith("_")]
        near = difflib.get_close_matches(name, known, n=1)
        meant = f": did you mean {near[0]}?" if near else f": it defines {', '.join(known) or 'none'}"
        raise ValueError(f"--pipeline is {text!r}, but {module} has no function {name}{meant}")
    return function
