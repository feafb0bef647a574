"""Match the names in a labels file with the images of a source."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FindKey = Callable[[str], str | None]


@dataclass(frozen=True)
class Matches:
    """Which names mean which images.

    Attributes:
        rows: Row of the image that a name means, by the index of the name.
        tails: Whether only the last parts of paths are equal.
        either: A name that means two images, as its index and their rows; None without such a name.
        twice: Indices of two names that mean the same image; None without such names.
    """

    rows: dict[int, int]
    tails: bool = False
    either: tuple[int, int, int] | None = None
    twice: tuple[int, int] | None = None


def match_names(names: Sequence[str], keys: Sequence[str], find_key: FindKey | None = None) -> Matches:
    """Match names with keys, with or without their suffix.

    Names are keys, or else paths of the same files, or else last parts of keys or the reverse. All names of a file are matched in the
    same way: the first that finds half of them, or half of the images, else the one that finds most.

    Args:
        names: Names in a labels file.
        keys: Keys of the images.
        find_key: Return the key of the file at a path. Default: the images are not in a local folder.
    """
    if not any("\\" in key for key in keys):
        names = [name.replace("\\", "/") for name in names]
    names = [os.path.normpath(name) for name in names]
    ways: list[Callable[[], Matches]] = [lambda: _match_whole(names, keys), lambda: _match_tails(names, keys)]
    if find_key:
        ways.insert(1, lambda: _match_whole([find_key(name) or "" for name in names], keys))
    best = Matches({})
    for way in ways:
        found = way()
        if len(found.rows) > len(best.rows):
            best = found
        if 2 * len(best.rows) >= min(len(names), len(keys)):
            break
    return best


def keys_below(root: Path, base: Path) -> FindKey:
    """Return a function from paths, relative ones below `base`, to keys below `root`."""
    start, above = f"{base.absolute()}/", os.path.join(os.path.abspath(root), "")  # noqa: PTH100, PTH118 - see below

    def find_key(path: str) -> str | None:
        whole = os.path.normpath(path if path.startswith("/") else start + path)  # a Path for each name costs more
        return whole.removeprefix(above) if whole.startswith(above) else None

    return find_key


def _match_whole(names: Sequence[str], keys: Sequence[str]) -> Matches:
    indices: dict[str, int] = {}
    either = twice = None
    for index, name in enumerate(names):
        first = indices.setdefault(name, index)
        if name and first != index:
            twice = twice or (first, index)
    rows: dict[int, int] = {}
    for row, key in enumerate(keys):
        found = indices.get(key, indices.get(_stem(key)))
        if found is not None:
            first = rows.setdefault(found, row)
            if first != row:
                either = either or (found, first, row)
    return Matches(rows, False, either, twice)


def _match_tails(names: Sequence[str], keys: Sequence[str]) -> Matches:
    wanted = set(names)
    parts = {tail for name in wanted for tail in _tails(name)} | wanted
    whole: dict[str, list[int]] = defaultdict(list)  # rows by key and by key without suffix
    ends: dict[str, list[int]] = defaultdict(list)  # rows by the last parts of these
    for row, key in enumerate(keys):
        for form in (key, _stem(key)):
            if form in parts:
                whole[form].append(row)
            for tail in _tails(form):
                if tail in wanted:
                    ends[tail].append(row)
    rows: dict[int, int] = {}
    names_of: dict[int, int] = {}
    either = twice = None
    for index, name in enumerate(names):
        found = next((whole[tail] for tail in (name, *_tails(name)) if tail in whole), ends.get(name))
        if found is None:
            continue
        row, *others = found
        if others:
            either = either or (index, row, others[0])
        first = names_of.setdefault(row, index)
        if first != index:
            twice = twice or (first, index)
        rows[index] = row
    return Matches(rows, True, either, twice)


def _tails(path: str) -> Iterator[str]:
    """Yield a path without its first part, its first two parts and so on."""
    while "/" in path:
        path = path.partition("/")[2]
        yield path


def _stem(key: str) -> str:
    return os.path.splitext(key)[0]  # noqa: PTH122 - a Path for each key costs more than the rest
