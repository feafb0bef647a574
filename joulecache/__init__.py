"""joulecache: cache image preprocessing, feed it to training, and measure in joules whether it paid.

Public names load on first use, so that ``import joulecache as jc`` imports neither TensorFlow nor Beam.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # as in typing, which takes time to import: until then, Ctrl-C would print a traceback

if TYPE_CHECKING:
    from joulecache.pipelines import (
        Cache,
        Energy,
        EnergyCallback,
        LiteRTModelHandler,
        Meter,
        ReadCache,
        ReadRecords,
        Recipe,
        Record,
        ReplayMeter,
        TrainingData,
        WriteCache,
        audit,
        batches,
        cached,
        compress,
        features,
        image_dataset_from_directory,
        load,
        mix,
        open_cache,
        open_manifest,
        plan,
        precompute,
        train,
        verify,
    )
    from joulecache.transforms import Chain, Op, ops, parse

__all__ = [
    "Cache",
    "Chain",
    "Energy",
    "EnergyCallback",
    "LiteRTModelHandler",
    "Meter",
    "Op",
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
    "ops",
    "parse",
    "plan",
    "precompute",
    "train",
    "verify",
]

_TRANSFORMS = frozenset({"Chain", "Op", "ops", "parse"})


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    package = "transforms" if name in _TRANSFORMS else "pipelines"
    value = getattr(import_module(f"{__name__}.{package}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "pipelines", "transforms"])
