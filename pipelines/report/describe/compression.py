"""What a compression saved and lost."""

from __future__ import annotations

from collections.abc import Iterator

from joulecache.pipelines.compressing.results import COMPRESSION_RECORD, CONTROL, Compression, ModelFile
from joulecache.pipelines.core import quantities
from joulecache.pipelines.core.quantities import Spread
from joulecache.pipelines.energy import Energy
from joulecache.pipelines.report.describe.values import active, constant_answer, joules, joules_column
from joulecache.pipelines.report.document import (
    Block,
    Chart,
    Column,
    Document,
    Dot,
    Paragraph,
    Scatter,
    Section,
    Table,
    table,
    words,
)

_MOST_LAYERS = 16  # whose widths are listed
_FASTER = (
    "Faster: every run used less CPU time than that of the model it is compared with, which is not pruned and has the same precision. "
    "Quantized models that are not pruned are compared with the float32 one."
)


def describe_compression(compression: Compression) -> Document:
    """Describe a compression."""
    name = compression.model_files[-1].name
    warning = " ".join(("Flagged by the meter.", *flagged)) if (flagged := flagged_energies(compression)) else ""
    section = Section("", (*compression_blocks(compression), *_flag_tables(compression, detail=False)))
    return Document("joulecache: compressed models", name, warning=warning, sections=(section,))


def compression_blocks(compression: Compression) -> tuple[Block, ...]:
    """Return the sentences, the chart and the tables of a compression."""
    return (
        *(Paragraph(sentence) for sentence in compression_sentences(compression)),
        _chart(compression),
        _model_files(compression),
        Paragraph(_FASTER, muted=True),
    )


def compression_section(compression: Compression | None) -> Section:
    """Return the section of a report about the compressed model."""
    if compression is None:
        return Section("Compressed model", (Paragraph("No model was compressed.", detail=True),))
    return Section("Compressed model", (*compression_blocks(compression), *_flag_tables(compression, detail=True)))


def _tag(file: ModelFile) -> str:
    return quantities.kind(file.energy_per_image.active.method)


# Sentences ------------------------------------------------------------------------------------------------------------


def compression_sentences(compression: Compression) -> tuple[str, ...]:
    """Say what the last model saved and lost, which other one uses less energy, and what was spent once."""
    first, last = compression.model_files[0], compression.model_files[-1]
    found = []
    if first is not last:
        found.append(_against_unpruned(compression))
        leanest = min(compression.model_files, key=lambda file: file.energy_per_image.active_j)
        if leanest is not last:
            found.append(
                f"{leanest.name} uses less energy per image than {last.name} on this machine, at an accuracy of "
                f"{quantities.share(leanest.accuracy)}."
            )
    found += [_chance(compression), _lost(compression, last.name), _spent_once(compression)]
    if compression.widths:
        found.append(_channels_kept(compression))
    return tuple(filter(None, found))


def _channels_kept(compression: Compression) -> str:
    widths = compression.widths
    if len(widths) <= _MOST_LAYERS:
        kept = ", ".join(f"{name} {before} to {after}" for name, (before, after) in widths.items())
        return f"Channels kept: {kept}."
    before, after = (quantities.count(sum(each)) for each in zip(*widths.values(), strict=True))
    return f"Channels kept: {after} of {before}, in {len(widths)} layers; the widths of all: {COMPRESSION_RECORD}."


def _against_unpruned(compression: Compression) -> str:
    """Compare the last model with the control, which was fine-tuned too; without one, with the given model."""
    first, other, last = compression.model_files[0], compression.uncompressed, compression.model_files[-1]
    note = ""
    if other is not first:
        note = f" ({first.name}, fine-tuned without compression)"
    elif last.finetune_energy is not None:
        note = " (not fine-tuned)"
    storage = quantities.change(last.file_bytes / other.file_bytes)
    time = quantities.change(last.cpu_ms_per_image / other.cpu_ms_per_image)
    energy = quantities.change(last.energy_per_image.active_j / other.energy_per_image.active_j)
    apart = last.accuracy_high < other.accuracy_low or other.accuracy_high < last.accuracy_low
    return (
        f"{last.name} against {other.name}{note}: {storage} storage, {time} CPU time per image, {energy} active energy "
        f"({_tag(last)}); accuracy {quantities.share(last.accuracy)} against {quantities.share(other.accuracy)}, and their intervals "
        f"{'do not overlap' if apart else 'overlap'}."
    )


def _chance(compression: Compression) -> str:
    """Name the models that are not shown to be better than chance."""
    names = [file.name for file in compression.model_files if compression.is_at_chance(file)]
    if compression.chance is None or not names:
        return ""
    found = "all model files" if len(names) == len(compression.model_files) else quantities.listed(names)
    return f"At chance level: {found}. {constant_answer(compression.chance)}"


def _lost(compression: Compression, name: str) -> str:
    if name not in compression.accuracy_lost:
        return ""
    points = [100 * share for share in compression.accuracy_lost[name]]
    changed = "lost"
    if points[0] < 0:
        changed, points = "gained", [-points[0], -points[2], -points[1]]
    mean, low, high = (f"{each:z.1f}" for each in points)
    seeds = len(compression.accuracies[name])
    return f"Over {seeds} seeds, {name} {changed} {mean} points against the control (95%: {low} to {high})."


def _spent_once(compression: Compression) -> str:
    """Say how much energy fine-tuning the last model and the control used, and when the last model pays it back."""
    last = compression.model_files[-1]
    spent = {
        "the control" if file.name == CONTROL else file.name: file.finetune_energy
        for file in compression.model_files
        if file.finetune_energy is not None and (file is last or file.name == CONTROL)
    }
    if not spent:
        return ""
    costs = [
        f"fine-tuning {name} used {quantities.joules(energy.active_j)} ({quantities.kind(energy.active.method)})"
        + (
            ""
            if energy.carbon_g is None
            else f", {quantities.grams(energy.carbon_g)} of CO2 equivalent with the idle machine"
        )
        for name, energy in spent.items()
    ]
    text = f"Spent once: {', '.join(costs)}."
    after = last.inferences_to_pay_back
    if after is not None:
        inferences = quantities.short_count(after)
        return f"{text} {last.name} pays that back against {last.dense} after {inferences} inferences."
    if last.name in spent and last.steps:
        return f"{text} {last.name} never pays that back: not every run used less energy than that of {last.dense}."
    return text


# Tables and the chart -------------------------------------------------------------------------------------------------


def _model_files(compression: Compression) -> Table:
    files = compression.model_files
    first = files[0]
    return table(
        "Model files",
        files,
        {
            words("Model file"): lambda file: file.name,
            Column("Parameters", "params", priority=4): lambda file: quantities.count(file.parameters),
            Column("Non-zero weights", "not 0", priority=5): lambda file: quantities.count(file.nonzero_weights),
            Column("MACs", priority=6): lambda file: (
                "not counted" if file.macs is None else quantities.count(file.macs)
            ),
            Column("File"): lambda file: quantities.data_size(file.file_bytes),
            Column("gzip", priority=2): lambda file: quantities.data_size(file.gzip_bytes),
            Column("Accuracy (95% interval)", "accuracy, 95%"): _accuracy,
            Column("Fastest CPU time per image", "CPU /image"): lambda file: (
                f"{quantities.number(file.cpu_ms_per_image)} ms"
            ),
            Column("Median CPU time per image", "median", priority=7): lambda file: (
                f"{quantities.number(file.cpu_ms_per_image_median)} ms"
            ),
            Column("Active energy per image (low to high)", "active energy /image"): joules_column(
                files, lambda file: active(file.energy_per_image), _tag(first)
            ),
            words("Compared with", priority=3): lambda file: file.dense or "-",
            words("Faster", priority=1): lambda file: quantities.answer(file.faster_than_dense),
        },
        f"Accuracy on {quantities.count(first.images)} held-out images. CPU time: {first.runs} runs on one thread, in batches of "
        f"{first.batch_size} images that are already in memory. MACs: multiply-accumulates per image."
        f"{_effect_of_zeros(compression)}",
    )


def _accuracy(file: ModelFile) -> Spread:
    return quantities.share_range(file.accuracy, file.accuracy_low, file.accuracy_high)


def _effect_of_zeros(compression: Compression) -> str:
    """Say what zeros and shared values save: bytes, and time only if measured on models that kept all channels."""
    files = [file for file in compression.model_files if {"sparse", "clustered"} & set(file.steps)]
    if not files:
        return ""
    sizes = {file.name: (file.parameters, file.macs) for file in compression.model_files}
    whole = [file for file in files if file.dense and (file.parameters, file.macs) == sizes.get(file.dense)]
    faster = [file.name for file in whole if file.faster_than_dense]
    slower = [file.name for file in whole if not file.faster_than_dense]
    text = " Zeros and shared values save bytes in a compressed file"
    if not whole:
        return f"{text}; their effect on time was not measured separately, since channels were removed too."
    if not faster:
        return f"{text}, not time: the kernels on this machine multiply zeros too."
    others = f", but not {', '.join(slower)}" if slower else ""
    return f"{text}; with as many MACs as the model it is compared with, faster: {', '.join(faster)}{others}."


def _energies(compression: Compression) -> Iterator[tuple[str, str, Energy]]:
    """Yield each energy with the kind of its measurement and the name of its model file."""
    for file in compression.model_files:
        yield "Model files", file.name, file.energy_per_image
    for file in compression.model_files:
        if file.finetune_energy is not None:
            yield "Fine-tunings", file.name, file.finetune_energy


def flagged_energies(compression: Compression) -> list[str]:
    """Say how many energies the meter flagged, one sentence for each kind."""
    found: dict[str, list[bool]] = {}
    for what, _, energy in _energies(compression):
        found.setdefault(what, []).append(bool(energy.flags))
    return [f"{what}: {sum(flags)} of {len(flags)}." for what, flags in found.items() if any(flags)]


def _flag_tables(compression: Compression, *, detail: bool) -> Iterator[Table]:
    columns = {
        words("What"): lambda row: row[0],
        words("Model file"): lambda row: row[1],
        words("Why"): lambda row: ", ".join(row[2].flags),
    }
    if rows := [row for row in _energies(compression) if row[2].flags]:
        yield table("Flagged measurements", rows, columns, detail=detail)


def _chart(compression: Compression) -> Chart:
    files = compression.model_files
    like_j = quantities.largest(file.energy_per_image.active_j for file in files)
    dots = tuple(
        Dot(
            file.name,
            1000 * file.energy_per_image.active_j,
            None,
            100 * file.accuracy,
            (100 * file.accuracy_low, 100 * file.accuracy_high),
        )
        for file in files
    )
    shown = (
        f"{file.name} {joules(active(file.energy_per_image), like_j)} per image, accuracy {_accuracy(file)}"
        for file in files
    )
    return Chart(
        "Accuracy and energy",
        Scatter(dots, "active J per 1,000 inferences", "accuracy, %"),
        f"Points: {'; '.join(shown)}.",
        "Up and to the left is better. Error bars: the 95% interval of the accuracy on the held-out images.",
        _tag(files[0]),
    )
