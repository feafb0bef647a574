"""What notebooks show of each result. Importing this module registers it."""

from __future__ import annotations

from joulecache.pipelines.cache.cache import Cache
from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.compressing.results import Compression
from joulecache.pipelines.core.notebook import printed_html, register, table_html
from joulecache.pipelines.energy import Component, Energy
from joulecache.pipelines.report.terminal import print_compression
from joulecache.pipelines.training.results import TrainedModel

_SHOWN_CLASSES = 10


def _energy(energy: Energy) -> str:
    rows = {"active": _component(energy.active)}
    rows |= {name: _component(part) for name, part in energy.components.items()}
    rows["time"] = f"{energy.duration_s:.3g} s, {energy.cpu_s:.3g} CPU-seconds"
    rows["CO2"] = "not measured" if energy.carbon_g is None else f"{energy.carbon_g:.3g} g"
    if energy.flags:
        rows["flagged"] = "; ".join(energy.flags)
    return table_html(str(energy), rows)


def _component(part: Component | None) -> str:
    if part is None:
        return "not measured"
    return f"{part.value_j:.3g} J ({part.low_j:.3g} to {part.high_j:.3g}), {part.method}, {part.scope}"


def _manifest(manifest: Manifest) -> str:
    rows = {
        name: f"{split.records:,} records of {'x'.join('?' if side is None else str(side) for side in split.image_shape)}, "
        f"variants: {split.variants}, {sum(file.bytes for file in split.files) / 1e6:,.1f} MB in files: {len(split.files)}"
        for name, split in manifest.splits.items()
        if split.records
    }
    more = ", ..." if len(manifest.class_names) > _SHOWN_CLASSES else ""
    rows["classes"] = ", ".join(manifest.class_names[:_SHOWN_CLASSES]) + more
    rows["kept as"] = f"{manifest.format}, {manifest.encoding}"
    rows["source"] = f"{manifest.source.location}, {manifest.rejected.records} rejected"
    return table_html(manifest.chain, rows)


def _compression(compression: Compression) -> str:
    return printed_html(lambda console: print_compression(compression.to_json(), console))


def _trained(trained: TrainedModel) -> str:
    rows = {"accuracy": f"{trained.training.accuracy:.1%}", "energy": str(trained.training.energy)}
    compressed = "" if trained.compression is None else _compression(trained.compression)
    return table_html(str(trained.path), rows) + compressed


register(Energy, _energy)
register(Manifest, _manifest)
register(Compression, _compression)
register(TrainedModel, _trained)
register(Cache, lambda cache: _manifest(cache.manifest))
