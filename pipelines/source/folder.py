"""Folders of images."""

from __future__ import annotations

import errno
import functools
import os
import stat
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from joulecache.pipelines.core.concurrent_walk import until, walk
from joulecache.pipelines.core.files import mtime_ns
from joulecache.pipelines.core.progress import Tally
from joulecache.pipelines.core.quantities import plural
from joulecache.pipelines.source.listing import FILES_AT_ONCE, ImageListing, ListingBuilder, may_have_labels
from joulecache.pipelines.source.naming import NOT_UTF8, is_ignored, is_utf8, printable, skipped_kind
from joulecache.pipelines.source.records import SourceError

_LOOP = "(link to a folder above)"
_BROKEN = "(broken link)"
_IRREGULAR = "(no regular file)"
_NOUNS = {
    _LOOP: "links to a folder above them",
    _BROKEN: "links that lead nowhere",
    _IRREGULAR: "broken links, pipes or devices named like images",
}


def list_folder(root: Path) -> ImageListing:
    """List the images below a folder, also those behind links; SourceError if a folder cannot be listed."""
    top = _Root.of(root)
    listing, links = ListingBuilder(), _Links(top)
    found = Tally("files found")
    for part in walk("", functools.partial(_list_one, top, found)):
        listing.extend(part.files)
        links.extend(part.links)
    return listing.build(str(root.absolute()), links.notes(), tuple(links.folders.values()))


@dataclass(frozen=True)
class _Root:
    """The folder that is listed.

    Attributes:
        path: Its path, as given.
        inside: How absolute paths in it start: as given, and with its links resolved.
    """

    path: str
    inside: tuple[str, str]

    @classmethod
    def of(cls, root: Path) -> _Root:
        ends = (os.path.join(path, "") for path in (os.path.abspath(root), os.path.realpath(root)))  # noqa: PTH100, PTH118
        return cls(str(root), (next(ends), next(ends)))


@dataclass(frozen=True)
class _Part:
    """One folder without those in it."""

    files: ListingBuilder
    links: _Links


def _list_one(root: _Root, found: Tally, prefix: str, ended: threading.Event) -> tuple[_Part, list[str]]:
    """List one folder; return what it holds, and the prefixes of the names in the folders in it.

    Args:
        root: The folder that is listed.
        found: Counts the files.
        prefix: Start of the names in this one: ``cat/``, or "" for `root` itself.
        ended: Set when the list is not needed any more.
    """
    listing, links = ListingBuilder(), _Links(root)
    prefix_is_utf8 = is_utf8(prefix)
    here: Counter[str] = Counter()
    # plain strings: a Path for each file costs ten times as much as the listing itself
    folders, files = _entries(os.path.join(root.path, prefix[:-1]) if prefix else root.path, ended)  # noqa: PTH118
    listed = [name for name in folders if not is_ignored(name)]
    followed = [f"{prefix}{name}/" for name in listed if links.leads_on(prefix, name)]
    here[_LOOP] += len(listed) - len(followed)
    for file in until(ended, found.counted(files, FILES_AT_ONCE)):
        if kind := skipped_kind(file):
            # the folder behind a broken link has no suffix
            here[_BROKEN if kind == file and links.is_broken(prefix + file) else kind] += 1
            if may_have_labels(file, kind) and prefix_is_utf8 and is_utf8(file):
                listing.beside.append(prefix + file)
            continue
        status = links.status(prefix + file)
        if status is None:
            here[_IRREGULAR] += 1
        elif prefix_is_utf8 and is_utf8(file):
            listing.add(prefix + file, status.st_size, mtime_ns(status))
        else:
            listing.refused.append((printable(prefix + file), NOT_UTF8))
    if +here or not (followed or files):
        listing.skipped[printable(prefix[:-1])] = +here
    return _Part(listing, links), followed


def _entries(folder: str, ended: threading.Event) -> tuple[list[str], list[str]]:
    """Return the names of the folders in a folder, with links to folders, and of all else; SourceError if it cannot be listed."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in until(ended, entries):
                (folders if _is_folder(entry) else files).append(entry.name)
    except OSError as error:
        raise SourceError(f"cannot list {error.filename!r} ({error.strerror}): make it readable or move it") from error
    return folders, files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


class _Links:
    """The links in a folder.

    Attributes:
        folders: The folders outside to which links lead, by the name of the link.
    """

    def __init__(self, root: _Root) -> None:
        self._root, self._inside = root.path, root.inside
        self.folders: dict[str, Path] = {}
        self._twice: dict[str, str] = {}
        self._outside: list[str] = []  # images
        self._unused: defaultdict[str, list[str]] = defaultdict(list)  # by kind

    def extend(self, links: _Links) -> None:
        """Add the links in another folder."""
        self.folders |= links.folders
        self._twice |= links._twice
        self._outside += links._outside
        for kind, names in links._unused.items():
            self._unused[kind] += names

    def leads_on(self, prefix: str, name: str) -> bool:
        """Return whether a folder is no link to a folder above it."""
        path = f"{self._root}/{prefix}{name}"
        if not os.path.islink(path):  # noqa: PTH114 - as above
            return True
        target = os.stat(path)  # noqa: PTH116
        above = [self._root, *(f"{self._root}/{prefix[:end]}" for end, char in enumerate(prefix) if char == "/")]
        if any(os.path.samestat(target, os.stat(folder)) for folder in above):  # noqa: PTH116
            self._unused[_LOOP].append(prefix + name)
            return False
        real = os.path.realpath(path)
        inside = next((real[len(above) :] for above in self._inside if real.startswith(above)), None)
        if inside is None:
            self.folders[prefix + name] = Path(real)
        elif not any(map(is_ignored, inside.split("/"))):
            self._twice[prefix + name] = inside
        return True

    def is_broken(self, name: str) -> bool:
        """Return whether a link leads nowhere."""
        path = f"{self._root}/{name}"
        broken = os.path.islink(path) and not os.path.exists(path)  # noqa: PTH110, PTH114
        if broken:
            self._unused[_BROKEN].append(name)
        return broken

    def status(self, name: str) -> os.stat_result | None:
        """Return the status of a regular file, following links; None for anything else."""
        path = f"{self._root}/{name}"
        try:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                status = os.stat(path)  # noqa: PTH116
                target = os.path.join(os.path.dirname(path), os.readlink(path))  # noqa: PTH115, PTH118, PTH120
                if not os.path.abspath(target).startswith(self._inside):  # noqa: PTH100 - realpath costs ten times as much
                    self._outside.append(name)
        except OSError as error:
            if not isinstance(error, FileNotFoundError | NotADirectoryError) and error.errno != errno.ELOOP:
                raise
            status = None
        if status is not None and stat.S_ISREG(status.st_mode):
            return status
        self._unused[_IRREGULAR].append(name)
        return None

    def notes(self) -> tuple[str, ...]:
        """Return a sentence about each kind of link."""
        notes = []
        for links, where in (
            (self.folders, "outside the source"),
            (self._twice, "of the source, whose images are used twice"),
        ):
            if links:
                name, target = min(links.items())
                notes.append(
                    f"followed {plural(len(links), 'link')} to {'a folder' if len(links) == 1 else 'folders'} {where}, such as {name!r} to "
                    f"{str(target)!r}"
                )
        if self._outside:
            which = (
                "1 link to an image" if len(self._outside) == 1 else f"{plural(len(self._outside), 'link')} to images"
            )
            notes.append(f"followed {which} outside the source, such as {min(self._outside)!r}")
        for kind, names in sorted(self._unused.items()):
            notes.append(f"skipped {plural(len(names), 'file')} ({_NOUNS[kind]}), such as {printable(min(names))!r}")
        return tuple(notes)
