"""Which files of a cache folder may be deleted: those that a build wrote and the manifest does not list."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.cache.names import is_data_file
from joulecache.pipelines.core.files import is_temporary


def unlisted(names: Iterable[str], manifest: Manifest | None, also_keep: Collection[str] = ()) -> list[str]:
    """Return the names of data files and temporary files that are not listed. Files with other names are the user's.

    Args:
        names: The names of the files in a cache folder.
        manifest: The manifest that lists what belongs to the cache; None for a folder without one.
        also_keep: Further names to keep.
    """
    keep = {file.name for file in manifest.files()} if manifest else set()
    keep.update(also_keep)
    return [name for name in names if name not in keep and (is_data_file(name) or is_temporary(name))]


def delete_unlisted(folder: Path, manifest: Manifest | None, also_keep: Collection[str] = ()) -> None:
    """Delete the files of a cache folder that `unlisted` names."""
    for name in unlisted([path.name for path in folder.iterdir()], manifest, also_keep):
        (folder / name).unlink()
