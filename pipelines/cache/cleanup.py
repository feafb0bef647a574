"""Delete files of a cache folder that a build wrote and the manifest does not list."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.cache.names import is_data_file
from joulecache.pipelines.core.files import is_temporary


def unlisted(names: Iterable[str], manifest: Manifest | None, also_keep: Collection[str] = ()) -> list[str]:
    """Return the names of data files and temporary files that are neither listed nor in `also_keep`. Other files are the user's."""
    keep = {file.name for file in manifest.files()} if manifest else set()
    keep.update(also_keep)
    return [name for name in names if name not in keep and (is_data_file(name) or is_temporary(name))]


def delete_unlisted(folder: Path, manifest: Manifest | None, also_keep: Collection[str] = ()) -> None:
    """Delete the files of a cache folder that `unlisted` names."""
    for name in unlisted([path.name for path in folder.iterdir()], manifest, also_keep):
        (folder / name).unlink()
