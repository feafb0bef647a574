"""A report on a terminal: the verdict and small tables, whole at 80 columns and plain when piped."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from joulecache.pipelines.report import figures, verdict
from joulecache.pipelines.report.tables import active_ends
from joulecache.pipelines.report.verdict import REFERENCE, Body

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_STYLES = {"saves": "green", "costs": "red", "inconclusive": "yellow"}
_LONGEST_NAME = 24  # of a variant on one line, so that 80 columns hold all


def print_verdict(body: Body, console: Console) -> None:
    """Print what an audit found: its sentences, a table of each workload, the break-even epochs and the model files."""
    shown: Body = figures.visible(body)
    tag = verdict.active_tag(shown)
    for said in verdict.headline(shown):
        _print(console, said.claim, f"bold {_STYLES.get(said.finding, '')}".strip())
        _print(console, f"{said.detail} Joules: {said.tag}.")
        console.print()
    for doubt in verdict.doubts(shown):
        _print(console, f"Flagged by the meter: {doubt}", "yellow")
    for result in shown["workloads"]:
        console.print(_arms(result, tag))
        for compared in result["comparisons"]:
            paid = verdict.paid_back(compared)
            _print(console, f"  vs {compared['other']}: {compared['finding']}; {paid}")
        _print(console, f"  control, {REFERENCE} against itself: {figures.ratio_range(result['control'])}")
        console.print()
    if shown["compression"] is not None:
        print_compression(shown["compression"], console)


def print_compression(compression: Body, console: Console) -> None:
    """Print the model files of a compression, and what they gained and lost."""
    shown: Body = figures.visible(compression)
    console.print(compression_table(shown))
    for sentence in verdict.compression_sentences(shown):
        _print(console, sentence)


def compression_table(compression: Body) -> Table:
    """Return the model files of a compression as a table for a terminal of 80 columns; its texts are visible ones."""
    variants = compression["variants"]
    spent = [active_ends(variant["energy_per_image"]) for variant in variants]
    like = figures.largest(energy["value"] for energy in spent)
    unit = figures.joules(like).rpartition(" ")[2]
    tag = figures.kind(variants[0]["energy_per_image"]["active"]["method"])
    table = _table(f"Model files, energy {tag}")
    table.caption = _text(
        f"Faster: each of {variants[0]['runs']} runs took less CPU time than the unpruned model's at the same precision; unpruned and "
        "quantized: than the float32 one's.",
        "dim",
    )
    table.caption_justify = "left"
    heads = ("weights,\nnot 0", "file,\ngzip", "accuracy,\n95%", "CPU ms\n/image", f"active {unit}\n/image", "faster\n")
    for head in ("variant", *heads):
        table.add_column(_text(head), justify="left" if head == "variant" else "right", overflow="fold")
    for variant, energy in zip(variants, spent, strict=True):
        ends = (variant["accuracy_low"], variant["accuracy_high"])
        table.add_row(
            _text("\n".join(textwrap.wrap(variant["name"], _LONGEST_NAME))),
            _two(figures.short_count(variant["parameters"]), figures.short_count(variant["nonzero_weights"])),
            _two(figures.data_size(variant["file_bytes"]), figures.data_size(variant["gzip_bytes"])),
            _two(figures.share(variant["accuracy"]), "-".join(figures.share(end).removesuffix("%") for end in ends)),
            figures.number(variant["cpu_ms_per_image"]),
            _energy(energy, like),
            figures.answer(variant["faster_than_dense"]),
        )
    return table


def print_changes(changes: Body, console: Console) -> None:
    """Print what changed between two audits, as `Changes.to_json` has it."""
    shown: Body = figures.visible(changes)
    for name, (before, after) in shown["settings"].items():
        _print(console, f"{name}: {_setting(before)} before, {_setting(after)} after")
    table = _table("Active J per 1,000 images, after over before")
    for head in ("workload", "arm", "before", "after", "ratio, 95%", "to naive,\nbefore", "\nafter"):
        table.add_column(_text(head), justify="left" if head in ("workload", "arm") else "right", overflow="fold")
    for arm in shown["arms"]:
        before, after = arm["before"], arm["after"]
        table.add_row(
            _text(arm["workload"]),
            _text(arm["arm"]),
            figures.number(before["active_j_per_1000"]),
            figures.number(after["active_j_per_1000"]),
            figures.ratio_range(arm["ratio"]),
            f"{before['ratio']:.3f}",
            f"{after['ratio']:.3f}",
        )
    console.print(table)
    for arm in shown["arms"]:
        before, after = arm["before"], arm["after"]
        if before["finding"] != after["finding"]:
            _print(console, f"{arm['workload']}, {arm['arm']}: {before['finding']} before, {after['finding']} after")
    for when in ("before", "after"):
        if shown[f"only_{when}"]:
            _print(console, f"Only {when}: {'; '.join(shown[f'only_{when}'])}")


def _setting(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return "none" if value is None else str(value)


def _arms(result: Body, tag: str) -> Table:
    arms = result["arms"]
    spent = [arm["active_j_per_1000"] for arm in arms]
    like = figures.largest(energy["value"] for energy in spent)
    unit = figures.joules(like).rpartition(" ")[2]
    once = figures.largest(arm["one_time"]["value"] for arm in arms)
    learned = any(arm["accuracy"] for arm in arms)
    table = _table(
        f"{verdict.title_of(result['workload'])}, {result['blocks']} blocks, energy {tag}", gap=0 if learned else 1
    )
    heads = ["CPU us\n/image", f"active {unit}\n/1,000", "img/s", f"ratio to\n{REFERENCE}, 95%"]
    heads += ["accuracy,\nruns"] if learned else []
    table.add_column("arm", overflow="fold")
    for head in [*heads, "spent\nonce"]:
        table.add_column(_text(head), justify="right", overflow="fold")
    table.add_column("finding", overflow="fold")
    for arm, energy in zip(arms, spent, strict=True):
        reference = arm["name"] == REFERENCE
        row = [
            _text(arm["name"]),
            _text(figures.number(arm["cpu_us_per_image"])),
            _energy(energy, like),
            _text(figures.number(arm["images_per_s"])),
            _text("1") if reference else _ratio(arm["ratio"]),
            *([_accuracy(arm["accuracy"])] if learned else []),
            _text(figures.joules(arm["one_time"]["value"], once)),
            _text("reference") if reference else _text(arm["finding"], _STYLES.get(arm["finding"], "")),
        ]
        table.add_row(*row)
    return table


def _table(title: str, gap: int = 0) -> Table:
    from rich import box
    from rich.table import Table

    # folded: at 80 columns all fits, and where it does not, nothing may be cut off
    return Table(
        title=_text(title, "bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, gap, 0, 0),
        pad_edge=False,
    )


def _energy(energy: Body, like: float) -> Text:
    value, low, high = (figures.joules(energy[end], like) for end in ("value", "low", "high"))
    common = figures.joules(like).rpartition(" ")[2]
    if not all(text.endswith(f" {common}") for text in (value, low, high)):
        return _two(value, f"{low}-{high}")
    value, low, high = (text.removesuffix(f" {common}") for text in (value, low, high))
    return _two(value, f"{low}-{high}")


def _ratio(ratio: Body) -> Text:
    if ratio["low"] is None or ratio["high"] is None:
        return _two(figures.plain_ratio(ratio["value"]), "one block")
    return _two(
        figures.plain_ratio(ratio["value"]), f"{figures.plain_ratio(ratio['low'])}-{figures.plain_ratio(ratio['high'])}"
    )


def _accuracy(accuracy: list[float] | None) -> Text:
    if accuracy is None:
        return _two("not", "measured")
    mean, low, high = accuracy
    return _two(figures.share(mean), "-".join(figures.share(end).removesuffix("%") for end in (low, high)))


def _two(first: str, second: str) -> Text:
    """Put the ends of an interval below its value: side by side they do not fit."""
    text = _text(f"{first}\n")
    text.append(second, "dim")
    return text


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    # a Text, unlike a str, is never read as markup
    return Text(text, style)


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(_text(text, style))
