"""`joulecache train` and `joulecache compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from joulecache.pipelines.cli.config_options import Given, OptionsOf
from joulecache.pipelines.cli.logs import loading_keras
from joulecache.pipelines.cli.options import (
    AsJson,
    Cache,
    Energy,
    ModelName,
    OpsModule,
    Prometheus,
    Seed,
    import_model,
    import_ops,
    make_meter,
    metrics_file,
    wrote_emissions,
    wrote_metrics,
)
from joulecache.pipelines.cli.terminal import print_json, say, show, wrote
from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.core.progress import progress_bar, stdout_to_stderr
from joulecache.pipelines.training.results import TrainedModel

_STEPS = ("prune", "sparsity", "clusters", "quantize")
_MAIN = "Compression, in this order"
_DETAILS = "Compression, in detail"
_NAMES = {"clusters": "--cluster", "protected": "--protect"}
_SHARES = {"prune": "SHARE", "sparsity": "SHARE", "macs": "SHARE"}
_Steps = Annotated[Given, OptionsOf(Recipe, only=_STEPS, names=_NAMES, metavars=_SHARES, panel=_MAIN)]
_Details = Annotated[
    Given,
    OptionsOf(Recipe, leave_out=_STEPS, names=_NAMES, repeated=("protected",), metavars=_SHARES, panel=_DETAILS),
]
_ClassWeights = Annotated[
    list[str] | None,
    typer.Option(help="Weight of a class in the loss; repeat for several. Default: 1.", metavar="CLASS=WEIGHT"),
]


def train(
    *,
    cache: Cache,
    out: Annotated[Path, typer.Option(help="The folder of the run: new, empty, or an earlier run.")],
    epochs: Annotated[int, typer.Option(help="Epochs to train.", min=1, metavar="N")],
    model: ModelName = "cnn",
    batch_size: Annotated[int, typer.Option(help="Images in a batch.", min=1, metavar="N")] = 64,
    target: Annotated[
        list[str] | None, typer.Option(help="A target to train on; repeat for several. Default: all.", metavar="NAME")
    ] = None,
    sample_weight: Annotated[
        str | None, typer.Option(help="The target that weights each image.", metavar="NAME")
    ] = None,
    class_weight: _ClassWeights = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Initial learning rate; it falls to 0 along half a cosine. Default: 0.001.", metavar="X"),
    ] = None,
    steps: _Steps,
    seed: Seed = 0,
    ops: OpsModule = None,
    energy: Energy,
    prometheus: Prometheus = None,
    as_json: AsJson = False,
) -> None:
    """Train a model on a cache, compress it on request, and measure both."""
    meter, metrics, custom = make_meter(energy), metrics_file(prometheus), import_ops(ops)
    recipe = Recipe(**steps) if any(steps.values()) else None
    with loading_keras():
        from joulecache.pipelines.training.callback import EpochLines
        from joulecache.pipelines.training.trainer import train as train_model

    with stdout_to_stderr(), progress_bar() as bar:
        bar("training", 0, 1)
        trained = train_model(
            cache,
            out=out,
            epochs=epochs,
            model=import_model(model),
            batch_size=batch_size,
            seed=seed,
            learning_rate=learning_rate,
            targets=target,
            sample_weight=sample_weight,
            class_weight=_class_weights(class_weight),
            recipe=recipe,
            meter=meter,
            callbacks=[EpochLines(say)],
            progress=bar,
            ops=custom,
        )
    from joulecache.pipelines.report.prometheus import training_metrics

    wrote_emissions(meter)
    wrote_metrics(metrics, "train", training_metrics(trained.training))
    _show_trained(trained, out, as_json=as_json)


def _show_trained(trained: TrainedModel, out: Path, *, as_json: bool) -> None:
    if as_json:
        compression = None if trained.compression is None else trained.compression.to_json()
        print_json({"model": str(trained.path), **trained.training.to_json(), "compression": compression})
        return
    from joulecache.pipelines.report.describe.training import describe_training

    show(describe_training(trained))
    wrote("Run folder", out)


def _class_weights(options: list[str] | None) -> dict[str, float] | None:
    """Return weights by class, None without any; raise ValueError for anything but CLASS=WEIGHT."""
    if not options:
        return None
    weights: dict[str, float] = {}
    for option in options:
        name, equals, text = option.rpartition("=")
        try:
            weights[name] = float(text)
        except ValueError:
            equals = ""
        if not equals:
            raise ValueError(f"--class-weight must be CLASS=WEIGHT, such as cat=2.5, got {option!r}")
    return weights


def compress(
    *,
    model: Annotated[Path, typer.Argument(help="A .keras or .h5 file.", exists=True, dir_okay=False)],
    data: Annotated[str, typer.Option(help="The cache to tune, calibrate and measure on.", metavar="CACHE")],
    out: Annotated[Path, typer.Option(help="The folder of the compressed models.")],
    steps: _Steps,
    details: _Details,
    seeds: Annotated[
        int,
        typer.Option(
            help="Compress with this many seeds, for the accuracies.", min=1, rich_help_panel=_DETAILS, metavar="N"
        ),
    ] = 1,
    seed: Seed = 0,
    ops: OpsModule = None,
    energy: Energy,
    as_json: AsJson = False,
) -> None:
    """Prune, share weights of and quantize a Keras model, and measure each resulting file."""
    meter, custom, recipe = make_meter(energy), import_ops(ops), Recipe(**steps, **details)
    with loading_keras():
        from joulecache.pipelines.compressing.compression import compress as compress_model

    with progress_bar() as bar:
        bar("compressing", 0, 1)
        compression = compress_model(
            model, data, recipe, out=out, seed=seed, seeds=seeds, meter=meter, progress=bar, ops=custom
        )
    wrote_emissions(meter)
    if as_json:
        print_json(compression.to_json())
        wrote("Models", out, stderr=True)
        return
    from joulecache.pipelines.report.describe.compression import describe_compression

    show(describe_compression(compression))
    wrote("Models", out)
