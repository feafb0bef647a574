"""How images move and what that costs: sources, caches, loaders, energy, training, audits.

Public names load on first use: TensorFlow takes seconds to import, and Beam does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from joulecache.pipelines.build import precompute
    from joulecache.pipelines.manifest import open_manifest, verify
    from joulecache.pipelines.meter import Energy, Meter

_HOMES = {
    "Energy": "meter",
    "Meter": "meter",
    "open_manifest": "manifest",
    "precompute": "build",
    "verify": "manifest",
}

__all__ = ["Energy", "Meter", "open_manifest", "precompute", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
