"""How images move and what that costs: sources, caches, loaders, energy, training, audits.

Public names load on first use: TensorFlow takes seconds to import, and Beam does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from joulecache.pipelines.auditing import audit
    from joulecache.pipelines.build import precompute
    from joulecache.pipelines.compression import Recipe, compress
    from joulecache.pipelines.loader import load
    from joulecache.pipelines.loader.directory import image_dataset_from_directory
    from joulecache.pipelines.loader.element_cache import cached
    from joulecache.pipelines.manifest import open_manifest, verify
    from joulecache.pipelines.meter import Energy, Meter
    from joulecache.pipelines.meter.replay import ReplayMeter
    from joulecache.pipelines.planning import plan
    from joulecache.pipelines.training import EnergyCallback, train

_HOMES = {
    "Energy": "meter",
    "EnergyCallback": "training",
    "Meter": "meter",
    "Recipe": "compression",
    "ReplayMeter": "meter.replay",
    "audit": "auditing",
    "cached": "loader.element_cache",
    "compress": "compression",
    "image_dataset_from_directory": "loader.directory",
    "load": "loader",
    "open_manifest": "manifest",
    "plan": "planning",
    "precompute": "build",
    "train": "training",
    "verify": "manifest",
}

__all__ = [
    "Energy",
    "EnergyCallback",
    "Meter",
    "Recipe",
    "ReplayMeter",
    "audit",
    "cached",
    "compress",
    "image_dataset_from_directory",
    "load",
    "open_manifest",
    "plan",
    "precompute",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
