"""Patterns of local files and folders."""

from __future__ import annotations

import glob
from pathlib import Path


def matched_paths(location: str) -> tuple[Path, ...]:
    """Return a path, whether it exists or not; or, for a pattern, the paths that match, sorted.

    Args:
        location: With ``*``, ``?`` or ``[`` it is a pattern, unless a file has this name; ``**`` matches across folders.
    """
    path = Path(location)
    folder, pattern = split_pattern(location)
    if path.exists() or not pattern:
        return (path,)
    names = glob.glob(pattern, root_dir=folder, recursive=True)  # noqa: PTH207 - treats `**` and `[` as the shell does
    return tuple(sorted(folder / name for name in names))


def split_pattern(location: str) -> tuple[Path, str]:
    """Return the folder before the first wildcard, and the rest, "" without one. Folders that exist may have any name."""
    folder, parts = Path(), Path(location).parts
    for place, part in enumerate(parts):
        if glob.has_magic(part) and not (folder / part).is_dir():
            return folder, "/".join(parts[place:])
        folder /= part
    return folder, ""
