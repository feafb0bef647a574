"""The command line: each subcommand checks its arguments, calls one public function and prints what it returns."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from joulecache.pipelines.cli.auditing import audit
from joulecache.pipelines.cli.machine import doctor, hardware, run
from joulecache.pipelines.cli.models import compress, train
from joulecache.pipelines.cli.options import (
    AsJson,
    Cache,
    ChainText,
    Country,
    Emissions,
    Labels,
    Limit,
    OpsModule,
    Provider,
    Pue,
    Seed,
    Source,
    Watts,
    make_meter,
    own_ops,
)
from joulecache.pipelines.cli.planning import plan
from joulecache.pipelines.cli.terminal import (
    fail,
    print_json,
    print_manifest,
    print_ops,
    progress,
    say,
)

if TYPE_CHECKING:
    from joulecache.pipelines.building.results import BuildProgress
    from joulecache.transforms import Op

app = typer.Typer(
    name="joulecache",
    help="Cache image preprocessing once, feed it with tf.data, and measure in joules whether that paid.",
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_INTERRUPTED = 130

# Older typer raises click's errors, newer its own copies: this is the base of whichever it is.
_UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class Format(StrEnum):
    """Shard formats."""

    arrow = "arrow"
    tfrecord = "tfrecord"


class Encoding(StrEnum):
    """Image encodings."""

    raw = "raw"
    jpeg = "jpeg"
    png = "png"


@app.command(
    epilog='Example: joulecache precompute photos/ cache/ --chain "decode|resize(256) || random_crop(224)|flip_lr"'
)
def precompute(
    source: Source,
    cache: Annotated[str, typer.Argument(help="What to build: new, empty, or a cache; s3://, gs://.")],
    chain: ChainText,
    beam_options: Annotated[list[str] | None, typer.Argument(help="Beam's own options, after --.")] = None,
    val_chain: Annotated[str | None, typer.Option(help="Of held-out records. Default: not random.")] = None,
    variants: Annotated[int, typer.Option(help="Draws of the cached ops to keep.", min=1, metavar="N")] = 1,
    format: Annotated[Format, typer.Option(help="Shard format.")] = Format.arrow,
    encoding: Annotated[Encoding, typer.Option(help="How images are stored.")] = Encoding.raw,
    quality: Annotated[int | None, typer.Option(help="JPEG quality. Default: 95.", min=1, max=100, metavar="N")] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(help="Held out. Default: 0.1, or as the source.", min=0, max=0.9, metavar="SHARE"),
    ] = None,
    seed: Seed = 0,
    shards: Annotated[int | None, typer.Option(help="Files per split. Default: of 64 MiB.", min=1, metavar="N")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads. Default: all cores.", min=1, metavar="N")] = None,
    limit: Limit = None,
    labels: Labels = None,
    ops: OpsModule = None,
    max_reject_rate: Annotated[
        float, typer.Option(help="Broken images to accept.", min=0, max=1, metavar="SHARE")
    ] = 0.05,
    rehash: Annotated[bool, typer.Option("--rehash", help="Compare contents, not only times.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Swap a cache of another chain.")] = False,
    country: Country = None,
    provider: Provider = "generic",
    watts: Watts = None,
    pue: Pue = 1.0,
    emissions: Emissions = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what Beam has to say.")] = False,
    as_json: AsJson = False,
) -> None:
    """Build a cache with Apache Beam, or find it up to date."""
    from joulecache.pipelines.building.precomputing import precompute as build
    from joulecache.transforms import parse

    own = own_ops(ops)
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        logging.getLogger("apache_beam").setLevel(logging.INFO)
    with progress() as tell:
        built = build(
            source,
            cache,
            parse(chain, own),
            val_chain=None if val_chain is None else parse(val_chain, own),
            variants=variants,
            format=format.value,
            encoding=encoding.value,
            quality=quality,
            val_fraction=val_fraction,
            seed=seed,
            shards=shards,
            workers=workers,
            limit=limit,
            labels=labels,
            max_reject_rate=max_reject_rate,
            replace=replace,
            rehash=rehash,
            beam_options=beam_options or (),
            meter=make_meter(country, provider, watts, pue, emissions),
            progress=lambda now: tell("records", now.done, now.records, _detail(now)),
        )
    if as_json:
        facts = {"unchanged": built.unchanged, "resumed_shards": built.resumed_shards, "workers": built.workers}
        print_json({**facts, "manifest": dataclasses.asdict(built.manifest)})
        return
    if built.unchanged:
        Console().print(f"{cache} is up to date: nothing to build")
    print_manifest(cache, built.manifest)


def _detail(now: BuildProgress) -> str:
    written = f"{now.written_bytes / 1e6:,.0f} MB"
    spent = "" if now.energy_j is None else f", {now.energy_j:,.0f} J"
    return f"{now.records_per_s:,.0f} images/s, {written}, {now.rejects:,} rejected{spent}"


@app.command(epilog="Example: joulecache inspect cache/ --sheet records.png")
def inspect(
    cache: Cache,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet of its records to this PNG file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is in a cache, and show records of it."""
    from joulecache.pipelines.cache.manifest_io import open_manifest

    manifest = open_manifest(cache)
    if sheet is not None:
        from joulecache.pipelines.report.contact_sheet import write_contact_sheet

        write_contact_sheet(cache, sheet)
    if as_json:
        print_json(dataclasses.asdict(manifest))
    else:
        print_manifest(cache, manifest)


@app.command(epilog="Example: joulecache verify cache/")
def verify(cache: Cache, as_json: AsJson = False) -> None:
    """Check every byte of a cache against its manifest; exit code 1 when something is wrong."""
    from joulecache.pipelines.cache.manifest_io import open_manifest
    from joulecache.pipelines.cache.verification import find_problems

    problems = find_problems(cache)
    files = len(open_manifest(cache).files())
    if as_json:
        print_json({"files": files, "problems": problems})
    else:
        for problem in problems:
            say(f"{cache}: {problem}")
        if not problems:
            Console().print(f"{cache}: {files} files, every byte as built")
    if problems:
        raise typer.Exit(1)


@app.command(epilog='Example: joulecache transforms --preview photo.jpg --chain "decode|resize(72) || random_crop(64)"')
def transforms(
    preview: Annotated[Path | None, typer.Option(help="Draw what --chain does to this image.", metavar="IMAGE")] = None,
    chain: Annotated[str | None, typer.Option(help="The chain to draw, goes with --preview.")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="The PNG file to draw to. Default: IMAGE-preview.png, here.")
    ] = None,
    seed: Seed = 0,
    ops: OpsModule = None,
    as_json: AsJson = False,
) -> None:
    """List the ops with what they cost on this machine, or draw what a chain makes of an image."""
    own = own_ops(ops)
    if (preview is None) != (chain is None):
        raise typer.BadParameter("--preview IMAGE and --chain go together")
    if preview is not None and chain is not None:
        from joulecache.pipelines.report.contact_sheet import write_preview
        from joulecache.transforms import parse

        parsed = parse(chain, own)
        path = sheet or Path(f"{preview.stem}-preview.png")
        if sheet is None and path.exists():
            raise FileExistsError(f"{path} exists: name the file to write by --sheet")
        write_preview(parsed, preview, path, seed)
        if as_json:
            print_json({"sheet": str(path), "chain": str(parsed), "seed": seed})
        else:
            Console().print(f"{path}: {parsed}", markup=False, soft_wrap=True)
        return
    rows = list(_op_rows(own or {}))
    if as_json:
        print_json(rows)
        return
    print_ops(rows)


def _op_rows(own: Mapping[str, type[Op]]) -> Iterator[dict[str, Any]]:
    """Yield what there is to say of every op, with its cost; ops of somebody's own are not measured."""
    from joulecache.pipelines.planning.transform_costs import EXAMPLES, op_costs
    from joulecache.transforms.ops import describe, op_name

    with progress() as tell:
        for done, cost in enumerate(op_costs()):
            tell("measuring the ops", done, len(EXAMPLES))
            name, usage, does = op_name(type(cost.op)), *describe(type(cost.op))
            yield {"op": name, "usage": usage, "does": does, "cpu_us_per_image": cost.cpu_us_per_image}
    for name, kind in own.items():
        usage, does = describe(kind)
        yield {"op": name, "usage": usage, "does": does, "cpu_us_per_image": None}


app.command(epilog='Example: joulecache plan photos/ --chain "decode|resize(72)|random_crop(64)|flip_lr" --epochs 30')(
    plan
)
app.command(epilog="Example: joulecache train cache/ --epochs 10 --prune 0.25 --quantize int8 --out run/")(train)
app.command(
    epilog="Example: joulecache compress run/model.keras --data cache/ --prune 0.25 --quantize int8 --out small/"
)(compress)


app.command(
    epilog='Example: joulecache audit photos/ --chain "decode|resize(72) || random_crop(64)|flip_lr" --out audit/\n\n'
    "Example: joulecache audit --pipeline my_module:make_dataset --pipeline my_module:faster --out audit/"
)(audit)
app.command(
    context_settings={"allow_interspersed_args": False},
    epilog="Example: joulecache run --country FRA -- python train.py",
)(run)
app.command(epilog="Example: joulecache hardware")(hardware)
app.command(epilog="Example: joulecache doctor")(doctor)


def main() -> None:
    """Run the command line. Every error is one line on stderr; exit code 1 for a job that failed, 2 for bad arguments."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow reads it when it is imported
    logging.getLogger().setLevel(logging.ERROR)
    try:
        arguments = sys.argv[1:] or ["--help"]
        code = typer.main.get_command(app).main(arguments, prog_name="joulecache", standalone_mode=False)
        if code == _INTERRUPTED:  # newer typer turns Ctrl-C into this code, older into Abort
            raise KeyboardInterrupt
    except _UsageError as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "joulecache"
        code = fail(f"{error.format_message()} See `{command} --help`.", 2)
    except (typer.Abort, KeyboardInterrupt):
        code = fail(
            "stopped; nothing half-built is visible: the same command goes on with a build or an audit, and begins anything else anew",
            _INTERRUPTED,
        )
    except ValueError as error:
        code = fail(str(error), 2)
    except (OSError, RuntimeError) as error:
        code = fail(str(error), 1)
    sys.exit(code or 0)
