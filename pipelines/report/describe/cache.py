"""The contents of a cache, and what a build did."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

from joulecache.pipelines.building.results import Built
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest import HostEnergy, Manifest, Split
from joulecache.pipelines.core.quantities import count, data_size, kind, listed, plural, seconds, shortened
from joulecache.pipelines.energy import Energy
from joulecache.pipelines.report.describe.targets import by_split, describe_targets
from joulecache.pipelines.report.describe.values import active, flagged, joules, total
from joulecache.pipelines.report.document import (
    Block,
    Cell,
    Code,
    Column,
    Document,
    Paragraph,
    Section,
    Table,
    table,
    words,
)
from joulecache.transforms.chain import UnknownOpError, parse

_KINDS_SHOWN = 10


def describe_manifest(manifest: Manifest, name: str = "") -> Document:
    """Describe a cache; `name` is its path or URL."""
    splits = {split: found for split, found in manifest.splits.items() if found.records}
    facts = map(Paragraph, filter(None, (_age(manifest), _draws(manifest), _source(manifest, name))))
    blocks: list[Block] = [_splits(splits), *describe_targets(manifest, splits), *facts, *_energy(manifest)]
    return Document(
        "joulecache: a cache",
        name or manifest.chain,
        warning=flagged("Building it", manifest.energy.energy) if manifest.energy else "",
        about=(f"{name}: ", Code(manifest.chain)) if name else (Code(manifest.chain),),
        sections=(Section("", tuple(blocks)),),
    )


def describe_build(built: Built, name: str = "") -> Document:
    """Describe a cache and what its build did; `name` is the path or URL of the cache."""
    document = describe_manifest(built.manifest, name)
    done = Paragraph(" ".join(_done(built)))
    sections = (Section("", (done,)), *document.sections) if done.text else document.sections
    return dataclasses.replace(document, sections=sections)


def _done(built: Built) -> Iterator[str]:
    """Yield what a build did, unless it computed every image."""
    if built.unchanged:
        yield "Up to date: nothing to build."
        return
    images = sum(split.records * split.variants for split in built.manifest.splits.values())
    if built.transformed < images:
        yield f"Computed {count(built.transformed)} of {plural(images, 'image')}; the others were in the cache."
    if built.resumed_shards:
        yield f"Resumed an interrupted build, which had finished {plural(built.resumed_shards, 'shard')}."
    in_all = built.manifest.energy
    if built.energy is not None and (in_all is None or in_all.energy != built.energy):
        yield f"This build used {joules(active(built.energy))} active, {kind(built.energy.active.method)}."


def _age(manifest: Manifest) -> str:
    """Return whether ops of other versions built the cache; "" if not, or if it has custom ops."""
    with suppress(CacheError):
        if any(manifest.is_outdated(name) for name, split in manifest.splits.items() if split.records):
            return "Built with other versions of its ops: the images of a new build differ."
    return ""


def _splits(splits: Mapping[str, Split]) -> Table:
    def levels(values: tuple[float, ...]) -> str:
        return " ".join(f"{level:.1f}" for level in values)

    facts: dict[str, Callable[[Split], str]] = {
        "Records": lambda split: count(split.records),
        "Image": lambda split: "x".join("?" if side is None else str(side) for side in split.image_shape),
        "Variants": lambda split: count(split.variants),
        "Files": lambda split: count(len(split.files)),
        "Size": lambda split: data_size(sum(file.bytes for file in split.files)),
        "Mean": lambda split: levels(split.mean),
        "Std": lambda split: levels(split.std),
    }
    return by_split("Split", facts, splits)


def _draws(manifest: Manifest) -> str:
    """Say how often the random ops before the cut are drawn; "" without such ops."""
    random: tuple[str, ...] = ()
    with suppress(UnknownOpError):  # custom ops are not imported to describe a cache
        random = parse(manifest.chain).cached_random
    if not random:
        return ""
    ops, drawn = listed(random), "is" if len(random) == 1 else "are"
    if manifest.variants == 1:
        place = f" (draw {manifest.first_draw})" if manifest.first_draw else ""
        return f"{ops} {drawn} drawn once{place}: every epoch repeats the same images."
    drawn_times = f"{ops} {drawn} drawn {count(manifest.variants)} times"
    if not manifest.first_draw:
        return f"{drawn_times}: epoch e reads variant e mod {manifest.variants}."
    first, last = manifest.first_draw, manifest.first_draw + manifest.variants - 1
    return f"{drawn_times}, draws {first} to {last}: epoch e reads the one that is e modulo {manifest.variants}."


def _source(manifest: Manifest, name: str) -> str:
    source, rejected = manifest.source, manifest.rejected
    text = f"Stored as {manifest.format}, {manifest.encoding}. Source: {source.location}, {data_size(source.bytes)}."
    if source.skipped:
        kinds = sorted(source.skipped.items(), key=lambda item: (-item[1], item[0]))
        by_kind = shortened([f"{kind.strip('()')}: {count(files)}" for kind, files in kinds], _KINDS_SHOWN)
        text += f" Skipped {count(sum(source.skipped.values()))} ({by_kind})."
    if rejected.records:
        path = f"{name.rstrip('/')}/{rejected.name}" if name else rejected.name
        text += f" Rejected {plural(rejected.records, 'record')}, listed in {path}."
    return text


def _energy(manifest: Manifest) -> Iterator[Block]:
    """Yield the energy of the build: in total, and by host if there are several."""
    if manifest.energy is None:
        yield Paragraph("Energy of the build: not measured, since an earlier version built a part in other processes.")
        return
    energy, hosts = manifest.energy.energy, manifest.energy.parts
    missing = manifest.energy.unmetered_shards or ()
    at_least = "at least " if missing else ""
    text = (
        f"Energy of the build: {at_least}{joules(active(energy))} active, {kind(energy.active.method)}; {at_least}{total(energy)} with "
        f"idle, {energy.method}. CPU time {seconds(energy.cpu_s)}, time {seconds(_launched_s(hosts))}."
    )
    if missing:
        text += (
            f" Part of the work on {count(len(missing))} of {plural(manifest.shards, 'shard')} is not in it, since workers ended before "
            "they reported."
        )
    if len(hosts) == 1 and hosts[0].workers is not None and hosts[0].launcher is not None:
        text += f" The processes that built shards used {joules(active(hosts[0].workers))} of the active energy."
    yield Paragraph(text)
    if len(hosts) > 1:
        yield _hosts(hosts)


def _hosts(hosts: Sequence[HostEnergy]) -> Table:
    def part(energy: Energy | None) -> str:
        return "" if energy is None else str(joules(active(energy)).value)

    return table(
        "Energy of the build by host",
        hosts,
        {
            words("Host"): lambda host: host.name or "not recorded",
            Column("Active energy (low to high)"): lambda host: Cell(
                joules(active(host.energy)), kind(host.energy.active.method)
            ),
            Column("Launcher"): lambda host: part(host.launcher),
            Column("Workers"): lambda host: part(host.workers),
            Column("With idle (low to high)", priority=1): lambda host: Cell(
                total(host.energy), kind(host.energy.method)
            ),
            Column("CPU time", priority=1): lambda host: seconds(host.energy.cpu_s),
            Column("Worker processes", priority=2): lambda host: count(host.worker_processes),
        },
        "Each host counts once, for the time that it worked for the build; its processes share it by CPU time.",
    )


def _launched_s(hosts: Sequence[HostEnergy]) -> float:
    """Return for how long builds ran: on the hosts that launched them."""
    launched = [host for host in hosts if host.launcher is not None] or hosts
    return sum(host.energy.duration_s for host in launched)
