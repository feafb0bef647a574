"""A report on a terminal: the verdict and small tables, whole at 80 columns and plain when piped."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from joulecache.pipelines.report import figures, stages, verdict
from joulecache.pipelines.report.reuse import accuracy_range, mean_range, points_range, reuse_sentences, seen
from joulecache.pipelines.report.tables import active_ends, kept_for_a_day
from joulecache.pipelines.report.verdict import PARTS, Body

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_STYLES = {"saves": "green", "costs": "red", "inconclusive": "yellow", "not inferior": "green", "inferior": "red"}
_LONGEST_NAME = 24  # of a variant on one line, so that 80 columns hold all


def print_verdict(body: Body, console: Console) -> None:
    """Print what an audit found: its sentences, a table of each workload, the break-even epochs and the model files."""
    shown: Body = figures.visible(body)
    for said in verdict.headline(shown):
        _print(console, said.claim, f"bold {_STYLES.get(said.finding or '', '')}".strip())
        _print(console, f"{said.detail} Joules: {said.tag}.".lstrip())
        console.print()
    if doubts := verdict.doubts(shown):
        _print(console, f"Flagged by the meter. {doubts}", "yellow")
        console.print()
    if shown["stages"] is not None:
        console.print(_stages(shown))
        for sentence in stages.stage_sentences(shown):
            _print(console, f"  {sentence}")
        console.print()
    for result in shown["workloads"]:
        console.print(_arms(result, shown))
        if any(arm["parts"] for arm in result["arms"]):
            console.print()
            console.print(_parts(result, shown))
        for compared in result["comparisons"]:
            paid = verdict.paid_back(compared)
            _print(console, f"  vs {compared['other']}: {compared['finding']}; {paid}")
        _print(console, f"  control, {shown['reference']} against itself: {figures.ratio_range(result['control'])}")
        console.print()
    if shown["build"] is not None:
        kept, size = kept_for_a_day(shown["build"]), figures.data_size(shown["build"]["cache_bytes"])
        _print(
            console, f"Keeping the cache, {size}, takes {kept.text} a day {kept.ends}, {kept.tag}; it is in no ratio."
        )
        console.print()
    if shown["reuse"] is not None:
        _print_reuse(shown["reuse"], shown["horizon_epochs"], console)
    if shown["compression"] is not None:
        print_compression(shown["compression"], console)


def _print_reuse(reuse: Body, horizon: int, console: Console) -> None:
    """Print how often draws are seen again, and the curve where it was measured."""
    if reuse["points"]:
        console.print(_curve(reuse))
    for sentence in reuse_sentences(reuse, horizon):
        _print(console, sentence)
    console.print()


def _curve(reuse: Body) -> Table:
    points, tag = reuse["points"], figures.kind(reuse["points"][0]["build"]["active"]["method"])
    like = figures.largest(point["with_build_j_per_1000"]["value"] for point in points)
    table = _table(f"Draws that are seen again, {points[0]['accuracy']['count']} seeds, energy {tag}", gap=1)
    table.add_column(_text("cached\ndraws"), overflow="fold")
    heads = ("a training\nsees each", "active, with\nthe build, /1,000", "accuracy,\n95%", "points from\nfresh, 95%")
    for head in heads:
        table.add_column(_text(head), justify="right", overflow="fold")
    table.add_column(_text("finding"), overflow="fold")
    for point in points:
        found, difference = point["finding"], point["difference"]
        table.add_row(
            _text(point["name"]),
            _text(seen(point["train_reuse"])),
            _below(mean_range(point["with_build_j_per_1000"], like)),
            _below(accuracy_range(point["accuracy"])),
            _text("reference") if difference is None else _below(points_range(difference)),
            _text("reference") if found is None else _text(found, _STYLES.get(found, "")),
        )
    return table


def _below(text: str) -> Text:
    """Put the ends of ``value (low to high)`` below the value."""
    value, _, ends = text.partition(" (")
    return _two(value, ends.removesuffix(")").replace("% to ", "-"))


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
    for head in ("workload", "arm", "before", "after", "ratio, 95%", "to refer-\nence before", "\nafter"):
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


def _arms(result: Body, body: Body) -> Table:
    arms, compared, cached = result["arms"], len(result["arms"]) > 1, body["cached"] is not None
    spent = [arm["active_j_per_1000"] for arm in arms]
    like = figures.largest(energy["value"] for energy in spent)
    unit = figures.joules(like).rpartition(" ")[2]
    once = figures.largest(arm["one_time"]["value"] for arm in arms)
    learned = any(arm["accuracy"] for arm in arms)
    table = _table(
        f"{verdict.title_of(result['workload'])}, {result['blocks']} blocks, energy {verdict.active_tag(body)}",
        gap=0 if learned else 1,
    )
    table.add_column("arm", overflow="fold")
    heads = ["CPU us\n/image", f"active {unit}\n/1,000", "img/s"]
    heads += [f"ratio to\n{body['reference']}, 95%" if cached else "ratio,\n95%"] if compared else []
    heads += ["accuracy,\nruns"] if learned else []
    heads += ["spent\nonce"] if cached else []
    for head in heads:
        table.add_column(_text(head), justify="right", overflow="fold")
    if compared:
        table.add_column("finding", overflow="fold")
    for arm, energy in zip(arms, spent, strict=True):
        reference = arm["name"] == body["reference"]
        row = [
            _text(arm["name"]),
            _text(figures.number(arm["cpu_us_per_image"])),
            _energy(energy, like),
            _text(figures.number(arm["images_per_s"])),
            *([_text("1") if reference else _ratio(arm["ratio"])] if compared else []),
            *([_accuracy(arm["accuracy"])] if learned else []),
            *([_text(figures.joules(arm["one_time"]["value"], once))] if cached else []),
        ]
        if compared:
            row.append(_text("reference") if reference else _text(arm["finding"], _STYLES.get(arm["finding"], "")))
        table.add_row(*row)
    return table


def _stages(body: Body) -> Table:
    """Return where the joules go, in one line for each stage."""
    table = _table("Where the joules go, per 1,000 images", gap=2)
    for head in ("stage", "active energy", "95%", "share"):
        table.add_column(_text(head), justify="left" if head == "stage" else "right", overflow="fold")
    for name, energy, share, _ in stages.stage_rows(body):
        table.add_row(_text(name.text), _text(energy.text), _text(energy.ends.strip("()"), "dim"), _text(share.text))
    return table


def _parts(result: Body, body: Body) -> Table:
    """Return the input and the training of each pipeline by themselves, beside both together."""
    images_per_step = {each["name"]: each["images"] / each["batches"] for each in body["pipelines"]}
    measured = [(arm, part) for arm in result["arms"] for part in (*arm["parts"], arm)]
    like = figures.largest(part["active_j_per_1000"]["value"] for _, part in measured)
    table = _table("Input and training by themselves, in the same blocks", gap=1)
    table.add_column("arm", overflow="fold")
    table.add_column("what ran", overflow="fold")
    for head in (f"active {figures.joules(like).rpartition(' ')[2]}\n/1,000", "time\n/step", "energy to both,\n95%"):
        table.add_column(_text(head), justify="right", overflow="fold")
    for arm, part in measured:
        whole = part is arm
        step_us = part["wall_us_per_image"] * images_per_step[arm["name"]]
        table.add_row(
            _text(arm["name"]),
            _text("both" if whole else f"{PARTS.get(part['name'], part['name'])} alone"),
            _energy(part["active_j_per_1000"], like),
            _text(figures.seconds(step_us / 1e6)),
            _text("1") if whole else _ratio(part["ratio"]),
        )
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
