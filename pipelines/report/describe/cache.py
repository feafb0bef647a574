"""The contents of a cache."""

from __future__ import annotations

from collections.abc import Iterator

from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.core.quantities import count, data_size, kind, seconds
from joulecache.pipelines.report.describe.values import active, class_list, flagged, joules, plural, total
from joulecache.pipelines.report.document import Block, Code, Column, Document, Paragraph, Section, Table, table, words

_CLASSES_SHOWN = 10


def describe_manifest(manifest: Manifest, name: str = "") -> Document:
    """Describe a cache; `name` is its path or URL."""
    blocks: list[Block] = [_splits(manifest), *map(Paragraph, _facts(manifest))]
    return Document(
        "joulecache: a cache",
        name or manifest.chain,
        warning=flagged("Building it", manifest.energy.energy) if manifest.energy else "",
        about=(f"{name}: ", Code(manifest.chain)) if name else (Code(manifest.chain),),
        sections=(Section("", tuple(blocks)),),
    )


def _splits(manifest: Manifest) -> Table:
    def levels(values: tuple[float, ...]) -> str:
        return " ".join(f"{level:.1f}" for level in values)

    return table(
        "",
        [(name, split) for name, split in manifest.splits.items() if split.records],
        {
            words("Split"): lambda row: row[0],
            Column("Records"): lambda row: count(row[1].records),
            Column("Image"): lambda row: "x".join("?" if side is None else str(side) for side in row[1].image_shape),
            Column("Variants", priority=1): lambda row: count(row[1].variants),
            Column("Files", priority=2): lambda row: count(len(row[1].files)),
            Column("Size"): lambda row: data_size(sum(file.bytes for file in row[1].files)),
            Column("Mean", priority=3): lambda row: levels(row[1].mean),
            Column("Std", priority=4): lambda row: levels(row[1].std),
        },
    )


def _facts(manifest: Manifest) -> Iterator[str]:
    source, rejected = manifest.source, manifest.rejected
    yield class_list(manifest.class_names, _CLASSES_SHOWN)
    yield (
        f"Stored as {manifest.format}, {manifest.encoding}. Source: {source.location}, {data_size(source.bytes)}; "
        f"{count(rejected.records)} rejected (listed in {rejected.name}), {plural(sum(source.skipped.values()), 'other file')} skipped."
    )
    if manifest.energy is None:
        yield "Energy of the build: not measured, since other processes did part of it."
        return
    energy = manifest.energy.energy
    yield (
        f"Energy of the build: {total(energy)}, {energy.method}; active {joules(active(energy))}, {kind(energy.active.method)}. CPU time "
        f"{seconds(energy.cpu_s)}, time {seconds(energy.duration_s)}."
    )
