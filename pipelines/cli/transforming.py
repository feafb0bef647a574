"""`joulecache transforms`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from joulecache.pipelines.cli.config_options import Given, OptionsOf
from joulecache.pipelines.cli.options import SOURCE_METAVARS, AsJson, OpsModule, Seed, import_ops
from joulecache.pipelines.cli.terminal import print_json, print_line, show
from joulecache.pipelines.core.progress import progress_bar
from joulecache.pipelines.source.config import SourceConfig

if TYPE_CHECKING:
    from joulecache.pipelines.report.describe.machine import OpRow
    from joulecache.transforms import Op

_Source = Annotated[
    Given, OptionsOf(SourceConfig, leave_out=("limit", "splits"), repeated=("target",), metavars=SOURCE_METAVARS)
]


def transforms(
    *,
    preview: Annotated[
        str | None,
        typer.Option(help="Draw what --chain does to this image, or to the first of a source.", metavar="IMAGE"),
    ] = None,
    chain: Annotated[str | None, typer.Option(help="The chain to draw; needs --preview.")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="The PNG file to draw to. Default: IMAGE-preview.png, in this folder.")
    ] = None,
    seed: Seed = 0,
    source: _Source,
    ops: OpsModule = None,
    as_json: AsJson = False,
) -> None:
    """List the ops with their cost on this machine, or draw what a chain does to an image."""
    custom = import_ops(ops)
    if preview is not None and chain is not None:
        _preview(preview, chain, sheet, seed, source, custom, as_json)
        return
    if preview is not None or chain is not None:
        raise typer.BadParameter("--preview IMAGE and --chain need each other")
    if source:
        raise typer.BadParameter(f"--{next(iter(source))} needs --preview")
    rows = list(_op_rows(custom or {}))
    if as_json:
        print_json(rows)
        return
    from joulecache.pipelines.report.describe.machine import describe_ops

    show(describe_ops(rows))


def _preview(
    location: str,
    text: str,
    sheet: Path | None,
    seed: int,
    source: Given,
    custom: Mapping[str, type[Op]] | None,
    as_json: bool,
) -> None:
    from joulecache.pipelines.report.render.contact_sheet import check_sheet, write_preview
    from joulecache.pipelines.source.first import read_first
    from joulecache.transforms import parse

    if sheet is not None:
        check_sheet(sheet)
    chain, config = parse(text, custom), SourceConfig(**source)
    features, record = read_first(location, config)
    path = sheet or Path(f"{PurePosixPath(record.key).stem}-preview.png")
    if sheet is None and path.exists():
        raise FileExistsError(f"{path} exists: name the file to write with --sheet")
    write_preview(chain, record, features, path, seed)
    if as_json:
        print_json({"sheet": str(path), "key": record.key, "chain": str(chain), "seed": seed})
    else:
        print_line(f"{path}: {chain}")


def _op_rows(custom: Mapping[str, type[Op]]) -> Iterator[OpRow]:
    """Yield the facts about each op; custom ops are not measured."""
    from joulecache.pipelines.planning.transform_costs import EXAMPLES, op_costs
    from joulecache.transforms.ops import describe, op_name

    with progress_bar() as bar:
        for done, cost in enumerate(op_costs()):
            bar("measuring the ops", done, len(EXAMPLES))
            name, (usage, does) = op_name(type(cost.op)), describe(type(cost.op))
            yield {"op": name, "usage": usage, "does": does, "cpu_us_per_image": cost.cpu_us_per_image}
    for name, kind in custom.items():
        usage, does = describe(kind)
        yield {"op": name, "usage": usage, "does": does, "cpu_us_per_image": None}
