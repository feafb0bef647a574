"""Sources in an object store: below an address like a folder's, one file, or a pattern of files."""

from __future__ import annotations

import functools
import glob
import itertools
import re
from array import array
from collections import Counter
from collections.abc import Callable
from pathlib import PurePosixPath

from joulecache.pipelines.core.object_store import ObjectFolder
from joulecache.pipelines.source.images import Images, places_of
from joulecache.pipelines.source.naming import is_sidecar
from joulecache.pipelines.source.records import Archive


def find_stored(location: str) -> tuple[Callable[[], Images] | None, list[Archive]]:
    """Return how to list what lies below an address, or the files that are there. Raises StoreError, ValueError for no address."""
    url, _, last = location.rstrip("/").rpartition("/")
    if not glob.has_magic(location):
        if url.count("/") > 1:  # not a bucket alone
            found = ObjectFolder(url).find(last)
            if found is not None:
                return None, [Archive(location, location, found.mtime_ns)]
        folder = ObjectFolder(location)
        return (functools.partial(_list_folder, folder) if any(True for _ in folder.list()) else None), []
    fixed = "/".join(itertools.takewhile(lambda part: not glob.has_magic(part), location.split("/")))
    matching = _expression(location[len(fixed) + 1 :])
    matched = sorted(
        (stored for stored in ObjectFolder(fixed).list() if matching.fullmatch(stored.name)), key=lambda each: each.name
    )
    places = [f"{fixed}/{stored.name}" for stored in matched]
    return None, [Archive(place, place, stored.mtime_ns) for place, stored in zip(places, matched, strict=True)]


def _list_folder(folder: ObjectFolder) -> Images:
    names: list[str] = []
    sizes, mtimes_ns = array("q"), array("q")
    skipped: Counter[str] = Counter()
    for stored in folder.list():
        inside = PurePosixPath(stored.name)
        if is_sidecar(inside):
            skipped[inside.suffix.lower() or inside.name] += 1
            continue
        names.append(stored.name)
        sizes.append(stored.size_bytes)
        mtimes_ns.append(stored.mtime_ns)
    return Images("", names, places_of(folder.url, sizes, mtimes_ns, None), {}, skipped, [])


_WILD = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def _expression(pattern: str) -> re.Pattern[str]:
    """Return what a pattern matches: ``*`` and ``?`` inside a folder, ``**`` across folders, ``[...]`` one of some characters."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^]]+\])", pattern)  # every second one is a wildcard
    spelled = [
        _WILD.get(part, part.replace("[!", "[^", 1)) if number % 2 else re.escape(part)
        for number, part in enumerate(parts)
    ]
    return re.compile("".join(spelled))
