"""The features of a source in a file of the work folder: a source may have thousands of class names, and a build thousands of shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from joulecache.pipelines.building.work_folder import features_name
from joulecache.pipelines.core import codec
from joulecache.pipelines.core.object_store import open_binary
from joulecache.pipelines.source.features import AnyFeature, Features


class StoredFeatures(Mapping[str, AnyFeature]):
    """Features in a file, which are read on first use and pickled by reference."""

    def __init__(self, location: str) -> None:
        """Refer to a file that `write_features` wrote, by its path or URL."""
        self._location = location

    def __reduce__(self) -> tuple[type[StoredFeatures], tuple[str]]:
        return StoredFeatures, (self._location,)

    def __getitem__(self, name: str) -> AnyFeature:
        return _read(self._location)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_read(self._location))

    def __len__(self) -> int:
        return len(_read(self._location))

    def __repr__(self) -> str:  # part of a spec's digest
        return repr(_read(self._location))


def write_features(features: Features, work: Path) -> str:
    """Write features to a work folder; return the name of the file, which depends on its content."""
    text = codec.dumps(dict(features))
    name = features_name(hashlib.sha256(text.encode()).hexdigest()[:8])
    (work / name).write_text(text, "utf-8")
    return name


@lru_cache(maxsize=4)
def _read(location: str) -> Features:
    with open_binary(location) as file:
        return codec.loads(dict[str, AnyFeature], file.read())
