"""Sources: where encoded images come from, listed as units that can be read anywhere, in any order.

Names load on first use: the command line needs only how sources are declared, and pyarrow takes time to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from joulecache.pipelines.source.config import SOURCE_OPTIONS, SourceConfig
    from joulecache.pipelines.source.naming import IMAGE_SUFFIXES
    from joulecache.pipelines.source.opening import open_source, source_paths
    from joulecache.pipelines.source.records import MAX_CLASSES, Record, Source, SourceError, Unit, log_notes
    from joulecache.pipelines.source.synthetic import SYNTHETIC, SYNTHETIC_CLASSES, synthetic_photo
    from joulecache.pipelines.source.unit_tables import ImageFile, TarMember, select, store_units

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_CLASSES",
    "SOURCE_OPTIONS",
    "SYNTHETIC",
    "SYNTHETIC_CLASSES",
    "ImageFile",
    "Record",
    "Source",
    "SourceConfig",
    "SourceError",
    "TarMember",
    "Unit",
    "log_notes",
    "open_source",
    "select",
    "source_paths",
    "store_units",
    "synthetic_photo",
]

_MODULES = ("config", "naming", "records", "synthetic", "unit_tables", "opening")  # from light to heavy


def __getattr__(name: str) -> object:
    if name in __all__:
        for module in _MODULES:
            defined = vars(import_module(f"{__name__}.{module}"))
            if name in defined:
                globals()[name] = defined[name]
                return defined[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
