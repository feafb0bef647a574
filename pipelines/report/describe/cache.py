"""What is in a cache."""

from __future__ import annotations

from collections.abc import Iterator

from joulecache.pipelines.cache.manifest import Manifest, Split
from joulecache.pipelines.core import quantities
from joulecache.pipelines.core.quantities import Spread, kind
from joulecache.pipelines.energy import Energy
from joulecache.pipelines.report.describe.values import active, joules, plural
from joulecache.pipelines.report.document import Block, Code, Column, Document, Paragraph, Section, Table, table, words

_CLASSES_SHOWN = 10


def describe_manifest(manifest: Manifest, name: str = "") -> Document:
    """Return what there is to say of a cache; `name` says where it is."""
    energy = None if manifest.energy is None else manifest.energy.energy
    flags = "" if energy is None else "; ".join(energy.flags)
    blocks: list[Block] = [_splits(manifest), *map(Paragraph, _facts(manifest, energy))]
    about = (f"{name}: ", Code(manifest.chain)) if name else (Code(manifest.chain),)
    return Document(
        "joulecache: a cache",
        name or manifest.chain,
        warning=f"Building it is flagged by the meter: {flags}." if flags else "",
        about=about,
        sections=(Section("", tuple(blocks)),),
    )


def _splits(manifest: Manifest) -> Table:
    rows = [
        (
            name,
            quantities.count(split.records),
            _shape(split),
            quantities.count(split.variants),
            quantities.count(len(split.files)),
            quantities.data_size(sum(file.bytes for file in split.files)),
            _levels(split.mean),
            _levels(split.std),
        )
        for name, split in manifest.splits.items()
        if split.records
    ]
    columns = (
        words("Split"),
        Column("Records"),
        Column("Image"),
        Column("Variants", priority=1),
        Column("Files", priority=2),
        Column("Size"),
        Column("Mean", priority=3),
        Column("Std", priority=4),
    )
    return table("", columns, rows)


def _shape(split: Split) -> str:
    return "x".join("?" if side is None else str(side) for side in split.image_shape)


def _levels(levels: tuple[float, ...]) -> str:
    return " ".join(f"{level:.1f}" for level in levels)


def _facts(manifest: Manifest, energy: Energy | None) -> Iterator[str]:
    names = manifest.class_names
    more = ", ..." if len(names) > _CLASSES_SHOWN else ""
    classes = f"{quantities.count(len(names))} {'class' if len(names) == 1 else 'classes'}"
    yield f"{classes}: {', '.join(names[:_CLASSES_SHOWN])}{more}." if names else f"{classes}."
    skipped = sum(manifest.source.skipped.values())
    yield (
        f"Stored as {manifest.format}, {manifest.encoding}. Source: {manifest.source.location}, "
        f"{quantities.data_size(manifest.source.bytes)}; {quantities.count(manifest.rejected.records)} rejected (listed in "
        f"{manifest.rejected.name}), {plural(skipped, 'other file')} skipped."
    )
    if energy is None:
        yield "Energy of the build: not measured, since other processes did part of it."
        return
    total = quantities.joules_range(energy.total_j, energy.low_j, energy.high_j)
    yield (
        f"Energy of the build: {total}, {energy.method}; active {_active(energy)}, {kind(energy.active.method)}. CPU time "
        f"{quantities.seconds(energy.cpu_s)}, time {quantities.seconds(energy.duration_s)}."
    )


def _active(energy: Energy) -> Spread:
    return joules(active(energy))
