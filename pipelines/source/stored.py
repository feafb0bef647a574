"""Sources in an object store: a folder of images, a file, or a pattern of files."""

from __future__ import annotations

import functools
import glob
import itertools
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import PurePosixPath

from joulecache.pipelines.core.object_store import ObjectFolder
from joulecache.pipelines.source.listing import ImageListing, image_places, may_have_labels
from joulecache.pipelines.source.names import NamesBuilder
from joulecache.pipelines.source.naming import sidecar_kind
from joulecache.pipelines.source.records import Archive


def find_stored(location: str) -> tuple[Callable[[], ImageListing] | None, list[Archive]]:
    """Return a function that lists a folder of images, or None and the files of another source. Raises StoreError."""
    url, _, last = location.rstrip("/").rpartition("/")
    if not glob.has_magic(location):
        if url.count("/") > 1:  # the URL names more than a bucket
            found = ObjectFolder(url).find(last)
            if found is not None:
                return None, [Archive(location, location, found.mtime_ns)]
        folder = ObjectFolder(location)
        return (functools.partial(_list_folder, folder) if any(True for _ in folder.list()) else None), []
    fixed = "/".join(itertools.takewhile(lambda part: not glob.has_magic(part), location.split("/")))
    pattern = _compiled(location[len(fixed) + 1 :])
    matches = {
        f"{fixed}/{stored.name}": stored for stored in ObjectFolder(fixed).list() if pattern.fullmatch(stored.name)
    }
    return None, [Archive(url, url, stored.mtime_ns) for url, stored in sorted(matches.items())]


def _list_folder(folder: ObjectFolder) -> ImageListing:
    names = NamesBuilder()
    sizes, mtimes_ns = array("q"), array("q")
    beside: list[str] = []
    skipped: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for stored in folder.list():
        inside = PurePosixPath(stored.name)
        if kind := sidecar_kind(inside):
            skipped[stored.name.rpartition("/")[0]][kind] += 1
            if may_have_labels(inside.name, kind):
                beside.append(stored.name)
            continue
        names.append(stored.name)
        sizes.append(stored.size_bytes)
        mtimes_ns.append(stored.mtime_ns)
    return ImageListing("", names.build(), image_places(folder.url, sizes, mtimes_ns, None), None, beside, skipped, [])


_WILD = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def _compiled(pattern: str) -> re.Pattern[str]:
    """Compile a pattern: ``*`` and ``?`` match inside a folder, ``**`` across folders, ``[...]`` one of several characters."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^]]+\])", pattern)  # every second one is a wildcard
    expressions = [
        _WILD.get(part, part.replace("[!", "[^", 1)) if number % 2 else re.escape(part)
        for number, part in enumerate(parts)
    ]
    return re.compile("".join(expressions))
