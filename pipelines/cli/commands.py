"""The commands, each with an example, in the order of the help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from joulecache.pipelines.cli.auditing import audit
from joulecache.pipelines.cli.caches import inspect, precompute, verify
from joulecache.pipelines.cli.config_options import expanded
from joulecache.pipelines.cli.logs import be_verbose
from joulecache.pipelines.cli.machine import doctor, hardware, run
from joulecache.pipelines.cli.models import compress, train
from joulecache.pipelines.cli.planning import plan
from joulecache.pipelines.cli.terminal import print_line
from joulecache.pipelines.cli.transforming import transforms

COMMANDS: dict[Callable[..., None], list[str]] = {
    precompute: ['precompute photos/ cache/ --chain "decode|resize(256) || random_crop(224)|flip_lr"'],
    inspect: ["inspect cache/ --sheet records.png"],
    verify: ["verify cache/"],
    transforms: ['transforms --preview photo.jpg --chain "decode|resize(72) || random_crop(64)"'],
    plan: ['plan photos/ --chain "decode|resize(72)|random_crop(64)|flip_lr" --epochs 30'],
    train: ["train cache/ --epochs 10 --prune 0.25 --quantize int8 --out run/"],
    compress: ["compress run/model.keras --data cache/ --prune 0.25 --quantize int8 --out small/"],
    audit: [
        'audit photos/ --chain "decode|resize(72) || random_crop(64)|flip_lr" --out audit/',
        "audit --pipeline my_module:make_dataset --pipeline my_module:faster --out audit/",
    ],
    run: ["run --country FRA -- python train.py"],
    hardware: ["hardware"],
    doctor: ["doctor"],
}

app = typer.Typer(
    name="joulecache",
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print_line(f"joulecache {version('joulecache')}")
        raise typer.Exit


def _set_verbosity(asked: bool) -> None:
    if asked:
        be_verbose()


_Version = Annotated[
    bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_print_version)
]
_Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        help="Show logs, and the traceback of an error.",
        is_eager=True,
        callback=_set_verbosity,
    ),
]


@app.callback()
def joulecache(version: _Version = False, verbose: _Verbose = False) -> None:
    """Cache image preprocessing once, feed it with tf.data, and measure in joules whether that paid."""


for _command, _examples in COMMANDS.items():
    app.command(
        epilog="\n\n".join(f"Example: joulecache {example}" for example in _examples),
        # options after the measured command belong to that command
        context_settings={"allow_interspersed_args": _command is not run},
    )(expanded(_command, verbose=_Verbose))
