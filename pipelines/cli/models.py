"""`joulecache train` and `joulecache compress`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from joulecache.pipelines.cli.options import (
    AsJson,
    Cache,
    Cluster,
    Country,
    Emissions,
    ModelName,
    OpsModule,
    Provider,
    Prune,
    Pue,
    Quantize,
    Seed,
    Sparsity,
    Watts,
    make_meter,
    own_ops,
)
from joulecache.pipelines.cli.terminal import no_greetings, print_compression, print_flags, print_json, progress

_DETAILS = "Compression, in detail"


class Criterion(StrEnum):
    """What makes a channel weak."""

    l1 = "l1"
    gamma = "gamma"


class Per(StrEnum):
    """What shares its values."""

    layer = "layer"
    channel = "channel"


def train(
    cache: Cache,
    out: Annotated[Path, typer.Option(help="The folder of the run: new, empty, or a run of ours.")],
    epochs: Annotated[int, typer.Option(help="Epochs to train.", min=1, metavar="N")],
    model: ModelName = "cnn",
    batch_size: Annotated[int, typer.Option(min=1, metavar="N")] = 64,
    learning_rate: Annotated[
        float, typer.Option(help="Where it starts; it falls to 0 along half a cosine.", metavar="X")
    ] = 1e-3,
    prune: Prune = 0.0,
    sparsity: Sparsity = 0.0,
    cluster: Cluster = None,
    quantize: Quantize = None,
    seed: Seed = 0,
    ops: OpsModule = None,
    country: Country = None,
    provider: Provider = "generic",
    watts: Watts = None,
    pue: Pue = 1.0,
    emissions: Emissions = None,
    as_json: AsJson = False,
) -> None:
    """Train on a cache, compress on request, and measure all of it."""
    meter, own = make_meter(country, provider, watts, pue, emissions), own_ops(ops)
    with no_greetings():
        from joulecache.pipelines.compressing.recipe import Recipe
        from joulecache.pipelines.training.trainer import train as train_on

    recipe = None
    if prune or sparsity or cluster is not None or quantize is not None:
        recipe = Recipe(
            prune=prune,
            sparsity=sparsity,
            clusters=cluster,
            quantize=None if quantize is None else quantize.value,
        )
    with progress() as tell:
        tell("training", 0, 1)
        trained = train_on(
            cache,
            out=out,
            epochs=epochs,
            model=model,
            batch_size=batch_size,
            seed=seed,
            learning_rate=learning_rate,
            recipe=recipe,
            meter=meter,
            progress=tell,
            ops=own,
        )
    compression = None if trained.compression is None else trained.compression.to_json()
    if as_json:
        print_json({"model": str(trained.path), **trained.training.to_json(), "compression": compression})
        return
    run = trained.training
    held_out = "not measured" if run.val_accuracy is None else f"{run.val_accuracy:.1%}"
    Console().print(f"{trained.path}: accuracy {run.accuracy:.1%}, held out {held_out}; training took {run.energy}")
    print_flags("training", run.energy.flags)
    print_compression(compression)


def compress(
    model: Annotated[Path, typer.Argument(help="A .keras or .h5 file.")],
    data: Annotated[str, typer.Option(help="The cache to tune, calibrate and measure on.", metavar="CACHE")],
    out: Annotated[Path, typer.Option(help="The folder of the compressed models.")],
    prune: Prune = 0.0,
    sparsity: Sparsity = 0.0,
    cluster: Cluster = None,
    quantize: Quantize = None,
    macs: Annotated[
        float | None,
        typer.Option(
            help="Prune channels until at most this share of the multiply-accumulates is left, in place of --prune.",
            min=0,
            max=1,
            rich_help_panel=_DETAILS,
            metavar="SHARE",
        ),
    ] = None,
    criterion: Annotated[
        Criterion,
        typer.Option(
            help="What makes a channel weak: the norm of its weights, or its BatchNormalization's gamma.",
            rich_help_panel=_DETAILS,
        ),
    ] = Criterion.l1,
    protect: Annotated[
        list[str] | None,
        typer.Option(help="A layer that keeps all channels. Again for more.", rich_help_panel=_DETAILS),
    ] = None,
    l1: Annotated[
        float,
        typer.Option(help="Weight of L1 in the loss while --sparsity grows.", rich_help_panel=_DETAILS, metavar="X"),
    ] = 0.0,
    cluster_per: Annotated[Per, typer.Option(help="What shares its values.", rich_help_panel=_DETAILS)] = Per.layer,
    finetune_epochs: Annotated[
        int, typer.Option(help="Epochs of fine-tuning after each step.", min=0, rich_help_panel=_DETAILS, metavar="N")
    ] = 2,
    seeds: Annotated[
        int,
        typer.Option(
            help="Do all of it for so many seeds, for the accuracies.", min=1, rich_help_panel=_DETAILS, metavar="N"
        ),
    ] = 1,
    seed: Seed = 0,
    ops: OpsModule = None,
    country: Country = None,
    provider: Provider = "generic",
    watts: Watts = None,
    pue: Pue = 1.0,
    emissions: Emissions = None,
    as_json: AsJson = False,
) -> None:
    """Prune, share weights and quantize a Keras model, and measure every form of it."""
    meter, own = make_meter(country, provider, watts, pue, emissions), own_ops(ops)
    with no_greetings():
        from joulecache.pipelines.compressing.compression import compress as compress_model
        from joulecache.pipelines.compressing.recipe import Recipe

    recipe = Recipe(
        prune=prune,
        macs=macs,
        criterion=criterion.value,
        protected=tuple(protect or ()),
        sparsity=sparsity,
        l1=l1,
        clusters=cluster,
        cluster_per=cluster_per.value,
        quantize=None if quantize is None else quantize.value,
        finetune_epochs=finetune_epochs,
    )
    with progress() as tell:
        tell("compressing", 0, 1)
        compression = compress_model(
            model, data, recipe, out=out, seed=seed, seeds=seeds, meter=meter, progress=tell, ops=own
        ).to_json()
    if as_json:
        print_json(compression)
    else:
        print_compression(compression)
