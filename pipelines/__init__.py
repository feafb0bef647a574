"""Sources, caches, loaders, training, compression, and the energy that they use.

Public names load on first use, since TensorFlow and Beam take seconds to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from joulecache.pipelines.core.notebook import register_on_first_use

if TYPE_CHECKING:
    from joulecache.pipelines.auditing.auditor import audit
    from joulecache.pipelines.building.beam_sink import WriteCache
    from joulecache.pipelines.building.beam_sources import ReadCache, ReadRecords
    from joulecache.pipelines.building.precomputing import precompute
    from joulecache.pipelines.building.records import Record
    from joulecache.pipelines.cache.cache import verify
    from joulecache.pipelines.cache.manifest_io import open_manifest
    from joulecache.pipelines.compressing.beam_inference import LiteRTModelHandler
    from joulecache.pipelines.compressing.compression import compress
    from joulecache.pipelines.compressing.recipe import Recipe
    from joulecache.pipelines.energy import Energy, Meter
    from joulecache.pipelines.energy.replay import ReplayMeter
    from joulecache.pipelines.loading.directory import image_dataset_from_directory
    from joulecache.pipelines.loading.element_cache import cached
    from joulecache.pipelines.loading.loader import load
    from joulecache.pipelines.loading.mixing import mix
    from joulecache.pipelines.loading.numpy_batches import batches
    from joulecache.pipelines.loading.records import Cache, open_cache
    from joulecache.pipelines.models.user_models import TrainingData
    from joulecache.pipelines.planning.planner import plan
    from joulecache.pipelines.source import features
    from joulecache.pipelines.training.callback import EnergyCallback
    from joulecache.pipelines.training.trainer import train

register_on_first_use(lambda: import_module(f"{__name__}.report.notebook"))

_HOMES = {
    "Cache": "loading.records",
    "Energy": "energy",
    "EnergyCallback": "training.callback",
    "LiteRTModelHandler": "compressing.beam_inference",
    "Meter": "energy",
    "ReadCache": "building.beam_sources",
    "ReadRecords": "building.beam_sources",
    "Recipe": "compressing.recipe",
    "Record": "building.records",
    "ReplayMeter": "energy.replay",
    "WriteCache": "building.beam_sink",
    "TrainingData": "models.user_models",
    "audit": "auditing.auditor",
    "batches": "loading.numpy_batches",
    "cached": "loading.element_cache",
    "compress": "compressing.compression",
    "features": "source.features",
    "image_dataset_from_directory": "loading.directory",
    "load": "loading.loader",
    "mix": "loading.mixing",
    "open_cache": "loading.records",
    "open_manifest": "cache.manifest_io",
    "plan": "planning.planner",
    "precompute": "building.precomputing",
    "train": "training.trainer",
    "verify": "cache.cache",
}

__all__ = [
    "Cache",
    "Energy",
    "EnergyCallback",
    "LiteRTModelHandler",
    "Meter",
    "ReadCache",
    "ReadRecords",
    "Recipe",
    "Record",
    "ReplayMeter",
    "TrainingData",
    "WriteCache",
    "audit",
    "batches",
    "cached",
    "compress",
    "features",
    "image_dataset_from_directory",
    "load",
    "mix",
    "open_cache",
    "open_manifest",
    "plan",
    "precompute",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{_HOMES[name]}")
    return home if name == "features" else getattr(home, name)


def __dir__() -> list[str]:
    return sorted(__all__)
