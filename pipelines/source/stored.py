"""Sources in an object store: a folder of images, a file, or a pattern of files."""

from __future__ import annotations

import functools
import glob
import itertools
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar

from joulecache.pipelines.core.concurrent_walk import until, walk
from joulecache.pipelines.core.object_store import ObjectFolder, StoredObject
from joulecache.pipelines.core.progress import Tally
from joulecache.pipelines.source.listing import FILES_AT_ONCE, ImageListing, ListingBuilder, may_have_labels
from joulecache.pipelines.source.naming import sidecar_kind
from joulecache.pipelines.source.records import Archive

_MOST_FOLDERS = 10  # of a page that are listed one by one

T = TypeVar("T")


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
    parts = _in_parts(
        ObjectFolder(fixed), lambda objects: [stored for stored in objects if pattern.fullmatch(stored.name)]
    )
    matches = {f"{fixed}/{stored.name}": stored for part in parts for stored in part}
    return None, [Archive(url, url, stored.mtime_ns) for url, stored in sorted(matches.items())]


def _list_folder(folder: ObjectFolder) -> ImageListing:
    listing = ListingBuilder()
    for part in _in_parts(folder, _listed):
        listing.extend(part)
    return listing.build(folder.url)


def _listed(objects: Iterable[StoredObject]) -> ListingBuilder:
    listing = ListingBuilder()
    for stored in objects:
        inside = PurePosixPath(stored.name)
        if kind := sidecar_kind(inside):
            listing.skipped[stored.name.rpartition("/")[0]][kind] += 1
            if may_have_labels(inside.name, kind):
                listing.beside.append(stored.name)
        else:
            listing.add(stored.name, stored.size_bytes, stored.mtime_ns)
    return listing


@dataclass(frozen=True)
class _Part:
    """A part of a folder: all below a folder in it, or some objects.

    Attributes:
        under: Path of the folder.
        objects: The objects, if they are listed already.
    """

    under: str
    objects: Sequence[StoredObject] | None = None


def _in_parts(folder: ObjectFolder, read: Callable[[Iterable[StoredObject]], T]) -> Iterator[T]:
    """Yield what `read` returns for the objects of each part of a folder. Parts, and objects in them, are in the store's order.

    A store lists a thousand objects a request, one request after the other. So large folders are listed by the folders in them, several at
    once; but not where these are small, since each is a request at least.
    """
    found = Tally("files found")

    def visit(part: _Part, ended: threading.Event) -> tuple[T, Sequence[_Part]]:
        if part.objects is not None:
            return read(found.counted(part.objects, FILES_AT_ONCE)), ()
        pages = folder.pages(part.under)
        first, second = next(pages, []), next(pages, [])
        start = len(part.under) + 1 if part.under else 0
        folders = {name[start:].partition("/")[0] for name in (stored.name for stored in first) if "/" in name[start:]}
        if second and 0 < len(folders) <= _MOST_FOLDERS:
            return read(()), _parts_of(*folder.children(part.under))
        return read(
            found.counted(
                itertools.chain(first, second, itertools.chain.from_iterable(until(ended, pages))), FILES_AT_ONCE
            )
        ), ()

    return walk(_Part(""), visit)


def _parts_of(objects: Sequence[StoredObject], folders: Sequence[str]) -> list[_Part]:
    """Return the parts of a folder in the order of the names of all objects."""
    parts: list[_Part] = []
    places = [*((stored.name, stored) for stored in objects), *((f"{name}/", None) for name in folders)]
    for is_object, group in itertools.groupby(sorted(places, key=lambda place: place[0]), lambda place: bool(place[1])):
        if is_object:
            parts.append(_Part("", [stored for _, stored in group if stored]))
        else:
            parts += [_Part(name.removesuffix("/")) for name, _ in group]
    return parts


_WILD = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def _compiled(pattern: str) -> re.Pattern[str]:
    """Compile a pattern: ``*`` and ``?`` match inside a folder, ``**`` across folders, ``[...]`` one of several characters."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^]]+\])", pattern)  # every second one is a wildcard
    expressions = [
        _WILD.get(part, part.replace("[!", "[^", 1)) if number % 2 else re.escape(part)
        for number, part in enumerate(parts)
    ]
    return re.compile("".join(expressions))
